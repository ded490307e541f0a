"""The command line: parse, call one function, print. Nothing else."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    import pyarrow as pa

F = TypeVar("F", bound=Callable[..., Any])

FORMATS = ("table", "csv", "json", "ndjson", "parquet")


_resumes = False
"""Whether the command that runs can be gone on with after it is interrupted."""


def main() -> NoReturn:
    """Entry point: errors are one line on stderr and exit code 1."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        from .catalog.errors import SignariumError

        try:
            code = cli.main(standalone_mode=False, prog_name="signarium")
            sys.stdout.flush()
        except SignariumError as error:
            from .commands.flags import flag

            _fail(error.line(flag))
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (_Interrupted, click.Abort, KeyboardInterrupt):
        resumed = "; what was committed is kept, and the same command goes on from there"
        if sys.stderr.isatty():
            _say("")  # the terminal has just written ^C
        _say("interrupted" + (resumed if _resumes else ""))
        sys.exit(130)
    except (_Unread, BrokenPipeError):
        # Whoever read us has seen enough; Python must not complain about it when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{(error.strerror or str(error)).lower()}")
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("duckdb", "_duckdb"):
            raise
        _fail(" ".join(str(error).split())[:600])


def _terminate(*_: object) -> NoReturn:
    # As Ctrl-C: what is open is closed, and locks and half-written files go.
    raise KeyboardInterrupt


def _fail(message: str) -> NoReturn:
    _say(f"error: {message}")
    sys.exit(1)


def _say(text: str) -> None:
    from .catalog.text import visible

    click.echo(visible(text), err=True)


# ---- options that several commands share ----------------------------------------------------------


def output_options(command: F) -> F:
    """`--format` and `--output` of every command that lists."""
    command = click.option(
        "--output",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write to a file, whole or not at all.",
    )(command)
    return click.option(
        "--format",
        "format_",
        type=click.Choice(FORMATS),
        default="table",
        show_default=True,
        help="table shows the main columns, the others all of them; parquet needs --output.",
    )(command)


def page_options(about_json: str) -> Callable[[F], F]:
    """`--format` and `--output` of a command that prints a page."""

    def options(command: F) -> F:
        command = click.option(
            "--output",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Write to a file, whole or not at all.",
        )(command)
        return click.option(
            "--format",
            "format_",
            type=click.Choice(["table", "json"]),
            default="table",
            show_default=True,
            help=about_json,
        )(command)

    return options


def model_option(command: F) -> F:
    """`--model`."""
    return click.option("--model", metavar="NAME", help="One model of the catalogue.")(command)


def _width() -> int | None:
    """Columns of the terminal; None when stdout is none, and nothing is to be cut."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _color() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _print(
    table: pa.Table,
    format_: str,
    output: Path | None,
    display: Callable[[pa.Table, int | None], pa.Table] | None = None,
) -> None:
    """Every column to a file and for programs; what `display` makes of it as a table on stdout."""
    from .commands.render import formats

    if output is not None:
        with formats.atomic_output(output) as out:
            formats.render(table, format_, out)
        return
    if format_ == "table" and display is not None:
        table = display(table, _width())
    formats.render(table, format_, sys.stdout.buffer, width=_width(), color=_color())


def _write(text: str, output: Path | None) -> None:
    from .commands.render.formats import atomic_output

    data = text.encode("utf-8", "backslashreplace")
    if output is None:
        sys.stdout.buffer.write(data)
        return
    with atomic_output(output) as out:
        out.write(data)


def _print_page(
    parts: Any, page: Callable[[int | None, bool], str], format_: str, output: Path | None
) -> None:
    """A page for a person, cut to the terminal if it goes there, or its `parts` as a list of objects."""
    from .commands.render.formats import json_text

    if format_ == "json":
        listed = ",\n".join(json_text(one) for one in parts)
        _write(f"[\n{listed}\n]\n" if parts else "[]\n", output)
    else:
        on_screen = output is None
        _write(page(_width() if on_screen else None, on_screen and _color()), output)


def _check_format(format_: str, output: Path | None) -> None:
    """Said before any work is done."""
    from .catalog.errors import InvalidInput

    if output is not None and not output.absolute().parent.is_dir():
        raise InvalidInput(f"there is no folder {output.absolute().parent}", "name another file for --output")
    if format_ == "parquet" and output is None:
        raise InvalidInput("parquet is binary", "pass --output FILE")


class _Interrupted(Exception):
    """Ctrl-C, under a name that click does not handle in its own way."""


class _Unread(Exception):
    """Whoever read our output has stopped, likewise."""


class _Group(click.Group):
    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            raise _Interrupted from None
        except BrokenPipeError:
            raise _Unread from None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--db",
    type=click.Path(path_type=Path),
    help="The catalogue.  [default: $SIGNARIUM_DB, else ./catalogue.duckdb]",
)
@click.version_option(package_name="signarium", prog_name="signarium")
@click.pass_context
def cli(context: click.Context, db: Path | None) -> None:
    """A catalogue of what the signs of a transformer's hidden states encode."""
    from .catalog import store

    context.obj = db if db is not None else store.default_path()


