"""Migrations: one history, every step on a file with rows, and never a moment without a whole file."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
from pathlib import Path

import duckdb
import pytest
import small
import sqlalchemy
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from digest import Commands
from effort import is_full

from signarium.catalog import parts, revisions, schema, store, verify
from signarium.catalog.errors import (
    CatalogueMissing,
    CatalogueTooNew,
    IngestRunning,
    InvalidInput,
    LeftoverLog,
    MigrationFailed,
    NotACatalogue,
    SignariumError,
)
from signarium.migrations import manage

pytestmark = pytest.mark.long

GOOD = f"""
import sqlalchemy as sa
from alembic import op
revision = "later"
down_revision = "{revisions.HEAD}"
def upgrade():
    op.add_column("code_set", sa.Column("note", sa.String(), nullable=True))
    op.add_column("code_row", sa.Column("extra", sa.Integer(), server_default="7"))
    {{more}}
"""

BACKUP = f"c.duckdb.{revisions.HEAD}.bak"


def scripts(folder: Path, more: str = "pass") -> Path:
    """The migrations with one later revision."""
    made = folder / "scripts"
    ignored = shutil.ignore_patterns("__pycache__", "manage.py", "__init__.py")
    shutil.copytree(manage.SCRIPTS, made, ignore=ignored)
    (made / "versions" / "later.py").write_text(GOOD.format(more=more))
    return made


@pytest.fixture
def filled(tmp_path: Path) -> small.Small:
    home = tmp_path / "home"
    home.mkdir()
    return small.filled(home / "c.duckdb")


def names(path: Path) -> list[str]:
    return sorted(one.name for one in path.parent.iterdir())


def counts(path: Path) -> dict[str, int]:
    with store.reading(path, check=False) as connection:
        tables = [row[0] for row in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
        return {one: connection.execute(f"SELECT count(*) FROM {one}").fetchall()[0][0] for one in tables}


def revision(path: Path) -> str:
    with store.reading(path, check=False) as connection:
        return store.revision_of(path, connection)


def test_autogenerate_finds_nothing(filled: small.Small) -> None:
    engine = store.create_engine(filled.path)
    with engine.begin() as connection:
        command.check(manage.config(connection))
    with engine.begin() as connection:
        # The check itself sees what is missing.
        connection.exec_driver_sql("ALTER TABLE site DROP COLUMN layer")
        found = compare_metadata(MigrationContext.configure(connection), schema.metadata())
        assert any("layer" in str(one) for one in found)
    engine.dispose()


def test_the_history_is_the_one_that_readers_know() -> None:
    assert manage.revisions() == revisions.REVISIONS
    assert revisions.REVISIONS[-1] == revisions.HEAD


def test_every_revision_on_a_file_with_rows(tmp_path: Path) -> None:
    """Each revision is reached from the one before, with a row in every table that there is."""
    path = tmp_path / "c.duckdb"
    engine = store.create_engine(path)
    rows: dict[str, int] = {}
    for step in manage.revisions():
        manage.migrate(path, step)
        with engine.begin() as connection:
            found = sqlalchemy.inspect(connection)
            for table in found.get_table_names():
                if table == "alembic_version":
                    continue
                values = {c["name"]: sample(c["type"], rows.get(table, 0)) for c in found.get_columns(table)}
                target = sqlalchemy.table(table, *(sqlalchemy.column(name) for name in values))
                connection.execute(target.insert().values(values))
                rows[table] = rows.get(table, 0) + 1
        assert revision(path) == step
        if step == "0002":
            # Measurements moved to a table without a key.
            rows["measurement_row"] += rows.pop("measurement")
    manage.migrate(path)
    engine.dispose()
    # Installing the surface leaves one row of it.
    assert counts(path) == rows | {"alembic_version": 1, "surface": 1}
    with store.reading(path) as connection:
        for view in parts.views().values():
            connection.execute(f"SELECT * FROM {view.name}").fetchall()


def sample(kind: object, i: int) -> object:
    known = {"VARCHAR": f"{i}", "BLOB": b"\0", "BOOLEAN": True, "TIMESTAMP": small.WHEN}
    return next((value for name, value in known.items() if str(kind).startswith(name)), i)


def test_upgrade_keeps_rows_and_a_backup(filled: small.Small, tmp_path: Path) -> None:
    path = filled.path
    before, old = counts(path), path.read_bytes()
    backup = manage.upgrade(path, scripts(tmp_path))
    assert backup == path.with_name(BACKUP)
    assert names(path) == ["c.duckdb", BACKUP]
    assert revision(path) == "later"
    assert counts(path) == before
    with store.reading(path, check=False) as connection:
        assert connection.execute("SELECT DISTINCT extra FROM code_row").fetchall() == [(7,)]
        assert connection.execute("SELECT DISTINCT note FROM code_set").fetchall() == [(None,)]
        assert connection.execute("SELECT count(*) FROM types").fetchone() == (2 * small.N_TYPES,)
    assert backup.read_bytes() == old
    assert all(one.ok for one in verify.verify(backup))
    # Again: nothing to do.
    new = path.read_bytes()
    assert manage._keep(path, revisions.HEAD) == path.with_name(BACKUP.replace(".bak", ".2.bak"))
    assert backup.read_bytes() == old
    path.with_name(BACKUP.replace(".bak", ".2.bak")).unlink()
    assert manage.upgrade(path, tmp_path / "scripts") is None
    assert (path.read_bytes(), names(path)) == (new, ["c.duckdb", BACKUP])


def test_upgrade_of_one_that_is_up_to_date(filled: small.Small) -> None:
    before = filled.path.read_bytes()
    assert manage.upgrade(filled.path) is None
    assert filled.path.read_bytes() == before
    assert names(filled.path) == ["c.duckdb"]


FAILING = {
    "raises": "raise ValueError('no luck')",
    "raises without words": "raise KeyError()",
    "bad SQL": "op.execute('SELECT nothing FROM nowhere')",
    "error of the system": "raise OSError(5, 'Input/output error')",
}


@pytest.mark.parametrize("name", FAILING)
def test_a_failing_revision_changes_nothing(filled: small.Small, tmp_path: Path, name: str) -> None:
    before = filled.path.read_bytes()
    made = scripts(tmp_path, FAILING[name])
    with pytest.raises(SignariumError) as caught:
        manage.upgrade(filled.path, made)
    assert isinstance(caught.value, MigrationFailed) or name == "error of the system"
    assert "\n" not in str(caught.value)
    assert filled.path.read_bytes() == before
    assert names(filled.path) == ["c.duckdb"]
    assert all(one.ok for one in verify.verify(filled.path))


def test_what_cannot_be_upgraded(tmp_path: Path) -> None:
    with pytest.raises(CatalogueMissing):
        manage.upgrade(tmp_path / "c.duckdb")
    text = tmp_path / "text.duckdb"
    text.write_text("hello")
    with pytest.raises(NotACatalogue):
        manage.upgrade(text)
    newer = small.empty(tmp_path / "newer.duckdb")
    with store.writing(newer) as session:
        session.execute(sqlalchemy.text("UPDATE alembic_version SET version_num = '9999'"))
    before = newer.read_bytes()
    with pytest.raises(CatalogueTooNew):
        manage.upgrade(newer)
    assert newer.read_bytes() == before
    with store.job_lock(newer), pytest.raises(IngestRunning):
        manage.upgrade(newer)
    assert names(newer) == ["newer.duckdb", "text.duckdb"]


KILLED_COMMIT = """
import os, signal, sys
from pathlib import Path
from signarium.catalog import store
from sqlalchemy import text
with store.writing(Path(sys.argv[1])) as session:
    session.execute(text("INSERT INTO index_part VALUES (5, 5, TIMESTAMP '2026-01-01')"))
    session.commit()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_stands_in_the_log_is_upgraded_too(filled: small.Small, tmp_path: Path) -> None:
    child = small.python(KILLED_COMMIT, filled.path)
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert store.sidecar(filled.path, ".wal").exists()
    backup = manage.upgrade(filled.path, scripts(tmp_path))
    assert backup is not None
    assert counts(filled.path)["index_part"] == counts(backup)["index_part"] == 1
    assert names(filled.path) == ["c.duckdb", BACKUP]


