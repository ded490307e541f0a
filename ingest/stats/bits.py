"""Sign bits of a whole vocabulary at one site, read in blocks: what every figure of a feature is counted on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...catalog import engines
from ...catalog.codes import Codes, unpack
from ...catalog.errors import InvalidInput

Bools = NDArray[np.bool_]
Counts = NDArray[np.signedinteger[Any]]
BLOCK_BYTES = 32 << 20
"""What a block of unpacked bits may take, as float32."""
_HELD_BYTES = 64 << 20
"""What the counts of some features over the whole vocabulary may take."""
FIRES = 0.80
"""A code fires a feature when it agrees on this share of the registered dimensions (Bag of Dims, section 7)."""


def ones(bits: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How many of the rows of 0/1 `bits` (..., rows, width) have a 1 in each column: (..., width).

    Bytes are added as bytes, a register of them at an instruction, as many rows at a time as cannot pass 255.
    """
    total = np.zeros((*bits.shape[:-2], bits.shape[-1]), np.int64)
    for first in range(0, bits.shape[-2], 255):
        total += bits[..., first : first + 255, :].sum(-2, dtype=np.uint8)
    return total


def as_words(codes: Codes) -> NDArray[np.uint64]:
    """Codes (n, bytes), filled up with zero bits, as words of eight bytes: (n, words)."""
    return np.pad(codes, ((0, 0), (0, -codes.shape[1] % 8))).view(np.uint64)


