"""The SQL surface: every reader has the views and claims of its program, whoever wrote the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest
import small
import toymethod

import signarium
from signarium.catalog import bulk, parts, schema, store, surface
from signarium.catalog.errors import CatalogueAltered
from signarium.catalog.part import Claim, Control, Macro, Part, View
from signarium.catalog.verify import verify
from signarium.migrations import manage

CLAIM = Claim(
    "99.2", "nowhere", "a claim that came later", "0.5", "state", "bit_flip_rate_zero", "in_sample",
    (Control("alone", "alone", "near", bound=0.1),), centres=("",),
)  # fmt: skip


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[[Part], None]:
    """`parts.register` for one test."""
    monkeypatch.setattr(parts, "PARTS", list(parts.PARTS))
    return parts.register


def later(monkeypatch: pytest.MonkeyPatch, **more: object) -> None:
    """The program as it will be: with more in the last of its parts, and no further revision."""
    last = parts.PARTS[-1]
    changes = {name: (*getattr(last, name), *added) for name, added in more.items()}  # type: ignore[misc]
    monkeypatch.setattr(parts, "PARTS", [*parts.PARTS[:-1], replace(last, **changes)])


def claims(path: Path) -> set[str]:
    return set(signarium.open(path).evidence().column("claim_id").to_pylist())


def stored(path: Path) -> str:
    with store.reading(path, check=False) as connection:
        return connection.execute("SELECT hash FROM surface").fetchall()[0][0]


def test_a_claim_without_a_revision_reaches_a_catalogue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small.filled(tmp_path / "c.duckdb").path
    before, data = claims(path), path.read_bytes()
    later(monkeypatch, claims=(CLAIM,))
    # Nobody wrote to it: each way of reading has it, and the file stays as it is.
    assert claims(path) == before | {"99.2"}
    found = signarium.open(path).sql("SELECT DISTINCT verdict FROM evidence WHERE claim_id = '99.2'")
    assert found.column("verdict").to_pylist() == ["not measured"]
    assert path.read_bytes() == data
    # Somebody writes: now the file has it.
    with store.writing(path):
        pass
    assert stored(path) == surface.fingerprint()
    with store.reading(path, check=False) as connection:
        assert connection.execute("SELECT 1 FROM evidence WHERE claim_id = '99.2'").fetchall()


def test_a_job_that_finds_nothing_to_do_brings_the_surface(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small.filled(tmp_path / "c.duckdb").path
    later(monkeypatch, claims=(CLAIM,))
    assert stored(path) != surface.fingerprint()
    assert manage.ensure(path) is False
    assert stored(path) == surface.fingerprint()
    data = path.read_bytes()
    assert manage.ensure(path) is False
    assert path.read_bytes() == data


def test_what_a_reader_sees_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A view and a macro that changed, in SQL, in its process of its own, and in a filter of `nearest`."""
    path = small.filled(tmp_path / "c.duckdb").path
    old = parts.view("documents")
    view = View("lengths", "", {"n": ""}, f"SELECT n_tokens AS n FROM ({old.query})")
    macro = Macro("twice", ("x",), "", "2 * x")
    later(monkeypatch, views=(view,), macros=(macro,))
    query = "SELECT twice(max(n)) AS n FROM lengths"
    with store.reading(path) as connection:
        assert connection.execute(query).fetchall() == [(2 * max(small.WINDOWS),)]
        assert connection.execute("SELECT count(*) FROM model").fetchall() == [(1,)]
    assert signarium.open(path).sql(query).to_pylist() == [{"n": 2 * max(small.WINDOWS)}]
    answer = signarium.open(path).nearest(
        "type: t3",
        k=9,
        where=f"token_id < (SELECT max(n) FROM lengths) AND twice(token_id) < {2 * max(small.WINDOWS)}",
    )
    assert sorted(answer.table.column("token_id").to_pylist()) == list(range(max(small.WINDOWS)))


def test_a_method_from_outside(tmp_path: Path, register: Callable[[Part], None]) -> None:
    """Its table is made in a new catalogue, and it is listed, verified, judged and named without an edit elsewhere."""
    register(toymethod.PART)
    path = tmp_path / "new.duckdb"
    assert manage.ensure(path)
    with store.writing(path) as session:
        session.add_all(small.model_and_site())
        session.add(small.run("toy-run", "toy"))
        rows = {
            "run_id": ["toy-run"] * 3,
            "site_id": ["s0"] * 3,
            "token_id": [0, 1, 1],
            "positive": [3, 4, 4],
            "note": ["", "", ""],
        }
        bulk.insert(session, schema.toy_row, rows)
        figures = [
            bulk.Figure("s0", "toy", "", "toy_share", control, "in_sample", value, 3)
            for control, value in (("none", 0.5), ("coins", 0.52))
        ]
        bulk.insert_figures(session, "toy-run", figures)
    catalogue = signarium.open(path)
    listed = catalogue.sql("SELECT * FROM toys ORDER BY token_id")
    assert listed.column_names == list(toymethod.VIEW.columns)
    assert listed.column("positive").to_pylist() == [3, 4, 4]
    assert dict(zip(*catalogue.info().to_pydict().values(), strict=True))["toys"] == "3"
    assert {one.check: one.wrong for one in verify(path) if "toys" in one.check} == {
        "toys without their run": 0,
        "toys without their site": 0,
        "toys stored twice": 1,
        "toys that are not as they were written": 0,
    }
    verdicts = catalogue.sql(
        "SELECT control, value, verdict FROM evidence WHERE claim_id = '99.1' ORDER BY control"
    )
    assert verdicts.to_pylist() == [
        {"control": "fair coins", "value": 0.5, "verdict": "survives"},
        {"control": "the published range", "value": 0.5, "verdict": "survives"},
    ]
    assert parts.word("coins:3", "toy").about == "as many fair coins"


