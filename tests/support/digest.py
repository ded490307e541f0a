"""What several tests of the ingest jobs share: the digest of a catalogue, and commands run in forked children.

A process that imports torch takes seconds to start, so `Commands` keeps one that has imported everything and
has run nothing yet; each command runs in a child of it, as a process of its own that can be killed.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import json
import mmap
import os
import pkgutil
import pty
import resource
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import absent
import numpy as np
from numpy.typing import NDArray

LEFT_OUT = {
    "model": {"added_at"},
    "run": {"started_at", "finished_at"},
    "shard": {"forward_s", "pack_s", "write_s", "wall_s"},
    "index_part": {"built_at"},
    "text_file": {"added_at"},
}
"""Times and durations: the only columns in which two runs over the same content may differ."""


def digest(path: Path, without: Sequence[str] = ()) -> dict[str, tuple[int, str]]:
    """By table of the catalogue, rows and a hash over them in sorted order. Tables in `without` are left out."""
    from signarium.catalog import store

    found = {}
    with store.reading(path) as connection:
        tables = connection.execute(
            "SELECT table_name, list(column_name ORDER BY column_name) FROM information_schema.columns "
            "WHERE table_name IN (SELECT table_name FROM duckdb_tables()) GROUP BY ALL ORDER BY ALL"
        ).fetchall()
        for table, columns in tables:
            # Those are of each transaction, and two runs over the same content may have other shards; `verify` compares them.
            if table in (*without, "digest_row"):
                continue
            kept = [one for one in columns if one not in LEFT_OUT.get(table, ())]
            result = connection.execute(f"SELECT {', '.join(kept)} FROM {table} ORDER BY ALL")
            hashed, n = hashlib.sha256(repr(kept).encode()), 0
            while batch := result.fetchmany(20_000):
                hashed.update(repr(batch).encode())
                n += len(batch)
            found[table] = n, hashed.hexdigest()
    return found


def rows(path: Path, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Rows of a query over the catalogue."""
    from signarium.catalog import store

    with store.reading(path) as connection:
        return connection.execute(query, list(values)).fetchall()


def codes(
    path: Path, view: str, site: str, centre: str, model: str | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.uint8]]:
    """Items, norms and codes (n, bytes) of `types`, `types_bos` or `states`, ascending by item."""
    item = "state_id" if view == "states" else "token_id"
    found = rows(
        path,
        f"SELECT {item}, norm, code FROM {view} WHERE site = ? AND centre = ? AND model = coalesce(?, model) "
        f"ORDER BY {item}",
        [site, centre, model],
    )
    assert found, (view, site, centre)
    return (
        np.array([row[0] for row in found]),
        np.array([row[1] for row in found], dtype=np.float32),
        np.frombuffer(b"".join(row[2] for row in found), np.uint8).reshape(len(found), -1),
    )


def sound(path: Path) -> None:
    """Asserts that the catalogue verifies."""
    from signarium.catalog.verify import verify

    assert [one for one in verify(path) if not one.ok] == []


# ---- commands -------------------------------------------------------------------------------------

PHASES = ("create", "scratch", "forward", "commit", "index")


@dataclass(frozen=True)
class Result:
    """How a command ended: `code` is -9 if it was killed, `phase` the last one that it entered."""

    code: int
    out: str
    err: str
    seconds: float
    phase: str
    peak_bytes: int

    @property
    def lines(self) -> list[str]:
        """Lines on stderr."""
        return self.err.splitlines()


def first_on_the_path(folder: Path) -> str:
    """PYTHONPATH with a folder before what it holds: a child imports the package from where the tests do."""
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))


