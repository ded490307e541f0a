"""Options that several commands share, written once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from .. import Catalogue
from ..catalog.place import must_not_be_written
from .output import FORMATS, Output

F = TypeVar("F", bound=Callable[..., Any])

_RESUMES = "signarium.resumes"


def resumes(context: click.Context | None = None) -> bool:
    """Whether the command that runs can be gone on with after it is interrupted."""
    context = context or click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_RESUMES))


def can_resume() -> None:
    """Says of the command that runs that the same command goes on where it was interrupted."""
    click.get_current_context().meta[_RESUMES] = True


class Listed(click.Choice[str]):
    """A choice from a list that may grow while the program runs."""

    def __init__(self, names: Callable[[], Sequence[str]]) -> None:
        self._names = names
        super().__init__(names())

    def __getattribute__(self, name: str) -> Any:
        return tuple(self._names()) if name == "choices" else super().__getattribute__(name)


class _File(click.Path):
    """A file, with `~` as the home folder, which most shells leave as it is in `--output=~/x.csv`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        return super().convert(os.path.expanduser(value), param, ctx)


FILE = _File(dir_okay=False, path_type=Path)


class FreeText(click.Command):
    """A command whose argument is a text, which may begin with a dash as a comment of SQL does: no option has a blank in
    its name."""

    def make_parser(self, ctx: click.Context) -> Any:
        """Click's parser, for which such an argument is none of the options."""
        parser = super().make_parser(ctx)
        take = parser._process_opts

        def process(argument: str, state: Any) -> None:
            if any(map(str.isspace, argument.partition("=")[0])):
                state.largs.append(argument)
            else:
                take(argument, state)

        parser._process_opts = process  # type: ignore[assignment, method-assign]
        return parser


# ---- what is printed, and where -------------------------------------------------------------------


def _with_output(command: F, formats: tuple[str, ...], about: str) -> F:
    """`--format` and `--output`, given to the command as one argument `output`."""

    @wraps(command)
    def run(*args: Any, format_: str, output: Path | None, **options: Any) -> Any:
        asked = Output(format_, output)
        catalogue = click.get_current_context().find_object(Catalogue)
        if output is not None and catalogue is not None:
            must_not_be_written(catalogue.path, output)
        return command(*args, output=asked, **options)

    file = click.option(
        "--output",
        type=FILE,
        help="Write to a file, whole or not at all.",
    )
    return _format(formats, about)(file(run))  # type: ignore[return-value]


def _format(formats: tuple[str, ...], about: str) -> Callable[[F], F]:
    return click.option(
        "--format", "format_", type=click.Choice(formats), default="table", show_default=True, help=about
    )


def output_options(command: F) -> F:
    """`--format` and `--output` of every command that lists; the command takes them as `output`."""
    about = "table shows the main columns, the others all of them; parquet needs --output."
    return _with_output(command, FORMATS, about)


def evidence_output(command: F) -> F:
    """`--format` with Markdown and `--output`; the command takes them as `output`."""
    about = "table and markdown show the main columns, the others all of them; parquet needs --output."
    return _with_output(command, (*FORMATS, "markdown"), about)


def page_options(about_json: str) -> Callable[[F], F]:
    """`--format` and `--output` of a command that prints a page; the command takes them as `output`."""
    return lambda command: _with_output(command, ("table", "json"), about_json)


def format_option(about_json: str) -> Callable[[F], F]:
    """`--format` alone, table or json; the command takes it as `format_`."""
    return _format(("table", "json"), about_json)


# ---- which part of the catalogue ------------------------------------------------------------------


def model_option(about: str = "One model of the catalogue.") -> Callable[[F], F]:
    """`--model`."""
    return click.option("--model", metavar="NAME", help=about)


def centre_option(about: str) -> Callable[[F], F]:
    """`--centre`."""
    return click.option("--centre", type=click.Choice(["zero", "mean"]), help=about)


def place_options(command: F) -> F:
    """`--model`, `--site` and `--centre` of the commands about features."""
    command = centre_option("Only with this centre.")(command)
    command = click.option("--site", metavar="SITE", help="Only at this site.")(command)
    return model_option()(command)


def limit_option(command: F) -> F:
    """`--limit`."""
    return click.option(
        "--limit",
        type=click.IntRange(0),
        default=20,
        show_default=True,
        metavar="N",
        help="How many; 0 for all.",
    )(command)


def least_option(command: F) -> F:
    """`--least`."""
    return click.option(
        "--least",
        type=click.FloatRange(0, 1),
        default=0.8,
        show_default=True,
        metavar="SHARE",
        help="Leave out agreements below this.",
    )(command)


# ---- what a model is run over, and on what --------------------------------------------------------


def text_option(required: bool = True) -> Callable[[F], F]:
    """`--text`, which may be repeated, and `--column`."""

    def add(command: F) -> F:
        command = click.option(
            "--column",
            default="text",
            show_default=True,
            metavar="NAME",
            help="The field or column of records that is their text.",
        )(command)
        return click.option(
            "--text",
            multiple=True,
            required=required,
            metavar="PATH",
            help="A text: a file, a folder, or records (.jsonl, .json, .csv, .parquet ...). May be repeated.",
        )(command)

    return add


def tokens_option(command: F) -> F:
    """`--max-tokens` of what takes a part of a text."""
    return click.option(
        "--max-tokens",
        type=click.IntRange(1),
        default=65_536,
        show_default=True,
        metavar="N",
        help="Tokens of the text that count.",
    )(command)


def context_option(
    default: int = 256, least: int = 2, about: str = "Tokens of a window."
) -> Callable[[F], F]:
    """`--context`."""
    return click.option(
        "--context", type=click.IntRange(least), default=default, show_default=True, metavar="N", help=about
    )


def device_option(about: str = "cpu, cuda, cuda:1, mps.") -> Callable[[F], F]:
    """`--device`."""
    return click.option("--device", default="auto", show_default=True, help=about)


def seed_option(about: str) -> Callable[[F], F]:
    """`--seed`."""
    return click.option(
        "--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N", help=about
    )
