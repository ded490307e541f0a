"""Stage `states`: every token of a text in its window, at every wanted site."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, takewhile
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from ...catalog import bulk, schema
from ...catalog.codes import hamming, n_bytes
from ...catalog.errors import RunConflict, option
from ...catalog.text import visible
from .. import size as sizes
from ..job import Context, Done, Watch
from ..journal import Journal, RunSpec, Shard
from ..known import OldRun, old_runs
from ..model.sites import Site
from ..passes.forward import Clock, Pass, batches, begin_pass
from ..passes.pack import Centres, Packer, SiteRows, empty_rows
from ..plan import JobPlan, TextPlan, new_spec, run_plan, size_of
from ..size import Size, Step
from ..text import windows as texts
from ..text.vocabulary import write_tokens
from .texts import place_texts

if TYPE_CHECKING:
    from ..model.load import LoadedModel
    from ..progress import Progress


class StateStage:
    """Codes of every token of the texts in its window, at every site and centre that lacks them.

    Raises:
        TextError: if a text cannot be read.
        RunConflict: if an unfinished run shares a text but also reads one that was not given.
    """

    name: ClassVar[str] = "states"
    needs: ClassVar[tuple[str, ...]] = ("types",)
    watch: Watch | None = None

    def __init__(self, context: Context) -> None:
        self.context = context
        self.old = old_runs(context.path, context.known.model_id, ("states",))
        context.progress.loading("counting tokens")
        self.plans = plan_states(context, self.old, place_texts(context))
        for plan in [one for one in self.plans if not one.done][:1]:
            say_first_window(context, plan)
        context.plans += self.plans
        self.size = size_of(self.plans)

    def run(self, progress: Progress) -> Done:
        """Do all that is missing."""
        done = Done(changed=not all(one.done for one in self.plans))
        for plan in self.plans:
            work = partial(run_states, self.context, plan, progress.computed)
            run_plan(self.context, plan, self.old, work, progress)
            done.runs.append(plan.spec.run_id)
            done.tokens += max(0, plan.tokens - plan.tokens_done)
        return done


_SHOWN = 24
"""Tokens of the first window that are kept with the run, and said: enough to see how the tokenizer cuts."""


def say_first_window(context: Context, plan: JobPlan) -> None:
    """Note how the text begins as the model reads it, among the parameters of a new run and for the person who asked."""
    first = next(placed_windows(context.model, plan, context.window), None)
    if first is None:
        return
    ids = [int(one) for one in first.window.ids[:_SHOWN]]
    tokens = [
        str(one)
        for one in context.model.tokenizer.backend_tokenizer.decode_batch(
            [[i] for i in ids], skip_special_tokens=False
        )
    ]
    plan.spec.params.setdefault("first_tokens", tokens)
    more = " ..." if len(first.window.ids) > _SHOWN else ""
    context.notes.append(
        f"{first.window.source} begins with the tokens {'|'.join(map(visible, tokens))}{more}"
    )


def plan_states(context: Context, old: Sequence[OldRun], placed: Sequence[TextPlan]) -> list[JobPlan]:
    """Runs for those sites, centres and texts that lack their states.

    The centre `mean` is taken where the types are known by then. A run that was started earlier is gone on with first,
    as far as the texts that are given again reach from its first one on. One that stored nothing is left.

    Raises:
        RunConflict: if an unfinished run shares a text but reads one before it that was not given.
    """
    units: list[tuple[Site, str]] = [
        (site, centre)
        for site in context.sites
        for centre in (("zero", "mean") if site.name in context.typed else ("zero",))
    ]
    by_id = {one.row.text_id: one for one in placed}
    missing: dict[tuple[Site, str], list[int]] = {unit: list(by_id) for unit in units}
    planned: list[JobPlan] = []
    for run in old:
        here = [(one.site, one.centre) for one in run.spec.sets]
        shared = {text for unit in here for text in missing.get(unit, ()) if text in run.spec.texts}
        again = _given(run.spec.texts, by_id)
        if not shared or not (run.complete or run.tokens_done or again):
            continue
        for unit in here:
            if unit in missing:
                missing[unit] = [text for text in missing[unit] if text not in shared]
        if run.complete:
            continue
        if not shared <= set(again):
            names = ", ".join(by_id[one].file.name for one in sorted(shared))
            raise RunConflict(
                f"{names} is part of an unfinished run ({run.spec.run_id}) that reads other texts before it",
                f"give the same {option('text')} again to finish it first; if they are gone, take it out with "
                f"`signarium runs remove {run.spec.run_id}`",
            )
        planned.append(_plan(context, run.spec, [by_id[one] for one in again], run.tokens_done))
    groups: dict[tuple[int, ...], list[tuple[Site, str]]] = {}
    for unit, left in missing.items():
        if left:
            groups.setdefault(tuple(left), []).append(unit)
    for needed, group in groups.items():
        spec = new_spec(context, "states", "state", group, {"context": context.window}, needed)
        plan = _plan(context, spec, [by_id[one] for one in needed], 0)
        # Nothing to read: the limit is used up by texts that are in already.
        if plan.tokens:
            planned.append(plan)
    return planned


def _given(texts: Sequence[int], by_id: Mapping[int, TextPlan]) -> list[int]:
    """The texts of a run up to the first that was not given again."""
    return list(takewhile(by_id.__contains__, texts))


def _plan(context: Context, spec: RunSpec, own: Sequence[TextPlan], done: int) -> JobPlan:
    tokens = sum(one.counts.n_tokens for one in own)
    windows = sum(one.counts.n_windows for one in own)
    text_bytes = sum(one.counts.text_bytes for one in own)
    left = max(0, tokens - done)
    share = left / tokens if tokens else 0.0
    other = sizes.STATE_BYTES * tokens + sizes.WINDOW_BYTES * windows + sizes.TEXT_SHARE * text_bytes
    size = Size(
        tokens=left,
        rows=left * len(spec.sets),
        catalogue_bytes=sizes.code_bytes(spec.sets, left, share * other),
        index_bytes=sum(tokens * n_bytes(one.width) for one in spec.sets),
        steps=(Step(spec.job, sizes.pass_seconds(context.model, left), "passes"),),
    )
    whole = len(own) == len(spec.texts) and all(one.whole for one in own)
    return JobPlan(spec, tuple(own), tokens, done, size, sizes.shard_tokens(spec.sets), whole)


@dataclass(frozen=True)
class Placed:
    """A window with the ids that its text gives it: its document, and its first state."""

    window: texts.Window
    document_id: int
    first_state: int


def placed_windows(model: LoadedModel, plan: JobPlan, context: int) -> Iterator[Placed]:
    """Every window of the plan's texts, in order, up to the plan's number of tokens."""
    prefix, suffix = model.tokenizer_adds()
    tokens = 0
    for text in plan.texts:
        base = state = text.row.text_id
        for number, window in enumerate(
            texts.windows(text.file, model.tokenizer, context=context, prefix=prefix, suffix=suffix)
        ):
            if tokens >= plan.tokens:
                return
            yield Placed(window, base + number, state)
            state += len(window.ids)
            tokens += len(window.ids)


@dataclass
class _Open:
    """Windows that will be committed together, and their rows as they come in.

    `alone` are the rows of one window on its own, where those are wanted; with others it has the `chosen` ones (first
    row, rows).
    """

    start: int
    windows: list[Placed]
    rows: dict[str, SiteRows]
    alone: dict[str, SiteRows] | None = None
    chosen: tuple[int, int] = (0, 0)
    clock: Clock = field(default_factory=Clock)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each window."""
        return [len(one.window.ids) for one in self.windows]


