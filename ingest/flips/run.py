"""`flip`: the model with a feature's signs flipped, beside the controls. One call is one run, a shard a few passes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from sqlalchemy.orm import Session

from ...catalog import bulk, schema, store
from ...catalog.codes import pack
from ...catalog.ids import int_id, short_id
from ..encode import reload
from ..job import run_once
from ..journal import RunSpec, SetSpec, Units, add_site, n_committed, run_units
from ..known import model_row
from ..model.sites import Site
from ..passes import inject
from ..progress import Progress, Silent
from ..stats.outcome import Outcome
from ..text.sources import TextFile, find_texts, identity, without_text
from ..words import directions as words
from .arms import ARMS, DOSES, ROTATION, norm_of
from .figures import feature_figures, site_figures
from .fit import Fitted, fit_arms
from .passes import Passes
from .request import FlipRequest
from .tokens import ChosenWindows, Feature, choose_windows, disjoint_from, read_feature

if TYPE_CHECKING:
    from ..model.loaded import LoadedModel

VERSION = 1
"""Part of a run's identity: another number where the same arguments come to mean another measurement."""
LATER = 2
"""Later sites at which the same pattern is flipped."""


@dataclass
class FlipReport:
    """What a flip did. `already` says that the run was in the catalogue before."""

    run_id: str
    feature_id: int
    model: str
    already: bool = False
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


def flip(path: Path, request: FlipRequest, progress: Progress | None = None) -> FlipReport:
    """Flip the signs of a feature in the residual stream over a text, and store what that does to the logits.

    Every arm (`arms.ARMS`) changes the state at the feature's site at all positions of the windows; at two later sites
    the same pattern is flipped. Measured are, at up to 16 positions a window, the mean change of the logits of the
    feature's own tokens and of other tokens of like frequency, and the divergence of the next-token distribution. Logits
    are those of `inject.Readout`. The same call again does nothing, and one that was cut short is gone on with.

    Raises:
        InvalidInput, NotFound: for a feature that is not there or at a site that no block writes to, and for a text
            without the feature's tokens.
        ModelError: if the weights are no longer at hand, or the model has no unembedding.
        SiteError: if later blocks read more than the residual stream.
    """
    begun = time.perf_counter()
    path, progress = Path(path), progress or Silent()
    feature = read_feature(path, request.feature_id)
    done = run_once(path, FlipJob(path, request, feature, find_texts(request.text, request.column)), progress)
    seconds = time.perf_counter() - begun
    return FlipReport(done.runs[0], feature.feature_id, feature.model, not done.changed, done.notes, seconds)


@dataclass(frozen=True)
class FlipJob:
    """See `job.Job`."""

    path: Path
    request: FlipRequest
    feature: Feature
    files: Sequence[TextFile]

    def identify(self, _: Progress) -> str:
        """From the feature, the text and the request."""
        request, feature = self.request, self.feature
        key = {
            "windows": request.windows,
            "context": request.context,
            "seed": request.seed,
            "version": VERSION,
        }
        return short_id("run", feature.model_id, "flip", feature.feature_id, identity(self.files), key)

    def run(self, run_id: str, progress: Progress) -> list[str]:
        """Load the model, choose what is measured, make the arms, and run what is missing."""
        request, feature = self.request, self.feature
        progress.loading(f"loading {feature.model}")
        model = reload(self.path, feature.model, request.device)
        model.check_window(request.context)
        # Before minutes are spent: an encoder has none.
        unembedding, bias = model.unembedding(), model.unembedding_bias()
        progress.loading("reading the text")
        chosen = choose_windows(
            model, self.files, feature, request.windows, request.context, progress.counted
        )
        progress.loading("running the model as it is")
        sites = [feature.site, *later_sites(feature.site, model.n_layers)]
        inject.check(model, torch.from_numpy(chosen.scored[0])[None].to(model.device), sites)
        other = disjoint_from(self.path, feature, _begun_with(self.path, run_id))
        fitted = fit_arms(self.path, model, feature, other, sites, chosen, request.seed)
        passes = Passes(model, chosen, fitted, sites, unembedding, bias)
        spec = self._spec(run_id, sites, chosen, fitted)
        _Run(self.path, spec, model, feature, fitted, passes, sites, request.seed, chosen.apart).run(progress)
        return _notes(feature, chosen, fitted, model) + without_text(self.files)

    def _spec(self, run_id: str, sites: Sequence[Site], chosen: ChosenWindows, fitted: Fitted) -> RunSpec:
        request, feature = self.request, self.feature
        params = {
            "sites": [one.name for one in sites],
            "feature": feature.feature_id,
            "name": feature.name,
            "windows": request.windows,
            "context": request.context,
            "seed": request.seed,
            "about": "zero" if feature.centre == "zero" else "text mean",
            "doses": list(DOSES),
            "basis": f"haar:{ROTATION}",
            "own_tokens": len(feature.tokens),
            "other_tokens": len(fitted.other_tokens),
            "scored_windows": len(chosen.scored),
            "scored_windows_with_own_tokens": chosen.with_own,
            "fit_windows": len(chosen.fit),
            "fit_on": "other windows" if chosen.apart else "the same windows",
            "fit_own_positions": fitted.n_own,
            "disjoint_feature": fitted.disjoint_feature,
            "texts": len(self.files),
        }
        sets: tuple[SetSpec, ...] = ()
        if fitted.direction is not None:
            ident = int_id("code_set", run_id, feature.site.name, "direction", "zero", "standard")
            width = len(fitted.direction)
            sets = (SetSpec(ident, feature.site, feature.site_id, "direction", "zero", width),)
        return RunSpec(run_id, "flip", params, sets)


