"""Majority votes of the neurons that agree best with a feature (Bag of Dims, section 9).

Neurons are ranked by their agreement with a pattern, and the signs of the top K vote on every dimension. Ranked and
scored on the same dimensions, even fair coins reach 0.9 and more: whoever is ranked on the answer knows some of it.
So a coalition is also ranked on one half of the feature's dimensions and scored on the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..stats.bits import Counts, Patterns
from ..stats.draws import rng
from .agreements import Agreements, Signs, steps

KS = (1, 10, 50, 100, 200, 500, 1000)
Floats = NDArray[np.float64]
_DIGITS = 1 << 24
"""Votes of several intervals go through one product as digits of one number: of this many, float32 holds each, and
so does a quotient rounded to the nearest whole number (see `_apart`)."""


def sizes(n_neurons: int, ks: Sequence[int] = KS) -> tuple[int, ...]:
    """The sizes of `ks` that `n_neurons` have, ascending."""
    return tuple(k for k in sorted(set(ks)) if 1 <= k <= n_neurons)


def ranked(counts: Counts, most: int) -> NDArray[np.int64]:
    """The `most` neurons with the highest of `counts` (features, neurons), ties by number: (features, most)."""
    parts = [
        np.argsort(-counts[some], axis=1, kind="stable")[:, :most]
        for some in steps(len(counts), 8 * counts.shape[1])
    ]
    return np.concatenate(parts)


def curve(selected: Agreements, scored: Patterns, block: Signs, ks: Sequence[int]) -> Floats:
    """Share of `scored` dimensions that the vote of the K best neurons by `selected` gets right: (features, K).

    `block` (neurons, width); `ks` as `sizes` gives them. A tied vote is half right. NaN where nothing is scored.
    """
    order = ranked(selected.counts(block), ks[-1])
    signed = scored.signs
    out = np.empty((len(scored), len(ks)))
    for some in steps(len(scored), 4 * max(block.shape)):
        expected = signed[some]
        votes = torch.zeros(expected.shape)
        for i, more in enumerate(_votes(order[some], block, ks)):
            votes += more
            out[some, i] = (votes.sign() * expected).sum(1).numpy()
    n = scored.n_dims[:, None].astype(float)
    with np.errstate(invalid="ignore"):
        # Right less wrong, a tie being neither, is exact; so is the share of it.
        return (out + n) / (2 * n)


def _votes(order: NDArray[np.int64], block: Signs, ks: Sequence[int]) -> list[torch.Tensor]:
    """What the neurons from one of `ks` to the next add to the votes: float32 (features, width) each.

    One product [features, neurons] x [neurons, width] for as many intervals as fit into a float32 (two for `KS`).
    """
    edges = [0, *ks]
    found: dict[int, torch.Tensor] = {}
    for members in _packed([high - low for low, high in zip(edges, ks, strict=False)]):
        chosen = np.zeros((len(order), len(block)), np.float32)
        unit = 1
        for i, size in members:
            np.put_along_axis(chosen, order[:, edges[i] : edges[i + 1]], np.float32(unit), 1)
            unit *= 2 * size + 1
        total = torch.zeros(len(order), block.shape[1])
        left = torch.from_numpy(chosen)
        for some in steps(len(block), 4 * block.shape[1]):
            total.addmm_(left[:, some], torch.from_numpy(block[some].astype(np.float32)))
        found |= _apart(total, members)
    return [found[i] for i in range(len(ks))]


def _packed(counts: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Intervals (number, size) in groups whose digits fit together; the largest first, into the first that has room."""
    groups: list[list[tuple[int, int]]] = []
    ranges: list[int] = []
    for i in sorted(range(len(counts)), key=lambda i: -counts[i]):
        base = 2 * counts[i] + 1
        place = next((g for g, taken in enumerate(ranges) if taken * base <= _DIGITS), len(groups))
        if place == len(groups):
            groups.append([])
            ranges.append(1)
        groups[place].append((i, counts[i]))
        ranges[place] *= base
    return groups


def _apart(total: torch.Tensor, members: Sequence[tuple[int, int]]) -> Iterator[tuple[int, torch.Tensor]]:
    """(interval, its votes) from sums in which an interval of n votes is a digit from -n to n.

    A quotient by b = 2n + 1 lies at least 1 / 2b from where rounding turns. Sums are below `_DIGITS` / 2, so its
    float32 is off by less than that.
    """
    for i, size in members[:-1]:
        higher = (total / (2 * size + 1)).round_()
        yield i, total - higher * (2 * size + 1)
        total = higher
    yield members[-1][0], total


def halves(patterns: Patterns, keys: NDArray[np.int64], seed: int) -> tuple[Patterns, Patterns]:
    """Each feature's dimensions in two at random, n // 2 and the rest; a feature's split hangs on its key alone."""
    first = np.zeros_like(patterns.mask)
    for i, key in enumerate(keys):
        dims = rng(seed, "halves", key).permutation(np.flatnonzero(patterns.mask[i]))
        first[i, dims[: len(dims) // 2]] = True
    return Patterns(first, patterns.polarity), Patterns(patterns.mask & ~first, patterns.polarity)


def split_half(parts: tuple[Patterns, Patterns], block: Signs, ks: Sequence[int]) -> Floats:
    """Ranked on one of `parts` and scored on the other, the mean over both ways: (features, K).

    NaN for a feature with one dimension.
    """
    one, other = parts
    found = (curve(Agreements(one), other, block, ks) + curve(Agreements(other), one, block, ks)) / 2
    found[(one.n_dims == 0) | (other.n_dims == 0)] = np.nan
    return found


def curves(
    held: Agreements,
    ids: NDArray[np.int64],
    blocks: dict[str, Signs],
    ks: Sequence[int],
    seed: int,
) -> dict[tuple[str, str], Floats]:
    """Shares right, (features, K), by (control, split), in sample and held out.

    `blocks`: the signs (neurons, width) of the trained weights, "none", and of others by the control's name. `ids`
    (features,) are the keys by which a feature's halves are drawn.
    """
    parts = halves(held.patterns, ids, seed)
    found: dict[tuple[str, str], Floats] = {}
    for control, block in blocks.items():
        found[control, "in_sample"] = curve(held, held.patterns, block, ks)
        found[control, "held_out"] = split_half(parts, block, ks)
    return found