@dataclass(frozen=True)
class _Batch:
    """Windows of one shard, by index, that go through a model together, and where their states end up."""

    shard: _Open
    windows: list[int]
    starts: list[int]
    into: dict[str, SiteRows]
    last: bool


def run_states(
    context: Context, plan: JobPlan, computed: Callable[[int], None], journal: Journal, start: int
) -> None:
    """Compute and commit a run of states from window `start` on. `computed` hears of tokens as they are computed.

    Raises:
        ModelError: if a hidden state is NaN or infinite.
        TextError: if a text changed since it was counted.
    """
    spec, model, replicas, means = plan.spec, context.model, context.replicas, context.means
    centres = {
        site.name: {
            centre: None if centre == "zero" else torch.from_numpy(means[site.name].astype(np.float32))
            for centre in spec.of(site)
        }
        for site in spec.sites
    }
    packers = [Packer(one.device, centres) for one in replicas.models]
    strings = model.token_strings()

    def work(batch: _Batch) -> Callable[[int], tuple[_Batch, Pass]]:
        return lambda i: (batch, _forward(replicas.models[i], packers[i], spec, batch))

    with journal, replicas:
        work_of = map(work, _batches(context, plan, start, centres))
        since = time.perf_counter()
        for batch, passed in replicas.in_order(work_of):
            shard, took = batch.shard, passed.settle(batch.into)
            if batch.into is shard.rows:
                shard.clock.add(took)
                computed(sum(len(shard.windows[i].window.ids) for i in batch.windows))
            if batch.last:
                made = _shard(model, spec, shard, strings, time.perf_counter() - since)
                since = time.perf_counter()
                journal.submit(made)


def _forward(model: LoadedModel, packer: Packer, spec: RunSpec, batch: _Batch) -> Pass:
    windows = [batch.shard.windows[i].window.ids for i in batch.windows]
    return begin_pass(model, packer, windows, batch.starts, spec.sites)


