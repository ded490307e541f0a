"""Opening: every kind of wrong file has its error, nobody loses a committed row, and whoever waits gets in."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import resource
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import small
from effort import in_full
from sqlalchemy import text

from signarium.catalog import bulk, revisions, schema, store
from signarium.catalog.errors import (
    CatalogueBusy,
    CatalogueMissing,
    CatalogueTooNew,
    CatalogueTooOld,
    DiskFull,
    IngestRunning,
    InvalidInput,
    NotACatalogue,
    SignariumError,
)

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A catalogue with codes in several blocks."""
    path = small.filled(tmp_path_factory.mktemp("whole") / "c.duckdb").path
    with store.writing(path) as session:
        codes = np.random.default_rng(0).integers(0, 256, (5000, 72), dtype=np.uint8)
        bulk.insert_codes(session, [bulk.code_columns(9, np.arange(5000), np.ones(5000, np.float32), codes)])
    return path.read_bytes()


def set_revision(path: Path, statement: str) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.execute(statement)


def foreign_duckdb(path: Path) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE t AS SELECT 1 AS x")


def sqlite(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (x)")
    connection.commit()
    connection.close()


def revision(statement: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        small.empty(path)
        set_revision(path, statement)

    return make


WRONG: dict[str, tuple[Callable[[Path], object], type[SignariumError], str]] = {
    "missing": (lambda p: None, CatalogueMissing, "no catalogue at"),
    "folder": (lambda p: p.mkdir(), NotACatalogue, "folder"),
    "pipe": (lambda p: os.mkfifo(p), NotACatalogue, "a pipe"),
    "dangling link": (lambda p: p.symlink_to("nowhere"), CatalogueMissing, "no catalogue at"),
    "link to itself": (lambda p: p.symlink_to(p), InvalidInput, "may not be opened"),
    "empty": (lambda p: p.write_bytes(b""), NotACatalogue, "empty"),
    "text": (lambda p: p.write_text("hello\n" * 5000), NotACatalogue, "not a DuckDB file"),
    "short text": (lambda p: p.write_text("hello"), NotACatalogue, "not a DuckDB file"),
    "random": (
        lambda p: p.write_bytes(random.Random(0).randbytes(70_000)),
        NotACatalogue,
        "not a DuckDB file",
    ),
    "sqlite": (sqlite, NotACatalogue, "not a DuckDB file"),
    "other tables": (foreign_duckdb, NotACatalogue, "without signarium's tables"),
    "no revision": (revision("DELETE FROM alembic_version"), NotACatalogue, "no single schema version"),
    "two revisions": (
        revision("INSERT INTO alembic_version VALUES ('x')"),
        NotACatalogue,
        "no single schema",
    ),
    "newer": (
        revision("UPDATE alembic_version SET version_num = '9999'"),
        CatalogueTooNew,
        "upgrade signarium",
    ),
}


def refused(path: Path, kind: type[SignariumError], says: str) -> None:
    for door in (store.reading, store.writing):
        with pytest.raises(kind) as caught, door(path):
            pytest.fail("it was opened")
        assert type(caught.value) is kind
        message = str(caught.value)
        assert says in message
        assert "\n" not in message
        assert len(message) < 600


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files(tmp_path: Path, name: str) -> None:
    make, kind, says = WRONG[name]
    path = tmp_path / "c.duckdb"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    names = sorted(tmp_path.iterdir())
    refused(path, kind, says)
    assert sorted(tmp_path.iterdir()) == names
    assert before is None or path.read_bytes() == before


def test_an_older_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small.empty(tmp_path / "c.duckdb")
    before = path.read_bytes()
    monkeypatch.setattr(revisions, "REVISIONS", (revisions.HEAD, "later"))
    monkeypatch.setattr(revisions, "HEAD", "later")
    refused(path, CatalogueTooOld, f"run `signarium --db {path} db upgrade`")
    assert path.read_bytes() == before


def test_a_name_that_cannot_be() -> None:
    refused(Path("x" * 300), InvalidInput, "may not be opened")
    refused(Path("/dev/null/c.duckdb"), CatalogueMissing, "no catalogue")


OPEN = """
import sys
from pathlib import Path
from signarium.catalog import store
from signarium.catalog.errors import SignariumError
for name in sys.argv[1:]:
    path = Path(name)
    try:
        with store.reading(path) as connection:
            for table in ("code_row", "model", "document_row", "dimension_row"):
                connection.execute(f"SELECT * FROM {table}").fetchall()
        print("whole", flush=True)
    except SignariumError as error:
        assert "\\n" not in str(error)
        print(type(error).__name__, flush=True)
"""


def test_damage_never_crashes(tmp_path: Path, whole: bytes) -> None:
    """Cut off anywhere, or one byte changed anywhere: an answer or an error, the file as it was, no dead process."""
    rng = random.Random(0)
    blocks = [12_288 + i * schema.BLOCK_BYTES for i in range(len(whole) // schema.BLOCK_BYTES)]
    cuts = [1, 15, 4095, 4096, 8192, 12_287, *blocks[::2], *(one + 1 for one in blocks[1::3]), len(whole) - 1]
    flips = [*range(0, 64, 7), *range(4096, 4160, 9), *range(8192, 8256, 9), *blocks[::2]]
    flips += [rng.randrange(len(whole)) for _ in range(25)]
    wanted: dict[Path, bytes] = {}
    for i, cut in enumerate(cuts):
        wanted[tmp_path / f"cut{i}"] = whole[:cut]
    for i, place in enumerate(flips):
        data = bytearray(whole)
        data[place] ^= rng.randrange(1, 256)
        wanted[tmp_path / f"flip{i}"] = bytes(data)
    for path, data in wanted.items():
        path.write_bytes(data)
    child = small.python(OPEN, *wanted)
    output, errors = child.communicate(timeout=120)
    assert (child.returncode, errors) == (0, "")
    verdicts = dict(zip(wanted, output.split(), strict=True))
    assert set(verdicts.values()) <= {"whole", "NotACatalogue"}
    # A file may end in blocks that nothing uses any more: without those it is whole.
    (tmp_path / "all").write_bytes(whole)
    with store.reading(tmp_path / "all") as connection:
        free = connection.execute("SELECT free_blocks FROM pragma_database_size()").fetchall()[0][0]
    (tmp_path / "all").unlink()
    used = len(whole) - free * schema.BLOCK_BYTES
    seen = {verdicts[tmp_path / f"cut{i}"] for i, cut in enumerate(cuts) if cut < used}
    assert seen == {"NotACatalogue"} and used > len(whole) / 2
    # Most of the flipped bytes are under a checksum; blocks that nothing uses any more are not read.
    assert sum(verdicts[path] == "NotACatalogue" for path in wanted if path.name.startswith("flip")) > 20
    assert all(path.read_bytes() == data for path, data in wanted.items())
    assert set(tmp_path.iterdir()) == set(wanted)


def test_a_torn_log_beside_it(tmp_path: Path, whole: bytes) -> None:
    """What a crash can leave half written is not taken for rows."""
    path = tmp_path / "c.duckdb"
    path.write_bytes(whole)
    for junk in (b"", b"x", random.Random(0).randbytes(5000)):
        store.sidecar(path, ".wal").write_bytes(junk)
        with store.reading(path) as connection:
            assert connection.execute("SELECT count(*) FROM code_row WHERE code_set_id = 9").fetchone() == (
                5000,
            )


# ---- waiting ------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from signarium.catalog import schema, store
kind, path = sys.argv[1], Path(sys.argv[2])
if kind == "write":
    with store.writing(path) as session:
        session.add(schema.IndexPart(code_set_id=1, n=2, built_at=__import__("datetime").datetime(2026, 1, 1)))
        session.flush()
        print("held", flush=True)
        sys.stdin.readline()
elif kind == "read":
    with store.reading(path):
        print("held", flush=True)
        sys.stdin.readline()
elif kind == "job":
    with store.job_lock(path):
        print("held", flush=True)
        sys.stdin.readline()
print("left", flush=True)
"""


def hold(kind: str, path: Path) -> subprocess.Popen[str]:
    child = small.python(HOLD, kind, path)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def let_go(child: subprocess.Popen[str]) -> None:
    assert child.communicate("\n", timeout=30) == ("left\n", "")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return small.empty(tmp_path / "c.duckdb")


def count(path: Path) -> int:
    with store.reading(path) as connection:
        return int(connection.execute("SELECT count(*) FROM index_part").fetchall()[0][0])


def test_a_reader_waits_for_a_writer(path: Path) -> None:
    # `sleep` stands between the two so that the child lets go while we wait.
    child = hold("write", path)
    waker = subprocess.Popen(["sh", "-c", "sleep 1; echo"], stdout=child.stdin)
    started = time.monotonic()
    assert count(path) == 1
    assert time.monotonic() - started > 0.8
    waker.wait()
    let_go(child)


def test_a_writer_waits_for_a_reader(path: Path) -> None:
    child = hold("read", path)
    waker = subprocess.Popen(["sh", "-c", "sleep 1; echo"], stdout=child.stdin)
    started = time.monotonic()
    with store.writing(path) as session:
        session.add(schema.IndexPart(code_set_id=5, n=2, built_at=small.WHEN))
    assert time.monotonic() - started > 0.8
    waker.wait()
    let_go(child)
    assert count(path) == 1


@pytest.mark.parametrize("door", [store.reading, store.writing])
def test_who_holds_it_is_said(
    path: Path, monkeypatch: pytest.MonkeyPatch, door: Callable[[Path], object]
) -> None:
    child = hold("write", path)
    monkeypatch.setenv("SIGNARIUM_WAIT", "0.4")
    started = time.monotonic()
    with pytest.raises(CatalogueBusy, match=rf"PID {child.pid}\b") as caught, door(path):  # type: ignore[attr-defined]
        pytest.fail("it was opened")
    assert 0.4 <= time.monotonic() - started < 5
    assert "SIGNARIUM_WAIT" in str(caught.value)
    assert "\n" not in str(caught.value)
    let_go(child)


def test_readers_do_not_wait_for_each_other(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNARIUM_WAIT", "0")
    child = hold("read", path)
    assert count(path) == 0
    let_go(child)


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "1s"])
def test_a_wait_that_is_no_number(path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SIGNARIUM_WAIT", value)
    with pytest.raises(InvalidInput, match="SIGNARIUM_WAIT"):
        store.wait_seconds(1.0)


def test_wait_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIGNARIUM_WAIT", raising=False)
    assert store.wait_seconds(7.0) == 7.0
    monkeypatch.setenv("SIGNARIUM_WAIT", "2.5")
    assert store.wait_seconds(7.0) == 2.5


def test_default_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNARIUM_DB", "/x/y.duckdb")
    assert store.default_path() == Path("/x/y.duckdb")
    monkeypatch.delenv("SIGNARIUM_DB")
    assert store.default_path() == Path("catalogue.duckdb")


def test_one_job_at_a_time(path: Path) -> None:
    child = hold("job", path)
    with pytest.raises(IngestRunning, match=f"PID {child.pid}"), store.job_lock(path):
        pytest.fail("it was taken twice")
    # Readers and writers do not look at it.
    assert count(path) == 0
    child.kill()
    child.communicate()
    with store.job_lock(path):
        assert store.sidecar(path, ".lock").read_text() == f"{os.getpid()}\n"
    assert not store.sidecar(path, ".lock").exists()


def test_the_lock_goes_after_an_error_too(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), store.job_lock(path):
        raise ZeroDivisionError
    assert not store.sidecar(path, ".lock").exists()


RACE = """
import sys
from pathlib import Path
from signarium.catalog import store
from signarium.catalog.errors import IngestRunning
path, inside = Path(sys.argv[1]), Path(sys.argv[2])
got = 0
while got < 150:
    try:
        with store.job_lock(path):
            inside.mkdir()
            inside.rmdir()
            got += 1
    except IngestRunning:
        pass
"""


def test_never_two_in_the_lock(path: Path) -> None:
    """Each makes and removes one folder inside: two at once would collide."""
    children = [small.python(RACE, path, path.with_name("inside")) for _ in range(3)]
    for child in children:
        assert child.communicate(timeout=60) == ("", "")
        assert child.returncode == 0
    assert not store.sidecar(path, ".lock").exists()


def test_a_lock_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InvalidInput, match="cannot write beside"),
        store.job_lock(tmp_path / "file" / "c.duckdb"),
    ):
        pytest.fail("it was taken")


@pytest.mark.parametrize("kind", ["a link", "a dangling link", "a hard link", "a pipe", "a folder", "a note"])
def test_what_is_not_our_lock_stays(path: Path, tmp_path: Path, kind: str) -> None:
    lock, theirs = store.sidecar(path, ".lock"), tmp_path / "theirs"
    if kind != "a dangling link":
        theirs.write_text("12345 important things\n")
    make: dict[str, Callable[[], object]] = {
        "a link": lambda: lock.symlink_to(theirs),
        "a dangling link": lambda: lock.symlink_to(theirs),
        "a hard link": lambda: os.link(theirs, lock),
        "a pipe": lambda: os.mkfifo(lock),
        "a folder": lock.mkdir,
        "a note": lambda: lock.write_text("12345\nis the number of the safe"),
    }
    make[kind]()
    names = sorted(tmp_path.iterdir())
    refused = pytest.raises(InvalidInput, match="where the lock of a job should be: move it away")
    with refused, store.job_lock(path):
        pytest.fail("it was taken")
    assert sorted(tmp_path.iterdir()) == names
    assert kind == "a dangling link" or theirs.read_text() == "12345 important things\n"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks(path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(InvalidInput, match=r"has no file locks .* could write at once: put the"),
        store.job_lock(path),
    ):
        pytest.fail("it was taken")


def test_a_disk_without_locks_is_not_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for says in (
        "No locks available. See also https://duckdb.org/docs/stable/connect/concurrency",
        "File locks are not supported for this file system, cannot open the file in read-write mode.",
    ):

        def refuse(*_: object, says: str = says, **__: object) -> None:
            raise duckdb.IOException(f'IO Error: Could not set lock on file "{path}": {says}')

        monkeypatch.setattr(duckdb, "connect", refuse)
        begun = time.monotonic()
        with pytest.raises(InvalidInput, match="has no file locks"), store.reading(path):
            pytest.fail("it was opened")
        assert time.monotonic() - begun < 1


# ---- one transaction ----------------------------------------------------------------------------


def add_both(session: store.Session, ident: int, n: int = 10) -> None:
    codes = np.random.default_rng(ident).integers(0, 256, (n, 72), dtype=np.uint8)
    bulk.insert_codes(session, [bulk.code_columns(ident, np.arange(n), np.ones(n, np.float32), codes)])
    session.add(schema.IndexPart(code_set_id=ident, n=n, built_at=small.WHEN))


def contents(path: Path) -> dict[int, tuple[int, int]]:
    """By code set: rows in the bulk table, rows in the ORM's table."""
    with store.reading(path) as connection:
        rows = connection.execute(
            "SELECT code_set_id, (SELECT count(*) FROM code_row c WHERE c.code_set_id = i.code_set_id), "
            "(SELECT count(*) FROM index_part p WHERE p.code_set_id = i.code_set_id) FROM "
            "(SELECT code_set_id FROM code_row UNION SELECT code_set_id FROM index_part) i"
        ).fetchall()
    return {ident: (codes, parts) for ident, codes, parts in rows}


@pytest.mark.parametrize("flush", [False, True])
def test_all_or_nothing(path: Path, flush: bool) -> None:
    with store.writing(path) as session:
        add_both(session, 1)
    with pytest.raises(KeyboardInterrupt), store.writing(path) as session:
        add_both(session, 2)
        if flush:
            session.flush()
        raise KeyboardInterrupt
    with pytest.raises(Exception, match=r"(?i)duplicate key"), store.writing(path) as session:
        add_both(session, 3)
        session.add(schema.IndexPart(code_set_id=1, n=10, built_at=small.WHEN))
    assert contents(path) == {1: (10, 1)}


def test_by_the_name_of_a_link(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere" / "link.duckdb"
    link.parent.mkdir()
    link.symlink_to(path)
    with store.writing(link) as session:
        add_both(session, 1)
    assert contents(path) == contents(link) == {1: (10, 1)}
    assert list(link.parent.iterdir()) == [link]
    assert store.sidecar(link, ".lock") == store.sidecar(path, ".lock")


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from signarium.catalog import bulk, store
path, n, when = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
with store.writing(path) as session:
    codes = np.zeros((n, 72), np.uint8)
    bulk.insert_codes(session, [bulk.code_columns(2, np.arange(n), np.ones(n, np.float32), codes)])
    if when == "after":
        session.commit()
    os.kill(os.getpid(), signal.SIGKILL)
"""


# DuckDB takes the first through its log, the second past it.
@pytest.mark.parametrize("n", [1000, 150_000])
@pytest.mark.parametrize("when", ["before", "after"])
def test_kill(path: Path, n: int, when: str) -> None:
    with store.writing(path) as session:
        add_both(session, 1)
    child = small.python(KILLED, path, n, when)
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    expected = {1: (10, 1)} | ({2: (n, 0)} if when == "after" else {})
    assert contents(path) == expected
    with store.writing(path) as session:
        add_both(session, 3)
    assert contents(path) == expected | {3: (10, 1)}
    assert not store.sidecar(path, ".wal").exists()


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from signarium.catalog import bulk, schema, store
from signarium.catalog.errors import DiskFull
path, n, limit = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
codes = np.random.default_rng(0).integers(0, 256, (n, 72), dtype=np.uint8)
try:
    with store.writing(path) as session:
        bulk.insert_codes(session, [bulk.code_columns(2, np.arange(n), np.ones(n, np.float32), codes)])
    print("committed")
except DiskFull as error:
    assert error.during and "\\n" not in str(error), error
    print("full")
# The same process goes on when there is room again.
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
with store.reading(path) as connection:
    print(connection.execute("SELECT count(*) FROM code_row WHERE code_set_id = 2").fetchall()[0][0])
"""


def ignore_the_signal() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


@pytest.mark.parametrize(
    ("n", "limit", "full"),
    [
        (1000, 0, True),
        in_full(1000, 50_000, True),
        # Enough for the log, too little for the checkpoint: that is a commit.
        (1000, 120_000, False),
        in_full(20_000, 1_000_000, True),
        (20_000, 30_000_000, False),
        in_full(150_000, 500_000, True),
        (150_000, 6_000_000, True),
    ],
)
def test_a_full_disk(path: Path, n: int, limit: int, full: bool) -> None:
    """A limit on the size of files stands in for the disk: the same calls fail in the same places."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    with store.writing(path) as session:
        add_both(session, 1)
    child = small.python(FULL, path, n, limit, preexec_fn=ignore_the_signal)
    output, errors = child.communicate(timeout=60)
    assert errors == ""
    assert output.split() == (["full", "0"] if full else ["committed", str(n)])
    expected = {1: (10, 1)} | ({} if full else {2: (n, 0)})
    assert contents(path) == expected
    with store.writing(path) as session:
        add_both(session, 3)
    assert contents(path) == expected | {3: (10, 1)}


def test_disk_full_is_told_from_other_errors() -> None:
    assert store.is_disk_full(OSError('Could not write file "x": No space left on device'))
    assert not store.is_disk_full(duckdb.CatalogException("no such table"))


@pytest.mark.parametrize("door", [store.reading, store.writing])
def test_an_interrupt_in_a_query_is_an_interrupt(path: Path, door: Any) -> None:
    with pytest.raises(KeyboardInterrupt), door(path):
        raise RuntimeError("Query interrupted")
    with pytest.raises(RuntimeError, match="another"), door(path):
        raise RuntimeError("another")
    with store.reading(path):
        pass


def test_an_interrupt_while_a_connection_closes_is_no_error_in_the_log(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from duckdb_sqlalchemy import ConnectionWrapper

    close = ConnectionWrapper.close
    for error, lines in ((KeyboardInterrupt(), 0), (ValueError("full"), 1)):

        def failing(self: Any, error: BaseException = error) -> None:
            close(self)
            raise error

        monkeypatch.setattr(ConnectionWrapper, "close", failing)
        expected = pytest.raises(KeyboardInterrupt) if lines == 0 else nullcontext()
        with expected, store.writing(path):
            pass
        assert len(caplog.records) == lines


def test_an_older_file_can_be_opened_unchecked(path: Path) -> None:
    set_revision(path, "UPDATE alembic_version SET version_num = '9999'")
    with store.reading(path, check=False) as connection:
        assert store.revision_of(path, connection) == "9999"
    with store.writing(path, check=False) as session:
        assert session.scalar(text("SELECT version_num FROM alembic_version")) == "9999"
    assert issubclass(DiskFull, SignariumError)


def test_threads_of_one_process_wait_for_each_other(tmp_path: Path) -> None:
    # DuckDB refuses a reader beside a writer in one process as it does in two; nobody may call that damage.
    path = small.empty(tmp_path / "c.duckdb")
    done = threading.Event()
    failed: list[Exception] = []
    looks = [0, 0]

    def look(which: int) -> None:
        while not done.is_set():
            try:
                with store.reading(path) as connection:
                    connection.execute("SELECT count(*) FROM model").fetchall()
                looks[which] += 1
            except Exception as error:
                failed.append(error)
                return

    threads = [threading.Thread(target=look, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    begun = time.monotonic()
    try:
        for _ in range(20):
            with store.writing(path) as session:
                session.execute(text("UPDATE alembic_version SET version_num = version_num"))
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failed == [] and min(looks) > 0
    # Readers without a pause do not starve the writer.
    assert time.monotonic() - begun < 20
