"""`align`: the rotations between two models, with all that could explain them away. One call is one run, a shard a site."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from sqlalchemy.orm import Session
from torch import Tensor

from ...catalog import bulk, schema, store
from ...catalog.carry import Rotation
from ...catalog.errors import ModelError, SiteError
from ...catalog.ids import int_id, short_id
from ..encode import reload
from ..job import run_once
from ..journal import RunSpec, Units, add_site, n_committed, run_units, site_id
from ..known import model_row
from ..model.sites import Site
from ..passes.gather import cut, sum_of
from ..progress import Progress, Silent
from ..stats.figures import Scope
from ..stats.paired import Paired
from ..text.sources import TextFile, find_texts, identity, without_text
from . import measure
from .contrasts import contrasts
from .labels import Label, labels
from .report import AlignReport, read_rotations, writable, write_matrices
from .request import (
    AlignRequest,
    End,
    choose_sites,
    dictionaries,
    jobs_read,
    read_ends,
    shared_sites,
    steered_site,
)
from .states import States
from .steer import Steered, Stream
from .steer import figures as steered_figures
from .steer import steer as try_directions

if TYPE_CHECKING:
    from ..model.loaded import LoadedModel

VERSION = 1
"""Part of a run's identity: another number where the same arguments come to mean another measurement."""


def align(path: Path, request: AlignRequest, progress: Progress | None = None) -> AlignReport:
    """Fit and store the rotation from model A to model B at each site, and measure what it is worth.

    Both models run over the same windows of the text. Documents are parted into two halves of the fit, validation and
    test; first positions are left out. Directions of A are tried on B at one of the sites. The same call again does
    nothing, and one that was cut short is gone on with.

    Raises:
        NotFound: for a model that is not in the catalogue.
        InvalidInput: for models of different widths or tokenizers, for one model twice, and for a text that is too short.
        ModelError: if the weights of a model are no longer at hand.
        SiteError: for a site that one of the models lacks, or that is of another width there.
        DiskFull: if the states do not fit beside the catalogue.
    """
    begun = time.perf_counter()
    path, progress = Path(path), progress or Silent()
    a, b = read_ends(path, request)
    usual = shared_sites(path, a, b) if request.sites is None else []
    output = None if request.output is None else writable(Path(request.output))
    files = find_texts(request.text, request.column)
    done = run_once(path, AlignJob(path, request, (a, b), usual, files), progress)
    report = AlignReport(done.runs[0], a.name, b.name, not done.changed, notes=done.notes)
    report.rotations = read_rotations(path, report.run_id)
    if output is not None:
        report.outputs = write_matrices(path, report.run_id, output)
    report.seconds = time.perf_counter() - begun
    return report


class AlignJob:
    """See `job.Job`. `usual` are the sites of a request that names none."""

    def __init__(
        self,
        path: Path,
        request: AlignRequest,
        ends: tuple[End, End],
        usual: Sequence[str],
        files: Sequence[TextFile],
    ) -> None:
        self.path, self.request, self.ends, self._usual, self._files = path, request, ends, usual, files

    def identify(self, progress: Progress) -> str:
        """From both models, the text, the request, and what the catalogue has of them; loads the models."""
        request, (a, b) = self.request, self.ends
        progress.loading(f"loading {a.name}")
        first = reload(self.path, a.name, request.device)
        progress.loading(f"loading {b.name}")
        second = reload(self.path, b.name, request.device)
        self._models = first, second
        self._sites = choose_sites(first, second, request.sites, self._usual)
        self._steered = steered_site(self._sites, request.steer)
        self._key = {
            "a": a.model_id,
            "b": b.model_id,
            "texts": identity(self._files),
            "sites": [site.name for site in self._sites],
            "max_tokens": request.max_tokens,
            "context": request.context,
            "steer": None if self._steered is None else self._steered.name,
            "seed": request.seed,
            "dictionaries": dictionaries(self.path, a, b, self._sites),
            "made": jobs_read(self.path, a, b),
            "version": VERSION,
        }
        return short_id("run", "align", self._key)

    def run(self, run_id: str, progress: Progress) -> list[str]:
        """Cut the text, gather the states, and measure what is missing."""
        request, (a, b) = self.request, self.ends
        progress.loading("reading the text")
        context = min(request.context, *(one.max_positions or request.context for one in self._models))
        windows = cut(self._models[0], self._files, context, request.max_tokens, progress.counted)
        params = self._key | {
            "model_a": a.name,
            "model_b": b.name,
            "context": context,
            "tokens": sum_of(windows),
            "documents": len(windows),
        }
        notes = []
        if windows.repeats:
            were = "window was" if windows.repeats == 1 else "windows were"
            notes.append(f"{windows.repeats:,} {were} left out: the same tokens stood in an earlier one")
        folder = store.sidecar(self.path, f".scratch-{run_id}")
        states = States(folder, self._models, (a.name, b.name), windows, request.seed)
        spec = RunSpec(run_id, "align", params, ())
        run = _Run(self.path, spec, self.ends, states, self._sites, self._steered, request.seed)
        run.run(progress)
        return notes + run.notes + without_text(self._files)


