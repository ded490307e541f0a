"""What the best neuron of a block reaches with features, beside the controls: the measurements of the stage `writers`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa


def chance(
    connection: duckdb.DuckDBPyConnection,
    model: str,
    layer: int,
    kind: str | None = None,
    centre: str | None = None,
) -> pa.Table:
    """What the best neuron of a block reaches with its features, in the mean, and under each control.

    Columns: kind, centre, metric (`writer_best_either` where that was measured, else `writer_best`), control, value, n. Of
    several runs the one over most features counts.
    """
    return connection.execute(
        """SELECT x.subject AS kind, x.subject_id AS centre, x.metric, x.control, x.value, x.n
FROM measurement_row x JOIN site s USING (site_id) JOIN model m USING (model_id) JOIN run r USING (run_id)
WHERE m.name = $model AND s.point = 'resid_post' AND s.layer = $layer AND x.metric IN ('writer_best', 'writer_best_either')
  AND ($kind IS NULL OR x.subject = $kind) AND ($centre IS NULL OR x.subject_id = $centre)
QUALIFY row_number() OVER (PARTITION BY x.subject, x.subject_id, x.metric, x.control ORDER BY x.n DESC, r.started_at DESC, r.run_id) = 1
  AND dense_rank() OVER (PARTITION BY x.subject, x.subject_id ORDER BY x.metric DESC) = 1
ORDER BY kind, x.subject_id, x.control = 'none' DESC, x.control""",
        {"model": model, "layer": layer, "kind": kind, "centre": centre},
    ).to_arrow_table()
