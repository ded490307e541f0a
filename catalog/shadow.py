"""How a connection that may not write gets the SQL surface of this program. Imports nothing: the child of `sql` uses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

STORED = "SELECT hash FROM surface"
"""What a file says of the surface in it: one row."""


def shadow(connection: Any, hash: str, tables: Mapping[str, str], statements: Sequence[str]) -> None:
    """Define the surface for this connection alone, unless the file has that with the same `hash`.

    DuckDB finds TEMP views and macros before those of the file. `tables` are the statements for those that the file may
    lack, by name: they are empty for this connection.
    """
    if connection.execute(STORED).fetchall() == [(hash,)]:
        return
    there = {row[0] for row in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    for name, statement in tables.items():
        if name not in there:
            connection.execute(statement)
    for statement in statements:
        connection.execute(statement)