class Commands:
    """`run("ingest", ...)` is `python -m signarium ingest ...` in a child of the warm process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        env = os.environ | {
            # Nothing listens there: a hub id fails at once, with or without a network.
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "HF_HOME": str(folder / "hub"),
            "PYTHONPATH": first_on_the_path(Path(__file__).parent),
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            cwd=folder,
        )

    def run(self, *args: object, **options: Any) -> Result:
        """Run one command to its end.

        Options: `shard_tokens` (size of shards), `file_bytes` (no file may grow beyond), `kill_after` (seconds)
        or `kill_in` (phase, its how-manieth time, seconds after that), `with_signal` (the name of another signal than
        SIGKILL), `revisions` (of the schema), `set` (values of modules' names), `code` (what runs instead, with
        `args` as its arguments), `loaded` (a model that is at hand: the warm process loads it when it is first asked
        for), `columns` (of a pseudo-terminal, where stdout and stderr go), `environment` (variables).
        """
        assert self._process.stdin and self._process.stdout
        job = {"args": [str(one) for one in args], "folder": str(self._folder), **options}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the warm process ended"
        return Result(**json.loads(answer))

    def close(self) -> None:
        """End the warm process."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(30)


@contextmanager
def commands(folder: Path) -> Iterator[Commands]:
    """A warm process for as long as the block."""
    made = Commands(folder)
    try:
        yield made
    finally:
        made.close()


def _serve() -> None:
    absent.expect_no_pandas()
    import alembic.command  # noqa: F401
    import duckdb_sqlalchemy  # noqa: F401
    import torch
    import transformers.models.gpt2.modeling_gpt2
    import transformers.models.llama.modeling_llama  # noqa: F401

    import signarium.cli
    import signarium.commands
    import signarium.ingest.run
    import signarium.migrations.manage
    import signarium.queries
    from signarium.catalog.engines import blocks
    from signarium.catalog.engines.flat import faiss
    from signarium.ingest.model import load

    faiss()
    # What a command imports when it needs it, each child would import again.

    if blocks.missing() is None:
        import signarium.catalog.engines.kernel
    for room in (signarium.commands, signarium.queries, sys.modules["signarium.ingest"]):
        for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
            importlib.import_module(module.name)
    # Before any operation, so that there are no threads to lose in a fork.
    torch.set_num_threads(1)
    shared = mmap.mmap(-1, 1 + 4 * len(PHASES))
    models: dict[str, Any] = {}
    for line in sys.stdin:
        job = json.loads(line)
        if (source := job.get("loaded")) is not None and source not in models:
            # No threads here either.
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
            threads = os.listdir("/proc/self/task")
            models[source] = load.load_model(source, device="cpu")
            assert os.listdir("/proc/self/task") == threads
            del os.environ["TOKENIZERS_PARALLELISM"]
        shared[:] = bytes(len(shared))
        terminal = _Terminal(job["columns"]) if "columns" in job else None
        started = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            _child(job, shared, models, terminal)
        if terminal is not None:
            terminal.begin_reading()
        status, used = _wait(pid, job, shared, started)
        folder = Path(job["folder"])
        answer = {
            "code": os.waitstatus_to_exitcode(status),
            "out": (folder / "command.out").read_text() if terminal is None else terminal.read(),
            "err": (folder / "command.err").read_text(),
            "seconds": time.perf_counter() - started,
            "phase": ("start", *PHASES)[shared[0]],
            "peak_bytes": used.ru_maxrss * 1024,
        }
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


class _Terminal:
    """A pseudo-terminal of so many columns."""

    def __init__(self, columns: int) -> None:
        self._ours, self._theirs = pty.openpty()
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self._read = b""

    def enter(self) -> None:
        """In the child: as if it had been started there."""
        os.close(self._ours)
        os.login_tty(self._theirs)
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            os.environ.pop(name, None)
        os.environ["TERM"] = "xterm"

    def begin_reading(self) -> None:
        """In the parent. A thread, since a terminal holds a few kilobytes; it ends with the command, before a fork."""
        os.close(self._theirs)
        self._thread = threading.Thread(target=self._to_the_end)
        self._thread.start()

    def _to_the_end(self) -> None:
        # The end of a terminal is an error.
        with suppress(OSError):
            while part := os.read(self._ours, 65_536):
                self._read += part

    def read(self) -> str:
        """What was written there."""
        self._thread.join()
        os.close(self._ours)
        return self._read.decode().replace("\r\n", "\n")


