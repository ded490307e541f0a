"""Rows of a code set in shards side by side, and their answers merged: what every CPU engine shares."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Distances = NDArray[np.int32]
Rows = NDArray[np.int64]
Found = tuple[Distances, Rows]
"""Distances in bits and rows, both (q, k'), in order of (distance, row)."""

ROW_BITS = 40
"""Of a key of eight bytes that is ordered as (distance, row) is; the upper bits are the distance."""

_SHARD_ROWS = 65_536
"""Fewer rows than this, for one query, are not worth another thread."""
_LEAST_ROWS = 512
"""Nor are these, for any number of queries."""


def n_threads() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads(), "search")


# A forked child has the pool and none of its threads: it would wait for them for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def spread(n: int, part: Callable[[int, int], T], n_queries: int = 1) -> list[T]:
    """`part(start, stop)` of shards that together are `n` rows, side by side; in order of their rows."""
    rows = min(_SHARD_ROWS, max(_LEAST_ROWS, _SHARD_ROWS // max(1, n_queries)))
    shards = max(1, min(n_threads(), n // rows))
    edges = [n * i // shards for i in range(shards + 1)]
    if shards == 1:
        return [part(0, n)]
    return list(_pool().map(part, edges[:-1], edges[1:]))


def merge(parts: Sequence[Found], k: int) -> Found:
    """The `k` best of several answers to the same queries, by (distance, row); of items, too, by (distance, item)."""
    distances = np.concatenate([one[0] for one in parts], axis=1)
    rows = np.concatenate([one[1] for one in parts], axis=1)
    order = np.lexsort((rows, distances), axis=1)[:, :k]
    return np.take_along_axis(distances, order, 1), np.take_along_axis(rows, order, 1)


def stack(answers: Sequence[Found]) -> Found:
    """Answers to several slices of the queries as one."""
    return np.concatenate([one[0] for one in answers]), np.concatenate([one[1] for one in answers])


def nothing(n_queries: int, k: int = 0) -> Found:
    """The answer where there are no rows, or no queries."""
    return np.empty((n_queries, k), np.int32), np.empty((n_queries, k), np.int64)
