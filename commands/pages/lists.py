"""Lists as a terminal shows them: the columns that fit, figures to three digits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...catalog.text import quoted_name
from ...queries.rotations.stored import beats
from ..render.values import unknown

if TYPE_CHECKING:
    import pyarrow as pa

_NARROW = 100


def view_rows(shown: Sequence[str], table: pa.Table, width: int | None = None) -> pa.Table:
    """The columns of a view that a person wants to see, all if none are named, in words that fit `width` cells."""
    table = table.select(list(shown or table.column_names))
    names = table.column_names
    if "source" in names and width is not None:
        # The end of a path says more than its start, and a table is cut at the end.
        sources = [
            os.path.basename(one.rstrip("/")) if one and os.path.isabs(one) else one
            for one in table.column("source").to_pylist()
        ]
        table = _replaced(table, "source", "source", sources)
    if "started_at" in names:
        form = "%m-%d %H:%M" if width is not None and width < _NARROW else "%Y-%m-%d %H:%M"
        started = [
            None if one is None else one.strftime(form) for one in table.column("started_at").to_pylist()
        ]
        table = _replaced(table, "started_at", "started", started)
    if "tokens_per_s" in names:
        rates = [None if one is None else round(one) for one in table.column("tokens_per_s").to_pylist()]
        table = _replaced(table, "tokens_per_s", "tokens/s", rates)
    return table


def _replaced(table: pa.Table, name: str, new_name: str, values: list[Any]) -> pa.Table:
    return table.set_column(table.column_names.index(name), new_name, [values])


def info(table: pa.Table, width: int | None = None) -> pa.Table:  # noqa: ARG001
    """Counts and sizes in words."""
    import pyarrow as pa

    pairs = [_spelled(row["what"], row["value"]) for row in table.to_pylist()]
    return pa.table({"what": [one for one, _ in pairs], "value": [one for _, one in pairs]})


def _spelled(what: str, value: str) -> tuple[str, str]:
    if what.endswith("bytes"):
        size = what.removesuffix("bytes").strip()
        return (f"{size} size".strip(), f"{int(value) / 1e6:,.1f} MB")
    return (what, f"{int(value):,}" if what not in ("catalogue", "schema") else value)


_FEATURES_WIDE = 110


def features(table: pa.Table, width: int | None = None) -> pa.Table:
    """The columns of `list_features` or `find` that fit a terminal's `width`, figures to three digits."""
    import pyarrow as pa

    wide = width is None or width >= _FEATURES_WIDE
    found = "agreement" in table.column_names
    columns: dict[str, Any] = {}
    if found and wide:
        columns["rank"] = table.column("rank")
    for name, digits in (("agreement", 3), ("surprise", 2)) if found else ():
        columns[name] = _rounded(table.column(name).to_pylist(), digits)
    columns["feature_id"] = table.column("feature_id")
    columns["name"] = [quoted_name(one) for one in table.column("name").to_pylist()]
    for name in ("kind", "model", "site", "centre"):
        several = len(set(table.column(name).to_pylist())) > 1
        if width is None or name == "site" or (several and (wide or name == "centre")):
            columns[name] = table.column(name)
    if wide or not found:
        columns["dims"] = table.column("n_dims")
    shown = {"best_dim_auc": "best dim", "auc_held_out": "held out", "auc_rotated": "rotated"}
    for name, heading in shown.items():
        if width is None or (not found and (wide or name == "auc_held_out")):
            columns[heading] = _rounded(table.column(name).to_pylist(), 3)
    columns["survives"] = verdicts(table)
    return pa.table(columns)


def _rounded(values: list[Any], digits: int) -> list[Any]:
    return [round(one, digits) if isinstance(one, float) else one for one in values]


def verdicts(table: pa.Table) -> list[str]:
    """What `survives` says, but for those that were not tested."""
    tested = zip(table.column("survives").to_pylist(), table.column("p_value").to_pylist(), strict=True)
    return ["untested" if unknown(p) else "yes" if one else "no" for one, p in tested]


