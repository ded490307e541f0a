"""What several rooms of the catalogue share: the size of a row group, the names of columns, joins, a claim of two models."""

from __future__ import annotations

from typing import Any

from .part import POLYMORPHISM, Claim, Control

ROW_GROUP = 122_880
"""Rows of a DuckDB row group: a shard of about as many loads fastest and leaves no ragged groups."""

MODEL = {"model": "name of the model"}
SITE = {**MODEL, "site": "named point, such as `resid_post.12`"}
CODE_SET = {
    **SITE,
    "centre": "what is subtracted before the sign: `zero` or `mean` (over the vocabulary's type states)",
    "basis": "`standard`, or a control basis such as `haar:7`",
}
CODE = {
    "norm": "Euclidean norm of the raw vector, before any centre",
    "code": "sign bits, eight a byte, dimension 0 in the highest bit of the first byte",
}
NORM = {"norm": "Euclidean norm of the direction", "code": CODE["code"]}
FEATURE = {"feature_id": "see `features`"}
TOKEN = {"token_id": "row of the vocabulary", "token": "its text"}

FROM_CODES = "FROM code_row c JOIN code_set cs USING (code_set_id) JOIN site s USING (site_id) JOIN model m USING (model_id)"
"""Every code with its set, site and model."""


def count_codes(subject: str) -> str:
    """SQL that counts the codes of a subject from the shards; the view would join every row."""
    return f"SELECT coalesce(sum(n), 0)::BIGINT FROM code_sets WHERE subject = '{subject}'"


def carried(
    claim_id: str, where: str, claim: str, published: str, metric: str, controls: tuple[Control, ...], **more: Any
) -> Claim:  # fmt: skip
    """A claim about what a rotation from another model carries to this model: the mean over the sites that were aligned.

    `more` are further fields of the claim; its split is `held_out` unless they say otherwise.
    """
    rest: dict[str, Any] = {
        "split": "held_out",
        "point": "*",
        "centres": ("*",),
        "source": POLYMORPHISM,
        "everywhere": True,
    } | more
    return Claim(claim_id, where, claim, published, "rotation", metric, controls=controls, **rest)


SHUFFLED_PAIRS = Control("fitted on shuffled pairs", "shuffled", "above")
AS_IS = Control("as it is", "as_is", "above")
MEAN_SHIFT = Control("the mean moved alone", "mean_shift", "above")
HAAR = Control("Haar matrix in its place", "haar:%", "above")


def linear(bound: float) -> Control:
    """What any linear map reaches, of which the figure is to reach all but the share `bound`."""
    return Control("any linear map", "affine", "within", bound=bound)
