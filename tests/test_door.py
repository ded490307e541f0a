"""`import signarium`: what a notebook uses."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import featured
import pyarrow as pa
import pytest
from made import DECODER, ENCODER, Made, copied

import signarium
from signarium.catalog import revisions
from signarium.catalog.errors import (
    CatalogueMissing,
    CatalogueTooNew,
    CatalogueTooOld,
    InvalidInput,
    NotFound,
    QueryRefused,
    SignariumError,
)

OPENED: set[str] = set()
"""What Python itself opens."""
sys.addaudithook(lambda event, args: OPENED.add(str(args[0])) if event == "open" else None)

CALLS: dict[str, Callable[[signarium.Catalogue], object]] = {
    "sql": lambda c: c.sql("SELECT 1 AS one"),
    "nearest": lambda c: c.nearest('type:" king"', model=DECODER),
    "features": lambda c: c.features(),
    "feature": lambda c: c.feature("animal", site="resid_post.1", centre="zero"),
    "find": lambda c: c.find(" king", model=DECODER, least=0.0),
    "read": lambda c: c.read("the king", model=DECODER, device="cpu"),
    "neurons": lambda c: c.neurons(model=DECODER),
    "neuron": lambda c: c.neuron("0/4", model=DECODER),
    "rotations": lambda c: c.rotations(),
    "saes": lambda c: c.saes(),
    "evidence": lambda c: c.evidence(),
    "models": lambda c: c.models(),
    "runs": lambda c: c.runs(),
    "sites": lambda c: c.sites(ENCODER),
    "info": lambda c: c.info(),
    "verify": lambda c: c.verify(),
    "index": lambda c: c.index(),
    "upgrade": lambda c: c.upgrade(),
}


@pytest.fixture(scope="module")
def with_features(catalogue: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, rows = featured.copy(catalogue, tmp_path_factory.mktemp("features"), DECODER)
    featured.add_causes(path, DECODER, rows)
    return path


@pytest.fixture
def features_copy(with_features: Path, tmp_path: Path) -> Path:
    """A copy with its indexes, to be changed."""
    return copied(with_features, tmp_path / "copy.duckdb")


def python(script: str, *arguments: str, **changes: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | changes,
    ).stdout


def test_importing_loads_next_to_nothing() -> None:
    heavy = ("torch", "transformers", "duckdb", "pyarrow", "numpy", "sqlalchemy", "alembic", "faiss", "click")
    script = f"import sys, signarium, signarium.ingest; print([m for m in {heavy!r} if m in sys.modules])"
    assert python(script) == "[]\n"


def test_ingest_is_a_function_before_and_after_its_modules_are_imported() -> None:
    script = (
        "import signarium; a = signarium.ingest; import signarium.ingest.run; from signarium.ingest.run import ingest\n"
        "from signarium import ingest as b; print(a is signarium.ingest is b, a is ingest, type(a).__name__)"
    )
    assert python(script) == "True False function\n"


def test_ingest_has_the_options_of_the_request_and_of_the_command() -> None:
    from signarium.commands.ingest import ingest as command
    from signarium.ingest.request import IngestRequest

    door = list(inspect.signature(signarium.ingest).parameters.values())
    request = inspect.signature(IngestRequest).parameters
    assert {one.name: one.default for one in door if one.name not in ("db", "progress")} == {
        one.name: one.default for one in request.values()
    }
    options = {one.name for one in command.params}
    assert {one.name for one in door} - {"db", "progress"} == options


@pytest.mark.parametrize(
    ("command", "method"),
    [
        ("nearest", "nearest"),
        ("sql", "sql"),
        ("features list", "features"),
        ("features show", "feature"),
        ("features find", "find"),
        ("features read", "read"),
        ("neurons list", "neurons"),
        ("neurons show", "neuron"),
        ("flip", "flip"),
        ("align", "align"),
        ("rotations list", "rotations"),
        ("rotations show", "rotation_card"),
        ("sae train", "train_sae"),
        ("sae add", "add_sae"),
        ("sae list", "saes"),
        ("evidence", "evidence"),
    ],
)
def test_methods_have_the_options_of_the_command(command: str, method: str) -> None:
    from terminal import ALL

    parameters = inspect.signature(getattr(signarium.Catalogue, method)).parameters
    options = {one.name: one.default for one in ALL[tuple(command.split())].params}
    # Of these it is no place for what is printed.
    printed = {"format_"} if command in ("align", "sae train") else {"format_", "output"}
    # A flag beside an option is False in its place.
    printed |= {"no_steer"}
    # What one command made, for the command that prints it.
    runs = {"flip_run", "run_id"}
    assert set(parameters) - {"self", "progress"} - runs == set(options) - printed
    for name, default in options.items():
        if name not in ("format_", "output", "query", "no_steer") and isinstance(default, (str, int, float)):
            assert parameters[name].default == default, name


@pytest.mark.parametrize("name", CALLS)
def test_every_call_gives_data_prints_nothing_and_lets_go(
    features_copy: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    OPENED.clear()
    c = signarium.open(features_copy)
    result = CALLS[name](c)
    # Closing it would drop the locks of a connection in a notebook: DuckDB alone opens it.
    assert str(features_copy) not in OPENED
    assert capfd.readouterr() == ("", "")
    if name == "evidence":
        assert isinstance(result, pa.Table)
    if name in ("sql", "models", "runs", "sites", "info", "features", "find", "read", "neurons"):
        assert isinstance(result, pa.Table) and result.num_rows > 0
    # A writer needs the file for itself.
    with duckdb.connect(str(features_copy)) as connection:
        connection.execute("CREATE TABLE writer AS SELECT 1")


def test_answers(catalogue: Made) -> None:
    c = signarium.open(str(catalogue.path))
    assert c.sql("SELECT name FROM models ORDER BY name").to_pydict() == {"name": [DECODER, ENCODER]}
    answer = c.nearest('type:" king"', model=DECODER, k=3)
    assert answer.table.num_rows == 3 and answer.target.view == "types" and answer.recall is None
    assert all(one.ok for one in c.verify())
    assert c.index() == [] and c.upgrade() is None
    with signarium.open(catalogue.path) as opened:
        assert opened.models().num_rows == 2
    assert repr(c) == f"signarium.open({str(catalogue.path)!r})"


def test_verify_with_a_model_recomputes_its_codes(catalogue: Made, catalogue_copy: Path) -> None:
    c = signarium.open(catalogue_copy)
    found = [one for one in c.verify(DECODER) if "recomputed" in one.check]
    assert [one.check.split()[3] for one in found] == ["embed", "resid_post.0", "resid_post.1"]
    assert all(one.ok and one.looked_at == 256 for one in found)
    with duckdb.connect(str(catalogue_copy)) as connection:
        connection.execute(
            "UPDATE code_row SET code = '\\x0F\\x0F\\x0F\\x0F\\x0F\\x00'::BLOB WHERE item < 304"
        )
    assert not any(one.ok for one in c.verify(DECODER) if "recomputed" in one.check)
    with pytest.raises(NotFound, match=r"'other'.*decoder"):
        c.verify("other")


def test_where_it_looks_for_a_catalogue(
    catalogue: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SIGNARIUM_DB", raising=False)
    with pytest.raises(CatalogueMissing, match=r"no catalogue at catalogue\.duckdb"):
        signarium.open()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("SIGNARIUM_DB", str(catalogue.path))
    assert signarium.open().models().num_rows == 2
    # A relative path goes on to mean the same file.
    monkeypatch.chdir(catalogue.path.parent)
    c = signarium.open(catalogue.path.name)
    monkeypatch.chdir(tmp_path)
    assert c.models().num_rows == 2


@pytest.mark.parametrize(("revision", "error"), [("9999", CatalogueTooNew), (revisions.HEAD, None)])
def test_a_newer_schema_is_refused_by_every_reader(
    features_copy: Path, revision: str, error: type[Exception] | None
) -> None:
    with duckdb.connect(str(features_copy)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", [revision])
    c = signarium.Catalogue(features_copy)
    for call in CALLS.values():
        if error is None:
            call(c)
        else:
            with pytest.raises(error, match=f"schema {revision}, newer"):
                call(c)


def test_an_older_schema_names_the_upgrade(catalogue_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from signarium.catalog import store

    def older(path: Path, revision: str) -> None:
        raise CatalogueTooOld(path, revision)

    monkeypatch.setattr(store, "check_revision", older)
    for name in ("sql", "models", "nearest", "info"):
        with pytest.raises(CatalogueTooOld, match="db upgrade"):
            CALLS[name](signarium.Catalogue(catalogue_copy))


def test_errors_are_ours(catalogue: Made) -> None:
    c = signarium.open(catalogue.path)
    with pytest.raises(QueryRefused):
        c.sql("DELETE FROM model")
    with pytest.raises(InvalidInput):
        c.nearest('type:" king"')
    with pytest.raises(SignariumError):
        signarium.ingest(catalogue.path.parent / "new.duckdb", "/nowhere/at-all")  # type: ignore[operator]
    assert not (catalogue.path.parent / "new.duckdb").exists()


def test_help_is_readable() -> None:
    script = "import signarium; help(signarium); help(signarium.Catalogue.nearest); print(signarium.ingest.__doc__)"
    text = python(script, PAGER="cat", MANPAGER="cat")
    for word in (
        "signarium.open",
        "within",
        "upgrade(self)",
        "where",
        "(distance, item)",
        "made if it is not there",
    ):
        assert word in text
    for name, member in inspect.getmembers(signarium.Catalogue, inspect.isfunction):
        assert name.startswith("_") or inspect.getdoc(member), name
