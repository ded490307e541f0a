"""Directions in words: the tokens that each raises and lowers most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from ..catalog.text import spelled

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

FIRST = 5
"""Tokens that stand for a direction in a list."""

Lists: TypeAlias = dict[tuple[int, str, str], list[str]]
"""Tokens in order of rank by item, source (`float`, `sign`) and direction (`up`, `down`)."""


def table_of(
    connection: duckdb.DuckDBPyConnection, model: str, subject: str, items: Sequence[int], most: int = 20
) -> pa.Table:
    """Rows of `projections` of some items up to rank `most`: item, source, direction, rank, token_id, token, logit.

    Of several runs the latest counts.
    """
    listed = ", ".join(map(str, items)) or "NULL"
    return connection.execute(
        "SELECT x.item, x.source, x.direction, x.rank, x.token_id, t.token, x.logit "
        f"FROM (SELECT * FROM projection_row WHERE subject = ? AND rank <= ? AND item IN ({listed})) x "
        "JOIN run r USING (run_id) JOIN model m USING (model_id) "
        "LEFT JOIN token_row t ON t.tokenizer = m.tokenizer_sha256 AND t.token_id = x.token_id WHERE m.name = ? "
        "QUALIFY dense_rank() OVER (PARTITION BY x.item, x.source ORDER BY r.started_at DESC, x.run_id) = 1 "
        "ORDER BY x.item, x.source, x.direction DESC, x.rank",
        [subject, most, model],
    ).to_arrow_table()


def lists_of(table: pa.Table) -> Lists:
    """The tokens of `table_of` as lists, spelled."""
    found: Lists = {}
    for row in table.to_pylist():
        key = (row["item"], row["source"], row["direction"])
        found.setdefault(key, []).append(spelled(row["token"], row["token_id"]))
    return found


def raised(
    connection: duckdb.DuckDBPyConnection, model: str, items: Sequence[int], polarities: Sequence[int]
) -> list[str]:
    """The first tokens that each neuron raises in a polarity, of its floats, else of its signs; "" where none are stored."""
    lists = lists_of(table_of(connection, model, "neuron", list(dict.fromkeys(items)), FIRST))
    found = []
    for item, polarity in zip(items, polarities, strict=True):
        direction = "up" if polarity > 0 else "down"
        tokens = lists.get((item, "float", direction)) or lists.get((item, "sign", direction)) or []
        found.append(" ".join(tokens))
    return found
