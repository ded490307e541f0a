"""Looking at the file costs no process its locks, and what stands in its place is refused at once."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
import small

import signarium
from signarium.catalog import place, store
from signarium.catalog.errors import HeldHere, InvalidInput, LeftoverLog, NotACatalogue
from signarium.migrations import manage
from signarium.queries.sql import sql


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return small.empty(tmp_path / "c.duckdb")


def is_locked(path: Path, kind: int = fcntl.LOCK_EX) -> bool:
    """Whether another process is refused a lock on the file."""
    child = os.fork()
    if child == 0:
        try:
            fcntl.lockf(os.open(path, os.O_RDWR), kind | fcntl.LOCK_NB)
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def by_another_name(path: Path) -> Any:
    other = path.with_name("other.duckdb")
    os.link(path, other)
    return duckdb.connect(str(other))


def attached(path: Path) -> Any:
    connection = duckdb.connect()
    connection.execute(f"ATTACH '{path}' AS a")
    return connection


HOLDERS: dict[str, Callable[[Path], Any]] = {
    "to write": lambda p: duckdb.connect(str(p)),
    "to read": lambda p: duckdb.connect(str(p), read_only=True),
    "by another name": by_another_name,
    "attached": attached,
}
DOORS: dict[str, Callable[[Path], object]] = {
    "open": signarium.open,
    "write": lambda p: store.writing(p).__enter__(),
    "ensure": manage.ensure,
    "upgrade": manage.upgrade,
    "verify": lambda p: signarium.Catalogue(p).verify(),
    "index": lambda p: signarium.Catalogue(p).index(),
    "sql": lambda p: sql(p, "SELECT 1"),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_connection_of_this_process_keeps_its_lock(path: Path, holder: str) -> None:
    connection = HOLDERS[holder](path)
    assert is_locked(path)
    begun = time.monotonic()
    for name, door in DOORS.items():
        if (name, holder) == ("sql", "to read"):
            # It reads in a process of its own.
            assert sql(path, "SELECT 1 AS x").to_pydict() == {"x": [1]}
        else:
            with pytest.raises(HeldHere, match="open in this process already"):
                door(path)
        assert is_locked(path), name
    assert time.monotonic() - begun < 8
    connection.close()
    assert not is_locked(path)
    signarium.open(path)


def test_copying_keeps_the_lock(path: Path) -> None:
    copy = path.with_name("copy")
    with store.reading(path):
        manage._copy(path, copy)
        assert is_locked(path) and not is_locked(path, fcntl.LOCK_SH)
    assert copy.read_bytes() == path.read_bytes()
    with pytest.raises(FileNotFoundError):
        manage._copy(path, path.with_name("none") / "copy")


def test_a_descriptor_that_was_handed_down_does_not_count(path: Path) -> None:
    """As that of `flock c.duckdb signarium ...`."""
    handle = os.open(path, os.O_RDONLY)
    os.set_inheritable(handle, True)
    signarium.open(path)
    os.set_inheritable(handle, False)
    with pytest.raises(HeldHere):
        signarium.open(path)
    os.close(handle)


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a link"])
@pytest.mark.parametrize("door", ["open", "ensure", "sql"])
def test_in_place_of_the_log(path: Path, kind: str, door: str) -> None:
    log, theirs = store.sidecar(path, ".wal"), path.with_name("theirs")
    theirs.write_text("theirs")
    make = {"a pipe": lambda: os.mkfifo(log), "a folder": log.mkdir, "a link": lambda: log.symlink_to(theirs)}
    make[kind]()
    with pytest.raises(InvalidInput, match=f"is {kind} where DuckDB's log"):
        DOORS[door](path)
    assert theirs.read_text() == "theirs"


@pytest.mark.parametrize("door", ["open", "sql"])
def test_in_place_of_the_catalogue(tmp_path: Path, door: str) -> None:
    os.mkfifo(tmp_path / "c.duckdb")
    for file, kind in {
        tmp_path / "c.duckdb": "a pipe",
        Path("/dev/zero"): "a device",
        tmp_path: "a folder",
    }.items():
        with pytest.raises(NotACatalogue, match=f"it is {kind}"):
            DOORS[door](file)


WAL = """
import os, sys, duckdb
connection = duckdb.connect(sys.argv[1])
connection.execute("SET wal_autocheckpoint = '1TB'")
connection.execute("CREATE TABLE mine AS SELECT * FROM range(1000)")
os._exit(0)
"""


@pytest.mark.parametrize("door", ["open", "write", "sql"])
def test_a_log_of_another_state(path: Path, door: str) -> None:
    assert small.python(WAL, path).communicate() == ("", "")
    log = store.sidecar(path, ".wal")
    content = log.read_bytes()
    with duckdb.connect(str(path)) as connection:
        connection.execute("CHECKPOINT")
    assert not log.exists()
    log.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(LeftoverLog, match=r"move c\.duckdb\.wal away") as caught:
        DOORS[door](path)
    assert str(log) in str(caught.value) and "\n" not in str(caught.value)
    assert (path.read_bytes(), log.read_bytes()) == (before, content)
    log.rename(log.with_suffix(".old"))
    signarium.open(path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (":memory:", "is no file"),
        (":memory:x", "is no file"),
        (os.fsdecode(b"caf\xe9/c.duckdb"), r"caf\xe9/c.duckdb is no UTF-8"),
        ("a\0b", "is no path"),
        ("~nobody-of-that-name/c.duckdb", "is no path"),
    ],
)
def test_names_that_cannot_be(name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for door in (signarium.open, lambda p: signarium.ingest(p, "m"), place.given):  # type: ignore[operator]
        with pytest.raises(InvalidInput) as caught:
            door(name)
        assert says in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_home_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(path.parent))
    assert signarium.open("~/c.duckdb").path == path
    monkeypatch.setenv("SIGNARIUM_DB", "~/c.duckdb")
    assert signarium.open().path == path


def test_outputs_that_would_take_its_place(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(path)
    folder = store.sidecar(path, ".indexes")
    for name in (path, tmp_path / "link", store.sidecar(path, ".wal"), folder / "1.faiss"):
        with pytest.raises(InvalidInput, match="belongs to the catalogue"):
            place.must_not_be_written(path, name)
    place.must_not_be_written(path, tmp_path / "c.csv")
