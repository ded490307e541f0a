"""The views and macros that stay: the SQL surface that users write against.

This is the only place that defines them. `install` puts them into a file after every migration; the reference
in `docs/views.md` is made from `VIEWS` and `MACROS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import claims
from .ids import NEURON_BITS, PLACE_BITS


@dataclass(frozen=True)
class View:
    """A view: what its rows are, its columns with their meaning, and its query."""

    name: str
    about: str
    columns: dict[str, str]
    query: str


@dataclass(frozen=True)
class Macro:
    """A scalar macro: its signature, what it gives, and its expression."""

    name: str
    arguments: tuple[str, ...]
    about: str
    expression: str


_MODEL = {"model": "name of the model"}
_SITE = {**_MODEL, "site": "named point, such as `resid_post.12`"}
_CODE_SET = {
    **_SITE,
    "centre": "what is subtracted before the sign: `zero` or `mean` (over the vocabulary's type states)",
    "basis": "`standard`, or a control basis such as `haar:7`",
}
_CODE = {
    "norm": "Euclidean norm of the raw vector, before any centre",
    "code": "sign bits, eight a byte, dimension 0 in the highest bit of the first byte",
}
_NORM = {"norm": "Euclidean norm of the direction", "code": _CODE["code"]}
_TYPES = {
    **_CODE_SET,
    "token_id": "row of the vocabulary",
    "token": "its text, leading space included",
    **_CODE,
}
_DIMENSIONS = {
    **_SITE,
    "dim": "dimension, from 0",
    "p_positive": "share of types whose sign is positive",
    "entropy": "of that bit, in bits",
    "mean": "over the types: the centre `mean`",
    "std": "standard deviation over the types",
    "argmax_share": "share of types in which this dimension is the largest",
    "argmin_share": "share of types in which this dimension is the smallest",
}

_FEATURE = {"feature_id": "see `features`"}
_TOKEN_OF_FEATURE = """JOIN feature_row f USING (feature_id) JOIN site s USING (site_id) JOIN model m USING (model_id)
LEFT JOIN token_row t ON t.tokenizer = m.tokenizer_sha256 AND t.token_id = x.token_id"""

_FROM_CODES = "FROM code_row c JOIN code_set cs USING (code_set_id) JOIN site s USING (site_id) JOIN model m USING (model_id)"


def _types(subject: str) -> str:
    return f"""SELECT m.name AS model, s.name AS site, cs.centre, cs.basis, c.item AS token_id, t.token, c.norm, c.code
{_FROM_CODES}
LEFT JOIN token_row t ON t.tokenizer = m.tokenizer_sha256 AND t.token_id = c.item
WHERE cs.subject = '{subject}'"""


def _dimensions(subject: str) -> str:
    return f"""SELECT m.name AS model, s.name AS site, d.dim, d.p_positive, d.entropy, d.mean, d.std,
  d.argmax_share, d.argmin_share
FROM dimension_row d JOIN site s USING (site_id) JOIN model m USING (model_id)
WHERE d.subject = '{subject}'"""


VIEWS: tuple[View, ...] = (
    View(
        "models",
        "One row a model: its weights, its tokenizer, its float type.",
        {
            "model_id": "from the content of weights and tokenizer, and the float type",
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
    ),
    View(
        "runs",
        "One row a job: what was asked, with what versions, how far it is, and where the time went.",
        {
            "run_id": "from the content of what it read and its parameters",
            "job": "`types`, `types_bos`, `states`, `categories`, `discovery`, `independence`, `context`, "
            "`feature_states`, `neurons`, `unembedding`, `writers`, `words`, `flip`, `align` or `sae`",
            **_MODEL,
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
    ),
    View(
        "sites",
        "One row a site that has been ingested or changed. `residual` is the residual stream at no particular block, where "
        "neurons write.",
        {
            "site_id": "model_id and site",
            **_SITE,
            "point": "`embed`, `resid_post`, `k`, ...",
            "layer": "block, from 0; NULL where the point belongs to none",
            "width": "dimensions",
        },
        """SELECT s.site_id, m.name AS model, s.name AS site, s.point, s.layer, s.width
