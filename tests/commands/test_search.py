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


def test_a_token_by_its_id(run: Run) -> None:
    king = run(
        "sql", "SELECT token_id FROM types WHERE token = ' king' LIMIT 1", "--format", "csv"
    ).out.split()[1]
    by_text, by_id = (run("nearest", f"type:{one}", "--model", DECODER) for one in ('" king"', f"id:{king}"))
    assert by_text.code == 0 and by_id.out == by_text.out
    for wrong in ("id:304", "id:" + "9" * 5000):
        shown = run("nearest", f"type:{wrong}", "--model", DECODER)
        assert shown.code == 1 and shown.err.endswith("ids go from 0 to 303\n")


def test_a_text_that_begins_with_a_dash_is_no_option(run: Run) -> None:
    shown = run("sql", "-- 1. Which?\nSELECT 1 AS x, -1 AS y;", "--format", "csv")
    assert (shown.code, shown.out) == (0, "x,y\n1,-1\n")
    assert run("sql", "--format", "csv", "--Which=1 x\nSELECT 1 AS x").code == 2
    assert run("sql", "--format=csv", "--\nSELECT 1 AS x").out == "x\n1\n"
    # What is an option's value stays that, and what is no option is said to be none.
    shown = run("nearest", "-- no token", "--in", "types", "--where", "-1 > 0")
    assert shown.code == 1 and "No such option" not in shown.err
    assert "No such option" in run("sql", "--limit", "SELECT 1").err


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
