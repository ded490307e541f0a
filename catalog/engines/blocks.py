"""The block kernel as an engine: for batches, and for counts on masked dimensions; see `kernel`."""

from __future__ import annotations

import platform
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codes import Codes
from .shards import ROW_BITS, Distances, Found, Rows, merge, n_threads, nothing, spread, stack

_MOST_BITS = 65_000
"""A distance is counted in sixteen bits, of which the largest value stands for "none yet"."""
_QUERIES = 1024
"""Queries that are counted together: their counts stay in the core's cache."""
_FEW, _FEW_WIDE, _WIDE = 3, 6, 128
"""Up to so many queries, turning the codes takes longer than it saves; more of them where codes have many bytes."""
_HEAPS = 4 << 20
"""Neighbours that all threads keep together, of eight bytes each."""


@cache
def missing() -> str | None:
    """Why the kernel cannot run here; None if it can."""
    if find_spec("numba") is None or find_spec("llvmlite") is None:
        return "numba is not installed"
    try:
        from llvmlite import binding
        from numba.core import config
    except Exception as error:
        # It refuses a numpy that is newer than itself, each version with an exception of its own.
        return f"numba does not load ({(str(error).splitlines() or [type(error).__name__])[0]})"
    if config.DISABLE_JIT:
        return "numba is told not to compile (NUMBA_DISABLE_JIT)"
    machine = platform.machine().lower()
    if machine in ("aarch64", "arm64"):
        return None
    if machine not in ("x86_64", "amd64"):
        return f"it has no instruction for a {machine}"
    # Where numba is told to compile for another processor, an instruction may be missing that this one has.
    told = config.CPU_FEATURES
    if told is None and config.CPU_NAME:
        return f"numba compiles for {config.CPU_NAME} (NUMBA_CPU_NAME)"
    has = "+avx2" in told.split(",") if told is not None else binding.get_host_cpu_features().get("avx2")
    return None if has else "the processor has no AVX2"


@cache
def _tables() -> NDArray[np.uint8]:
    """(81 * 16,), at an address that is a multiple of 64: how far each nibble is from each pattern of four bits.

    The digits of a pattern to base 3, lowest bit first: 0 for either, 1 for a bit that should be 0, 2 for one.
    """
    from .kernel import N_PATTERNS

    pattern, value, bit = np.ogrid[:N_PATTERNS, :16, :4]
    wanted, there = pattern // 3**bit % 3, value >> bit & 1
    apart = ((wanted == 1) & (there == 1)) | ((wanted == 2) & (there == 0))
    room = np.empty(N_PATTERNS * 16 + 64, np.uint8)
    start = -room.ctypes.data % 64
    tables = room[start : start + N_PATTERNS * 16]
    tables[:] = apart.sum(-1).ravel()
    return tables


def _patterns(queries: Codes, masks: Codes | None) -> NDArray[np.uint16]:
    """Where in the tables each nibble of each query is looked up: (q or one more, 2 * bytes), an even number of rows."""
    masks = np.full_like(queries, 255) if masks is None else masks
    value, mask, bit = np.ogrid[:16, :16, :4]
    offsets = (np.where(mask >> bit & 1, 1 + (value >> bit & 1), 0) * 3**bit).sum(-1).astype(np.uint16) * 16
    n, size = queries.shape
    found = np.zeros((n + n % 2, 2 * size), np.uint16)
    found[:n, 0::2] = offsets[queries >> 4, masks >> 4]
    found[:n, 1::2] = offsets[queries & 15, masks & 15]
    return found


def _words(queries: Codes) -> NDArray[np.uint64]:
    """The bytes of each query as words of eight, the last one filled up with zeros: (q, words)."""
    return np.pad(queries, ((0, 0), (0, -queries.shape[1] % 8))).view(np.uint64)


def fits(size: int) -> str | None:
    """Why codes of `size` bytes are not for the kernel; None if they are."""
    return None if 8 * size <= _MOST_BITS else f"it counts up to {_MOST_BITS:,} bits"


class Blocks:
    """Codes, uint8 (n, bytes), turned block by block where they lie."""

    def __init__(self, codes: Codes) -> None:
        # The kernel is given an address: rows must follow each other without gaps.
        self._codes = np.ascontiguousarray(codes)

    def search(self, queries: Codes, k: int, rows: Rows | None = None) -> Found:
        """The `k` codes nearest to each of `queries` (q, bytes), among `rows` (ascending) if given."""
        from . import kernel

        n = len(self._codes) if rows is None else len(rows)
        if not n or not len(queries):
            return nothing(len(queries), min(k, n))
        answers = []
        step = max(1, min(_QUERIES, _HEAPS // (min(k, n) * n_threads())))
        for start in range(0, len(queries), step):
            some = queries[start : start + step]
            few = len(some) <= (_FEW if some.shape[1] < _WIDE else _FEW_WIDE)
            wanted = _words(some) if few else _patterns(some, None)

            def part(
                first: int, last: int, n: int = len(some), few: bool = few, wanted: Any = wanted
            ) -> Found:
                heaps = kernel.empty_heaps(n, min(k, last - first))
                if few:
                    kernel.nearest_to_few(*self._arguments(rows, first, last), wanted, heaps)
                else:
                    kernel.nearest(*self._arguments(rows, first, last), _tables(), wanted, heaps)
                heaps.sort(axis=1)
                return (heaps >> ROW_BITS).astype(np.int32), heaps & ((1 << ROW_BITS) - 1)

            answers.append(merge(spread(n, part, len(some)), k))
        distances, places = stack(answers)
        return distances, places if rows is None else rows[places]

    def differing(self, polarity: Codes, mask: Codes | None) -> Distances:
        """Bits of each of `mask` in which each code differs from `polarity`, both (q, bytes); int32 (q, n)."""
        from . import kernel

        n = len(self._codes)
        found = np.empty((len(polarity), n), np.int32)
        for start in range(0, len(polarity) if n else 0, _QUERIES):
            some = slice(start, start + _QUERIES)
            patterns = _patterns(polarity[some], None if mask is None else mask[some])

            def part(first: int, last: int, into: Distances = found[some], patterns: Any = patterns) -> None:
                kernel.distances(*self._arguments(None, first, last), _tables(), patterns, into)

            spread(n, part, len(patterns))
        return found

    def _arguments(self, rows: Rows | None, start: int, stop: int) -> tuple[Any, ...]:
        codes = self._codes
        chosen = np.empty(0, np.int64) if rows is None else np.ascontiguousarray(rows, np.int64)
        return codes.ctypes.data, codes.shape[1], chosen, start, stop