FROM site s JOIN model m USING (model_id)""",
    ),
    View(
        "code_sets",
        "One row a code set: the unit of storage and of indexing.",
        {
            "code_set_id": "from run, site, subject, centre and basis",
            "run_id": "the job that wrote it",
            **_SITE,
            "subject": "what a code stands for: `type`, `type_bos` (the token behind a BOS), `state`, `neuron` (what an FFN "
            "neuron writes), `unembedding` (a row of it) or `direction`",
            "centre": _CODE_SET["centre"],
            "basis": _CODE_SET["basis"],
            "width": "bits",
            "n": "codes",
            "indexed": "whether an index over all of them was built",
        },
        """SELECT cs.code_set_id, cs.run_id, m.name AS model, s.name AS site, cs.subject, cs.centre, cs.basis, cs.width,
  coalesce(h.n, 0) AS n, coalesce(i.n = h.n, false) AS indexed
FROM code_set cs JOIN site s USING (site_id) JOIN model m USING (model_id)
LEFT JOIN (SELECT run_id, sum(tokens)::BIGINT AS n FROM shard GROUP BY run_id) h USING (run_id)
LEFT JOIN (SELECT code_set_id, max(n) AS n FROM index_part GROUP BY code_set_id) i USING (code_set_id)""",
    ),
    View(
        "codes",
        "One row a code, whatever it stands for.",
        {
            "code_set_id": "see `code_sets`",
            "item": "token_id, state_id, ... as the subject says",
            "code": _CODE["code"],
        },
        "SELECT code_set_id, item, code FROM code_row",
    ),
    View(
        "documents",
        "One row a window of text as the model saw it.",
        {
            "document_id": "from the text's content and the window's number",
            "source": "file, or `file:record`",
            "chunk": "number of the window in its source, from 0",
            "sha256": "of `text`",
            "n_tokens": "special tokens included",
            "text": "the exact slice of the source",
        },
        "SELECT document_id, source, chunk, sha256, n_tokens, text FROM document_row",
    ),
    View(
        "types",
        "One row a vocabulary token alone (one position), per site, centre and basis.",
        _TYPES,
        _types("type"),
    ),
    View(
        "types_bos",
        "The same with the BOS token in front (`ingest --bos`); the centre is still that of the types alone.",
        _TYPES,
        _types("type_bos"),
    ),
    View(
        "states",
        "One row a token in its text, per site, centre and basis.",
        {
            **_CODE_SET,
            "state_id": "from the text's content and the token's place; the same at every site",
            "document_id": "see `documents`",
            "position": "in the window, from 0",
            "token_id": "row of the vocabulary",
            "token": "its text, leading space included",
            "is_first": "position 0, where activations are atypical",
            **_CODE,
        },
        f"""SELECT m.name AS model, s.name AS site, cs.centre, cs.basis, c.item AS state_id, w.document_id, w.position,
  w.token_id, t.token, w.position = 0 AS is_first, c.norm, c.code
{_FROM_CODES}
JOIN state_row w ON w.state_id = c.item
LEFT JOIN token_row t ON t.tokenizer = m.tokenizer_sha256 AND t.token_id = w.token_id
WHERE cs.subject = 'state'""",
    ),
    View(
        "dimensions",
        "One row a dimension: its sign statistics over the vocabulary.",
        _DIMENSIONS,
        _dimensions("type"),
    ),
    View(
        "dimensions_bos",
        "The same over the types behind a BOS token.",
        _DIMENSIONS,
        _dimensions("type_bos"),
    ),
    View(
        "features",
        "One row a feature: registered dimensions with an expected sign each, and how it stands beside its controls.",
        {
            "feature_id": "from the run, and the feature's place in it",
            **_SITE,
            "kind": "`category` (from words), `discovered` (without labels) or `direction` (carried here by a rotation)",
            "name": "of the category, or of the token that it was discovered from",
            "centre": _CODE_SET["centre"],
            "basis": _CODE_SET["basis"],
            "n_dims": "registered dimensions",
            "mask": "bits of the registered dimensions",
            "polarity": "the sign that each should have; zero outside the mask",
            "best_dim_auc": "of the best single dimension, in sample",
            "auc_in_sample": "of the agreement, defined and scored on all members",
            "auc_held_out": "defined on one half of the members and scored on the other; if discovered, also found on one "
            "half of the dimensions and read on the other",
            "auc_rotated": "`auc_held_out` in Haar-rotated bases, their mean",
            "null_p95": "95th percentile of `best_dim_auc` over random members; NULL if discovered, since neighbours always beat it",
            "fire_rate": "share of types that agree to at least 0.80",
            "beats_null": "best_dim_auc > null_p95: the paper's own test",
            "survives": "held-out AUC above random members and above rotated bases, Benjamini-Hochberg at 5% over all "
            "features of the model",
            "p_value": "the largest over those controls, before that correction",
            "threshold": "AUC that a registered dimension reaches; NULL: the single best one, or no labels",
            "n_members": "types that it was made from; see `feature_members`",
            "repeats": "discovered features that were this one again",
            "best_dim": "that dimension",
            "agreement_mean": "over the types",
            "agreement_std": "over the types",
            "run_id": "the job that made it",
        },
        """SELECT f.feature_id, m.name AS model, s.name AS site, f.kind, f.name, f.centre, f.basis, f.n_dims, f.mask, f.polarity,
  f.best_dim_auc, f.auc_in_sample, f.auc_held_out, f.auc_rotated, f.null_p95, f.fire_rate,
  f.best_dim_auc > f.null_p95 AS beats_null, coalesce(f.p_value <= c.cut, false) AS survives, f.p_value, f.threshold,
  f.n_members, f.repeats, f.best_dim, f.agreement_mean, f.agreement_std, f.run_id
