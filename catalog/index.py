"""Exact Hamming search: one FAISS binary flat file a code set, beside the catalogue that it is made from.

`NAME.duckdb.indexes/ID.faiss` holds the codes in ascending order of their items, `ID.json` says which items
those are. Both can always be rebuilt: a file that is missing, cut short or of another state of the catalogue
is made anew, never trusted. Answers are ordered by (distance, item), whatever computed them.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from . import bulk, digests, engines, store
from .codes import Codes, n_bytes
from .engines import Distances, Rows
from .engines.flat import faiss
from .errors import InvalidInput, NotFound, SignariumError
from .files import make_folder, opened, replacing, sweep
from .shared import ROW_GROUP

if TYPE_CHECKING:
    import duckdb

Items = NDArray[np.int64]

_CACHE = "256MB"
_SAMPLE_ROWS = 256
"""Rows whose bytes an index file must hold to be trusted: enough to tell another code set's from its own."""
_BLOCK = 1 << 18
"""Bytes of an index file with a checksum of their own."""
_CHECKED = 16
"""So many blocks are checked when a file is opened, another choice each time: all of 58,000 codes of 576 bits, in 2 ms."""
_NAME = re.compile(r"(\d+)\.(faiss|json|ivf|ivf\.json)")
"""What we call the files of a code set, and its id in that."""


@dataclass(frozen=True)
class CodeSetInfo:
    """What searching needs to know of a code set. `state` changes whenever its rows may have."""

    code_set_id: int
    width: int
    n: int
    state: str


class CodeIndex:
    """The codes of one code set, searchable.

    Args:
        codes: uint8 (n, bytes), in ascending order of item; a memory map of the FAISS file, or an array.
        items: what the rows stand for, as runs of consecutive items: (row, item, count), ascending.
        unsaved: why its files could not be written, if they could not.
    """

    def __init__(
        self, width: int, codes: Codes, items: NDArray[np.int64], unsaved: str | None = None
    ) -> None:
        self.width, self.codes, self._runs = width, codes, items.reshape(-1, 3)
        self.n = len(codes)
        self.unsaved = unsaved
        self._opened: dict[str, engines.Searcher] = {}

    def items_of(self, rows: NDArray[np.int64]) -> Items:
        """Items of `rows`."""
        run = np.searchsorted(self._runs[:, 0], rows, side="right") - 1
        return self._runs[run, 1] + rows - self._runs[run, 0]

    def rows_of(self, items: Items) -> NDArray[np.int64]:
        """Rows of those `items` that are in the code set, ascending."""
        # Not np.unique: it hashes, which takes fifty times as long for a million items.
        items = np.sort(items)
        items = items[np.diff(items, prepend=items[:1] - 1) != 0]
        if not len(items) or not len(self._runs):
            return np.empty(0, np.int64)
        run = np.searchsorted(self._runs[:, 1], items, side="right") - 1
        offset = items - self._runs[run, 1]
        return (self._runs[run, 0] + offset)[(run >= 0) & (offset < self._runs[run, 2])]

    def search(
        self, queries: Codes, k: int, rows: Rows | None = None, engine: str = engines.AUTO
    ) -> tuple[Distances, Items]:
        """The `k` codes nearest to each of `queries` (q, bytes), among `rows` (ascending) if given.

        Returns distances (q, k') in bits and items (q, k'), ordered by (distance, item); k' is the smaller of
        `k` and the number of rows. `engine` is one of `engines.ENGINES`; all give the same answer.

        Raises:
            InvalidInput: if the queries have another width, `k` is not positive, or the engine cannot run here.
        """
        queries = np.ascontiguousarray(np.atleast_2d(queries))
        k = engines.check_search(queries, self.width, k, rows, self.n)
        if engine == engines.AUTO:
            searcher = engines.quickest(self.codes, self.width, len(queries), k, rows, self._opened)
        else:
            if engine not in self._opened:
                self._opened[engine] = engines.open(engine, self.codes, self.width)
            searcher = self._opened[engine]
        distances, found = searcher.search(queries, k, rows)
        return distances, self.items_of(found)


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


def read_manifest(path: Path, info: CodeSetInfo) -> dict[str, Any] | None:
    """What the manifest of a code set's index says; None if there is none for this state of the code set."""
    try:
        with opened(folder(path) / f"{info.code_set_id}.json") as file:
            manifest = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(manifest, dict) or any(
        manifest.get(key) != value for key, value in _identity(info).items()
    ):
        return None
    # Files from before there were checksums are made anew.
    return manifest if "blocks" in manifest else None