def neurons(table: pa.Table, width: int | None = None) -> pa.Table:
    """The columns of `list_neurons` that fit a terminal's `width`, figures to three digits."""
    import pyarrow as pa

    rows = table.to_pylist()

    def rounded(name: str, digits: int) -> list[float | None]:
        return [None if row[name] is None else round(row[name], digits) for row in rows]

    wide = width is None or width >= _PAIRS_WIDE
    columns: dict[str, Any] = {
        "neuron": [f"{row['layer']}/{row['neuron']}" for row in rows],
        "norm": rounded("norm", 3),
        "features": [row["features"] for row in rows],
    }
    if not any(row["features"] for row in rows):
        return pa.table({name: columns[name] for name in ("neuron", "norm")})
    columns |= {
        "polarity" if wide else "pol": [row["polarity"] for row in rows],
        "agreement" if wide else "agree": rounded("best_agreement", 3),
        "surprise": rounded("surprise", 2),
    }
    if wide:
        columns["dims"] = [row["best_n_dims"] for row in rows]
    columns["feature_id"] = [row["best_feature_id"] for row in rows]
    columns["best feature" if wide else "feature"] = pa.array(
        [None if row["best_feature"] is None else quoted_name(row["best_feature"]) for row in rows],
        pa.string(),
    )
    return pa.table(columns)


_FIGURES = {
    "ev_identity": "as is",
    "ev_mean_shift": "mean",
    "ev_rotation": "rotation",
    "ev_affine": "linear",
    "ev_shuffled": "shuffle",
    "ev_exchanged": "swap",
    "ev_token_mean": "token",
    "halves_agreement": "halves",
}
_PAIRS_WIDE = 100


def rotations(table: pa.Table, width: int | None = None) -> pa.Table:
    """The columns of `rows` that fit a terminal's `width`, figures to three digits."""
    import pyarrow as pa

    wide = width is None or width >= _PAIRS_WIDE
    kept = tuple(_FIGURES) if wide else (
        "ev_identity", "ev_rotation", "ev_shuffled", "ev_exchanged", "halves_agreement",
    )  # fmt: skip
    shown = rotations_by_site(table, kept, rank=True)
    ends = {"from": table.column("model_a"), "to": table.column("model_b")}
    return pa.table({**ends, **dict(zip(shown.column_names, shown.columns, strict=True))})


def rotations_by_site(table: pa.Table, kept: Sequence[str] = tuple(_FIGURES), rank: bool = False) -> pa.Table:
    """The figures of rotations by site, all of them in 80 columns; with `rank` also a column for those that are not
    determined, if there are any."""
    import pyarrow as pa

    listed = table.to_pylist()
    columns: dict[str, Any] = {"site": pa.array([sites_of(row) for row in listed], pa.string())}
    columns |= {_FIGURES[name]: rounded(table, name) for name in kept}
    if rank and any(row["rank_warning"] is not None for row in listed):
        columns["rank"] = pa.array(["" if row["rank_warning"] is None else "low" for row in listed])
    return pa.table(columns)


def sites_of(row: dict[str, Any]) -> str:
    """Where a rotation is, in words."""
    return row["site_a"] if row["site_a"] == row["site_b"] else f"{row['site_a']} → {row['site_b']}"


def rounded(table: pa.Table, name: str) -> pa.Array:
    """A column of figures to three digits."""
    import pyarrow as pa

    values = table.column(name).to_pylist()
    return pa.array([None if one is None else round(one, 3) + 0.0 for one in values], pa.float64())


def warnings(table: pa.Table) -> list[str]:
    """What is to be said of the rotations of a table: undetermined ones, and those that explain no more than their null."""
    lines = []
    for row in table.to_pylist():
        nulls = {"one fitted on shuffled pairs": "ev_shuffled", "with token types exchanged": "ev_exchanged"}
        for null, name in nulls.items():
            if not beats(row["ev_rotation"], row[name], row[f"{name}_error"]):
                error = row[f"{name}_error"]
                chance = "" if error is None else f", the standard error of the difference being {error:.3f}"
                lines.append(
                    f"{sites_of(row)}: the rotation explains {row['ev_rotation']:.3f}, not surely more than {null}: "
                    f"{row[name]:.3f}{chance}"
                )
        if row["rank_warning"] is not None:
            lines.append(f"{sites_of(row)}: {row['rank_warning']}")
    return lines


def engines(table: pa.Table, width: int | None = None) -> pa.Table:  # noqa: ARG001
    """What a person wants to see: milliseconds of the engines that can run."""
    import pyarrow as pa

    columns = {name: table.column(name) for name in ("width", "codes", "queries", "engine")}
    for name in table.column_names:
        seconds = table.column(name).to_pylist() if name.endswith("_s") else []
        if any(one is not None for one in seconds):
            columns[f"{name[:-2].replace('_', '-')} ms"] = pa.array(
                [None if one is None else _digits(1e3 * one) for one in seconds]
            )
    return pa.table(columns)


def _digits(value: float) -> float:
    """To three significant digits."""
    return float(f"{value:.3g}")
