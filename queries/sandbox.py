"""What runs in the child process of `sql`: one query, on one catalogue, under limits set before it is read.

Speaks in frames on the pipe it was given as standard output: one byte of kind, four bytes of length
(little-endian), the payload. OPENED once the file is open (with its schema revision, if asked for), DATA for the
answer's bytes, an Arrow IPC stream, DONE or FAILED (the latter JSON) at the end. Nothing here is part of the public
interface; `sql.py` is.
"""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from ..catalog.shadow import Altered, shadow

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

OPENED, DATA, DONE, FAILED = b"O", b"D", b"Z", b"E"
HEADER = struct.Struct("<cI")
CHUNK = 1 << 20

# A batch is one message, which the parent holds as a whole; a row that is larger goes alone.
_BATCH_BYTES = 4 << 20
# What a thread costs in address space beyond the memory it uses: its stack and what its allocator reserves.
_PER_THREAD = 24 << 20
_SLACK = 96 << 20
_SPILL = "20GB"
_MESSAGE = 20_000
_DEPTH = 20_000  # DuckDB takes expressions 1,000 deep, each several levels of its parse tree

# Callable from a SELECT, and yet: change the state of the engine or write (logging, profiling, checkpoints),
# take raw memory addresses (scans made for host languages), or hide a query in a string from this very check.
REFUSED_FUNCTIONS = frozenset(
    {
        "add_parquet_key",
        "arrow_scan",
        "arrow_scan_dumb",
        "checkpoint",
        "disable_logging",
        "disable_profiling",
        "enable_logging",
        "enable_profiling",
        "force_checkpoint",
        "json_execute_serialized_sql",
        "pandas_scan",
        "python_map_function",
        "query",
        "seq_scan",
        "truncate_duckdb_logs",
        "write_log",
    }
)


class Stop(Exception):
    """Ends the query with an answer for the parent: a kind that `sql.py` knows, and its data."""

    def __init__(self, kind: str, **data: Any) -> None:
        super().__init__(kind)
        # A message may quote a value of any length, and a frame holds so much.
        short = {name: one[:_MESSAGE] if isinstance(one, str) else one for name, one in data.items()}
        self.frame = {"kind": kind, **short}


class Pipe:
    """The way back to the parent; a file-like with what Arrow's writers need."""

    closed = False

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pending = bytearray()

    def send(self, kind: bytes, payload: bytes | memoryview = b"") -> None:
        self._all(HEADER.pack(kind, len(payload)))
        self._all(payload)

    def _all(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), CHUNK):
            self._pending += view[start : start + CHUNK]
            if len(self._pending) >= CHUNK:
                self.flush()
        return len(view)

    def flush(self) -> None:
        for start in range(0, len(self._pending), CHUNK):
            self.send(DATA, bytes(self._pending[start : start + CHUNK]))
        self._pending.clear()

    def close(self) -> None:
        self.flush()

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False


