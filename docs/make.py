"""Write docs/cli.md from the commands' own help, and docs/views.md from `catalog/parts/`.

`--check` writes nothing and exits with 1 if a file is not what would be written.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from signarium.catalog import parts
from signarium.cli import cli

FOLDER = Path(__file__).resolve().parent
NOTE = "<!-- Written by docs/make.py; run `make docs` after a change. -->"


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command under `group` with its full name, groups before their members."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield " ".join((*path, name)), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def cli_page() -> str:
    """The reference of the command line."""
    parts = ["# The command line", NOTE]
    for name, command in [("", cli), *commands(cli)]:
        full = f"signarium {name}".strip()
        settings = cli.context_settings
        context = click.Context(command, info_name=full, **settings)
        context.max_content_width = context.terminal_width = 100
        parts.append(f"## `{full}`\n\n```text\n{command.get_help(context)}\n```")
    return "\n\n".join(parts) + "\n"


def views_page() -> str:
    """The reference of the views and macros."""
    blocks = ["# The SQL surface", NOTE]
    blocks.append(
        "These views and macros stay from one version to the next; tables may change. "
        "In every view `model` is the model's name, and codes print as lowercase hex outside Python."
    )
    for view in parts.views().values():
        rows = "\n".join(f"| `{name}` | {about} |" for name, about in view.columns.items())
        blocks.append(f"## `{view.name}`\n\n{view.about}\n\n| column | what it is |\n|---|---|\n{rows}")
    rows = "\n".join(f"| `{one.name}({', '.join(one.arguments)})` | {one.about} |" for one in parts.macros())
    blocks.append(f"## Macros\n\n| macro | what it gives |\n|---|---|\n{rows}")
    return "\n\n".join(blocks) + "\n"


def main() -> None:
    """Write or check both pages."""
    stale = []
    for name, text in (("cli.md", cli_page()), ("views.md", views_page())):
        file = FOLDER / name
        if file.exists() and file.read_text() == text:
            continue
        stale.append(name)
        if "--check" not in sys.argv:
            file.write_text(text)
    if "--check" in sys.argv and stale:
        sys.exit(f"out of date: {', '.join(stale)}; run `make docs`")
    print("docs: " + (f"wrote {', '.join(stale)}" if stale else "up to date"))


if __name__ == "__main__":
    main()
