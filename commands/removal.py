"""`signarium runs` and `signarium models`: their lists, and taking one out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import click

from .. import Catalogue
from ..catalog import parts
from .lists import listing
from .output import tell

runs, models = listing("runs"), listing("models")


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.option("--dry-run", is_flag=True, help="Say what would go, and stop."),
    ):
        command = option(command)
    return click.pass_obj(command)


def _remove(remove: Callable[..., dict[str, int]], what: str, dry_run: bool, yes: bool) -> None:
    def said(counts: dict[str, int]) -> str:
        single = {table.rows: table.row for table in parts.tables().values()}
        return ", ".join(f"{n:,} {single[rows] if n == 1 else rows}" for rows, n in counts.items())

    if dry_run or not yes:
        click.echo(f"{what}: {said(remove(what, dry_run=True))}")
        if dry_run:
            click.echo("dry run: nothing was removed")
            return
        click.confirm("Remove all of it?", abort=True)
    tell(f"removed: {said(remove(what))}")


@runs.command("remove", short_help="Take a run out, and what depends on it.")
@click.argument("run_id")
@_options
def runs_remove(catalogue: Catalogue, run_id: str, dry_run: bool, yes: bool) -> None:
    """Take the run RUN_ID out of the catalogue, with all that depends on it.

    With a run of types go the features, neurons and figures that were computed after it, with a run of states what was
    computed in context. The texts of a run go unless another run read them.
    """
    _remove(partial(catalogue.remove, "run"), run_id, dry_run, yes)


@models.command("remove", short_help="Take a model out, and all that is of it.")
@click.argument("name")
@_options
def models_remove(catalogue: Catalogue, name: str, dry_run: bool, yes: bool) -> None:
    """Take the model NAME out of the catalogue, with all that is of it, its rotations to other models included."""
    _remove(partial(catalogue.remove, "model"), name, dry_run, yes)
