"""`models list`, `runs list`, `sites list`: a view, every row."""

from __future__ import annotations

import click

from .. import Catalogue
from .options import model_option, output_options
from .output import Output


def add_list(group: click.Group, view: str, about: str, per_model: bool = True) -> None:
    """Adds the command `list` to a group: every row of a view, of one model if it is asked for."""

    @group.command("list", help=about)
    @output_options
    @click.pass_obj
    def show(catalogue: Catalogue, output: Output, model: str | None = None) -> None:
        from .pages.lists import view_rows

        table = getattr(catalogue, view)(model) if per_model else getattr(catalogue, view)()
        output.table(table, lambda table, width: view_rows(view, table, width))

    if per_model:
        model_option()(show)


def _group(view: str, about: str, per_model: bool = True) -> click.Group:
    group = click.Group(view, help=about)
    add_list(group, view, about, per_model)
    return group


models = _group("models", "The models in the catalogue.", per_model=False)
runs = _group("runs", "The jobs that filled the catalogue.")
sites = _group("sites", "The sites that were ingested.")
