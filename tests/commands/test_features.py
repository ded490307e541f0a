"""`features` as a user meets it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from digest import Commands
from made import DECODER
from terminal import Run, in_terminal


def test_features_in_every_format(
    run: Run, with_features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGNARIUM_DB", str(with_features))
    for arguments, first in (
        (["list", "--limit", "0"], "feature_id"),
        (["find", " king", "--model", DECODER], "rank"),
        (["read", "the king", "--model", DECODER, "--all", "--first", "--device", "cpu"], "model"),
    ):
        shown = run("features", *arguments, "--format", "json")
        objects = json.loads(shown.out)
        assert next(iter(objects[0])) == first and len(objects) > 2
        rows = list(csv.reader(io.StringIO(run("features", *arguments, "--format", "csv").out)))
        assert rows[0] == list(objects[0]) and len(rows) == len(objects) + 1
        file = tmp_path / "rows.parquet"
        assert run("features", *arguments, "--format", "parquet", "--output", str(file)).out == ""
        assert pq.read_table(file).num_rows == len(objects)
        text = run("features", *arguments).out
        assert "\x1b" not in text and "mask" not in text and "hidden" not in text
    assert run("features", "list", "--limit", "3").err == "the first 3 by auc_held_out; --limit 0 for all\n"
    assert run("features", "list", "--fails", "--limit", "0", "--format", "csv").out.count("\n") > 1
    shown = run("features", "read", "the king", "--model", DECODER, "--device", "cpu")
    assert (
        shown.err.startswith("features of decoder at resid_post.1, centre zero")
        and shown.err.count("\n") == 1
    )
    (tmp_path / "text.txt").write_text("the king")
    again = run("features", "read", "--file", "text.txt", "--model", DECODER, "--device", "cpu")
    assert again.out == shown.out


def test_features_show(
    run: Run, with_features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGNARIUM_DB", str(with_features))
    (card,) = json.loads(run("features", "show", "1000", "--format", "json").out)
    assert list(card)[:6] == ["feature", "members", "types", "states", "measurements", "histogram"]
    assert list(card)[6:] == [
        "writers",
        "chance",
        "coalitions",
        "projections",
        "flips",
        "flip_runs",
        "carried",
    ]
    text = run("features", "show", "1000").out
    assert "evidence" in text and "\x1b" not in text
    assert run("features", "show", "1000", "--output", "card.txt").out == ""
    assert (tmp_path / "card.txt").read_text() == text
    shown = run("nearest", "feature:1000", "-k", "2")
    assert shown.code == 0 and shown.err.endswith('searched feature 1000, " king": 22 dimensions\n')
    shown = run("nearest", 'type:" king"', "--in", "features", "--model", DECODER, "--format", "json")
    assert next(iter(json.loads(shown.out)))["name"] == " king"


@pytest.mark.parametrize("columns", [80, 120])
def test_features_fit_a_terminal(warm: Commands, with_features: Path, columns: int) -> None:
    at = ["--model", DECODER]
    for arguments in (
        *(["features", "list"], ["features", "show", "1000"], ["evidence"]),
        *(["neurons", "list", *at], ["neurons", "show", "0/4", *at]),
    ):
        shown = in_terminal(warm, columns, "--db", str(with_features), *arguments, NO_COLOR="1")
        assert shown.code == 0 and "\x1b" not in shown.out and "hidden" not in shown.out
        assert max(map(len, shown.out.splitlines())) <= columns
    assert "\x1b[1m" in in_terminal(warm, columns, "--db", str(with_features), "features", "show", "1000").out
