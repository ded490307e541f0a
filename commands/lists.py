"""`models list`, `runs list`, `sites list` ...: every view that has an order can be listed by its name."""

from __future__ import annotations

import click

from .. import Catalogue
from ..catalog import parts
from .options import model_option, output_options
from .output import Output

_OF_GROUPS = ("saes",)
"""Views whose list stands in the group of another name: `sae list`."""


def names() -> list[str]:
    """The views that are listed by their own name."""
    return [view.name for view in parts.views().values() if view.order and view.name not in _OF_GROUPS]


def listing(view: str) -> click.Group:
    """The group of a view, with its command `list`."""
    group = click.Group(view, help=parts.view(view).about, short_help=f"The rows of the view {view}.")
    add_list(group, view)
    return group


def add_list(group: click.Group, view: str) -> None:
    """Adds the command `list` to a group: every row of a view, of one model if it is asked for."""

    @group.command("list", help=parts.view(view).about)
    @output_options
    @click.pass_obj
    def show(catalogue: Catalogue, output: Output, model: str | None = None) -> None:
        from .pages.lists import view_rows

        output.table(
            catalogue.rows(view, model), lambda table, width: view_rows(parts.view(view).shown, table, width)
        )

    if "model" in parts.view(view).columns:
        model_option()(show)