def test_a_link_stays_a_link(filled: small.Small, tmp_path: Path) -> None:
    link = tmp_path / "link.duckdb"
    link.symlink_to(filled.path)
    manage.upgrade(link, scripts(tmp_path))
    assert link.is_symlink()
    assert revision(filled.path) == revision(link) == "later"


UPGRADE = """
import sys
from pathlib import Path
from signarium.migrations import manage
manage.upgrade(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_kill_in_the_middle_of_an_upgrade(warm: Commands, filled: small.Small, tmp_path: Path) -> None:
    path, made = filled.path, scripts(tmp_path, "__import__('time').sleep(0.15)")
    before, rows = path.read_bytes(), counts(path)
    rng = random.Random(0)
    states = []
    for _ in range(6 if is_full() else 4):
        for one in path.parent.iterdir():
            one.unlink()
        path.write_bytes(before)
        ended = warm.run(path, made, code=UPGRADE, kill_after=rng.uniform(0.0, 0.6))
        assert ended.code in (0, -signal.SIGKILL), ended.err
        states.append(revision(path))
        assert counts(path) == rows
        assert states[-1] == "later" or path.read_bytes() == before
        # And the same command goes on from there.
        manage.upgrade(path, made)
        assert revision(path) == "later"
        assert not [name for name in names(path) if name.endswith((".wal", ".tmp"))]
    assert revisions.HEAD in states


@pytest.mark.parametrize("at", ["copy", "keep", "replace", "between"])
def test_kill_at_each_step_of_the_exchange(
    warm: Commands, filled: small.Small, tmp_path: Path, at: str
) -> None:
    """The moments that random kills seldom hit: the process dies as it calls, or right after."""
    path, made = filled.path, scripts(tmp_path)
    patch = {
        "copy": "manage._copy = die",
        "keep": "manage.os.link = die",
        "replace": "manage.os.replace = die",
        "between": "real = os.link\ndef once(*a):\n    real(*a)\n    die()\nmanage.os.link = once",
    }[at]
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom signarium.migrations import manage\n"
        "def die(*a, **k): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{patch}\nmanage.upgrade(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    rows = counts(path)
    ended = warm.run(path, made, code=code)
    assert ended.code == -signal.SIGKILL, ended.err
    assert (revision(path), counts(path)) == (revisions.HEAD, rows)
    manage.upgrade(path, made)
    assert (revision(path), counts(path)) == ("later", rows)
    assert names(path) == ["c.duckdb", BACKUP]


# ---- making one ---------------------------------------------------------------------------------


def test_ensure_twice(tmp_path: Path) -> None:
    path = tmp_path / "c.duckdb"
    assert manage.ensure(path) is True
    before = path.read_bytes()
    assert manage.ensure(path) is False
    assert path.read_bytes() == before
    assert names(path) == ["c.duckdb"]
    assert revision(path) == revisions.HEAD
    # Each table and view of an empty file takes a part of a block of 64 KiB.
    assert len(before) < 1_250_000


def test_ensure_beside_others(tmp_path: Path) -> None:
    path = tmp_path / "c.duckdb"
    others = ["c.duckdb.new", "c.duckdb.new.wal", "c.duckdb.upgrading"]
    for name in others:
        path.with_name(name).write_bytes(b"somebody's")
    assert manage.ensure(path)
    assert names(path) == ["c.duckdb", *others]
    path.rename(tmp_path / "moved.duckdb")
    store.sidecar(path, ".wal").write_bytes(b"a log")
    with pytest.raises(LeftoverLog, match="its catalogue is gone"):
        manage.ensure(path)
    assert not path.exists()


def test_ensure_looks_at_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "c.duckdb"
    path.write_text("hello")
    with pytest.raises(NotACatalogue):
        manage.ensure(path)
    assert path.read_text() == "hello"


ENSURE = """
import sys
from pathlib import Path
from signarium.migrations import manage
manage.ensure(Path(sys.argv[1]))
"""


def test_kill_while_it_is_made(warm: Commands, tmp_path: Path) -> None:
    path = tmp_path / "home" / "c.duckdb"
    path.parent.mkdir()
    rng = random.Random(1)
    seen = set()
    for _ in range(6):
        for one in path.parent.iterdir():
            one.unlink()
        ended = warm.run(path, code=ENSURE, kill_after=rng.uniform(0.0, 0.5))
        assert ended.code in (0, -signal.SIGKILL), ended.err
        seen.add(path.exists())
        if path.exists():
            assert revision(path) == revisions.HEAD
        with store.job_lock(path):
            manage.ensure(path)
        assert names(path) == ["c.duckdb"]
        assert counts(path)["model"] == 0
    assert False in seen


NOBODY = """
import sys
from pathlib import Path
from signarium.catalog import store
from signarium.catalog.errors import InvalidInput
from signarium.migrations import manage
path = Path(sys.argv[1])
# All that is imported on the way, while it may still be read.
manage.ensure(Path(sys.argv[2]))
if len(sys.argv) > 3:
    import os
    os.setuid(int(sys.argv[3]))