def test_a_method_from_outside_on_a_catalogue_that_is_there(
    tmp_path: Path, register: Callable[[Part], None]
) -> None:
    path = small.filled(tmp_path / "c.duckdb").path
    register(toymethod.PART)
    # No table yet: its view is empty, in either process.
    assert signarium.open(path).sql("SELECT * FROM toys").num_rows == 0
    assert dict(zip(*signarium.open(path).info().to_pydict().values(), strict=True))["toys"] == "0"
    assert all(one.ok for one in verify(path))
    with store.writing(path) as session:
        rows = {"run_id": ["types"], "site_id": ["s0"], "token_id": [1], "positive": [2], "note": ["x"]}
        bulk.insert(session, schema.toy_row, rows)
    assert signarium.open(path).sql("SELECT positive FROM toys").to_pylist() == [{"positive": 2}]


def test_what_cannot_be_registered(register: Callable[[Part], None]) -> None:
    register(toymethod.PART)
    with pytest.raises(ValueError, match="'toy' already"):
        register(toymethod.PART)
    with pytest.raises(ValueError, match="'toys' already"):
        register(Part("other", views=(toymethod.VIEW,)))


def test_a_view_that_somebody_changed(tmp_path: Path) -> None:
    """The file says that its views are this program's: every reader compares them, and an upgrade restores them."""
    path = small.filled(tmp_path / "c.duckdb").path
    (tmp_path / "secret").write_text("SECRET")
    query = f"SELECT * REPLACE ((SELECT content FROM read_text('{tmp_path / 'secret'}')) AS name) FROM stolen"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE stolen AS FROM models")
        connection.execute(f"CREATE OR REPLACE VIEW models AS {query}")
        connection.execute("DROP VIEW evidence")
    for read in (lambda c: c.rows("models"), lambda c: c.sql("FROM sites"), lambda c: c.nearest("type: t3")):
        with pytest.raises(CatalogueAltered, match=r"\((models, evidence|evidence, models)\): .* db upgrade"):
            read(signarium.Catalogue(path))
    assert manage.upgrade(path) is None
    assert signarium.open(path).sql("SELECT name FROM models").to_pylist() == [{"name": "tiny"}]
    assert claims(path)


HOSTILE = {
    "a view of another name": "CREATE VIEW other AS SELECT content AS x FROM read_text('{0}')",
    "a macro": "CREATE MACRO other() AS (SELECT content FROM read_text('{0}')); CREATE VIEW v AS SELECT other() AS x",
    "a table macro": "CREATE MACRO other() AS TABLE SELECT content AS x FROM read_text('{0}')",
    "a log": "CREATE VIEW other AS FROM enable_logging(storage := 'file', storage_path := '{0}.log')",
    "an extension": "CREATE MACRO other(place) AS TABLE FROM read_csv(place)",
    "the table behind a view": "ALTER TABLE model RENAME TO kept; CREATE VIEW model AS SELECT * REPLACE ("
    "(SELECT content FROM read_text('{0}')) AS name) FROM kept",
}
ASKED = {
    "a macro": "FROM v",
    "a table macro": "FROM other()",
    "an extension": "FROM other('https://127.0.0.1:9/x')",
    "the table behind a view": "FROM models",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_else_a_file_may_hold_reaches_nothing(tmp_path: Path, what: str) -> None:
    path, secret = small.filled(tmp_path / "c.duckdb").path, tmp_path / "secret"
    secret.write_text("SECRET")
    with duckdb.connect(str(path)) as connection:
        for statement in HOSTILE[what].split("; "):
            connection.execute(statement.format(secret))
    with store.reading(path) as connection:
        with pytest.raises(duckdb.Error) as caught:
            connection.execute(ASKED.get(what, "FROM other")).fetchall()
            connection.execute("FROM models").fetchall()  # which a log would hold
        assert "SECRET" not in str(caught.value)
        for setting in ("enable_external_access = true", "autoload_known_extensions = true"):
            with pytest.raises(duckdb.Error):
                connection.execute(f"SET {setting}")
        with pytest.raises(duckdb.Error):
            connection.execute("LOAD httpfs")
    assert {file.name for file in tmp_path.iterdir()} == {"c.duckdb", "secret"}
