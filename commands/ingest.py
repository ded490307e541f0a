"""`signarium ingest`: run a model, and fill the catalogue."""

from __future__ import annotations

from typing import Any

import click

from .. import Catalogue
from ..catalog.errors import InvalidInput
from ..ingest.stages import names
from .options import FILE, can_resume, device_option, text_option
from .output import say, tell
from .progress import Display


@click.command(short_help="Run a model over its vocabulary and text, into the catalogue.")
@click.argument("model")
@text_option(required=False)
@click.option("--name", metavar="NAME", help="What the catalogue calls the model.  [default: from MODEL]")
@click.option(
    "--sites",
    metavar="SPEC",
    help="Such as `resid_post.8,16;k.0-3;ffn.*`.  [default: five evenly spaced resid_post]",
)
@click.option(
    "--stages",
    metavar="LIST",
    help=f"Of {','.join(names())}.  Or `all`.  [default: types,features, and states if there is a text]",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    metavar="N",
    help="Stop after the window in which the text reaches N tokens; a later run goes on from there.",
)
@click.option(
    "--context",
    type=click.IntRange(1),
    metavar="N",
    help="Tokens of a window.  [default: 256, or what the model takes]",
)
@device_option("cpu, cuda, cuda:1, mps; auto takes the best there is.")
@click.option(
    "--devices",
    metavar="LIST",
    help="Such as `cuda:0,cuda:1`, in place of --device: batches of types and states are shared out among them.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="auto: that of the stored weights, on a CPU float32 for float16; float32 for GGUF.",
)
@click.option(
    "--attention",
    type=click.Choice(["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]),
    default="auto",
    show_default=True,
    help="auto: what the config asks for where that needs no package of its own, else what transformers takes.",
)
@click.option(
    "--batch-tokens",
    type=click.IntRange(1),
    metavar="N",
    help="Positions that go through the model together.  [default: 2048 on a CPU, 16384 elsewhere]",
)
@click.option("--bos", is_flag=True, help="Ingest the vocabulary behind a BOS token as well.")
@click.option(
    "--categories",
    type=FILE,
    metavar="FILE.csv",
    help="Categories of one's own for the stage features: a CSV with the columns category and word.",
)
@click.option(
    "--seeds",
    type=click.IntRange(1),
    metavar="N",
    help="Types that discovery starts from, in the stage features.  [default: 1500]",
)
@click.option(
    "--random-init",
    type=click.IntRange(0),
    metavar="SEED",
    help="The same architecture with random weights: a control.",
)
@click.option("--revision", metavar="R", help="Branch, tag or commit of a Hugging Face id.")
@click.option("--dry-run", is_flag=True, help="Say how large it will be, and stop.")
@click.pass_obj
def ingest(
    catalogue: Catalogue,
    model: str,
    text: tuple[str, ...],
    stages: str | None,
    name: str | None,
    dry_run: bool,
    **options: Any,
) -> None:
    """Run MODEL over its vocabulary and over text, into the catalogue.

    MODEL is a Hugging Face id, a folder with safetensors, or a .gguf file. What the catalogue holds already is
    not done again, and an ingest that was cut short goes on where it stopped.
    """
    if not dry_run:
        can_resume()
    if name is not None and not name.strip():
        raise InvalidInput("--name is empty", "leave it out, or give one")
    from .. import ingest as run

    with Display() as progress:
        report = run(
            catalogue.path,
            model,
            text=text,
            name=name,
            stages=[stage.strip() for stage in stages.split(",") if stage.strip()]
            if stages is not None
            else None,
            dry_run=dry_run,
            progress=progress,
            **options,
        )
    for note in report.notes:
        say(note)
    if dry_run:
        tell("dry run: nothing was written")
    elif report.already:
        tell(f"{report.model}: all of it is in {catalogue.path} already")
    else:
        rows, features = report.estimate.rows, report.estimate.features
        made = [f"{rows:,} codes"] * (rows > 0) + [f"up to {features:,} features"] * (features > 0)
        tell(f"{report.model}: {' and '.join(made) or 'all figures'} are in {catalogue.path}")