for make in (lambda: manage.ensure(path), lambda: store.job_lock(path).__enter__()):
    try:
        make()
        print("made")
    except InvalidInput as error:
        print(error)
"""


@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_a_folder_that_may_not_be_written_to(tmp_path: Path, mode: int) -> None:
    # Not below pytest's own folder, which nobody else may even enter.
    home = Path(tempfile.mkdtemp())
    home.chmod(mode)
    # The superuser may write anywhere, and so becomes somebody else.
    arguments = ["65534"] if os.getuid() == 0 else []
    child = small.python(NOBODY, home / "c.duckdb", tmp_path / "other.duckdb", *arguments)
    output, errors = child.communicate(timeout=60)
    assert errors == ""
    home.chmod(0o755)
    lines = output.splitlines()
    assert len(lines) == 2
    assert all("permission denied" in one.lower() and str(home) in one for one in lines)
    assert list(home.iterdir()) == []
    home.rmdir()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none" / "c.duckdb", tmp_path / "file" / "c.duckdb"):
        (tmp_path / "file").write_text("")
        with pytest.raises(InvalidInput, match="cannot write at"):
            manage.ensure(path)
    assert names(tmp_path / "x") == ["file"]


def test_rows_from_before_digests_get_them(filled: small.Small) -> None:
    """In the upgrade: from then on each change is seen."""
    path = filled.path
    with duckdb.connect(str(path)) as connection:
        connection.execute("DROP TABLE digest_row; UPDATE alembic_version SET version_num = '0006'")
    assert manage.upgrade(path) is not None
    findings = verify.verify(path)
    assert all(one.ok and "not covered" not in one.check for one in findings)
    with duckdb.connect(str(path)) as connection:
        connection.execute("UPDATE feature_row SET auc_rotated = 0.71")
    assert [one.check for one in verify.verify(path) if not one.ok] == [
        "features that are not as they were written"
    ]
