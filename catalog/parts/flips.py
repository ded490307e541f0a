"""Flips: what setting a feature's signs does to the logits."""

from __future__ import annotations

from ..part import BIGINT, DOUBLE, VARCHAR, Claim, Control, Part, View, Word, ref, table
from ..shared import FEATURE

_TABLES = (
    table(
        "flip_row", "What one intervention on the residual stream does to the logits, as means over positions.", "flips",
        key="run_id, site_id, arm, dose, at_norm", optional="own_std_error, other_std_error, kl_std_error",
        run_id=ref("run"), feature_id=ref("feature_row"), site_id=ref("site"), arm=VARCHAR, dose=DOUBLE, at_norm=VARCHAR,
        norm=DOUBLE, own_logit_change=DOUBLE, other_logit_change=DOUBLE, kl=DOUBLE, n=BIGINT, own_std_error=DOUBLE,
        other_std_error=DOUBLE, kl_std_error=DOUBLE,
    ),
)  # fmt: skip

_VIEWS = (
    View(
        "flips",
        "One row per intervention: what it does to the logits of a text, each arm beside the others.",
        {
            "run_id": "the job that measured it",
            **FEATURE,
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
)

_CLAIMS = (
    Claim(
        "10.1", "section 10", "flipping a feature's signs lowers its tokens' logits", "-1.9 to -24 (one of 20: +1.2)",
        "flip", "own_logit_change", "held_out", (Control("other tokens", "other_tokens", "below"),),
        everywhere=True, bound=-1.86, small=True,
    ),
    Claim(
        "10.2", "section 10", "the same, less what it does to other tokens", "not run",
        "flip", "own_less_other", "held_out",
        (
            Control("random dimensions, same norm", "random", "below"),
            Control("another feature, same norm", "disjoint", "below"),
            Control("push in a rotated basis, same norm", "rotated", "below"),
            Control("difference of means, same norm", "mean_difference", "below"),
        ),
        everywhere=True,
    ),
)  # fmt: skip

_WORDS = {
    "own_logit_change": Word("own tokens"),
    "other_logit_change": Word("others"),
    "own_less_other": Word("own-others"),
    "flip_kl": Word("KL (nats)"),
    "away": Word("away", "its dimensions set against it"),
    "toward": Word("toward", "set as it expects"),
    "random": Word("random", "as many random dimensions turned"),
    "disjoint": Word("disjoint", "another feature's dimensions set against that"),
    "rotated": Word("rotated", "a push against the same words' feature in a Haar basis"),
    "mean_difference": Word(
        "mean diff.",
        "its words' difference of means taken out (but at a first position), or, at the norm of away, pushed against",
    ),
}

PART = Part(name="flips", tables=_TABLES, views=_VIEWS, claims=_CLAIMS, words=_WORDS)
