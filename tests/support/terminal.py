"""The command line in tests: in this process, in one of its own, and in a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import click
from made import DECODER

from signarium.cli import cli

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
    """Every command with its full name, groups before their members."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


ALL = dict(commands())