FROM feature_row f JOIN site s USING (site_id) JOIN model m USING (model_id)
LEFT JOIN (SELECT model_id, max(p_value) AS cut FROM
  (SELECT t.model_id, g.p_value, row_number() OVER (PARTITION BY t.model_id ORDER BY g.p_value) AS place,
    count(*) OVER (PARTITION BY t.model_id) AS tried FROM feature_row g JOIN site t USING (site_id) WHERE g.p_value IS NOT NULL)
  WHERE p_value <= 0.05 * place / tried GROUP BY model_id) c USING (model_id)""",
    ),
    View(
        "feature_members",
        "One row a type that a feature was made from.",
        {
            **_FEATURE,
            "part": "`define` or `score`: the half of a category's words; `neighbour` of the token it was discovered from",
            "token_id": "row of the vocabulary",
            "token": "its text",
        },
        f"""SELECT x.feature_id, x.part, x.token_id, t.token
FROM feature_member x {_TOKEN_OF_FEATURE}""",
    ),
    View(
        "feature_types",
        "One row a type among the 50 that agree most with a feature.",
        {
            **_FEATURE,
            "rank": "from 1; ties by token_id",
            "token_id": "row of the vocabulary",
            "token": "its text",
            "agreement": "share of the registered dimensions with the expected sign",
        },
        f"""SELECT x.feature_id, x.rank, x.token_id, t.token, x.agreement
FROM feature_type_row x {_TOKEN_OF_FEATURE}""",
    ),
    View(
        "feature_states",
        "One row a state among the 20 that agree most with a feature, over all texts; never a first position.",
        {
            **_FEATURE,
            "rank": "from 1; ties by state_id",
            "state_id": "see `states`",
            "document_id": "see `documents`",
            "position": "in the window, from 0",
            "token": "its text",
            "context": "the text around it",
            "agreement": "share of the registered dimensions with the expected sign",
        },
        """WITH ranked AS (SELECT feature_id, state_id, agreement,
  row_number() OVER (PARTITION BY feature_id ORDER BY agreement DESC, state_id) AS rank
  FROM (SELECT DISTINCT feature_id, state_id, agreement FROM feature_state_row)),