class _Run:
    """A run: a unit a site, and one for steering at the site `steered`."""

    def __init__(
        self,
        path: Path,
        spec: RunSpec,
        ends: tuple[End, End],
        states: States,
        sites: Sequence[Site],
        steered: Site | None,
        seed: int,
    ) -> None:
        self.path, self.spec, self.ends, self.states, self.seed = path, spec, ends, states, seed
        self.sites, self.steered = list(sites), steered
        self.models: tuple[LoadedModel, LoadedModel] = states.models
        self.notes: list[str] = []
        self._carried: Rotation[Tensor] | None = None
        self._labels: list[Label] | None = None

    def run(self, progress: Progress) -> None:
        """Run what is missing."""
        n = len(self.sites) + (self.steered is not None)
        done = n_committed(self.path, self.spec.run_id)
        todo = [site for i, site in enumerate(self.sites) if i >= done or site == self.steered]
        self.states.check_disk(self.path, todo)
        units = Units(self.spec, self._compute, n, "steps")
        model = self.models[1]
        with self.states.removed():
            self.states.gather(todo, progress)
            run_units(self.path, model_row(model, self.ends[1].name), str(model.device), units, progress)

    def _site_id(self, end: int, site: Site) -> str:
        return site_id(self.ends[end].model_id, site)

    def _rotation_id(self, site: Site) -> int:
        return int_id("rotation", self.spec.run_id, site.name)

    def _compute(self, i: int) -> Callable[[Session], None]:
        if i == len(self.sites):
            assert self.steered is not None
            return self._steer(self.steered)
        site = self.sites[i]
        paired = self.states.paired(site)
        if self._labels is None:
            # Rows are the same tokens at every site.
            self._labels = labels(self.models[0], self.states.windows, paired, self.seed)
        between = measure.Between(
            self.path, self.ends[0].name, self.ends[1].name, site, self._site_id(0, site), self._site_id(1, site),
            self.spec.params["texts"], self.seed,
        )  # fmt: skip
        found = measure.measure(between, paired, self._labels)
        self.notes += [one for one in found.notes if one not in self.notes]
        rotation_id = self._rotation_id(site)
        if site == self.steered:
            # The row itself may not be committed by then.
            self._carried = measure.stored_rotation(found.row, self.states.device)

        def write(session: Session) -> None:
            for end, model in zip(self.ends, self.models, strict=True):
                add_site(session, end.model_id, site, model.width_of(site))
            row = found.row | {
                "rotation_id": rotation_id,
                "run_id": self.spec.run_id,
                "site_a_id": self._site_id(0, site),
                "site_b_id": self._site_id(1, site),
            }
            bulk.insert(session, schema.rotation_row, _one_row(schema.rotation_row, row))
            width = self.models[1].width_of(site)
            components: dict[str, Any] = {
                "rotation_id": np.full(width, rotation_id),
                "component": np.arange(1, width + 1, dtype=np.int32),
            }
            bulk.insert(session, schema.rotation_component_row, components | found.components)
            found.insert_features(session, self.spec.run_id, rotation_id, site.name, self._site_id(1, site))
            bulk.insert_figures(session, self.spec.run_id, found.figures)

        return write

    def _steer(self, site: Site) -> Callable[[Session], None]:
        paired = self.states.paired(site)
        rotation = self._carried or measure.read_rotation(self.path, self._rotation_id(site), paired.device)
        steered = self._directions(site, paired, rotation)
        scope = Scope(self._site_id(1, site), "rotation", self.ends[0].name, self.seed)
        figures = [
            scope.figure(metric, control, "held_out", value, n, error)
            for metric, control, value, n, error in steered_figures(steered)
        ]

        def write(session: Session) -> None:
            columns: dict[str, Any] = {
                column.key: pa.array([getattr(one, column.key) for one in steered])
                for column in schema.steering_row.c
                if column.key != "rotation_id"
            }
            columns["rotation_id"] = np.full(len(steered), self._rotation_id(site))
            if steered:
                bulk.insert(session, schema.steering_row, columns)
            bulk.insert_figures(session, self.spec.run_id, figures)

        return write

    def _directions(self, site: Site, paired: Paired, rotation: Rotation[Tensor]) -> list[Steered]:
        """What directions of A do on B, where both can be steered."""
        windows = self.states.windows
        try:
            chosen, notes = contrasts(*self.models, windows, paired)
            self.notes += notes
            if not chosen:
                return []
            streams = Stream(self.models[0], site), Stream(self.models[1], site)
            steered, notes = try_directions(streams, rotation, paired, windows, chosen, seed=self.seed)
            self.notes += notes
            return steered
        except (SiteError, ModelError) as error:
            self.notes.append(f"no steering at {site}: {error.what}")
            return []


def _one_row(table: Any, values: dict[str, Any]) -> dict[str, Any]:
    """One row as columns; NULL keeps its column's type."""
    kinds = {str: pa.string(), float: pa.float64(), int: pa.int64(), bytes: pa.large_binary()}
    return {column.key: pa.array([values[column.key]], kinds[column.type.python_type]) for column in table.c}
