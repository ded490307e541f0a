"""`evidence`: the view in order, and a table whose claims are wrapped and whose verdict stays in sight."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from made import DECODER, ENCODER, Made
from rich.cells import cell_len
from terminal import Run

import signarium
from signarium.catalog import parts, store
from signarium.catalog.errors import NotFound
from signarium.commands.pages.evidence import markdown, page

CLAIM = "Readable features survive a held-out split of their words, at every site that was looked at"


@pytest.fixture(scope="module", autouse=True)
def any_view() -> Iterator[None]:
    """Rows that are written here stand in the view `evidence`, which a reader would refuse."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "shadow", lambda *_, **__: None)
        yield


@pytest.fixture(scope="module")
def c(catalogue: Made, tmp_path_factory: pytest.TempPathFactory) -> signarium.Catalogue:
    path = tmp_path_factory.mktemp("evidence") / "c.duckdb"
    shutil.copy(catalogue.path, path)
    values = ", ".join(
        f"('{claim}', 'Bag of Dims', '{text}', 'auc_agreement', {published}, '{model}', {value}, '{control}', {figure}, "
        f"'{verdict}', 'resid_post.1', 'zero', NULL::VARCHAR)"
        for claim, text, published, model, value, control, figure, verdict in (
            ("2", "Bits are independent", "0.0051", ENCODER, "0.00012", "rotated", "NULL", "not measured"),
            ("1", CLAIM, "0.98", DECODER, "0.97123", "rotated", "0.9698", "does not survive"),
            ("1", CLAIM, "0.98", DECODER, "0.97123", "random anchors of the same rank", "0.5", "survives"),
            ("2", "Bits are independent", "0.0051", DECODER, "1234.5", "rotated", "0.004", "survives"),
        )
    )
    columns = ", ".join(parts.view("evidence").columns)
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            f"CREATE OR REPLACE VIEW evidence AS SELECT * REPLACE (published::DOUBLE AS published, value::DOUBLE AS value, "
            f"control_value::DOUBLE AS control_value) FROM (VALUES {values}) v({_ordered(columns)})"
        )
    return signarium.open(path)


def _ordered(columns: str) -> str:
    """The columns as the values above have them, all of them the view's."""
    mine = "claim_id, source, claim, metric, published, model, value, control, control_value, verdict, site, centre, from_model"
    assert sorted(mine.split(", ")) == sorted(columns.split(", "))
    return mine


def test_rows_in_order(c: signarium.Catalogue) -> None:
    found = c.evidence()
    assert sorted(found.column_names) == sorted(parts.view("evidence").columns)
    keys = [(row["claim_id"], row["model"], row["control"]) for row in found.to_pylist()]
    assert keys == sorted(keys) and len(keys) == 4
    assert set(c.evidence(DECODER).column("model").to_pylist()) == {DECODER}
    with pytest.raises(NotFound, match="'other'"):
        c.evidence("other")


def test_the_published_range_comes_first(c: signarium.Catalogue, tmp_path: Path) -> None:
    path = tmp_path / "c.duckdb"
    shutil.copy(c.path, path)
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            "CREATE TABLE one AS SELECT * FROM evidence WHERE claim_id = '1'; CREATE OR REPLACE VIEW evidence AS "
            "SELECT * FROM one UNION ALL SELECT * REPLACE ('the published range' AS control) FROM one WHERE control = 'rotated'"
        )
    table = signarium.open(path).evidence()
    first, second, third = table.column("control").to_pylist()
    assert (first, second, third) == ("the published range", "random anchors of the same rank", "rotated")
    for width in (120, None):
        text = page(table, width)
        assert text.index("the published") < text.index("random anchors") < text.index("rotated")


@pytest.mark.parametrize("model", [None, DECODER])
def test_a_pair_is_named(c: signarium.Catalogue, tmp_path: Path, model: str | None) -> None:
    path = tmp_path / "c.duckdb"
    shutil.copy(c.path, path)
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            "CREATE TABLE one AS SELECT * FROM evidence; CREATE OR REPLACE VIEW evidence AS SELECT * FROM one UNION ALL "
            "SELECT * REPLACE ('13' AS claim_id, 'encoder' AS from_model, 0.5 AS value) FROM one WHERE claim_id = '1'"
        )
    text = page(signarium.open(path).evidence(model), 120)
    assert "encoder → decoder" in text and "decoder decoder" not in text


def test_the_view_of_the_catalogue_is_read(catalogue: Made) -> None:
    table = signarium.open(catalogue.path).evidence()
    assert table.column_names == list(parts.view("evidence").columns)
    assert page(table, 80).splitlines()[-1] == f"({table.num_rows} rows)"


@pytest.mark.parametrize("width", [80, 120, 200, None])
@pytest.mark.parametrize("model", [None, DECODER])
def test_a_page_fits(c: signarium.Catalogue, width: int | None, model: str | None) -> None:
    text = page(c.evidence(model), width)
    lines = text.splitlines()
    assert width is None or max(map(cell_len, lines)) <= width
    assert lines[0].split()[-1] == "verdict" and "\x1b" not in text
    for word in ("0.971", "0.970", "1.23e+03", "does not survive"):
        assert word in text
    if model is None:
        assert "1.2e-04" in text and "–" in text and "not measured" in text
    for word in CLAIM.split():
        assert word in text
    if width is None:
        assert text.count(CLAIM) == 2 and "Bag of Dims" in text
    else:
        assert text.count("Readable") == 1, "a claim is written once for all its rows"
        assert text.count("0.971") == 1, "and its figure once for all its controls"
        assert (ENCODER in text) == (DECODER in text) == (model is None)
    assert lines[-1] == f"({4 if model is None else 3} rows)"
    assert "\x1b[1m" in page(c.evidence(), width, color=True)


def test_formats(c: signarium.Catalogue, tmp_path: Path) -> None:
    from signarium.commands.render.formats import rendered

    assert rendered(c.evidence(), "csv").splitlines()[0].startswith("claim_id,source,claim,")


def test_evidence_in_every_format(run: Run, tmp_path: Path) -> None:
    objects = json.loads(run("evidence", "--model", DECODER, "--format", "json").out)
    text = run("evidence", "--format", "csv").out.splitlines()
    assert text[0].split(",") == list(parts.view("evidence").columns)
    assert all(one["model"] == DECODER for one in objects)
    assert run("evidence", "--output", "e.txt").out == ""
    assert (tmp_path / "e.txt").read_text() == run("evidence").out


def test_markdown_for_a_document(run: Run, catalogue: Made) -> None:
    c = signarium.open(catalogue.path)
    table = c.evidence(claims=["1.1", "6.1"])
    assert {row["claim_id"] for row in table.to_pylist()} == {"1.1", "6.1"}
    lines = markdown(table).splitlines()
    assert lines[:2] == ["| claim | published | here | control | verdict |", "|---|---|---|---|---|"]
    assert len(lines) == table.num_rows + 2
    assert all(line.replace("\\|", "").count("|") == 6 for line in lines)
    assert [sum(line.startswith(f"| {claim} ") for line in lines) for claim in ("1.1", "6.1")] == [1, 1]
    with pytest.raises(NotFound, match=r"no claim '0\.0'"):
        c.evidence(claims=["0.0"])
    shown = run("evidence", "--format", "markdown", "--claims", "1.1, 6.1")
    assert shown.code == 0 and shown.out == markdown(table)