def main(parent: int) -> NoReturn:
    """Reads one request (a line of JSON) from standard input, answers it, and ends the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and kills
    _die_with(parent)
    sys.setrecursionlimit(_DEPTH)
    pipe = Pipe(os.dup(1))
    os.dup2(2, 1)  # whatever prints must not get between the frames
    try:
        _load_libraries()  # while the parent loads its own
        request = json.loads(_read_line())
        _answer(request, pipe)
        pipe.send(DONE)
    except Stop as stop:
        pipe.send(FAILED, json.dumps(stop.frame).encode())
    except MemoryError:
        pipe.send(FAILED, b'{"kind": "memory"}')
    except BrokenPipeError:
        os._exit(1)
    except RecursionError:
        pipe.send(FAILED, b'{"kind": "failed", "message": "the query or a value in it is nested too deeply"}')
    except Exception as error:
        told = Stop("failed", message=f"{type(error).__name__}: {error}")
        pipe.send(FAILED, json.dumps(told.frame).encode())
    os._exit(0)  # no destructors: the answer is out, and a big result takes time to free


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        if ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0) == 0:
            if os.getppid() != parent:  # it died before the line above
                os._exit(1)
            return
    import threading

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _read_line() -> bytes:
    parts = []
    while True:
        part = os.read(0, CHUNK)
        parts.append(part)
        if not part or part.endswith(b"\n"):
            return b"".join(parts)


def _load_libraries() -> None:
    """Before the limits, which count from what is loaded."""
    # Nothing here needs it, and it takes as long to load as all else.
    sys.modules["numpy"] = None  # type: ignore[assignment]
    import duckdb  # noqa: F401
    import pyarrow as pa

    pa.set_cpu_count(1)
    pa.set_memory_pool(pa.system_memory_pool())


def _answer(request: dict[str, Any], pipe: Pipe) -> None:
    import duckdb

    threads = max(
        1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    _limit(request, threads)
    connection = _open(duckdb, request, threads)
    pipe.send(OPENED, _revision(duckdb, connection).encode() if request["check"] else b"")
    try:
        if request["check"]:
            # A file of another revision has no such table; the parent refuses it.
            with suppress(duckdb.CatalogException):
                try:
                    shadow(connection, **request["surface"])
                except Altered as error:
                    raise Stop("altered", views=error.views) from None
        result = connection.execute(_one_select(duckdb, connection, request["query"]))
        _write(result, request["batch_rows"], request["rows"], pipe)
    except duckdb.Error as error:
        raise _stop_for(duckdb, error) from None


def _revision(engine: Any, connection: duckdb.DuckDBPyConnection) -> str:
    """The schema revision of the catalogue; the parent knows which ones it can read."""
    try:
        rows = connection.execute("SELECT version_num FROM main.alembic_version").fetchall()
    except engine.CatalogException:
        raise Stop("unreadable", message="a DuckDB file without signarium's tables") from None
    if len(rows) != 1:
        raise Stop("unreadable", message="no single schema version in it")
    return str(rows[0][0])


def _limit(request: dict[str, Any], threads: int) -> None:
    import resource

    def lower(kind: int, value: int) -> None:
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))

    lower(resource.RLIMIT_CORE, 0)
    if not request["allow_files"]:
        lower(resource.RLIMIT_FSIZE, 0)
    # The parent's clock is the deadline; this ends a child whose parent is stopped.
    lower(resource.RLIMIT_CPU, int((request["timeout"] + request["wait"]) * threads) + 30)
    if (
        sys.platform == "linux"
    ):  # elsewhere the address space is not counted, and DuckDB's own limit is what holds
        with open("/proc/self/statm", "rb") as statm:
            loaded = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        lower(resource.RLIMIT_AS, loaded + request["memory"] + threads * _PER_THREAD + _SLACK)


def _open(engine: Any, request: dict[str, Any], threads: int) -> duckdb.DuckDBPyConnection:
    config = {
        "threads": str(threads),
        "memory_limit": f"{int(request['memory'] * 0.8)}B",
        "temp_directory": request["spill"],
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "allow_community_extensions": "false",
        "allow_persistent_secrets": "false",
        "python_enable_replacements": "false",
    }
    if request["exact"]:
        config["arrow_lossless_conversion"] = "true"
    if request["spill"]:
        config["max_temp_directory_size"] = _SPILL
    start = time.monotonic()
    pause = 0.005
    while True:
        try:
            connection: duckdb.DuckDBPyConnection = engine.connect(
                request["path"], read_only=True, config=config
            )
            break
        except engine.Error as error:
            message = str(error)
            if isinstance(error, engine.OutOfMemoryException) or "bad_alloc" in message:
                raise Stop("memory") from None
            if "Could not set lock" not in message or "No locks" in message:
                raise Stop("unopened", message=message) from None
            waited = time.monotonic() - start
            if waited >= request["wait"]:
                found = re.search(r"held in (.+?) \(PID (\d+)\)", message)
                holder = {"program": found[1], "pid": int(found[2])} if found else {}
                raise Stop("busy", waited=waited, **holder) from None
        time.sleep(min(pause, max(0.0, request["wait"] - (time.monotonic() - start))))
        pause = min(pause * 1.6, 0.1)
    if not request["allow_files"]:
        # Not among the settings above: with it, DuckDB refuses the temp_directory given beside it.
        connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


# ---- one SELECT, nothing else -------------------------------------------------------------------


def _one_select(engine: Any, connection: duckdb.DuckDBPyConnection, query: str) -> Any:
    """The parsed statement, or Stop. `json_serialize_sql` parses and binds nothing, and takes SELECT alone.

    It goes first because merely splitting `IMPORT DATABASE` into statements already reads files.
    """
    if "\0" in query:
        raise Stop("refused", found="a NUL character")
    words = _words(engine, query)
    if not words:
        raise Stop("refused", found="an empty query")
    explained = words[0][1] == "EXPLAIN"
    inner = _explained(connection, query, words) if explained else query
    _check(_tree(connection, inner, words), words)
    statements = connection.extract_statements(query)
    expected = engine.StatementType.EXPLAIN if explained else engine.StatementType.SELECT
    if len(statements) != 1:
        found = (
            "a PIVOT without IN (...)"
            if "PIVOT" in {word for _, word in words}
            else "more than one statement"
        )
        raise Stop("refused", found=found)
    if statements[0].type != expected:
        raise Stop("refused", found=words[0][1])
    return statements[0]


def _words(engine: Any, query: str) -> list[tuple[int, str]]:
    """Offset (in characters) and text of each token, keywords in capitals; comments are no tokens."""
    raw = query.encode()
    starts = [start for start, _ in engine.tokenize(query)]
    if not starts:
        return []
    words = []
    for start, end in zip(starts, [*starts[1:], len(raw)], strict=True):
        text = raw[start:end].decode("utf-8", "replace").strip()
        word = re.match(r"\w+|.", text, re.DOTALL)
        if word and word[0] != ";":
            words.append((len(raw[:start].decode("utf-8", "replace")), word[0].upper()))
    return words


def _explained(connection: duckdb.DuckDBPyConnection, query: str, words: list[tuple[int, str]]) -> str:
    """What an EXPLAIN explains, by DuckDB's grammar: EXPLAIN [ANALYZE | VERBOSE | ( options )] statement."""
    at = 1
    if at < len(words) and words[at][1] in ("ANALYZE", "ANALYSE"):
        at += 1
    elif at < len(words) and words[at][1] == "(":
        rest = query[words[at][0] :]
        if not _serialized(connection, rest)["error"]:
            return rest  # a SELECT in brackets
        while at < len(words) and words[at][1] != ")":
            at += 1
        at += 1
    if at >= len(words):
        raise Stop("refused", found="an EXPLAIN of nothing")
    return query[words[at][0] :]


