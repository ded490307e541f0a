"""Opening a catalogue: who may hold the file, for how long, and what to say when it cannot be opened.

DuckDB takes one writing process and no readers beside it. So nothing here keeps the file open: `reading` and
`writing` hold it for one request, and whoever meets the lock waits for it (`SIGNARIUM_WAIT` seconds).
A job that writes over a longer time holds `job_lock` instead, which no reader looks at.
"""

from __future__ import annotations

import logging
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import (
    CatalogueAltered,
    CatalogueBusy,
    CatalogueTooNew,
    CatalogueTooOld,
    DiskFull,
    HeldHere,
    InvalidInput,
    LeftoverLog,
    NotACatalogue,
    SignariumError,
)
from .lock import job_lock as job_lock
from .lock import no_locks
from .place import is_open_here, must_be_file, sidecar
from .shadow import STORED, Altered, shadow

if TYPE_CHECKING:
    import duckdb
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

DEFAULT_PATH = "catalogue.duckdb"
READ_WAIT_S = 10.0
WRITE_WAIT_S = 60.0
"""A writer has a model's work in hand, which is dearer than waiting."""

_POOL = "signarium"
"""Under which our connections, and nobody else's, are logged."""

_NO_EXTENSIONS: dict[str, Any] = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
"""For a file of SQLite, DuckDB would go and look for an extension that can read it."""

FENCE: dict[str, Any] = _NO_EXTENSIONS | {
    "enable_external_access": False,
    "allow_community_extensions": False,
    "allow_persistent_secrets": False,
    "python_enable_replacements": False,
}
"""Of every connection that reads: a file from elsewhere has views, macros and defaults, and is a program from elsewhere."""

_LOCKED = re.compile(r"Could not set lock|Conflicting lock")
_HERE = re.compile(r"different configuration than existing connections|Unique file handle conflict")
_OTHER = re.compile(
    r"not a valid DuckDB database file|Extension .* not found|INSTALL sqlite|Loading external extensions is disabled"
)
_LOG = re.compile(r"Failure while replaying WAL file[^:]*: (?P<why>.*)")
_HOLDER = re.compile(r"held in (?P<exe>\S+)(?:.*?)\(PID (?P<pid>\d+)\)")
_DAMAGED = re.compile(
    r"Corrupt database file|Could not read enough bytes|Failed to deserialize|SerializationException"
)
_NO_LOCKS = re.compile(
    r"Could not set lock.*(No locks available|not supported|not implemented)", re.IGNORECASE
)
_NO_SPACE = re.compile(
    r"No space left|File too large|disk quota|not enough space|Could not write", re.IGNORECASE
)


def default_path() -> Path:
    """`$SIGNARIUM_DB`, else `./catalogue.duckdb`."""
    return Path(os.environ.get("SIGNARIUM_DB") or DEFAULT_PATH)


def wait_seconds(default: float) -> float:
    """How long to wait for the file: `$SIGNARIUM_WAIT`, else `default`.

    Raises:
        InvalidInput: if the variable is no number.
    """
    text = os.environ.get("SIGNARIUM_WAIT", "")
    try:
        seconds = float(text) if text else default
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise InvalidInput(f"SIGNARIUM_WAIT={text!r} is not a number of seconds")
    return seconds


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C is a KeyboardInterrupt: where it meets a query, DuckDB makes a RuntimeError of it."""
    try:
        yield
    except RuntimeError as error:
        if str(error) != "Query interrupted":
            raise
        raise KeyboardInterrupt from None


def create_engine(path: Path) -> Engine:
    """SQLAlchemy's engine over the file, made if missing; every connection opens and closes it."""
    import sqlalchemy
    from sqlalchemy.pool import NullPool

    from .schema import BLOCK_BYTES

    # The block size counts when the file is made. Vacuuming would merge the ragged row groups that shards leave, by
    # rewriting full ones at every commit: seen to cost a third of the file.
    settings = {"default_block_size": BLOCK_BYTES, "max_vacuum_tasks": 0, **_NO_EXTENSIONS}
    logger = logging.getLogger(f"{NullPool.__module__}.{NullPool.__qualname__}.{_POOL}")
    logger.addFilter(_is_no_interrupt)
    return sqlalchemy.create_engine(
        # The log of a file opened by the name of a link would lie beside the link, where nobody looks for it.
        sqlalchemy.URL.create("duckdb", database=str(path.resolve())),
        poolclass=NullPool,
        pool_logging_name=_POOL,
        # Closing ends what is open; a rollback before it would be one more call for an interrupt to meet.
        pool_reset_on_return=None,
        connect_args={"config": settings},
    )


