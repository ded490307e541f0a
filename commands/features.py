"""`signarium features`: the list, one of them, those of a token, and those of a text."""

from __future__ import annotations

from typing import Any

import click

from .. import Catalogue
from .options import (
    FILE,
    FreeText,
    centre_option,
    context_option,
    device_option,
    least_option,
    limit_option,
    model_option,
    output_options,
    page_options,
    place_options,
)
from .output import Output, say


@click.group(short_help="Features: list, show, find those of a token, read a text.")
def features() -> None:
    """What the signs encode: features, with the controls that they stand beside."""


@features.command("list")
@place_options
@click.option(
    "--kind", metavar="KIND", help="Only category, discovered, or direction (carried by a rotation)."
)
@click.option(
    "--survives/--fails", default=None, help="Only those that survive their controls, or only the others."
)
@click.option(
    "--sort",
    default="auc_held_out",
    show_default=True,
    metavar="COLUMN",
    help="name, n_dims, best_dim_auc, auc_in_sample, auc_held_out, auc_rotated, fire_rate or p_value.",
)
@limit_option
@output_options
@click.pass_obj
def features_list(catalogue: Catalogue, output: Output, **options: Any) -> None:
    """The features, the strongest first."""
    from .pages.lists import features as display

    table = catalogue.features(**options)
    if 0 < options["limit"] == table.num_rows:
        say(f"the first {options['limit']} by {options['sort']}; --limit 0 for all")
    output.table(table, display)


@features.command("show")
@click.argument("feature")
@place_options
@page_options(
    "json: a list of one object with the feature, its members, types, states, measurements, histogram, writers, "
    "coalitions, projections, flips, and where it was carried from."
)
@click.pass_obj
def features_show(catalogue: Catalogue, feature: str, output: Output, **options: Any) -> None:
    """One feature: its tokens, its contexts, what writes it, what flipping it does, and each figure beside its controls.

    FEATURE is a feature_id or a name. A name that several features have needs --model, --site or --centre.
    """
    from .pages.feature import page

    card = catalogue.feature(feature, **options)
    output.page([card.parts()], lambda width, color: page(card, width, color))


@features.command("find", cls=FreeText)
@click.argument("token")
@place_options
@least_option
@limit_option
@output_options
@click.pass_obj
def features_find(catalogue: Catalogue, token: str, output: Output, **options: Any) -> None:
    """The features that TOKEN alone has, the most surprising first.

    TOKEN is one token of the vocabulary, its leading space included, such as `" king"`, or `id:NUMBER`. A
    surprise is an agreement in standard deviations above the mean of all types.
    """
    from .pages.lists import features as display

    output.table(catalogue.find(token, **options), display)


@features.command("read", cls=FreeText)
@click.argument("text", required=False)
@click.option(
    "--file",
    type=FILE,
    help="Read the text from a file instead.",
)
@model_option()
@click.option(
    "--site",
    metavar="SITE",
    help="[default: the resid_post site with the most category features that are shown]",
)
@centre_option("[default: zero if categories are shown with it]")
@click.option(
    "--top", type=click.IntRange(1), default=3, show_default=True, metavar="N", help="Features of a token."
)
@least_option
@click.option("--first", is_flag=True, help="Also those of the first position, which is atypical.")
@click.option(
    "--all",
    "every",
    is_flag=True,
    help="Also categories that do not beat their null, discovered and carried features that do not survive, and "
    "features with fewer than 5 dimensions.",
)
@context_option(least=1, about="Tokens of a window; a longer text is read in several.")
@device_option()
@output_options
@click.pass_obj
def features_read(catalogue: Catalogue, output: Output, **options: Any) -> None:
    """TEXT token by token, each with the features that it has more than is usual in a text."""
    from .pages.reading import display, summary

    table = catalogue.read(**options)
    say(summary(table))
    output.table(table, lambda table, _: display(table))
