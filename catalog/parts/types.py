"""Types: the sign statistics of a vocabulary's tokens, each alone."""

from __future__ import annotations

from ..part import (
    DOUBLE,
    INTEGER,
    VARCHAR,
    Claim,
    Control,
    Part,
    View,
    random_weights,
    ref,
    rotated,
    scaled,
    table,
)
from ..shared import CODE, CODE_SET, FROM_CODES, SITE, count_codes

_TYPES = {
    **CODE_SET,
    "token_id": "row of the vocabulary",
    "token": "its text, leading space included",
    **CODE,
}
_DIMENSIONS = {
    **SITE,
    "dim": "dimension, from 0",
    "p_positive": "share of types whose sign is positive",
    "entropy": "of that bit, in bits",
    "mean": "over the types: the centre `mean`",
    "std": "standard deviation over the types",
    "argmax_share": "share of types in which this dimension is the largest",
    "argmin_share": "share of types in which this dimension is the smallest",
}


def _types(subject: str) -> str:
    return f"""SELECT m.name AS model, s.name AS site, cs.centre, cs.basis, c.item AS token_id, t.token, c.norm, c.code
{FROM_CODES}
LEFT JOIN token_row t ON t.tokenizer = m.tokenizer_sha256 AND t.token_id = c.item
WHERE cs.subject = '{subject}'"""


def _dimensions(subject: str) -> str:
    return f"""SELECT m.name AS model, s.name AS site, d.dim, d.p_positive, d.entropy, d.mean, d.std,
  d.argmax_share, d.argmin_share
FROM dimension_row d JOIN site s USING (site_id) JOIN model m USING (model_id)
WHERE d.subject = '{subject}'"""


_TABLES = (
    table(
        "dimension_row", "Statistics of one dimension over the vocabulary's type states at one site.", "statistics",
        key="run_id, site_id, subject, dim",
        run_id=ref("run"), site_id=ref("site"), subject=VARCHAR, dim=INTEGER, p_positive=DOUBLE, entropy=DOUBLE, mean=DOUBLE,
        std=DOUBLE, argmax_share=DOUBLE, argmin_share=DOUBLE,
    ),
)  # fmt: skip

_VIEWS = (
    View(
        "types",
        "One row per vocabulary token alone (one position), per site, centre and basis.",
        _TYPES,
        _types("type"),
        total=count_codes("type"),
    ),
    View(
        "types_bos",
        "The same with the BOS token in front (`ingest --bos`); the centre is still that of the types alone.",
        _TYPES,
        _types("type_bos"),
        total=count_codes("type_bos"),
    ),
    View(
        "dimensions",
        "One row per dimension: its sign statistics over the vocabulary.",
        _DIMENSIONS,
        _dimensions("type"),
        after="states",
    ),
    View(
        "dimensions_bos",
        "The same over the types behind a BOS token.",
        _DIMENSIONS,
        _dimensions("type_bos"),
        after="dimensions",
    ),
)

_CLAIMS = (
    Claim(
        "3.1", "Table 3", "pairs of dimensions share little information: mean bits, types", "0.0011 to 0.0051",
        "type", "mi_mean", "in_sample", (
            rotated("below"),
            scaled("below"),
            Control("estimator's bias", "none", "near", "mi_bias", bound=0.001),
        ), bound=0.0051, small=True, paired=False,
    ),
    Claim(
        "3.3", "section 6", "dimensions are independent: participation ratio of their signs, types", "not run",
        "type", "participation_ratio", "in_sample", (rotated(), random_weights("above")), paired=False,
    ),
)  # fmt: skip

PART = Part(name="types", tables=_TABLES, views=_VIEWS, claims=_CLAIMS)
