"""`signarium evidence`: claim by claim."""

from __future__ import annotations

import click

from .. import Catalogue
from .options import model_option, output_options
from .output import Output, say


@click.command()
@model_option()
@click.option("--measured", is_flag=True, help="Only claims that were measured here.")
@output_options
@click.pass_obj
def evidence(catalogue: Catalogue, model: str | None, measured: bool, output: Output) -> None:
    """Claim by claim: the published figure, the one here, its control, and whether the claim survives."""
    from .pages.evidence import page

    table = catalogue.evidence(model, measured=measured)
    if output.format == "table":
        output.text(page(table, output.width, output.color))
    else:
        output.table(table)
    if not table.num_rows and measured:
        say("nothing was measured yet: `signarium ingest`, `flip` and `align` do")
    elif not table.num_rows:
        say("no claims: random weights are a control, and stand beside the figures of the model itself")
    rows = table.select(["model", "value", "control", "verdict"]).to_pylist()
    alone = {
        one["model"]
        for one in rows
        if one["control"] == "random weights"
        and one["verdict"] == "not measured"
        and one["value"] is not None
    }
    if alone:
        listed = ", ".join(sorted(alone))
        say(
            f"for random weights: signarium ingest MODEL --random-init 0 (same --sites), MODEL being {listed}"
        )