def open_index(path: Path, info: CodeSetInfo) -> CodeIndex | None:
    """The index of a code set from its files, memory-mapped; None if they are missing, stale or damaged."""
    manifest = read_manifest(path, info)
    if manifest is None:
        return None
    file = folder(path) / f"{info.code_set_id}.faiss"
    size = n_bytes(info.width)
    header = _header(size, info.n)
    try:
        with opened(file) as handle:
            if (
                handle.read(len(header)) != header
                or os.fstat(handle.fileno()).st_size != len(header) + info.n * size
            ):
                return None
            runs = np.array(manifest["items"], dtype=np.int64).reshape(-1, 3)
            if manifest["sample"] != _sample(runs, handle, len(header), info.n, size):
                return None
            blocks = manifest["blocks"]
            if len(blocks) != _n_blocks(handle):
                return None
            chosen = random.sample(range(len(blocks)), min(_CHECKED, len(blocks)))
            if [blocks[i] for i in chosen] != _checksums(handle, chosen):
                return None
            codes: Codes = (
                np.memmap(handle, dtype=np.uint8, mode="r", offset=len(header), shape=(info.n, size))
                if info.n
                else np.empty((0, size), np.uint8)
            )
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return None
    return CodeIndex(info.width, codes, runs)


def _identity(info: CodeSetInfo) -> dict[str, Any]:
    return {"code_set_id": info.code_set_id, "width": info.width, "n": info.n, "state": info.state}


@cache
def _header(size: int, n: int) -> bytes:
    """What FAISS writes before `n` codes of `size` bytes: that of an empty index with its two counts set."""
    empty = faiss().serialize_index_binary(faiss().IndexBinaryFlat(8 * size)).tobytes()
    count = n.to_bytes(8, "little")
    # fourcc, width and size (4 bytes each), count; trained (1), metric (4); bytes of codes.
    return empty[:12] + count + empty[20:-8] + (n * size).to_bytes(8, "little")


def _sample(runs: NDArray[np.int64], file: BinaryIO, offset: int, n: int, size: int) -> str:
    """SHA-256 of the runs of items and of some rows of a file, spread evenly.

    Read, not mapped: the kernel may map megabytes around each row that is touched.
    """
    found = hashlib.sha256(runs.tobytes())
    for row in np.linspace(0, n - 1, min(_SAMPLE_ROWS, n)).astype(np.int64).tolist():
        found.update(os.pread(file.fileno(), size, offset + row * size))
    return found.hexdigest()