def _wait(pid: int, job: dict[str, Any], shared: mmap.mmap, started: float) -> tuple[int, Any]:
    after, where = job.get("kill_after"), job.get("kill_in")
    if after is None and where is None:
        _, status, used = os.wait4(pid, 0)
        return status, used
    killed, due = False, started + after if after is not None else float("inf")
    while True:
        done, status, used = os.wait4(pid, os.WNOHANG)
        if done:
            return status, used
        now = time.perf_counter()
        if where is not None and due == float("inf"):
            place = 1 + 4 * PHASES.index(where[0])
            if int.from_bytes(shared[place : place + 4], "little") >= where[1]:
                due = now + where[2]
        if not killed and now >= due:
            os.kill(pid, signal.Signals[job.get("with_signal", "SIGKILL")])
            killed = True
        time.sleep(0.0005)


def _child(
    job: dict[str, Any], shared: mmap.mmap, models: dict[str, Any], terminal: _Terminal | None
) -> None:
    import signarium.cli
    from signarium.ingest.model import load

    code = 99
    try:
        # What a shell runs in the background ignores interrupts, and hands that on.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        folder = Path(job["folder"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for handle, name in ((1, "command.out"), (2, "command.err")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), handle)
        if terminal is not None:
            terminal.enter()
        os.environ.update(job.get("environment", {}))
        sys.stdin = open(0)  # noqa: SIM115
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        if "loaded" in job:
            load.load_model = lambda source, **_: models[source]
        _prepare(job, shared)
        sys.argv = ["signarium", *job["args"]]
        try:
            if "code" in job:
                exec(job["code"], {})
                code = 0
            else:
                signarium.cli.main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 98
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _prepare(job: dict[str, Any], shared: mmap.mmap) -> None:
    import signarium.catalog.index
    import signarium.catalog.revisions
    import signarium.migrations.manage
    from signarium.ingest import journal, size, stages
    from signarium.ingest.states import stage as states
    from signarium.ingest.types import stage as types

    # As in `conftest`: who wants features asks for the stage.
    stages.LISTED[:] = [replace(one, usual=one.name in ("types", "states")) for one in stages.LISTED]
    if (tokens := job.get("shard_tokens")) is not None:
        size.shard_tokens = lambda _: tokens
    for name, value in job.get("set", {}).items():
        module, _, attribute = name.rpartition(".")
        assert hasattr(sys.modules[module], attribute), name
        setattr(sys.modules[module], attribute, value)
    if (revisions := job.get("revisions")) is not None:
        signarium.catalog.revisions.REVISIONS = tuple(revisions)
        signarium.catalog.revisions.HEAD = revisions[-1]
    if (limit := job.get("file_bytes")) is not None:
        # Without the signal a write past the limit fails as on a full disk.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    def tell(owner: Any, name: str, phase: str) -> None:
        inner: Callable[..., Any] = getattr(owner, name)
        number = PHASES.index(phase)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            place, before = 1 + 4 * number, shared[0]
            count = int.from_bytes(shared[place : place + 4], "little") + 1
            shared[place : place + 4] = count.to_bytes(4, "little")
            shared[0] = 1 + number
            result = inner(*args, **kwargs)
            shared[0] = before
            return result

        setattr(owner, name, wrapped)

    tell(signarium.migrations.manage, "ensure", "create")
    tell(types, "_compute", "scratch")
    tell(states, "_forward", "forward")
    tell(journal.Journal, "_commit", "commit")
    tell(signarium.catalog.index, "build", "index")


if __name__ == "__main__":
    _serve()
