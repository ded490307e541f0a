"""Create a catalogue at the newest revision, and upgrade an older one without ever risking it."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from ..catalog import store, surface
from ..catalog.errors import (
    CatalogueMissing,
    CatalogueTooNew,
    DiskFull,
    InvalidInput,
    MigrationFailed,
    SignariumError,
)
from ..catalog.files import replacing
from ..catalog.shadow import STORED

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
    fresh = store.sidecar(path, ".new")
    try:
        _remove(fresh)
        # DuckDB's message for a folder that is missing or may not be written to is not for users.
        os.close(os.open(fresh, os.O_WRONLY | os.O_CREAT, 0o644))
        fresh.unlink()
        with replacing(path.resolve(), fresh):
            migrate(fresh)
            _must_be_complete(fresh)
    except OSError as error:
        raise _cannot_write(path, error) from error
    except Exception as error:
        if store.is_disk_full(error):
            raise DiskFull(path, during=True) from error
        raise
    finally:
        with suppress(OSError):
            _remove(fresh)
    return True


def upgrade(path: Path, scripts: Path = SCRIPTS) -> Path | None:
    """Upgrade the catalogue at `path` to head; the backup that was kept, or None if there was nothing to do.

    A copy is upgraded and then takes the file's place, so there is a whole file at every moment.

    Raises:
        MigrationFailed: if a revision fails; the file is as it was.
        CatalogueTooNew, NotACatalogue, CatalogueMissing, IngestRunning, DiskFull, InvalidInput.
    """
    with store.job_lock(path):
        known = revisions(scripts)
        revision = _revision(path)
        if revision == known[-1]:
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
        copy = store.sidecar(path, ".upgrading")
        backup = store.sidecar(path, f".{revision}.bak")
        try:
            _remove(copy)
            needed, free = 2 * file.stat().st_size, shutil.disk_usage(file.parent).free
            if free < needed:
                raise DiskFull(path, needed, free)
            with replacing(file, copy):
                # Under the read lock no writer changes the file while it is copied.
                with store.reading(path, check=False):
                    shutil.copy2(file, copy)
                migrate(copy, scripts=scripts)
                _must_be_complete(copy)
                if _revision(copy) != known[-1]:
                    raise MigrationFailed(path, "the copy is not at the newest schema afterwards")
                _keep(file, backup)
        except SignariumError:
            raise
        except OSError as error:
            raise _cannot_write(path, error) from error
        except Exception as error:
            if store.is_disk_full(error):
                raise DiskFull(path, during=True) from error
            raise MigrationFailed(path, (str(error).splitlines() or [type(error).__name__])[0]) from error
        finally:
            _remove(copy)
        return backup


def _revision(path: Path) -> str:
    with store.reading(path, check=False) as connection:
        return store.revision_of(path, connection)


def _must_be_complete(path: Path) -> None:
    """Before it takes a name that counts: the file is whole without a log, which a full disk can leave."""
    if store.sidecar(path, ".wal").exists():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _keep(file: Path, backup: Path) -> None:
    """A second name for the file as it is: what comes next replaces it and does not write to it."""
    with replacing(backup, store.sidecar(file, ".keeping"), sync=False) as temporary:
        try:
            os.link(file, temporary)
        except OSError:
            # Some file systems have no hard links.
            shutil.copy2(file, temporary)


def _cannot_write(path: Path, error: OSError) -> SignariumError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskFull(path, during=True)
    return InvalidInput(
        f"cannot write at {path} ({error.strerror or error})",
        "pass --db PATH in a folder that you may write to",
    )


def _remove(path: Path) -> None:
    for one in (path, store.sidecar(path, ".wal")):
        one.unlink(missing_ok=True)
