"""The jobs that read the codes of types alone: `categories`, `discovery` and `independence`, a shard a site."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.orm import Session

from ...catalog import bulk
from ..journal import RunSpec, Units, Write
from ..progress import Progress
from ..stats.draws import rng
from ..words import anchors
from . import categories, context, controls, discovery, sweep
from .coherence import Vocabulary as Spelling
from .prototypes import Ranks
from .rows import insert
from .source import Source

TYPE_JOBS = ("categories", "discovery", "independence")


@dataclass(frozen=True)
class FeatureRun:
    """A run of one of `TYPE_JOBS`: its sites in the order of its shards, `done` of which are committed."""

    spec: RunSpec
    sites: tuple[str, ...]
    done: int
    finished: bool


@dataclass(frozen=True)
class Made:
    """What a job makes at one site: features, and figures."""

    features: list[categories.Made]
    figures: list[bulk.Figure]


def run_type_job(source: Source, run: FeatureRun, progress: Progress) -> None:
    """Compute and commit what is missing of a run."""
    make = _maker(source, run.spec.job, progress)

    def compute(i: int) -> Write:
        site = run.sites[i]
        site_id = source.site_id(site)
        made = make(site)

        def write(session: Session) -> None:
            found = [one.found for one in made.features if one.found]
            insert(session, run.spec.run_id, site, site_id, found)
            every = [*made.figures, *(figure for one in made.features for figure in one.figures)]
            bulk.insert_figures(session, run.spec.run_id, every)
            if run.spec.job == "categories" and i == len(run.sites) - 1:
                swept = sweep.figures(session, source.model_id, run.spec.params["words"], source.seed)
                bulk.insert_figures(session, run.spec.run_id, swept)

        return write

    source.context.run_units(Units(run.spec, compute, len(run.sites), "sites"), progress)


def _maker(source: Source, job: str, progress: Progress) -> Callable[[str], Made]:
    """What makes the features and figures of a job at a site."""
    if job == "independence":
        return lambda site: Made([], _independence(source, site))
    seed = source.seed
    ranks = Ranks.of(source.vocabulary.words, rng(seed, "ranks"))
    if job == "categories":
        split = categories.Split.of(source.anchors, seed)
        return lambda site: Made(
            [
                categories.make(
                    source.in_bases(site, centre), source.site_id(site), centre, source.anchors, split,
                    source.vocabulary, ranks, seed,
                )
                for centre in controls.CENTRES
            ],
            [],
        )  # fmt: skip
    pack, _ = anchors.resolve(anchors.pack(), source.vocabulary, least=2)
    progress.loading("measuring the baselines of coherence")
    baselines = discovery.Baselines(Spelling(source.strings, pack), ranks, source.seeds, seed)
    names = [source.strings[one] for one in source.seeds]
    return lambda site: Made(
        [
            discovery.make(
                source.in_bases(site, "mean"), source.site_id(site), "mean", source.seeds, names, baselines, ranks, seed
            )
        ],
        [],
    )  # fmt: skip


def _independence(source: Source, site: str) -> list[bulk.Figure]:
    figures: list[bulk.Figure] = []
    for centre in controls.CENTRES:
        for basis, codes in source.in_bases(site, centre).items():
            control = "none" if basis == "standard" else basis
            figures += context.independence_figures(
                codes, source.site_id(site), "type", centre, control, source.seed
            )
    return figures
