"""Agreement of sign patterns with the signs that neurons write, in whole counts of dimensions.

A neuron's write direction is its column of the FFN's last linear map; its sign bit at a dimension is 1 iff the weight
is above zero (Bag of Dims, section 9; zero counts as negative, section 11). Signs are packed to codes, on which the
engines of `catalog/engines` count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...catalog import engines
from ...catalog.codes import Codes
from ..stats.bits import Counts, Patterns, count_type

Signs = NDArray[np.int8]
"""1 or -1, (neurons, width)."""
Weights = NDArray[np.float32]
BLOCK_BYTES = 64 << 20
"""What any one block of signs, of votes or of counts may take, as float32."""
Pair = tuple[NDArray[np.int64], NDArray[np.int64]]
WRITERS = 50
"""Writers kept of each feature."""
FILTERS = {"top_half": 2, "top_quarter": 4}
"""Magnitude filters: at how many of a neuron's dimensions, as width / this, its weights are large enough to count."""
LEAST = 20
"""Dimensions that a filter has to leave of a feature for the neuron to count; all of them, of a smaller feature."""


def signs(weights: Tensor) -> Signs:
    """1 where a weight is above zero, else -1: int8 of the same shape. -0.0 and NaN are not above zero."""
    return _signs((weights.detach() > 0).cpu().numpy())


def floats(weights: Tensor) -> Weights:
    """The weights themselves, in main memory; no dtype of a model has values that float32 lacks but float64."""
    return weights.detach().to("cpu", torch.float32).numpy()


