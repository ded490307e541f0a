"""The command line in tests: in this process, in one of its own, and in a pseudo-terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import click
from digest import Commands
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


def in_terminal(warm: Commands, columns: int, *arguments: str, **changes: str) -> Ran:
    """In a pseudo-terminal of so many columns; stdout and stderr both go there."""
    ended = warm.run(*arguments, columns=columns, environment=changes)
    return Ran(ended.code, ended.out, ended.err)


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
