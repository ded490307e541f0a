"""Help of every command, and what is wrong usage."""

from __future__ import annotations

import click
import pytest
from made import Made
from terminal import ALL, Run, process

from signarium import __version__
from signarium.catalog import engines, part, parts
from signarium.cli import cli
from signarium.queries import subjects


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
    choices = next(one for one in ALL["nearest",].params if one.name == "within").type
    assert isinstance(choices, click.Choice) and list(choices.choices) == subjects.names()


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


def test_the_engines_that_can_be_asked_for_are_those_that_there_are() -> None:
    (option,) = (one for one in ALL["nearest",].params if one.name == "engine")
    assert tuple(option.type.choices) == engines.ENGINES  # type: ignore[attr-defined]


def test_python_m_signarium(catalogue: Made) -> None:
    done = process("models", "list", "--format", "csv", SIGNARIUM_DB=str(catalogue.path))
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("\n") == 3
    assert process("--version").stdout.split()[-1] == __version__


def test_a_view_with_an_order_can_be_listed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    view = part.View("tiny", "One row a model.", {"model": "its name"}, "", order="model")
    monkeypatch.setattr(parts, "PARTS", [*parts.PARTS, part.Part("tiny", views=(view,))])
    assert "tiny" in run("--help").out
    shown = run("tiny", "list", "--help")
    assert "One row a model." in shown.out and "--model" in shown.out
    monkeypatch.undo()
    cli.commands.pop("tiny")