def _serialized(connection: duckdb.DuckDBPyConnection, query: str) -> dict[str, Any]:
    row = connection.execute("SELECT json_serialize_sql(?)", [query]).fetchone()
    if row is None:
        raise Stop("failed", message="the parser gave no answer")
    tree: dict[str, Any] = json.loads(row[0])
    return tree


def _tree(connection: duckdb.DuckDBPyConnection, query: str, words: list[tuple[int, str]]) -> dict[str, Any]:
    tree = _serialized(connection, query)
    if not tree["error"]:
        return tree
    message = str(tree.get("error_message", ""))
    if "Only SELECT statements" not in message:
        raise Stop("failed", message=f"{str(tree.get('error_type', 'parser')).capitalize()} Error: {message}")
    first = words[0][1]
    if first in ("SELECT", "FROM", "WITH", "VALUES", "TABLE", "("):
        raise Stop("refused", found="more than one statement, or one that writes")
    if first == "EXPLAIN":
        raise Stop("refused", found="an EXPLAIN of something that is no SELECT")
    if first in ("PIVOT", "UNPIVOT"):
        raise Stop("refused", found="a PIVOT without IN (...)")
    raise Stop("refused", found=first if first.isalpha() else "another statement")


def _check(tree: dict[str, Any], words: list[tuple[int, str]]) -> None:
    if len(tree["statements"]) != 1:
        raise Stop("refused", found=f"{len(tree['statements'])} statements" if words else "an empty query")
    pending: list[Any] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            name = node.get("function_name")
            if isinstance(name, str) and name.lower() in REFUSED_FUNCTIONS:
                raise Stop("function", name=name.lower())
            pending.extend(node.values())
        elif isinstance(node, list):
            pending.extend(node)


# ---- running it ---------------------------------------------------------------------------------


def _write(result: duckdb.DuckDBPyConnection, batch_rows: int, most: int | None, pipe: Pipe) -> None:
    """The rows of the result, or the first `most` of them, as an Arrow stream."""
    import pyarrow as pa

    try:
        reader = result.to_arrow_reader(batch_rows)
        with pa.ipc.new_stream(pipe, reader.schema) as writer:
            for batch in reader:
                if most is not None:
                    batch = batch.slice(0, most)
                    most -= batch.num_rows
                for part in _parts(batch):
                    writer.write_batch(part)
                if most == 0:
                    break
    except (pa.ArrowException, OSError) as error:
        # DuckDB's errors in mid-stream arrive inside Arrow's.
        raise _stop_for_message(str(error)) from None
    pipe.flush()


def _parts(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch in parts of about `_BATCH_BYTES`."""
    rows = max(1, batch.num_rows * _BATCH_BYTES // max(1, batch.nbytes))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def _stop_for(engine: Any, error: Exception) -> Stop:
    if isinstance(error, engine.OutOfMemoryException):
        return Stop("memory")
    return _stop_for_message(str(error))


def _stop_for_message(message: str) -> Stop:
    if re.search(r"Out of Memory Error|bad_alloc|malloc of size|realloc of size", message):
        return Stop("memory")
    if "disabled by configuration" in message and "Permission Error" in message:
        return Stop("files", message=message)
    if "Interrupted" in message:
        # Nobody interrupts here: one of DuckDB's threads failed, and another was quicker to say that it stopped.
        message = (
            "an error in one of the query's threads, which DuckDB did not report; run it again to see it"
        )
    return Stop("failed", message=message)
