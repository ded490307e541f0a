"""A run of codes over many tokens, resumed shard by shard: what it reads and fills, and how large it will be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..catalog import schema
from ..catalog.ids import int_id, short_id
from .journal import Journal, RunSpec, SetSpec, clear, site_id
from .known import OldRun, model_row, site_key
from .model.sites import Site
from .size import Size
from .text import windows as texts

if TYPE_CHECKING:
    from .job import Context
    from .progress import Progress


@dataclass(frozen=True)
class TextPlan:
    """A text as this model's tokenizer cuts it, with its place in the catalogue.

    `counts` is what a limit on tokens leaves of it; `whole` says that it leaves everything.
    """

    file: texts.TextFile
    row: schema.TextFile
    counts: texts.Counts
    whole: bool


@dataclass(frozen=True)
class JobPlan:
    """One run to do or to go on with.

    `tokens` is where it ends and `tokens_done` what is committed; `complete` says that nothing of its content
    is left after that. `left` is what is still to be written.
    """

    spec: RunSpec
    texts: tuple[TextPlan, ...]
    tokens: int
    tokens_done: int
    left: Size
    shard_tokens: int
    complete: bool

    @property
    def done(self) -> bool:
        """Whether nothing is left to compute."""
        return self.tokens_done >= self.tokens


def size_of(plans: Sequence[JobPlan]) -> Size:
    """What some runs, one after another, have left to do: their scratch files are never there together."""
    left = [one.left for one in plans if not one.done]
    return sum(left, Size()).one_at_a_time(max((one.scratch_bytes for one in left), default=0))


def new_spec(
    context: Context,
    job: str,
    subject: str,
    units: Sequence[tuple[Site, str]],
    params: dict[str, Any],
    text_ids: Sequence[int] = (),
) -> RunSpec:
    """A new run of `job` that fills a code set of `subject` for each site and centre of `units`."""
    model_id = context.known.model_id
    named = [[site.name, centre] for site, centre in units]
    run_id = short_id("run", model_id, job, named, params, list(text_ids))
    sets = tuple(
        SetSpec(
            int_id("code_set", run_id, site.name, subject, centre, "standard"),
            site,
            site_id(model_id, site),
            subject,
            centre,
            context.model.width_of(site),
        )
        for site, centre in sorted(units, key=lambda unit: (*site_key(unit[0]), unit[1] == "mean"))
    )
    shown = {"sites": list(dict.fromkeys(site.name for site, _ in units)), **params}
    return RunSpec(
        run_id, job, {**shown, "texts": len(text_ids)} if text_ids else shown, sets, tuple(text_ids)
    )


def run_plan(
    context: Context,
    plan: JobPlan,
    old: Sequence[OldRun],
    work: Callable[[Journal, int], None],
    progress: Progress,
) -> None:
    """Do what is missing of a run: `work(journal, start)` computes its items from `start` on and submits their shards.

    `old` are the runs that the catalogue held when this one was planned.
    """
    path, run_id = context.path, plan.spec.run_id
    journal = Journal(path, plan.spec)
    before = next((one for one in old if one.spec.run_id == run_id), None)
    if before is None:
        # Scratch files of a catalogue that lay here before: whatever made them need not be what runs now.
        clear(path, run_id)
    elif plan.done and before.finished:
        if plan.complete and not before.complete:
            # A limit fell together with the end of the text, which is seen only now.
            journal.finish(True)
        return
    row = model_row(context.model, context.known.name)
    start = journal.begin(row, context.replicas.device, [one.row for one in plan.texts])
    progress.started(plan.spec.job, plan.tokens, plan.tokens_done)
    with journal.failing():
        work(journal, start)
    journal.finish(plan.complete)
    clear(path, run_id)
    progress.ended()