def _open(path: Path) -> Any:
    import signarium

    return signarium.Catalogue(path)


# ---- ingest ---------------------------------------------------------------------------------------


@cli.command()
@click.argument("model")
@click.option(
    "--text",
    multiple=True,
    metavar="PATH",
    help="A text: a file, a folder, .jsonl (field text) or .parquet (column text). May be repeated.",
)
@click.option("--name", metavar="NAME", help="What the catalogue calls the model.  [default: from MODEL]")
@click.option(
    "--sites",
    metavar="SPEC",
    help="Such as `resid_post.8,16;k.0-3;ffn.*`.  [default: five evenly spaced resid_post]",
)
@click.option(
    "--stages",
    metavar="LIST",
    help="Of types,states,features,neurons,writers.  [default: all; states if there is a text]",
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
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="cpu, cuda, cuda:1, mps; auto takes the best there is.",
)
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
    "--batch-tokens",
    type=click.IntRange(1),
    metavar="N",
    help="Positions that go through the model together.  [default: 2048 on a CPU, 16384 elsewhere]",
)
@click.option("--bos", is_flag=True, help="Ingest the vocabulary behind a BOS token as well.")
@click.option(
    "--categories",
    type=click.Path(dir_okay=False, path_type=Path),
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
    db: Path,
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
    import signarium

    from .catalog.errors import InvalidInput
    from .progress import Display

    global _resumes
    _resumes = not dry_run
    if name is not None and not name.strip():
        raise InvalidInput("--name is empty", "leave it out, or give one")
    with Display() as progress:
        report = signarium.ingest(  # type: ignore[operator]
            db,
            model,
            text=text,
            name=name,
            stages=[one.strip() for one in stages.split(",") if one.strip()] if stages is not None else None,
            dry_run=dry_run,
            progress=progress,
            **options,
        )
    for note in report.notes:
        _say(note)
    if dry_run:
        click.echo("dry run: nothing was written")
    elif report.already:
        click.echo(f"{report.model}: all of it is in {db} already")
    else:
        rows, features = report.estimate.rows, report.estimate.features
        made = [f"{rows:,} codes"] * (rows > 0) + [f"up to {features:,} features"] * (features > 0)
        click.echo(f"{report.model}: {' and '.join(made) or 'all figures'} are in {db}")


# ---- reading --------------------------------------------------------------------------------------


@cli.command()
@click.argument("query")
@output_options
@click.option(
    "--allow-files", is_flag=True, help="Let the query read other files (read_csv, read_parquet, ...)."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Stop the query after so long.",
)
@click.option(
    "--memory",
    default="2GB",
    show_default=True,
    metavar="SIZE",
    help="What the query may use, such as 512MB.",
)
@click.pass_obj
def sql(
    db: Path, query: str, format_: str, output: Path | None, allow_files: bool, timeout: float, memory: str
) -> None:
    """Run one SELECT or EXPLAIN, read-only. See docs/views.md for the views."""
    from .queries.sql import run_to

    run_to(
        db,
        query,
        format=format_,
        out=None if output else sys.stdout.buffer,
        output=output,
        width=_width(),
        color=_color(),
        allow_files=allow_files,
        timeout=timeout,
        memory=memory,
        check=True,
    )


@cli.command()
@click.argument("query")
@click.option(
    "--in",
    "within",
    type=click.Choice(["states", "types", "types_bos", "features", "neurons", "unembedding", "directions"]),
    help="What to search.  [default: types for a type:, feature: or direction:; for a neuron: the features after its block, "
    "else types; else states if there are any]",
)
@model_option
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
@click.option(
    "--centre",
    type=click.Choice(["zero", "mean"]),
    help="[default: that of the feature:, else mean for types, zero for states: where bits say most]",
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
@click.option("--device", default="auto", show_default=True, help="For free text.")
@output_options
@click.pass_obj
def nearest(
    db: Path, query: str, within: str | None, format_: str, output: Path | None, **options: Any
) -> None:
    """The codes nearest to QUERY by Hamming distance, exact.

    QUERY is free text (its last token's state is searched), or a stored item: `type:" king"`, `state:ID`,
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
    from .commands.pages.search import display, summary

    _check_format(format_, output)
    answer = _open(db).nearest(query, within=within, **options)
    _say(summary(answer))
    _print(answer.table, format_, output, lambda _, width: display(answer, width))


# ---- features -------------------------------------------------------------------------------------


def place_options(command: F) -> F:
    """`--model`, `--site` and `--centre` of the commands about features."""
    command = click.option("--centre", type=click.Choice(["zero", "mean"]), help="Only with this centre.")(
        command
    )
    command = click.option("--site", metavar="SITE", help="Only at this site.")(command)
    return model_option(command)


_limit_option = click.option(
    "--limit", type=click.IntRange(0), default=20, show_default=True, metavar="N", help="How many; 0 for all."
)
_least_option = click.option(
    "--least",
    type=click.FloatRange(0, 1),
    default=0.8,
    show_default=True,
    metavar="SHARE",
    help="Leave out agreements below this.",
)


@cli.group("features")
def features_group() -> None:
    """What the signs encode: features, with the controls that they stand beside."""


@features_group.command("list")
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
@_limit_option
@output_options
@click.pass_obj
def features_list(db: Path, format_: str, output: Path | None, **options: Any) -> None:
    """The features, the strongest first."""
    from .commands.pages.lists import features as display

    _check_format(format_, output)
    table = _open(db).features(**options)
    if 0 < options["limit"] == table.num_rows:
        _say(f"the first {options['limit']} by {options['sort']}; --limit 0 for all")
    _print(table, format_, output, display)


@features_group.command("show")
@click.argument("feature")
@place_options
@page_options(
    "json: a list of one object with the feature, its members, types, states, measurements, histogram, writers, "
    "coalitions, projections, flips, and where it was carried from."
)
@click.pass_obj
def features_show(db: Path, feature: str, format_: str, output: Path | None, **options: Any) -> None:
    """One feature: its tokens, its contexts, what writes it, what flipping it does, and each figure beside its controls.

    FEATURE is a feature_id or a name. A name that several features have needs --model, --site or --centre.
    """
    from .commands.pages.feature import page

    _check_format(format_, output)
    card = _open(db).feature(feature, **options)
    _print_page([card.parts()], lambda width, color: page(card, width, color), format_, output)


@features_group.command("find")
@click.argument("token")
@place_options
@_least_option
@_limit_option
@output_options
@click.pass_obj
def features_find(db: Path, token: str, format_: str, output: Path | None, **options: Any) -> None:
    """The features that TOKEN alone has, the most surprising first.

    TOKEN is one token of the vocabulary, its leading space included, such as `" king"`, or `id:NUMBER`. A
    surprise is an agreement in standard deviations above the mean of all types.
    """
    from .commands.pages.lists import features as display

    _check_format(format_, output)
    _print(_open(db).find(token, **options), format_, output, display)


@features_group.command("read")
@click.argument("text", required=False)
@click.option(
    "--file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Read the text from a file instead.",
)
@model_option
@click.option(
    "--site",
    metavar="SITE",
    help="[default: the resid_post site with the most category features that are shown]",
)
@click.option(
    "--centre", type=click.Choice(["zero", "mean"]), help="[default: zero if categories are shown with it]"
)
@click.option(
    "--top", type=click.IntRange(1), default=3, show_default=True, metavar="N", help="Features of a token."
)
@_least_option
@click.option("--first", is_flag=True, help="Also those of the first position, which is atypical.")
@click.option(
    "--all",
    "every",
    is_flag=True,
    help="Also categories that do not beat their null, discovered and carried features that do not survive, and "
    "features with fewer than 5 dimensions.",
)
@click.option(
    "--context",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    metavar="N",
    help="Tokens of a window; a longer text is read in several.",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps.")
@output_options
@click.pass_obj
def features_read(db: Path, format_: str, output: Path | None, **options: Any) -> None:
    """TEXT token by token, each with the features that it has more than is usual in a text."""
    from .commands.pages.reading import display, summary

    _check_format(format_, output)
    table = _open(db).read(**options)
    _say(summary(table))
    _print(table, format_, output, lambda table, _: display(table))


# ---- causes ---------------------------------------------------------------------------------------


@cli.group("neurons")
def neurons_group() -> None:
    """What the FFN neurons write, and which features that is."""


@neurons_group.command("list")
@model_option
@click.option("--layer", type=click.IntRange(0), metavar="N", help="Only this block.")
@click.option(
    "--sort",
    default="surprise",
    show_default=True,
    metavar="COLUMN",
    help="surprise, agreement, features (among whose 50 writers it is) or norm.",
)
@_limit_option
@output_options
@click.pass_obj
def neurons_list(db: Path, format_: str, output: Path | None, **options: Any) -> None:
    """The neurons, the strongest first, each with the feature that it writes best.

    That is the feature which its signs agree with least by chance: a surprise is an agreement in standard deviations
    of fair coins above 0.5, since features of few dimensions agree easily. polarity is -1 where a negative activation
    writes the feature.
    """
    from .commands.pages.lists import neurons as display

    _check_format(format_, output)
    table = _open(db).neurons(**options)
    if 0 < options["limit"] == table.num_rows:
        _say(f"the first {options['limit']} by {options['sort']}; --limit 0 for all")
    _print(table, format_, output, display)


@neurons_group.command("show")
@click.argument("neuron")
@model_option
@page_options(
    "json: a list of one object with the neuron, its projections, features, chance and unembedding."
)
@click.pass_obj
def neurons_show(db: Path, neuron: str, format_: str, output: Path | None, model: str | None) -> None:
    """One neuron: what it writes in words, and which features that is, beside what chance gives.

    NEURON is block/neuron, both from 0, such as 12/305.
    """
    from .commands.pages.neuron import page

    _check_format(format_, output)
    card = _open(db).neuron(neuron, model=model)
    _print_page([card.parts()], lambda width, color: page(card, width, color), format_, output)


@cli.command("flip")
@click.argument("feature")
@click.option(
    "--text",
    multiple=True,
    required=True,
    metavar="PATH",
    help="A text: a file, a folder, .jsonl (field text) or .parquet (column text). May be repeated.",
)
@place_options
@click.option(
    "--windows",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    metavar="N",
    help="Windows of the text that are measured on.",
)
@click.option(
    "--context",
    type=click.IntRange(2),
    default=128,
    show_default=True,
    metavar="N",
    help="Tokens of a window.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Of the random arms and of the order of dimensions.",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps.")
@page_options("json: a list of the rows of the view `flips`.")
@click.pass_obj
def flip_command(
    db: Path, feature: str, text: tuple[str, ...], format_: str, output: Path | None, **options: Any
) -> None:
    """What flipping a feature's signs does to the logits of a text, with all its controls.

    FEATURE is a feature_id or a name. A name that several features have needs --model, --site or --centre. What was
    measured already is not measured again, and a flip that was cut short goes on where it stopped.
    """
    from .commands.pages.feature import flips
    from .progress import Display
    from .queries.features.card import show

    global _resumes
    _check_format(format_, output)
    _resumes = True
    with Display() as display:
        # Without a terminal progress goes to stdout, and there it would stand among the objects.
        heard = sys.stderr.isatty() or format_ == "table" or output is not None
        report = _open(db).flip(feature, text=list(text), progress=display if heard else None, **options)
    for note in report.notes:
        _say(note)
    if report.already:
        _say("measured before: nothing was run")
    card = show(db, str(report.feature_id), flip_run=report.run_id)
    rows = card.flips.to_pylist()
    _print_page(rows, lambda width, color: flips(card, width, color), format_, output)


# ---- rotations ------------------------------------------------------------------------------------

_text_option = click.option(
    "--text",
    multiple=True,
    required=True,
    metavar="PATH",
    help="A text: a file, a folder, .jsonl (field text) or .parquet (column text). May be repeated.",
)
_tokens_option = click.option(
    "--max-tokens",
    type=click.IntRange(1),
    default=65_536,
    show_default=True,
    metavar="N",
    help="Tokens of the text that count.",
)
_context_option = click.option(
    "--context",
    type=click.IntRange(2),
    default=256,
    show_default=True,
    metavar="N",
    help="Tokens of a window.",
)
_device_option = click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps.")


@cli.command("align")
@click.argument("model_a", metavar="A")
@click.argument("model_b", metavar="B")
@_text_option
@click.option(
    "--sites",
    metavar="SPEC",
    help="Such as `resid_post.8,16`.  [default: those where both have states, else evenly spaced resid_post]",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="R.npy",
    help="Also write the matrices to a file, with several sites one for each.",
)
@_tokens_option
@_context_option
@click.option(
    "--steer", metavar="SITE", help="Where directions of A are tried on B.  [default: the middle site]"
)
@click.option("--no-steer", is_flag=True, help="Try no directions.")
@_device_option
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Of the split into documents, and of what is random.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="json: a list of the rows of the view `rotations`, without the matrices.",
)
@click.pass_obj
def align_command(
    db: Path, model_a: str, model_b: str, text: tuple[str, ...], format_: str, steer: str | None, no_steer: bool,
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
    from .catalog.errors import InvalidInput
    from .commands.pages.lists import rotations_by_site, warnings
    from .progress import Display
    from .queries.rotations.stored import rows

    if steer is not None and no_steer:
        raise InvalidInput("--steer and --no-steer contradict each other", "pass one of them")

    global _resumes
    _resumes = True
    with Display() as display:
        # Without a terminal progress goes to stdout, and there it would stand among the objects.
        heard = sys.stderr.isatty() or format_ == "table"
        report = _open(db).align(
            model_a, model_b, text=list(text), steer=False if no_steer else True if steer is None else steer,
            progress=display if heard else None, **options,
        )  # fmt: skip
    for note in report.notes:
        _say(note)
    if report.already:
        _say("fitted before: nothing was run")
    table = rows(db, run_id=report.run_id)
    _print(table, format_, None, lambda table, _: rotations_by_site(table))
    for line in warnings(table):
        _say(line)
    for file in report.outputs:
        _say(f"{file} holds a matrix, float32, x_b = (x_a - mean_a) R + mean_b for rows x")


@cli.group("rotations")
def rotations_group() -> None:
    """What carries one model's states to another's, beside what could explain it away."""


@rotations_group.command("list")
@click.option("--model", metavar="NAME", help="Only those from or to this model.")
@output_options
@click.pass_obj
def rotations_list(db: Path, format_: str, output: Path | None, model: str | None) -> None:
    """The rotations by models and site; their matrices are in the view `rotations`."""
    from .commands.pages.lists import rotations as display

    _check_format(format_, output)
    _print(_open(db).rotations(model), format_, output, display)


@rotations_group.command("show")
@click.argument("model_a", metavar="A")
@click.argument("model_b", metavar="B")
@click.option("--site", metavar="SITE", help="Of A.  [default: the middle one of those with a rotation]")
@page_options(
    "json: a list of one object with the rotation, others of its run, components, measurements, steering and features."
)
@click.pass_obj
def rotations_show(
    db: Path, model_a: str, model_b: str, format_: str, output: Path | None, site: str | None
) -> None:
    """One rotation: what it explains, whether it is determined, what it carries, and what that steers."""
    from .commands.pages.rotation import page
    from .queries.rotations.card import show

    _check_format(format_, output)
    card = show(db, model_a, model_b, site)
    _print_page([card.parts()], lambda width, color: page(card, width, color), format_, output)


# ---- dictionaries ---------------------------------------------------------------------------------


def _place_of_dictionary(command: F) -> F:
    """`--site`, which a dictionary always has."""
    return click.option("--site", required=True, metavar="SITE", help="Where its states are taken.")(command)


@cli.group("sae")
def sae_group() -> None:
    """Sparse autoencoders: dictionaries of directions, in files of their own."""


@sae_group.command("train")
@click.argument("model")
@_place_of_dictionary
@_text_option
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="Where to write it: a .safetensors file that is not there yet.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Of weights and batches: dictionaries to be compared take one each.",
)
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
@_tokens_option
@_context_option
@_device_option
@click.pass_obj
def sae_train(db: Path, model: str, site: str, text: tuple[str, ...], **options: Any) -> None:
    """Train a sparse autoencoder on what MODEL has at a site over a text, into a file.

    `sae add` then brings it into the catalogue. A file that holds this very training is left as it is.
    """
    from .progress import Display

    with Display() as display:
        report = _open(db).train_sae(model, site, text=list(text), progress=display, **options)
    for note in report.notes:
        _say(note)
    if report.already:
        _say("trained before: nothing was run")
    click.echo(
        f"{report.output}: {report.n_features:,} directions; on {report.n_test:,} tokens kept aside it explains "
        f"{report.ev:.3f} of the variance with {report.l0:,.0f} firing at a token, {report.dead_share:.1%} never"
    )


@sae_group.command("add")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--model", required=True, metavar="NAME", help="The model that it was trained on.")
@_place_of_dictionary
@click.option("--name", metavar="NAME", help="What the catalogue calls it.  [default: from FILE]")
@click.pass_obj
def sae_add(db: Path, file: Path, model: str, site: str, name: str | None) -> None:
    """Bring the dictionary in FILE into the catalogue: its directions become codes to be searched.

    FILE is a .safetensors file with W_enc, b_enc, W_dec and b_dec. It stays where it is, and `align` tries it on
    other models as long as it is there.
    """
    from .catalog.errors import InvalidInput
    from .progress import Display

    if name is not None and not name.strip():
        raise InvalidInput("--name is empty", "leave it out, or give one")
    with Display() as display:
        report = _open(db).add_sae(file, model=model, site=site, name=name, progress=display)
    for note in report.notes:
        _say(note)
    from .catalog.text import visible

    what = f"{visible(report.name)}: {report.n_features:,} directions of {report.model} at {report.site}"
    click.echo(f"{what} are in {db}" + (" already" if report.already else ""))


@cli.command()
@model_option
@click.option("--measured", is_flag=True, help="Only claims that were measured here.")
@output_options
@click.pass_obj
def evidence(db: Path, model: str | None, measured: bool, format_: str, output: Path | None) -> None:
    """Claim by claim: the published figure, the one here, its control, and whether the claim survives."""
    from .commands.pages.evidence import page

    _check_format(format_, output)
    table = _open(db).evidence(model, measured=measured)
    if format_ == "table":
        on_screen = output is None
        _write(page(table, _width() if on_screen else None, on_screen and _color()), output)
    else:
        _print(table, format_, output)
    if not table.num_rows and measured:
        _say("nothing was measured yet: `signarium ingest`, `flip` and `align` do")
    elif not table.num_rows:
        _say("no claims: random weights are a control, and stand beside the figures of the model itself")
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
        _say(
            f"for random weights: signarium ingest MODEL --random-init 0 (same --sites), MODEL being {listed}"
        )


# ---- what is there --------------------------------------------------------------------------------


def _listing(name: str, about: str, per_model: bool, group: click.Group | None = None) -> None:
    """`NAME list`, or that of a group: one view, every row."""
    group = group or cli.group(name, help=about)(lambda: None)

    @group.command("list", help=about)
    @output_options
    @click.pass_obj
    def show(db: Path, format_: str, output: Path | None, model: str | None = None) -> None:
        from .commands.pages.lists import view_rows

        _check_format(format_, output)
        catalogue = _open(db)
        table = getattr(catalogue, name)(model) if per_model else getattr(catalogue, name)()
        _print(table, format_, output, lambda table, width: view_rows(name, table, width))

    if per_model:
        model_option(show)


_listing("models", "The models in the catalogue.", per_model=False)
_listing("runs", "The jobs that filled the catalogue.", per_model=True)
_listing("sites", "The sites that were ingested.", per_model=True)
_listing("saes", "The dictionaries in the catalogue.", per_model=True, group=sae_group)


# ---- the file -------------------------------------------------------------------------------------


@cli.group("db")
def db_group() -> None:
    """The catalogue file: size, integrity, migrations, indexes."""


@db_group.command("info")
@output_options
@click.pass_obj
def db_info(db: Path, format_: str, output: Path | None) -> None:
    """Sizes and counts."""
    from .commands.pages.lists import info as display

    _check_format(format_, output)
    _print(_open(db).info(), format_, output, display)


@db_group.command("verify")
@click.option(
    "--model", metavar="NAME", help="Also recompute a sample of this model's codes, if it is at hand."
)
@output_options
@click.pass_obj
def db_verify(db: Path, model: str | None, format_: str, output: Path | None) -> None:
    """Check the file from end to end; exit code 1 if something is wrong."""
    _check_format(format_, output)
    findings = _open(db).verify(model)

    import pyarrow as pa

    from .catalog.errors import SignariumError

    columns = {
        "check": [one.check for one in findings],
        "looked_at": [one.looked_at for one in findings],
        "wrong": [one.wrong for one in findings],
    }
    _print(pa.table(columns), format_, output)
    broken = [one.check for one in findings if not one.ok]
    if broken:
        raise SignariumError(
            f"{db} is not sound: {'; '.join(broken)}",
            "run `signarium db index`"
            if all(one.startswith("index files") for one in broken)
            else "restore it from a copy, or ingest again",
        )


@db_group.command("upgrade")
@click.pass_obj
def db_upgrade(db: Path) -> None:
    """Bring an older catalogue to this signarium's schema; a copy is kept."""
    backup = _open(db).upgrade()
    _say(f"{db} is up to date" if backup is None else f"{db} is upgraded; the old file is {backup}")


@db_group.command("index")
@click.option(
    "--engines", is_flag=True, help="Print which search engine is taken for how many queries, and why."
)
@output_options
@click.pass_obj
def db_index(db: Path, engines: bool, format_: str, output: Path | None) -> None:
    """Build the search indexes that are missing, stale or damaged, and delete those of nothing."""
    from .catalog.errors import SignariumError

    _check_format(format_, output)
    if notes := _open(db).index():
        raise SignariumError(f"{len(notes)} indexes were not built: {notes[0]}", "mend that and run it again")
    _say(f"the indexes of {db} are complete")
    if engines:
        from .commands.pages.lists import engines as display

        table = _open(db).engines()
        for line in dict.fromkeys(filter(None, table.column("missing").to_pylist())):
            _say(line)
        _print(table, format_, output, display)
