"""What is in the catalogue: models, runs, sites, and its size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..catalog import index, parts, store
from .usual import one_model

if TYPE_CHECKING:
    import pyarrow as pa

ORDER = {
    "models": "name",
    "runs": "started_at, run_id",
    "sites": "model, point, layer",
    "code_sets": "model, subject, site, centre, basis, run_id",
    "saes": "model, site, name, sae_id",
}


def rows(path: Path, view: str, model: str | None = None) -> pa.Table:
    """Every row of one of the views in `ORDER`, of one model if given, in a stable order."""
    with store.reading(path) as connection:
        condition, values = "", []
        if model is not None:
            condition = f" WHERE {'name' if view == 'models' else 'model'} = ?"
            values = [one_model(connection, model)]
        return connection.execute(
            f"SELECT * FROM {view}{condition} ORDER BY {ORDER[view]}", values
        ).to_arrow_table()


_CODED = {
    "types": "type",
    "types_bos": "type_bos",
    "states": "state",
    "neurons": "neuron",
    "unembedding": "unembedding",
}
"""Views of codes, and their subjects."""


def info(path: Path) -> pa.Table:
    """Counts and sizes as rows of (what, value): bytes on disk, rows by view."""
    import pyarrow as pa

    files = [one for one in index.folder(path).glob("*") if one.is_file()]
    found: list[tuple[str, str]] = [("catalogue", str(path))]
    with store.reading(path) as connection:
        found.append(("schema", store.revision_of(path, connection)))
        found.append(("bytes", str(path.stat().st_size)))
        found.append(("index bytes", str(sum(one.stat().st_size for one in files))))
        for view in parts.views().values():
            if view.name in _CODED:
                # Counted from the shards: the views would join every row.
                subject = _CODED[view.name]
                query = f"SELECT coalesce(sum(n), 0)::BIGINT FROM code_sets WHERE subject = '{subject}'"
            elif view.name == "feature_states":
                # The view reads the text around each of them.
                query = (
                    "SELECT coalesce(sum(least(n, 20)), 0)::BIGINT FROM "
                    "(SELECT count(*) AS n FROM feature_state_row GROUP BY feature_id)"
                )
            elif view.name == "projections":
                # Likewise: a few million.
                query = "SELECT count(*) FROM projection_row"
            else:
                query = f"SELECT count(*) FROM {view.name}"
            count = connection.execute(query).fetchone()
            found.append((view.name, str(count[0] if count else 0)))
    return pa.table({"what": [one for one, _ in found], "value": [one for _, one in found]})
