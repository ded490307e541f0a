"""`signarium evidence`: claim by claim."""

from __future__ import annotations

import click

from .. import Catalogue
from .options import evidence_output, model_option
from .output import Output, say


@click.command(short_help="Published claims beside their controls, with a verdict each.")
@model_option()
@click.option("--measured", is_flag=True, help="Only claims that were measured here.")
@click.option("--claims", metavar="LIST", help="Only these, such as `1.1,3.2`.")
@evidence_output
@click.pass_obj
def evidence(
    catalogue: Catalogue, model: str | None, measured: bool, claims: str | None, output: Output
) -> None:
    """Claim by claim: the published figure, the one here, its control, and whether the claim survives."""
    from .pages.evidence import markdown, page

    asked = None if claims is None else [one.strip() for one in claims.split(",") if one.strip()]
    table = catalogue.evidence(model, measured=measured, claims=asked)
    if output.format == "table":
        output.text(page(table, output.width, output.color))
    elif output.format == "markdown":
        output.text(markdown(table))
    else:
        output.table(table)
    if not table.num_rows and measured:
        say("nothing was measured yet: `signarium ingest`, `flip` and `align` do")
    elif not table.num_rows:
        say("no claims: random weights are a control, and stand beside the figures of the model itself")
    alone = {
        row["model"]
        for row in table.select(["model", "value", "control", "verdict"]).to_pylist()
        if row["control"] == "random weights"
        and row["verdict"] == "not measured"
        and row["value"] is not None
    }
    if alone:
        listed = ", ".join(sorted(alone))
        say(
            f"for random weights: signarium ingest MODEL --random-init 0 (same --sites), MODEL being {listed}"
        )
