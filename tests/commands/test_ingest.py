"""`ingest` as a user meets it, and how it tells of its progress."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from made import DECODER, Made
from terminal import Run


def test_ingest_again_and_dry_run(run: Run, catalogue: Made, catalogue_copy: Path) -> None:
    before = catalogue_copy.read_bytes()
    again = ["--db", str(catalogue_copy), "ingest", str(catalogue.decoder_folder), "--name", DECODER]
    shown = run(*again, "--sites", "embed", "--dry-run")
    assert shown.code == 0 and shown.out.endswith("dry run: nothing was written\n") and shown.err == ""
    shown = run(*again, "--sites", "embed")
    assert shown.out.endswith(f"decoder: all of it is in {catalogue_copy} already\n") and shown.err == ""
    assert catalogue_copy.read_bytes() == before


@pytest.mark.parametrize(
    ("rows", "features", "said"),
    [
        (1200, 0, "1,200 codes"),
        (1200, 3000, "1,200 codes and up to 3,000 features"),
        (0, 3000, "up to 3,000 features"),
        (0, 0, "all figures"),
    ],
)
def test_ingest_says_what_was_made(
    run: Run, monkeypatch: pytest.MonkeyPatch, rows: int, features: int, said: str
) -> None:
    import signarium
    from signarium.ingest.job import Estimate, Report

    estimate = Estimate(model="one", device="cpu", sites=("embed",), rows=rows, features=features)
    monkeypatch.setattr(signarium, "ingest", lambda *_, **__: Report("one", estimate))
    assert run("--db", "c.duckdb", "ingest", "x").out == f"one: {said} are in c.duckdb\n"


def test_progress_without_a_terminal_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from signarium.commands.progress import Display

    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Display() as display:
        display.started("states", 10_000, 1000)
        for _ in range(4):
            now[0] += 10
            display.computed(1000)
        display.ended()
    # 3,000 tokens in 30 s: 100 a second, and 6,000 are left; what was done before does not count as speed.
    assert capsys.readouterr() == ("states: 4,000 of 10,000 tokens, 100 tokens/s, 1:00 left\n", "")
    with Display() as display:
        display.started("discovery", 40, 0, "features")
        now[0] += 30
        display.computed(10)
    assert capsys.readouterr().out == "discovery: 10 of 40 features, 3 s each, 1:30 left\n"