def shuffled(block: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
    """`block` (neurons, width), each neuron's entries permuted among the dimensions by a permutation of its own."""
    return generator.permuted(block, axis=1)


def coins(n_neurons: int, width: int, generator: np.random.Generator) -> Signs:
    """Fair-coin signs, (n_neurons, width): what Gaussian weights of that shape have."""
    bits = np.frombuffer(generator.bytes(-(-n_neurons * width // 8)), np.uint8)
    return _signs(np.unpackbits(bits, count=n_neurons * width).reshape(n_neurons, width))


def _signs(bits: NDArray[np.bool_] | NDArray[np.uint8]) -> Signs:
    """0/1 or False/True as -1/1, in place."""
    made = bits.view(np.int8)
    made *= 2
    made -= 1
    return made


def loud(weights: Weights, part: int) -> NDArray[np.bool_]:
    """Where a neuron's |weight| is at least its own ceil(width / part)-th largest: bool (neurons, width).

    For part 2 these are the dimensions at or above the median of the neuron's |weights|, for part 4 at or above the
    upper quartile; equal magnitudes at the limit all count.
    """
    width = weights.shape[1]
    magnitude = np.abs(weights)
    place = width - -(-width // part)
    return magnitude >= np.partition(magnitude, place, axis=1)[:, place, None]


@dataclass(frozen=True)
class Writers:
    """The best neurons of features, each (features, k): number, whether in polarity 1, and the count of dimensions
    on which the neuron, in that polarity, agrees."""

    neuron: NDArray[np.int64]
    positive: NDArray[np.bool_]
    count: NDArray[np.int64]


def top_writers(counts: Counts, n_dims: NDArray[np.int64], k: int = WRITERS) -> Writers:
    """The `k` neurons (all, if fewer) whose agreement or disagreement with a feature is highest.

    `counts` (features, neurons) as `Agreements.counts` gives them. Ties go to the lower neuron number; an exact half
    is polarity 1.
    """
    parts = []
    for first in steps(len(counts), 8 * counts.shape[1]):
        own = counts[first]
        n = n_dims[first, None].astype(counts.dtype)
        best = np.maximum(own, n - own)
        neuron = np.argsort(-best, axis=1, kind="stable")[:, :k]
        chosen = np.take_along_axis(own, neuron, 1)
        parts.append((neuron, 2 * chosen.astype(np.int64) >= n, np.take_along_axis(best, neuron, 1)))
    neuron, positive, count = (np.concatenate(one) for one in zip(*parts, strict=True))
    return Writers(neuron, positive, count.astype(np.int64))


@dataclass(frozen=True)
class Extremes:
    """The best neuron of every block: agreeing dimensions, int64 (blocks, features), at `layers` (blocks,).

    `high` is the most, `low` the fewest, so that the best in either polarity is max(high, n_dims - low).
    """

    layers: NDArray[np.int64]
    high: NDArray[np.int64]
    low: NDArray[np.int64]

    @classmethod
    def of(cls, layers: Sequence[int], found: Sequence[Pair]) -> Extremes:
        """From what `Agreements.extremes` gave for each of `layers`."""
        high, low = (np.array([one[i] for one in found]) for i in (0, 1))
        return cls(np.array(layers), high, low)

    def best(self, n_dims: NDArray[np.int64], either: bool) -> NDArray[np.int64]:
        """Dimensions, (blocks, features), that the best neuron has right, in polarity 1 or in `either`."""
        return np.maximum(self.high, n_dims - self.low) if either else self.high


class Agreements:
    """Features, ready to be held against one block of neurons after another."""

    def __init__(self, patterns: Patterns) -> None:
        self.patterns = patterns
        self._mask, self._polarity = patterns.packed()

    def __len__(self) -> int:
        return len(self.patterns)

    def counts(self, block: Signs) -> Counts:
        """Registered dimensions at which each neuron has the expected sign: (features, neurons)."""
        out = np.empty((len(self), len(block)), count_type(block.shape[1]))
        for some, found in self._counts(block > 0):
            out[some] = found
        return out

    def extremes(self, block: Signs) -> Pair:
        """The highest and the lowest of a feature's `counts` over the neurons, (features,) each."""
        return self._extremes(block > 0)

    def excess(self, weights: Weights, part: int | None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The best of (agreeing - disagreeing) / counted dimensions over the neurons, in polarity 1 and in the other;
        (features,) each, never below 0.

        Agreement a is an excess of 2a - 1. `part` is a filter: only dimensions where the neuron is `loud` count, and
        a neuron only where at least `LEAST` of the feature's dimensions are left (all, of a feature with fewer): a
        share of a handful is easily 1. None counts all dimensions, so that every neuron counts. Whole numbers below
        2**24 are divided once, so a quotient equals a threshold written in float32 exactly when the numbers do.
        """
        n_dims = self.patterns.n_dims
        positive = weights > 0
        zeros = np.zeros(len(self), np.float32)
        if part is None:
            high, low = self._extremes(positive)
            n = np.maximum(n_dims, 1).astype(np.float32)
            most, least = ((2 * one - n_dims).astype(np.float32) / n for one in (high, low))
            return np.maximum(most, zeros), np.maximum(-least, zeros)
        enough = np.clip(n_dims, 1, LEAST)[:, None]
        most, least = zeros.copy(), zeros.copy()
        kept = loud(weights, part)
        # Where a neuron is not loud, a bit that is 0 on the left is 1 on the right: one of the two differs from what is
        # expected, whatever that is. Where it is loud, both do or neither.
        sides = np.packbits(positive & kept, axis=1), np.packbits(positive | ~kept, axis=1)
        twice, counted = np.concatenate(sides, 1), np.packbits(kept, axis=1)
        for some in steps(len(self), 16 * len(weights)):
            mask, polarity = self._mask[some], self._polarity[some]
            apart = _differing(twice, np.tile(polarity, 2), np.tile(mask, 2))
            product = np.subtract(n_dims[some, None], apart, dtype=np.float32, casting="unsafe")
            found = _differing(counted, np.zeros_like(mask), mask)
            left = found.astype(np.float32)
            # Over infinitely many it is 0, and no best.
            left[found < enough[some]] = np.inf
            product /= left
            most[some] = np.maximum(most[some], product.max(1))
            least[some] = np.minimum(least[some], product.min(1))
        return most, -least

    def _counts(self, positive: NDArray[np.bool_]) -> Iterator[tuple[slice, NDArray[np.int32]]]:
        """(features, their counts over the neurons), some features at a time."""
        codes = np.packbits(positive, axis=1)
        for some in steps(len(self), 4 * len(codes)):
            # What differs from the opposite sign agrees.
            yield some, _differing(codes, ~self._polarity[some], self._mask[some])

    def _extremes(self, positive: NDArray[np.bool_]) -> Pair:
        high, low = np.empty((2, len(self)), np.int64)
        for some, found in self._counts(positive):
            high[some], low[some] = found.max(1), found.min(1)
        return high, low


def _differing(codes: Codes, polarity: Codes, mask: Codes) -> NDArray[np.int32]:
    return engines.differing(codes, polarity, mask, width=8 * codes.shape[1])


def above(excess: NDArray[np.float32], tenths: int) -> NDArray[np.bool_]:
    """Where an agreement, given as `Agreements.excess`, is above `tenths` / 10."""
    return excess > np.float32(2 * tenths - 10) / np.float32(10)


def steps(n: int, row_bytes: int) -> Iterator[slice]:
    """`n` rows in pieces of at most `BLOCK_BYTES`, but at least 64 rows."""
    step = max(64, BLOCK_BYTES // row_bytes)
    return (slice(first, min(first + step, n)) for first in range(0, n, step))
