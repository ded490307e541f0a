"""Writers: the neurons that write a feature, and what they do together."""

from __future__ import annotations

from ..part import DOUBLE, INTEGER, Claim, Control, Part, View, Word, random_weights, ref, table
from ..shared import FEATURE

_SHUFFLED = Control("shuffled weights", "column_shuffled:%", "above")
_GAUSSIAN = Control("Gaussian weights", "gaussian:%", "above")
_COINS = Control("fair coins", "fair_coin:%", "above")

_TABLES = (
    table(
        "writer_row", "The neurons of a feature's block whose write directions agree most with it, in either polarity.",
        "writers",
        key="feature_id, neuron",
        feature_id=ref("feature_row"), layer=INTEGER, neuron=INTEGER, rank=INTEGER, polarity=INTEGER, agreement=DOUBLE,
    ),
    # No halves where the feature has one dimension.
    table(
        "coalition_row", "The majority vote of a feature's k best neurons, beside its controls.", "coalitions",
        key="feature_id, k", optional="agreement_split_half",
        feature_id=ref("feature_row"), layer=INTEGER, k=INTEGER, agreement=DOUBLE, agreement_split_half=DOUBLE,
        agreement_random=DOUBLE,
    ),
)  # fmt: skip

_VIEWS = (
    View(
        "writers",
        "One row per neuron among the 50 of a feature's own block that agree most with it. Chance alone gives 0.6 and more, and 1 "
        "for features of few dimensions: `evidence` has the controls.",
        {
            **FEATURE,
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
        "One row per feature and size: the majority vote of the neurons of its block that agree most with it.",
        {
            **FEATURE,
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
)

_CLAIMS = (
    Claim(
        "7.1", "section 9", "single neurons write features: share with one above 0.70", "0.002 to 0.06",
        "discovered", "writer_above_0.70", "in_sample", (_SHUFFLED, _GAUSSIAN, random_weights()), centres=("mean",), bound=0.002,
    ),
    Claim(
        "7.2", "section 9", "the same over a neuron's larger weights alone", "0.02 to 0.20 (filter not given)",
        "discovered", "writer_above_0.70_top_half", "in_sample", (_SHUFFLED, _GAUSSIAN, random_weights()), centres=("mean",),
        bound=0.019,
    ),
    Claim(
        "7.3", "section 13", "writers sit in the feature's own block: agreement of the best", "0.69, elsewhere 0.49 (vision)",
        "discovered", "writer_best", "in_sample",
        (
            Control("other blocks", "other_blocks", "above"),
            Control("the next blocks", "next_blocks", "above"),
            _SHUFFLED,
            _GAUSSIAN,
        ),
        centres=("mean",),
    ),
    Claim(
        "7.4", "section 13", "the same: share of features whose best neuron is in their own block", "not run",
        "discovered", "own_block_share", "in_sample",
        (Control("one block in so many", "chance", "above"), _SHUFFLED), centres=("mean",),
    ),
    Claim(
        "7.5", "section 9", "the best neuron on one half of the dimensions writes the other: agreement", "not run",
        "discovered", "coalition_1", "held_out",
        (_COINS, _SHUFFLED, Control("the next block's best neuron", "later_block", "above"), random_weights()), centres=("mean",),
    ),
    Claim(
        "8.1", "section 9", "200 neurons write a feature by majority: agreement", "0.73 to 0.85 (medians)",
        "discovered", "coalition_200", "in_sample", (_COINS, _SHUFFLED), centres=("mean",), bound=0.728,
    ),
    Claim(
        "8.2", "section 9", "the same, chosen on half of the dimensions and scored on the other: mean", "not run",
        "discovered", "coalition_200", "held_out",
        (_COINS, _SHUFFLED, Control("the next block's neurons", "later_block", "above"), random_weights()), centres=("mean",),
    ),
)  # fmt: skip

_WORDS = {
    "none": Word("here"),
    "other_blocks": Word("of other blocks"),
    "next_blocks": Word("of the blocks beside it"),
    "column_shuffled": Word("with each neuron's weights shuffled"),
    "gaussian": Word("with Gaussian weights"),
}

PART = Part(name="writers", tables=_TABLES, views=_VIEWS, claims=_CLAIMS, words=_WORDS)
