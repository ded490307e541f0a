"""`signarium sae`: sparse autoencoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from .. import Catalogue
from ..catalog.errors import InvalidInput
from .lists import add_list
from .options import FILE, context_option, device_option, seed_option, text_option, tokens_option
from .output import say, tell
from .progress import Display

F = TypeVar("F", bound=Callable[..., Any])


def _place_of_dictionary(command: F) -> F:
    """`--site`, which a dictionary always has."""
    return click.option("--site", required=True, metavar="SITE", help="Where its states are taken.")(command)


@click.group(short_help="Sparse autoencoders: train, add, list.")
def sae() -> None:
    """Sparse autoencoders: dictionaries of directions, in files of their own."""


@sae.command("train")
@click.argument("model")
@_place_of_dictionary
@text_option()
@click.option(
    "--output",
    type=FILE,
    required=True,
    metavar="FILE",
    help="Where to write it: a .safetensors file that is not there yet.",
)
@seed_option("Of weights and batches: dictionaries to be compared take one each.")
@click.option(
    "--expansion",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    metavar="N",
    help="Directions for each dimension.",
)
@click.option(
    "--steps", type=click.IntRange(1), default=1500, show_default=True, metavar="N", help="Of the optimiser."
)
@click.option(
    "--l1",
    type=click.FloatRange(0),
    default=1e-3,
    show_default=True,
    metavar="X",
    help="What sparsity weighs.",
)
@tokens_option
@context_option()
@device_option()
@click.pass_obj
def sae_train(catalogue: Catalogue, model: str, site: str, text: tuple[str, ...], **options: Any) -> None:
    """Train a sparse autoencoder on what MODEL has at a site over a text, into a file.

    `sae add` then brings it into the catalogue. A file that holds this very training is left as it is.
    """
    with Display() as display:
        report = catalogue.train_sae(model, site, text=list(text), progress=display, **options)
    for note in report.notes:
        say(note)
    if report.already:
        say("trained before: nothing was run")
    tell(
        f"{report.output}: {report.n_features:,} directions; on {report.n_test:,} tokens kept aside it explains "
        f"{report.ev:.3f} of the variance with {report.l0:,.0f} firing at a token, {report.dead_share:.1%} never"
    )


@sae.command("add")
@click.argument("file", type=FILE)
@click.option("--model", required=True, metavar="NAME", help="The model that it was trained on.")
@_place_of_dictionary
@click.option("--name", metavar="NAME", help="What the catalogue calls it.  [default: from FILE]")
@click.pass_obj
def sae_add(catalogue: Catalogue, file: Path, model: str, site: str, name: str | None) -> None:
    """Bring the dictionary in FILE into the catalogue: its directions become codes to be searched.

    FILE is a .safetensors file with W_enc, b_enc, W_dec and b_dec. It stays where it is, and `align` tries it on
    other models as long as it is there.
    """
    if name is not None and not name.strip():
        raise InvalidInput("--name is empty", "leave it out, or give one")
    with Display() as display:
        report = catalogue.add_sae(file, model=model, site=site, name=name, progress=display)
    for note in report.notes:
        say(note)
    what = f"{report.name}: {report.n_features:,} directions of {report.model} at {report.site}"
    tell(f"{what} are in {catalogue.path}" + (" already" if report.already else ""))


add_list(sae, "saes")
