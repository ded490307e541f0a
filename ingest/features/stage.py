"""The stage `features`: which runs are missing, how large they are, and their order.

Jobs: `categories`, `discovery` and `independence` read the codes of types (and of their control bases, which are
scratch files); `context` sends a sample of the text through the model; `feature_states` scores every stored state.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ...catalog import store
from ...catalog.codes import n_bytes
from ...catalog.errors import InvalidInput, option
from ...catalog.ids import short_id
from .. import size as sizes
from ..job import Context, Done, Watch
from ..journal import RunSpec
from ..known import text_runs
from ..model.sites import Site
from ..size import Size, Step
from ..stats.moments import Moments
from ..words import anchors
from . import context as in_context
from . import controls, discovery
from .context_job import run_context
from .neighbours import NEIGHBOURS
from .source import Options, Source
from .state_job import run_feature_states
from .type_jobs import TYPE_JOBS, FeatureRun, run_type_job

if TYPE_CHECKING:
    from ..progress import Progress

JOBS = (*TYPE_JOBS, "context", "feature_states")


class FeatureStage:
    """Features of the types, of both kinds, and what they are worth, at every site that lacks them.

    Raises:
        InvalidInput: if the user's categories cannot be used, or a site has no types and will get none.
    """

    name: ClassVar[str] = "features"
    needs: ClassVar[tuple[str, ...]] = ("types", "states")

    def __init__(self, context: Context) -> None:
        request, model, known = context.request, context.model, context.known
        file = None if request.categories is None else Path(request.categories)
        options = Options(file, request.seeds or discovery.DEFAULT_SEEDS)
        sites = [one.name for one in context.sites]
        if missing := [one for one in sites if one not in context.typed]:
            raise InvalidInput(
                f"features are made from types, and {known.name} has none at {', '.join(missing)}",
                f"add types to {option('stages')}",
            )
        self.context = context
        self.notes: list[str] = []
        strings = model.token_strings()
        vocabulary = anchors.Vocabulary(strings)
        resolved = self._anchors(file, vocabulary)
        seeds = discovery.choose_seeds(model.vocab_size, options.seeds, options.seed)
        # Every control code of every site that a run needs has a file; the runs decide which sites those are.
        widths = {site: model.width_of(Site.from_name(site)) for site in sites}
        codes = controls.ControlCodes(context.path, known.model_id, widths, model.vocab_size)
        self.source = Source(context, options, tuple(sites), strings, vocabulary, resolved, seeds, codes)
        self.runs = self._plan()
        # A run that was cut short is finished with all of its sites, asked for again or not.
        every = [*sites, *(site for run in self.runs if not run.finished for site in run.sites)]
        pending = {site for run in self.runs if not run.finished for site in run.sites[run.done :]}
        self.pending_sites = [one for one in dict.fromkeys(every) if one in pending]
        for site in every:
            widths[site] = model.width_of(Site.from_name(site))
        self.watch = Watch("types", self._see)
        self.size = self._size()

    def _anchors(self, file: Path | None, vocabulary: anchors.Vocabulary) -> list[anchors.Anchors]:
        found, notes = anchors.read_categories(file) if file else (anchors.pack(), [])
        resolved, more = anchors.resolve(found, vocabulary)
        self.notes += [*notes, *more] if file is not None or resolved else []
        if not resolved:
            name = self.context.known.name
            what = (
                f"no category of {file or 'the pack'} has {anchors.LEAST} words that are one token of {name}"
            )
            if file is not None:
                raise InvalidInput(what, "give categories with more, or more common, words")
            self.notes.append(f"{what}: none were made")
        return resolved

    # ---- which runs ----

    def _plan(self) -> list[FeatureRun]:
        source, options, model = self.source, self.source.options, self.context.model
        keys: dict[str, dict[str, Any]] = {
            "discovery": {"seeds": len(source.seeds), "seed": options.seed},
            "independence": {},
        }
        if source.anchors:
            keys = {"categories": {"words": source.words, "seed": options.seed}, **keys}
        if model.vocab_size <= NEIGHBOURS:
            del keys["discovery"]
            self.notes.append(
                f"a vocabulary of {model.vocab_size} types has no neighbourhoods: none were sought"
            )
        # The name of a file is no part of what is in it.
        file = options.categories.name if options.categories is not None else "the pack"
        old = self._old_runs()
        planned = []
        for job, key in keys.items():
            left = list(source.sites)
            for run in old:
                params = run.spec.params
                if run.spec.job != job or {k: v for k, v in params.items() if k in key} != key:
                    continue
                shared = [one for one in left if one in run.sites]
                left = [one for one in left if one not in shared]
                if shared:
                    planned.append(run)
            if left:
                run_id = short_id("run", source.model_id, job, key, left)
                params = {"sites": left, **key, **({"categories": file} if job == "categories" else {})}
                planned.append(FeatureRun(RunSpec(run_id, job, params, ()), tuple(left), 0, False))
        return planned

    def _old_runs(self) -> list[FeatureRun]:
        if not self.context.path.exists():
            return []
        with store.reading(self.context.path) as connection:
            rows = connection.execute(
                "SELECT r.run_id, r.job, r.params, r.finished_at IS NOT NULL, coalesce(max(h.start + h.n), 0) FROM run r "
                "LEFT JOIN shard h USING (run_id) WHERE r.model_id = ? AND list_contains(?, r.job) "
                "GROUP BY ALL ORDER BY max(r.started_at), r.run_id",
                [self.source.model_id, list(TYPE_JOBS)],
            ).fetchall()
        found = []
        for run_id, job, text, finished, done in rows:
            params = json.loads(text)
            found.append(
                FeatureRun(RunSpec(run_id, job, params, ()), tuple(params["sites"]), int(done), finished)
            )
        return found

    # ---- size ----

    def _size(self) -> Size:
        """What the runs take; of features as many as can be, since discovered ones that repeat another are merged."""
        source, widths = self.source, self.source.controls.widths
        each = {"categories": 2 * len(source.anchors), "discovery": len(source.seeds)}
        todo = [one for one in self.runs if not one.finished]
        n = sum(each.get(one.spec.job, 0) * (len(one.sites) - one.done) for one in todo)
        widest = max((n_bytes(widths[one]) for one in source.sites), default=0)
        scratch = source.controls.nbytes if source.controls.to_compute(self.pending_sites) else 0
        return Size(
            tokens=sum(self._passes()),
            features=n,
            catalogue_bytes=n * (sizes.FEATURE_BYTES + 2 * widest),
            scratch_bytes=scratch,
            steps=self._steps(todo),
        )

    def _passes(self) -> tuple[int, int]:
        """Tokens that this stage itself sends through the model: for the control bases, where the stage types does not
        come by, and for the sample of the text."""
        source, context = self.source, self.context
        typed = {one.name for plan in context.todo("types") for one in plan.spec.sites}
        alone = [one for one in self.pending_sites if one not in typed and source.controls.missing(one)]
        states = sum(plan.tokens for plan in context.todo("states"))
        sample = in_context.sample_tokens(list(source.controls.widths.values()), states) if states else 0
        return context.model.vocab_size if alone else 0, sample

    def _steps(self, todo: list[FeatureRun]) -> tuple[Step, ...]:
        source, model = self.source, self.context.model
        widths = source.controls.widths
        alone, sample = self._passes()
        paces = {
            "categories": sizes.CATEGORY_SECONDS,
            "discovery": sizes.DISCOVERY_SECONDS,
            "independence": sizes.INDEPENDENCE_SECONDS,
        }
        steps = [Step("control bases", sizes.pass_seconds(model, alone), "passes")] if alone else []
        for run in todo:
            cells = model.vocab_size * sum(widths[one] for one in run.sites[run.done :])
            steps.append(Step(run.spec.job, paces[run.spec.job] * cells))
        if sample:
            steps.append(Step("context", sizes.pass_seconds(model, sample), "passes"))
        states = sum(plan.tokens for plan in self.context.todo("states"))
        cells = states * sum(widths[one] for one in source.sites)
        runs = [one for one in self.runs if one.spec.job != "independence"] if states else []
        steps += [Step("feature_states", sizes.SCORE_SECONDS * cells) for _ in runs]
        return tuple(steps)

    # ---- running ----

    def _see(self, site: str, start: int, states: torch.Tensor, moments: Moments) -> None:
        """What the stage types shows on its way: no second pass over the vocabulary is needed then."""
        if site in self.pending_sites:
            self.source.controls.put(site, start, states, moments)

    def run(self, progress: Progress) -> Done:
        """Do all that is missing."""
        source, done = self.source, Done(notes=self.notes)
        texts = text_runs(self.context.path, source.model_id)
        if self.pending_sites:
            source.fill(self.pending_sites, progress)
        for run in self.runs:
            if not run.finished:
                run_type_job(source, run, progress)
                done.changed = True
            done.runs.append(run.spec.run_id)
        if texts:
            featured = [one.spec.run_id for one in self.runs if one.spec.job != "independence"]
            for part in (
                run_context(source, texts, progress),
                run_feature_states(source, featured, texts, progress),
            ):
                done.add(part)
        controls.clear(self.context.path, source.model_id)
        return done