top AS (SELECT x.feature_id, x.rank, x.state_id, x.agreement, w.document_id, w.position, w.token_id, m.tokenizer_sha256
  FROM ranked x JOIN feature_row f USING (feature_id) JOIN site s USING (site_id) JOIN model m USING (model_id)
  JOIN state_row w ON w.state_id = x.state_id WHERE x.rank <= 20),
around AS (SELECT top.feature_id, top.state_id, string_agg(u.token, '' ORDER BY v.state_id) AS context
  FROM top CROSS JOIN (SELECT unnest(range(-8, 5)) AS away) JOIN state_row v ON v.state_id = top.state_id + away
  JOIN token_row u ON u.tokenizer = top.tokenizer_sha256 AND u.token_id = v.token_id
  WHERE v.document_id = top.document_id GROUP BY ALL)
SELECT top.feature_id, top.rank, top.state_id, top.document_id, top.position, t.token, around.context, top.agreement
FROM top LEFT JOIN around USING (feature_id, state_id)
LEFT JOIN token_row t ON t.tokenizer = top.tokenizer_sha256 AND t.token_id = top.token_id""",
    ),
    View(
        "neurons",
        "One row an FFN neuron: the direction that it writes to the residual stream, no norm gain applied.",
        {
            **_MODEL,
            "layer": "block, from 0",
            "neuron": "in its block, from 0",
            **_NORM,
        },
        f"""SELECT m.name AS model, (c.item >> {NEURON_BITS})::INTEGER AS layer,
  (c.item & {(1 << NEURON_BITS) - 1})::INTEGER AS neuron, c.norm, c.code
{_FROM_CODES}
WHERE cs.subject = 'neuron'""",
    ),
    View(
        "unembedding",
        "One row a row of the unembedding: the direction that raises a token's logit, as it is read after the final norm.",
        {**_MODEL, "token_id": "row of the vocabulary", "token": "its text", **_NORM},
        f"""SELECT m.name AS model, c.item AS token_id, t.token, c.norm, c.code
{_FROM_CODES}
LEFT JOIN token_row t ON t.tokenizer = m.tokenizer_sha256 AND t.token_id = c.item
WHERE cs.subject = 'unembedding'""",
    ),
    View(
        "directions",
        "One row a direction of a dictionary's decoder: what a feature of a sparse autoencoder writes.",
        {
            "sae_id": "see `saes`",
            **_SITE,
            "name": "of the dictionary",
            "feature": "row of its decoder, from 0",
            **_NORM,
        },
        f"""SELECT x.sae_id, m.name AS model, s.name AS site, x.name, (c.item & {(1 << PLACE_BITS) - 1})::INTEGER AS feature,
  c.norm, c.code
{_FROM_CODES} JOIN sae x ON x.run_id = cs.run_id AND x.site_id = cs.site_id
WHERE cs.subject = 'direction'""",
    ),
    View(
        "writers",
        "One row a neuron among the 50 of a feature's own block that agree most with it. Chance alone gives 0.6 and more, and 1 "
        "for features of few dimensions: `evidence` has the controls.",
        {
            **_FEATURE,
            "layer": "block: the feature's own",
            "neuron": "in its block, from 0",
            "rank": "from 1; ties by neuron",
            "polarity": "1: the neuron writes the feature; -1: its opposite, which a negative activation turns",
            "agreement": "share of the registered dimensions that the neuron, in that polarity, writes with the expected sign",
        },
        "SELECT feature_id, layer, neuron, rank, polarity, agreement FROM writer_row",
    ),
    View(
        "coalitions",
        "One row a feature and size: the majority vote of the neurons of its block that agree most with it.",
        {
            **_FEATURE,
            "layer": "block: the feature's own",
            "k": "neurons that vote",
            "agreement": "share of the registered dimensions that the vote gets right, chosen and scored on the same "
            "dimensions: the paper's procedure, whose chance level is `agreement_random`, not 0.5",
            "agreement_split_half": "chosen on one half of the dimensions and scored on the other, mean of both ways; "
            "chance is 0.5; NULL for one dimension",
            "agreement_random": "the paper's procedure on fair-coin weights of the same shape",
        },
        "SELECT feature_id, layer, k, agreement, agreement_split_half, agreement_random FROM coalition_row",
    ),
    View(
        "projections",
        "One row a token among the 20 that a direction raises or lowers most, read through the final norm and the unembedding.",
        {
            "subject": "`neuron`, `feature` or `direction` (a feature's difference of means in a text)",
            "subject_id": "`12/305` (block/neuron) or the feature_id",
            **_SITE,
            "source": "`float`: the direction itself (of a feature: each sign times that dimension's std over the types); "
            "`sign`: its signs alone",
            "direction": "`up` or `down`",
            "rank": "from 1; ties by token_id",
            "token_id": "row of the vocabulary",
            "token": "its text",
            "logit": "that the token would have if the residual stream held this direction alone",
        },
        f"""SELECT x.subject, CASE WHEN x.subject = 'neuron'
    THEN (x.item >> {NEURON_BITS}) || '/' || (x.item & {(1 << NEURON_BITS) - 1}) ELSE x.item::VARCHAR END AS subject_id,
  m.name AS model, s.name AS site, x.source, x.direction, x.rank, x.token_id, t.token, x.logit
