"""Codes against features: how many registered dimensions have another sign than the feature expects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...catalog import engines
from ...catalog.codes import Codes
from ...catalog.engines import Distances
from ...catalog.index import CodeIndex, Items
from .polarity import nearer

_BLOCK_BYTES = 32 << 20
"""Codes that are compared at a time."""


@dataclass(frozen=True)
class Pattern:
    """A feature's registered dimensions and their signs, each uint8 (bytes,); or of several, (f, bytes)."""

    mask: Codes
    polarity: Codes

    @property
    def n_dims(self) -> Any:
        """Registered dimensions: an int32, or of several (f,)."""
        return np.bitwise_count(self.mask).sum(-1, dtype=np.int32)


def differing(codes: Codes, pattern: Pattern, engine: str = engines.AUTO) -> Distances:
    """Registered dimensions on which each of `codes`, (n, bytes), differs from one pattern; int32 (n,).

    Raises:
        InvalidInput: if the codes have another width, or the engine cannot run here.
    """
    width = 8 * len(pattern.mask)
    return engines.differing(codes, pattern.polarity[None], pattern.mask[None], width=width, engine=engine)[0]


def search(
    index: CodeIndex,
    pattern: Pattern,
    k: int,
    rows: NDArray[np.int64] | None = None,
    both: bool = False,
    engine: str = engines.AUTO,
) -> tuple[Distances, Items]:
    """The `k` codes of an index that differ least from a pattern, among `rows` (ascending) if given; with `both`, in
    either polarity.

    Returns distances (1, k') and items (1, k') in order of (distance, item), as `CodeIndex.search` does.
    """
    n = index.n if rows is None else len(rows)
    block = max(1, _BLOCK_BYTES // len(pattern.mask))
    nearest, best = np.empty(0, np.int32), np.empty(0, np.int64)
    # What a filter chose is copied together, so the codes are gone through in blocks.
    for start in range(0, n, block):
        part = slice(start, min(start + block, n))
        distances = differing(index.codes[part if rows is None else rows[part]], pattern, engine)
        if both:
            distances, _ = nearer(distances, pattern.n_dims)
        nearest = np.concatenate([nearest, distances])
        best = np.concatenate([best, np.arange(part.start, part.stop)])
        # Rows ascend by item, so the place breaks ties.
        keys = nearest.astype(np.int64) * n + best
        kept = np.argpartition(keys, k - 1)[:k] if k < len(keys) else np.arange(len(keys))
        kept = kept[np.argsort(keys[kept])]
        nearest, best = nearest[kept], best[kept]
    return nearest[None], index.items_of(best if rows is None else rows[best])[None]


def differing_each(codes: Codes, patterns: Pattern, width: int, engine: str = engines.AUTO) -> Distances:
    """Registered dimensions on which each of `codes`, (n, bytes), differs from each of `patterns`; int32 (n, f).

    Raises:
        InvalidInput: if the codes are not of `width` bits, or the engine cannot run here.
    """
    apart = engines.differing(codes, patterns.polarity, patterns.mask, width=width, engine=engine)
    return np.ascontiguousarray(apart.T)
