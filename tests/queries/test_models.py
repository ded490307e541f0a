"""What is in the catalogue: every column for programs, the useful ones for a terminal."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest
from made import DECODER, ENCODER, Made

import signarium
from signarium.catalog import parts
from signarium.catalog.errors import CatalogueMissing, InvalidInput, NotACatalogue, NotFound
from signarium.commands.pages import lists
from signarium.commands.render.formats import rendered
from signarium.queries import models


@pytest.mark.parametrize("view", ["models", "runs", "sites", "code_sets"])
def test_rows_are_the_view(catalogue: Made, view: str) -> None:
    table = models.rows(catalogue.path, view)
    assert table.column_names == list(parts.view(view).columns)
    with duckdb.connect(str(catalogue.path), read_only=True) as connection:
        expected = connection.execute(f"SELECT * FROM {view}").fetchall()
    assert sorted(map(repr, expected)) == sorted(repr(tuple(row.values())) for row in table.to_pylist())
    assert table.num_rows > 0


@pytest.mark.parametrize("view", ["runs", "sites", "code_sets"])
def test_rows_of_one_model(catalogue: Made, view: str) -> None:
    counts = {name: models.rows(catalogue.path, view, name).num_rows for name in (DECODER, ENCODER)}
    assert sum(counts.values()) == models.rows(catalogue.path, view).num_rows
    assert min(counts.values()) > 0
    assert set(models.rows(catalogue.path, view, ENCODER).column("model").to_pylist()) == {ENCODER}
    with pytest.raises(NotFound, match=r"'other'.*there is decoder, encoder"):
        models.rows(catalogue.path, view, "other")


def test_models_and_sites_in_order(catalogue: Made) -> None:
    assert models.rows(catalogue.path, "models").column("name").to_pylist() == [DECODER, ENCODER]
    sites = models.rows(catalogue.path, "sites")
    assert sites.column("site").to_pylist() == ["embed", "resid_post.0", "resid_post.1", "resid_post.1"]


def test_info_counts_what_the_views_hold(catalogue: Made) -> None:
    found = dict(zip(*models.info(catalogue.path).to_pydict().values(), strict=True))
    with duckdb.connect(str(catalogue.path), read_only=True) as connection:
        for view in parts.views().values():
            ((n,),) = connection.execute(f"SELECT count(*) FROM {view.name}").fetchall()
            assert found[view.name] == str(n), view.name
    assert found["bytes"] == str(catalogue.path.stat().st_size)
    files = list(Path(f"{catalogue.path}.indexes").iterdir())
    assert files and found["index bytes"] == str(sum(one.stat().st_size for one in files))


def test_a_catalogue_without_a_model(tmp_path: Path) -> None:
    from small import empty

    path = empty(tmp_path / "empty.duckdb")
    assert models.rows(path, "models").num_rows == 0
    for view in ("models", "runs", "sites"):
        assert "(0 rows)" in rendered(
            lists.view_rows(parts.view(view).shown, models.rows(path, view), 80), width=80
        )
    with pytest.raises(InvalidInput, match="no model yet: run `signarium ingest MODEL`"):
        signarium.open(path).nearest("state:3")


def test_not_a_catalogue(tmp_path: Path) -> None:
    with pytest.raises(CatalogueMissing):
        models.info(tmp_path / "none.duckdb")
    other = tmp_path / "other.duckdb"
    duckdb.connect(str(other)).close()
    with pytest.raises(NotACatalogue):
        models.rows(other, "models")


@pytest.mark.parametrize("width", [80, 120, None])
@pytest.mark.parametrize(
    ("view", "columns"),
    [
        ("models", ["name", "architecture", "width", "n_layers", "dtype", "source"]),
        ("runs", ["run_id", "job", "model", "status", "tokens", "tokens/s", "started"]),
        ("sites", ["model", "site", "point", "layer", "width"]),
    ],
)
def test_display_fits(catalogue: Made, view: str, columns: list[str], width: int | None) -> None:
    table = lists.view_rows(parts.view(view).shown, models.rows(catalogue.path, view), width)
    assert table.column_names == columns
    text = rendered(table, width=width)
    assert "hidden" not in text
    assert "…" not in text
    assert width is None or max(map(len, text.splitlines())) <= width


def test_display_of_runs_and_info(catalogue: Made) -> None:
    row = models.rows(catalogue.path, "runs").to_pylist()[0]
    narrow, wide = (
        lists.view_rows(parts.view("runs").shown, models.rows(catalogue.path, "runs"), w).to_pylist()[0]
        for w in (80, 120)
    )
    assert narrow["started"] == row["started_at"].strftime("%m-%d %H:%M")
    assert wide["started"] == row["started_at"].strftime("%Y-%m-%d %H:%M")
    assert wide["tokens/s"] == round(row["tokens_per_s"])
    info = dict(zip(*lists.info(models.info(catalogue.path)).to_pydict().values(), strict=True))
    assert info["size"].endswith(" MB") and info["index size"].endswith(" MB")
    assert info["codes"] == f"{int(models.info(catalogue.path).to_pydict()['value'][8]):,}"
    assert info["catalogue"] == str(catalogue.path)


def test_a_random_twin_is_no_second_choice(tmp_path: Path) -> None:
    import duckdb
    import small

    from signarium.catalog.errors import InvalidInput
    from signarium.queries.usual import one_model

    path = small.filled(tmp_path / "c.duckdb").path
    with duckdb.connect(str(path)) as connection:

        def add(name: str, seed: int | None) -> None:
            connection.execute(
                "INSERT INTO model BY NAME SELECT * REPLACE (? AS model_id, ? AS name, ? AS random_init_seed) FROM model "
                "WHERE name = 'tiny'",
                [name, name, seed],
            )

        add("twin", 3)
        assert one_model(connection, None) == "tiny"
        assert one_model(connection, "twin") == "twin"
        add("other", None)
        with pytest.raises(InvalidInput, match="3 models"):
            one_model(connection, None)
