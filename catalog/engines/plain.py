"""Counts on masked dimensions with nothing but numpy: where no kernel can run, or loading one is not worth it.

For many patterns a core counts about as fast as it multiplies float32 matrices, and unpacks no bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..codes import Codes
from .shards import Distances, spread

_BLOCK_BYTES = 1 << 20
"""Codes, or patterns, that are gone through together: they stay in the core's cache."""
_FEWER = 16
"""How many times more patterns there are than codes where numpy is called once a code and goes along the patterns. It
then writes down columns, which is slow, but with few codes a call a pattern is slower."""


def differing(codes: Codes, polarity: Codes, mask: Codes | None) -> Distances:
    """Bits of each of `mask` in which each of `codes`, uint8 (n, bytes), differs from `polarity`, both (q, bytes);
    int32 (q, n). Blocks of rows at a time, so that codes that lie in a file are read once and not kept."""
    counted = np.full_like(polarity, 255) if mask is None else mask
    found = np.empty((len(polarity), len(codes)), np.int32)
    step = max(1, _BLOCK_BYTES // codes.shape[1])

    def of_codes(first: int, last: int) -> None:
        wanted, where = _words(polarity).T, _words(counted).T
        for start in range(first, last, step):
            part = slice(start, min(start + step, last))
            block = _words(codes[part])
            for i, out in enumerate(found[:, part]):
                _count((block ^ wanted[i, :, None]) & where[i, :, None], out)

    def of_patterns(first: int, last: int) -> None:
        words = _words(codes).T
        for start in range(first, last, step):
            part = slice(start, min(start + step, last))
            wanted, where = _words(polarity[part]), _words(counted[part])
            for i, out in enumerate(found[part].T):
                _count((wanted ^ words[i, :, None]) & where, out)

    if len(polarity) > _FEWER * len(codes):
        spread(len(polarity), of_patterns, len(codes))
    else:
        spread(len(codes), of_codes, len(polarity))
    return found


def _words(codes: Codes) -> NDArray[np.uint64]:
    """Codes (n, bytes) as words of eight bytes, which are counted at once: (words, n), since numpy is slow to sum along
    a short axis. Zeros after the last byte."""
    n, size = codes.shape
    padded = np.zeros((n, -(-size // 8) * 8), np.uint8)
    padded[:, :size] = codes
    return np.ascontiguousarray(padded.view(np.uint64).T)


def _count(wrong: NDArray[np.uint64], out: Distances) -> None:
    """Bits of each column of `wrong` (words, n), into `out` (n,)."""
    np.bitwise_count(wrong).sum(axis=0, dtype=np.int32, out=out)