@dataclass(frozen=True)
class TypeBits:
    """Codes of every type at one site, centre and basis: uint8 (n, bytes), row t being token t."""

    codes: Codes
    width: int

    @property
    def n(self) -> int:
        """Types."""
        return len(self.codes)

    def bits(self, ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        """0/1 of shape (*ids.shape, width)."""
        return unpack(self.codes[ids], self.width)

    def ones(self, sets: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
        """(sets, width): how many types of each set have a bit of 1."""
        return np.stack([ones(self.bits(ids)) for ids in sets])

    def blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, 0/1 bits as float32 (rows, width)) over the whole vocabulary."""
        step = max(256, BLOCK_BYTES // (4 * self.width))
        for start in range(0, self.n, step):
            yield start, torch.from_numpy(unpack(self.codes[start : start + step], self.width)).float()

    @cached_property
    def positive(self) -> NDArray[np.int64]:
        """(width,): types whose bit is 1."""
        total = np.zeros(self.width, np.int64)
        for start in range(0, self.n, 8192):
            total += ones(unpack(self.codes[start : start + 8192], self.width))
        return total


@dataclass(frozen=True)
class Patterns:
    """Registered dimensions and expected signs of several features, each bool (features, width)."""

    mask: Bools
    polarity: Bools

    def __post_init__(self) -> None:
        if self.mask.shape != self.polarity.shape or self.mask.ndim != 2:
            raise InvalidInput(f"masks {self.mask.shape} and polarities {self.polarity.shape} do not match")

    def __len__(self) -> int:
        return len(self.mask)

    def __getitem__(self, some: slice) -> Patterns:
        return Patterns(self.mask[some], self.polarity[some])

    @cached_property
    def n_dims(self) -> NDArray[np.int64]:
        """(features,): registered dimensions."""
        return self.mask.sum(1)

    @cached_property
    def signs(self) -> torch.Tensor:
        """float32 (features, width): 1 for a dimension expected positive, -1 for one expected negative, else 0."""
        signed = np.where(self.polarity, np.float32(1), np.float32(-1))
        signed *= self.mask
        return torch.from_numpy(signed)

    def counts(self, codes: Codes) -> NDArray[np.int32]:
        """Registered dimensions of each feature on which each of `codes`, (n, bytes), agrees: (features, n)."""
        masks, signs = self.packed()
        # What differs from the opposite sign agrees.
        return engines.differing(codes, ~signs, masks, width=self.mask.shape[1])

    def packed(self) -> tuple[Codes, Codes]:
        """Masks and polarities (zero outside the mask) as codes."""
        return np.packbits(self.mask, axis=1), np.packbits(self.mask & self.polarity, axis=1)


def among(tokens: NDArray[np.int64], words: NDArray[np.int64]) -> Bools:
    """Which of `tokens` (n,) are among `words`: looked up in a table of all token ids, which is quicker than to sort."""
    table = np.zeros(int(max(tokens.max(initial=0), words.max(initial=0))) + 1, np.bool_)
    table[words] = True
    return table[tokens]


def percentiles(positive: NDArray[np.generic], negative: NDArray[np.generic]) -> NDArray[np.float64]:
    """For each of `positive` (n,), the share of `negative` (m,) below it, ties counted half.

    Its mean is the area under the ROC curve. NaN if there is none to stand among.
    """
    if not len(negative):
        return np.full(len(positive), np.nan)
    if np.issubdtype(positive.dtype, np.integer):
        # Counts, none below 0: how often each occurs says it all.
        times = np.bincount(negative, minlength=int(positive.max(initial=0)) + 1)
        return (2 * times.cumsum() - times)[positive] / (2 * len(negative))
    order = np.argsort(positive, kind="stable")
    ascending = positive[order]
    n = len(positive)
    below = np.bincount(np.searchsorted(ascending, negative, "right"), minlength=n + 1)[:n].cumsum()
    upto = np.bincount(np.searchsorted(ascending, negative, "left"), minlength=n + 1)[:n].cumsum()
    shares = np.empty(n)
    shares[order] = (below + upto) / (2 * len(negative))
    return shares


def count_type(width: int) -> type[np.signedinteger[Any]]:
    """What holds a count of up to `width` dimensions; half the memory where that is enough."""
    return np.int16 if width <= np.iinfo(np.int16).max else np.int32


def agreements(types: TypeBits, patterns: Patterns) -> Iterator[tuple[int, Counts]]:
    """(feature, agreeing dimensions with every type (n,)) for each feature, in order.

    For some hundred features at a time: what is held is bounded, and a feature's row lies together.
    """
    step = max(32, _HELD_BYTES // (4 * max(1, types.n)))
    kind = count_type(types.width)
    for first in range(0, len(patterns), step):
        for i, row in enumerate(patterns[first : first + step].counts(types.codes), first):
            yield i, row.astype(kind)


@dataclass(frozen=True)
class Tops:
    """How features agree with all types: counts of dimensions, not shares.

    `ids` and `counts` are the best, (features, k); `fired` (features,) types at 0.80 or more; `mean` and `std` of the
    share over the types.
    """

    ids: NDArray[np.int64]
    counts: NDArray[np.int64]
    fired: NDArray[np.int64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]


def fires_at(n_dims: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of agreeing dimensions from which a feature fires."""
    return np.ceil(FIRES * n_dims - 1e-9).astype(np.int64)


def tops(rows: Iterable[tuple[int, Counts]], patterns: Patterns, k: int) -> Tops:
    """See `Tops`; `rows` as `agreements` gives them."""
    n_features, width = patterns.mask.shape
    ids, counts = [], []
    fired = np.zeros(n_features, np.int64)
    mean, std = np.zeros(n_features), np.zeros(n_features)
    least = fires_at(patterns.n_dims)
    values = np.arange(width + 1)
    for i, row in rows:
        times = np.bincount(row, minlength=width + 1)
        n = len(row)
        fired[i] = times[least[i] :].sum()
        mean[i] = times @ values / n
        std[i] = np.sqrt(max(times @ values**2 / n - mean[i] ** 2, 0.0))
        chosen, their = top_of(row, times, k)
        ids.append(chosen)
        counts.append(their)
    n_dims = np.maximum(patterns.n_dims, 1)
    return Tops(np.array(ids), np.array(counts), fired, mean / n_dims, std / n_dims)


def top_of(row: Counts, times: NDArray[np.int64], k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The `k` places with the largest counts in `row`, ties to the lowest place, and those counts; `times` is its
    histogram."""
    from_above = times[::-1].cumsum()
    limit = len(times) - 1 - int(np.searchsorted(from_above, min(k, len(row))))
    places = np.flatnonzero(row >= limit)
    order = np.argsort(-row[places].astype(np.int64), kind="stable")[:k]
    return places[order], row[places[order]].astype(np.int64)
