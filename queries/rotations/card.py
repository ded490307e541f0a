"""All about one rotation, as tables."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...catalog import store
from ...catalog.errors import InvalidInput
from ..usual import middle, one_model
from .stored import COLUMNS, at_site, some_between

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class RotationCard:
    """All about one rotation, as tables.

    `rotation` is its row of the view `rotations` without matrix and means, `others` those of the same run at other sites;
    `components`, `measurements` (of its run, at its site of B) and `steering` are its rows of those views, and
    `features` the carried ones, with the source's id and name and the figures of both. `earlier` counts rotations of the same models and
    sites that are older.
    """

    rotation: pa.Table
    others: pa.Table
    components: pa.Table
    measurements: pa.Table
    steering: pa.Table
    features: pa.Table
    earlier: int

    def parts(self) -> dict[str, Any]:
        """The same as plain values: the row, lists of rows, and the count."""
        (row,) = self.rotation.to_pylist()
        names = [field.name for field in fields(self) if field.name not in ("rotation", "earlier")]
        lists = {name: getattr(self, name).to_pylist() for name in names}
        return {"rotation": row, **lists, "earlier": self.earlier}


def show(path: Path, model_a: str, model_b: str, site: str | None = None) -> RotationCard:
    """The card of the newest rotation from A to B at a site of A, or at the middle one of those that have one.

    Raises:
        InvalidInput, NotFound: naming what there is; also if it is stored the other way alone.
    """
    with store.reading(path) as connection:
        rotations = some_between(connection, one_model(connection, model_a), one_model(connection, model_b))
        direct = [figures for figures in rotations if not figures.inverse]
        if not direct:
            raise InvalidInput(
                f"what is stored leads from {model_b} to {model_a}",
                f"run `signarium rotations show {model_b} {model_a}`",
            )
        chosen = at_site(direct, site or middle([each.site_a for each in direct]))
        columns = ", ".join(f"x.{name}" for name in COLUMNS)
        here = f"rotation_id = {chosen.rotation_id}"

        def table(query: str, *values: Any) -> pa.Table:
            return connection.execute(query, list(values)).to_arrow_table()

        row = table(f"SELECT {columns} FROM rotations x WHERE {here}")
        (run_id,) = row.column("run_id").to_pylist()
        return RotationCard(
            row,
            table(
                f"SELECT {columns} FROM rotations x JOIN sites s ON s.model = x.model_a AND s.site = x.site_a "
                "WHERE x.run_id = ? AND x.rotation_id <> ? ORDER BY s.point = 'final_norm', s.layer NULLS FIRST, s.point, x.site_b",
                run_id,
                chosen.rotation_id,
            ),
            table(f"SELECT * FROM rotation_components WHERE {here} ORDER BY component"),
            table(
                "SELECT * FROM measurements WHERE run_id = ? AND model = ? AND site = ? "
                "ORDER BY subject, subject_id, metric, split, control, n",
                run_id,
                model_b,
                chosen.site_b,
            ),
            table(f"SELECT * FROM steering WHERE {here} ORDER BY direction, target, arm, dose"),
            table(
                "SELECT c.feature_id, f.name, c.source_feature_id, g.kind AS source_kind, f.centre, f.n_dims, "
                "f.auc_held_out, f.p_value, g.auc_held_out AS source_auc_held_out "
                "FROM carried_row c JOIN feature_row f ON f.feature_id = c.feature_id "
                "LEFT JOIN feature_row g ON g.feature_id = c.source_feature_id "
                f"WHERE c.{here} ORDER BY f.auc_held_out DESC NULLS LAST, c.feature_id"
            ),
            connection.execute(
                "SELECT count(*) - 1 FROM rotations WHERE model_a = ? AND model_b = ? AND site_a = ? AND site_b = ?",
                [chosen.model_a, chosen.model_b, chosen.site_a, chosen.site_b],
            ).fetchall()[0][0],
        )