FROM projection_row x JOIN site s USING (site_id) JOIN model m USING (model_id)
LEFT JOIN token_row t ON t.tokenizer = m.tokenizer_sha256 AND t.token_id = x.token_id""",
    ),
    View(
        "flips",
        "One row an intervention: what it does to the logits of a text, each arm beside the others.",
        {
            "run_id": "the job that measured it",
            **_FEATURE,
            "site": "where the residual stream was changed: the feature's own site or a later one",
            "arm": "`away` (its dimensions set against the feature), `toward`, `random` (as many random dimensions turned), "
            "`disjoint` (another feature's), `rotated` (a push against the same words' feature in a Haar basis), "
            "`mean_difference` (its words' difference of means taken out, but at a first position; at the norm of away pushed "
            "against). Signs are about zero, or for centre `mean` about the mean of the text's states",
            "dose": "share of the dimensions, or of the push",
            "at_norm": "`own`, or `away`: scaled at each position to what the arm away changes there",
            "norm": "mean Euclidean norm of the change over positions",
            "own_logit_change": "of the feature's own tokens, mean over tokens and positions",
            "other_logit_change": "of as many tokens of like frequency that are not its own",
            "kl": "divergence of the changed from the model's own next-token distribution, in nats, mean over positions",
            "n": "positions",
            "own_std_error": "over windows",
            "other_std_error": "over windows",
            "kl_std_error": "over windows",
        },
        """SELECT x.run_id, x.feature_id, s.name AS site, x.arm, x.dose, x.at_norm, x.norm, x.own_logit_change,
  x.other_logit_change, x.kl, x.n, x.own_std_error, x.other_std_error, x.kl_std_error
