"""The next token, read from signs alone."""

from __future__ import annotations

from ..part import Claim, Control, Part, rotated

_CLAIMS = (
    Claim(
        "4.1", "Table 1", "signs alone give the model's next token: top 1", "0.38 to 0.63",
        "prediction", "sign_only_top1", "held_out",
        (Control("permuted signs", "permutation", "above"), rotated()), point="final_norm", centres=("",), bound=0.375, paired=False,
    ),
    Claim(
        "4.2", "Table 1", "the loudest dimensions' signs do better: top 1", "0.52 to 0.74",
        "prediction", "sign_loudest_top1", "held_out",
        (
            Control("signs of all dimensions", "none", "above", "sign_only_top1"),
            Control("as many random dimensions", "random", "above"),
            rotated(),
        ),
        point="final_norm", centres=("",), bound=0.515, paired=False,
    ),
    Claim(
        "4.3", "Table 2", "the majority of the context's signs predicts the next token: top 100", "0.53 to 0.63",
        "prediction", "sign_majority_top100", "held_out",
        (
            Control("most frequent tokens", "frequency", "above"),
            Control("the context's own tokens", "repeat", "above"),
            rotated(),
        ),
        point="final_norm", centres=("",), bound=0.53, paired=False,
    ),
)  # fmt: skip

PART = Part(name="prediction", claims=_CLAIMS)