def _begun_with(path: Path, run_id: str) -> int | None:
    """The disjoint feature of a run that was cut short: by now there may be one that fits better."""
    with store.reading(path) as connection:
        row = connection.execute("SELECT params FROM run WHERE run_id = ?", [run_id]).fetchone()
    found = json.loads(row[0]).get("disjoint_feature") if row else None
    return int(found) if found is not None else None


def later_sites(site: Site, n_layers: int) -> list[Site]:
    """Up to `LATER` sites of the residual stream after `site`, evenly spaced, the last one among them."""
    assert site.layer is not None
    return [Site("resid_post", layer) for layer in later_layers(site.layer, n_layers)]


def later_layers(layer: int, n_layers: int) -> list[int]:
    """Up to `LATER` layers after `layer`, evenly spaced, the last one among them."""
    left = n_layers - 1 - layer
    n = min(LATER, left)
    return [layer + (i + 1) * left // n for i in range(n)]


def _notes(feature: Feature, chosen: ChosenWindows, fitted: Fitted, model: LoadedModel) -> list[str]:
    notes = []
    if not chosen.apart:
        notes.append(
            f"{chosen.with_own} windows hold tokens of feature {feature.feature_id}: the difference of means is fitted on "
            "those that are measured on"
        )
    if fitted.disjoint_feature is None:
        notes.append("no other feature of that kind and site has dimensions of its own: no arm disjoint")
    if fitted.direction is None:
        notes.append("the text has no difference of means: no arm mean_difference")
    config = model.module.config.get_text_config()  # type: ignore[operator, union-attr]
    behind = ("final_logit_softcapping", "logit_scale", "logits_scaling")
    if any(getattr(config, name, None) not in (None, 1, 1.0) for name in behind):
        notes.append(f"{model.name} scales or caps its logits: they are taken before that")
    return notes


# ---- the run --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """One intervention."""

    site: Site
    arm: str
    dose: float
    at_norm: str


@dataclass(eq=False)
class _Run:
    """A run: its units in order, the rows and figures of each. `sites` are the feature's own and later ones; `apart` says
    that the difference of means was fitted on other windows."""

    path: Path
    spec: RunSpec
    model: LoadedModel
    feature: Feature
    fitted: Fitted
    passes: Passes
    sites: Sequence[Site]
    seed: int
    apart: bool

    def __post_init__(self) -> None:
        self.units = self._units()
        self._known: dict[tuple[object, ...], Outcome] = {}

    def _units(self) -> list[list[_Row]]:
        """Interventions by shard: those of one arm together, then the later sites, and last those at full dose and the
        norm of away, whose windows are compared in pairs and so must be in memory together."""
        own = self.feature.site
        rows = [_Row(own, arm, dose, "own") for arm in ARMS if arm != "rotated" for dose in DOSES]
        rows += [_Row(own, arm, dose, "away") for arm in ("rotated", "mean_difference") for dose in DOSES]
        headline = [_Row(own, arm, 1.0, "own" if arm == "away" else "away") for arm in ARMS]
        units = [list(some) for _, some in groupby(rows, lambda row: (row.arm, row.at_norm))]
        for site in self.sites[1:]:
            units.append([_Row(site, arm, 1.0, "own" if arm == "away" else "away")
                          for arm in ("away", "random", "rotated", "mean_difference")])  # fmt: skip
        units = [[row for row in unit if row not in headline] for unit in units] + [headline]
        units = [[row for row in unit if self.fitted.arms[row.site].has(row.arm)] for unit in units]
        return [unit for unit in units if unit]

    def _key(self, row: _Row) -> tuple[object, ...]:
        return (row.site, *self.fitted.arms[row.site].key(row.arm, row.dose, row.at_norm))

    def run(self, progress: Progress) -> None:
        """Run what is missing."""
        done = n_committed(self.path, self.spec.run_id)
        # Interventions that change states alike are one pass.
        passes = {self._key(row) for unit in self.units[done:] for row in unit}
        # A run's shards say how many codes it has: one, the direction's, with the last.
        sizes = [0] * (len(self.units) - 1) + [len(self.spec.sets)]
        compute = partial(self._compute, computed=progress.computed)
        run_units(
            self.path,
            model_row(self.model, self.feature.model),
            str(self.model.device),
            Units(self.spec, compute, len(self.units), "passes", sizes, len(passes)),
            progress,
        )

    def _compute(self, i: int, computed: Callable[[int], None]) -> Callable[[Session], None]:
        outcomes: dict[_Row, Outcome] = {}
        for row in self.units[i]:
            key = self._key(row)
            if key not in self._known:
                self._known[key] = self.passes.run(row.site, row.arm, row.dose, row.at_norm)
                computed(1)
            outcomes[row] = self._known[key]

        last = i == len(self.units) - 1
        said = self._words() if last else None

        def write(session: Session) -> None:
            self._insert(session, outcomes)
            if last:
                self._conclude(session, {row.arm: one for row, one in outcomes.items()}, said)

        return write

    # ---- rows ----

    def _insert(self, session: Session, outcomes: dict[_Row, Outcome]) -> None:
        model_id = self.feature.model_id
        ids = {
            site: add_site(session, model_id, site, self.model.width)
            for site in dict.fromkeys(row.site for row in outcomes)
        }
        n = len(outcomes)
        columns: dict[str, Any] = {
            "run_id": [self.spec.run_id] * n,
            "feature_id": np.full(n, self.feature.feature_id, np.int64),
            "site_id": [ids[row.site] for row in outcomes],
            "arm": [row.arm for row in outcomes],
            "dose": [row.dose for row in outcomes],
            "at_norm": [row.at_norm for row in outcomes],
            "norm": [one.norm for one in outcomes.values()],
            "n": [one.n for one in outcomes.values()],
        }
        for k, name in enumerate(("own_logit_change", "other_logit_change", "kl")):
            columns[name] = [float(one.mean[k]) for one in outcomes.values()]
        for k, name in enumerate(("own_std_error", "other_std_error", "kl_std_error")):
            # NULL with one window.
            columns[name] = pa.array([one.errors[k] for one in outcomes.values()], pa.float64())
        bulk.insert(session, schema.flip_row, columns)

    def _words(self) -> dict[str, Any] | None:
        """Rows of `projection_row` for the difference of means."""
        if self.fitted.direction is None:
            return None
        found = words.Vocabulary(self.model).sources(self.fitted.direction[None])
        item = np.array([self.feature.feature_id], np.int64)
        return words.rows(self.spec.run_id, self.feature.site_id, "direction", item, found)

    def _conclude(self, session: Session, outcomes: dict[str, Outcome], said: dict[str, Any] | None) -> None:
        """Figures of the feature, of all features flipped at its site, and the direction."""
        own = feature_figures(self.feature, outcomes, self.seed, self.apart)
        every = [*own, *site_figures(session, self.feature, own, self.seed)]
        bulk.insert_figures(session, self.spec.run_id, every)
        if self.fitted.direction is None or said is None:
            return
        direction = self.fitted.direction[None]
        item = np.array([self.feature.feature_id], np.int64)
        codes, norms = pack(direction.float().cpu().numpy()), norm_of(direction).cpu().numpy()
        part = bulk.code_columns(self.spec.sets[0].code_set_id, item, norms.astype(np.float32), codes)
        bulk.insert_codes(session, [part])
        bulk.insert(session, schema.projection_row, said)
