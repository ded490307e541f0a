"""`flip` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import featured
import pytest
from made import DECODER
from terminal import Run

from signarium.catalog import parts


@pytest.mark.parametrize("already", [False, True])
def test_flip_prints_what_it_measured(
    run: Run, with_features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, already: bool
) -> None:
    from signarium.ingest.flips import run as flips
    from signarium.ingest.flips.request import FlipRequest

    monkeypatch.setenv("SIGNARIUM_DB", str(with_features))
    asked = []

    def measured(path: Path, request: FlipRequest, progress: object) -> flips.FlipReport:
        asked.append((path, request, progress))
        # Not the latest run: that of the arguments.
        return flips.FlipReport(featured.FLIP_RUNS[0], request.feature_id, DECODER, already, ["a note"], 1.0)

    monkeypatch.setattr(flips, "flip", measured)
    # The name alone has four features; this one is the first of them.
    arguments = [
        "flip",
        " king",
        "--site",
        "resid_post.0",
        "--centre",
        "mean",
        "--text",
        "a.txt",
        "--text",
        "b",
        "--seed",
        "3",
    ]
    shown = run(*arguments)
    path, request, progress = asked[0]
    assert path == with_features and progress is not None
    assert request == FlipRequest(1000, ["a.txt", "b"], windows=32, context=128, device="auto", seed=3)
    assert shown.code == 0 and shown.out.startswith('" king", feature 1000 of decoder at resid_post.0')
    assert "-3.10 ± 0.05" in shown.out and "\x1b" not in shown.out
    assert shown.err == "a note\n" + "measured before: nothing was run\n" * already
    objects = json.loads(run(*arguments, "--format", "json").out)
    assert list(objects[0]) == list(parts.view("flips").columns) and len(objects) == 41
    assert {one["run_id"] for one in objects} == {featured.FLIP_RUNS[0]}
    assert asked[1][2] is None, "its lines would stand among the objects"
    assert run(*arguments, "--output", "flips.txt").out == ""
    assert (tmp_path / "flips.txt").read_text() == shown.out
    assert run("flip", "1000").code == 2, "there is no text"
