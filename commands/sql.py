"""`signarium sql`: one query."""

from __future__ import annotations

import sys

import click

from .. import Catalogue
from .options import FreeText, output_options
from .output import Output
from .render import TABLE_ROWS

_ROW_GROUP = 65_536
"""Rows of a group in a Parquet file."""


@click.command(cls=FreeText, short_help="Run one SELECT or EXPLAIN, read-only.")
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
    table, parquet = output.format == "table", output.format == "parquet"
    if not parquet and "pyarrow" not in sys.modules:
        # Nothing here needs it, and Arrow starts in half the time without it.
        sys.modules.setdefault("numpy", None)  # type: ignore[arg-type]
    with catalogue.sql_batches(
        query,
        exact=True,
        rows=TABLE_ROWS + 1 if table else None,
        batch_rows=_ROW_GROUP if parquet else 8192,
        allow_files=allow_files,
        timeout=timeout,
        memory=memory,
    ) as reader:
        output.batches(reader)
