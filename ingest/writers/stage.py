"""The stage `writers`: which neurons write the features of `resid_post` sites, and what those features say in words.

One job, `writers`, a shard a site. It covers all features of the runs that it names; later features are a run of
their own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from ...catalog import bulk, schema, store
from ...catalog.bulk import code_matrix
from ...catalog.codes import n_bytes, unpack
from ...catalog.errors import InvalidInput, ModelError, SiteError, option
from ...catalog.ids import short_id
from .. import size as sizes
from ..job import Context, Done, Watch
from ..journal import RunSpec, Units, Write
from ..model.sites import Site
from ..size import Size, Step
from ..stats.bits import Patterns
from ..stats.moments import stored_moments
from ..words import directions as words
from .measure import KS, WRITERS, Group, measure_site

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from ..progress import Progress

_SOURCES = ("categories", "discovery")
"""The jobs that make features."""


@dataclass(frozen=True)
class _Spec:
    """A run of the job: the runs whose features it covers, and its sites in the order of its shards."""

    run_id: str
    params: dict[str, Any]
    finished: bool


class WriterStage:
    """What the stage will do; which features there are is known for certain only when it runs.

    Raises:
        InvalidInput: if the model has no features and will get none, and the stage was asked for.
    """

    name: ClassVar[str] = "writers"
    needs: ClassVar[tuple[str, ...]] = ("features",)
    watch: Watch | None = None
    seed: ClassVar[int] = 0

    def __init__(self, context: Context) -> None:
        self.context = context
        self.path, self.model, self.known = context.path, context.model, context.known
        path, known, coming = context.path, context.known, context.coming.features
        self.notes: list[str] = []
        self.n_features = coming
        if path.exists():
            with store.reading(path) as connection:
                covered = {one for run in self._old(connection) for one in run.params["features"]}
                here = connection.execute(
                    "SELECT f.run_id, count(*) FROM feature_row f JOIN site s USING (site_id) JOIN run r USING (run_id) "
                    "WHERE s.model_id = ? AND s.point = 'resid_post' GROUP BY ALL",
                    [known.model_id],
                ).fetchall()
            self.n_features += sum(n for run_id, n in here if run_id not in covered)
            coming += len(here)
        if context.asked and not coming:
            raise InvalidInput(
                f"writers are sought for features, and {known.name} has none",
                f"add features to {option('stages')}",
            )

        per_feature = (WRITERS + len(KS)) * sizes.WRITER_BYTES + 4 * words.TOP * sizes.WORD_BYTES
        seconds = sizes.WRITER_SECONDS * self.n_features * self.model.width
        self.size = Size(
            catalogue_bytes=int(self.n_features * per_feature),
            steps=(Step(self.name, seconds),) * (self.n_features > 0),
        )

    def run(self, progress: Progress) -> Done:
        """Do all that is missing."""
        done = Done(notes=self.notes)
        for spec in self._plan():
            if not spec.finished:
                self._job(spec, progress)
                done.changed = True
            done.runs.append(spec.run_id)
        return done

    def _old(self, connection: Any) -> list[_Spec]:
        rows = connection.execute(
            "SELECT run_id, params, finished_at IS NOT NULL FROM run WHERE model_id = ? AND job = 'writers' "
            "ORDER BY started_at, run_id",
            [self.known.model_id],
        ).fetchall()
        return [_Spec(run_id, json.loads(params), finished) for run_id, params, finished in rows]

    def _plan(self) -> list[_Spec]:
        """Runs that are there, and one for the features that none of them covers."""
        with store.reading(self.path) as connection:
            planned = self._old(connection)
            rows = connection.execute(
                "SELECT r.run_id, r.params, s.name, s.layer FROM run r JOIN feature_row f USING (run_id) "
                "JOIN site s USING (site_id) WHERE r.model_id = ? AND r.finished_at IS NOT NULL AND r.job IN "
                f"({', '.join(repr(one) for one in _SOURCES)}) AND s.point = 'resid_post' AND f.basis = 'standard' "
                "GROUP BY ALL ORDER BY s.layer, min(r.started_at), r.run_id",
                [self.known.model_id],
            ).fetchall()
        covered = {one for run in planned for one in run.params["features"]}
        fresh = [row for row in rows if row[0] not in covered]
        writable, others = [], []
        for _, _, site, layer in fresh:
            try:
                self.model.ffn_directions(layer)
                writable.append(site)
            except SiteError:
                others.append(site)
        if others:
            self.notes.append(
                f"no writers at {', '.join(dict.fromkeys(others))}: no single last FFN map there"
            )
        fresh = [row for row in fresh if row[2] in writable]
        if fresh:
            sources = sorted({row[0] for row in fresh})
            params = {"features": sources, "sites": list(dict.fromkeys(writable)), "seed": self.seed}
            own = [json.loads(row[1]).get("categories", "the pack") for row in fresh]
            # Categories of one's own stand behind those of the pack in `evidence`.
            params["categories"] = next((one for one in own if one != "the pack"), "the pack")
            planned.append(_Spec(short_id("run", self.known.model_id, "writers", params), params, False))
        return planned

    def _job(self, spec: _Spec, progress: Progress) -> None:
        try:
            vocabulary = words.Vocabulary(self.model)
        except ModelError as error:
            vocabulary = None
            self.notes.append(f"no feature was read in words: {error.what}")
        sites = spec.params["sites"]

        def compute(i: int) -> Write:
            groups, stds = self._groups(spec.params["features"], sites[i])
            site_id = f"{self.known.model_id}/{sites[i]}"
            measured = measure_site(
                self.model.ffn_directions,
                self.model.n_layers,
                int(sites[i].partition(".")[2]),
                groups,
                site_id,
                self.seed,
            )
            figures = list(measured.figures)
            said = []
            if vocabulary is not None:
                for group in groups:
                    columns, more = self._words(vocabulary, spec.run_id, site_id, group, stds)
                    said.append(columns)
                    figures += more

            def write(session: Session) -> None:
                bulk.insert(session, schema.writer_row, measured.writers)
                bulk.insert(session, schema.coalition_row, measured.coalitions)
                for columns in said:
                    bulk.insert(session, schema.projection_row, columns)
                bulk.insert_figures(session, spec.run_id, figures)

            return write

        self.context.run_units(
            Units(RunSpec(spec.run_id, "writers", spec.params, ()), compute, len(sites), "sites"), progress
        )

    def _groups(self, sources: list[str], site: str) -> tuple[list[Group], NDArray[np.float64]]:
        """The features of those runs at a site by kind and centre, and the std of its dimensions over the types."""
        listed = ", ".join(f"'{one}'" for one in sources)
        width = self.model.width_of(Site.from_name(site))
        with store.reading(self.path) as connection:
            table = connection.execute(
                "SELECT f.kind, f.centre, f.feature_id, f.mask, f.polarity FROM feature_row f JOIN site s USING (site_id) "
                f"WHERE f.run_id IN ({listed}) AND s.model_id = ? AND s.name = ? ORDER BY f.kind, f.centre, f.feature_id",
                [self.known.model_id, site],
            ).to_arrow_table()
            moments = stored_moments(connection, self.known.model_id, site=site)
        keys = list(zip(table.column("kind").to_pylist(), table.column("centre").to_pylist(), strict=True))
        mask, polarity = (
            unpack(code_matrix(table.column(name), n_bytes(width)), width).astype(np.bool_)
            for name in ("mask", "polarity")
        )
        ids = table.column("feature_id").to_numpy()
        groups = []
        for key in dict.fromkeys(keys):
            some = np.array([one == key for one in keys])
            groups.append(Group(*key, ids[some], Patterns(mask[some], polarity[some])))
        return groups, moments[site].std

    def _words(
        self,
        vocabulary: words.Vocabulary,
        run_id: str,
        site_id: str,
        group: Group,
        stds: NDArray[np.float64],
    ) -> tuple[dict[str, Any], list[bulk.Figure]]:
        """Tokens of each feature: its signs, and its signs times how far each dimension reaches over the types."""
        code = group.patterns.signs
        real = code * torch.from_numpy(stds).float()
        coded = words.Coded(code, vocabulary.sources(real, code))
        columns = words.rows(run_id, site_id, "feature", group.ids, coded.sources)
        (some,) = words.evenly(words.SAMPLE, [len(group.ids)])
        figures = words.overlap_figures(
            vocabulary, real[some], site_id, group.kind, group.centre, self.seed, coded=coded[some]
        )
        return columns, figures
