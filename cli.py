"""The command line's entry point: signals, errors as one line with an exit code, and the groups of `commands/`."""

from __future__ import annotations

import os
import select
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

import click

from .commands import Commands
from .commands.flags import flag
from .commands.options import resumes
from .commands.output import FORMATS, discard, say

__all__ = ["FORMATS", "cli", "main"]


class _Interrupted(Exception):
    """Ctrl-C, under a name that click does not handle in its own way."""

    def __init__(self, resumes: bool) -> None:
        self.resumes = resumes


class _Unread(Exception):
    """Whoever read our output has stopped, likewise."""


class _Cli(Commands):
    def make_context(self, *args: Any, **options: Any) -> click.Context:
        try:
            return super().make_context(*args, **options)
        except BrokenPipeError:  # of --help
            raise _Unread from None

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
    _open_streams()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, _terminate)
    code = _run()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            discard(stream)
    sys.exit(code)


def _run() -> int:
    from .catalog.errors import SignariumError

    try:
        code = cli.main(standalone_mode=False, prog_name="signarium")
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        with suppress(OSError):
            error.show()
        return error.exit_code
    except (_Interrupted, click.Abort, KeyboardInterrupt) as stop:
        resumed = isinstance(stop, _Interrupted) and stop.resumes
        if sys.stderr.isatty():
            say("")  # the terminal has just written ^C
        kept = "; what was committed is kept, and the same command goes on from there"
        say("interrupted" + (kept if resumed else ""))
        return 130
    except (_Unread, BrokenPipeError):
        # Whoever read us has seen enough.
        return 0 if _is_left(sys.stdout) else _failed("a pipe was closed")
    except SignariumError as error:
        return _failed(error.line(flag))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _failed(f"{where}{(error.strerror or str(error)).lower()}")
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("duckdb", "_duckdb"):
            raise
        return _failed(" ".join(str(error).split())[:600])


def _open_streams() -> None:
    """Gives a program that was started without one of its streams (`>&-`) one that leads nowhere.

    Else the next file that it opens, such as the catalogue, takes that place, and what is printed goes into it.
    """
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(handle, True)
    os.close(handle)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def _is_left(stream: TextIO) -> bool:
    """Whether nobody reads a pipe any more."""
    poll = select.poll()
    poll.register(stream, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _terminate(*_: object) -> NoReturn:
    # As Ctrl-C: what is open is closed, and locks and half-written files go.
    raise KeyboardInterrupt


def _failed(message: str) -> int:
    say(f"error: {message}")
    return 1
