"""The list of methods as the catalogue knows them, and what follows from it: tables, views, claims, words.

A new method adds its file here and a line to `PARTS`; a method outside the package calls `register`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import TypeVar

from .. import evidence
from ..part import Claim, Column, Macro, Part, Table, View, Word
from . import (
    core,
    features,
    flips,
    measurements,
    neurons,
    prediction,
    projections,
    rotations,
    saes,
    states,
    texts,
    types,
    writers,
)

PARTS: list[Part] = [
    core.PART,
    texts.PART,
    types.PART,
    states.PART,
    prediction.PART,
    features.PART,
    neurons.PART,
    writers.PART,
    projections.PART,
    flips.PART,
    rotations.PART,
    saes.PART,
    measurements.PART,
]
_REVISED = frozenset(one.name for one in PARTS)
"""Parts whose tables the migrations make."""

_Named = TypeVar("_Named", Table, View)


def register(part: Part) -> None:
    """Add the part of a method that lives outside the package, for as long as this process runs.

    Its tables are made in a catalogue when that is next written to, its views and claims are there at once.

    Raises:
        ValueError: if a part, table or view of that name is there, or a reference leads nowhere.
    """
    if part.name in {one.name for one in PARTS}:
        raise ValueError(f"there is a part {part.name!r} already")
    known = {*tables(), *views()}
    for name in (*(table.name for table in part.tables), *(view.name for view in part.views)):
        if name in known:
            raise ValueError(f"there is a table or view {name!r} already")
    PARTS.append(part)
    try:
        for made in part.tables:
            for column in made.columns:
                kind(column)
    except ValueError:
        PARTS.remove(part)
        raise


def tables() -> Mapping[str, Table]:
    """Every table by name."""
    return _tables(tuple(PARTS))


def unrevised() -> tuple[Table, ...]:
    """Tables of registered parts, which no migration makes."""
    return tuple(table for part in PARTS if part.name not in _REVISED for table in part.tables)


def views() -> Mapping[str, View]:
    """Every view by name, in the order of the reference; `evidence` is the one that is made of all claims."""
    return _views(tuple(PARTS))


def view(name: str) -> View:
    """The view called `name`; KeyError if there is none."""
    return views()[name]


def macros() -> tuple[Macro, ...]:
    """Every macro."""
    return tuple(macro for part in PARTS for macro in part.macros)


def claims() -> tuple[Claim, ...]:
    """Every claim."""
    return tuple(claim for part in PARTS for claim in part.claims)


def words(part: str) -> Mapping[str, Word]:
    """The words of the part called `part` for its metrics and controls, in the order in which pages show them."""
    return next((one.words for one in PARTS if one.name == part), {})


def word(term: str, part: str = "") -> Word:
    """What people call a metric or control: by the words of `part`, else of the first part that has one.

    A draw such as `haar:7` goes by its name. What nobody has a word for is spelled with spaces.
    """
    name = term.partition(":")[0]
    for one in sorted(PARTS, key=lambda one: one.name != part):
        if (found := one.words.get(name)) is not None:
            return found
    return Word(name.replace("_", " "))


# ---- references -----------------------------------------------------------------------------------


def target(column: Column) -> tuple[Table, str]:
    """The table that a column refers to, and which of its columns: that of the same name, else its key.

    Raises:
        ValueError: if there is no such table, or nothing in it to refer to.
    """
    assert column.reference is not None
    table = tables().get(column.reference.table)
    if table is None:
        raise ValueError(f"{column.name} refers to {column.reference.table!r}, which is no table")
    key = table.primary or table.key
    if table.column(column.name) is None and len(key) != 1:
        raise ValueError(f"{column.name} refers to {table.name}, which has no column of that name")
    return table, column.name if table.column(column.name) is not None else key[0]


def kind(column: Column) -> str:
    """The type of a column: its own, or that of the column which it refers to."""
    if column.reference is None:
        return column.kind
    table, name = target(column)
    found = table.column(name)
    assert found is not None
    return kind(found)


# ---- derived --------------------------------------------------------------------------------------


@cache
def _tables(parts: tuple[Part, ...]) -> dict[str, Table]:
    return _by_name(table for part in parts for table in part.tables)


@cache
def _views(parts: tuple[Part, ...]) -> dict[str, View]:
    every = [view for part in parts for view in part.views]
    order = [view for view in every if not view.after]
    for view in every:
        if view.after:
            order.insert([one.name for one in order].index(view.after) + 1, view)
    order.append(evidence.view([claim for part in parts for claim in part.claims]))
    return _by_name(order)


def _by_name(things: Iterable[_Named]) -> dict[str, _Named]:
    return {one.name: one for one in things}
