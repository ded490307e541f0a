"""`align` and `rotations` as a user meets them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import twins
from digest import Commands
from terminal import Run, in_terminal


def test_rotations_in_every_format(
    run: Run, rotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGNARIUM_DB", str(rotated))
    for arguments, first in (
        (["rotations", "list"], "rotation_id"),
        (["sae", "list", "--model", twins.ALPHA], "sae_id"),
        (["nearest", f"state:{twins.BASE}", "--model", twins.ALPHA, "--across", twins.BETA], "rank"),
        (["nearest", "direction:alpha sae 0/3", "--in", "directions"], "rank"),
        (["features", "list", "--kind", "direction"], "feature_id"),
    ):
        objects = json.loads(run(*arguments, "--format", "json").out)
        assert next(iter(objects[0])) == first and objects
        rows = list(csv.reader(io.StringIO(run(*arguments, "--format", "csv").out)))
        assert rows[0] == list(objects[0]) and len(rows) == len(objects) + 1
        file = tmp_path / "rows.parquet"
        assert run(*arguments, "--format", "parquet", "--output", str(file)).out == ""
        assert pq.read_table(file).num_rows == len(objects)
        assert "\x1b" not in run(*arguments).out
    shown = ["rotations", "show", twins.ALPHA, twins.BETA, "--site", "resid_post.1"]
    (card,) = json.loads(run(*shown, "--format", "json").out)
    assert card["rotation"]["rotation_id"] == 2 and len(card["components"]) == 60
    text = run(*shown).out
    assert run(*shown, "--output", "page.txt").out == "" and (tmp_path / "page.txt").read_text() == text
    assert text.startswith("rotation from alpha to beta at resid_post.1\n")


@pytest.mark.parametrize("columns", [80, 120])
def test_rotations_fit_a_terminal(warm: Commands, rotated: Path, columns: int) -> None:
    shown = ["rotations", "show", twins.ALPHA, twins.BETA, "--site", "resid_post.1"]
    for arguments in (
        ["rotations", "list"],
        shown,
        ["sae", "list"],
        ["features", "show", str(twins.CARRIED)],
    ):
        page = in_terminal(warm, columns, "--db", str(rotated), *arguments, NO_COLOR="1")
        assert page.code == 0 and "\x1b" not in page.out and "hidden" not in page.out
        assert max(map(len, page.out.splitlines())) <= columns
    assert "\x1b[1m" in in_terminal(warm, columns, "--db", str(rotated), *shown).out


@pytest.mark.parametrize("already", [False, True])
def test_align_prints_what_it_found(
    run: Run, rotated: Path, monkeypatch: pytest.MonkeyPatch, already: bool
) -> None:
    from signarium.ingest.rotations import run as aligning
    from signarium.ingest.rotations.request import AlignRequest

    monkeypatch.setenv("SIGNARIUM_DB", str(rotated))
    asked = []

    def aligned(path: Path, request: AlignRequest, progress: object) -> aligning.AlignReport:
        asked.append((path, request, progress))
        ends = request.model_a, request.model_b
        return aligning.AlignReport("align-new", *ends, already, notes=["a note"])

    monkeypatch.setattr(aligning, "align", aligned)
    arguments = [
        "align",
        "alpha",
        "beta",
        "--text",
        "a.txt",
        "--text",
        "b",
        "--sites",
        "resid_post.0,1",
        "--no-steer",
    ]
    shown = run(*arguments, "--output", "r.npy", "--seed", "3")
    path, request, progress = asked[0]
    assert path == rotated and progress is not None
    assert request == AlignRequest(
        "alpha", "beta", ["a.txt", "b"], "resid_post.0,1", 65_536, 256, Path("r.npy"), False, "auto", 3
    )
    assert shown.code == 0
    lines = shown.out.splitlines()
    assert lines[0].split() == [
        "site",
        "as",
        "is",
        "mean",
        "rotation",
        "linear",
        "shuffle",
        "swap",
        "token",
        "halves",
    ]
    assert len(lines) == 6 and max(map(len, lines)) <= 80 and "\x1b" not in shown.out
    said = shown.err.splitlines()
    assert said[0] == "a note" and ("fitted before: nothing was run" in said) is already
    assert said[-2].startswith("resid_post.0: the rotation explains -0.900, not surely more than one")
    assert said[-1] == "resid_post.0: 3 of 60 dimensions vary"
    objects = json.loads(run(*arguments, "--format", "json").out)
    assert [one["rotation_id"] for one in objects] == [3, 2, 6]
    assert asked[1][2] is None, "its lines would stand among the objects"
