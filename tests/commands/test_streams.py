"""Streams that are closed, missing or read by nobody: work goes on to its end, and an error stays one."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from digest import Commands, Result, rows
from made import Made

CLOSED = "os.close(1)\nsys.stdout = None\n"
LEFT = "r, w = os.pipe()\nos.close(r)\nos.dup2(w, 1)\n"
NOBODY = LEFT + "os.dup2(w, 2)\n"
FULL = "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)\n"


def run(warm: Commands, before: str, *args: object, **options: object) -> Result:
    """A command after something happened to its streams."""
    code = f"import os, signal, sys\n{before}import signarium.cli\nsignarium.cli.main()"
    return warm.run(*args, code=code, **options)


@pytest.mark.parametrize("before", [CLOSED, LEFT, NOBODY, FULL])
def test_an_ingest_goes_on(warm: Commands, tmp_path: Path, before: str) -> None:
    folder, path = tiny.folder(tmp_path, "llama"), tmp_path / "c.duckdb"
    ended = run(warm, before, "--db", path, "ingest", folder, "--sites", "embed", "--stages", "types")
    assert (ended.code, ended.err) == (0, "")
    assert rows(path, "SELECT complete FROM run") == [(True,)]


@pytest.mark.parametrize("before", [CLOSED, LEFT, NOBODY])
def test_errors_stay_errors(warm: Commands, catalogue_copy: Path, tmp_path: Path, before: str) -> None:
    missing = run(warm, before, "--db", tmp_path / "none.duckdb", "models", "list")
    wrong = run(warm, before, "models", "lists")
    index = next((catalogue_copy.parent / f"{catalogue_copy.name}.indexes").glob("*.faiss"))
    index.write_bytes(index.read_bytes()[:64])
    damaged = run(warm, before, "--db", catalogue_copy, "db", "verify")
    assert [missing.code, wrong.code, damaged.code] == [1, 2, 1]
    if before != NOBODY:
        assert missing.err.startswith("error: no catalogue at") and "is not sound" in damaged.err
    assert all("Traceback" not in one.err for one in (missing, wrong, damaged))


@pytest.mark.parametrize("before", [CLOSED, LEFT])
def test_an_answer_that_nobody_reads(warm: Commands, catalogue: Made, tmp_path: Path, before: str) -> None:
    for arguments in (
        ["models", "list"],
        ["sql", "SELECT range FROM range(100000)", "--format", "csv"],
        ["--help"],
    ):
        ended = run(warm, before, "--db", catalogue.path, *arguments)
        assert (arguments, ended.code, ended.err) == (arguments, 0, "")
    file = tmp_path / "o.csv"
    ended = run(warm, before, "--db", catalogue.path, "models", "list", "--format", "csv", "--output", file)
    assert (ended.code, ended.err) == (0, "") and file.read_text().startswith("model_id,")


def test_an_answer_that_the_disk_does_not_take(warm: Commands, catalogue: Made) -> None:
    ended = run(warm, FULL, "--db", catalogue.path, "models", "list")
    assert (ended.code, ended.err) == (1, "error: no space left on device\n")


def test_the_catalogue_does_not_become_a_stream(warm: Commands, catalogue_copy: Path) -> None:
    """Where nothing is open as 1 and 2, the next file that is opened is."""
    closed = "os.close(0)\nos.close(1)\nos.close(2)\nsys.stdin = sys.stdout = sys.stderr = None\n"
    before = catalogue_copy.read_bytes()
    for arguments in (["models", "list"], ["nearest", "type:none", "--model", "decoder"]):
        run(warm, closed, "--db", catalogue_copy, *arguments)
    assert catalogue_copy.read_bytes() == before


def test_nohup_is_honoured(warm: Commands, tmp_path: Path) -> None:
    before = "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    folder, path = tiny.folder(tmp_path, "llama"), tmp_path / "c.duckdb"
    command = ("--db", path, "ingest", folder, "--sites", "embed", "--stages", "types")
    assert run(warm, before, *command, kill_in=("create", 1, 0.0), with_signal="SIGHUP").code == 0
