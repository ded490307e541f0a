"""Directions in words: the tokens that each raises and lowers most."""

from __future__ import annotations

from ..ids import NEURON_BITS
from ..part import BIGINT, INTEGER, REAL, VARCHAR, Claim, Control, Part, View, ref, rotated, table
from ..shared import SITE


def _words(number: str, what: str, subject: str, centre: str, point: str) -> Claim:
    return Claim(
        f"9.{number}", "section 1", f"signs alone say in words what {what} says: share of 20 tokens", "not run",
        subject, "projection_overlap", "in_sample",
        (
            Control("another one's signs", "shuffled", "above"),
            Control("the same sizes, signs drawn", "random_signs", "above"),
            rotated(),
        ),
        point=point, centres=(centre,),
    )  # fmt: skip


_TABLES = (
    table(
        "projection_row",
        "The tokens that a direction raises and lowers most when it is read through the final norm and the unembedding.",
        "projections",
        key="run_id, site_id, subject, item, source, direction, rank",
        run_id=ref("run"), site_id=ref("site"), subject=VARCHAR, item=BIGINT, source=VARCHAR, direction=VARCHAR, rank=INTEGER,
        token_id=INTEGER, logit=REAL,
    ),
)  # fmt: skip

_VIEWS = (
    View(
        "projections",
        "One row per token among the 20 that a direction raises or lowers most, read through the final norm and the unembedding.",
        {
            "subject": "`neuron`, `feature` or `direction` (a feature's difference of means in a text)",
            "subject_id": "`12/305` (block/neuron) or the feature_id",
            **SITE,
            "source": "`float`: the direction itself (of a feature: each sign times that dimension's std over the types); "
            "`sign`: its signs alone",
            "direction": "`up` or `down`",
            "rank": "from 1; ties by token_id",
            "token_id": "row of the vocabulary",
            "token": "its text",
            "logit": "that the token would have if the residual stream held this direction alone",
        },
        # In two halves: what an id must be is then known of the numbers themselves, before text is made of millions of them.
        f"""SELECT x.subject, x.subject_id, m.name AS model, s.name AS site, x.source, x.direction, x.rank, x.token_id, t.token, x.logit
FROM (SELECT *, (item >> {NEURON_BITS}) || '/' || (item & {(1 << NEURON_BITS) - 1}) AS subject_id
    FROM projection_row WHERE subject = 'neuron'
  UNION ALL SELECT *, item::VARCHAR FROM projection_row WHERE subject <> 'neuron') x
JOIN site s USING (site_id) JOIN model m USING (model_id)
LEFT JOIN token_row t ON t.tokenizer = m.tokenizer_sha256 AND t.token_id = x.token_id""",
        # A few million.
        total="SELECT count(*) FROM projection_row",
    ),
)

_CLAIMS = (
    _words("1", "a neuron", "neuron", "", "residual"),
    _words("2", "a feature", "discovered", "mean", "resid_post"),
)  # fmt: skip

PART = Part(name="projections", tables=_TABLES, views=_VIEWS, claims=_CLAIMS)
