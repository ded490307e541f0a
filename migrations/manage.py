"""Create a catalogue at the newest revision, and upgrade an older one without ever risking it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import sqlalchemy
from alembic import command
from alembic.config import Config
from sqlalchemy.pool import NullPool

from ..catalog import store, views
from ..catalog.errors import CatalogueTooNew, DiskFull, MigrationFailed
from ..catalog.schema import BLOCK_BYTES, HEAD, REVISIONS

SCRIPTS = Path(__file__).parent


def config(connection: sqlalchemy.Connection | None = None, scripts: Path = SCRIPTS) -> Config:
    """Alembic's configuration, with no ini file: the package is the environment."""
    made = Config()
    made.set_main_option("script_location", str(scripts).replace("%", "%%"))
    made.attributes["connection"] = connection
    return made


def migrate(path: Path, revision: str = "head", scripts: Path = SCRIPTS) -> None:
    """Bring the DuckDB file at `path` (made if missing) to `revision`, in one transaction, views included."""
    engine = sqlalchemy.create_engine(
        sqlalchemy.URL.create("duckdb", database=str(path)),
        poolclass=NullPool,
        connect_args={"config": {"default_block_size": str(BLOCK_BYTES)}},
    )
    try:
        with engine.begin() as connection:
            command.upgrade(config(connection, scripts), revision)
            if revision == "head":
                views.install(connection.exec_driver_sql)
    finally:
        engine.dispose()


def ensure(path: Path) -> bool:
    """Make a catalogue at head if there is none; whether one was made. The caller holds `store.job_lock`.

    The file appears whole or not at all.
    """
    if path.exists():
        with store.reading(path):
            return False
    fresh = store.sidecar(path, ".new")
    _remove(fresh)
    try:
        migrate(fresh)
        os.replace(fresh, path)
    except OSError as error:
        raise DiskFull(path, during=True) from error
    finally:
        _remove(fresh)
    return True


def upgrade(path: Path, scripts: Path = SCRIPTS) -> Path | None:
    """Upgrade the catalogue at `path` to head; the backup that was kept, or None if there was nothing to do.

    A copy is upgraded and then takes the file's place, so the file is whole at every moment.

    Raises:
        MigrationFailed: if a revision fails; the file is as it was.
        CatalogueTooNew, NotACatalogue, CatalogueMissing, IngestRunning.
    """
    with store.job_lock(path):
        with store.reading(path, check=False) as connection:
            revision = store.revision_of(path, connection)
            if revision == HEAD and scripts == SCRIPTS:
                return None
            if revision not in REVISIONS:
                raise CatalogueTooNew(path, revision)
            # Under the read lock no writer changes the file while it is copied.
            copy = store.sidecar(path, ".upgrading")
            _remove(copy)
            needed, free = path.stat().st_size * 2, shutil.disk_usage(path.parent).free
            if free < needed:
                raise DiskFull(path, needed, free)
            shutil.copy2(path, copy)
            log = store.sidecar(path, ".wal")
            if log.exists():
                shutil.copy2(log, store.sidecar(copy, ".wal"))
        backup = store.sidecar(path, f".{revision}.bak")
        try:
            migrate(copy, scripts=scripts)
            os.replace(path, backup)
            os.replace(copy, path)
            # The log was replayed into the copy; beside the new file it would be somebody else's.
            log.unlink(missing_ok=True)
        except Exception as error:
            raise MigrationFailed(path, str(error).splitlines()[0]) from error
        finally:
            _remove(copy)
        return backup


def _remove(path: Path) -> None:
    for one in (path, store.sidecar(path, ".wal")):
        one.unlink(missing_ok=True)
