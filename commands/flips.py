"""`signarium flip`: what flipping a feature's signs does."""

from __future__ import annotations

import sys
from typing import Any

import click

from .. import Catalogue
from .options import (
    can_resume,
    context_option,
    device_option,
    page_options,
    place_options,
    seed_option,
    text_option,
)
from .output import Output, say
from .progress import Display


@click.command(short_help="Turn a feature's signs, and measure the logits.")
@click.argument("feature")
@text_option()
@place_options
@click.option(
    "--windows",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    metavar="N",
    help="Windows of the text that are measured on.",
)
@context_option(default=128)
@seed_option("Of the random arms and of the order of dimensions.")
@device_option()
@page_options("json: a list of the rows of the view `flips`.")
@click.pass_obj
def flip(catalogue: Catalogue, feature: str, text: tuple[str, ...], output: Output, **options: Any) -> None:
    """What flipping a feature's signs does to the logits of a text, with all its controls.

    FEATURE is a feature_id or a name. A name that several features have needs --model, --site or --centre. What was
    measured already is not measured again, and a flip that was cut short goes on where it stopped.
    """
    from .pages.feature import flips

    can_resume()
    with Display() as display:
        # Without a terminal progress goes to stdout, and there it would stand among the objects.
        heard = sys.stderr.isatty() or output.format == "table" or output.file is not None
        report = catalogue.flip(feature, text=list(text), progress=display if heard else None, **options)
    for note in report.notes:
        say(note)
    if report.already:
        say("measured before: nothing was run")
    card = catalogue.feature(report.feature_id, flip_run=report.run_id)
    output.page(card.flips.to_pylist(), lambda width, color: flips(card, width, color))
