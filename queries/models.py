"""What is in the catalogue: models, runs, sites, and its size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..catalog import index, parts, store
from ..catalog.errors import NotFound
from .usual import one_model

if TYPE_CHECKING:
    import pyarrow as pa


def rows(path: Path, view: str, model: str | None = None) -> pa.Table:
    """Every row of a view that has an order, in that order; of one model if given.

    Raises:
        NotFound: if there is no such view or model.
    """
    listed = {one.name: one.order for one in parts.views().values() if one.order}
    if view not in listed:
        raise NotFound("view with an order", view, list(listed))
    with store.reading(path) as connection:
        condition, values = "", []
        if model is not None:
            condition = f" WHERE {'name' if view == 'models' else 'model'} = ?"
            values = [one_model(connection, model)]
        return connection.execute(
            f"SELECT * FROM {view}{condition} ORDER BY {listed[view]}", values
        ).to_arrow_table()


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
            query = view.total or f"SELECT count(*) FROM {view.name}"
            count = connection.execute(query).fetchone()
            found.append((view.name, str(count[0] if count else 0)))
    return pa.table({"what": [one for one, _ in found], "value": [one for _, one in found]})
