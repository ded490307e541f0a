from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from digest import Commands, codes, digest, rows, sound
from effort import in_full

import signarium
from signarium.catalog import store
from signarium.catalog.errors import TextError
from signarium.ingest import size
from signarium.ingest.model.load import load_model
from signarium.ingest.progress import Silent
from signarium.ingest.text.windows import find_texts, windows

CONTEXT = 24
WORDS = ("the king", " and 12 ships", " saw the sea –", " naïve", " 日本", "\n", " old stormy water")


def prose(seed: int, n: int) -> str:
    draw = np.random.default_rng(seed)
    return "".join(WORDS[i] for i in draw.integers(0, len(WORDS), n)) + "end"


def jsonl(path: Path, lengths: list[int], seed: int = 5) -> Path:
    """Records of so many words each: windows long and short, in no order."""
    path.write_text("\n".join(json.dumps({"text": prose(seed + i, n)}) for i, n in enumerate(lengths)))
    return path


def ingest(path: Path, folder: Path, *texts: Path, **options: Any) -> Any:
    options = {"sites": "resid_post.0", "context": CONTEXT, "device": "cpu"} | options
    return signarium.ingest(path, folder, text=texts, **options)  # type: ignore[operator]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return tiny.folder(tmp_path, "llama")


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_documents_tokens_and_ids_belong_together(architecture: str, tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path, architecture)
    text, records = tmp_path / "a.txt", jsonl(tmp_path / "b.jsonl", [3, 40, 1, 17])
    text.write_text(prose(0, 150))
    path = tmp_path / "c.duckdb"
    report = ingest(path, folder, text, records, sites="embed;resid_post.0;k.1")
    sound(path)
    model = tiny.loaded(architecture)
    prefix, suffix = model.tokenizer_adds()
    expected = [
        (one.source, one.chunk, one.text, one.ids.tolist())
        for file in find_texts([text, records])
        for one in windows(file, model.tokenizer, context=CONTEXT, prefix=prefix, suffix=suffix)
    ]
    found = rows(
        path,
        "SELECT d.source, d.chunk, d.text, list(s.token_id ORDER BY s.position), d.n_tokens, "
        "list(s.position ORDER BY s.state_id), list(s.is_first ORDER BY s.position), min(s.state_id) "
        "FROM documents d JOIN states s USING (document_id) WHERE site = 'embed' AND centre = 'zero' "
        "GROUP BY ALL ORDER BY d.source, d.chunk",
    )
    assert [row[:4] for row in found] == sorted(expected, key=lambda one: one[:2])
    for row in found:
        assert row[4] == len(row[3]) and row[5] == list(range(row[4]))
        assert row[6] == [True] + [False] * (row[4] - 1)
    sources = {str(text): text.read_text()} | {
        f"{records}:{i}": json.loads(line)["text"]
        for i, line in enumerate(records.read_text().splitlines(), 1)
    }
    joined = rows(path, "SELECT source, string_agg(text, '' ORDER BY chunk) FROM documents GROUP BY source")
    assert dict(joined) == sources
    # States count up from their text's first id, documents too, and every site has the same.
    n = sum(len(one[3]) for one in expected)
    assert report.tokens == n + tiny.VOCAB_SIZE
    for base, n_states, states in rows(
        path,
        "SELECT state_id >> 32, count(DISTINCT state_id), list(DISTINCT state_id ORDER BY state_id) "
        "FROM states GROUP BY 1",
    ):
        assert states == list(range(base << 32, (base << 32) + n_states))
    assert (
        len(
            rows(
                path,
                "SELECT site, centre, md5(list(state_id ORDER BY state_id)::VARCHAR) FROM states GROUP BY ALL",
            )
        )
        == 6
    )
    assert (
        len(
            rows(
                path,
                "SELECT DISTINCT md5(list(state_id ORDER BY state_id)::VARCHAR) FROM states GROUP BY site, centre",
            )
        )
        == 1
    )
    tokens = dict(rows(path, "SELECT DISTINCT token_id, token FROM states"))
    strings = model.token_strings()
    assert all(strings[i] == token for i, token in tokens.items())


