"""The vocabulary's tokens alone, as something to search and to name: `type:" king"`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...catalog.errors import option
from ..nearest.codesets import AtSites, CodeSets, place_columns, set_list, token_join
from ..nearest.sql import tokens_by_id
from ..nearest.subject import Subject, Target
from .tokens import token_id, unquoted

if TYPE_CHECKING:
    import duckdb


class OfTokens(CodeSets):
    """Code sets whose items are the tokens of a vocabulary."""

    shown = ("token_id", "token", "norm")

    def special_columns(
        self,
        connection: duckdb.DuckDBPyConnection,
        target: Target,
        items: NDArray[np.int64],
        sets: dict[int, int],
    ) -> dict[str, Any]:
        import pyarrow as pa

        wanted = items.tolist()
        tokens = tokens_by_id(connection, target.model, set(wanted))
        texts = pa.array([tokens.get(token) for token in wanted], pa.string())
        return {"token_id": pa.array(wanted, pa.int64()), "token": texts}

    def source(self, target: Target, names: frozenset[str]) -> tuple[str, str]:
        columns = f"{place_columns(target, self.same)}, c.item AS token_id, c.norm, c.code"
        tables = f"(SELECT * FROM code_row WHERE code_set_id IN ({set_list(target)})) c"
        if "*" in names or target.view in names or "token" in names:
            columns += ", t.token"
            tables += token_join(target, "c.item")
        return f"SELECT {columns} FROM {tables}", "token_id"


class Types(OfTokens, AtSites):
    """One token of the vocabulary alone, at position 0, or behind the BOS."""

    first_position = True
    numbered = False

    def __init__(
        self, view: str, name: str, made_with: str, prefix: str | None = None, also: str = ""
    ) -> None:
        AtSites.__init__(self, view, name, "token_id", prefix)
        self.example = "TOKEN"
        self.made_with, self.also = made_with, also

    def advice(self, model: str, site: str) -> str:
        return f"ingest it with {option('sites', site)}{self.also}"

    def parse(self, value: str) -> str:
        return unquoted(value)

    def item_of(self, connection: duckdb.DuckDBPyConnection, model: str, value: str) -> int:
        return token_id(connection, model, value)

    def ingested_with(self) -> str:
        return f"ingest it with {self.made_with}"


TYPES: Subject = Types("types", "type", "the stage types", "type")
TYPES_BOS: Subject = Types("types_bos", "type_bos", option("bos"), also=f" {option('bos')}")