def _n_blocks(file: BinaryIO) -> int:
    return -(-os.fstat(file.fileno()).st_size // _BLOCK)


def _checksums(file: BinaryIO, chosen: Iterable[int]) -> list[int]:
    """Of some blocks of a file."""
    room, found = np.empty(_BLOCK, np.uint8), []
    for i in chosen:
        n = os.preadv(file.fileno(), [room.data], i * _BLOCK)
        found.append(digests.checksum(room[:n]))
    return found


def build(path: Path, info: CodeSetInfo, connection: duckdb.DuckDBPyConnection) -> CodeIndex:
    """Build the index of a code set from its rows and write its files (temporary names, then renamed).

    The codes pass through memory a row group at a time. Where the files cannot be written, the index is used
    all the same, from memory, and says why (`unsaved`).

    Raises:
        NotFound: if the catalogue does not hold the rows that its shards promise.
    """
    size = n_bytes(info.width)
    runs = _runs(connection, info)
    header = _header(size, info.n)
    home = folder(path)
    try:
        make_folder(home)
        with replacing(home / f"{info.code_set_id}.faiss", sync=False) as temporary:
            with temporary.open("wb") as file:
                file.write(header)
                for _, first, last in _chunks(runs):
                    file.write(bulk.read_range(connection, info.code_set_id, size, first, last)[1].tobytes())
            if temporary.stat().st_size != len(header) + info.n * size:
                raise OSError("it was cut short")
            with opened(temporary) as file:
                sample = _sample(runs, file, len(header), info.n, size)
                blocks = _checksums(file, range(_n_blocks(file)))
        with replacing(home / f"{info.code_set_id}.json", sync=False) as temporary:
            manifest = {**_identity(info), "sample": sample, "blocks": blocks, "items": runs.tolist()}
            temporary.write_text(json.dumps(manifest))
        unsaved = "it changed while it was written"
        if (made := open_index(path, info)) is not None:
            return made
    except InvalidInput as error:
        unsaved = str(error)
    except OSError as error:
        unsaved = str(getattr(error, "strerror", None) or (str(error).splitlines() or ["?"])[-1])
    _, codes = bulk.read_codes(connection, info.code_set_id, size)
    return CodeIndex(info.width, codes, runs, unsaved)


def _runs(connection: duckdb.DuckDBPyConnection, info: CodeSetInfo) -> NDArray[np.int64]:
    """Runs of consecutive items of a code set as (row, item, count), ascending by item."""
    firsts, counts = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for items in bulk.stream_items(connection, info.code_set_id):
        starts = np.flatnonzero(np.diff(items, prepend=items[:1] - 2) != 1)
        firsts.append(items[starts])
        counts.append(np.diff(np.append(starts, len(items))))
    first, count = np.concatenate(firsts), np.concatenate(counts)
    order = np.argsort(first, kind="stable")
    first, count = first[order], count[order]
    if int(count.sum()) != info.n or (first[1:] < first[:-1] + count[:-1]).any():
        raise NotFound("complete code set", str(info.code_set_id), todo="run `signarium db verify`")
    # Parts of one text that were read apart lie side by side again.
    joined = np.flatnonzero(np.concatenate([[True], first[1:] != first[:-1] + count[:-1]])[: len(first)])
    total = np.add.reduceat(count, joined) if len(joined) else count
    row = np.concatenate([[0], np.cumsum(total)[:-1]])[: len(total)]
    return np.stack([row, first[joined], total], axis=1).astype(np.int64)


def _chunks(runs: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
    """A code set in parts of about a row group: (first row, first item, last item), ascending."""
    pending: list[list[int]] = []
    for row, item, count in runs.tolist():
        for start in range(0, count, ROW_GROUP):
            pending.append([row + start, item + start, min(ROW_GROUP, count - start)])
            if sum(one[2] for one in pending) >= ROW_GROUP:
                yield pending[0][0], pending[0][1], pending[-1][1] + pending[-1][2] - 1
                pending = []
    if pending:
        yield pending[0][0], pending[0][1], pending[-1][1] + pending[-1][2] - 1


def agrees(one: CodeIndex, info: CodeSetInfo, connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether an index holds exactly the catalogue's codes, byte for byte."""
    try:
        runs = _runs(connection, info)
    except NotFound:
        return False
    for row, first, last in _chunks(runs):
        items, codes = bulk.read_range(connection, info.code_set_id, n_bytes(info.width), first, last)
        rows = np.arange(row, row + len(items))
        if len(codes) > one.n - row or not np.array_equal(one.items_of(rows), items):
            return False
        if not np.array_equal(one.codes[row : row + len(items)], codes):
            return False
    return True


def get(path: Path, info: CodeSetInfo, connection: duckdb.DuckDBPyConnection) -> CodeIndex:
    """The index of a code set, built first if its files cannot be trusted."""
    return open_index(path, info) or build(path, info, connection)


def build_all(path: Path, model_id: str | None = None) -> list[str]:
    """Build the indexes that are missing, stale or damaged and record them.

    Of one model's code sets those whose files do not open; without `model_id` every one whose files are not
    byte for byte what the catalogue holds. The caller holds `store.job_lock`. Returns what could not be done.
    """
    from . import schema

    try:
        faiss()
    except SignariumError as error:
        return [f"no indexes were built ({error})"]
    built, failed = [], []
    sweep(folder(path))
    # Blocks that were read once stay in DuckDB's cache, which would otherwise grow to most of the memory.
    with store.reading(path, memory=_CACHE) as connection:
        condition, values = ("r.model_id = ?", [model_id]) if model_id else ("true", [])
        recorded = set(connection.execute("SELECT code_set_id, n FROM index_part").fetchall())
        for info in describe(connection, condition, values):
            one = get(path, info, connection)
            if model_id is None and one.unsaved is None and not agrees(one, info, connection):
                one = build(path, info, connection)
            if one.unsaved is not None:
                failed.append(f"the index of code set {info.code_set_id} was not written ({one.unsaved})")
            elif (info.code_set_id, info.n) not in recorded:
                built.append(info)
        if model_id is None:
            everything = connection.execute("SELECT code_set_id FROM code_set").fetchall()
            prune(path, [row[0] for row in everything])
    if built:
        now = datetime.now(UTC).replace(tzinfo=None)
        with store.writing(path) as session:
            session.add_all(
                schema.IndexPart(code_set_id=one.code_set_id, n=one.n, built_at=now) for one in built
            )
    return failed


def prune(path: Path, keep: Sequence[int]) -> int:
    """Delete our files of code sets that are not in `keep`; how many files went. What else lies there stays."""
    home, known = folder(path), {str(one) for one in keep}
    gone = []
    for one in home.glob("*") if not home.is_symlink() else ():
        named = _NAME.fullmatch(one.name)
        if named and named[1] not in known and one.is_file() and not one.is_symlink():
            gone.append(one)
    for one in gone:
        one.unlink(missing_ok=True)
    return len(gone)
