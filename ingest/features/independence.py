"""How independent the bits of sign codes are, pair by pair and together (Bag of Dims, section 6).

The paper finds little mutual information between pairs of dimensions and calls them independent. Small
pairwise information goes together with few effective dimensions, so the participation ratio of the
correlations stands beside it here, and both are to be read beside a rotated basis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...catalog import engines
from ...catalog.codes import Codes, unpack
from ...catalog.errors import InvalidInput

ABOVE = 0.01
"""Bits of mutual information above which the paper counts a pair."""

_ROWS = 1 << 12
"""Codes whose bits are turned together: they stay in the core's cache."""
_BLOCK_VALUES = 1 << 22


@dataclass
class Pairs:
    """Counts over `n` codes of width D: bits set, (D,), and pairs of bits set together, (D, D)."""

    n: int
    positive: NDArray[np.int64]
    both: NDArray[np.int64]

    @classmethod
    def empty(cls, width: int) -> Pairs:
        """No codes of `width` bits."""
        return cls(0, np.zeros(width, np.int64), np.zeros((width, width), np.int64))

    @classmethod
    def of(cls, codes: Codes, width: int, rows: int = 1 << 14) -> Pairs:
        """Counts over `codes`, (n, ceil(width / 8)), unpacked `rows` at a time."""
        pairs = cls.empty(width)
        for start in range(0, len(codes), rows):
            pairs.add(unpack(codes[start : start + rows], width))
        return pairs

    def add(self, bits: NDArray[np.uint8]) -> None:
        """Counts the rows of `bits`, (n, D) of 0 and 1, exactly.

        Raises:
            InvalidInput: if `bits` have another shape or another value.
        """
        width = len(self.positive)
        if bits.ndim != 2 or bits.shape[1] != width or bits.dtype != np.uint8:
            raise InvalidInput(f"bits of shape {list(bits.shape)} and {bits.dtype} are no uint8 [n, {width}]")
        if bits.size and bits.max() > 1:
            raise InvalidInput("bits must be 0 or 1", "unpack the codes first")
        for start in range(0, len(bits), _ROWS):
            # Dimensions as codes of the rows: of the bits of one, those of another that are not 0 are those of both.
            dims = np.packbits(np.ascontiguousarray(bits[start : start + _ROWS].T), axis=1)
            self.both += engines.differing(dims, np.zeros_like(dims), dims, width=8 * dims.shape[1])
        self.positive += bits.sum(axis=0, dtype=np.int64)
        self.n += len(bits)


@dataclass(frozen=True)
class Independence:
    """What is measured over all pairs of dimensions, constant ones among them.

    Attributes:
        mean_mi, max_mi: mutual information of a pair, in bits.
        share_above: share of the pairs with more than `ABOVE` bits.
        bias: what independent, unskewed bits show on average by chance alone, 1 / (2 n ln 2) bits: the
            upward bias of the plug-in estimator (Miller 1955), to be read beside `mean_mi`.
        participation_ratio: D'**2 / sum of C[i, j]**2 with C the Pearson correlations of the signs of the D'
            dimensions that are not constant: the effective number of dimensions, from 1 to D'. NaN if D' is
            0. Chance alone keeps it near D' / (1 + D' / n) for independent dimensions.
        constant: dimensions with one sign throughout.
        n_pairs, n: pairs and codes.
    """

    mean_mi: float
    share_above: float
    max_mi: float
    bias: float
    participation_ratio: float
    constant: int
    n_pairs: int
    n: int


def measure(pairs: Pairs) -> Independence:
    """The figures over all pairs, a block of rows at a time.

    Raises:
        InvalidInput: if there are no codes, or if there is no pair of dimensions.
    """
    _check(pairs)
    n, width = pairs.n, len(pairs.positive)
    n_pairs = width * (width - 1) // 2
    if n_pairs == 0:
        raise InvalidInput(f"codes of width {width} have no pair of dimensions")
    total, largest, above = 0.0, 0.0, 0
    for values in _information(pairs):
        if len(values):
            total += float(values.sum())
            largest = max(largest, float(values.max()))
            above += int((values > ABOVE).sum())
    varies = (pairs.positive > 0) & (pairs.positive < n)
    return Independence(
        mean_mi=total / n_pairs,
        share_above=above / n_pairs,
        max_mi=largest,
        bias=1 / (2 * n * math.log(2)),
        participation_ratio=_participation_ratio(pairs, np.flatnonzero(varies)),
        constant=int(width - varies.sum()),
        n_pairs=n_pairs,
        n=n,
    )


def _check(pairs: Pairs) -> None:
    if pairs.n == 0:
        raise InvalidInput("there are no codes to count")


def _blocks(width: int) -> Iterator[slice]:
    rows = max(1, _BLOCK_VALUES // max(1, width))
    for start in range(0, width, rows):
        yield slice(start, min(width, start + rows))


def _times_log(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """k log2 k of whole numbers, 0 for 0."""
    return counts * np.log2(np.maximum(counts, 1))


def _information(pairs: Pairs) -> Iterator[NDArray[np.float64]]:
    """Mutual information of the pairs i < j, the rows i of one block at a time.

    With L(k) = k log2 k, n I = sum of L(cell) - sum of L(row) - sum of L(column) + L(n).
    """
    n, ones = float(pairs.n), pairs.positive.astype(np.float64)
    margins = _times_log(ones) + _times_log(n - ones)
    whole = float(_times_log(np.array(n)))
    for block in _blocks(len(ones)):
        # Columns before the block are other rows' pairs.
        i, j = ones[block, None], ones[None, block.start :]
        both = pairs.both[block, block.start :].astype(np.float64)
        cells = _times_log(both)
        cells += _times_log(i - both)
        cells += _times_log(j - both)
        cells += _times_log((n - i - j) + both)
        cells -= margins[block, None]
        cells -= margins[None, block.start :]
        cells += whole
        upper = np.triu(np.ones(cells.shape, bool), 1)
        # Rounding leaves independent pairs a little below 0.
        yield np.maximum(cells[upper] / n, 0.0)


def _participation_ratio(pairs: Pairs, dims: NDArray[np.intp]) -> float:
    """(sum of eigenvalues)**2 / sum of their squares, of the correlations of `dims`, by their entries alone."""
    if not len(dims):
        return math.nan
    p = pairs.positive[dims] / pairs.n
    scale = 1 / np.sqrt(p * (1 - p))
    squares = 0.0
    for block in _blocks(len(dims)):
        rows = pairs.both[np.ix_(dims[block], dims)] / pairs.n
        rows -= p[block, None] * p
        rows *= scale[block, None]
        rows *= scale
        squares += float(np.square(rows).sum())
    return len(dims) ** 2 / squares
