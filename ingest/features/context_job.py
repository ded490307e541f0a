"""The job `context`: a sample of the text goes through the model, and categories and dimensions are measured in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from ...catalog import bulk, store
from ...catalog.ids import short_id
from ..job import Done
from ..journal import RunSpec, Units, Write, add_site
from ..progress import Progress
from . import categories, context
from .source import Source


@dataclass(frozen=True)
class Sampled:
    """The texts that are stored, how many tokens of them will be taken, and an earlier run that took enough."""

    texts: list[int]
    tokens: int
    earlier: str | None


def run_context(source: Source, text_runs: Sequence[str], progress: Progress) -> Done:
    """Measure the sample, once for the same sites and words, and again where twice as much could be taken."""
    about = source.context
    sampled = _sampled(source, text_runs)
    if sampled.earlier is not None:
        return Done([sampled.earlier])
    key = {"sites": list(source.sites), "words": source.words, "seed": source.seed, "tokens": sampled.tokens}
    run_id = short_id("run", source.model_id, "context", key, sampled.texts)
    spec = RunSpec(run_id, "context", key, ())
    widths = [source.controls.widths[one] for one in source.sites]
    windows, counts = context.sample_windows(
        about.path, about.model.tokenizer_sha256, sampled.texts, widths, source.seed
    )
    if all(len(one.ids) < 2 for one in windows):
        return Done(notes=["nothing was measured in context: the text has first positions alone"])
    source.fill(source.sites, progress)
    moments = source.moments()
    final = next((one for one in about.model.sites if one.point == "final_norm"), None)
    split = categories.Split.of(source.anchors, source.seed)
    done = Done([run_id], changed=True)

    def compute(_: int) -> Write:
        sample = context.run_sample(
            about.model,
            windows,
            moments,
            source.sites,
            about.batch_tokens,
            source.seed,
            progress.computed,
        )
        figures: list[bulk.Figure] = []
        for site in source.sites:
            figures += context.context_figures(
                sample,
                site,
                source.site_id(site),
                lambda basis, centre, site=site: source.types(site, basis, centre),  # type: ignore[misc]
                split,
                source.seed,
            )
        predicted = context.prediction_figures(
            about.model, sample, counts, source.site_id(str(final)), source.seed
        )
        if predicted.note:
            done.notes.append(predicted.note)

        def write(session: Session) -> None:
            if final is not None:
                add_site(session, source.model_id, final, about.model.width_of(final))
            bulk.insert_figures(session, run_id, [*figures, *predicted.figures])

        return write

    tokens = sum(len(one.ids) for one in windows)
    about.run_units(Units(spec, compute, 1, "tokens", [tokens], tokens), progress)
    return done


def _sampled(source: Source, text_runs: Sequence[str]) -> Sampled:
    with store.reading(source.context.path) as connection:
        rows = connection.execute(
            "SELECT run_id, params FROM run WHERE model_id = ? AND job = 'context' AND finished_at IS NOT NULL "
            "ORDER BY started_at DESC, run_id",
            [source.model_id],
        ).fetchall()
        texts = [
            row[0]
            for row in connection.execute(
                "SELECT DISTINCT text_id FROM run_text WHERE list_contains(?, run_id) ORDER BY text_id",
                [list(text_runs)],
            ).fetchall()
        ]
        where = " OR ".join(f"document_id BETWEEN {one} AND {one + (1 << 32) - 1}" for one in texts)
        (stored,) = connection.execute(
            f"SELECT coalesce(sum(n_tokens), 0)::BIGINT FROM document_row WHERE {where}"
        ).fetchall()[0]
    wanted = context.sample_tokens([source.controls.widths[one] for one in source.sites], stored)
    for run_id, params in rows:
        old = json.loads(params)
        same = set(source.sites) <= set(old["sites"]) and (old["words"], old["seed"]) == (
            source.words,
            source.seed,
        )
        if same and 2 * old["tokens"] > wanted:
            return Sampled(texts, wanted, run_id)
    return Sampled(texts, wanted, None)
