"""Features: the list, and those of a token."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...catalog import codes, store
from ...catalog.errors import InvalidInput, NotFound, option
from ..types.tokens import token_id, unquoted
from ..usual import one_model
from .resolve import COLUMNS, narrow, rows_of

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

SORTS = {
    "name": "ASC",
    "n_dims": "DESC",
    "best_dim_auc": "DESC",
    "auc_in_sample": "DESC",
    "auc_held_out": "DESC",
    "auc_rotated": "DESC",
    "fire_rate": "DESC",
    "p_value": "ASC",
}
"""What a list can be sorted by, the strongest first."""
LEAST = 0.80
"""Agreement from which a code has a feature (Bag of Dims, appendix A.2)."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Which features are listed, of those where a name is given: sorted by a column of `SORTS`; `limit` 0 or None for all.

    Raises:
        InvalidInput: if they cannot be sorted so, or `limit` is negative.
    """

    model: str | None = None
    site: str | None = None
    kind: str | None = None
    centre: str | None = None
    survives: bool | None = None
    sort: str = "auc_held_out"
    limit: int | None = 20

    def __post_init__(self) -> None:
        if self.sort not in SORTS:
            raise InvalidInput(f"features cannot be sorted by {self.sort!r}", f"there is {', '.join(SORTS)}")
        _limit(self.limit)


def list_features(path: Path, listing: Listing) -> pa.Table:
    """Rows of the view `features`, mask and polarity last, in order of a column, unknown figures last, then of feature_id.

    Raises:
        InvalidInput, NotFound: naming what there is, or how features are made.
    """
    given = {name: getattr(listing, name) for name in ("model", "site", "kind", "centre")}
    with store.reading(path) as connection:
        condition, values = narrow(connection, **given)
        if listing.survives is not None:
            condition += f" AND {'' if listing.survives else 'NOT '}survives"
        return connection.execute(
            f"SELECT {', '.join(COLUMNS)} FROM features WHERE {condition} "
            f"ORDER BY {listing.sort} {SORTS[listing.sort]} NULLS LAST, feature_id{_limit(listing.limit)}",
            values,
        ).to_arrow_table()


def _limit(limit: int | None) -> str:
    if limit is not None and limit < 0:
        raise InvalidInput(f"{option('limit', limit)} is negative", "pass 0 for all")
    return f" LIMIT {limit}" if limit else ""


# ---- the features of a token ----------------------------------------------------------------------


def find(
    path: Path,
    token: str,
    *,
    model: str | None = None,
    site: str | None = None,
    centre: str | None = None,
    least: float = LEAST,
    limit: int | None = 20,
) -> pa.Table:
    """The features that a token alone has: those its type code agrees with, at each feature's own site and centre.

    `token` is its text, leading space included, or `id:NUMBER`. Columns: rank, agreement, surprise (standard
    deviations above what types agree in the mean), and those of the view `features`, blobs last; in order of
    surprise, then agreement, then feature_id. Agreements below `least` are left out.

    Raises:
        InvalidInput, NotFound: naming what there is.
    """
    import pyarrow as pa

    _limit(limit)
    with store.reading(path) as connection:
        model = one_model(connection, model)
        condition, values = narrow(connection, model=model, site=site, centre=centre)
        item = _token_of(connection, model, token)
        stored = _type_codes(connection, model, item)
        rows = connection.execute(
            "SELECT feature_id, site, centre, mask, polarity, agreement_mean, agreement_std FROM features "
            f"WHERE {condition} AND basis = 'standard' ORDER BY feature_id",
            values,
        ).fetchall()
        rows = [row for row in rows if (row[1], row[2]) in stored]
        if not rows:
            raise NotFound(
                f"code of the type {token!r} where there are features of {model}",
                f"token {item}",
                todo=f"there are types at {', '.join(f'{s} {c}' for s, c in sorted(stored))}"
                if stored
                else f"run `signarium ingest` with the stage types for {model}",
            )
        agreement = np.empty(len(rows))
        for place in sorted({(row[1], row[2]) for row in rows}):
            here = [i for i, row in enumerate(rows) if (row[1], row[2]) == place]
            masks, polarities = (
                np.frombuffer(b"".join(rows[i][blob] for i in here), np.uint8).reshape(len(here), -1)
                for blob in (3, 4)
            )
            agreement[here] = codes.agreement(stored[place], masks, polarities)
        mean, std = (np.array([row[i] for row in rows], dtype=np.float64) for i in (5, 6))
        surprise = (agreement - mean) / np.where(std > 0, std, np.nan)
        kept = np.flatnonzero(agreement >= least)
        # lexsort puts NaN last; rows are in order of feature_id already.
        kept = kept[np.lexsort((-agreement[kept], -surprise[kept]))][: limit or None]
        table = rows_of(connection, [rows[i][0] for i in kept])
    figures = {"rank": np.arange(1, len(kept) + 1), "agreement": agreement[kept]}
    columns = {name: pa.array(value) for name, value in figures.items()}
    columns["surprise"] = pa.array(surprise[kept], from_pandas=True)
    return pa.table({**columns, **dict(zip(table.column_names, table.columns, strict=True))})


def _token_of(connection: duckdb.DuckDBPyConnection, model: str, text: str) -> int:
    otherwise = "give one token of the vocabulary, or id:NUMBER"
    return token_id(connection, model, unquoted(text), prefix="", otherwise=otherwise)


def _type_codes(
    connection: duckdb.DuckDBPyConnection, model: str, item: int
) -> dict[tuple[str, str], codes.Codes]:
    """The codes of a type in the standard basis, by site and centre."""
    sets = {
        row[0]: (row[1], row[2])
        for row in connection.execute(
            "SELECT cs.code_set_id, s.name, cs.centre FROM code_set cs JOIN site s USING (site_id) "
            "JOIN model m USING (model_id) WHERE m.name = ? AND cs.subject = 'type' AND cs.basis = 'standard'",
            [model],
        ).fetchall()
    }
    if not sets:
        return {}
    # By rowid: with the condition on the item itself, DuckDB reads the column of codes from end to end.
    listed = ", ".join(map(str, sets))
    rows = connection.execute(
        "SELECT code_set_id, code FROM code_row WHERE rowid IN "
        f"(SELECT rowid FROM code_row WHERE item = {item} AND code_set_id IN ({listed}))"
    ).fetchall()
    return {sets[ident]: np.frombuffer(code, dtype=np.uint8) for ident, code in rows}
