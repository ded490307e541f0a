"""Which features are meant: by id or name, by model, site and centre."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...catalog import codes, parts
from ...catalog.bulk import code_matrix
from ...catalog.errors import InvalidInput, NotFound, option
from ...catalog.text import quoted_name
from ..nearest.masked import Pattern
from ..nearest.subject import Target
from ..types.tokens import unquoted
from ..usual import one_model

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

_BLOBS = ("mask", "polarity")
COLUMNS = (*(name for name in parts.view("features").columns if name not in _BLOBS), *_BLOBS)
"""Those of the view `features`; what no person reads comes last."""

PLACES = "feature_row f JOIN site s USING (site_id) JOIN model m USING (model_id)"


@dataclass(frozen=True)
class Feature:
    """One feature: where it is, and its pattern over `width` dimensions."""

    feature_id: int
    name: str
    kind: str
    model: str
    site: str
    centre: str
    basis: str
    width: int
    n_dims: int
    pattern: Pattern


def narrow(connection: duckdb.DuckDBPyConnection, **given: str | None) -> tuple[str, list[str]]:
    """A condition over the view `features`, and its values, from names that are not None.

    Raises:
        NotFound: naming what there is, if no feature has such a name.
        InvalidInput: if there are no features at all.
    """
    if (model := given.get("model")) is not None:
        one_model(connection, model)
    names = {"model": "m.name", "site": "s.name", "kind": "f.kind", "centre": "f.centre"}
    rows = connection.execute(
        f"SELECT DISTINCT {', '.join(names.values())}, s.point, s.layer FROM {PLACES} "
        "ORDER BY s.point, s.layer, 1, 2, 3, 4"
    ).fetchall()
    condition, values = "true", []
    for place, name in enumerate(names):
        value = given.get(name)
        if value is None:
            if not rows:
                raise none_yet(None)
            continue
        known = list(dict.fromkeys(row[place] for row in rows))
        if value not in known:
            if name == "model":
                raise none_yet(value)
            raise NotFound(f"{name} with features", value, known)
        rows = [row for row in rows if row[place] == value]
        condition += f" AND {name} = ?"
        values.append(value)
    return condition, values


def none_yet(model: str | None) -> InvalidInput:
    """What to do where there are no features."""
    return InvalidInput(
        f"the catalogue has no features{f' of {model}' if model else ''} yet",
        f"run `signarium ingest {'MODEL' if model is None else 'MODEL --name ' + model} --stages features`",
    )


def find_one(
    connection: duckdb.DuckDBPyConnection,
    text: str,
    model: str | None = None,
    site: str | None = None,
    centre: str | None = None,
) -> Feature:
    """The feature that `text` names: its feature_id, or its name where only one of that name is left.

    Raises:
        NotFound: if there is none.
        InvalidInput: if it is elsewhere than asked, or if several have the name.
    """
    narrow(connection, model=model, site=site, centre=centre)
    called = _named(connection, text)
    if not called:
        raise NotFound("feature", text, todo=_hint(connection, text))
    asked = {"model": model, "site": site, "centre": centre}
    left = [
        feature for feature in called if all(v is None or getattr(feature, k) == v for k, v in asked.items())
    ]
    if not left:
        places = ", ".join(_place(feature) for feature in called[:3]) + (", ..." if len(called) > 3 else "")
        options = " ".join(option(name, value) for name, value in asked.items() if value is not None)
        raise InvalidInput(
            f"feature {text!r} is elsewhere: it is {places}", f"leave out {options}, or name another feature"
        )
    if len(left) > 1:
        shown = ", ".join(_place(feature) for feature in left[:4]) + (", ..." if len(left) > 4 else "")
        apart = [option(name) for name in asked if len({getattr(feature, name) for feature in left}) > 1]
        ways = ", ".join([*apart, "or the id"]) if apart else "the id"
        raise InvalidInput(f"{len(left)} features are called {text!r}", f"pass {ways}: {shown}")
    return left[0]


def _place(feature: Feature) -> str:
    return f"{feature.feature_id} ({feature.kind}, {feature.model} {feature.site} {feature.centre})"


def _named(connection: duckdb.DuckDBPyConnection, text: str) -> list[Feature]:
    if text.isascii() and text.isdecimal() and len(text) < 20 and int(text) < 1 << 63:
        numbered = _features(connection, "f.feature_id = ?", [int(text)])
        if numbered:
            return numbered
    for name in dict.fromkeys((text, unquoted(text))):
        if called := _features(connection, "f.name = ?", [name]):
            return called
    return []


def _features(connection: duckdb.DuckDBPyConnection, condition: str, values: Sequence[Any]) -> list[Feature]:
    rows = connection.execute(
        "SELECT f.feature_id, f.name, f.kind, m.name, s.name, f.centre, f.basis, s.width, f.n_dims, f.mask, f.polarity "
        f"FROM {PLACES} WHERE {condition} ORDER BY m.name, s.point, s.layer, f.centre, f.feature_id",
        list(values),
    ).fetchall()
    return [
        Feature(*(*row[:9], Pattern(np.frombuffer(row[9], np.uint8), np.frombuffer(row[10], np.uint8))))
        for row in rows
    ]


def _hint(connection: duckdb.DuckDBPyConnection, text: str) -> str:
    names = [
        row[0] for row in connection.execute("SELECT DISTINCT name FROM feature_row ORDER BY 1").fetchall()
    ]
    other = text[1:] if text.startswith(" ") else f" {text}"
    near = [other] if other in names else get_close_matches(text, names, 5)
    if near:
        return f"there is {', '.join(quoted_name(name) for name in near)}"
    return "`signarium features list` shows what there is"


# ---- where features are read ----------------------------------------------------------------------


@dataclass(frozen=True)
class FeatureArrays:
    """The features of one place in order of feature_id, with what ranks them; the arrays are (f,)."""

    ids: NDArray[np.int64]
    patterns: Pattern
    n_dims: NDArray[np.int64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    def surprise(self, agreement: NDArray[np.float64]) -> NDArray[np.float64]:
        """Standard deviations of `agreement`, (..., f), above the mean; NaN where that is unknown or zero."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return (agreement - self.mean) / np.where(self.std > 0, self.std, np.nan)


