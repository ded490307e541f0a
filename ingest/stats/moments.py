"""Mean and standard deviation of each dimension over the types of a site, as the stage types stored them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of each dimension over the types of a site, each float64 (width,)."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]


def stored_moments(
    connection: duckdb.DuckDBPyConnection,
    model_id: str,
    *,
    site: str | None = None,
    run_id: str | None = None,
    finished: bool = True,
) -> dict[str, Moments]:
    """The moments of a model's sites, by name: those of the first finished run over its types.

    `site` asks for one of them. Without `finished` a run that was cut short counts where there is no other; with `run_id` it
    is that run's moments, finished or not, of types behind a BOS too. Sites without a run are left out.
    """
    if run_id is not None:
        which, values = "d.run_id = ?", [run_id]
    else:
        which, values = "d.subject = 'type'" + " AND r.finished_at IS NOT NULL" * finished, []
    if site is not None:
        which, values = f"{which} AND s.name = ?", [*values, site]
    rows = connection.execute(
        "SELECT s.name, list(d.mean ORDER BY d.dim), list(d.std ORDER BY d.dim) FROM dimension_row d "
        f"JOIN site s USING (site_id) JOIN run r USING (run_id) WHERE s.model_id = ? AND {which} "
        "GROUP BY s.name, d.run_id, r.started_at, r.finished_at QUALIFY row_number() OVER "
        "(PARTITION BY s.name ORDER BY r.finished_at IS NULL, r.started_at, d.run_id) = 1",
        [model_id, *values],
    ).fetchall()
    return {name: Moments(np.array(mean, np.float64), np.array(std, np.float64)) for name, mean, std in rows}
