"""How a connection that may not write gets the SQL surface of this program. Imports nothing: the child of `sql` uses it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

STORED = "SELECT hash FROM surface"
"""What a file says of the surface in it: one row."""


class Altered(Exception):
    """Views of the file that are not what the program which they are said to be from made of them: `views`, their names."""

    def __init__(self, views: Sequence[str]) -> None:
        super().__init__(", ".join(views))
        self.views = list(views)


def shadow(
    connection: Any,
    hash: str,
    tables: Mapping[str, str],
    macros: Sequence[str],
    views: Mapping[str, str],
    spelled: str,
) -> None:
    """Define the surface for this connection alone, unless the file has that with the same `hash`.

    DuckDB finds TEMP views and macros before those of the file. `tables` are the statements for those that the file may
    lack, by name: they are empty for this connection. `views` are their queries, by name; `spelled` is the `digest` of
    them as DuckDB spells them, or empty where it is not known.

    Raises:
        Altered: if the file says that it has these views, and its views say otherwise.
    """
    for statement in macros:
        connection.execute(statement)
    if connection.execute(STORED).fetchall() == [(hash,)]:
        if digest(connection, views) != spelled and (altered := altered_views(connection, views)):
            raise Altered(altered)
        return
    there = {row[0] for row in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    for name, statement in tables.items():
        if name not in there:
            connection.execute(statement)
    for name, query in views.items():
        connection.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS {query}")


def digest(connection: Any, views: Mapping[str, str]) -> str:
    """A hash of the views of the file that are called as `views` are, in the spelling of DuckDB."""
    stored = [row for row in _stored_views(connection) if row[0] in views]
    return hashlib.sha256(repr(sorted(stored)).encode()).hexdigest()


def _stored_views(connection: Any) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = connection.execute(
        "SELECT view_name, sql FROM duckdb_views() WHERE NOT internal AND schema_name = 'main' AND NOT temporary "
        "AND database_name = current_database()"
    ).fetchall()
    return rows


def altered_views(connection: Any, views: Mapping[str, str]) -> list[str]:
    """Those of `views` that the file lacks or whose query there is another, by DuckDB's own spelling of both."""
    spelled = connection.execute(
        "SELECT name, json_deserialize_sql(json_serialize_sql(query)) FROM (SELECT unnest(?) AS name, unnest(?) AS query)",
        [list(views), list(views.values())],
    ).fetchall()
    queries = {name: sql.partition(" AS ")[2].rstrip(";") for name, sql in _stored_views(connection)}
    return [name for name, query in spelled if queries.get(name) != query]
