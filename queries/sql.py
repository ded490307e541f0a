"""One SELECT or EXPLAIN on a catalogue, safe to run for a stranger.

The query runs in a child process (`sandbox.py`) that opens the file read-only, without access to other
files, extensions or the network, under a limit on its address space, and is killed at its deadline: DuckDB's
own memory limit and interrupt do not hold against every query.
"""

from __future__ import annotations

import json
import math
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..catalog import store
from ..catalog.errors import (
    CatalogueAltered,
    CatalogueBusy,
    InvalidInput,
    NotACatalogue,
    QueryFailed,
    QueryLimit,
    QueryRefused,
    SignariumError,
)
from ..catalog.files import scratch_folder
from ..catalog.place import must_be_file
from ..catalog.text import visible
from .sandbox import CHUNK, DATA, DONE, FAILED, HEADER, OPENED

if TYPE_CHECKING:
    import pyarrow as pa

MAX_BYTES = 1_000_000_000

_WAIT_S = 10.0
_START_S = 60.0  # for the child to load its libraries from a cold disk
_LEAST_MEMORY = 32_000_000
_MESSAGE = 600

# The package by its own folder, however it was installed: no site directories, no start-up hooks.
_BOOT = """
import sys, types
root = types.ModuleType("signarium")
root.__path__ = [sys.argv[2]]
sys.modules["signarium"] = root
sys.path.extend(sys.argv[3:])
from signarium.queries.sandbox import main
main(int(sys.argv[1]))
"""
# Nothing else of the environment reaches the child, so that no query can show it.
_ENVIRONMENT = (
    "HOME",
    "TZ",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "SYSTEMROOT",
)


@dataclass(frozen=True)
class Limits:
    """What a query may do and use.

    `allow_files` lets reading functions such as `read_csv` open other files; it allows no other statement. `timeout` is in
    seconds and counts from when the file is open; waiting for its lock (SIGNARIUM_WAIT seconds, 10 by default) comes on
    top. `memory` is what the query may use beyond the loaded libraries, in bytes or as "512MB", "2GB", "1.5GiB".
    `max_bytes` bounds the result, `rows` cuts it. With `check`, a file whose schema is not this program's is refused as by
    every other reader; without it any DuckDB file will do.
    """

    allow_files: bool = False
    timeout: float = 60.0
    memory: int | str = "2GB"
    max_bytes: int | None = None
    rows: int | None = None
    check: bool = False


def sql(path: Path | str, query: str, limits: Limits | None = None) -> pa.Table:
    """The result of one SELECT or EXPLAIN on the catalogue at `path`, as an Arrow table of at most 1 GB by default.

    Raises QueryRefused (not one SELECT or EXPLAIN, or it reaches for files), QueryFailed (DuckDB's message),
    QueryLimit (deadline, memory or size), CatalogueMissing, CatalogueBusy, NotACatalogue, and InvalidInput
    for an option that cannot be.
    """
    with stream(path, query, limits or Limits(max_bytes=MAX_BYTES)) as reader:
        return reader.read_all()


@contextmanager
def stream(
    path: Path | str, query: str, limits: Limits | None = None, *, exact: bool = False, batch_rows: int = 8192
) -> Iterator[pa.RecordBatchReader]:
    """The result of one SELECT or EXPLAIN in batches of at most `batch_rows` rows and about 4 MB, as they arrive.

    With `exact`, values of DuckDB's types that Arrow lacks (BIT, HUGEINT, TIME WITH TIME ZONE ...) come in Arrow's
    extension types `arrow.opaque`, from which they can be read without loss; without it in the nearest that Arrow has.
    Time that the caller takes between batches is not counted in the timeout. Leaving the block stops the query. Raises as
    `sql`, while batches are read too.
    """
    job = _Job(path, query, limits or Limits(), exact, batch_rows)
    with job:
        job.start()
        import pyarrow as pa  # while the child loads its own libraries

        answer = _Answer(job.parts())
        try:
            with pa.ipc.open_stream(answer) as reader:
                yield reader
        except (pa.ArrowException, OSError) as error:
            # Arrow may put an error of what it reads from into one of its own.
            if answer.failed is not None and answer.failed is not error:
                raise answer.failed from None
            if not isinstance(error, pa.ArrowException):
                raise
            raise QueryFailed(
                f"the result is no Arrow table ({one_line(str(error))})", "cast its columns"
            ) from None


class _Answer:
    """The bytes of an answer as a file that Arrow reads; `failed` is what the query ended in, if it did."""

    closed = False

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._rest = memoryview(b"")
        self.failed: BaseException | None = None

    def read(self, size: int = -1) -> bytes:
        taken: list[memoryview] = []
        wanted = size if size >= 0 else sys.maxsize
        while wanted > 0 and self._more():
            taken.append(self._rest[:wanted])
            self._rest = self._rest[len(taken[-1]) :]
            wanted -= len(taken[-1])
        return b"".join(taken)

    def _more(self) -> bool:
        try:
            while not self._rest:
                self._rest = memoryview(next(self._parts))
        except StopIteration:
            return False
        except BaseException as error:
            self.failed = error
            raise
        return True

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True


