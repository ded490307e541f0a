"""Codes against features: how many registered dimensions have another sign than the feature expects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..catalog.codes import Codes, n_bytes, unpack
from ..catalog.errors import InvalidInput
from ..catalog.index import CodeIndex, Distances, Items
from .polarity import nearer

_BLOCK_BYTES = 4 << 20
_BLOCK_FEATURES = 1024


@dataclass(frozen=True)
class Pattern:
    """A feature's registered dimensions and their signs, each uint8 (bytes,); or of several, (f, bytes)."""

    mask: Codes
    polarity: Codes

    @property
    def n_dims(self) -> Any:
        """Registered dimensions: an int32, or of several (f,)."""
        return np.bitwise_count(self.mask).sum(-1, dtype=np.int32)


def differing(codes: Codes, pattern: Pattern) -> Distances:
    """Registered dimensions on which each of `codes`, (n, bytes), differs from one pattern; int32 (n,).

    Blocks of rows at a time, so that codes that lie in a file are read once and not kept.
    """
    size = len(pattern.mask)
    if codes.ndim != 2 or codes.shape[1] != size:
        raise InvalidInput(f"codes of shape {codes.shape} cannot be compared with a feature of {size} bytes")
    # Eight bytes are counted at once.
    words = -(-size // 8)
    mask, polarity = np.zeros((2, 8 * words), np.uint8)
    mask[:size], polarity[:size] = pattern.mask, pattern.polarity
    rows = max(1, _BLOCK_BYTES // (8 * words))
    padded = np.zeros((min(rows, len(codes)), 8 * words), np.uint8)
    found = np.empty(len(codes), np.int32)
    for start in range(0, len(codes), rows):
        block = padded[: min(rows, len(codes) - start)]
        block[:, :size] = codes[start : start + len(block)]
        wrong = (block.view(np.uint64) ^ polarity.view(np.uint64)) & mask.view(np.uint64)
        np.bitwise_count(wrong).sum(axis=1, dtype=np.int32, out=found[start : start + len(block)])
    return found


def search(
    index: CodeIndex, pattern: Pattern, k: int, rows: NDArray[np.int64] | None = None, both: bool = False
) -> tuple[Distances, Items]:
    """The `k` codes of an index that differ least from a pattern, among `rows` (ascending) if given; with `both`, in
    either polarity.

    Returns distances (1, k') and items (1, k') in order of (distance, item), as `CodeIndex.search` does.
    """
    distances = differing(index.codes if rows is None else index.codes[rows], pattern)
    if both:
        distances, _ = nearer(distances, pattern.n_dims)
    n = len(distances)
    # Rows ascend by item, so the place breaks ties.
    keys = distances.astype(np.int64) * max(1, n) + np.arange(n)
    best = np.argpartition(keys, k - 1)[:k] if k < n else np.arange(n)
    best = best[np.argsort(keys[best])]
    return distances[best][None], index.items_of(best if rows is None else rows[best])[None]


def differing_each(codes: Codes, patterns: Pattern, width: int) -> NDArray[np.int32]:
    """Registered dimensions on which each of `codes`, (n, bytes), differs from each of `patterns`; int32 (n, f).

    A matrix product: with bits b and, on registered dimensions, expected signs s in -1, 1, b differs where
    s (1 - 2b) = 1, so the count is that of the expected ones less b . s. Exact in float32 below 2**24 dimensions.
    """
    if codes.shape[-1] != n_bytes(width):
        raise InvalidInput(f"codes of {codes.shape[-1]} bytes are not of width {width}")
    bits = unpack(codes, width).astype(np.float32)
    found = np.empty((len(codes), len(patterns.mask)), np.int32)
    for start in range(0, len(patterns.mask), _BLOCK_FEATURES):
        part = slice(start, start + _BLOCK_FEATURES)
        mask = unpack(patterns.mask[part], width)
        positive = unpack(patterns.polarity[part] & patterns.mask[part], width)
        signs = 2.0 * positive.astype(np.float32) - mask
        found[:, part] = positive.sum(1, dtype=np.int32) - np.rint(bits @ signs.T).astype(np.int32)
    return found
