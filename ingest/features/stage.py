"""The stage itself: which runs are missing, what they need, and their shards, a site each.

Jobs: `categories`, `discovery` and `independence` read the codes of types (and of their control bases, which are
scratch files); `context` sends a sample of the text through the model; `feature_states` scores every stored state.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from ...catalog import bulk, schema, store
from ...catalog.codes import n_bytes
from ...catalog.errors import InvalidInput
from ...catalog.ids import digest, short_id
from ..journal import RunSpec, Units, run_units
from ..known import Known, model_row
from ..plan import JobPlan
from ..stats.bases import bases
from ..stats.bits import TypeBits
from ..stats.draws import rng
from ..words import anchors
from . import categories, context, controls, discovery, sweep
from .coherence import Vocabulary as Spelling
from .neighbours import NEIGHBOURS
from .prototypes import Ranks
from .rows import insert

if TYPE_CHECKING:
    from ..model.load import LoadedModel
    from ..model.sites import Site
    from ..progress import Progress

TYPE_JOBS = ("categories", "discovery", "independence")
JOBS = (*TYPE_JOBS, "context", "feature_states")
_FEATURE_BYTES = 1300
"""Of a feature in the file, beside its mask and polarity: tops, members, some thirty figures."""


@dataclass(frozen=True)
class Options:
    """What a user may choose. `categories` is a CSV, the pack's own if None; `seeds` of discovery; `seed` of all that
    is random."""

    categories: Path | None = None
    seeds: int = discovery.DEFAULT_SEEDS
    seed: int = 0


@dataclass(frozen=True)
class FeatureRun:
    """A run of one of `TYPE_JOBS`: its sites in the order of its shards, `done` of which are committed."""

    spec: RunSpec
    sites: tuple[str, ...]
    done: int
    finished: bool


class Stage:
    """Everything that is known before a row is written.

    Raises:
        InvalidInput: if the user's categories cannot be used, or a site has no types and will get none.
    """

    def __init__(
        self,
        path: Path,
        model: LoadedModel,
        known: Known,
        sites: Sequence[Site],
        typed: Sequence[str],
        options: Options,
    ) -> None:
        self.path, self.model, self.known, self.options = path, model, known, options
        self.sites = [one.name for one in sites]
        if missing := [one for one in self.sites if one not in typed]:
            raise InvalidInput(
                f"features are made from types, and {known.name} has none at {', '.join(missing)}",
                "add types to --stages",
            )
        self.notes: list[str] = []
        self.changed = False
        self.strings = model.token_strings()
        self.vocabulary = anchors.Vocabulary(self.strings)
        self.anchors = self._anchors(options.categories)
        self.seeds = discovery.choose_seeds(model.vocab_size, options.seeds, options.seed)
        self.runs = self._plan()
        # A run that was cut short is finished with all of its sites, asked for again or not.
        every = [*self.sites, *(site for run in self.runs if not run.finished for site in run.sites)]
        pending = {site for run in self.runs if not run.finished for site in run.sites[run.done :]}
        self.pending_sites = [one for one in dict.fromkeys(every) if one in pending]
        widths = {site: model.width_of(_site(site)) for site in dict.fromkeys(every)}
        self.controls = controls.ControlCodes(path, known.model_id, widths, model.vocab_size)

    def _anchors(self, file: Path | None) -> list[anchors.Anchors]:
        found, notes = anchors.read_categories(file or anchors.DEFAULT)
        resolved, more = anchors.resolve(found, self.vocabulary)
        self.notes += [*notes, *more] if file is not None or resolved else []
        if not resolved:
            what = f"no category of {file or 'the pack'} has {anchors.LEAST} words that are one token of {self.known.name}"
            if file is not None:
                raise InvalidInput(what, "give categories with more, or more common, words")
            self.notes.append(f"{what}: none were made")
        return resolved

    # ---- which runs ----

    def _plan(self) -> list[FeatureRun]:
        options = self.options
        words = [[one.category, one.token_ids.tolist()] for one in self.anchors]
        keys: dict[str, dict[str, Any]] = {
            "discovery": {"seeds": len(self.seeds), "seed": options.seed},
            "independence": {},
        }
        if words:
            keys = {"categories": {"words": digest(words)[:16], "seed": options.seed}, **keys}
        if self.model.vocab_size <= NEIGHBOURS:
            del keys["discovery"]
            self.notes.append(
                f"a vocabulary of {self.model.vocab_size} types has no neighbourhoods: none were sought"
            )
        # The name of a file is no part of what is in it.
        source = options.categories.name if options.categories is not None else "the pack"
        old = self._old_runs()
        planned = []
        for job, key in keys.items():
            left = list(self.sites)
            for run in old:
                params = run.spec.params
                if run.spec.job != job or {k: v for k, v in params.items() if k in key} != key:
                    continue
                shared = [one for one in left if one in run.sites]
                left = [one for one in left if one not in shared]
                if shared:
                    planned.append(run)
            if left:
                run_id = short_id("run", self.known.model_id, job, key, left)
                params = {"sites": left, **key, **({"categories": source} if job == "categories" else {})}
                planned.append(FeatureRun(RunSpec(run_id, job, params, ()), tuple(left), 0, False))
        return planned

    def _old_runs(self) -> list[FeatureRun]:
        if not self.path.exists():
            return []
        with store.reading(self.path) as connection:
            rows = connection.execute(
                "SELECT r.run_id, r.job, r.params, r.finished_at IS NOT NULL, coalesce(max(h.start + h.n), 0) FROM run r "
                "LEFT JOIN shard h USING (run_id) WHERE r.model_id = ? AND r.job IN "
                f"({', '.join(repr(one) for one in TYPE_JOBS)}) GROUP BY ALL ORDER BY max(r.started_at), r.run_id",
                [self.known.model_id],
            ).fetchall()
        found = []
        for run_id, job, text, finished, done in rows:
            params = json.loads(text)
            found.append(
                FeatureRun(RunSpec(run_id, job, params, ()), tuple(params["sites"]), int(done), finished)
            )
        return found

    # ---- size ----

    @property
    def n_features(self) -> int:
        """Features that are still to be made, at most: discovered ones that repeat another are merged."""
        each = {"categories": 2 * len(self.anchors), "discovery": len(self.seeds)}
        return sum(
            each.get(run.spec.job, 0) * (len(run.sites) - run.done) for run in self.runs if not run.finished
        )

    @property
    def catalogue_bytes(self) -> int:
        """What they will take in the file."""
        if not self.sites:
            return 0
        widest = max(n_bytes(self.controls.widths[one]) for one in self.sites)
        return self.n_features * (_FEATURE_BYTES + 2 * widest)

    @property
    def scratch_bytes(self) -> int:
        """Control codes, while they are needed."""
        return self.controls.nbytes if self.controls.to_compute(self.pending_sites) else 0

    def tokens(self, plans: Sequence[JobPlan]) -> int:
        """Tokens that this stage itself will send through the model, after `plans`: the control bases where the stage
        types does not come by, and the sample of the text."""
        typed = {one.name for plan in plans if plan.spec.job == "types" for one in plan.spec.sites}
        alone = [one for one in self.pending_sites if one not in typed and self.controls.missing(one)]
        states = sum(plan.tokens for plan in plans if plan.spec.job == "states")
        sample = context.sample_tokens(list(self.controls.widths.values()), states) if states else 0
        return (self.model.vocab_size if alone else 0) + sample

    # ---- running ----

    def keep_controls(
        self, site: str, start: int, x: torch.Tensor, mean: NDArray[np.float64], std: NDArray[np.float64]
    ) -> None:
        """What the stage types shows on its way: no second pass over the vocabulary is needed then."""
        if site in self.pending_sites:
            self.controls.put(site, start, x, controls.Moments(mean, std))

    def run(
        self,
        text_runs: Sequence[str],
        batch_tokens: int,
        progress: Progress,
    ) -> list[str]:
        """Do all that is missing; the runs' ids."""
        moments = self._moments()
        done: list[str] = []
        if self.pending_sites:
            self._fill(self.pending_sites, moments, batch_tokens, progress)
        for run in self.runs:
            if not run.finished:
                self._type_job(run, progress)
            done.append(run.spec.run_id)
        if text_runs:
            done += self._context(moments, text_runs, batch_tokens, progress)
            done += self._states(text_runs, progress)
        controls.clear(self.path, self.known.model_id)
        return done

    def _moments(self) -> dict[str, controls.Moments]:
        """Of the types at each site, as they are stored."""
        with store.reading(self.path) as connection:
            rows = connection.execute(
                "SELECT s.name, list(d.mean ORDER BY d.dim), list(d.std ORDER BY d.dim) FROM dimension_row d "
                "JOIN site s USING (site_id) JOIN run r USING (run_id) WHERE s.model_id = ? AND d.subject = 'type' "
                "AND r.finished_at IS NOT NULL GROUP BY s.name",
                [self.known.model_id],
            ).fetchall()
        return {site: controls.Moments(np.array(mean), np.array(std)) for site, mean, std in rows}

    def _fill(
        self,
        sites: Sequence[str],
        moments: dict[str, controls.Moments],
        batch_tokens: int,
        progress: Progress,
    ) -> None:
        """Control codes that the stage types has not left on its way."""
        if left := self.controls.to_compute(sites):
            progress.started("control bases", left, 0)
            self.controls.fill(self.model, moments, sites, batch_tokens, progress.computed)
            progress.ended()

    def _types(self, site: str, basis: str, centre: str) -> TypeBits:
        """Codes of the types at a site, whole and in order."""
        if basis != "standard":
            return self.controls.types(site, basis, centre)
        width = self.controls.widths[site]
        with store.reading(self.path) as connection:
            rows = connection.execute(
                "SELECT cs.code_set_id FROM code_set cs JOIN site s USING (site_id) JOIN run r USING (run_id) "
                "WHERE s.model_id = ? AND s.name = ? AND cs.subject = 'type' AND cs.centre = ? AND cs.basis = 'standard' "
                "AND r.finished_at IS NOT NULL ORDER BY r.started_at LIMIT 1",
                [self.known.model_id, site, centre],
            ).fetchall()
            _, codes = bulk.read_codes(connection, rows[0][0], n_bytes(width))
        return TypeBits(codes, width)

    def _bases(self, site: str, centre: str) -> dict[str, TypeBits]:
        return {basis: self._types(site, basis, centre) for basis in ("standard", *bases())}

    def _type_job(self, run: FeatureRun, progress: Progress) -> None:
        job = run.spec.job
        seed = self.options.seed
        ranks = Ranks.of(self.vocabulary.words, rng(seed, "ranks"))
        if job == "categories":
            split = categories.Split.of(self.anchors, seed)
        if job == "discovery":
            pack, _ = anchors.resolve(anchors.read_categories(anchors.DEFAULT)[0], self.vocabulary, least=2)
            progress.loading("measuring the baselines of coherence")
            baselines = discovery.Baselines(Spelling(self.strings, pack), ranks, self.seeds, seed)
            names = [self.strings[one] for one in self.seeds]

        def compute(i: int) -> Callable[[Session], None]:
            site = run.sites[i]
            site_id = f"{self.known.model_id}/{site}"
            made: list[categories.Made] = []
            figures: list[bulk.Figure] = []
            if job == "categories":
                made = [
                    categories.make(
                        self._bases(site, centre), site_id, centre, self.anchors, split, self.vocabulary, ranks, seed
                    )
                    for centre in controls.CENTRES
                ]  # fmt: skip
            elif job == "discovery":
                bases = self._bases(site, "mean")
                made = [discovery.make(bases, site_id, "mean", self.seeds, names, baselines, ranks, seed)]
            else:
                for centre in controls.CENTRES:
                    for basis, codes in self._bases(site, centre).items():
                        control = "none" if basis == "standard" else basis
                        figures += context.independence_figures(codes, site_id, "type", centre, control, seed)

            def write(session: Session) -> None:
                insert(session, run.spec.run_id, site, site_id, [one.found for one in made if one.found])
                every = [*figures, *(figure for one in made for figure in one.figures)]
                bulk.insert_figures(session, run.spec.run_id, every)
                if job == "categories" and i == len(run.sites) - 1:
                    swept = sweep.figures(session, self.known.model_id, run.spec.params["words"], seed)
                    bulk.insert_figures(session, run.spec.run_id, swept)

            return write

        self._journalled(run.spec, len(run.sites), compute, progress, "sites")

    def _journalled(
        self,
        spec: RunSpec,
        units: int,
        compute: Callable[[int], Callable[[Session], None]],
        progress: Progress,
        unit: str = "tokens",
        tokens: int | None = None,
    ) -> None:
        """Run `compute` for each unit that is not committed yet, each a shard of its own.

        With `tokens` there is one unit, which counts them itself.
        """
        self.changed = True
        run_units(
            self.path,
            model_row(self.model, self.known.name),
            str(self.model.device),
            Units(spec, compute, units, unit, None if tokens is None else [tokens], tokens),
            progress,
        )

    # ---- text ----

    def _finished(self, run_id: str) -> bool:
        with store.reading(self.path) as connection:
            found = connection.execute(
                "SELECT finished_at IS NOT NULL FROM run WHERE run_id = ?", [run_id]
            ).fetchone()
        return bool(found and found[0])

    def _context(
        self,
        moments: dict[str, controls.Moments],
        text_runs: Sequence[str],
        batch_tokens: int,
        progress: Progress,
    ) -> list[str]:
        """The sample of the text, once for the same sites and words, and again where twice as much could be taken."""
        seed = self.options.seed
        words = [[one.category, one.token_ids.tolist()] for one in self.anchors]
        key = {"sites": self.sites, "words": digest(words)[:16], "seed": seed}
        widths = [self.controls.widths[one] for one in self.sites]
        listed = ", ".join(f"'{one}'" for one in text_runs)
        with store.reading(self.path) as connection:
            rows = connection.execute(
                "SELECT run_id, params FROM run WHERE model_id = ? AND job = 'context' AND finished_at IS NOT NULL "
                "ORDER BY started_at DESC, run_id",
                [self.known.model_id],
            ).fetchall()
            texts = [
                row[0]
                for row in connection.execute(
                    f"SELECT DISTINCT text_id FROM run_text WHERE run_id IN ({listed}) ORDER BY text_id"
                ).fetchall()
            ]
            where = " OR ".join(f"document_id BETWEEN {one} AND {one + (1 << 32) - 1}" for one in texts)
            (stored,) = connection.execute(
                f"SELECT coalesce(sum(n_tokens), 0)::BIGINT FROM document_row WHERE {where}"
            ).fetchall()[0]
        wanted = context.sample_tokens(widths, stored)
        for run_id, params in rows:
            old = json.loads(params)
            same = set(self.sites) <= set(old["sites"]) and (old["words"], old["seed"]) == (
                key["words"],
                seed,
            )
            if same and 2 * old["tokens"] > wanted:
                return [run_id]
        key["tokens"] = wanted
        spec = RunSpec(short_id("run", self.known.model_id, "context", key, texts), "context", key, ())
        windows, counts = context.sample_windows(self.path, self.model.tokenizer_sha256, texts, widths, seed)
        if all(len(one.ids) < 2 for one in windows):
            self.notes.append("nothing was measured in context: the text has first positions alone")
            return []
        self._fill(self.sites, moments, batch_tokens, progress)
        final = next((one for one in self.model.sites if one.point == "final_norm"), None)
        final_id = f"{self.known.model_id}/{final}"
        split = categories.Split.of(self.anchors, seed)

        def compute(_: int) -> Callable[[Session], None]:
            sample = context.run_sample(
                self.model, windows, moments, self.sites, batch_tokens, seed, progress.computed
            )
            figures: list[bulk.Figure] = []
            for site in self.sites:
                figures += context.context_figures(
                    sample,
                    site,
                    f"{self.known.model_id}/{site}",
                    lambda basis, centre, site=site: self._types(site, basis, centre),  # type: ignore[misc]
                    split,
                    seed,
                )
            predicted = context.prediction_figures(self.model, sample, counts, final_id, seed)
            if predicted.note:
                self.notes.append(predicted.note)

            def write(session: Session) -> None:
                if final is not None and session.get(schema.Site, final_id) is None:
                    session.add(
                        schema.Site(
                            site_id=final_id,
                            model_id=self.known.model_id,
                            name=final.name,
                            point=final.point,
                            layer=None,
                            width=self.model.width_of(final),
                        )
                    )
                bulk.insert_figures(session, spec.run_id, [*figures, *predicted.figures])

            return write

        tokens = sum(len(one.ids) for one in windows)
        self._journalled(spec, 1, compute, progress, tokens=tokens)
        return [spec.run_id]

    def _states(self, text_runs: Sequence[str], progress: Progress) -> list[str]:
        """Every stored state of `text_runs` against the features of this stage's runs."""
        done = []
        for run in self.runs:
            if run.spec.job == "independence":
                continue
            for text_run in text_runs:
                with store.reading(self.path) as connection:
                    sets = connection.execute(
                        "SELECT s.name, cs.centre, cs.code_set_id, cs.width FROM code_set cs JOIN site s USING (site_id) "
                        "WHERE cs.run_id = ? AND cs.subject = 'state' AND (s.name, cs.centre) IN (SELECT (t.name, f.centre) "
                        "FROM feature_row f JOIN site t USING (site_id) WHERE f.run_id = ?) ORDER BY ALL",
                        [text_run, run.spec.run_id],
                    ).fetchall()
                    tokens = connection.execute(
                        "SELECT coalesce(sum(tokens), 0)::BIGINT FROM shard WHERE run_id = ?", [text_run]
                    ).fetchall()[0][0]
                    ranges = connection.execute(
                        "SELECT t.text_id, max(w.state_id) FROM run_text t JOIN state_row w ON w.state_id >= t.text_id "
                        "AND w.state_id < t.text_id + 4294967296 WHERE t.run_id = ? GROUP BY ALL ORDER BY ALL",
                        [text_run],
                    ).fetchall()
                if not sets or not tokens:
                    continue
                ident = short_id(
                    "run", self.known.model_id, "feature_states", run.spec.run_id, text_run, tokens, sets
                )
                params = {"features": run.spec.run_id, "states": text_run, "states_tokens": tokens}
                spec = RunSpec(ident, "feature_states", params, ())
                done.append(ident)
                if not self._finished(ident):
                    self._score(spec, run.spec.run_id, sets, ranges, progress)
        return done

    def _score(
        self,
        spec: RunSpec,
        features_run: str,
        sets: Sequence[tuple[str, str, int, int]],
        ranges: Sequence[tuple[int, int]],
        progress: Progress,
    ) -> None:
        seed = self.options.seed

        def compute(i: int) -> Callable[[Session], None]:
            site, centre, code_set_id, width = sets[i]
            site_id = f"{self.known.model_id}/{site}"
            features = context.stored_features(self.path, features_run, site, centre)
            scored = context.score_states(self.path, features, code_set_id, width, ranges)
            figures, rows = context.scored_figures(features, scored, site_id, centre, seed)

            def write(session: Session) -> None:
                n = len(rows["feature_id"])
                bulk.insert(session, schema.feature_state_row, {"run_id": [spec.run_id] * n, **rows})
                bulk.insert_figures(session, spec.run_id, figures)

            return write

        self._journalled(spec, len(sets), compute, progress, "code sets")


def _site(name: str) -> Site:
    from ..model.sites import Site

    return Site.from_name(name)
