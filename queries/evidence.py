"""Claim by claim: what was published, what comes out here, its control, and whether the claim survives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..catalog import parts, store
from ..catalog.errors import NotFound
from .usual import one_model

if TYPE_CHECKING:
    import pyarrow as pa

_FIRST = "the published range"
"""Before the other controls of a figure comes the figure itself beside what was published."""


def rows(
    path: Path, model: str | None = None, measured: bool = False, claims: Sequence[str] | None = None
) -> pa.Table:
    """The view `evidence`, of one model if given, in order of (claim_id, model, from_model, centre, control), the published range
    before other controls; `claims` are the ids of those that are wanted.

    Raises:
        NotFound: if there is no such model or claim.
    """
    with store.reading(path) as connection:
        condition = " WHERE value IS NOT NULL" if measured else " WHERE true"
        values: list[Any] = []
        if model is not None:
            condition, values = f"{condition} AND model = ?", [one_model(connection, model)]
        if claims is not None:
            ids = (claim.claim_id for claim in parts.claims())
            known = sorted(ids, key=lambda one: (len(one.partition(".")[0]), one))
            for claim in claims:
                if claim not in known:
                    raise NotFound("claim", claim, known)
            condition, values = (
                f"{condition} AND list_contains(?::VARCHAR[], claim_id)",
                [*values, list(claims)],
            )
        return connection.execute(
            f"SELECT * FROM evidence{condition} "
            # Of 1.2, 9.1 and 10.1 in that order.
            "ORDER BY try_cast(split_part(claim_id, '.', 1) AS INTEGER), claim_id, model, "
            f"from_model, centre, site, control <> '{_FIRST}', control",
            values,
        ).to_arrow_table()