FROM flip_row x JOIN site s USING (site_id)""",
    ),
    View(
        "rotations",
        "One row a rotation between two models at one site: x_b ~ (x_a - mean_a) R + mean_b for rows x, fitted on some documents "
        "of a text and scored on others. Explained variance is about B's own mean per dimension; first positions are left out.",
        {
            "rotation_id": "from the run and the site",
            "model_a": "whose states are carried",
            "model_b": "to whose basis",
            "site_a": "of A",
            "site_b": "of B",
            "width": "dimensions of both",
            "n_fit": "tokens that it was fitted on",
            "n_test": "tokens that it was scored on, of other documents",
            "ev_identity": "explained variance if nothing is done",
            "ev_mean_shift": "if A's mean is moved to B's",
            "ev_rotation": "with the rotation",
            "ev_affine": "with any linear map (ridge, its strength chosen on further documents)",
            "ev_shuffled": "with the rotation fitted on shuffled pairs of tokens",
            "frobenius_from_identity": "|R - I|; sqrt(2 width) if R is any rotation",
            "matrix": "float32, little-endian, row-major, width x width",
            "mean_a": "float32, over the fit",
            "mean_b": "the same of B",
            "n_validation": "tokens that the strength of the ridge was chosen on",
            "ev_scaled": "with the rotation and one factor for all dimensions",
            "ev_permutation": "with the best signed permutation of dimensions; NULL above width 2,048",
            "ev_exchanged": "with a rotation fitted and scored on pairs whose token types were exchanged for others as frequent: what "
            "unrelated models with one tokenizer would reach, mean of several draws",
            "ev_exchanged_error": "standard error of ev_rotation less ev_exchanged, the spread of the draws in it",
            "ev_shuffled_error": "standard error of ev_rotation less ev_shuffled",
            "ev_unseen": "with the rotation, on test tokens whose type the fit never saw; NULL if there are too few",
            "ev_token_mean": "if B's state is taken for the mean of its states at the same token in the fit: no model A at all",
            "scale": "that factor",
            "ridge": "strength of the ridge, as a share of A's mean variance",
            "effective_rank_a": "exp of the entropy of the spectrum of A's covariance",
            "effective_rank_b": "the same of B",
            "halves_agreement": "cosine of the rotations fitted on disjoint halves, trace(R1^T R2) / width; 1 if they are one",
            "rank_warning": "why the rotation is not determined; NULL if it is",
            "std_a": "float32, standard deviation per dimension over the fit",
            "std_b": "the same of B",
            "run_id": "the job that fitted it",
        },
        """SELECT x.rotation_id, m.name AS model_a, n.name AS model_b, s.name AS site_a, t.name AS site_b, x.width, x.n_fit, x.n_test,
  x.ev_identity, x.ev_mean_shift, x.ev_rotation, x.ev_affine, x.ev_shuffled, x.frobenius_from_identity, x.matrix, x.mean_a,
  x.mean_b, x.n_validation, x.ev_scaled, x.ev_permutation, x.ev_exchanged, x.ev_exchanged_error,
  x.ev_shuffled_error,  x.ev_unseen, x.ev_token_mean, x.scale, x.ridge, x.effective_rank_a,
  x.effective_rank_b, x.halves_agreement, x.rank_warning, x.std_a, x.std_b, x.run_id
