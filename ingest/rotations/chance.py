"""What a rotation between unrelated models would explain: the same word has the same state, and frequent words are few.

Two models that share nothing but a tokenizer are related all the same: each gives every token a vector of its own, and
where few tokens make up most of a text a rotation can learn which vector goes with which. Shuffling all pairs
breaks that too, so against it such models look alike. Here types are exchanged instead, each for another that is as
frequent, and the rotation is fitted and scored on pairs that are consistent and mean nothing.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ..stats.paired import Paired, n_rows
from .fit import procrustes

Ids = NDArray[np.int64]


DRAWS = 10
"""Exchanges that are drawn: which type meets which decides more than which documents are scored."""
_NEAR = 0.5
"""How far, in the logarithm of its count, a type may move before neighbours change places."""


def n_draws(width: int) -> int:
    """Exchanges that are drawn at a width: each is one more singular value decomposition."""
    return DRAWS if width <= 1024 else 3


def exchanged(token_ids: Ids, generator: np.random.Generator) -> dict[int, int]:
    """For each of the types in `token_ids` (n,) another that occurs about as often; each is taken once.

    Types stand in the order of their counts, each moved at random by little, and neighbours change places; of an odd
    number the last three go round.
    """
    ids, counts = np.unique(token_ids, return_counts=True)
    if len(ids) < 2:
        return {}
    there = ids[np.argsort(generator.uniform(-_NEAR, _NEAR, len(ids)) - np.log(counts), kind="stable")]
    partner = there.copy()
    even = len(there) - (3 if len(there) % 2 else 0)
    partner[0:even:2], partner[1:even:2] = there[1:even:2], there[0:even:2]
    if len(there) % 2:
        partner[-3:] = np.roll(there[-3:], 1)
    return {int(a): int(b) for a, b in zip(there, partner, strict=True)}


def with_types_exchanged(paired: Paired, seed: int) -> Paired | None:
    """A's states beside states of B at another type, the same one wherever A's type occurs; None if nothing is left.

    A row of A meets a random row of B in its own part with the type that its own is exchanged for (the types are
    those of the fit). Rows for which there is none are left out.
    """
    generator = np.random.default_rng([1, seed])
    partner = exchanged(paired.token_ids[paired.fit], generator)
    rows_a, rows_b, slices = list[Ids](), list[Ids](), list[slice]()
    start = 0
    for part in (*paired.halves, paired.validation, paired.test):
        own = paired.token_ids[part]
        order = np.argsort(own, kind="stable")
        wanted = np.array([partner.get(int(one), -1) for one in own], np.int64)
        low, high = np.searchsorted(own[order], wanted), np.searchsorted(own[order], wanted, "right")
        kept = np.flatnonzero(high > low)
        met = order[(low + generator.random(len(own)) * (high - low)).astype(np.int64)[kept]]
        rows_a.append(kept + part.start)
        rows_b.append(met + part.start)
        slices.append(slice(start, start + len(kept)))
        start += len(kept)
    fit, test = slice(slices[0].start, slices[1].stop), slices[3]
    every = np.concatenate(rows_a)
    clusters = paired.clusters[every]
    if n_rows(fit) < 2 or n_rows(test) < 2 or len(np.unique(clusters[test])) < 2:
        return None
    return Paired(
        paired.a, paired.b, (slices[0], slices[1]), slices[2], slices[3], paired.token_ids[every], paired.documents[every],
        paired.positions[every], paired.device, clusters, (every, np.concatenate(rows_b)),
    )  # fmt: skip


def chance(paired: Paired, seed: int) -> tuple[float, float, int] | None:
    """Explained variance on the test rows of a rotation whose types were exchanged, its standard error, and those rows.

    The error is a jackknife over A's documents; it does not hold the draw, for which there are several seeds.
    None where the text has too few types.
    """
    found = with_types_exchanged(paired, seed)
    if found is None:
        return None
    width, device = found.width, found.device
    sums = [torch.zeros(width, dtype=torch.float64, device=device) for _ in "ab"]
    for _, a, b in found.blocks(found.fit):
        sums[0] += a.sum(0)
        sums[1] += b.sum(0)
    mean_a, mean_b = (one / n_rows(found.fit) for one in sums)
    cross = torch.zeros(width, width, dtype=torch.float64, device=device)
    for _, a, b in found.blocks(found.fit):
        cross.addmm_((a - mean_a).T, b - mean_b)
    matrix, _ = procrustes(cross)
    del cross
    test = found.test
    _, place = np.unique(found.clusters[test], return_inverse=True)
    n = int(place.max()) + 1
    counts = np.bincount(place)
    total = torch.zeros(n, width, dtype=torch.float64, device=device)
    errors, squares = np.zeros(n), np.zeros(n)
    for some, a, b in found.blocks(test):
        at = place[some.start - test.start : some.stop - test.start]
        b = b - mean_b
        missed = (b - (a - mean_a) @ matrix).square().sum(1).cpu().numpy()
        errors += np.bincount(at, missed, n)
        squares += np.bincount(at, b.square().sum(1).cpu().numpy(), n)
        total.index_add_(0, torch.from_numpy(at).to(device), b)
    whole = total.sum(0)
    # About the test rows' own mean, of all documents and without each of them.
    spread = squares.sum() - float(whole.square().sum()) / counts.sum()
    left = (whole - total).square().sum(1).cpu().numpy()
    without = squares.sum() - squares - left / np.maximum(counts.sum() - counts, 1)
    value = 1 - errors.sum() / spread
    each = 1 - (errors.sum() - errors) / without
    return float(value), float(np.sqrt((n - 1) / n * np.square(each - each.mean()).sum())), n_rows(test)
