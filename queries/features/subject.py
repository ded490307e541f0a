"""Features, as something to search and to name: `feature:17`, or by name. A code is compared with their patterns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...catalog import codes
from ...catalog.errors import InvalidInput, NotFound, option
from ...catalog.text import quoted_name
from .. import subjects
from ..nearest import masked
from ..nearest.answers import Answer
from ..nearest.masked import Pattern
from ..nearest.polarity import nearer
from ..nearest.sql import sql_text
from ..nearest.subject import Choice, Defaults, Place, PlaceKind, Search, Start, Subject, Target, site_among
from ..nearest.where import matching_items
from ..usual import one_model
from .resolve import PLACES, features_at, find_one, narrow, rows_of

if TYPE_CHECKING:
    import duckdb

    from ..nearest.asked import Asked


class _Features(Defaults):
    """A feature registers some dimensions, each with a sign: codes agree with it on a share of them."""

    view = "features"
    item = "feature_id"
    prefix = "feature"
    example = "ID"
    place: PlaceKind = "site"
    indexed = False
    shown = ("agreement", "feature_id", "name", "n_dims")

    def parse(self, value: str) -> str:
        return value

    def find(
        self,
        connection: duckdb.DuckDBPyConnection,
        asked: Asked,
        value: str,
        place: Place | None,
    ) -> Start:
        if asked.within == self.view:
            others = [view for view in subjects.names() if view != self.view]
            raise InvalidInput(
                "features are not searched with a feature",
                f"pass {option('within', others[0])}, or one of {', '.join(others[1:])}",
            )
        feature = find_one(connection, value, asked.model, asked.site, asked.centre)
        place = Place(feature.model, feature.site, feature.centre, feature.basis, feature.width)
        words = f"feature {feature.feature_id}, {quoted_name(feature.name)}: {feature.n_dims:,} dimensions"
        choice = Choice(feature.model, feature.site, feature.centre, feature.basis, prefer="types")
        name = f"feature {feature.feature_id}"
        return Start(place, feature.pattern, words, name, "pattern", choice, item=feature.feature_id)

    def target(self, connection: duckdb.DuckDBPyConnection, choice: Choice) -> Target:
        """The features of one site and centre, in the standard basis.

        What is not given: the only model; `usual_site` if it has features, else the middle one of its `resid_post` sites
        that have; the centre of what they are compared with if there are features with it, else the one there is.
        """
        model = one_model(connection, choice.model)
        narrow(connection, model=model, site=choice.site)
        rows = connection.execute(
            f"SELECT DISTINCT s.point, s.layer, s.name, f.centre, s.width FROM {PLACES} "
            "WHERE m.name = ? AND f.basis = 'standard' ORDER BY s.point, s.layer, f.centre",
            [model],
        ).fetchall()
        sites = list(dict.fromkeys(row[2] for row in rows))
        site = site_among(choice, sites)
        centres = [row[3] for row in rows if row[2] == site]
        centre = choice.centre
        if centre is not None and centre not in centres:
            raise NotFound(f"centre of features of {model} at {site}", centre, centres)
        if centre is None:
            usual = subjects.get(choice.prefer).usual_centre
            centre = usual if usual in centres else centres[-1]
        width = next(row[4] for row in rows if row[2] == site)
        return Target(self.view, model, site, centre, "standard", width, ())

    def holds(self, connection: duckdb.DuckDBPyConnection, model: str, site: str | None = None) -> bool:
        row = connection.execute(
            f"SELECT 1 FROM {PLACES} WHERE m.name = $model AND ($site IS NULL OR s.name = $site) AND f.basis = 'standard' "
            "LIMIT 1",
            {"model": model, "site": site},
        ).fetchone()
        return row is not None

    def advice(self, model: str, site: str) -> str:
        return (
            f"run `signarium align`, which carries features there, or ingest it with {option('sites', site)} "
            f"{option('stages', 'features')}"
        )

    def search(self, search: Search) -> Answer:
        """The features that a code agrees with most: by agreement, then registered dimensions (the more the better), then
        id."""
        import pyarrow as pa

        code, target = search.code, search.target
        assert not isinstance(code, Pattern)
        features = features_at(search.connection, target)
        kept = np.arange(len(features.ids))
        if search.where is not None:
            matched = matching_items(search.path, target, search.where)
            kept = np.flatnonzero(np.isin(features.ids, matched))
        distance = masked.differing_each(code[None], features.patterns, target.width, engine=search.engine)[0]
        agreement = codes.agreement(code, features.patterns.mask, features.patterns.polarity)
        sizes = features.patterns.n_dims
        polarity: dict[str, NDArray[np.int32]] = {}
        if search.both:
            distance, sides = nearer(distance, sizes)
            agreement = 1.0 - distance / sizes
            polarity = {"polarity": sides}
        best = kept[np.lexsort((features.ids[kept], -sizes[kept], -agreement[kept]))][: search.k]
        rows = rows_of(search.connection, features.ids[best].tolist())
        if search.both:
            # The feature's signs and the way in which the neuron is turned would have one name.
            rows = rows.rename_columns(
                ["feature_polarity" if name == "polarity" else name for name in rows.column_names]
            )
        figures = {"distance": distance, **polarity, "agreement": agreement}
        columns = {"rank": np.arange(1, len(best) + 1)}
        columns |= {name: values[best] for name, values in figures.items()}
        table = pa.table({**columns, **dict(zip(rows.column_names, rows.columns, strict=True))})
        return Answer(target, table, len(kept), turned=search.both)

    def source(self, target: Target, names: frozenset[str]) -> tuple[str, str]:
        place = " AND ".join(
            f"{name} = {sql_text(getattr(target, name))}" for name in ("model", "site", "centre", "basis")
        )
        return f"SELECT * FROM features WHERE {place}", "feature_id"

    def carried(
        self, connection: duckdb.DuckDBPyConnection, start: Start, rotation_id: int
    ) -> Pattern | None:
        """The feature that `align` made of it in the other model."""
        row = connection.execute(
            "SELECT f.mask, f.polarity FROM carried_row c JOIN feature_row f USING (feature_id) WHERE c.rotation_id = ? "
            "AND c.source_feature_id = ?",
            [rotation_id, start.item],
        ).fetchone()
        return None if row is None else Pattern(*(np.frombuffer(part, np.uint8) for part in row))


FEATURES: Subject = _Features()