def _is_no_interrupt(record: logging.LogRecord) -> bool:
    # Whoever presses Ctrl-C while a connection closes is not told of it as of an error.
    return record.exc_info is None or not isinstance(record.exc_info[1], KeyboardInterrupt)


class _Gate:
    """One file's readers and its writer among the threads of this process, which DuckDB lets in together only if
    all of them read. A writer that waits is let in before readers that come later."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = self._waiting = 0
        self._written = False

    @property
    def held(self) -> bool:
        """Whether a thread of this process reads or writes."""
        return self._written or self._readers > 0

    @contextmanager
    def hold(self, path: Path, write: bool, limit: float) -> Iterator[None]:
        """Raises CatalogueBusy if others hold the file for longer than `limit` seconds, HeldHere if something else in
        this process has it open."""
        with self._changed:
            self._waiting += write
            try:
                free = self._changed.wait_for(
                    lambda: not self._written and (not self._readers if write else not self._waiting), limit
                )
            finally:
                self._waiting -= write
                self._changed.notify_all()
            if not free:
                raise CatalogueBusy(path, "another thread of this process", limit)
            self._written = write
            self._readers += not write
            alone = write or self._readers == 1
        try:
            if alone and is_open_here(path):
                # DuckDB would open it a second time if it goes by another name, and drop its locks in closing that.
                raise HeldHere(path)
            yield
        finally:
            with self._changed:
                self._readers -= not write
                self._written = False
                self._changed.notify_all()


_gates: dict[Path, _Gate] = {}
_gates_lock = threading.Lock()


def _gate(path: Path) -> _Gate:
    with _gates_lock:
        return _gates.setdefault(path.resolve(), _Gate())


def must_not_be_written_here(path: Path) -> None:
    """Refuse a file that no other process can open, since this one has it open for writing, and not through us.

    Raises:
        HeldHere: at once.
    """
    if not _gate(path).held and is_open_here(path, to_write=True):
        raise HeldHere(path)


@contextmanager
def reading(path: Path, check: bool = True, memory: str = "") -> Iterator[duckdb.DuckDBPyConnection]:
    """A read-only DuckDB connection, for one request; if `check`, with this program's views.

    `memory` limits what DuckDB keeps ("256MB"), if no other thread reads the file already.

    Raises:
        CatalogueMissing, NotACatalogue, CatalogueBusy: if the file cannot be opened.
        CatalogueTooOld, CatalogueTooNew: if `check` and the schema is not this program's.
        CatalogueAltered: if `check` and somebody else changed its views.
    """
    must_be_file(path)
    with (
        _gate(path).hold(path, False, wait_seconds(READ_WAIT_S)),
        interruptible(),
        _reading(path, check, memory) as connection,
    ):
        yield connection


@contextmanager
def _reading(path: Path, check: bool, memory: str) -> Iterator[duckdb.DuckDBPyConnection]:
    import duckdb

    started = time.monotonic()
    pause = 0.005
    while True:
        try:
            connection = duckdb.connect(str(path.resolve()), read_only=True, config=FENCE)
            break
        except duckdb.Error as error:
            pause = _wait_or_raise(path, error, started, wait_seconds(READ_WAIT_S), pause)
    try:
        # Connections of one process to one file share its settings: another thread's may have locked them.
        with suppress(duckdb.InvalidInputException):
            if memory:
                connection.execute(f"SET memory_limit = '{memory}'")
            connection.execute("SET lock_configuration = true")
        if check:
            check_revision(path, revision_of(path, connection))
            from . import surface

            try:
                shadow(connection, **surface.shadowing())
            except Altered as error:
                raise CatalogueAltered(path, error.views) from None
        yield connection
    except duckdb.Error as error:
        if _DAMAGED.search(str(error)):
            raise NotACatalogue(path, "damaged: " + _first_line(error)) from error
        raise
    finally:
        connection.close()


@contextmanager
def writing(path: Path, check: bool = True) -> Iterator[Session]:
    """A SQLAlchemy session in one transaction: committed when the block ends, rolled back when it raises.

    Bulk rows go into the same transaction through `bulk.insert(session, ...)`. If `check` and the views in the file are
    not this program's, they are made anew first.

    Raises:
        The errors of `reading`, and DiskFull if the disk fills up before the commit.
    """
    must_be_file(path)
    with (
        _gate(path).hold(path, True, wait_seconds(WRITE_WAIT_S)),
        interruptible(),
        _writing(path, check) as session,
    ):
        yield session


@contextmanager
def _writing(path: Path, check: bool) -> Iterator[Session]:
    import duckdb
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.orm import Session

    from . import digests

    engine = create_engine(path)
    started = time.monotonic()
    pause = 0.005
    try:
        while True:
            try:
                connection = engine.connect()
                break
            except (duckdb.Error, DBAPIError) as error:
                pause = _wait_or_raise(path, _cause(error), started, wait_seconds(WRITE_WAIT_S), pause)
        with connection, Session(bind=connection, expire_on_commit=False) as session:
            raw = connection.exec_driver_sql
            if check:
                check_revision(path, _fetch_revision(path, lambda q: raw(q).fetchall()))
            try:
                if check:
                    from . import surface

                    if not surface.is_current(raw(STORED).fetchall()):
                        surface.install(raw)
                    # Ends the transaction of the check; else the session would join it and not commit.
                    connection.commit()
                digests.watch(session)
                yield session
                digests.keep(session)
                session.commit()
            except (duckdb.Error, DBAPIError) as error:
                # A database that gave up on itself cannot be rolled back; closing it does the same.
                with suppress(duckdb.Error, DBAPIError):
                    session.rollback()
                if is_disk_full(error):
                    raise DiskFull(path, during=True) from error
                if _DAMAGED.search(str(error)):
                    raise NotACatalogue(path, "damaged: " + _first_line(_cause(error))) from error
                raise
    finally:
        engine.dispose()


def check_revision(path: Path, revision: str) -> None:
    """Raise CatalogueTooOld or CatalogueTooNew unless `revision` is this program's."""
    from .revisions import HEAD, REVISIONS

    if revision == HEAD:
        return
    if revision in REVISIONS:
        raise CatalogueTooOld(path, revision)
    raise CatalogueTooNew(path, revision)


