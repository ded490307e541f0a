"""Features found without labels: what the nearest neighbours of a random token have in common.

Bag of Dims, section 7, on centred codes. The paper's yield is close to automatic, since neighbours that were chosen
for their agreement agree; so each feature is also found on one random half of the dimensions and read on the other.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from ...catalog.index import CodeIndex, faiss, n_threads
from .bits import Counts, Patterns, TypeBits, agreements

NEIGHBOURS = 20
_AT_ONCE = 128
SAME = 0.9
"""Two features are one when the Jaccard index of their registered (dimension, sign) pairs is above this."""

Ids = NDArray[np.int64]


def neighbours(types: TypeBits, seeds: Ids, columns: Ids | None = None) -> Ids:
    """(seeds, 20): the types nearest to each seed by Hamming distance, the seed itself left out, ties by token id.

    Over all dimensions, or over `columns`.
    """
    codes, width = types.codes, types.width
    if columns is not None:
        width = len(columns)
        parts = [np.packbits(block.numpy().astype(np.uint8), axis=1) for _, block in types.blocks(columns)]
        codes = np.concatenate(parts)
    n = types.n
    index = CodeIndex(width, np.ascontiguousarray(codes), np.array([[0, 0, n]]))
    k = min(NEIGHBOURS + 1, n)
    # A vocabulary is too small to be searched in shards; the seeds are split over the cores instead.
    with ThreadPoolExecutor(n_threads(), initializer=lambda: faiss().omp_set_num_threads(1)) as pool:
        answers = pool.map(
            lambda i: index.search(codes[seeds[i : i + _AT_ONCE]], k)[1], range(0, len(seeds), _AT_ONCE)
        )
        found = np.concatenate(list(answers))
    # Enough codes equal to the seed's, with lower ids, can push the seed itself out.
    own = found == seeds[:, None]
    own[~own.any(1), -1] = True
    return found[~own].reshape(len(seeds), k - 1)


def common(types: TypeBits, sets: Ids) -> Patterns:
    """The dimensions on which all types of each set (sets, size) agree, with their sign."""
    masks, signs = [], []
    for i in range(0, len(sets), 128):
        bits = types.bits(sets[i : i + 128])
        every, none = bits.all(1), ~bits.any(1)
        masks.append(every | none)
        signs.append(every)
    return Patterns(np.concatenate(masks), np.concatenate(signs))


def distinct(patterns: Patterns) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which features to keep, in order, and for every feature which kept one it is (itself, or one that it repeats).

    The first of those that repeat each other stays; a feature without dimensions is none and gets -1.
    """
    n = len(patterns)
    positive = torch.from_numpy((patterns.mask & patterns.polarity).astype(np.float32))
    negative = torch.from_numpy((patterns.mask & ~patterns.polarity).astype(np.float32))
    sizes = patterns.n_dims
    shared = (positive @ positive.T + negative @ negative.T).numpy()
    jaccard = shared / np.maximum(sizes[:, None] + sizes[None, :] - shared, 1)
    stands_for = np.full(n, -1, np.int64)
    kept: list[int] = []
    for i in range(n):
        if sizes[i] == 0:
            continue
        same = [j for j in kept if jaccard[i, j] > SAME] if kept else []
        if same:
            stands_for[i] = same[0]
        else:
            stands_for[i] = i
            kept.append(i)
    return np.array(kept, np.int64), stands_for


def halves_auc(types: TypeBits, seeds: Ids, generator: np.random.Generator) -> NDArray[np.float64]:
    """Each seed's neighbours on a random half of the dimensions, read on the other: see `halves`."""
    state = generator.bit_generator.state
    found_on = _halves_of(types.width, generator)[0]
    generator.bit_generator.state = state
    sets = neighbours(types, seeds, found_on)
    return halves(types, sets, np.concatenate([sets, seeds[:, None]], 1), generator)


def halves(types: TypeBits, sets: Ids, left_out: Ids, generator: np.random.Generator) -> NDArray[np.float64]:
    """Percentiles (sets, scored) of every second type of each set, on the second half of the dimensions.

    The other types of the set define a pattern on that half; the scored ones stand among all types but those
    `left_out`. NaN where the defining ones have nothing in common. The mean over a row is a held-out AUC.
    """
    read_on = _halves_of(types.width, generator)[1]
    whole = common(types, sets[:, ::2])
    patterns = Patterns(whole.mask[:, read_on], whole.polarity[:, read_on])
    return read_auc(types, patterns, sets[:, 1::2], left_out, read_on)


def _halves_of(width: int, generator: np.random.Generator) -> tuple[Ids, Ids]:
    mixed = generator.permutation(width)
    return np.sort(mixed[: width // 2]), np.sort(mixed[width // 2 :])


def read_auc(
    types: TypeBits, patterns: Patterns, scored: Ids, left_out: Ids, columns: Ids | None = None
) -> NDArray[np.float64]:
    """Percentiles (features, scored) of each feature's `scored` types among all but those `left_out`."""
    out = np.full(scored.shape, np.nan)
    for i, row in agreements(types, patterns, columns):
        if patterns.n_dims[i]:
            out[i] = percentiles_of(row, scored[i], left_out[i])
    return out


def percentiles_of(row: Counts, scored: Ids, left_out: Ids) -> NDArray[np.float64]:
    """Percentiles of the `scored` places of a row of counts among all places but those `left_out`, ties half; NaN if none is left."""
    times = np.bincount(row)
    times -= np.bincount(row[left_out], minlength=len(times))
    upto = times.cumsum()
    own = row[scored]
    if not upto[-1]:
        return np.full(len(scored), np.nan)
    return (upto[own] - times[own] / 2) / upto[-1]
