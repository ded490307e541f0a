"""One feature on one page: what it is made of, what agrees with it, and how its figures stand beside their controls."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...catalog import index, store
from ...catalog.errors import SignariumError
from ...catalog.ids import neuron_item
from ..nearest.masked import differing
from ..nearest.subject import Choice
from ..states.contexts import contexts
from ..types.subject import TYPES
from ..words import raised, table_of
from ..writers.chance import chance
from .resolve import Feature, find_one, rows_of

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

BINS = 20
"""Bins of the histogram, over agreements from 0 to 1."""


@dataclass(frozen=True)
class FeatureCard:
    """All about one feature, as tables.

    `feature` is its row of the view `features`; `members`, `types`, `states` and `measurements` are its rows of
    `feature_members`, `feature_types`, `feature_states` (the token marked in its context) and `measurements`.
    `histogram` counts types and members by agreement, `low` to `high`; it is empty where no types are at hand.
    `writers` (each with the first tokens that it raises in its polarity), `coalitions` and `projections` are its rows of those
    views, the direction of its difference of means among the last; `chance` is what the best neuron reaches with such
    features, and under the controls; `flips` are the rows of the first of `flip_runs`, the latest. `carried` says from which
    feature of which model a rotation carried it. These are empty where nothing is stored.
    """

    feature: pa.Table
    members: pa.Table
    types: pa.Table
    states: pa.Table
    measurements: pa.Table
    histogram: pa.Table
    writers: pa.Table
    chance: pa.Table
    coalitions: pa.Table
    projections: pa.Table
    flips: pa.Table
    flip_runs: pa.Table
    carried: pa.Table

    def parts(self) -> dict[str, Any]:
        """The same as plain values: the row, and lists of rows."""
        (row,) = self.feature.to_pylist()
        names = (field.name for field in fields(self) if field.name != "feature")
        return {"feature": row, **{name: getattr(self, name).to_pylist() for name in names}}


def show(
    path: Path,
    feature: str,
    *,
    model: str | None = None,
    site: str | None = None,
    centre: str | None = None,
    flip_run: str | None = None,
) -> FeatureCard:
    """The card of a feature, named by its id or by a name that is its alone at that model, site and centre.

    `flip_run` chooses the run whose flips it has, instead of the latest.

    Raises:
        NotFound, InvalidInput: if none is called so, or several are.
    """
    with store.reading(path) as connection:
        named = find_one(connection, feature, model, site, centre)
        here = f"feature_id = {named.feature_id}"

        def rows(query: str) -> pa.Table:
            return connection.execute(query).to_arrow_table()

        return FeatureCard(
            rows_of(connection, [named.feature_id]),
            rows(f"SELECT part, token_id, token FROM feature_members WHERE {here} ORDER BY part, token_id"),
            rows(f"SELECT rank, token_id, token, agreement FROM feature_types WHERE {here} ORDER BY rank"),
            _states(connection, named),
            rows(
                "SELECT * FROM measurements WHERE subject = 'feature' "
                f"AND subject_id = '{named.feature_id}' ORDER BY metric, split, control, n, run_id"
            ),
            _histogram(path, connection, named),
            _writers(connection, named),
            _chance(connection, named),
            rows(
                "SELECT layer, k, agreement, agreement_split_half, agreement_random FROM coalition_row "
                f"WHERE {here} ORDER BY k"
            ),
            _projections(connection, named),
            *_flips(connection, named, flip_run),
            rows(
                "SELECT c.rotation_id, c.source_feature_id, f.name AS source_name, f.kind AS source_kind, r.model_a, r.site_a, "
                "r.ev_rotation, r.ev_shuffled, r.rank_warning FROM carried_row c JOIN rotations r USING (rotation_id) "
                f"LEFT JOIN feature_row f ON f.feature_id = c.source_feature_id WHERE c.{here}"
            ),
        )


def _writers(connection: duckdb.DuckDBPyConnection, feature: Feature) -> pa.Table:
    import pyarrow as pa

    table = connection.execute(
        "SELECT layer, neuron, rank, polarity, agreement FROM writer_row WHERE feature_id = ? ORDER BY rank",
        [feature.feature_id],
    ).to_arrow_table()
    layers, neurons, polarities = (table.column(name).to_pylist() for name in ("layer", "neuron", "polarity"))
    items = [neuron_item(*place) for place in zip(layers, neurons, strict=True)]
    return table.append_column(
        "raises", pa.array(raised(connection, feature.model, items, polarities), pa.string())
    )


def _chance(connection: duckdb.DuckDBPyConnection, feature: Feature) -> pa.Table:
    row = connection.execute(
        "SELECT s.layer FROM site s JOIN model m USING (model_id) WHERE m.name = ? AND s.name = ? AND s.point = 'resid_post'",
        [feature.model, feature.site],
    ).fetchone()
    # No neuron writes to other points; -1 is no block.
    return chance(connection, feature.model, -1 if row is None else row[0], feature.kind, feature.centre)


def _projections(connection: duckdb.DuckDBPyConnection, feature: Feature) -> pa.Table:
    import pyarrow as pa

    tables = []
    for subject in ("feature", "direction"):
        table = table_of(connection, feature.model, subject, [feature.feature_id]).drop_columns(["item"])
        tables.append(table.add_column(0, "subject", pa.array([subject] * table.num_rows, pa.string())))
    return pa.concat_tables(tables)


def _flips(
    connection: duckdb.DuckDBPyConnection, feature: Feature, run_id: str | None
) -> tuple[pa.Table, pa.Table]:
    """Rows of one run that flipped a feature, or of the latest, and all such runs: that one, then the latest first."""
    runs = connection.execute(
        "SELECT run_id, params, device, started_at, finished_at FROM run WHERE run_id IN "
        "(SELECT run_id FROM flip_row WHERE feature_id = ?) ORDER BY run_id = ? DESC, started_at DESC, run_id",
        [feature.feature_id, run_id or ""],
    ).to_arrow_table()
    chosen = runs.column("run_id").to_pylist()[:1]
    rows = connection.execute(
        "SELECT x.run_id, x.feature_id, s.name AS site, x.arm, x.dose, x.at_norm, x.norm, x.own_logit_change, "
        "x.other_logit_change, x.kl, x.n, x.own_std_error, x.other_std_error, x.kl_std_error "
        "FROM flip_row x JOIN site s USING (site_id) WHERE x.feature_id = ? AND x.run_id = ? "
        "ORDER BY s.name <> ?, s.layer, x.arm, x.at_norm DESC, x.dose",
        [feature.feature_id, *(chosen or [""]), feature.site],
    ).to_arrow_table()
    return rows, runs


def _states(connection: duckdb.DuckDBPyConnection, feature: Feature) -> pa.Table:
    """As the view `feature_states`, which ranks every feature's states before it leaves out the others."""
    import pyarrow as pa

    table = connection.execute(
        "WITH top AS (SELECT DISTINCT feature_id, state_id, agreement FROM feature_state_row WHERE feature_id = ? "
        "ORDER BY agreement DESC, state_id LIMIT 20) "
        "SELECT row_number() OVER (ORDER BY top.agreement DESC, top.state_id) AS rank, top.state_id, w.document_id, "
        "w.position, t.token, top.agreement FROM top JOIN state_row w ON w.state_id = top.state_id "
        "LEFT JOIN token_row t ON t.token_id = w.token_id AND t.tokenizer = "
        "(SELECT tokenizer_sha256 FROM model WHERE name = ?) ORDER BY rank",
        [feature.feature_id, feature.model],
    ).to_arrow_table()
    marked = contexts(connection, feature.model, table.column("state_id").to_pylist())
    return table.add_column(5, "context", pa.array(marked, pa.string()))


