"""The command line's entry point: signals, errors as one line with an exit code, and the groups of `commands/`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from .commands import Commands
from .commands.flags import flag
from .commands.options import resumes
from .commands.output import FORMATS, say

__all__ = ["FORMATS", "cli", "main"]


class _Interrupted(Exception):
    """Ctrl-C, under a name that click does not handle in its own way."""

    def __init__(self, resumes: bool) -> None:
        self.resumes = resumes


class _Unread(Exception):
    """Whoever read our output has stopped, likewise."""


class _Cli(Commands):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Interrupted(resumes(ctx)) from None
        except BrokenPipeError:
            raise _Unread from None


@click.group(cls=_Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--db",
    type=click.Path(path_type=Path),
    help="The catalogue.  [default: $SIGNARIUM_DB, else ./catalogue.duckdb]",
)
@click.option(
    "--plugin",
    "plugins",
    multiple=True,
    type=click.Path(),
    metavar="PATH",
    envvar="SIGNARIUM_PLUGINS",
    help="A Python file, a package's folder or a module to run first, such as one that registers an architecture. "
    "May be repeated.  [default: $SIGNARIUM_PLUGINS]",
)
@click.version_option(package_name="signarium", prog_name="signarium")
@click.pass_context
def cli(context: click.Context, db: Path | None, plugins: tuple[str, ...]) -> None:
    """A catalogue of what the signs of a transformer's hidden states encode."""
    from . import Catalogue, load_plugin

    for plugin in plugins:
        load_plugin(plugin)
    context.obj = Catalogue(db)


def main() -> NoReturn:
    """Entry point: errors are one line on stderr and exit code 1, wrong usage 2, an interrupt 130."""
    from .catalog.errors import SignariumError

    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = cli.main(standalone_mode=False, prog_name="signarium")
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (_Interrupted, click.Abort, KeyboardInterrupt) as stop:
        resumed = isinstance(stop, _Interrupted) and stop.resumes
        if sys.stderr.isatty():
            say("")  # the terminal has just written ^C
        kept = "; what was committed is kept, and the same command goes on from there"
        say("interrupted" + (kept if resumed else ""))
        sys.exit(130)
    except (_Unread, BrokenPipeError):
        # Whoever read us has seen enough; Python must not complain about it when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except SignariumError as error:
        _fail(error.line(flag))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{(error.strerror or str(error)).lower()}")
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("duckdb", "_duckdb"):
            raise
        _fail(" ".join(str(error).split())[:600])


def _terminate(*_: object) -> NoReturn:
    # As Ctrl-C: what is open is closed, and locks and half-written files go.
    raise KeyboardInterrupt


def _fail(message: str) -> NoReturn:
    say(f"error: {message}")
    sys.exit(1)
