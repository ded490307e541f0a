"""`nearest` as a user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest
import twins
from made import DECODER
from terminal import Run


def test_nearest_names_its_choices_on_stderr(run: Run) -> None:
    shown = run("nearest", 'type:" king"', "--model", DECODER, "-k", "2")
    assert shown.err == "types of decoder at resid_post.1, centre mean: 304 codes of 44 bits\n"
    shown = run("nearest", 'type:" king"', "--model", DECODER, "--in", "states", "--where", "false")
    assert shown.code == 0 and shown.out.splitlines()[-1] == "(0 rows)"
    assert shown.err == "states of decoder at resid_post.1, centre zero: 0 codes of 44 bits\n"
    assert "recall" in run("nearest", 'type:" king"', "--model", DECODER, "--approximate").err


def test_across_says_the_rotation_on_stderr(run: Run, rotated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNARIUM_DB", str(rotated))
    at = ["--model", twins.ALPHA, "--across", twins.BETA]
    shown = run("nearest", f"state:{twins.BASE}", *at, "--site", "resid_post.1")
    assert shown.code == 0 and shown.err.count("\n") == 1
    assert (
        "its signs alone; carried by the rotation at resid_post.1: held-out explained variance 0.750"
        in shown.err
    )
    assert "by chance" in run("nearest", f"state:{twins.BASE}", *at, "--site", "resid_post.0").err
