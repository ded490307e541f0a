"""`signarium db`: the catalogue file."""

from __future__ import annotations

from contextlib import nullcontext, suppress

import click

from .. import Catalogue
from ..catalog.errors import SignariumError
from .options import output_options
from .output import Output, say


@click.group(short_help="The catalogue file: size, checks, upgrade, indexes.")
def db() -> None:
    """The catalogue file: size, integrity, migrations, indexes."""


@db.command("info")
@output_options
@click.pass_obj
def db_info(catalogue: Catalogue, output: Output) -> None:
    """Sizes and counts."""
    from .pages.lists import info as display

    output.table(catalogue.info(), display)


@db.command("verify")
@click.option(
    "--model", metavar="NAME", help="Also recompute a sample of this model's codes, if it is at hand."
)
@output_options
@click.pass_obj
def db_verify(catalogue: Catalogue, model: str | None, output: Output) -> None:
    """Check the file from end to end; exit code 1 if something is wrong."""
    findings = catalogue.verify(model)

    import pyarrow as pa

    columns = {
        "check": [one.check for one in findings],
        "looked_at": [one.looked_at for one in findings],
        "wrong": [one.wrong for one in findings],
        "where": [one.where for one in findings],
    }
    broken = [f"{one.check} ({one.where})" if one.where else one.check for one in findings if not one.ok]
    # Who has read enough of the table has not read this.
    with suppress(BrokenPipeError) if broken else nullcontext():
        output.table(pa.table(columns))
    if broken:
        raise SignariumError(
            f"{catalogue.path} is not sound: {'; '.join(broken)}",
            "run `signarium db index`"
            if all(one.startswith("index files") for one in broken)
            else "restore it from a copy, or ingest again",
        )


@db.command("upgrade")
@click.pass_obj
def db_upgrade(catalogue: Catalogue) -> None:
    """Bring an older catalogue to this signarium's schema; a copy is kept."""
    backup = catalogue.upgrade()
    say(
        f"{catalogue.path} is up to date"
        if backup is None
        else f"{catalogue.path} is upgraded; the old file is {backup}"
    )


@db.command("index")
@click.option(
    "--engines", is_flag=True, help="Print which search engine is taken for how many queries, and why."
)
@output_options
@click.pass_obj
def db_index(catalogue: Catalogue, engines: bool, output: Output) -> None:
    """Build the search indexes that are missing, stale or damaged, and delete those of nothing."""
    if notes := catalogue.index():
        raise SignariumError(f"{len(notes)} indexes were not built: {notes[0]}", "mend that and run it again")
    say(f"the indexes of {catalogue.path} are complete")
    if engines:
        from .pages.lists import engines as display

        table = catalogue.engines()
        for line in dict.fromkeys(filter(None, table.column("missing").to_pylist())):
            say(line)
        output.table(table, display)
