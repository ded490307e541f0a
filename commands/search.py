"""`signarium nearest`: search by Hamming distance."""

from __future__ import annotations

from typing import Any

import click

from .. import Catalogue
from ..queries import subjects
from .options import FreeText, Listed, centre_option, device_option, model_option, output_options
from .output import Output, say


@click.command(cls=FreeText, short_help="The nearest codes by Hamming distance.")
@click.argument("query")
@click.option(
    "--in",
    "within",
    type=Listed(subjects.names),
    help="What to search.  [default: types for a type:, feature: or direction:; for a neuron: the features after its block, "
    "else types; else states if there are any]",
)
@model_option()
@click.option(
    "--across",
    metavar="MODEL",
    help="Search another model: the query is carried there by a rotation that `align` stored.",
)
@click.option(
    "--site",
    metavar="SITE",
    help="[default: that of the feature: or direction:, that after the neuron:'s block, else the middle one of the model's "
    "resid_post sites]",
)
@centre_option(
    "[default: that of the feature:, else mean for types, zero for states: where bits say most]",
)
@click.option("-k", type=click.IntRange(1), default=10, show_default=True, help="How many.")
@click.option("--where", metavar="SQL", help="Search only rows for which this holds, such as `position > 0`.")
@click.option(
    "--position",
    type=int,
    metavar="N",
    help="Search this token of a free text instead of its last; negative counts from the end.",
)
@click.option(
    "--approximate",
    is_flag=True,
    help="Search a part of the codes, chosen by an IVF index; says the recall measured. Not with --where.",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "faiss", "blocks", "faiss-gpu", "tensor"]),
    default="auto",
    show_default=True,
    help="What searches: all give the same answer, but faiss and faiss-gpu know no features. `db index --engines` says "
    "what auto takes.",
)
@device_option("For free text.")
@output_options
@click.pass_obj
def nearest(catalogue: Catalogue, query: str, within: str | None, output: Output, **options: Any) -> None:
    """The codes nearest to QUERY by Hamming distance, exact.

    QUERY is free text (its last token's state is searched), or a stored item: `type:" king"` (or `type:id:17`), `state:ID`,
    `feature:ID` (or its name), `neuron:12/305` (block and neuron), `direction:FEATURE_ID` (the feature's difference
    of means in a text, which `flip` stores), `direction:NAME/17` (of the dictionary NAME, see `sae list`), `code:HEX`.
    Equal distances are ordered by the item's id. From a feature, and among features, the distance counts its registered
    dimensions that have another sign.

    Neurons and the unembedding are directions of the residual stream at no site in particular: `--site` and
    `--centre` then say where the query is looked up. Where a neuron is on either side, a negative activation turns
    what it writes: the distance is that of the nearer polarity, and polarity is -1 where that is the opposite;
    raises are the tokens that the neuron raises most when it is so turned.

    With `--across` the query is one of `--model`, at its `--site`, and the rows are of the other model, at the site
    where the rotation leads. Free text is carried with its floats, all else by its signs alone, which the line on stderr
    says beside what the rotation explains and what one fitted on shuffled pairs does.
    """
    from .pages.search import display, summary

    answer = catalogue.nearest(query, within=within, **options)
    say(summary(answer))
    output.table(answer.table, lambda _, width: display(answer, width))
