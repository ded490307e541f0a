"""Formats, files, terminals and pipes."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from digest import Commands
from made import Made
from terminal import LISTING, Run, in_terminal

from signarium.catalog import parts


@pytest.mark.parametrize("name", LISTING)
def test_every_format_carries_every_column(run: Run, tmp_path: Path, name: str) -> None:
    objects = json.loads(run(*LISTING[name], "--format", "json").out)
    columns = list(objects[0])
    if name in ("models", "runs", "sites"):
        assert columns == list(parts.view(name).columns)
    if name == "nearest":
        assert columns == ["rank", "distance", *parts.view("types").columns]
    lines = [json.loads(line) for line in run(*LISTING[name], "--format", "ndjson").out.splitlines()]
    assert lines == objects
    rows = list(csv.reader(io.StringIO(run(*LISTING[name], "--format", "csv").out)))
    assert rows[0] == columns and len(rows) == len(objects) + 1
    file = tmp_path / "rows.parquet"
    shown = run(*LISTING[name], "--format", "parquet", "--output", str(file))
    assert (shown.code, shown.out) == (0, "")
    table = pq.read_table(file)
    assert table.column_names == columns and table.num_rows == len(objects)
    table_text = run(*LISTING[name]).out
    assert len(table_text.splitlines()) == len(objects) + 3
    assert "\x1b" not in table_text and "hidden" not in table_text


@pytest.mark.parametrize("name", LISTING)
def test_parquet_needs_a_file(run: Run, name: str) -> None:
    shown = run(*LISTING[name], "--format", "parquet")
    assert (shown.code, shown.out) == (1, "")
    assert shown.err.splitlines()[-1] == "error: parquet is binary: pass --output FILE"


def test_output_is_whole_or_absent(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("before")
    query = (
        "SELECT range AS i, CASE WHEN range = 300000 THEN error('late') ELSE 'x' END AS x FROM range(300001)"
    )
    shown = run("sql", query, "--format", "csv", "--output", str(file))
    # Which of its threads' errors DuckDB reports is a race.
    assert (
        shown.code == 1
        and shown.err.count("\n") == 1
        and re.search("late|one of the query's threads", shown.err)
    )
    assert file.read_text() == "before"
    assert run("models", "list", "--format", "csv", "--output", str(file)).code == 0
    assert file.read_text().startswith("model_id,")
    lost = run("models", "list", "--output", str(tmp_path / "no" / "folder" / "x.csv"))
    assert lost.code == 1 and lost.err.count("\n") == 1 and "no folder" in lost.err
    assert sorted(one.name for one in tmp_path.iterdir()) == ["rows.csv"]


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_a_terminal(warm: Commands, catalogue: Made, columns: int) -> None:
    for name in ("runs", "nearest"):
        arguments = [*LISTING[name], *(["--in", "states"] if name == "nearest" else [])]
        shown = in_terminal(warm, columns, "--db", str(catalogue.path), *arguments, NO_COLOR="1")
        assert shown.code == 0 and "\x1b" not in shown.out and "hidden" not in shown.out
        assert max(map(len, shown.out.splitlines())) <= columns
        if name == "nearest":
            assert shown.out.count("«") >= 4
    coloured = in_terminal(warm, columns, "--db", str(catalogue.path), *LISTING["sites"])
    assert "\x1b[1m" in coloured.out


def test_a_reader_that_stops_reading_is_no_error(catalogue: Made) -> None:
    # More than a pipe holds, so that the writer meets the closed end.
    for query in (["sql", "SELECT range FROM range(300000)", "--format", "csv"], ["models", "list"]):
        with subprocess.Popen(
            [sys.executable, "-m", "signarium", "--db", str(catalogue.path), *query],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as child:
            assert child.stdout is not None and child.stderr is not None
            child.stdout.readline()
            child.stdout.close()
            assert child.stderr.read() == b""
            assert child.wait(30) == 0
