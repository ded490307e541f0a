"""Features found without labels: what the nearest neighbours of a random token have in common.

Bag of Dims, section 7, on centred codes. The paper's yield is close to automatic, since neighbours that were chosen
for their agreement agree; so each feature is also found on one random half of the dimensions and read on the other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...catalog import engines
from ..stats.bits import Bools, Counts, Patterns, TypeBits, agreements

NEIGHBOURS = 20
SAME = 0.9
"""Two features are one when the Jaccard index of their registered (dimension, sign) pairs is above this."""

Ids = NDArray[np.int64]


def neighbours(types: TypeBits, seeds: Ids, columns: Ids | None = None) -> Ids:
    """(seeds, 20): the types nearest to each seed by Hamming distance, the seed itself left out, ties by token id.

    Over all dimensions, or over `columns`.
    """
    codes = types.codes
    if columns is not None:
        # Bits that are 0 in all codes add nothing to a distance.
        codes = codes & np.packbits(_among(columns, types.width))
    k = min(NEIGHBOURS + 1, types.n)
    found = engines.search(codes, codes[seeds], k, width=types.width)[1]
    # Enough codes equal to the seed's, with lower ids, can push the seed itself out.
    own = found == seeds[:, None]
    own[~own.any(1), -1] = True
    return found[~own].reshape(len(seeds), k - 1)


def _among(columns: Ids, width: int) -> Bools:
    """(width,): whether a dimension is one of `columns`."""
    found = np.zeros(width, np.bool_)
    found[columns] = True
    return found


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
    masks, signs = patterns.packed()
    # Registered pairs as bits of their own: of those of one feature, the ones that another has differ from 0.
    pairs = np.concatenate([signs, masks & ~signs], 1)
    shared = engines.differing(pairs, np.zeros_like(pairs), pairs, width=8 * pairs.shape[1])
    sizes = patterns.n_dims
    jaccard = shared / np.maximum(sizes[:, None] + sizes[None, :] - shared, 1)
    stands_for = np.full(n, -1, np.int64)
    kept = np.zeros(n, np.bool_)
    for i in np.flatnonzero(sizes):
        same = np.flatnonzero((jaccard[i] > SAME) & kept)
        kept[i] = not len(same)
        stands_for[i] = i if kept[i] else same[0]
    return np.flatnonzero(kept), stands_for


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
    read_on = _among(_halves_of(types.width, generator)[1], types.width)
    whole = common(types, sets[:, ::2])
    return read_auc(types, Patterns(whole.mask & read_on, whole.polarity), sets[:, 1::2], left_out)


def _halves_of(width: int, generator: np.random.Generator) -> tuple[Ids, Ids]:
    mixed = generator.permutation(width)
    return np.sort(mixed[: width // 2]), np.sort(mixed[width // 2 :])


def read_auc(types: TypeBits, patterns: Patterns, scored: Ids, left_out: Ids) -> NDArray[np.float64]:
    """Percentiles (features, scored) of each feature's `scored` types among all but those `left_out`."""
    out = np.full(scored.shape, np.nan)
    for i, row in agreements(types, patterns):
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