def _histogram(path: Path, connection: duckdb.DuckDBPyConnection, feature: Feature) -> pa.Table:
    import pyarrow as pa

    everything = np.zeros(BINS, np.int64)
    members = np.zeros(BINS, np.int64)
    try:
        target = TYPES.target(
            connection, Choice(feature.model, feature.site, feature.centre, feature.basis, prefer="types")
        )
        opened = [index.get(path, info, connection) for info in target.infos]
    except SignariumError:
        opened = []
    ids = connection.execute(
        "SELECT token_id FROM feature_member WHERE feature_id = ?", [feature.feature_id]
    ).fetchnumpy()["token_id"]
    for codes in opened:
        agreeing = feature.n_dims - differing(codes.codes, feature.pattern).astype(np.int64)
        # In whole numbers, so that 0.85 is no 0.8499.
        bins = np.minimum(agreeing * BINS // max(1, feature.n_dims), BINS - 1)
        everything += np.bincount(bins, minlength=BINS)
        members += np.bincount(bins[codes.rows_of(ids.astype(np.int64))], minlength=BINS)
    edges = np.arange(BINS + 1) / BINS
    kept = slice(None) if opened else slice(0, 0)
    return pa.table(
        {
            "low": edges[:-1][kept],
            "high": edges[1:][kept],
            "types": everything[kept],
            "members": members[kept],
        }
    )
