"""How an ingest tells of its progress: one line that moves, and how long all of it takes."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest
import terminal
import tiny
from digest import Commands

from signarium.commands.progress import Display, Outlook
from signarium.ingest.job import Estimate
from signarium.ingest.size import Step

PLAN = (
    ("types", (Step("types", 100.0, "passes"),)),
    ("states", (Step("states", 50.0, "passes"),)),
    ("features", (Step("categories", 30.0), Step("discovery", 20.0))),
)


def test_the_whole_is_known_from_the_beginning_and_corrected_by_what_runs() -> None:
    outlook = Outlook(PLAN)
    assert outlook.later() == 200
    outlook.enter("types")
    outlook.start("types")
    assert (outlook.place, outlook.step_left(0, 0), outlook.later()) == ("1/3", 100, 100)
    # A fifth in 40 s: its own speed counts alone.
    assert outlook.step_left(40, 0.2) == pytest.approx(160)
    # Of a hundredth the estimate says more: a tenth of the way from 100 to 300 s.
    assert outlook.step_left(3, 0.01) == pytest.approx(100 + 0.1 * 200 - 3)
    outlook.end(200, 1.0)
    # Twice as slow: passes and, as nothing else ran yet, sums too.
    assert outlook.later() == 2 * 100
    outlook.enter("states")
    outlook.start("states")
    outlook.end(100, 1.0)
    outlook.enter("features")
    outlook.start("categories")
    outlook.end(15, 1.0)
    assert outlook.later() == pytest.approx(10)


def test_what_is_not_needed_does_not_count() -> None:
    outlook = Outlook(PLAN)
    outlook.enter("features")
    assert outlook.later() == 50
    outlook.start("discovery")
    assert outlook.later() == 0
    # What an earlier try had done is no speed: half of it took 10 s.
    outlook.end(10, 0.5)
    outlook.start("another")
    assert outlook.step_left(5, 0.0) is None and outlook.step_left(5, 0.5) == 5


def test_the_line_fits_its_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    display = Display()
    display.planned(Estimate(model="one", device="cpu", stages=PLAN))
    display.entered("states")
    assert display.line(80) == "2/3 states ...  all about 1:40 left"
    display.started("states", 10_000, 0)
    now[0] = 10.0
    display.computed(4120)
    bar = "[########...........]"
    assert display.line(80) == f"2/3 states  {bar}  412 tokens/s  step 0:14  all about 1:04 left"
    assert display.line(60) == "2/3 states  412 tokens/s  step 0:14  all about 1:04 left"
    assert display.line(40) == "2/3 states  all about 1:04 left"
    assert display.line(12) == "2/3 states"
    for columns in range(10, 200):
        assert len(display.line(columns)) < columns
    display.entered("features")
    display.started("categories", 5, 0, "sites")
    display.computed(1)
    assert display.line(100).startswith("3/3 features: categories  [")
    display.loading("a\x1b[31m\nb")
    assert "\x1b" not in display.line(80) and "\n" not in display.line(80)
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_one_line_that_is_gone_in_the_end(warm: Commands, tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path, "llama")
    (tmp_path / "a.txt").write_text(tiny.TEXT * 40)
    shown = terminal.in_terminal(
        warm, 80, "--db", str(tmp_path / "c.duckdb"), "ingest", str(folder), "--device", "cpu", "--text",
        str(tmp_path / "a.txt"), "--stages", "types,states,neurons",
    )  # fmt: skip
    assert shown.code == 0
    assert re.search(r"[123]/3 (types|states|neurons)", shown.out)
    screen = on_screen(shown.out)
    assert len(screen) == 5 and screen[0].startswith("llama-0 on cpu"), screen
    assert screen[-1].endswith(f"are in {tmp_path / 'c.duckdb'}"[-70:])


def on_screen(written: str) -> list[str]:
    """The lines that a terminal shows in the end, those that it wraps joined; every line that moves fits into 80 columns."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[^\x1b]", written):
        if part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            column = 0
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1] or 1)
        elif not part.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + 1 :]
            column += 1
    return [one.rstrip() for one in lines if one.strip()]


def test_without_a_terminal_a_line_says_how_long_all_of_it_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Display() as display:
        display.planned(Estimate(model="one", device="cpu", stages=PLAN))
        display.entered("states")
        display.started("states", 10_000, 0)
        now[0] = 30.0
        display.computed(5000)
        display.ended()
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == "2/3 states: 5,000 of 10,000 tokens, 167 tokens/s, 0:30 left, of all about 1:20"
