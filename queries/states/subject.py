"""Tokens in their text, as something to search and to name: `state:123`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...catalog.errors import option
from ..nearest.codesets import AtSites, place_columns, set_list, token_join
from ..nearest.sql import tokens_by_id
from ..nearest.subject import Subject, Target
from .contexts import contexts_among, places_of

if TYPE_CHECKING:
    import duckdb


class States(AtSites):
    """One token in its text."""

    usual_centre = "zero"
    """At position 0, where every type stands, a few dimensions are so large that raw signs hardly vary; the types' mean is
    far from the states of a text. SmolLM2, block 17, entropy of a bit: types 0.06 raw and 1.00 centred, states 0.95 raw and
    0.08 centred."""
    shown = ("state_id", "position", "context")

    def advice(self, model: str, site: str) -> str:
        return f"ingest it with {option('sites', site)} {option('text', 'PATH')}"

    def ingested_with(self) -> str:
        return f"ingest it with {option('text', 'PATH')}"

    def special_columns(
        self,
        connection: duckdb.DuckDBPyConnection,
        target: Target,
        items: NDArray[np.int64],
        sets: dict[int, int],
    ) -> dict[str, Any]:
        import pyarrow as pa

        wanted = items.tolist()
        places = places_of(connection, wanted)
        tokens = tokens_by_id(connection, target.model, {place[2] for place in places.values()})
        texts = contexts_among(connection, target.model, wanted, places, tokens)
        rows = [places[state] for state in wanted]
        return {
            "context": pa.array(texts, pa.string()),
            "state_id": pa.array(wanted, pa.int64()),
            "document_id": pa.array([document for document, _, _ in rows], pa.int64()),
            "position": pa.array([position for _, position, _ in rows], pa.int32()),
            "token_id": pa.array([token_id for _, _, token_id in rows], pa.int32()),
            "token": pa.array([tokens.get(token_id) for _, _, token_id in rows], pa.string()),
            "is_first": pa.array([position == 0 for _, position, _ in rows], pa.bool_()),
        }

    def source(self, target: Target, names: frozenset[str]) -> tuple[str, str]:
        """States whose norm and code do not matter come from `state_row` alone, other models' among them: what is no item of
        the target's code sets has no row in its indexes."""
        every = "*" in names or self.view in names
        columns = "w.state_id, w.document_id, w.position, w.token_id, w.position = 0 AS is_first"
        tables = "state_row w"
        if every or names & {"norm", "code"}:
            columns += ", c.norm, c.code"
            tables += f" JOIN code_row c ON c.item = w.state_id AND c.code_set_id IN ({set_list(target)})"
        if every or "token" in names:
            columns += ", t.token"
            tables += token_join(target, "w.token_id")
        return f"SELECT {place_columns(target)}, {columns} FROM {tables}", "state_id"


STATES: Subject = States("states", "state", "state_id", "state")
