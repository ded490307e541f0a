"""The table of results keeps what a run did not measure, and says itself whether a bar is met."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from signarium.catalog import engines

BENCHMARKS = Path(engines.__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return import_module("table")


def test_a_part_takes_the_place_of_its_own_rows_and_of_no_others(table: ModuleType, tmp_path: Path) -> None:
    file, parts = tmp_path / "RESULTS.md", ["load", "gpu-search", "search"]
    results = table.Results(file, "# Results\n", parts)
    results.replace(
        "search", [table.Row("a | b", "1 ms", "it 2 ms", 2.0), table.Row("c")], "2026-01-01", "a machine"
    )
    results.replace("load", [table.Row("d")], "2026-01-01", "a machine")
    before = file.read_text().splitlines()
    again = table.Results(file, "# Results\n", parts)
    again.replace("load", [table.Row("e"), table.Row("f")], "2026-02-02", "another machine")
    after = file.read_text().splitlines()
    kept = [one for one in before if "load" not in one]
    assert [one for one in after if "load" not in one] == kept
    assert [one.split(" | ")[1] for one in after if one.startswith("| load ")] == ["e", "f"]
    assert [one for one in after if one.startswith("- load: ")] == ["- load: 2026-02-02; another machine"]
    # Parts stand in their order, whichever was run last; a table line more, or less, would tear it apart.
    rows = [one for one in after if one.startswith("|")]
    assert [one.split(" | ")[0] for one in rows[2:]] == ["| load", "| load", "| search", "| search"]


@pytest.mark.parametrize(
    ("bar", "figure", "met"), [("at_least", 3.5, "yes"), ("at_least", 3.499, "no"), ("at_most", 3.501, "no")]
)
def test_a_bar_is_held_against_the_figure_and_not_against_what_is_shown(
    table: ModuleType, bar: str, figure: float, met: str
) -> None:
    assert table.Row("x", ratio=figure, bar=getattr(table, bar)(3.5)).cells()[-1] == met


def test_what_could_not_be_measured_misses_its_bar(table: ModuleType) -> None:
    row = table.failed("x", RuntimeError("no such\nthing"), table.at_most(1))
    assert row.cells()[-1] == "no"
    assert "not measured: no such" in row.beside


def test_costs_of_one_engine_leave_those_of_others(table: ModuleType, tmp_path: Path) -> None:
    costs, file = import_module("costs"), tmp_path / "measured.json"
    row = {
        "work": "search",
        "engine": "faiss",
        "width": 576,
        "n": 10,
        "batch": 1,
        "seconds": 1.0,
        "threads": 1,
        "machine": "m",
    }
    first = [row, row | {"engine": "tensor"}, row | {"width": 2560}, row | {"batch": 16}]
    costs.merge(file, first)
    text = file.read_text()
    costs.merge(file, first[::-1])
    assert file.read_text() == text
    costs.merge(file, [row | {"n": 20, "seconds": 3.0}])
    found = json.loads(file.read_text())["rows"]
    assert [(one["engine"], one["width"], one["seconds"]) for one in found] == [
        ("faiss", 576, 3.0),
        ("faiss", 2560, 1.0),
        ("tensor", 576, 1.0),
    ]
