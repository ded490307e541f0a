"""What every method stands on: models, runs and their shards, sites, code sets, codes, tokens, index files."""

from __future__ import annotations

from ..part import (
    BIGINT,
    BLOB,
    BOOLEAN,
    DOUBLE,
    INTEGER,
    REAL,
    TIMESTAMP,
    VARCHAR,
    Macro,
    Part,
    View,
    ref,
    table,
)
from ..shared import CODE, CODE_SET, MODEL, SITE

_TABLES = (
    table(
        "model", "One set of weights with its config and its tokenizer, at one float type.", "models", "model",
        primary="model_id", optional="revision, random_init_seed, config, attention",
        model_id=VARCHAR, name=VARCHAR, source=VARCHAR, revision=VARCHAR, architecture=VARCHAR, width=INTEGER,
        n_layers=INTEGER, d_ffn=INTEGER, vocab_size=INTEGER, dtype=VARCHAR, weights_sha256=VARCHAR,
        tokenizer_sha256=VARCHAR, random_init_seed=BIGINT, added_at=TIMESTAMP, config=VARCHAR, attention=VARCHAR,
    ),
    table(
        "run", "One job over one content. `complete` is False while `--max-tokens` left some of its text unread.", "runs", "run",
        primary="run_id", optional="failure, finished_at", changing="versions, device, complete, failure, finished_at",
        run_id=VARCHAR, job=VARCHAR, model_id=ref("model"), params=VARCHAR, versions=VARCHAR, device=VARCHAR,
        complete=BOOLEAN, failure=VARCHAR, started_at=TIMESTAMP, finished_at=TIMESTAMP,
    ),
    table(
        "site", "A named point of one model.", "sites", "site",
        primary="site_id", optional="layer",
        site_id=VARCHAR, model_id=ref("model"), name=VARCHAR, point=VARCHAR, layer=INTEGER, width=INTEGER,
    ),
    table(
        "shard", "What one transaction of a run committed: items `start` .. `start + n` of the run's plan.", "shards", "shard",
        primary="run_id, start",
        run_id=ref("run"), start=BIGINT, n=BIGINT, tokens=BIGINT, forward_s=DOUBLE, pack_s=DOUBLE, write_s=DOUBLE,
        wall_s=DOUBLE,
    ),
    table(
        "code_set", "All codes of one run, site, subject, centre and basis.", "code sets", "code set",
        primary="code_set_id",
        code_set_id=BIGINT, run_id=ref("run"), site_id=ref("site"), subject=VARCHAR, centre=VARCHAR, basis=VARCHAR,
        width=INTEGER,
    ),
    # No key: `verify` compares the codes of a set with what its shards say is done.
    table(
        "code_row", "One sign code. `item` is a token id, a state id, ... as the code set's subject says.", "codes", "code",
        group="code_set_id, item",
        code_set_id=ref("code_set"), item=BIGINT, norm=REAL, code=BLOB,
    ),
    table(
        "token_row", "The decoded text of each row of a vocabulary, by the tokenizer's hash.", "tokens", "token",
        key="tokenizer, token_id", group="tokenizer, token_id",
        tokenizer=VARCHAR, token_id=INTEGER, token=VARCHAR,
    ),
    table(
        "surface", "Which views and macros are in the file: one row (`surface.py`).", "surfaces", changing="hash",
        hash=VARCHAR,
    ),
    table(
        "index_part", "A FAISS file that was built over the first `n` items of a code set (the file itself may be gone).",
        "index records", "index record",
        primary="code_set_id, n",
        code_set_id=ref("code_set"), n=BIGINT, built_at=TIMESTAMP,
    ),
    # The key is for DuckDB's sake: without one, each transaction would leave a block of its own.
    table(
        "digest_row", "How many rows of one group one transaction wrote, and the sum of their hashes (`digests.py`).", "digests",
        primary="digest_id", changing="digest_id, table_name, owner, block, n, hash",
        digest_id=BIGINT, table_name=VARCHAR, owner=VARCHAR, block=BIGINT, n=BIGINT, hash=BIGINT,
    ),
)  # fmt: skip

