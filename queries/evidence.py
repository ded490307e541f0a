"""Claim by claim: what was published, what comes out here, its control, and whether the claim survives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..catalog import store
from .usual import one_model

if TYPE_CHECKING:
    import pyarrow as pa

_FIRST = "the published range"
"""Before the other controls of a figure comes the figure itself beside what was published."""


def rows(path: Path, model: str | None = None, measured: bool = False) -> pa.Table:
    """The view `evidence`, of one model if given, in order of (claim_id, model, from_model, centre, control), the published range
    before other controls.

    Raises:
        NotFound: if there is no such model.
    """
    with store.reading(path) as connection:
        condition, values = " WHERE value IS NOT NULL" if measured else " WHERE true", []
        if model is not None:
            condition, values = f"{condition} AND model = ?", [one_model(connection, model)]
        return connection.execute(
            f"SELECT * FROM evidence{condition} "
            # Of 1.2, 9.1 and 10.1 in that order.
            "ORDER BY try_cast(split_part(claim_id, '.', 1) AS INTEGER), claim_id, model, "
            f"from_model, centre, site, control <> '{_FIRST}', control",
            values,
        ).to_arrow_table()
