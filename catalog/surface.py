"""The SQL surface in a file: the views and macros that users write against, made from the parts.

A file keeps their text, that of the program which wrote to it last, and in the table `surface` a hash of it. Every
writer compares that hash with the hash of its program and installs them anew where it differs, so that a view or a claim needs no
revision to reach a catalogue. A reader cannot write: where the hashes differ it defines them for its connection
alone (`shadow.py`). Where they agree it compares the views themselves: a file that comes from elsewhere may say anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import parts
from .part import Table

SPELLED = Path(__file__).with_name("spelled.txt")
"""Our fingerprint, and the digest of our views as DuckDB spells them: written by `docs/make.py`."""


def fingerprint() -> str:
    """A hash of this program's views and macros, and of the tables that no revision makes."""
    made = [_create(table, "CREATE TABLE") for table in parts.unrevised()]
    return hashlib.sha256("\n".join((*made, *_statements())).encode()).hexdigest()[:16]


def is_current(rows: Sequence[Any]) -> bool:
    """Whether `rows` of `shadow.STORED` are this program's surface."""
    return [row[0] for row in rows] == [fingerprint()]


def install(execute: Callable[[str], object]) -> None:
    """Put the surface into a file through `execute`, in the transaction that the caller holds.

    Tables of parts from outside the package are made where they are missing.
    """
    for table in parts.unrevised():
        execute(_create(table, "CREATE TABLE IF NOT EXISTS"))
    # As one text: SQLAlchemy's driver reads the head of each statement letter by letter, which takes longer than DuckDB does.
    execute(";\n".join(_statements()))
    execute("DELETE FROM surface")
    execute(f"INSERT INTO surface VALUES ('{fingerprint()}')")


def shadowing() -> dict[str, Any]:
    """What `shadow.shadow` needs of this program, as JSON can carry it."""
    return {
        "hash": fingerprint(),
        "tables": {one.name: _create(one, "CREATE TEMP TABLE") for one in parts.unrevised()},
        "macros": _macros("TEMP "),
        "views": {one.name: one.query for one in parts.views().values()},
        "spelled": _spelled(),
    }


def _spelled() -> str:
    """The `shadow.digest` of this program's views, if `SPELLED` is of them; else empty, and a reader compares them one by one.

    That takes 60 ms: DuckDB has to parse every view.
    """
    of, _, digest = SPELLED.read_text(encoding="ascii").strip().partition(" ")
    return digest if of == fingerprint() else ""


def _statements() -> tuple[str, ...]:
    """SQL that defines every macro and view in the file."""
    return (
        *_macros(),
        *(f"CREATE OR REPLACE VIEW {one.name} AS {one.query}" for one in parts.views().values()),
    )


def _macros(temporary: str = "") -> tuple[str, ...]:
    """SQL that defines every macro: in the file, or with `TEMP ` for one connection."""
    return tuple(
        f'CREATE OR REPLACE {temporary}MACRO "{one.name}"({", ".join(one.arguments)}) AS {one.expression}'
        for one in parts.macros()
    )


def _create(table: Table, begin: str) -> str:
    columns = ", ".join(
        f"{one.name} {parts.kind(one)}{'' if one.optional else ' NOT NULL'}" for one in table.columns
    )
    primary = f", PRIMARY KEY ({', '.join(table.primary)})" if table.primary else ""
    return f"{begin} {table.name} ({columns}{primary})"