def parse_memory(memory: int | str) -> int:
    """Bytes from a number or from text such as "512MB", "2GB" (powers of 1000) or "1.5GiB" (of 1024)."""
    value: float = math.nan
    if isinstance(memory, int):
        value = memory
    elif found := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", memory, re.IGNORECASE):
        power = " KMGT".index(found[2].upper() or " ")
        value = float(found[1]) * (1024 if found[3] else 1000) ** power
    if not value >= _LEAST_MEMORY or value > 1 << 48:
        raise InvalidInput(f"memory {memory!r} cannot be used", "give at least 32MB, as in 512MB or 2GB")
    return int(value)


def wait_seconds() -> float:
    """How long to wait for a locked catalogue: SIGNARIUM_WAIT, or 10 seconds."""
    text = os.environ.get("SIGNARIUM_WAIT", "")
    if not text:
        return _WAIT_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < 1e6:
        raise InvalidInput(f"SIGNARIUM_WAIT is {text!r}", "set it to a number of seconds")
    return seconds


class _Job:
    """One child process and the conversation with it. Leaving the block kills the child."""

    def __init__(
        self, path: Path | str, query: str, limits: Limits, exact: bool = False, batch_rows: int = 8192
    ) -> None:
        if os.name != "posix":
            raise InvalidInput("sql needs Linux or macOS", "run it there")
        self.path = Path(path)
        must_be_file(self.path)
        store.must_not_be_written_here(self.path)
        if not 0 < limits.timeout < 1e6:
            raise InvalidInput(f"timeout {limits.timeout} cannot be used", "give a number of seconds above 0")
        try:
            query.encode()
        except UnicodeEncodeError:
            raise QueryFailed("the query is no valid Unicode text", "write it as UTF-8") from None
        self.limits = limits
        self.wait = wait_seconds()
        self.request: dict[str, Any] = {
            "path": str(self.path.absolute()),
            "query": query,
            "exact": exact,
            "batch_rows": batch_rows,
            "rows": limits.rows,
            "allow_files": limits.allow_files,
            "check": limits.check,
            "timeout": limits.timeout,
            "memory": parse_memory(limits.memory),
            "wait": self.wait,
            "spill": "",
        }
        self._child: subprocess.Popen[bytes] | None = None
        self._closing = ExitStack()
        self._said = b""

    def __enter__(self) -> _Job:
        return self

    def __exit__(self, *_: object) -> None:
        child = self._child
        if child is not None:
            child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout, child.stderr):
                if stream is not None:
                    stream.close()
        self._closing.close()

    def start(self) -> None:
        if self.request["allow_files"]:
            # Ours to remove: a killed child leaves its spilled files behind.
            self.request["spill"] = str(self._closing.enter_context(scratch_folder()))
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        environment |= {"MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._child = subprocess.Popen(
            _command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            bufsize=0,
        )

    def parts(self) -> Iterator[bytes]:
        """The bytes of the answer as they arrive. Raises what the query ended in."""
        child = self._child
        assert child is not None and child.stdin and child.stdout and child.stderr
        deadline = time.monotonic() + _START_S + self.wait
        opened = False
        received = 0
        buffer = bytearray()
        if self.request["check"]:
            from ..catalog import surface  # while the child starts

            self.request["surface"] = surface.shadowing()
        to_send = memoryview((json.dumps(self.request) + "\n").encode())
        with selectors.DefaultSelector() as selector:
            os.set_blocking(child.stdin.fileno(), False)
            selector.register(child.stdin, selectors.EVENT_WRITE)
            selector.register(child.stdout, selectors.EVENT_READ)
            selector.register(child.stderr, selectors.EVENT_READ)
            while True:
                left = deadline - time.monotonic()
                ready = selector.select(left) if left > 0 else []
                if left <= 0:
                    raise self._late(opened)
                ended = False
                for key, _ in ready:
                    if key.fileobj is child.stdin:
                        try:
                            to_send = to_send[os.write(child.stdin.fileno(), to_send) :]
                        except BrokenPipeError:
                            to_send = to_send[:0]
                        if not to_send:
                            selector.unregister(child.stdin)
                    elif key.fileobj is child.stderr:
                        said = os.read(child.stderr.fileno(), 1 << 16)
                        self._said = (self._said + said)[-4096:]
                        if not said:
                            selector.unregister(child.stderr)
                    else:
                        data = os.read(child.stdout.fileno(), CHUNK)
                        buffer += data
                        ended = not data
                for kind, payload in self._frames(buffer):
                    if kind == OPENED:
                        if opened:  # saying so again must not move the deadline
                            raise _unreadable()
                        opened = True
                        if self.request["check"]:
                            store.check_revision(self.path, payload.decode("utf-8", "replace"))
                        deadline = time.monotonic() + self.limits.timeout
                    elif kind == DATA:
                        received += len(payload)
                        if self.limits.max_bytes is not None and received > self.limits.max_bytes:
                            raise QueryLimit(
                                f"the result is larger than {self.limits.max_bytes / 1e6:,.0f} MB",
                                "add LIMIT to the query",
                            )
                        yielded = time.monotonic()
                        yield payload
                        deadline += time.monotonic() - yielded
                    elif kind == DONE:
                        if payload:
                            raise _unreadable()
                        return
                    else:
                        raise self._failure(_load(payload))
                if ended:
                    raise self._died(child, deadline)

    def _frames(self, buffer: bytearray) -> Iterator[tuple[bytes, bytes]]:
        while len(buffer) >= HEADER.size:
            kind, size = HEADER.unpack_from(buffer)
            if kind not in (OPENED, DATA, DONE, FAILED) or size > CHUNK:
                raise _unreadable()
            if len(buffer) < HEADER.size + size:
                return
            payload = bytes(buffer[HEADER.size : HEADER.size + size])
            del buffer[: HEADER.size + size]
            yield kind, payload

    def _late(self, opened: bool) -> SignariumError:
        if opened:
            return QueryLimit(
                f"the query ran for {self.limits.timeout:g} s and was stopped",
                "make it smaller, or raise --timeout",
            )
        return QueryLimit(
            "the process of the query did not start in time", "try again on a less busy machine"
        )

    def _too_much_memory(self) -> QueryLimit:
        return QueryLimit(
            f"the query needs more than the {self.limits.memory} of memory it may use",
            "add a filter or LIMIT, or raise --memory",
        )

    def _failure(self, told: dict[str, Any]) -> SignariumError:
        kind, message = told.get("kind"), str(told.get("message", ""))
        if kind == "refused":
            return QueryRefused(
                f"only one SELECT or EXPLAIN is run, and this is {visible(str(told.get('found')))[:100]}",
                "write it as one SELECT",
            )
        if kind == "function":
            return QueryRefused(f"the function {told.get('name')} does more than read", "leave it out")
        if kind == "files":
            return QueryRefused(one_line(message), "pass --allow-files if you trust the query")
        if kind == "memory":
            return self._too_much_memory()
        if kind == "busy":
            return CatalogueBusy(self.path, _holder(told), float(told.get("waited", self.wait)))
        if kind == "unopened":
            return store.not_opened(self.path, message)
        if kind == "altered":
            return CatalogueAltered(self.path, list(told.get("views", ())))
        if kind == "unreadable":
            return NotACatalogue(self.path, one_line(message))
        if lacking := re.search(r"Unsupported Arrow type (\w+)", message):
            return QueryFailed(
                f"the result has the type {lacking[1]}, which DuckDB does not give away",
                "cast that column, as in x::JSON or x::VARCHAR",
            )
        return QueryFailed(one_line(message))

    def _died(self, child: subprocess.Popen[bytes], deadline: float) -> SignariumError:
        try:
            code = child.wait(max(0.0, min(1.0, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            return QueryFailed("the process of the query closed its pipe without an answer", "report this")
        if code == -signal.SIGXCPU:
            return self._late(opened=True)
        if code < 0:
            return QueryLimit(
                f"the query's process died ({signal.Signals(-code).name}) under its limit of {self.limits.memory}",
                "make the query smaller or less deeply nested, or raise --memory",
            )
        lines = visible(self._said.decode("utf-8", "replace"), keep_lines=True).strip().splitlines()
        if b"MemoryError" in self._said or b"bad_alloc" in self._said:
            return self._too_much_memory()
        why = lines[-1][:_MESSAGE] if lines else "it said nothing"
        return QueryFailed(
            f"the process of the query ended with code {code} and no answer ({why})", "report this"
        )


def one_line(message: str) -> str:
    """DuckDB's message on one line: its hints kept, the drawing of the place and stack traces dropped."""
    message = re.split(r"\n+Stack Trace:", message)[0]
    found = re.search(r"\n\s*LINE (\d+):[^\n]*\n[ \t]*\^", message)
    if found:
        where = f" (line {found[1]})" if found[1] != "1" else ""
        message = message[: found.start()].rstrip() + where + message[found.end() :]
    text = visible(" ".join(message.split()))
    return text if len(text) <= _MESSAGE else text[: _MESSAGE - 1] + "…"


def _command() -> list[str]:
    folders = [folder for folder in sys.path if os.path.isabs(folder)]
    package = str(Path(__file__).resolve().parent.parent)
    return [sys.executable, "-I", "-S", "-c", _BOOT, str(os.getpid()), package, *folders]


def _unreadable() -> QueryFailed:
    return QueryFailed("the process of the query answered with something unreadable", "report this")


def _load(payload: bytes) -> dict[str, Any]:
    try:
        told = json.loads(payload)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise _unreadable()
    return told


def _holder(told: dict[str, Any]) -> str:
    if "pid" not in told:
        return "another process"
    if told["pid"] == os.getpid():
        return f"this very process (PID {told['pid']})"
    return f"{visible(str(told['program']))} (PID {told['pid']})"
