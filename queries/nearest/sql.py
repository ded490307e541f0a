"""Small pieces of SQL that the search shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import duckdb

_IN_LIST = 1000
"""Up to so many ids are written into the query: DuckDB then skips what cannot hold them."""


def rows_by_id(
    connection: duckdb.DuckDBPyConnection, query: str, ids: Sequence[int], rest: str = ""
) -> list[Any]:
    """Rows of a query that ends in the column which is to be one of `ids`, but for its `rest`."""
    if not ids:
        return []
    if len(ids) <= _IN_LIST:
        return connection.execute(f"{query} IN ({', '.join(map(str, ids))}){rest}").fetchall()
    # As one text: DuckDB takes 0.1 ms for each value of a list that is bound.
    return connection.execute(f"{query} IN (SELECT unnest(?::BIGINT[])){rest}", [str(list(ids))]).fetchall()


def tokens_by_id(
    connection: duckdb.DuckDBPyConnection, model: str, token_ids: set[int]
) -> dict[int, str | None]:
    """The texts of some tokens of a model's vocabulary."""
    rows = rows_by_id(
        connection,
        "SELECT token_id, token FROM token_row WHERE tokenizer = "
        f"(SELECT tokenizer_sha256 FROM model WHERE name = {sql_text(model)}) AND token_id",
        sorted(token_ids),
    )
    return dict(rows)


def sql_text(text: str) -> str:
    """`text` as a literal."""
    return "'" + text.replace("'", "''") + "'"
