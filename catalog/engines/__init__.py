"""Exact Hamming search, by whichever engine is quickest for the work; every one of them gives the same answer.

    faiss       FAISS's flat scan on the CPU, rows in shards, one thread each
    blocks      a look-up kernel on the CPU that turns a block of codes once for all queries
    faiss-gpu   FAISS's flat scan on a GPU
    tensor      int8 matrix products on a GPU

Answers are ordered by (distance, row), whichever engine gave them.
"""

from __future__ import annotations

import operator
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import numpy as np

from ..codes import Codes, n_bytes
from ..errors import InvalidInput
from . import plain
from .blocks import Blocks
from .choice import (
    AUTO,
    COUNTING,
    COUNTING_ON_CPU,
    CPU,
    ENGINES,
    NAMES,
    Choice,
    checked,
    choose,
    explain,
    missing,
    start_of,
)
from .device import FAISS_MOST, DeviceFull, FaissDevice, Tensor
from .flat import Flat
from .shards import Distances, Found, Rows, merge

__all__ = [
    "AUTO",
    "CPU",
    "ENGINES",
    "NAMES",
    "Choice",
    "Distances",
    "Found",
    "Rows",
    "Searcher",
    "able",
    "check_search",
    "choose",
    "differing",
    "explain",
    "merge",
    "missing",
    "open",
    "quickest",
    "search",
    "started",
]


class Searcher(Protocol):
    """The codes of a code set where an engine wants them."""

    def search(self, queries: Codes, k: int, rows: Rows | None = None) -> Found:
        """The `k` codes nearest to each of `queries`, uint8 (q, bytes), among `rows` (ascending) if given."""
        ...


_SEARCHERS: dict[str, Callable[[Codes], Searcher]] = {
    "faiss": Flat,
    "blocks": Blocks,
    "faiss-gpu": FaissDevice,
    "tensor": Tensor,
}


def open(engine: str, codes: Codes, width: int) -> Searcher:
    """The codes, uint8 (n, bytes) of `width` bits, for one engine; those of a GPU copy them there.

    Raises:
        InvalidInput: if there is no such engine, or it cannot run here.
    """
    _check(codes, width)
    return _SEARCHERS[checked(engine, n_bytes(width))](codes)


_counted = 0.0
"""Seconds that this process has counted without the kernel."""


def started() -> set[str]:
    """Engines whose start this process has behind it, or no longer has a reason to put off, whatever the codes."""
    # What loading the kernel takes has been lost already: a job of many small calls loses at most as much again, and a
    # single command nothing.
    kernel = f"{__name__}.kernel" in sys.modules or _counted > start_of("blocks")
    return {"faiss"} | ({"blocks"} if kernel else set())


def able(k: int, rows: Rows | None) -> list[str]:
    """Engines that do such a search themselves: FAISS on a GPU leaves it to the CPU if `k` is large, or there is a filter."""
    return [one for one in NAMES if one != "faiss-gpu" or (rows is None and k < FAISS_MOST)]


def search(
    codes: Codes, queries: Codes, k: int, *, width: int, rows: Rows | None = None, engine: str = AUTO
) -> Found:
    """The `k` of `codes`, uint8 (n, bytes), nearest to each of `queries` (q, bytes), among `rows` (ascending) if given.

    Returns distances (q, k') in bits and rows (q, k'), ordered by (distance, row); k' is the smaller of `k` and the
    number of rows.

    Raises:
        InvalidInput: if the queries have another width, `k` is not positive, or the engine cannot run here.
    """
    queries = np.ascontiguousarray(np.atleast_2d(queries))
    _check(codes, width)
    k = check_search(queries, width, k, rows, len(codes))
    if engine == AUTO:
        return quickest(codes, width, len(queries), k, rows, {}).search(queries, k, rows)
    return open(engine, codes, width).search(queries, k, rows)


def quickest(
    codes: Codes, width: int, n_queries: int, k: int, rows: Rows | None, opened: dict[str, Searcher]
) -> Searcher:
    """The codes for the engine that is expected to answer such a search first: one of `opened`, to which it is added.

    One of the CPU's, if the codes do not fit into the memory of the GPU that would be quicker.
    """
    among, n = able(k, rows), len(codes) if rows is None else len(rows)
    known = started() | set(opened)
    engine = choose(width, n, n_queries, among, known)
    if engine not in opened:
        try:
            opened[engine] = open(engine, codes, width)
        except DeviceFull:
            engine = choose(width, n, n_queries, CPU, known)
            opened[engine] = open(engine, codes, width)
    return opened[engine]


def differing(
    codes: Codes, polarity: Codes, mask: Codes | None = None, *, width: int, engine: str = AUTO
) -> Distances:
    """Bits of each of `mask` (all, if there is none) in which each of `codes`, uint8 (n, bytes), differs from
    `polarity`, both (q, bytes); int32 (q, n).

    Raises:
        InvalidInput: if the patterns have another width, or the engine cannot run here.
    """
    for one in (codes, polarity) if mask is None else (codes, polarity, mask):
        _check(one, width)
    if mask is not None and len(mask) != len(polarity):
        raise InvalidInput(f"{len(mask)} masks are not of {len(polarity)} patterns")
    if engine == AUTO:
        known = started() | {"numpy"}
        engine = choose(width, len(codes), len(polarity), COUNTING, known, "count")
        if engine == "tensor":
            with suppress(DeviceFull):
                return Tensor(codes).differing(polarity, mask)
            engine = choose(width, len(codes), len(polarity), COUNTING_ON_CPU, known, "count")
    engine = checked(engine, n_bytes(width), COUNTING)
    if engine == "numpy":
        global _counted
        begun = time.perf_counter()
        found = plain.differing(codes, polarity, mask)
        _counted += time.perf_counter() - begun
        return found
    counter = Tensor(codes) if engine == "tensor" else Blocks(codes)
    return counter.differing(
        np.ascontiguousarray(polarity), None if mask is None else np.ascontiguousarray(mask)
    )


def check_search(queries: Codes, width: int, k: int, rows: Rows | None, n: int) -> int:
    """`k` as an int, of a search among `n` codes that no engine has to look at twice: most are given addresses.

    Raises:
        InvalidInput: if the queries have another width, `k` is no positive whole number, or `rows` are no int64 from 0
            to below `n`.
    """
    _check(queries, width)
    try:
        k = operator.index(k)
    except TypeError:
        raise InvalidInput(f"-k {k!r} is no whole number") from None
    if k < 1:
        raise InvalidInput(f"-k {k} is not positive")
    if rows is not None:
        if rows.ndim != 1 or rows.dtype != np.int64:
            raise InvalidInput(f"rows are {rows.dtype} {rows.shape}", "give row numbers, int64 (r,)")
        if len(rows) and (rows.min() < 0 or rows.max() >= n):
            raise InvalidInput(f"rows from {rows.min()} to {rows.max()} are not all among {n} codes")
    return k


def _check(codes: Codes, width: int) -> None:
    if width < 1:
        raise InvalidInput(f"codes of {width} bits are none")
    if codes.dtype != np.uint8 or codes.ndim != 2:
        raise InvalidInput(f"codes are {codes.dtype} {codes.shape}", f"give uint8 (n, {n_bytes(width)})")
    if codes.shape[1] != n_bytes(width):
        raise InvalidInput(
            f"codes of {codes.shape[1]} bytes are not of {width} bits, which take {n_bytes(width)} bytes"
        )
