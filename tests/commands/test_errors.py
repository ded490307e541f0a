"""Errors are one line on stderr; which catalogue is meant."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest
from made import DECODER, ENCODER, Made
from terminal import LISTING, Run


def test_db_option_then_variable_then_default(
    run: Run, catalogue: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("models", "list").code == 0
    monkeypatch.setenv("SIGNARIUM_DB", str(tmp_path / "none.duckdb"))
    assert run("--db", str(catalogue.path), "models", "list").code == 0
    monkeypatch.delenv("SIGNARIUM_DB")
    assert "no catalogue at catalogue.duckdb" in run("models", "list").err
    (tmp_path / "catalogue.duckdb").symlink_to(catalogue.path)
    assert run("models", "list").code == 0


@pytest.mark.parametrize("name", [*LISTING, "index", "upgrade"])
def test_a_missing_catalogue_is_not_made(run: Run, tmp_path: Path, name: str) -> None:
    shown = run("--db", "none.duckdb", *LISTING.get(name, ["db", name]))
    assert (shown.code, shown.out) == (1, "")
    assert shown.err.startswith("error: no catalogue at none.duckdb") and shown.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"no database\n" * 1000, None])
@pytest.mark.parametrize("name", ["sql", "models", "nearest", "info"])
def test_other_files_are_refused(run: Run, tmp_path: Path, content: bytes | None, name: str) -> None:
    file = tmp_path / "other.duckdb"
    if content is None:
        duckdb.connect(str(file)).close()
    else:
        file.write_bytes(content)
    before = file.read_bytes()
    shown = run("--db", str(file), *LISTING[name])
    assert (shown.code, shown.out) == (1, "")
    assert shown.err.startswith("error: ") and "is not a signarium catalogue" in shown.err
    assert shown.err.count("\n") == 1
    assert file.read_bytes() == before


def test_errors_are_one_line(run: Run) -> None:
    for arguments in (
        ["nearest", "type:king", "--model", DECODER],
        ["nearest", 'type:" king"'],
        ["nearest", 'type:" king"', "--model", DECODER, "--where", "1) OR (1=1"],
        ["nearest", 'type:" king"', "--model", DECODER, "--where", "a\nb"],
        ["nearest", "state:1", "--model", "a\x1b[31mb"],
        ["features", "list"],
        ["features", "list", "--sort", "x"],
        ["features", "show", "17"],
        ["features", "find", " king", "--model", DECODER],
        ["features", "read", "the king", "--model", DECODER],
        ["features", "read"],
        ["features", "read", "--file", "/nowhere/at-all.txt"],
        ["nearest", "feature:17"],
        ["nearest", "feature:17", "--in", "features"],
        ["nearest", "neuron:12"],
        ["nearest", "neuron:12/x"],
        ["nearest", "neuron:99/0", "--model", DECODER],
        ["nearest", 'type:" king"', "--in", "unembedding", "--model", DECODER],
        ["nearest", "direction:17"],
        ["neurons", "list", "--model", DECODER],
        ["neurons", "list", "--sort", "x"],
        ["neurons", "show", "12"],
        ["neurons", "show", "0/1", "--model", DECODER],
        ["flip", "17", "--text", "/nowhere/at-all.txt"],
        ["nearest", 'type:" king"', "--in", "features", "--model", DECODER],
        ["nearest", 'type:" king"', "--model", DECODER, "--across", ENCODER],
        ["nearest", 'type:" king"', "--model", DECODER, "--across", DECODER],
        ["nearest", 'type:" king"', "--model", DECODER, "--across", "other"],
        ["nearest", 'type:" king"', "--model", DECODER, "--in", "directions"],
        ["nearest", "direction:a/3"],
        ["align", DECODER, "other", "--text", "/nowhere/at-all.txt"],
        ["align", DECODER, DECODER, "--text", "/nowhere/at-all.txt"],
        ["rotations", "list", "--model", "other"],
        ["rotations", "show", DECODER, ENCODER],
        ["rotations", "show", DECODER, DECODER],
        ["sae", "list", "--model", "other"],
        ["sae", "add", "/nowhere/at-all.safetensors", "--model", DECODER, "--site", "embed"],
        ["sae", "add", "x", "--model", DECODER, "--site", "embed", "--name", " "],
        ["evidence", "--model", "other"],
        ["sql", "DELETE FROM model"],
        ["sql", "SELECT nothing\nFROM models"],
        ["sql", "SELECT 1", "--memory", "few"],
        ["runs", "list", "--model", "other"],
        ["db", "verify", "--model", "other"],
        ["ingest", "/nowhere/at-all"],
        ["ingest", "x", "--name", " "],
        ["ingest", "x", "--text", "/nowhere/at-all.txt"],
    ):
        shown = run(*arguments)
        assert (shown.code, shown.out) == (1, ""), arguments
        assert shown.err.startswith("error: ") and shown.err.count("\n") == 1, shown.err
        assert "\x1b" not in shown.err


def test_interrupt_is_one_line_and_130(catalogue: Made) -> None:
    slow = "SELECT count(*) FROM range(1000000000) a, range(1000000) b"
    with subprocess.Popen(
        [sys.executable, "-m", "signarium", "--db", str(catalogue.path), "sql", slow],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # What a shell runs in the background ignores interrupts, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as child:
        # The query runs in a child of its own; where nobody tells of children, the time for it to start must do.
        children, begun = Path(f"/proc/{child.pid}/task/{child.pid}/children"), time.monotonic()
        while time.monotonic() < begun + 20 and children.exists() and not children.read_text():
            time.sleep(0.01)
        time.sleep(1.5)
        os.killpg(child.pid, signal.SIGINT)
        out, err = child.communicate(timeout=30)
    assert (child.returncode, out, err) == (130, "", "interrupted\n")