def _shards(
    model: LoadedModel, plan: JobPlan, start: int, context: int
) -> Iterator[tuple[int, list[Placed]]]:
    """Windows from `start` on that are committed together, with the number of their first."""
    number = start
    shard: list[Placed] = []
    held = 0
    # What is committed already is only read to get here.
    for one in islice(placed_windows(model, plan, context), start, None):
        shard.append(one)
        held += len(one.window.ids)
        if held >= plan.shard_tokens:
            yield number, shard
            number += len(shard)
            shard, held = [], 0
    if shard:
        yield number, shard


def _batches(context: Context, plan: JobPlan, start: int, centres: Centres) -> Iterator[_Batch]:
    """All batches of a run, shard by shard; text is read when the next one is asked for."""
    model = context.model
    widths = {site.name: model.width_of(site) for site in plan.spec.sites}
    for number, windows in _shards(model, plan, start, context.window):
        shard = _Open(number, windows, {})
        firsts = np.cumsum([0, *shard.lengths])
        shard.rows = empty_rows(int(firsts[-1]), widths, centres)
        parts = list(batches(shard.lengths, context.batch_tokens))
        wanted = number == 0 and len(parts[0]) > 1
        for i, part in enumerate(parts):
            last = i == len(parts) - 1 and not wanted
            yield _Batch(shard, part, [int(firsts[j]) for j in part], shard.rows, last)
        if wanted:
            one = parts[0][0]
            shard.chosen = int(firsts[one]), shard.lengths[one]
            shard.alone = empty_rows(shard.lengths[one], widths, centres)
            yield _Batch(shard, [one], [0], shard.alone, True)


def _shard(model: LoadedModel, spec: RunSpec, shard: _Open, strings: Sequence[str], wall_s: float) -> Shard:
    """A shard whose rows are all there, ready to be committed."""
    windows, rows, lengths = shard.windows, shard.rows, shard.lengths
    flips = _flips(spec, shard) if shard.alone is not None else []
    items = np.concatenate(
        [np.arange(one.first_state, one.first_state + n) for one, n in zip(windows, lengths, strict=True)]
    )

    def write(session: Session) -> None:
        if shard.start == 0:
            write_tokens(session, model.tokenizer_sha256, strings)
        bulk.insert_figures(session, spec.run_id, flips)
        _write_texts(session, windows, items)
        bulk.insert_codes(
            session,
            [
                bulk.code_columns(
                    one.code_set_id, items, rows[one.site.name].norms, rows[one.site.name].codes[one.centre]
                )
                for one in spec.sets
            ],
        )

    clock = shard.clock
    return Shard(shard.start, len(windows), len(items), clock.forward_s, clock.pack_s, wall_s, write)


def _flips(spec: RunSpec, shard: _Open) -> list[bulk.Figure]:
    """How many bits of one window differ when it goes through the model alone: what batching costs in bits."""
    assert shard.alone is not None
    first, n = shard.chosen
    return [
        bulk.Figure(
            each.site_id,
            each.subject,
            "",
            f"bit_flip_rate_{each.centre}",
            "alone",
            "in_sample",
            float(
                hamming(
                    shard.alone[each.site.name].codes[each.centre],
                    shard.rows[each.site.name].codes[each.centre][first : first + n],
                ).mean()
                / each.width
            ),
            n * each.width,
        )
        for each in spec.sets
    ]


def _write_texts(session: Session, shard: Sequence[Placed], items: NDArray[np.int64]) -> None:
    """Documents and tokens of a shard, unless another model with the same tokenizer brought them already."""
    documents = np.array([one.document_id for one in shard], dtype=np.int64)
    fresh = ~bulk.present(session, schema.document_row.c.document_id, documents)
    new = [one for one, wanted in zip(shard, fresh, strict=True) if wanted]
    if not new:
        return
    lengths = np.array([len(one.window.ids) for one in shard])
    states = np.repeat(fresh, lengths)
    bulk.insert(
        session,
        schema.document_row,
        {
            "document_id": documents[fresh],
            "source": [one.window.source for one in new],
            "chunk": np.array([one.window.chunk for one in new], dtype=np.int32),
            "sha256": [hashlib.sha256(one.window.text.encode()).hexdigest() for one in new],
            "n_tokens": lengths[fresh].astype(np.int32),
            "text": [one.window.text for one in new],
        },
    )
    bulk.insert(
        session,
        schema.state_row,
        {
            "state_id": items[states],
            "document_id": np.repeat(documents, lengths)[states],
            "position": np.concatenate([np.arange(n, dtype=np.int32) for n in lengths[fresh]]),
            "token_id": np.concatenate([one.window.ids for one in new]).astype(np.int32),
        },
    )
