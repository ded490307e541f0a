"""The command line as a user meets it: help, formats, exit codes, terminals, interrupts."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import duckdb
import featured
import pyarrow.parquet as pq
import pytest
import twins
from made import DECODER, ENCODER, Made

from signarium import __version__
from signarium.catalog import engines, parts
from signarium.cli import FORMATS, cli, main
from signarium.commands.render.formats import FORMATS as RENDERED
from signarium.queries.nearest import ask as nearest

LISTING = {
    "models": ["models", "list"],
    "runs": ["runs", "list"],
    "sites": ["sites", "list"],
    "info": ["db", "info"],
    "verify": ["db", "verify"],
    "sql": ["sql", "SELECT * FROM sites ORDER BY site_id"],
    "nearest": ["nearest", 'type:" king"', "--model", DECODER, "-k", "4"],
}


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(
    catalogue: Made, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Run:
    """The entry point in this process, in an empty folder, with `$SIGNARIUM_DB` naming the catalogue."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIGNARIUM_DB", str(catalogue.path))

    def call(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["signarium", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capfd.readouterr()
        return Ran(int(caught.value.code or 0), out, err)

    return call


def process(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "signarium", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | changes,
        timeout=60,
    )


def in_terminal(columns: int, *arguments: str, **changes: str) -> Ran:
    """In a pseudo-terminal of so many columns; stdout and stderr both go there."""
    pid, fd = pty.fork()
    if pid == 0:
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            os.environ.pop(name, None)
        os.environ.update(changes, TERM="xterm")
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        os.execv(sys.executable, [sys.executable, "-m", "signarium", *arguments])
    out = b""
    while True:
        try:
            part = os.read(fd, 65_536)
        except OSError:
            break
        if not part:
            break
        out += part
    os.close(fd)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return Ran(code, out.decode().replace("\r\n", "\n"), "")


def commands(
    group: click.Group = cli, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, one in group.commands.items():
        if isinstance(one, click.Group):
            yield (*path, name), one
            yield from commands(one, (*path, name))
        else:
            yield (*path, name), one


ALL = dict(commands())


# ---- help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_and_option_has_help(path: tuple[str, ...]) -> None:
    command = ALL[path]
    assert command.help and command.get_short_help_str()
    for one in command.params:
        if isinstance(one, click.Option):
            assert one.help, f"{' '.join(path)} {one.opts}"


def test_the_commands_of_the_design_are_there() -> None:
    assert {" ".join(path) for path in ALL} >= {
        *("ingest", "sql", "nearest", "models list", "runs list", "sites list"),
        *("db info", "db verify", "db upgrade", "db index"),
        *("features list", "features show", "features find", "features read", "evidence"),
        *("neurons list", "neurons show", "flip"),
        *("align", "rotations list", "rotations show", "sae train", "sae add", "sae list"),
    }
    assert FORMATS == RENDERED
    choices = next(one for one in ALL["nearest",].params if one.name == "within").type
    assert isinstance(choices, click.Choice) and list(choices.choices) == list(nearest.SUBJECTS)


def test_help_and_version(run: Run) -> None:
    shown = run("--help")
    assert shown.code == 0 and "nearest" in shown.out and shown.err == ""
    assert run("-h").out == shown.out
    assert run("db", "verify", "--help").code == 0
    assert (run("--version").code, run("--version").out.split()[-1]) == (0, __version__)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nearest"],
        ["nonsense"],
        ["nearest", "x", "--nonsense"],
        ["nearest", "x", "-k", "0"],
        ["nearest", "x", "-k", "many"],
        ["nearest", "x", "--in", "rotations"],
        ["features", "list", "--limit", "-1"],
        ["features", "show"],
        ["features", "show", "17", "--format", "csv"],
        ["features", "find", "x", "--least", "2"],
        ["features", "read", "x", "--top", "0"],
        ["ingest", "x", "--seeds", "0"],
        ["nearest", "x", "--centre", "median"],
        ["align", "a", "b"],
        ["align", "a", "--text", "x"],
        ["align", "a", "b", "--text", "x", "--max-tokens", "0"],
        ["align", "a", "b", "--text", "x", "--format", "csv"],
        ["rotations", "show", "a"],
        ["sae", "train", "a", "--text", "x", "--output", "y"],
        ["sae", "train", "a", "--site", "embed", "--text", "x"],
        ["sae", "add", "x", "--site", "embed"],
        ["models", "list", "--format", "xml"],
        ["sql", "SELECT 1", "--timeout", "0"],
        ["db", "info", "--output", "/"],
        ["models", "nonsense"],
    ],
)
def test_wrong_usage_is_2(run: Run, arguments: list[str]) -> None:
    shown = run(*arguments)
    assert shown.code == 2 and shown.out == ""
    assert shown.err.startswith("Usage: ") and "Error: " in shown.err.splitlines()[-1]


# ---- formats --------------------------------------------------------------------------------------


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


# ---- which catalogue ------------------------------------------------------------------------------


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


# ---- what the commands say ------------------------------------------------------------------------


def test_nearest_names_its_choices_on_stderr(run: Run) -> None:
    shown = run("nearest", 'type:" king"', "--model", DECODER, "-k", "2")
    assert shown.err == "types of decoder at resid_post.1, centre mean: 304 codes of 44 bits\n"
    shown = run("nearest", 'type:" king"', "--model", DECODER, "--in", "states", "--where", "false")
    assert shown.code == 0 and shown.out.splitlines()[-1] == "(0 rows)"
    assert shown.err == "states of decoder at resid_post.1, centre zero: 0 codes of 44 bits\n"
    assert "recall" in run("nearest", 'type:" king"', "--model", DECODER, "--approximate").err


def test_the_engines_that_can_be_asked_for_are_those_that_there_are() -> None:
    (option,) = (one for one in cli.commands["nearest"].params if one.name == "engine")
    assert tuple(option.type.choices) == engines.ENGINES  # type: ignore[attr-defined]


def test_db_commands_on_a_current_file(run: Run, catalogue_copy: Path) -> None:
    db = ["--db", str(catalogue_copy), "db"]
    assert run(*db, "verify").code == 0
    checked = run(*db, "verify", "--model", DECODER)
    assert checked.code == 0 and "types recomputed at embed" in checked.out
    before = catalogue_copy.read_bytes()
    assert run(*db, "upgrade").err == f"{catalogue_copy} is up to date\n"
    assert run(*db, "index").err == f"the indexes of {catalogue_copy} are complete\n"
    assert catalogue_copy.read_bytes() == before
    said = run(*db, "index", "--engines", "--format", "json")
    rows = json.loads(said.out)
    assert {one["queries"] for one in rows} == {1, 64, 1024} and {one["width"] for one in rows} == {44, 48}
    for one in rows:
        assert one["queries"] > 1 or one["engine"] == "faiss", (
            "a command of its own would load the others first"
        )
        assert one[f"{one['engine'].replace('-', '_')}_s"] > 0
        assert one["missing"] in (*said.err.splitlines(), "")
    assert "faiss ms" in run(*db, "index", "--engines").out
    next(Path(f"{catalogue_copy}.indexes").glob("*.faiss")).unlink()
    assert run(*db, "index").code == 0
    with duckdb.connect(str(catalogue_copy), read_only=True) as connection:
        (sets,) = connection.execute("SELECT count(*) FROM code_sets").fetchone() or (0,)
    assert len(list(Path(f"{catalogue_copy}.indexes").glob("*.faiss"))) == sets > 0
    with duckdb.connect(str(catalogue_copy)) as connection:
        connection.execute("DELETE FROM code_row WHERE item = 5")
    broken = run(*db, "verify")
    assert broken.code == 1 and "missing, doubled or extra" in broken.out
    assert broken.err.startswith(f"error: {catalogue_copy} is not sound") and broken.err.count("\n") == 1


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
    from signarium.ingest.run import Estimate, Report

    estimate = Estimate("one", "cpu", ("embed",), 9, rows, features, 0, 0, 0, 1)
    monkeypatch.setattr(signarium, "ingest", lambda *_, **__: Report("one", estimate))
    assert run("--db", "c.duckdb", "ingest", "x").out == f"one: {said} are in c.duckdb\n"


# ---- features -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_features(catalogue: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, rows = featured.copy(catalogue, tmp_path_factory.mktemp("features"), DECODER)
    featured.add_causes(path, DECODER, rows)
    return path


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


def test_neurons_in_every_format(
    run: Run, with_features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGNARIUM_DB", str(with_features))
    at = ["--model", DECODER]
    for arguments, first in (
        (["neurons", "list", *at], "model"),
        (["nearest", "neuron:0/4", "--in", "neurons", *at], "rank"),
        (["nearest", "direction:1000", "--in", "unembedding"], "rank"),
    ):
        objects = json.loads(run(*arguments, "--format", "json").out)
        assert next(iter(objects[0])) == first and len(objects) >= 10
        rows = list(csv.reader(io.StringIO(run(*arguments, "--format", "csv").out)))
        assert rows[0] == list(objects[0]) and len(rows) == len(objects) + 1
        file = tmp_path / "rows.parquet"
        assert run(*arguments, "--format", "parquet", "--output", str(file)).out == ""
        assert pq.read_table(file).num_rows == len(objects)
        assert "\x1b" not in run(*arguments).out
    assert run("neurons", "list", *at, "--limit", "3").err == "the first 3 by surprise; --limit 0 for all\n"
    (card,) = json.loads(run("neurons", "show", "0/4", *at, "--format", "json").out)
    assert card["neuron"]["neuron"] == 4 and len(card["projections"]) == 80
    text = run("neurons", "show", "0/4", *at).out
    assert run("neurons", "show", "0/4", *at, "--output", "card.txt").out == ""
    assert (tmp_path / "card.txt").read_text() == text and text.startswith("neuron 0/4 of decoder\n")


@pytest.mark.parametrize("already", [False, True])
def test_flip_prints_what_it_measured(
    run: Run, with_features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, already: bool
) -> None:
    from signarium.ingest.flips import run as flips

    monkeypatch.setenv("SIGNARIUM_DB", str(with_features))
    asked = []

    def measured(path: Path, feature_id: int, **options: object) -> flips.FlipReport:
        asked.append((path, feature_id, options))
        # Not the latest run: that of the arguments.
        return flips.FlipReport(featured.FLIP_RUNS[0], feature_id, DECODER, already, ["a note"], 1.0)

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
    path, feature_id, options = asked[0]
    assert (path, feature_id) == (with_features, 1000) and options.pop("progress") is not None
    assert options == {"text": ["a.txt", "b"], "windows": 32, "context": 128, "device": "auto", "seed": 3}
    assert shown.code == 0 and shown.out.startswith('" king", feature 1000 of decoder at resid_post.0')
    assert "-3.10 ± 0.05" in shown.out and "\x1b" not in shown.out
    assert shown.err == "a note\n" + "measured before: nothing was run\n" * already
    objects = json.loads(run(*arguments, "--format", "json").out)
    assert list(objects[0]) == list(parts.view("flips").columns) and len(objects) == 41
    assert {one["run_id"] for one in objects} == {featured.FLIP_RUNS[0]}
    assert asked[1][2].pop("progress") is None, "its lines would stand among the objects"
    assert run(*arguments, "--output", "flips.txt").out == ""
    assert (tmp_path / "flips.txt").read_text() == shown.out
    assert run("flip", "1000").code == 2, "there is no text"


# ---- rotations ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return twins.make(tmp_path_factory.mktemp("rotated") / "c.duckdb").path


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


@pytest.mark.parametrize("columns", [80, 120])
def test_rotations_fit_a_terminal(rotated: Path, columns: int) -> None:
    shown = ["rotations", "show", twins.ALPHA, twins.BETA, "--site", "resid_post.1"]
    for arguments in (
        ["rotations", "list"],
        shown,
        ["sae", "list"],
        ["features", "show", str(twins.CARRIED)],
    ):
        page = in_terminal(columns, "--db", str(rotated), *arguments, NO_COLOR="1")
        assert page.code == 0 and "\x1b" not in page.out and "hidden" not in page.out
        assert max(map(len, page.out.splitlines())) <= columns
    assert "\x1b[1m" in in_terminal(columns, "--db", str(rotated), *shown).out


@pytest.mark.parametrize("already", [False, True])
def test_align_prints_what_it_found(
    run: Run, rotated: Path, monkeypatch: pytest.MonkeyPatch, already: bool
) -> None:
    from signarium.ingest.rotations import run as aligning

    monkeypatch.setenv("SIGNARIUM_DB", str(rotated))
    asked = []

    def aligned(path: Path, a: str, b: str, **options: object) -> aligning.AlignReport:
        asked.append((path, a, b, options))
        return aligning.AlignReport("align-new", a, b, already, notes=["a note"])

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
    path, a, b, options = asked[0]
    assert (path, a, b) == (rotated, "alpha", "beta") and options.pop("progress") is not None
    assert options == {
        "text": ["a.txt", "b"], "sites": "resid_post.0,1", "output": Path("r.npy"), "max_tokens": 65_536, "context": 256,
        "steer": False, "device": "auto", "seed": 3,
    }  # fmt: skip
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
    assert asked[1][3].pop("progress") is None, "its lines would stand among the objects"


def test_sae_commands_say_what_they_made(run: Run, rotated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from signarium.ingest.saes import add, train

    monkeypatch.setenv("SIGNARIUM_DB", str(rotated))
    asked: list[tuple[object, ...]] = []

    def trained(path: Path, model: str, site: str, **options: object) -> train.TrainReport:
        asked.append((path, model, site, options))
        return train.TrainReport(
            Path(str(options["output"])), model, site, 480, 800, 200, 0.91234, 33.3, 0.125, notes=["a note"]
        )

    def added(path: Path, model: str, site: str, file: Path, **options: object) -> add.SaeReport:
        asked.append((path, model, site, file, options))
        return add.SaeReport("id", "run", "one", model, site, 480, already=len(asked) > 2)

    monkeypatch.setattr(train, "train_sae", trained)
    monkeypatch.setattr(add, "add_sae", added)
    at = ["--site", "resid_post.1"]
    shown = run(
        "sae",
        "train",
        "alpha",
        *at,
        "--text",
        "a.txt",
        "--output",
        "d.safetensors",
        "--seed",
        "7",
        "--l1",
        "0.01",
    )
    options = asked[0][3]
    assert isinstance(options, dict) and options.pop("progress") is not None
    assert asked[0][:3] == (rotated, "alpha", "resid_post.1")
    assert options == {
        "text": ["a.txt"], "output": Path("d.safetensors"), "seed": 7, "expansion": 8, "steps": 1500, "l1": 0.01,
        "max_tokens": 65_536, "context": 256, "device": "auto",
    }  # fmt: skip
    assert shown.err == "a note\n" and shown.out == (
        "d.safetensors: 480 directions; on 200 tokens kept aside it explains 0.912 of the variance with 33 firing at a token, "
        "12.5% never\n"
    )
    shown = run("sae", "add", "d.safetensors", "--model", "alpha", *at, "--name", "one")
    assert asked[1][:4] == (rotated, "alpha", "resid_post.1", Path("d.safetensors"))
    assert shown.out == f"one: 480 directions of alpha at resid_post.1 are in {rotated}\n"
    assert run("sae", "add", "d.safetensors", "--model", "alpha", *at).out.endswith("already\n")


@pytest.mark.parametrize("columns", [80, 120])
def test_features_fit_a_terminal(with_features: Path, columns: int) -> None:
    at = ["--model", DECODER]
    for arguments in (
        *(["features", "list"], ["features", "show", "1000"], ["evidence"]),
        *(["neurons", "list", *at], ["neurons", "show", "0/4", *at]),
    ):
        shown = in_terminal(columns, "--db", str(with_features), *arguments, NO_COLOR="1")
        assert shown.code == 0 and "\x1b" not in shown.out and "hidden" not in shown.out
        assert max(map(len, shown.out.splitlines())) <= columns
    assert "\x1b[1m" in in_terminal(columns, "--db", str(with_features), "features", "show", "1000").out


def test_evidence_in_every_format(run: Run, tmp_path: Path) -> None:
    objects = json.loads(run("evidence", "--model", DECODER, "--format", "json").out)
    text = run("evidence", "--format", "csv").out.splitlines()
    assert text[0].split(",") == list(parts.view("evidence").columns)
    assert all(one["model"] == DECODER for one in objects)
    assert run("evidence", "--output", "e.txt").out == ""
    assert (tmp_path / "e.txt").read_text() == run("evidence").out


# ---- terminals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_a_terminal(catalogue: Made, columns: int) -> None:
    for name in ("runs", "nearest"):
        arguments = [*LISTING[name], *(["--in", "states"] if name == "nearest" else [])]
        shown = in_terminal(columns, "--db", str(catalogue.path), *arguments, NO_COLOR="1")
        assert shown.code == 0 and "\x1b" not in shown.out and "hidden" not in shown.out
        assert max(map(len, shown.out.splitlines())) <= columns
        if name == "nearest":
            assert shown.out.count("«") >= 4
    coloured = in_terminal(columns, "--db", str(catalogue.path), *LISTING["sites"])
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


# ---- what starts ----------------------------------------------------------------------------------

_LOADED = """
import sys
sys.argv = ["signarium", *sys.argv[1:]]
from signarium.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
bad = {"torch", "transformers", "sqlalchemy", "alembic"}
print("LOADED", sorted(bad & set(sys.modules)), "pyarrow" in sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize(
    "name",
    ["sql", "models", "info", "nearest", "state", "show", "find", "neurons", "neuron", "rotations", "saes"],
)
def test_reading_starts_without_the_heavy_libraries(catalogue: Made, with_features: Path, name: str) -> None:
    arguments = LISTING.get(name)
    if name in ("show", "find", "neurons", "neuron", "rotations", "saes"):
        arguments = {
            "rotations": ["rotations", "list"],
            "saes": ["sae", "list"],
            "neurons": ["neurons", "list", "--model", DECODER],
            "neuron": ["neurons", "show", "0/4", "--model", DECODER],
            "show": ["features", "show", "1000"],
            "find": ["features", "find", " king", "--model", DECODER],
        }[name]
    if arguments is None:
        with duckdb.connect(str(catalogue.path), read_only=True) as connection:
            row = connection.execute("SELECT min(state_id) FROM states WHERE model = ?", [DECODER]).fetchone()
        arguments = ["nearest", f"state:{row[0]}", "--model", DECODER, "--where", "position > 2"]
    done = subprocess.run(
        [sys.executable, "-c", _LOADED, "--db", str(with_features), *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    # `sql` prints what its child process sends: it needs no Arrow.
    assert done.stderr.splitlines()[-1] == f"LOADED [] {name != 'sql'}"


@pytest.mark.parametrize("name", ["across", "page", "directions"])
def test_rotations_start_without_the_heavy_libraries(rotated: Path, name: str) -> None:
    arguments = {
        "across": ["nearest", f"state:{twins.BASE}", "--model", "alpha", "--across", "beta"],
        "page": ["rotations", "show", "alpha", "beta"],
        "directions": ["nearest", "direction:alpha sae 0/1", "--across", "beta", "--in", "directions"],
    }[name]
    done = subprocess.run(
        [sys.executable, "-c", _LOADED, "--db", str(rotated), *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.splitlines()[-1] == "LOADED [] True"


def test_python_m_signarium(catalogue: Made) -> None:
    done = process("models", "list", "--format", "csv", SIGNARIUM_DB=str(catalogue.path))
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("\n") == 3
    assert process("--version").stdout.split()[-1] == __version__


# ---- progress -------------------------------------------------------------------------------------


def test_progress_without_a_terminal_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from signarium.progress import Display

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
