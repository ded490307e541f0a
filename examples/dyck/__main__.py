"""`python -m examples.dyck`: trains the toy family, and writes text of its kind."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import click

from signarium.catalog.errors import DiskFull, InvalidInput, SignariumError
from signarium.catalog.files import replacing

from . import task
from .train import APART, COHORTS, RECIPE, Recipe, Scores, checkpoint_steps, train_seed

_EVERY_S = 30.0
_FOLDER_BYTES = 450_000
_STATE_BYTES = 4_000_000  # what is kept of a run that is not at its end, twice while it is replaced
_TEXT_SEED = 30_000


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seeds", default="0-4", show_default=True, help="Seeds: 3, 0-4, or 0,2-3.")
@click.option(
    "--cohort", default="both", show_default=True,
    help="shared: seeds after 0 take its embedding and heads, frozen. apart: nothing shared; seed n is "
    f"{APART} + n. Or both.",
)  # fmt: skip
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder of the models, or text file.  [default: dyck, dyck.jsonl]",
)
@click.option("--checkpoints", default=0, help="Save so many checkpoints along the first seed's run, too.")
@click.option("--steps", default=RECIPE.steps, show_default=True, help="At most so many steps a seed.")
@click.option("--text", "n_text", type=int, help="Train nothing: write so many sequences as JSON lines.")
@click.option(
    "--text-seed", type=click.IntRange(0), default=0, show_default=True, help="Of the sequences of --text."
)
@click.option(
    "--kind", default=task.KINDS[0], show_default=True, help=f"Sequences of --text: {', '.join(task.KINDS)}."
)
def command(
    seeds: str, cohort: str, output: Path | None, checkpoints: int, steps: int, n_text: int | None, text_seed: int,
    kind: str,
) -> None:  # fmt: skip
    """Train the two-block transformer of bounded-depth Dyck-3 from scratch, on the CPU.

    Each seed becomes a folder under --output that `signarium ingest` reads. The same command goes on where a
    killed one stopped, and leaves alone what is there.
    """
    if n_text is not None:
        write_text(output or Path("dyck.jsonl"), n_text, kind, text_seed)
        return
    output = output or Path("dyck")
    if checkpoints < 0 or steps < 1:
        raise InvalidInput(f"{checkpoints} checkpoints in {steps} steps", "pass --steps 1 or more")
    if cohort not in (*COHORTS, "both"):
        raise InvalidInput(f"no cohort {cohort!r}", f"there is {', '.join(COHORTS)}, both")
    numbers = parse_seeds(seeds)
    runs = [(c, n) for c in COHORTS if cohort in (c, "both") for n in numbers]
    # Whoever wants another number of steps wants no more than that.
    recipe = RECIPE if steps == RECIPE.steps else replace(RECIPE, steps=steps, rounds=0)
    along = checkpoint_steps(recipe, checkpoints)
    _say_sizes(output, len(runs), len(along), recipe)
    with _Display() as display:
        folders = [
            train_seed(
                output, *run, recipe, checkpoints=along if run == runs[0] else (), progress=display.scored
            )
            for run in runs
        ]
    for folder in folders:
        click.echo(_line(folder))


def parse_seeds(spec: str) -> list[int]:
    """The seeds that `spec` names, in order: "3", "0-4", "0,2-3".

    Raises:
        InvalidInput: if it names none, or one that there is not.
    """
    found: set[int] = set()
    for part in spec.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not low <= high < APART:
            raise InvalidInput(
                f"no seeds {spec!r}", f"pass --seeds 0-4 or 0,2; the last there is {APART - 1}"
            )
        found.update(range(low, high + 1))
    return sorted(found)


def write_text(path: Path, n: int, kind: str = task.KINDS[0], seed: int = 0) -> None:
    """Writes `n` sequences to `path`, one JSON object {"text": "..."} a line, as `signarium ingest` reads them.

    They are of a stream that neither training nor scoring draws from, another one for each `seed`.

    Raises:
        InvalidInput: if `n` is below 1, or if there is no such kind.
    """
    if n < 1:
        raise InvalidInput(f"{n} sequences are no text", "pass --text 1 or more")
    rows = task.text(task.held_out_rows(kind, n, _TEXT_SEED + seed))
    with replacing(path.resolve()) as new:
        new.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), "utf-8")
    click.echo(f"{path}: {n:,} sequences, {sum(map(len, rows)):,} brackets")


def _say_sizes(output: Path, n_runs: int, n_checkpoints: int, recipe: Recipe) -> None:
    needed = _FOLDER_BYTES * (n_runs + n_checkpoints) + 2 * _STATE_BYTES
    there = next(p for p in (output.absolute(), *output.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    more = f" ({recipe.most:,} where that is too few)" if recipe.rounds else ""
    rows = f"steps of {recipe.batch} sequences{more}, on one core"
    click.echo(f"to do: {n_runs} seeds, each at most {recipe.steps:,} {rows}")
    click.echo(f"disk: {needed / 1e6:,.1f} MB, of {free / 1e6:,.1f} MB free")
    if needed > free:
        raise DiskFull(there, needed, free)


def _line(folder: Path) -> str:
    made = json.loads((folder / "training.json").read_text("utf-8"))
    lowest = {kind: Scores(**scores).lowest for kind, scores in made["scores"].items()}
    shares = ", ".join(f"{kind} {share:.3%}" for kind, share in lowest.items())
    return f"{folder}: step {made['step']:,}; worst head: {shares}"


class _Display:
    """A bar on stderr if that is a terminal, else a line on stdout now and then."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._name = ""
        self._begun = self._said = 0.0
        self._before = 0

    def __enter__(self) -> _Display:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"))
            console = Console(stderr=True, no_color=bool(os.environ.get("NO_COLOR")))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=console)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def scored(self, name: str, step: int, steps: int, scores: Scores) -> None:
        """See `train.Progress`."""
        now = time.monotonic()
        if name != self._name:
            self._name, self._begun, self._before = name, now, step
            if self._bar is not None:
                self._task = self._bar.add_task(name, total=steps, said="")
        said = f"step {step:,} of {steps:,}, worst head {scores.lowest:.3%}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, total=steps, said=said)
        elif now - self._said >= _EVERY_S or step == steps:
            self._said = now
            left = round((now - self._begun) / max(1, step - self._before) * (steps - step))
            known = f", at most {left // 60}:{left % 60:02d} left" if step > self._before else ""
            click.echo(f"{name}: {said}{known}")


def _fail(message: str) -> NoReturn:
    click.echo(f"error: {message}", err=True)
    sys.exit(1)


def main() -> None:
    """Entry point: errors are one line on stderr and exit code 1."""
    try:
        command.main(standalone_mode=False, prog_name="python -m examples.dyck")
    except SignariumError as error:
        _fail(str(error))
    except click.ClickException as error:
        _fail(" ".join(error.format_message().split()))
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; the same command goes on from the last scores", err=True)
        sys.exit(130)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{(error.strerror or str(error)).lower()}")


if __name__ == "__main__":
    main()
