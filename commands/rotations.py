"""`signarium align` and `signarium rotations`: from one model to another."""

from __future__ import annotations

import sys
from typing import Any

import click

from .. import Catalogue
from ..catalog.errors import InvalidInput
from .options import (
    FILE,
    can_resume,
    context_option,
    device_option,
    format_option,
    output_options,
    page_options,
    seed_option,
    text_option,
    tokens_option,
)
from .output import Output, say
from .progress import Display


@click.command(short_help="Fit the rotations from model A to model B.")
@click.argument("model_a", metavar="A")
@click.argument("model_b", metavar="B")
@text_option()
@click.option(
    "--sites",
    metavar="SPEC",
    help="Such as `resid_post.8,16`.  [default: those where both have states, else evenly spaced resid_post]",
)
@click.option(
    "--output",
    type=FILE,
    metavar="R.npy",
    help="Also write the matrices to a file, with several sites one for each.",
)
@tokens_option
@context_option()
@click.option(
    "--steer", metavar="SITE", help="Where directions of A are tried on B.  [default: the middle site]"
)
@click.option("--no-steer", is_flag=True, help="Try no directions.")
@device_option()
@seed_option("Of the split into documents, and of what is random.")
@format_option("json: a list of the rows of the view `rotations`, without the matrices.")
@click.pass_obj
def align(
    catalogue: Catalogue, model_a: str, model_b: str, text: tuple[str, ...], format_: str, steer: str | None, no_steer: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Fit the rotation from model A to model B of one width at each site, and store it with its controls.

    Both models run over the same text; the rotation is fitted on some of its documents and scored on others. What is
    printed is explained variance: of B's states as they are taken from A (as is), with the mean moved (mean), through
    the rotation, through any linear map, through a rotation fitted on shuffled pairs of tokens (shuffle) or on pairs
    whose token types were exchanged (swap), and from B's mean at the same token without any A (token); halves is how
    far rotations fitted on disjoint halves agree, 1 if they are one. Afterwards `nearest QUERY --model A
    --across B` searches B, and `rotations show A B` has all of it. What was fitted already is not fitted again, and an
    align that was cut short goes on where it stopped.
    """
    from .pages.lists import rotations_by_site, warnings

    if steer is not None and no_steer:
        raise InvalidInput("--steer and --no-steer contradict each other", "pass one of them")

    can_resume()
    with Display() as display:
        # Without a terminal progress goes to stdout, and there it would stand among the objects.
        heard = sys.stderr.isatty() or format_ == "table"
        report = catalogue.align(
            model_a, model_b, text=list(text), steer=False if no_steer else True if steer is None else steer,
            progress=display if heard else None, **options,
        )  # fmt: skip
    for note in report.notes:
        say(note)
    if report.already:
        say("fitted before: nothing was run")
    table = catalogue.rotations(run_id=report.run_id)
    Output(format_).table(table, lambda table, _: rotations_by_site(table))
    for line in warnings(table):
        say(line)
    for file in report.outputs:
        say(f"{file} holds a matrix, float32, x_b = (x_a - mean_a) R + mean_b for rows x")


@click.group(short_help="Rotations between models: list them, show one.")
def rotations() -> None:
    """What carries one model's states to another's, beside what could explain it away."""


@rotations.command("list")
@click.option("--model", metavar="NAME", help="Only those from or to this model.")
@output_options
@click.pass_obj
def rotations_list(catalogue: Catalogue, output: Output, model: str | None) -> None:
    """The rotations by models and site; their matrices are in the view `rotations`."""
    from .pages.lists import rotations as display

    output.table(catalogue.rotations(model), display)


@rotations.command("show")
@click.argument("model_a", metavar="A")
@click.argument("model_b", metavar="B")
@click.option("--site", metavar="SITE", help="Of A.  [default: the middle one of those with a rotation]")
@page_options(
    "json: a list of one object with the rotation, others of its run, components, measurements, steering and features."
)
@click.pass_obj
def rotations_show(
    catalogue: Catalogue, model_a: str, model_b: str, output: Output, site: str | None
) -> None:
    """One rotation: what it explains, whether it is determined, what it carries, and what that steers."""
    from .pages.rotation import page

    card = catalogue.rotation_card(model_a, model_b, site)
    output.page([card.parts()], lambda width, color: page(card, width, color))