def is_disk_full(error: Exception) -> bool:
    """Whether this error of DuckDB says that the disk, or the quota on it, is used up."""
    return bool(_NO_SPACE.search(str(error)))


def _cause(error: Exception) -> Exception:
    return getattr(error, "orig", None) or error


def _wait_or_raise(path: Path, error: Exception, started: float, limit: float, pause: float) -> float:
    """Sleep if `error` is about the lock and time is left; the next pause. Else raise what it means."""
    text = str(error)
    if not _LOCKED.search(text) or _NO_LOCKS.search(text):
        raise not_opened(path, text) from error
    waited = time.monotonic() - started
    if waited >= limit:
        found = _HOLDER.search(text)
        holder = f"{Path(found['exe']).name} (PID {found['pid']})" if found else "another process"
        raise CatalogueBusy(path, holder, waited) from error
    # The jitter keeps a crowd of waiting processes from asking in step.
    time.sleep(min(pause, limit - waited) * random.uniform(0.5, 1.0))
    return min(pause * 1.6, 0.1)


def not_opened(path: Path, text: str) -> SignariumError:
    """What DuckDB's message means that it gave instead of opening the file."""
    if without := _NO_LOCKS.search(text):
        return no_locks(path, without[1].lower())
    if _HERE.search(text):
        return HeldHere(path)
    if "Permission denied" in text:
        return InvalidInput(f"{path} may not be opened (permission denied)")
    if _NO_SPACE.search(text):
        return DiskFull(path, during=True)
    if log := _LOG.search(text):
        return LeftoverLog(path, sidecar(path, ".wal"), _first_line(log["why"]))
    if _OTHER.search(text):
        return NotACatalogue(path, "not a DuckDB file")
    if "newer version" in text or "can only read versions" in text:
        return NotACatalogue(path, "written by a newer DuckDB; upgrade duckdb")
    return NotACatalogue(path, "damaged: " + _first_line(text))


def _first_line(error: object) -> str:
    return (str(error).splitlines() or ["?"])[0][:160]


def revision_of(path: Path, connection: duckdb.DuckDBPyConnection) -> str:
    """The schema revision of an open catalogue; NotACatalogue if it has none."""
    return _fetch_revision(path, lambda query: connection.execute(query).fetchall())


def _fetch_revision(path: Path, fetch: Callable[[str], Sequence[Any]]) -> str:
    import duckdb

    try:
        rows = fetch("SELECT version_num FROM alembic_version")
    except duckdb.CatalogException as error:
        raise NotACatalogue(path, "a DuckDB file without signarium's tables") from error
    except duckdb.Error as error:
        raise NotACatalogue(path, "damaged: " + _first_line(error)) from error
    except Exception as error:
        if isinstance(_cause(error), duckdb.CatalogException):
            raise NotACatalogue(path, "a DuckDB file without signarium's tables") from error
        raise
    if len(rows) != 1:
        raise NotACatalogue(path, "no single schema version in it")
    return str(rows[0][0])