FROM rotation_row x JOIN site s ON s.site_id = x.site_a_id JOIN model m ON m.model_id = s.model_id
JOIN site t ON t.site_id = x.site_b_id JOIN model n ON n.model_id = t.model_id""",
    ),
    View(
        "rotation_components",
        "One row a principal component of B's states: how much of it a rotation explains on held-out documents.",
        {
            "rotation_id": "see `rotations`",
            "component": "from 1, the largest variance first (over the fit)",
            "variance_share": "of B's variance on the test documents",
            "ev_rotation": "explained variance of this component with the rotation",
            "ev_affine": "with any linear map",
            "ev_shuffled": "with the rotation fitted on shuffled pairs",
        },
        "SELECT rotation_id, component, variance_share, ev_rotation, ev_affine, ev_shuffled FROM rotation_component_row",
    ),
    View(
        "carried_features",
        "One row a feature of B that a rotation carried there from A.",
        {
            **_FEATURE,
            "rotation_id": "see `rotations`",
            "source_feature_id": "the feature of A",
        },
        "SELECT feature_id, rotation_id, source_feature_id FROM carried_row",
    ),
    View(
        "steering",
        "One row a direction, arm and dose: what adding it to B's residual stream does to the labels or tokens that it is about.",
        {
            "rotation_id": "see `rotations`",
            "direction": "what the difference of means is between",
            "arm": "`source` (A's direction in A itself), `as_is` (A's direction in B), `rotated` (carried by the rotation), `random` "
            "(a random one of that norm) or `own` (B's difference of means)",
            "dose": "what the direction is multiplied by",
            "norm": "Euclidean norm of what is added",
            "target": "the labels or tokens whose logits are measured",
            "target_change": "of their mean logit less that of the others, mean over positions",
            "other_change": "of the others' mean logit",
            "kl": "divergence of the changed from the model's own distribution, in nats, mean over positions",
            "n": "positions",
            "target_std_error": "over windows",
            "other_std_error": "over windows",
            "kl_std_error": "over windows",
        },
        """SELECT rotation_id, direction, arm, dose, norm, target, target_change, other_change, kl, n, target_std_error,
  other_std_error, kl_std_error FROM steering_row""",
    ),
    View(
        "saes",
        "One row a sparse autoencoder: a file of its own, whose decoder directions are a code set (subject `direction`).",
        {
            "sae_id": "from the file's content, the model and the site",
            "name": "what it is called here",
            **_SITE,
            "n_features": "columns of its dictionary",
            "seed": "that its training started from; NULL if nobody said",
            "source": "the file that it was read from",
            "sha256": "of that file",
            "params": "JSON: how it was trained, as far as the file says",
            "run_id": "the job that read it",
            "added_at": "UTC",
        },
        """SELECT x.sae_id, x.name, m.name AS model, s.name AS site, x.n_features, x.seed, x.source, x.sha256,
  x.params::JSON AS params, x.run_id, x.added_at FROM sae x JOIN model m USING (model_id) JOIN site s USING (site_id)""",
    ),
    View(
        "measurements",
        "One row a figure, each beside the control that could explain it away.",
        {
            "run_id": "the job that measured it",
            **_SITE,
            "subject": "what it is about: `type`, `state`, `feature`, `category`, `discovered`, `prediction`, `neuron`, `flip`, "
            "`rotation` or `sae`",
            "subject_id": "the feature or the dictionary; for figures about all of a site the centre, or nothing; of a rotation to this "
            "model the name of model A",
            "metric": "what was measured",
            "control": "`none` for the figure itself, else the control",
            "split": "`in_sample` or `held_out`",
            "value": "the figure",
            "n": "how many things it was measured on",
            "seed": "of what was random in it",
            "std_error": "standard error of a mean over features; of a control, that of its difference to the figure itself",
        },
        """SELECT x.run_id, m.name AS model, s.name AS site, x.subject, x.subject_id, x.metric, x.control, x.split,
  x.value, x.n, x.seed, x.std_error
FROM measurement_row x JOIN site s USING (site_id) JOIN model m USING (model_id)""",
    ),
    View(
        "evidence",
        "One row a published claim, model and control: the figure here, the control's, and whether the claim survives it.",
        {
            "claim_id": "stays the same",
            "source": "paper and table",
            "claim": "in words",
            "metric": "see `measurements`",
            "published": "the published figure",
            **_MODEL,
            "value": "this model's figure",
            "control": "what could explain it away",
            "control_value": "the same figure under the control",
            "verdict": "`survives`, `does not survive` or `not measured`",
            "site": "where: for residual sites the one that the layer sweep chose",
            "centre": "of the codes; empty where there are none",
            "from_model": "the model that was carried here, for claims about a pair; else NULL",
        },
        claims.query(),
    ),
)

MACROS: tuple[Macro, ...] = (
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


def install(execute: Callable[[str], object]) -> None:
    """Define every view and macro through `execute`, in the transaction that the caller holds."""
    for macro in MACROS:
        execute(f'CREATE OR REPLACE MACRO "{macro.name}"({", ".join(macro.arguments)}) AS {macro.expression}')
    for view in VIEWS:
        execute(f"CREATE OR REPLACE VIEW {view.name} AS {view.query}")


def view(name: str) -> View:
    """The view called `name`; KeyError if there is none."""
    return {one.name: one for one in VIEWS}[name]