def features_at(
    connection: duckdb.DuckDBPyConnection, target: Target, condition: str = "true"
) -> FeatureArrays:
    """The features of a target for which a condition over the view `features` holds."""
    table = connection.execute(
        "SELECT feature_id, mask, polarity, n_dims, agreement_mean, agreement_std FROM features WHERE model = ? "
        f"AND site = ? AND centre = ? AND basis = ? AND ({condition}) ORDER BY feature_id",
        [target.model, target.site, target.centre, target.basis],
    ).to_arrow_table()
    size = codes.n_bytes(target.width)
    numbers = [table.column(name).to_numpy() for name in ("agreement_mean", "agreement_std")]
    return FeatureArrays(
        table.column("feature_id").to_numpy(),
        Pattern(code_matrix(table.column("mask"), size), code_matrix(table.column("polarity"), size)),
        table.column("n_dims").to_numpy(),
        *(column.astype(np.float64) for column in numbers),
    )


def rows_of(connection: duckdb.DuckDBPyConnection, feature_ids: Sequence[int]) -> pa.Table:
    """Rows of the view `features`, blobs last, in the order of `feature_ids`."""
    listed = ", ".join(map(str, feature_ids))
    # Ordered by DuckDB: `Table.take` would import pyarrow.compute, which takes longer than the query.
    return connection.execute(
        f"SELECT {', '.join(COLUMNS)} FROM features WHERE feature_id IN ({listed or 'NULL'}) "
        f"ORDER BY list_position([{listed}]::BIGINT[], feature_id)"
    ).to_arrow_table()
