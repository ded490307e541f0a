"""`where`: one boolean expression over the view searched, checked before it runs, resolved to rows by SQL."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...catalog import store
from ...catalog.errors import InvalidInput, QueryFailed, QueryLimit, QueryRefused, option
from ...catalog.index import CodeIndex
from ..sandbox import REFUSED_FUNCTIONS
from .subject import Target

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True)
class Condition:
    """A condition that is known to be one expression that reads nothing but the catalogue."""

    text: str
    names: frozenset[str]
    """Every part of every column reference in it; `*` stands for all columns."""
    repeatable: bool


_VOLATILE = frozenset(
    {"random", "uuid", "gen_random_uuid", "uuidv4", "uuidv7", "now", "today", "get_current_timestamp"}
)
_KEPT_BYTES = 128 << 20
_kept: OrderedDict[Any, list[NDArray[np.int64]]] = OrderedDict()
_kept_lock = Lock()


def parse_where(connection: duckdb.DuckDBPyConnection, where: str | None) -> Condition | None:
    """`where` checked by DuckDB's own parser, which runs and opens nothing.

    It must stand alone as the one item of `SELECT ...`, so that no bracket of it can close one of ours. Of
    tables it may name the catalogue's views, so that no reading function and no file can be reached.
    """
    if where is None:
        return None
    # Only a filter needs them: a search without starts sooner.
    from ...catalog import parts

    if not where.strip():
        raise InvalidInput(
            f"{option('where')} is empty", "leave it out, or write a condition such as position > 0"
        )
    refused = f"{option('where')} {_brief(where)} cannot be used"
    try:
        where.encode()
        row = connection.execute("SELECT json_serialize_sql(?)", [f"SELECT {where}\n"]).fetchone()
        tree = json.loads(row[0]) if row else {}
    except (UnicodeEncodeError, RecursionError, ValueError):
        raise InvalidInput(refused, "it is no text that DuckDB takes, or nested too deeply") from None
    if tree.get("error") is not False:
        message = " ".join(str(tree.get("error_message", "")).split())
        raise InvalidInput(refused, message or "write one condition such as position > 0")
    node = tree["statements"][0]["node"]
    alone = (
        len(tree["statements"]) == 1
        and node["type"] == "SELECT_NODE"
        and len(node["select_list"]) == 1
        and node["from_table"]["type"] == "EMPTY"
        and not any(
            node.get(key) for key in ("where_clause", "group_expressions", "having", "qualify", "modifiers")
        )
    )
    if not alone or "\0" in where:
        raise InvalidInput(refused, "write one condition such as position > 0")
    names: set[str] = set()
    repeatable = True
    for part, allowed in _scopes(node, frozenset(parts.views())):
        kind = part.get("type")
        if part.get("class") == "COLUMN_REF":
            names.update(name.lower() for name in part["column_names"])
        elif part.get("class") == "STAR":
            names.add("*")
        elif part.get("class") == "PARAMETER":
            raise InvalidInput(refused, "write the value in place of the parameter")
        elif kind == "BASE_TABLE":
            if part["table_name"] not in allowed or part.get("schema_name") or part.get("catalog_name"):
                raise InvalidInput(
                    refused, f"a subquery may read the catalogue's views, not {part['table_name']!r}"
                )
        elif kind == "TABLE_FUNCTION":
            raise InvalidInput(refused, "a subquery may read the catalogue's views, not a table function")
        elif "table_name" in part and kind not in ("EMPTY", "SUBQUERY", "JOIN", "EXPRESSION_LIST"):
            raise InvalidInput(refused, "a subquery may read the catalogue's views only")
        if isinstance(function := part.get("function_name"), str):
            if function.lower() in REFUSED_FUNCTIONS:
                raise InvalidInput(refused, f"the function {function} does more than read")
            repeatable = repeatable and function.lower() not in _VOLATILE
    return Condition(where, frozenset(names), repeatable)


def _brief(text: str) -> str:
    return repr(text if len(text) <= 120 else text[:119] + "…")


def _scopes(tree: Any, known: frozenset[str]) -> Iterator[tuple[dict[str, Any], frozenset[str]]]:
    """Every node of a parsed query with the names that tables may have there: `known`, and those that a `WITH` gives.

    A name of `WITH` holds in its own query and in those behind it, but in what it names only if that is recursive.
    """
    pending: list[tuple[Any, frozenset[str]]] = [(tree, known)]
    while pending:
        part, names = pending.pop()
        if isinstance(part, list):
            pending.extend((one, names) for one in part)
        elif isinstance(part, dict):
            given = part.get("cte_map")
            for entry in given.get("map", []) if isinstance(given, dict) else []:
                recursive = entry["value"]["query"]["node"]["type"] == "RECURSIVE_CTE_NODE"
                pending.append((entry["value"], names | {entry["key"]} if recursive else names))
                names |= {entry["key"]}
            yield part, names
            pending.extend((value, names) for key, value in part.items() if key != "cte_map")


def matching(
    path: Path,
    target: Target,
    opened: Sequence[CodeIndex],
    where: Condition,
) -> list[NDArray[np.int64]]:
    """Rows of each of a target's indexes for which `where` holds.

    Remembered for as long as the catalogue's file stays as it is: the caller holds it open, so nobody writes.
    """
    key = (_state_of(path), target, where.text)
    with _kept_lock:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
    items = matching_items(path, target, where)
    rows = [codes.rows_of(items) for codes in opened]
    if where.repeatable:
        with _kept_lock:
            _kept[key] = rows
            while (
                len(_kept) > 1
                and sum(part.nbytes for parts_kept in _kept.values() for part in parts_kept) > _KEPT_BYTES
            ):
                _kept.popitem(last=False)
    return rows


def _state_of(path: Path) -> tuple[Any, ...]:
    """What changes with every commit: the file, and the log that a killed writer left beside it."""
    state: list[Any] = [path.resolve()]
    for file in (path.resolve(), store.sidecar(path, ".wal")):
        try:
            stat = os.stat(file)
            state.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
        except FileNotFoundError:
            state.append(None)
    return tuple(state)


def matching_items(path: Path, target: Target, where: Condition) -> NDArray[np.int64]:
    """Items of a target for which `where` holds, and perhaps of others.

    A condition is a stranger's SQL: it runs where `sql` runs it, under its limits, and is killed when we are interrupted.
    """
    from ..sql import Limits, stream

    view = target.view
    query, item = target.subject.source(target, where.names)
    # The brackets hold: the text was parsed by itself before. In WHERE, DuckDB takes no windows and no lists of rows.
    condition = f"(\n{where.text}\n)"
    filtered = f"SELECT {item} AS item, {condition} AS kept FROM ({query}) AS {view} WHERE {condition}"
    said = f"{option('where')} {_brief(where.text)}"
    try:
        with stream(path, filtered, Limits(check=True)) as reader:
            if str(reader.schema.field("kept").type) != "bool":
                raise InvalidInput(
                    f"{said} is no condition", "write one that is true or false, such as position > 0"
                )
            items = reader.read_all().column("item").to_numpy()
    except QueryLimit as error:
        raise QueryLimit(f"{said} cannot be used: {error.what}", "write one that needs less") from error
    except (QueryFailed, QueryRefused) as error:
        message = error.what
        if "Referenced column" in message:
            columns = ", ".join(target.subject.columns())
            message = f"{message.split(' Candidate ')[0]} The columns are {columns}"
        raise InvalidInput(f"{said} cannot be used", message) from error
    return np.asarray(items, dtype=np.int64)
