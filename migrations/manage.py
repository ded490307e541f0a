"""Create a catalogue at the newest revision, and upgrade an older one without ever risking it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from ..catalog import digests, store, surface
from ..catalog.errors import (
    CatalogueMissing,
    CatalogueTooNew,
    DiskFull,
    InvalidInput,
    MigrationFailed,
    SignariumError,
)
from ..catalog.files import replacing
from ..catalog.place import must_have_no_log
from ..catalog.shadow import STORED, altered_views

SCRIPTS = Path(__file__).parent


def config(connection: sqlalchemy.Connection | None = None, scripts: Path = SCRIPTS) -> Config:
    """Alembic's configuration, with no ini file: the package is the environment."""
    made = Config()
    made.set_main_option("script_location", str(scripts).replace("%", "%%"))
    made.attributes["connection"] = connection
    return made


def revisions(scripts: Path = SCRIPTS) -> tuple[str, ...]:
    """Every revision in a folder of migrations, oldest first."""
    directory = ScriptDirectory.from_config(config(scripts=scripts))
    return tuple(one.revision for one in directory.walk_revisions())[::-1]


def migrate(path: Path, revision: str = "head", scripts: Path = SCRIPTS) -> None:
    """Bring the DuckDB file at `path` (made if missing) to `revision`, in one transaction, views included."""
    engine = store.create_engine(path)
    try:
        with store.interruptible(), engine.begin() as connection:
            command.upgrade(config(connection, scripts), revision)
            if revision == "head":
                surface.install(connection.exec_driver_sql)
    finally:
        engine.dispose()


def ensure(path: Path) -> bool:
    """Make a catalogue at head if there is none; whether one was made. The caller holds `store.job_lock`.

    The file appears whole or not at all. One that is there gets this program's views.

    Raises:
        InvalidInput, DiskFull: if it cannot be made there.
        The errors of `store.reading` for a file that is there.
    """
    try:
        with store.reading(path) as connection:
            current = surface.is_current(connection.execute(STORED).fetchall())
        if not current:
            with store.writing(path):
                pass
        return False
    except CatalogueMissing:
        pass
    must_have_no_log(path)
    try:
        with replacing(path.resolve()) as fresh:
            # DuckDB's message for a folder that is missing or may not be written to is not for users.
            os.close(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
            fresh.unlink()
            migrate(fresh)
            _must_be_complete(fresh)
    except OSError as error:
        raise _cannot_write(path, error) from error
    except Exception as error:
        if store.is_disk_full(error):
            raise DiskFull(path, during=True) from error
        raise
    return True


def upgrade(path: Path, scripts: Path = SCRIPTS) -> Path | None:
    """Upgrade the catalogue at `path` to head; the backup that was kept, or None if it is there already.

    One that is there gets this program's views if its own are others.

    A copy is upgraded and then takes the file's place, so there is a whole file at every moment.

    Raises:
        MigrationFailed: if a revision fails; the file is as it was.
        CatalogueTooNew, NotACatalogue, CatalogueMissing, IngestRunning, DiskFull, InvalidInput.
    """
    with store.job_lock(path):
        known = revisions(scripts)
        revision = _revision(path)
        if revision == known[-1]:
            with store.reading(path, check=False) as connection:
                altered = altered_views(connection, surface.shadowing()["views"])
            if altered:
                with store.writing(path) as session:
                    surface.install(session.connection().exec_driver_sql)
            return None
        if revision not in known:
            raise CatalogueTooNew(path, revision)
        file = path.resolve()
        log = store.sidecar(path, ".wal")
        if log.exists():
            # What a killed job committed last stands in the log; this brings it into the file.
            with store.writing(path, check=False):
                pass
            if log.exists():
                raise DiskFull(path, during=True)
        try:
            needed, free = 2 * file.stat().st_size, shutil.disk_usage(file.parent).free
            if free < needed:
                raise DiskFull(path, needed, free)
            with replacing(file) as copy:
                # Under the read lock no writer changes the file while it is copied.
                with store.reading(path, check=False):
                    _copy(file, copy)
                migrate(copy, scripts=scripts)
                with store.writing(copy, check=False) as session:
                    digests.cover(session)
                _must_be_complete(copy)
                if _revision(copy) != known[-1]:
                    raise MigrationFailed(path, "the copy is not at the newest schema afterwards")
                backup = _keep(file, revision)
        except SignariumError:
            raise
        except OSError as error:
            raise _cannot_write(path, error) from error
        except Exception as error:
            if store.is_disk_full(error):
                raise DiskFull(path, during=True) from error
            raise MigrationFailed(path, (str(error).splitlines() or [type(error).__name__])[0]) from error
        return backup


def _revision(path: Path) -> str:
    with store.reading(path, check=False) as connection:
        return store.revision_of(path, connection)


def _must_be_complete(path: Path) -> None:
    """Before it takes a name that counts: the file is whole without a log, which a full disk can leave."""
    if store.sidecar(path, ".wal").exists():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _keep(file: Path, revision: str) -> Path:
    """A second name for the file as it is, which nothing has yet: what comes next replaces it and does not write to it."""
    number = 0
    while True:
        number += 1
        backup = store.sidecar(file, f".{revision}.{number}.bak" if number > 1 else f".{revision}.bak")
        try:
            os.link(file, backup)
        except FileExistsError:
            # A try that was killed may have left it.
            if not os.path.samestat(file.stat(), backup.lstat()):
                continue
        except OSError:
            # Some file systems have no hard links.
            if os.path.lexists(backup):
                continue
            with replacing(backup, sync=False) as made:
                _copy(file, made)
        return backup


_COPY = """
import shutil, sys
try:
    shutil.copy2(*sys.argv[1:])
except OSError as error:
    sys.exit(error.errno or 1)
"""


def _copy(file: Path, copy: Path) -> None:
    """Copies a catalogue, in a process of its own: closing the file here would drop the locks that this one has on it."""
    child = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _COPY, file, copy],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if child.returncode:
        number = child.returncode if child.returncode > 0 else errno.EINTR
        raise OSError(number, os.strerror(number), str(copy))


def _cannot_write(path: Path, error: OSError) -> SignariumError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskFull(path, during=True)
    return InvalidInput(
        f"cannot write at {path} ({error.strerror or error})",
        "pass --db PATH in a folder that you may write to",
    )
