"""Stage `states`: every token of a text in its window, at every wanted site."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from ..catalog import bulk, schema
from ..catalog.codes import hamming
from . import text as texts
from .forward import Clock, batches, run_batch
from .journal import Journal, RunSpec, Shard
from .pack import Collector, SiteRows
from .types import write_tokens

if TYPE_CHECKING:
    from .model import LoadedModel
    from .plan import JobPlan


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


def run_states(
    model: LoadedModel,
    plan: JobPlan,
    journal: Journal,
    start: int,
    means: dict[str, NDArray[np.float64]],
    context: int,
    batch_tokens: int,
    computed: Callable[[int], None],
) -> None:
    """Compute and commit a run of states from window `start` on. `computed` hears of tokens as they are computed.

    Raises:
        ModelError: if a hidden state is NaN or infinite.
        TextError: if a text changed since it was counted.
    """
    spec = plan.spec
    centres = {
        site.name: {
            centre: None
            if centre == "zero"
            else torch.from_numpy(means[site.name].astype(np.float32)).to(model.device)
            for centre in spec.of(site)
        }
        for site in spec.sites
    }
    strings = model.token_strings()
    with journal:
        number = 0
        shard: list[Placed] = []
        held = 0

        def flush() -> None:
            if shard and number > start:
                _shard(
                    model,
                    spec,
                    journal,
                    number - len(shard),
                    list(shard),
                    centres,
                    batch_tokens,
                    computed,
                    strings,
                )
            shard.clear()

        for one in placed_windows(model, plan, context):
            if number == start:
                # What is committed already was only read to get here.
                shard.clear()
                held = 0
            shard.append(one)
            number += 1
            held += len(one.window.ids)
            if held >= plan.shard_tokens:
                flush()
                held = 0
        flush()


def _shard(
    model: LoadedModel,
    spec: RunSpec,
    journal: Journal,
    start: int,
    shard: list[Placed],
    centres: dict[str, dict[str, torch.Tensor | None]],
    batch_tokens: int,
    computed: Callable[[int], None],
    strings: Sequence[str],
) -> None:
    begun = time.perf_counter()
    lengths = [len(one.window.ids) for one in shard]
    firsts = np.concatenate([[0], np.cumsum(lengths)])
    clock = Clock()
    collector = Collector(int(firsts[-1]), {site.name: model.width_of(site) for site in spec.sites}, centres)
    first_batch: list[int] = []
    for batch in batches(lengths, batch_tokens):
        first_batch = first_batch or batch
        run_batch(
            model,
            [shard[i].window.ids for i in batch],
            [int(firsts[i]) for i in batch],
            spec.sites,
            collector,
            clock,
        )
        computed(sum(lengths[i] for i in batch))
    rows = collector.close()
    flips = []
    if start == 0 and len(first_batch) > 1:
        flips = _flips(model, spec, shard[first_batch[0]], int(firsts[first_batch[0]]), rows, centres)
    items = np.concatenate(
        [np.arange(one.first_state, one.first_state + n) for one, n in zip(shard, lengths, strict=True)]
    )

    def write(session: Session) -> None:
        if start == 0:
            write_tokens(session, model.tokenizer_sha256, strings)
        bulk.insert_figures(session, spec.run_id, flips)
        _write_texts(session, shard, items)
        bulk.insert_codes(
            session,
            [
                bulk.code_columns(
                    one.code_set_id, items, rows[one.site.name].norms, rows[one.site.name].codes[one.centre]
                )
                for one in spec.sets
            ],
        )

    wall = time.perf_counter() - begun
    journal.submit(Shard(start, len(shard), len(items), clock.forward_s, clock.pack_s, wall, write))


def _flips(
    model: LoadedModel,
    spec: RunSpec,
    one: Placed,
    first: int,
    rows: dict[str, SiteRows],
    centres: dict[str, dict[str, torch.Tensor | None]],
) -> list[bulk.Figure]:
    """How many bits of one window differ when it goes through the model alone: what batching costs in bits."""
    n = len(one.window.ids)
    collector = Collector(n, {site.name: model.width_of(site) for site in spec.sites}, centres)
    run_batch(model, [one.window.ids], [0], spec.sites, collector, Clock())
    alone = collector.close()
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
                    alone[each.site.name].codes[each.centre],
                    rows[each.site.name].codes[each.centre][first : first + n],
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
