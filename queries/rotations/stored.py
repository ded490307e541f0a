"""Rotations between two models: which there are, and one of them as numbers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...catalog import carry, parts, store
from ...catalog.errors import InvalidInput, NotFound
from ...catalog.evidence import Z_95
from ..usual import middle, one_model

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

COLUMNS = tuple(name for name in parts.view("rotations").columns if name not in carry.PARTS)
"""Those of the view `rotations` that a list shows: its numbers by the million come one rotation at a time."""


@dataclass(frozen=True)
class RotationFigures:
    """The figures of a rotation that leads from `model_a` to `model_b`. `inverse`: it is stored the other way, and turned back."""

    rotation_id: int
    model_a: str
    model_b: str
    site_a: str
    site_b: str
    width: int
    ev_rotation: float
    ev_shuffled: float
    ev_exchanged: float | None
    ev_shuffled_error: float | None
    ev_exchanged_error: float | None
    rank_warning: str | None
    inverse: bool

    @property
    def explains(self) -> bool:
        """Whether it explains more of held-out states than its nulls: one fitted on shuffled pairs, and what unrelated
        models of one tokenizer would reach, whose types were exchanged."""
        return beats(self.ev_rotation, self.ev_shuffled, self.ev_shuffled_error) and beats(
            self.ev_rotation, self.ev_exchanged, self.ev_exchanged_error
        )


def beats(ev: float, null: float | None, error: float | None) -> bool:
    """Whether an explained variance is above a null by more than chance, one-sided 5%; so is any above one not known.

    `error` is the standard error of the difference.
    """
    return null is None or null != null or ev - null > Z_95 * (error or 0.0)


@dataclass(frozen=True, eq=False)
class StoredRotation(carry.Stored):
    """A rotation as numbers, x_b ~ (x_a - mean_a) matrix + mean_b for rows x, and where it comes from."""

    about: RotationFigures

    def states(self, x: Any) -> carry.Floats:
        """States of A, (..., width), carried to B."""
        return carry.carry_floats(x, self)

    def directions(self, v: Any) -> carry.Floats:
        """Directions of A, (..., width), such as a steering vector, carried to B: no mean is moved."""
        return carry.carry_direction(v, self)


def rows(path: Path, model: str | None = None, run_id: str | None = None) -> pa.Table:
    """Rows of the view `rotations` without their matrices, by models and site, the oldest first; of one model on either
    side if given, and of one run.

    Raises:
        NotFound: if there is no such model.
    """
    with store.reading(path) as connection:
        condition, values = "true", []
        if model is not None:
            one_model(connection, model)
            condition, values = "(x.model_a = ? OR x.model_b = ?)", [model, model]
        if run_id is not None:
            condition, values = condition + " AND x.run_id = ?", [*values, run_id]
        return connection.execute(
            f"SELECT {', '.join(f'x.{name}' for name in COLUMNS)} FROM rotations x JOIN run r USING (run_id) "
            f"JOIN sites s ON s.model = x.model_a AND s.site = x.site_a WHERE {condition} "
            "ORDER BY x.model_a, x.model_b, s.point = 'final_norm', s.layer NULLS FIRST, s.point, x.site_b, r.started_at, x.rotation_id",
            values,
        ).to_arrow_table()


def between(connection: duckdb.DuckDBPyConnection, model_a: str, model_b: str) -> list[RotationFigures]:
    """The newest rotation that leads from A to B at each site of A, in the model's order.

    One that is stored the other way counts, turned back, where there is none of this way.
    """
    stored = connection.execute(
        "SELECT x.rotation_id, m.name, n.name, s.name, t.name, x.width, x.ev_rotation, x.ev_shuffled, x.ev_exchanged, "
        "x.ev_shuffled_error, x.ev_exchanged_error, x.rank_warning, "
        "s.point, s.layer, t.point, t.layer FROM rotation_row x JOIN run r USING (run_id) "
        "JOIN site s ON s.site_id = x.site_a_id JOIN model m ON m.model_id = s.model_id "
        "JOIN site t ON t.site_id = x.site_b_id JOIN model n ON n.model_id = t.model_id "
        "WHERE (m.name = $a AND n.name = $b) OR (m.name = $b AND n.name = $a) "
        "ORDER BY r.started_at DESC, r.run_id, x.rotation_id",
        {"a": model_a, "b": model_b},
    ).fetchall()
    newest: dict[str, tuple[Any, RotationFigures]] = {}
    for inverse in (False, True):
        for row in stored:
            if (row[1] != model_a) is not inverse:
                continue
            ident, _, _, site_a, site_b, *rest = row[:12]
            width, ev, shuffled, exchanged, shuffled_error, exchanged_error, warning = rest
            point, layer = row[12:14]
            if inverse:
                site_a, site_b = site_b, site_a
                point, layer = row[14:16]
            figures = RotationFigures(
                ident, model_a, model_b, site_a, site_b, width, ev, shuffled, exchanged, shuffled_error, exchanged_error,
                warning, inverse,
            )  # fmt: skip
            # In the model's order.
            newest.setdefault(
                site_a, ((point == "final_norm", -1 if layer is None else layer, point), figures)
            )
    return [figures for _, figures in sorted(newest.values(), key=lambda pair: pair[0])]


def some_between(connection: duckdb.DuckDBPyConnection, model_a: str, model_b: str) -> list[RotationFigures]:
    """`between`, of which there is to be one at least.

    Raises:
        InvalidInput: if the models are one, or there is no rotation; says how it is made.
    """
    if model_a == model_b:
        raise InvalidInput(f"a rotation leads from {model_a} to another model", "name two models")
    rotations = between(connection, model_a, model_b)
    if not rotations:
        widths = dict(
            connection.execute(
                "SELECT name, width FROM model WHERE name IN (?, ?)", [model_a, model_b]
            ).fetchall()
        )
        if widths.get(model_a) != widths.get(model_b):
            raise InvalidInput(
                f"no rotation leads from {model_a}, of width {widths.get(model_a)}, to {model_b}, of width "
                f"{widths.get(model_b)}",
                "it takes two models of one width",
            )
        raise InvalidInput(
            f"the catalogue has no rotation between {model_a} and {model_b} yet",
            f"run `signarium align {model_a} {model_b} --text PATH`",
        )
    return rotations


def at_site(rotations: list[RotationFigures], site: str) -> RotationFigures:
    """The rotation that starts at a site.

    Raises:
        NotFound: naming the sites where there is one.
    """
    for figures in rotations:
        if figures.site_a == site:
            return figures
    a, b = rotations[0].model_a, rotations[0].model_b
    raise NotFound(
        f"rotation from {a} to {b} at",
        site,
        todo=f"there is one at {', '.join(figures.site_a for figures in rotations)}; or run `signarium align {a} {b} --text PATH "
        f"--sites {site}`",
    )


def load(connection: duckdb.DuckDBPyConnection, figures: RotationFigures) -> carry.Stored:
    """The numbers of a rotation, the way that `figures` says.

    Raises:
        InvalidInput: if a stored matrix has another size.
    """
    row = connection.execute(
        f"SELECT width, {', '.join(carry.PARTS)} FROM rotation_row WHERE rotation_id = ?",
        [figures.rotation_id],
    ).fetchone()
    assert row is not None
    stored = carry.Rotation.from_blobs(*row)
    return stored.inverse if figures.inverse else stored


def rotation(path: Path, model_a: str, model_b: str, site: str | None = None) -> StoredRotation:
    """The newest rotation from A to B at a site of A, or at the middle one of those that have one.

    Raises:
        InvalidInput, NotFound: naming what there is, or how it is made.
    """
    with store.reading(path) as connection:
        rotations = some_between(connection, one_model(connection, model_a), one_model(connection, model_b))
        figures = at_site(rotations, site or middle([each.site_a for each in rotations]))
        numbers = load(connection, figures)
        return StoredRotation(
            **{part.name: getattr(numbers, part.name) for part in fields(numbers)}, about=figures
        )
