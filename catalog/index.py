"""Exact Hamming search: one FAISS binary flat file a code set, beside the catalogue that it is made from.

`NAME.duckdb.indexes/ID.faiss` holds the codes in ascending order of their items, `ID.json` says which items
those are. Both can always be rebuilt: a file that is missing, cut short or of another state of the catalogue is
made anew, never trusted. Answers are ordered by (distance, item), whatever computed them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import bulk, store
from .codes import Codes, n_bytes
from .errors import DiskFull, InvalidInput, NotFound, SignariumError

if TYPE_CHECKING:
    import duckdb

Items = NDArray[np.int64]
Distances = NDArray[np.int32]

_SHARD_ROWS = 65_536
"""Fewer rows than this are not worth another thread."""
_GATHER_SHARE = 0.05
"""Up to this share of the rows a filter's rows are copied together; above it FAISS skips the others."""


@dataclass(frozen=True)
class CodeSetInfo:
    """What searching needs to know of a code set. `state` changes whenever its rows may have."""

    code_set_id: int
    width: int
    n: int
    state: str


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


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads(), "search", initializer=lambda: faiss().omp_set_num_threads(1))


def n_threads() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class CodeIndex:
    """The codes of one code set, searchable.

    Args:
        codes: uint8 (n, bytes), in ascending order of item; a memory map of the FAISS file, or an array.
        items: what the rows stand for, as runs of consecutive items: (row, item, count), ascending.
        flat: the FAISS index over the same codes, for filtered search.
    """

    def __init__(self, width: int, codes: Codes, items: NDArray[np.int64], flat: Any) -> None:
        self.width, self.codes, self._runs, self._flat = width, codes, items.reshape(-1, 3), flat
        self.n = len(codes)

    def items_of(self, rows: NDArray[np.int64]) -> Items:
        """Items of `rows`."""
        run = np.searchsorted(self._runs[:, 0], rows, side="right") - 1
        return self._runs[run, 1] + rows - self._runs[run, 0]

    def rows_of(self, items: Items) -> NDArray[np.int64]:
        """Rows of those `items` that are in the code set, ascending."""
        items = np.unique(items)
        if not len(items) or not len(self._runs):
            return np.empty(0, np.int64)
        run = np.searchsorted(self._runs[:, 1], items, side="right") - 1
        offset = items - self._runs[run, 1]
        return (self._runs[run, 0] + offset)[(run >= 0) & (offset < self._runs[run, 2])]

    def search(self, queries: Codes, k: int, rows: NDArray[np.int64] | None = None) -> tuple[Distances, Items]:
        """The `k` codes nearest to each of `queries` (q, bytes), among `rows` (ascending) if given.

        Returns distances (q, k') in bits and items (q, k'), ordered by (distance, item); k' is the smaller of
        `k` and the number of rows.

        Raises:
            InvalidInput: if the queries have another width or `k` is not positive.
        """
        queries = np.ascontiguousarray(np.atleast_2d(queries))
        if queries.shape[1] != n_bytes(self.width):
            raise InvalidInput(f"a code of {queries.shape[1]} bytes cannot be searched among codes of {self.width} bits")
        if k < 1:
            raise InvalidInput(f"-k {k} is not positive")
        if rows is None:
            found = self._spread(queries, k, self.n, lambda a, b: _scan(queries, self.codes[a:b], k, a))
        elif len(rows) <= _GATHER_SHARE * self.n:
            chosen = np.ascontiguousarray(self.codes[rows])
            distances, places = self._spread(queries, k, len(rows), lambda a, b: _scan(queries, chosen[a:b], k, a))
            found = distances, rows[places]
        else:
            found = self._spread(queries, k, self.n, lambda a, b: self._select(queries, k, rows, a, b))
        return found[0], self.items_of(found[1])

    def _spread(self, queries: Codes, k: int, n: int, part: Any) -> tuple[Distances, NDArray[np.int64]]:
        """Search `n` rows in shards side by side and merge; distances and rows, each (q, k')."""
        if n == 0:
            return np.empty((len(queries), 0), np.int32), np.empty((len(queries), 0), np.int64)
        shards = max(1, min(n_threads(), n // _SHARD_ROWS))
        # Whole bytes of the filter's bitmap.
        edges = [8 * (n // 8 * i // shards) for i in range(shards)] + [n]
        if shards == 1:
            return merge([part(0, n)], k)
        return merge(list(_pool().map(part, edges[:-1], edges[1:])), k)

    def _select(
        self, queries: Codes, k: int, rows: NDArray[np.int64], start: int, stop: int
    ) -> tuple[Distances, NDArray[np.int64]]:
        lib = faiss()
        inside = rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)]
        bits = np.zeros(-(-self.n // 8), np.uint8)
        marks = np.zeros(8 * -(-(stop - start) // 8), np.uint8)
        marks[inside - start] = 1
        packed = np.packbits(marks, bitorder="little")
        bits[start // 8 : start // 8 + len(packed)] = packed
        parameters = lib.SearchParameters(sel=lib.IDSelectorBitmap(bits))
        k = min(k, len(inside))
        if k == 0:
            return np.empty((len(queries), 0), np.int32), np.empty((len(queries), 0), np.int64)
        return self._flat.search(queries, k, params=parameters)  # type: ignore[no-any-return]


def merge(
    parts: Sequence[tuple[Distances, NDArray[np.int64]]], k: int
) -> tuple[Distances, NDArray[np.int64]]:
    """The `k` best of several answers to the same queries, by (distance, id)."""
    distances = np.concatenate([one[0] for one in parts], axis=1)
    ids = np.concatenate([one[1] for one in parts], axis=1)
    order = np.lexsort((ids, distances), axis=1)[:, :k]
    return np.take_along_axis(distances, order, 1), np.take_along_axis(ids, order, 1)


def _scan(queries: Codes, codes: Codes, k: int, first: int) -> tuple[Distances, NDArray[np.int64]]:
    """FAISS's own kernel over a slice of rows; it keeps the lowest row among ties."""
    lib = faiss()
    k = min(k, len(codes))
    distances = np.empty((len(queries), k), np.int32)
    rows = np.empty((len(queries), k), np.int64)
    heap = lib.int_maxheap_array_t()
    heap.k, heap.nh, heap.val, heap.ids = k, len(queries), lib.swig_ptr(distances), lib.swig_ptr(rows)
    lib.hammings_knn_hc(heap, lib.swig_ptr(queries), lib.swig_ptr(codes), len(codes), codes.shape[1], 1)
    return distances, rows + first


# ---- files --------------------------------------------------------------------------------------


def folder(path: Path) -> Path:
    """Where the indexes of the catalogue at `path` lie."""
    return store.sidecar(path, ".indexes")


def describe(connection: duckdb.DuckDBPyConnection, where: str, values: Sequence[Any]) -> list[CodeSetInfo]:
    """The code sets that a condition over the view `code_sets` selects, in order of code_set_id."""
    rows = connection.execute(
        "SELECT v.code_set_id, v.width, v.n, r.run_id || ' ' || r.started_at::VARCHAR "
        f"FROM code_sets v JOIN run r ON r.run_id = v.run_id WHERE {where} ORDER BY v.code_set_id",
        list(values),
    ).fetchall()
    return [CodeSetInfo(*row) for row in rows]


def open_index(path: Path, info: CodeSetInfo) -> CodeIndex | None:
    """The index of a code set from its files, memory-mapped; None if they are missing, stale or damaged."""
    base = folder(path) / str(info.code_set_id)
    size = n_bytes(info.width)
    try:
        manifest = json.loads(base.with_suffix(".json").read_text())
        expected = {"code_set_id": info.code_set_id, "width": info.width, "n": info.n, "state": info.state}
        if {key: manifest.get(key) for key in expected} != expected:
            return None
        file = base.with_suffix(".faiss")
        offset = file.stat().st_size - info.n * size
        if manifest["offset"] != offset:
            return None
        runs = np.array(manifest["items"], dtype=np.int64).reshape(-1, 3)
        if int(runs[:, 2].sum()) != info.n:
            return None
        flat = faiss().read_index_binary(str(file), faiss().IO_FLAG_MMAP_IFC)
    except (OSError, ValueError, KeyError, RuntimeError):
        return None
    if (flat.ntotal, flat.code_size) != (info.n, size):
        return None
    codes: Codes = (
        np.memmap(file, dtype=np.uint8, mode="r", offset=offset, shape=(info.n, size))
        if info.n
        else np.empty((0, size), np.uint8)
    )
    return CodeIndex(info.width, codes, runs, flat)


def build(path: Path, info: CodeSetInfo, connection: duckdb.DuckDBPyConnection) -> CodeIndex:
    """Build the index of a code set from its rows and write its files (temporary names, then renamed).

    Where the folder cannot be written to, the index is used all the same and kept in memory only.

    Raises:
        NotFound: if the code set has no rows in the catalogue any more.
    """
    lib = faiss()
    size = n_bytes(info.width)
    items, codes = bulk.read_codes(connection, info.code_set_id, size)
    if len(items) != info.n:
        raise NotFound("complete code set", str(info.code_set_id), todo="run `signarium db verify`")
    starts = np.flatnonzero(np.diff(items, prepend=items[:1] - 2) != 1)
    counts = np.diff(np.append(starts, len(items)))
    runs = np.stack([starts, items[starts], counts], axis=1).astype(np.int64)
    flat = lib.IndexBinaryFlat(8 * size)
    flat.add(codes)
    base = folder(path) / str(info.code_set_id)
    try:
        base.parent.mkdir(exist_ok=True)
        with renamed(base.with_suffix(".faiss")) as temporary:
            lib.write_index_binary(flat, str(temporary))
            offset = temporary.stat().st_size - codes.nbytes
        with renamed(base.with_suffix(".json")) as temporary:
            manifest = {"code_set_id": info.code_set_id, "width": info.width, "n": info.n, "state": info.state}
            temporary.write_text(json.dumps({**manifest, "offset": offset, "items": runs.tolist()}))
    except PermissionError:
        return CodeIndex(info.width, codes, runs, flat)
    except (OSError, RuntimeError) as error:
        raise DiskFull(folder(path), during=True) from error
    return open_index(path, info) or CodeIndex(info.width, codes, runs, flat)


def get(path: Path, info: CodeSetInfo, connection: duckdb.DuckDBPyConnection) -> CodeIndex:
    """The index of a code set, built first if its files cannot be trusted."""
    return open_index(path, info) or build(path, info, connection)


def build_all(path: Path, model_id: str | None = None) -> list[str]:
    """Build the indexes that are missing or stale, of one model or of all, and record them.

    The caller holds `store.job_lock`. Returns what could not be done, in words.
    """
    from . import schema

    try:
        faiss()
    except SignariumError as error:
        return [f"no indexes were built ({error})"]
    built = []
    with store.reading(path) as connection:
        condition, values = ("r.model_id = ?", [model_id]) if model_id else ("true", [])
        recorded = set(connection.execute("SELECT code_set_id, n FROM index_part").fetchall())
        for info in describe(connection, condition, values):
            get(path, info, connection)
            if (info.code_set_id, info.n) not in recorded:
                built.append(info)
        if model_id is None:
            everything = connection.execute("SELECT code_set_id FROM code_set").fetchall()
            prune(path, [row[0] for row in everything])
    if built:
        now = datetime.now(UTC).replace(tzinfo=None)
        with store.writing(path) as session:
            session.add_all(schema.IndexPart(code_set_id=one.code_set_id, n=one.n, built_at=now) for one in built)
    return []


def prune(path: Path, keep: Sequence[int]) -> int:
    """Delete the files of code sets that are not in `keep`; how many files went."""
    known = {str(one) for one in keep}
    gone = [one for one in folder(path).glob("*") if one.name.split(".")[0] not in known]
    for one in gone:
        one.unlink()
    return len(gone)


class renamed:
    """A temporary file that takes its final name when the block ends, and goes away when it raises."""

    def __init__(self, final: Path) -> None:
        self.final = final
        self.temporary = final.with_name(f"{final.name}.{os.getpid()}.tmp")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            os.replace(self.temporary, self.final)
        else:
            self.temporary.unlink(missing_ok=True)
