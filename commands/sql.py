"""`signarium sql`: one query."""

from __future__ import annotations

import sys

import click

from .. import Catalogue
from .options import output_options
from .output import Output


@click.command()
@click.argument("query")
@output_options
@click.option(
    "--allow-files", is_flag=True, help="Let the query read other files (read_csv, read_parquet, ...)."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Stop the query after so long.",
)
@click.option(
    "--memory",
    default="2GB",
    show_default=True,
    metavar="SIZE",
    help="What the query may use, such as 512MB.",
)
@click.pass_obj
def sql(
    catalogue: Catalogue, query: str, output: Output, allow_files: bool, timeout: float, memory: str
) -> None:
    """Run one SELECT or EXPLAIN, read-only. See docs/views.md for the views."""
    from ..queries.sql import run_to

    run_to(
        catalogue.path,
        query,
        format=output.format,
        out=None if output.file else sys.stdout.buffer,
        output=output.file,
        width=output.width,
        color=output.color,
        allow_files=allow_files,
        timeout=timeout,
        memory=memory,
        check=True,
    )