# Stated before it was measured. float32 rounds at 6e-8 of a value, a few layers deep well below 1e-4 of the
# vector's root mean square; bfloat16 at 4e-3, which over a few layers comes to some hundredths.
ROUNDING = {"float32": (1e-3, 1e-4), "bfloat16": (1e-2, 0.15)}


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [
        ("llama", "float32"),
        in_full("llama", "bfloat16"),
        in_full("gemma2", "float32"),
        in_full("gemma2", "bfloat16"),
        in_full("bert", "float32"),
        ("bert", "bfloat16"),
    ],
)
def test_the_batch_does_not_change_a_code(architecture: str, dtype: str, tmp_path: Path, capsys: Any) -> None:
    most, margin = ROUNDING[dtype]
    folder = tiny.folder(tmp_path, architecture)
    model = load_model(str(folder), device="cpu", dtype=dtype)
    last = f"resid_post.{model.n_layers - 1}"
    sites = model.parse_sites(f"{last};k.1;ffn.1")
    lengths = [int(n) for n in np.random.default_rng(2).integers(1, 30, 30)]
    text = jsonl(tmp_path / "a.jsonl", lengths)
    options = {"sites": ";".join(one.name for one in sites), "dtype": dtype}
    prefix, suffix = model.tokenizer_adds()
    alone: dict[str, list[np.ndarray[Any, Any]]] = {one.name: [] for one in sites}
    for window in windows(
        find_texts([text])[0], model.tokenizer, context=CONTEXT, prefix=prefix, suffix=suffix
    ):
        ids: Any = torch.from_numpy(window.ids.astype(np.int64))[None]
        model.forward(ids, None, sites, lambda site, x: alone[site.name].append(x[0].double().numpy()))
    rates = {}
    # A few windows at a time; all together, nearly all of them padded.
    for batch_tokens in (60, 4096):
        path = tmp_path / f"{batch_tokens}.duckdb"
        ingest(path, folder, text, batch_tokens=batch_tokens, **options)
        flipped = total = 0
        # Opening a file takes DuckDB longer than the rows; while it is open here, it opens at once.
        with store.reading(path):
            for site in sites:
                x = np.concatenate(alone[site.name])
                mean = np.array(
                    [
                        row[0]
                        for row in rows(
                            path, "SELECT mean FROM dimensions WHERE site = ? ORDER BY dim", [site.name]
                        )
                    ]
                )
                scale = np.sqrt((x**2).mean(1, keepdims=True))
                for centre, shift in (("zero", 0.0), ("mean", mean)):
                    _, norms, found = codes(path, "states", site.name, centre)
                    assert np.allclose(norms, np.linalg.norm(x, axis=1), rtol=margin)
                    differ = np.unpackbits(found, axis=1, count=x.shape[1]) != (x > shift)
                    assert (np.abs((x - shift) / scale)[differ] < margin).all(), (site, centre)
                    flipped += int(differ.sum())
                    total += differ.size
        rates[batch_tokens] = flipped / total
        assert flipped / total < most
    with capsys.disabled():
        print(f"\n{architecture} {dtype}: bit-flip rates by batch_tokens {rates}")  # noqa: T201
    # The catalogue says itself what batching cost, against the window alone.
    stored = rows(
        tmp_path / "4096.duckdb",
        "SELECT site, metric, value, n FROM measurements WHERE metric LIKE 'bit_flip_rate%' AND control = 'alone'",
    )
    assert {row[:2] for row in stored} == {
        (one.name, f"bit_flip_rate_{centre}") for one in sites for centre in ("zero", "mean")
    }
    assert all(0 <= row[2] < 2 * most and row[3] % model.width_of(sites[0]) in range(1000) for row in stored)


