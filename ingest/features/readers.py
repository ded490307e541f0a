"""Other readers of the same codes: log-odds, the optimal one if dimensions were independent, and a logistic probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..stats.bits import Bools, TypeBits

NEGATIVES = 1024
"""Random types that a probe is trained against."""
_STEPS = 120
"""Of L-BFGS: held-out AUCs are then within 0.002 of the minimum's."""
_PENALTY = 100.0
_GROUPS = 8
_OWN_BYTES = 256 << 20
"""What the bits of the sets that are fitted together may take, as float32."""


def log_odds(
    types: TypeBits, anchors: Sequence[NDArray[np.int64]], define_on: Sequence[NDArray[np.int64]], mask: Bools
) -> torch.Tensor:
    """Weights, float32 (width, sets): with them 0/1 bits give a type's log-likelihood ratio, up to a constant.

    Each dimension counts log(p+ / (1 - p+)) - log(p- / (1 - p-)) for a positive bit, with half an observation added
    to each cell (Krichevsky and Trofimov 1981). With independent dimensions no reader of these bits does better
    (Neyman and Pearson).
    """
    inside, own = types.ones(anchors), types.ones(define_on)
    n_own = np.array([len(ids) for ids in define_on])[:, None]
    n_out = types.n - np.array([len(ids) for ids in anchors])[:, None]
    out = types.positive - inside
    weights = np.log((own + 0.5) / (n_own - own + 0.5)) - np.log((out + 0.5) / (n_out - out + 0.5))
    return torch.from_numpy(np.ascontiguousarray((weights * mask).T.astype(np.float32)))


def linear(types: TypeBits, weights: torch.Tensor) -> NDArray[np.float32]:
    """Scores (sets, types) of `weights`, float32 (width, sets), on 0/1 bits."""
    scores = torch.empty(weights.shape[1], types.n)
    for start, block in types.blocks():
        torch.mm(weights.T, block.T, out=scores[:, start : start + len(block)])
    return scores.numpy()


@dataclass(frozen=True)
class Probes:
    """Logistic probes: scores (sets, types), and the types that they were trained against (ascending)."""

    scores: NDArray[np.float32]
    negatives: NDArray[np.int64]


def probes(
    types: TypeBits,
    anchors: Sequence[NDArray[np.int64]],
    define_on: Sequence[NDArray[np.int64]],
    generator: np.random.Generator,
) -> Probes:
    """One logistic regression a set on all bits, as -1 and 1: `define_on` against random types that are no `anchors`.

    Descends the log loss with balanced classes plus 50 times the squared weights (no penalty on the intercept): what
    scikit-learn calls LogisticRegression(C=0.01, class_weight="balanced"). All sets are fitted together by L-BFGS.
    """
    # Of a small vocabulary, half is left to be scored against.
    chosen = np.sort(generator.choice(types.n, min(NEGATIVES, types.n // 2), replace=False))
    against = torch.from_numpy(types.bits(chosen)).float() * 2 - 1
    longest = max(len(ids) for ids in define_on)
    step = max(1, _OWN_BYTES // (4 * longest * types.width))
    weights = [
        _fit(types, anchors[i : i + step], define_on[i : i + step], chosen, against)
        for i in range(0, len(anchors), step)
    ]
    # On 0/1 bits twice the weights order types as the weights do on -1 and 1.
    return Probes(linear(types, torch.cat(weights, 1)), chosen)


def _fit(
    types: TypeBits,
    anchors: Sequence[NDArray[np.int64]],
    define_on: Sequence[NDArray[np.int64]],
    chosen: NDArray[np.int64],
    against: torch.Tensor,
) -> torch.Tensor:
    """Weights, float32 (width, sets), of some probes; `against` are the bits of the types `chosen`, as -1 and 1."""
    sizes = np.array([len(ids) for ids in define_on])
    n_sets, longest = len(sizes), int(sizes.max())
    # Sets of like size lie together, so that few rows are there to fill up.
    groups = [torch.from_numpy(some) for some in np.array_split(sizes.argsort(kind="stable"), _GROUPS)]
    own = [torch.zeros(len(some), int(sizes[some].max(initial=0)), types.width) for some in groups]
    weight_own = torch.zeros(n_sets, longest)
    weight_against = torch.zeros(len(chosen), n_sets)
    for some, signs in zip(groups, own, strict=True):
        for row, i in zip(signs, some.tolist(), strict=True):
            row[: sizes[i]] = torch.from_numpy(types.bits(define_on[i])).float() * 2 - 1
    for i, (all_ids, ids) in enumerate(zip(anchors, define_on, strict=True)):
        kept = torch.from_numpy(~np.isin(chosen, all_ids))
        total = len(ids) + int(kept.sum())
        weight_own[i, : len(ids)] = total / (2 * len(ids))
        weight_against[:, i] = kept * (total / (2 * max(1, int(kept.sum()))))
    weights = torch.zeros(types.width, n_sets)
    bias = torch.zeros(n_sets)
    weights.grad, bias.grad = torch.empty_like(weights), torch.empty_like(bias)
    fit = torch.optim.LBFGS(
        [weights, bias],
        max_iter=_STEPS,
        history_size=10,
        tolerance_grad=1e-3,
        tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )

    def loss() -> float:
        high = torch.zeros(n_sets, longest)
        for some, signs in zip(groups, own, strict=True):
            high[some, : signs.shape[1]] = torch.bmm(signs, weights.T[some][:, :, None])[:, :, 0]
        high.add_(bias[:, None])
        low = torch.addmm(bias, against, weights)
        value = (
            (weight_own * torch.nn.functional.softplus(-high)).sum(dtype=torch.float64)
            + (weight_against * torch.nn.functional.softplus(low)).sum(dtype=torch.float64)
            + _PENALTY * weights.square().sum(dtype=torch.float64) / 2
        )
        # By hand: taking apart what was just put together costs autograd twice this.
        pull = weight_own * torch.sigmoid(-high)
        push = weight_against * torch.sigmoid(low)
        torch.addmm(weights, against.T, push, beta=_PENALTY, out=weights.grad)
        for some, signs in zip(groups, own, strict=True):
            pulled = torch.bmm(pull[some, None, : signs.shape[1]], signs)[:, 0].T
            weights.grad[:, some] -= pulled  # type: ignore[index]
        bias.grad.copy_(push.sum(0) - pull.sum(1))  # type: ignore[union-attr]
        return float(value)

    fit.step(loss)
    return weights