_VIEWS = (
    View(
        "models",
        "One row per model: its weights, its config, its tokenizer, its float type.",
        {
            "model_id": "from the content of weights, config and tokenizer, the float type and the attention",
            "name": "what every other view calls `model`",
            "source": "Hugging Face id, folder or file that it was read from",
            "revision": "commit of the hub repository, if it came from one",
            "architecture": "`model_type` of its config",
            "width": "d_model",
            "n_layers": "blocks",
            "d_ffn": "width of the FFN's hidden layer",
            "vocab_size": "rows of the token embedding",
            "dtype": "float type that it was run in",
            "weights_sha256": "over names, types, shapes and bytes of the tensors; of the file, for GGUF",
            "tokenizer_sha256": "over the tokenizer's definition",
            "random_init_seed": "set if the weights are random: a control",
            "added_at": "UTC",
        },
        """SELECT model_id, name, source, revision, architecture, width, n_layers, d_ffn, vocab_size, dtype,
  weights_sha256, tokenizer_sha256, random_init_seed, added_at FROM model""",
        order="name",
        shown=("name", "architecture", "width", "n_layers", "dtype", "source"),
    ),
    View(
        "runs",
        "One row per job: what was asked, with what versions, how far it is, and where the time went.",
        {
            "run_id": "from the content of what it read and its parameters",
            "job": "`types`, `types_bos`, `states`, `categories`, `discovery`, `independence`, `context`, "
            "`feature_states`, `neurons`, `unembedding`, `writers`, `words`, `flip`, `align` or `sae`",
            **MODEL,
            "status": "`running`, `done` or `failed`; a killed job stays `running` until it is resumed",
            "params": "JSON",
            "versions": "JSON: of signarium and the libraries that computed it",
            "device": "that the model ran on",
            "tokens": "committed so far",
            "tokens_per_s": "over the wall time of its shards",
            "forward_s": "seconds in the model, of all devices together: what went on beside them counts as well",
            "pack_s": "seconds taking and packing signs, likewise",
            "write_s": "seconds loading rows",
            "started_at": "UTC",
            "finished_at": "UTC",
        },
        """SELECT r.run_id, r.job, m.name AS model,
  CASE WHEN r.failure IS NOT NULL THEN 'failed' WHEN r.finished_at IS NOT NULL THEN 'done' ELSE 'running' END AS status,
  r.params::JSON AS params, r.versions::JSON AS versions, r.device, coalesce(h.tokens, 0) AS tokens,
  h.tokens / nullif(h.wall_s, 0) AS tokens_per_s, h.forward_s, h.pack_s, h.write_s, r.started_at, r.finished_at
FROM run r JOIN model m USING (model_id)
LEFT JOIN (SELECT run_id, sum(tokens)::BIGINT AS tokens, sum(wall_s) AS wall_s, sum(forward_s) AS forward_s,
  sum(pack_s) AS pack_s, sum(write_s) AS write_s FROM shard GROUP BY run_id) h USING (run_id)""",
        order="started_at, run_id",
        shown=("run_id", "job", "model", "status", "tokens", "tokens_per_s", "started_at"),
    ),
    View(
        "sites",
        "One row per site that has been ingested or changed. `residual` is the residual stream at no particular block, where "
        "neurons write.",
        {
            "site_id": "model_id and site",
            **SITE,
            "point": "`embed`, `resid_post`, `k`, ...",
            "layer": "block, from 0; NULL where the point belongs to none",
            "width": "dimensions",
        },
        """SELECT s.site_id, m.name AS model, s.name AS site, s.point, s.layer, s.width
FROM site s JOIN model m USING (model_id)""",
        order="model, point, layer",
        shown=("model", "site", "point", "layer", "width"),
    ),
    View(
        "code_sets",
        "One row per code set: the unit of storage and of indexing.",
        {
            "code_set_id": "from run, site, subject, centre and basis",
            "run_id": "the job that wrote it",
            **SITE,
            "subject": "what a code stands for: `type`, `type_bos` (the token behind a BOS), `state`, `neuron` (what an FFN "
            "neuron writes), `unembedding` (a row of it) or `direction`",
            "centre": CODE_SET["centre"],
            "basis": CODE_SET["basis"],
            "width": "bits",
            "n": "codes",
            "indexed": "whether an index over all of them was built",
        },
        """SELECT cs.code_set_id, cs.run_id, m.name AS model, s.name AS site, cs.subject, cs.centre, cs.basis, cs.width,
  coalesce(h.n, 0) AS n, coalesce(i.n = h.n, false) AS indexed
FROM code_set cs JOIN site s USING (site_id) JOIN model m USING (model_id)
LEFT JOIN (SELECT run_id, sum(tokens)::BIGINT AS n FROM shard GROUP BY run_id) h USING (run_id)
LEFT JOIN (SELECT code_set_id, max(n) AS n FROM index_part GROUP BY code_set_id) i USING (code_set_id)""",
        order="model, subject, site, centre, basis, run_id",
    ),
    View(
        "codes",
        "One row per code, whatever it stands for.",
        {
            "code_set_id": "see `code_sets`",
            "item": "token_id, state_id, ... as the subject says",
            "code": CODE["code"],
        },
        "SELECT code_set_id, item, code FROM code_row",
    ),
)

_MACROS = (
    Macro("hamming", ("a", "b"), "bits in which two codes differ", "bit_count(xor((a)::BIT, (b)::BIT))"),
    Macro(
        "agreement",
        ("code", "mask", "polarity"),
        "share of the dimensions in `mask` on which `code` has the sign that `polarity` expects",
        "1 - bit_count(xor((code)::BIT, (polarity)::BIT) & (mask)::BIT) / nullif(bit_count((mask)::BIT), 0)",
    ),
    Macro(
        "sign_bit",
        ("code", "dim"),
        "the bit of one dimension: 1 is positive",
        "get_bit((code)::BIT, (dim)::INTEGER)",
    ),
    Macro(
        "bit",
        ("code", "dim"),
        'the same; BIT is a word of DuckDB\'s grammar, so write `"bit"(code, dim)`',
        "get_bit((code)::BIT, (dim)::INTEGER)",
    ),
)

PART = Part(name="core", tables=_TABLES, views=_VIEWS, macros=_MACROS)