def test_the_measured_flip_rate_is_that_of_the_stored_codes(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Were the window alone to give the opposite of every sign, every bit of it would have flipped.
    from signarium.ingest.states import stage as states

    real = states._forward

    def opposite(model: Any, packer: Any, spec: Any, batch: Any) -> Any:
        passed = real(model, packer, spec, batch)
        if len(batch.windows) == 1:
            for value in passed._brought._values.values():
                if value.dtype == torch.uint8:
                    np.bitwise_not(value.numpy(), out=value.numpy())
        return passed

    monkeypatch.setattr(states, "_forward", opposite)
    ingest(tmp_path / "c.duckdb", llama, jsonl(tmp_path / "a.jsonl", [30, 30, 30]), stages=["states"])
    assert rows(tmp_path / "c.duckdb", "SELECT value, n FROM measurements") == [(1.0, CONTEXT * 48)]


def test_state_ids_are_the_texts_own(llama: Path, tmp_path: Path) -> None:
    text = jsonl(tmp_path / "a.jsonl", [10, 60, 5])
    one, other = tmp_path / "one.duckdb", tmp_path / "other.duckdb"
    ingest(one, llama, text)
    # Another model with the same tokenizer, other sites, other batches, another order and place in time.
    second = tiny.folder(tmp_path, "llama", 1, hidden_size=40, num_attention_heads=4)
    more = jsonl(tmp_path / "b.jsonl", [12, 3], seed=50)
    ingest(other, second, more, text, sites="k.1", batch_tokens=30)
    query = (
        "SELECT DISTINCT s.state_id, d.document_id, d.text, s.position, s.token_id FROM states s "
        "JOIN documents d USING (document_id) WHERE d.source LIKE '%a.jsonl%' ORDER BY 1"
    )
    assert rows(one, query) == rows(other, query) != []
    # In one catalogue both share documents and states, stored once.
    before = digest(one)
    ingest(one, second, text, sites="k.1")
    after = digest(one)
    assert all(
        before[table] == after[table] for table in ("state_row", "document_row", "token_row", "text_file")
    )
    shared = (
        "SELECT model, count(*), min(state_id), max(state_id) FROM states WHERE centre = 'zero' GROUP BY 1"
    )
    assert len({row[1:] for row in rows(one, shared)}) == 1 and len(rows(one, shared)) == 2
    sound(one)
    # Another context cuts otherwise: other documents.
    ingest(one, llama, text, context=CONTEXT - 1)
    assert len(rows(one, "SELECT DISTINCT document_id >> 32 FROM documents")) == 2
    sound(one)


def same_but_for_flips(one: Path, other: Path, sites: list[str]) -> None:
    for site in sites:
        for centre in ("zero", "mean"):
            a, b = codes(one, "states", site, centre), codes(other, "states", site, centre)
            assert np.array_equal(a[0], b[0])
            assert np.allclose(a[1], b[1], rtol=1e-5)
            assert np.bitwise_count(a[2] ^ b[2]).sum() < 1e-3 * 8 * a[2].size


LATER = ("code_row", "shard", "run", "run_text", "measurement_row", "index_part", "code_set")
"""Tables that may show in how many steps a text was read."""


@pytest.mark.parametrize("shard", [60, in_full(10_000)])
def test_a_limit_and_then_the_rest(
    shard: int, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(size, "shard_tokens", lambda _: shard)
    a, b = jsonl(tmp_path / "a.jsonl", [20, 9, 14]), jsonl(tmp_path / "b.jsonl", [30, 2, 25], seed=70)
    whole, path = tmp_path / "whole.duckdb", tmp_path / "c.duckdb"
    total = ingest(whole, llama, a, b).tokens - tiny.VOCAB_SIZE
    count = "SELECT count(*) FROM states WHERE centre = 'zero'"
    had = 0
    # Within the first text; beyond its end; back again, which must do nothing; exactly the whole; no limit.
    for limit in (50, total - 40, 10, total, None):
        report = ingest(path, llama, a, b, max_tokens=limit)
        now = rows(path, count)[0][0]
        assert now == total if limit in (total, None) else now >= limit
        assert now - max(had, limit or total) < CONTEXT
        assert now >= had and report.tokens == now - had + (tiny.VOCAB_SIZE if not had else 0)
        had = now
        # Only whole windows, and the first ones.
        states = codes(path, "states", "resid_post.0", "zero")[0]
        all_states = codes(whole, "states", "resid_post.0", "zero")[0]
        assert set(states) <= set(all_states)
        assert rows(path, "SELECT count(*) FROM documents d WHERE n_tokens <> (SELECT count(*) FROM states s "
                          "WHERE s.document_id = d.document_id AND centre = 'zero')") == [(0,)]  # fmt: skip
        sound(path)
    assert digest(path, LATER) == digest(whole, LATER)
    same_but_for_flips(path, whole, ["resid_post.0"])
    assert rows(path, "SELECT complete FROM run WHERE job = 'states'") == [(True,)]
    # And now that it is complete, one of its texts alone is nothing new.
    assert ingest(path, llama, b).already


def test_a_limit_used_up_by_texts_that_are_in_already(llama: Path, tmp_path: Path) -> None:
    a, b = jsonl(tmp_path / "a.jsonl", [20, 9, 14]), jsonl(tmp_path / "b.jsonl", [30, 2, 25], seed=70)
    whole, path = tmp_path / "whole.duckdb", tmp_path / "c.duckdb"
    total = ingest(whole, llama, a, b).tokens
    n = ingest(path, llama, a).tokens - tiny.VOCAB_SIZE
    # `a` has all that the limit allows: nothing to do, and `b` is not taken for done.
    assert ingest(path, llama, a, b, max_tokens=n).already
    # A little of `b`: the limit counts `a` too, and `b` stays open.
    assert 0 < ingest(path, llama, a, b, max_tokens=n + 30).tokens < 30 + CONTEXT
    ingest(path, llama, a, b)
    assert rows(path, "SELECT count(*) FROM states WHERE centre = 'zero'") == [(total - tiny.VOCAB_SIZE,)]
    assert digest(path, LATER) == digest(whole, LATER)
    same_but_for_flips(path, whole, ["resid_post.0"])


def test_sites_texts_and_means_are_added(llama: Path, tmp_path: Path) -> None:
    a, b = jsonl(tmp_path / "a.jsonl", [20, 9]), jsonl(tmp_path / "b.jsonl", [30, 2], seed=70)
    whole, path = tmp_path / "whole.duckdb", tmp_path / "c.duckdb"
    ingest(whole, llama, a, b, sites="resid_post.0;k.1")
    centres = "SELECT DISTINCT site, centre FROM states ORDER BY ALL"
    ingest(path, llama, a, stages=["states"])
    assert rows(path, centres) == [("resid_post.0", "zero")]
    ingest(path, llama, sites="resid_post.0")
    assert rows(path, centres) == [("resid_post.0", "zero")]
    ingest(path, llama, a)
    assert rows(path, centres) == [("resid_post.0", "mean"), ("resid_post.0", "zero")]
    ingest(path, llama, b, sites="k.1;resid_post.0", stages=["states"])
    ingest(path, llama, a, b, sites="k.1;resid_post.0")
    assert ingest(path, llama, b, a, sites="k.1;resid_post.0").already
    sound(path)
    assert digest(path, [*LATER, "dimension_row"]) == digest(whole, [*LATER, "dimension_row"])
    same_but_for_flips(path, whole, ["resid_post.0", "k.1"])
    per = "SELECT site, centre, count(*), count(DISTINCT state_id) FROM states GROUP BY ALL ORDER BY ALL"
    assert rows(path, per) == rows(whole, per)
    assert all(row[2] == row[3] for row in rows(path, per))


def test_folders_and_parquet(llama: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    (texts / "deep").mkdir(parents=True)
    (texts / "b.txt").write_text(prose(1, 30))
    (texts / "deep" / "a.md").write_text(prose(2, 10))
    (texts / "ignored.bin").write_bytes(b"\0\1")
    pq.write_table(pa.table({"text": [prose(3, 5), None, prose(4, 40)]}), texts / "c.parquet")
    path = tmp_path / "c.duckdb"
    ingest(path, llama, texts)
    sound(path)
    joined = dict(
        rows(path, "SELECT source, string_agg(text, '' ORDER BY chunk) FROM documents GROUP BY source")
    )
    name = str(texts)
    assert joined == {
        f"{name}/b.txt": prose(1, 30),
        f"{name}/deep/a.md": prose(2, 10),
        f"{name}/c.parquet:0": prose(3, 5),
        f"{name}/c.parquet:2": prose(4, 40),
    }


def test_a_text_that_changes_meanwhile_is_noticed(llama: Path, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text(prose(0, 100))

    class Writes(Silent):
        def planned(self, estimate: Any) -> None:
            stat = text.stat()
            text.write_text(prose(0, 100).replace("king", "ring"))
            os.utime(text, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    path = tmp_path / "c.duckdb"
    with pytest.raises(TextError, match="changed while it was read"):
        ingest(path, llama, text, progress=Writes())
    assert rows(path, "SELECT job, status FROM runs ORDER BY job") == [
        ("states", "failed"),
        ("types", "done"),
    ]


def test_memory_does_not_grow_with_the_text(warm: Commands, llama: Path, tmp_path: Path) -> None:
    # 8 times the text must not take 30 MB more. Codes of one site are 6 bytes, so an index over them is small.
    # Eight blocks of text are tokenized at once; they are made small enough for even the short text to have more.
    small = {"signarium.ingest.text.splice.BLOCK": 4096, "signarium.ingest.text.splice.AT_ONCE": 4}
    peaks, tokens = [], []
    for times in (1, 8):
        text = tmp_path / f"{times}.txt"
        text.write_text("".join(prose(i, 1000) for i in range(3 * times)))
        path = tmp_path / f"{times}.duckdb"
        args = ["--text", text, "--sites", "resid_post.0", "--stages", "states", "--device", "cpu"]
        found = warm.run("--db", path, "ingest", llama, *args, "--context", 64, shard_tokens=4096, set=small)
        assert found.code == 0, found.err
        peaks.append(found.peak_bytes)
        tokens.append(rows(path, "SELECT count(*) FROM states")[0][0])
    with_more = peaks[1] - peaks[0]
    assert tokens[0] > 3 * 4096 and tokens[1] > 7 * tokens[0]
    assert with_more < 30e6, (peaks, tokens)
