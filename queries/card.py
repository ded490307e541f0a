"""One feature on one page: what it is made of, what agrees with it, and how its figures stand beside their controls."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..catalog import index, store
from ..catalog.errors import SignariumError
from .answers import contexts
from .masked import differing
from .resolve import Feature, find_one, rows_of
from .target import resolve_in

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
    """

    feature: pa.Table
    members: pa.Table
    types: pa.Table
    states: pa.Table
    measurements: pa.Table
    histogram: pa.Table

    def parts(self) -> dict[str, Any]:
        """The same as plain values: the row, and lists of rows."""
        (row,) = self.feature.to_pylist()
        names = ("members", "types", "states", "measurements", "histogram")
        return {"feature": row, **{name: getattr(self, name).to_pylist() for name in names}}


def show(
    path: Path,
    feature: str,
    *,
    model: str | None = None,
    site: str | None = None,
    centre: str | None = None,
) -> FeatureCard:
    """The card of a feature, named by its id or by a name that is its alone at that model, site and centre.

    Raises:
        NotFound, InvalidInput: if none is called so, or several are.
    """
    with store.reading(path) as connection:
        one = find_one(connection, feature, model, site, centre)
        here = f"feature_id = {one.feature_id}"

        def rows(query: str) -> pa.Table:
            return connection.execute(query).to_arrow_table()

        return FeatureCard(
            rows_of(connection, [one.feature_id]),
            rows(f"SELECT part, token_id, token FROM feature_members WHERE {here} ORDER BY part, token_id"),
            rows(f"SELECT rank, token_id, token, agreement FROM feature_types WHERE {here} ORDER BY rank"),
            _states(connection, one),
            rows(
                "SELECT * FROM measurements WHERE subject = 'feature' "
                f"AND subject_id = '{one.feature_id}' ORDER BY metric, split, control, n, run_id"
            ),
            _histogram(path, connection, one),
        )


def _states(connection: duckdb.DuckDBPyConnection, one: Feature) -> pa.Table:
    """As the view `feature_states`, which ranks every feature's states before it leaves out the others."""
    import pyarrow as pa

    table = connection.execute(
        "WITH top AS (SELECT DISTINCT feature_id, state_id, agreement FROM feature_state_row WHERE feature_id = ? "
        "ORDER BY agreement DESC, state_id LIMIT 20) "
        "SELECT row_number() OVER (ORDER BY top.agreement DESC, top.state_id) AS rank, top.state_id, w.document_id, "
        "w.position, t.token, top.agreement FROM top JOIN state_row w ON w.state_id = top.state_id "
        "LEFT JOIN token_row t ON t.token_id = w.token_id AND t.tokenizer = "
        "(SELECT tokenizer_sha256 FROM model WHERE name = ?) ORDER BY rank",
        [one.feature_id, one.model],
    ).to_arrow_table()
    marked = contexts(connection, one.model, table.column("state_id").to_pylist())
    return table.add_column(5, "context", pa.array(marked, pa.string()))


def _histogram(path: Path, connection: duckdb.DuckDBPyConnection, one: Feature) -> pa.Table:
    import pyarrow as pa

    everything = np.zeros(BINS, np.int64)
    members = np.zeros(BINS, np.int64)
    try:
        target = resolve_in(connection, "types", one.model, one.site, one.centre, one.basis, "types")
        opened = [index.get(path, info, connection) for info in target.infos]
    except SignariumError:
        opened = []
    ids = connection.execute(
        "SELECT token_id FROM feature_member WHERE feature_id = ?", [one.feature_id]
    ).fetchnumpy()["token_id"]
    for codes in opened:
        agreeing = one.n_dims - differing(codes.codes, one.pattern).astype(np.int64)
        # In whole numbers, so that 0.85 is no 0.8499.
        bins = np.minimum(agreeing * BINS // max(1, one.n_dims), BINS - 1)
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
