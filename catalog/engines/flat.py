"""FAISS's flat scan, shard by shard: it runs everywhere, and needs no time to begin."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np

from ..codes import Codes
from ..errors import SignariumError
from .shards import Found, Rows, merge, nothing, spread, stack

_GATHER_SHARE = 0.5
"""Up to this share of the rows a filter's rows are copied together; above it FAISS skips the others."""
_GATHER_BYTES = 1 << 20
"""What is copied at once: it stays in the core's cache."""
_PARTS = 8
"""Answers that wait to be merged."""
_ANSWERS = 1 << 18
"""Neighbours that each thread keeps at a time, of twelve bytes each."""


@cache
def faiss() -> Any:
    """The module `faiss`, with one OpenMP thread: we search shards side by side instead.

    FAISS's flat index spreads its threads over queries, so one query gains nothing from them.

    Raises:
        SignariumError: if neither faiss-cpu nor faiss-gpu is installed.
    """
    try:
        import faiss as module
    except ImportError as error:
        raise SignariumError(
            "FAISS is not installed", 'run `pip install "signarium[cpu]"`, or [gpu] on a machine with CUDA'
        ) from error
    module.omp_set_num_threads(1)
    return module


class Flat:
    """Codes, uint8 (n, bytes), scanned where they lie."""

    def __init__(self, codes: Codes) -> None:
        # FAISS is given an address: rows must follow each other without gaps.
        self._codes = np.ascontiguousarray(codes)

    def search(self, queries: Codes, k: int, rows: Rows | None = None) -> Found:
        """The `k` codes nearest to each of `queries` (q, bytes), among `rows` (ascending) if given."""
        n = len(self._codes)
        k = min(k, n if rows is None else len(rows))
        if rows is None:
            return _merged(queries, n, k, lambda some, a, b: _scan(some, self._codes[a:b], k, a))
        if len(rows) <= _GATHER_SHARE * n:
            return _merged(queries, len(rows), k, lambda some, a, b: self._gather(some, k, rows[a:b]))
        return _merged(queries, n, k, lambda some, a, b: self._select(some, k, rows, a, b))

    def _gather(self, queries: Codes, k: int, rows: Rows) -> Found:
        size = self._codes.shape[1]
        step = max(1, _GATHER_BYTES // size)
        buffer = np.empty((min(step, len(rows)), size), np.uint8)
        parts = []
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            # `clip` writes to `out` without a copy in between; the rows are within bounds.
            chosen = np.take(self._codes, some, axis=0, out=buffer[: len(some)], mode="clip")
            distances, places = _scan(queries, chosen, k, 0)
            parts.append((distances, some[places]))
            if len(parts) == _PARTS:
                parts = [merge(parts, k)]
        return merge(parts, k)

    def _select(self, queries: Codes, k: int, rows: Rows, start: int, stop: int) -> Found:
        inside = rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)]
        marks = np.zeros(stop - start, np.bool_)
        marks[inside - start] = True
        bits = np.packbits(marks, bitorder="little")
        return _scan(
            queries, self._codes[start:stop], min(k, len(inside)), start, faiss().IDSelectorBitmap(bits)
        )


def _merged(queries: Codes, n: int, k: int, part: Callable[[Codes, int, int], Found]) -> Found:
    """`part` over shards of `n` rows, for so many of the queries at a time that their answers are few."""
    if not n or not len(queries):
        return nothing(len(queries), k)
    step = max(1, _ANSWERS // max(1, k))
    slices = [queries[start : start + step] for start in range(0, len(queries), step)]
    return stack([merge(spread(n, partial(part, some), len(some)), k) for some in slices])


def _scan(queries: Codes, codes: Codes, k: int, first: int, selector: Any = None) -> Found:
    """FAISS's own kernel over a slice of rows; it keeps the lowest row among ties."""
    lib = faiss()
    # Every thread has a number of its own.
    lib.omp_set_num_threads(1)
    k = min(k, len(codes))
    distances = np.empty((len(queries), k), np.int32)
    rows = np.empty((len(queries), k), np.int64)
    if k == 0:
        return distances, rows
    heap = lib.int_maxheap_array_t()
    heap.k, heap.nh, heap.val, heap.ids = k, len(queries), lib.swig_ptr(distances), lib.swig_ptr(rows)
    lib.hammings_knn_hc(
        heap,
        lib.swig_ptr(queries),
        lib.swig_ptr(codes),
        len(codes),
        codes.shape[1],
        1,
        lib.EXACT_TOPK,
        selector,
    )
    return distances, rows + first
