"""Write docs/cli.md from the commands' own help, docs/views.md from `catalog/parts/`, and the tables of evidence.

`catalog/spelled.txt` is written with them: it says how DuckDB spells the views.

The tables are those of `evidence.json`, which `signarium evidence --measured --format json` wrote of a catalogue of
SmolLM2-135M. A page says which rows it shows: `<!-- evidence: 1.1; 4.3 = most frequent tokens -->` has all controls of claim
1.1 and one of claim 4.3, `<!-- evidence: all -->` everything, up to `<!-- end of evidence -->`.

`--check` writes nothing and exits with 1 if a file is not what would be written.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import duckdb
import pyarrow as pa

from signarium.catalog import parts, shadow, surface
from signarium.cli import cli
from signarium.commands.pages.evidence import markdown
from signarium.migrations.manage import migrate

FOLDER = Path(__file__).resolve().parent
EVIDENCE = FOLDER / "evidence.json"
_TABLE = re.compile(r"(<!-- evidence: (.+?) -->\n).*?(<!-- end of evidence -->)", re.S)
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


def with_evidence(page: str) -> str:
    """A page with its tables of evidence as `evidence.json` has them."""
    rows = json.loads(EVIDENCE.read_text(encoding="utf-8"))

    def table(found: re.Match[str]) -> str:
        chosen = [row for item in found[2].split(";") for row in _chosen(rows, item.strip())]
        return f"{found[1]}\n{markdown(pa.Table.from_pylist(chosen))}{found[3]}"

    return _TABLE.sub(table, page)


def _chosen(rows: list[dict[str, Any]], item: str) -> list[dict[str, Any]]:
    """The rows of `all`, of a claim, or of `CLAIM = CONTROL`: of centre `mean`, or of no centre.

    Raises:
        ValueError: if there are none.
    """
    claim, _, control = (part.strip() for part in item.partition("="))
    kept = [row for row in rows if row["centre"] != "zero" and row["verdict"] != "not measured"]
    if claim != "all":
        kept = [row for row in kept if row["claim_id"] == claim and control in ("", row["control"])]
    if not kept:
        raise ValueError(f"evidence.json has no measured row of {item!r}")
    return kept


def spelled() -> str:
    """This program's views as DuckDB spells them, as a digest: what a reader compares a file's views with."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.duckdb"
        migrate(path)
        with duckdb.connect(str(path), read_only=True) as connection:
            return f"{surface.fingerprint()} {shadow.digest(connection, parts.views())}\n"


def pages() -> Iterator[tuple[Path, str]]:
    """Every file that is written here, with its text."""
    yield surface.SPELLED, spelled()
    yield FOLDER / "cli.md", cli_page()
    yield FOLDER / "views.md", views_page()
    for file in (FOLDER.parent / "README.md", *sorted(FOLDER.glob("*.md"))):
        text = file.read_text(encoding="utf-8")
        if _TABLE.search(text):
            yield file, with_evidence(text)


def main() -> None:
    """Write or check all pages."""
    stale = []
    for file, text in pages():
        name = file.name
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
