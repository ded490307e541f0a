"""`signarium neurons`: the list, and one of them."""

from __future__ import annotations

from typing import Any

import click

from .. import Catalogue
from .options import limit_option, model_option, output_options, page_options
from .output import Output, say


@click.group(short_help="FFN neurons: list them, show what one writes.")
def neurons() -> None:
    """What the FFN neurons write, and which features that is."""


@neurons.command("list")
@model_option()
@click.option("--layer", type=click.IntRange(0), metavar="N", help="Only this block.")
@click.option(
    "--sort",
    default="surprise",
    show_default=True,
    metavar="COLUMN",
    help="surprise, agreement, features (among whose 50 writers it is) or norm.",
)
@limit_option
@output_options
@click.pass_obj
def neurons_list(catalogue: Catalogue, output: Output, **options: Any) -> None:
    """The neurons, the strongest first, each with the feature that it writes best.

    That is the feature which its signs agree with least by chance: a surprise is an agreement in standard deviations
    of fair coins above 0.5, since features of few dimensions agree easily. polarity is -1 where a negative activation
    writes the feature.
    """
    from .pages.lists import neurons as display

    table = catalogue.neurons(**options)
    if 0 < options["limit"] == table.num_rows:
        say(f"the first {options['limit']} by {options['sort']}; --limit 0 for all")
    output.table(table, display)


@neurons.command("show")
@click.argument("neuron")
@model_option()
@page_options(
    "json: a list of one object with the neuron, its projections, features, chance and unembedding."
)
@click.pass_obj
def neurons_show(catalogue: Catalogue, neuron: str, output: Output, model: str | None) -> None:
    """One neuron: what it writes in words, and which features that is, beside what chance gives.

    NEURON is block/neuron, both from 0, such as 12/305.
    """
    from .pages.neuron import page

    card = catalogue.neuron(neuron, model=model)
    output.page([card.parts()], lambda width, color: page(card, width, color))
