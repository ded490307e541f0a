"""The command line, one file for each noun: parse, call one method of the door, print.

Each command gets a `signarium.Catalogue` as its first argument and goes no further than that. What is printed is made
in `render` (values, tables, charts) and `pages` (one page for each thing).
"""

from __future__ import annotations

import importlib

import click

MODULES = {
    "align": "rotations",
    "db": "db",
    "evidence": "evidence",
    "features": "features",
    "flip": "flips",
    "ingest": "ingest",
    "models": "removal",
    "nearest": "search",
    "neurons": "neurons",
    "rotations": "rotations",
    "runs": "removal",
    "sae": "saes",
    "sql": "sql",
}
"""The file that each command or group stands in, under its own name. What is listed by the name of a view is in `lists`."""


class Commands(click.Group):
    """A group that imports the file of a command when that command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """All names, in alphabetical order."""
        from .lists import names

        return sorted({*MODULES, *names(), *self.commands})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        if cmd_name not in self.commands:
            if cmd_name in MODULES:
                module = importlib.import_module(f".{MODULES[cmd_name]}", __name__)
                self.add_command(getattr(module, cmd_name), cmd_name)
            else:
                from .lists import listing, names

                if cmd_name in names():
                    self.add_command(listing(cmd_name))
        return super().get_command(ctx, cmd_name)
