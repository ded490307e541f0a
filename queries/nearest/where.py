"""`--where`: one boolean expression over the view searched, checked before it runs, resolved to rows by SQL."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...catalog import parts, store
from ...catalog.errors import InvalidInput
from ...catalog.ids import NEURON_BITS, PLACE_BITS
from ...catalog.index import CodeIndex
from ..sandbox import REFUSED_FUNCTIONS
from .target import OF_WEIGHTS, Target, item_name

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True)
class Where:
    """A condition that was found to be one expression that reads nothing but the catalogue."""

    text: str
    names: frozenset[str]
    """Every part of every column reference in it; `*` stands for all columns."""
    repeatable: bool


DIRECTIONS = ("model", "site", "centre", "basis", "name", "feature", "norm", "code")
"""Columns of an answer among dictionaries' directions: `name` is the dictionary's, `feature` counts in it from 0."""
_VOLATILE = frozenset(
    {"random", "uuid", "gen_random_uuid", "uuidv4", "uuidv7", "now", "today", "get_current_timestamp"}
)
_KEPT_BYTES = 128 << 20
_kept: OrderedDict[Any, list[NDArray[np.int64]]] = OrderedDict()
_kept_lock = Lock()


def parse_where(connection: duckdb.DuckDBPyConnection, where: str | None) -> Where | None:
    """`where` checked by DuckDB's own parser, which runs and opens nothing.

    It must stand alone as the one item of `SELECT ...`, so that no bracket of it can close one of ours. Of
    tables it may name the catalogue's views, so that no reading function and no file can be reached.
    """
    if where is None:
        return None
    if not where.strip():
        raise InvalidInput("--where is empty", "leave it out, or write a condition such as position > 0")
    refused = f"--where {_brief(where)} cannot be used"
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
    allowed = set(parts.views()) | _with_names(node)
    for one in _nodes(node):
        kind = one.get("type")
        if one.get("class") == "COLUMN_REF":
            names.update(part.lower() for part in one["column_names"])
        elif one.get("class") == "STAR":
            names.add("*")
        elif one.get("class") == "PARAMETER":
            raise InvalidInput(refused, "write the value in place of the parameter")
        elif kind == "BASE_TABLE":
            if one["table_name"] not in allowed or one.get("schema_name") or one.get("catalog_name"):
                raise InvalidInput(
                    refused, f"a subquery may read the catalogue's views, not {one['table_name']!r}"
                )
        elif kind == "TABLE_FUNCTION":
            raise InvalidInput(refused, "a subquery may read the catalogue's views, not a table function")
        elif "table_name" in one and kind not in ("EMPTY", "SUBQUERY", "JOIN", "EXPRESSION_LIST"):
            raise InvalidInput(refused, "a subquery may read the catalogue's views only")
        if isinstance(function := one.get("function_name"), str):
            if function.lower() in REFUSED_FUNCTIONS:
                raise InvalidInput(refused, f"the function {function} does more than read")
            repeatable = repeatable and function.lower() not in _VOLATILE
    return Where(where, frozenset(names), repeatable)


def _brief(text: str) -> str:
    return repr(text if len(text) <= 120 else text[:119] + "…")


def _nodes(tree: Any) -> list[dict[str, Any]]:
    found, pending = [], [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            found.append(node)
            pending.extend(node.values())
        elif isinstance(node, list):
            pending.extend(node)
    return found


def _with_names(tree: Any) -> set[str]:
    """Names that `WITH` inside a subquery gives to other subqueries."""
    maps = [one["cte_map"].get("map", []) for one in _nodes(tree) if isinstance(one.get("cte_map"), dict)]
    return {entry["key"] for entries in maps for entry in entries}


def matching(
    path: Path,
    connection: duckdb.DuckDBPyConnection,
    target: Target,
    opened: Sequence[CodeIndex],
    where: Where,
) -> list[NDArray[np.int64]]:
    """Rows of each of a target's indexes for which `where` holds.

    Remembered for as long as the catalogue's file stays as it is: the caller holds it open, so nobody writes.
    """
    key = (_state_of(path), target, where.text)
    with _kept_lock:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
    items = matching_items(connection, target, where)
    rows = [one.rows_of(items) for one in opened]
    if where.repeatable:
        with _kept_lock:
            _kept[key] = rows
            while len(_kept) > 1 and sum(part.nbytes for one in _kept.values() for part in one) > _KEPT_BYTES:
                _kept.popitem(last=False)
    return rows


def _state_of(path: Path) -> tuple[Any, ...]:
    """What changes with every commit: the file, and the log that a killed writer left beside it."""
    state: list[Any] = [path.resolve()]
    for one in (path.resolve(), store.sidecar(path, ".wal")):
        try:
            found = os.stat(one)
            state.append((found.st_ino, found.st_size, found.st_mtime_ns))
        except FileNotFoundError:
            state.append(None)
    return tuple(state)


def matching_items(connection: duckdb.DuckDBPyConnection, target: Target, where: Where) -> NDArray[np.int64]:
    """Items of a target for which `where` holds, and perhaps of others."""
    import duckdb

    view, item = target.view, item_name(target)
    if view == "neurons":
        item = f"(layer::BIGINT << {NEURON_BITS}) | neuron"
    elif view == "directions":
        item = "item"
    query = _from_tables(target, where.names)
    try:
        # The brackets hold: the text was parsed by itself before.
        typed = connection.execute(f"SELECT (\n{where.text}\n) FROM ({query}) AS {view} LIMIT 0").description
        if len(typed or ()) != 1 or str(typed[0][1]) not in ("BOOLEAN", "bool"):
            raise InvalidInput(
                f"--where {_brief(where.text)} is no condition",
                "write one that is true or false, such as position > 0",
            )
        found = connection.execute(
            f"SELECT {item} AS item FROM ({query}) AS {view} WHERE (\n{where.text}\n)"
        ).fetchnumpy()
    except duckdb.Error as error:
        from ..sql import one_line

        message = one_line(str(error))
        if "Referenced column" in message:
            columns = DIRECTIONS if view == "directions" else parts.view(view).columns
            message = f"{message.split(' Candidate ')[0]} The columns are {', '.join(columns)}"
        raise InvalidInput(f"--where {_brief(where.text)} cannot be used", message) from error
    return np.asarray(found["item"], dtype=np.int64)


def _from_tables(target: Target, names: frozenset[str]) -> str:
    """The rows of a target as a query with the columns of its view, of which only those in `names` count.

    States whose norm and code do not matter come from `state_row` alone, other models' among them: what is no
    item of the target's code sets has no row in its indexes.
    """
    if target.view == "features":
        return (
            f"SELECT * FROM features WHERE model = {quoted(target.model)} AND site = {quoted(target.site)} "
            f"AND centre = {quoted(target.centre)} AND basis = {quoted(target.basis)}"
        )
    if target.view == "directions":
        sets = ", ".join(str(one.code_set_id) for one in target.infos)
        fixed = ", ".join(f"{quoted(getattr(target, name))} AS {name}" for name in DIRECTIONS[:4])
        return (
            f"SELECT {fixed}, x.name, (c.item & {(1 << PLACE_BITS) - 1})::INTEGER AS feature, c.norm, c.code, c.item "
            f"FROM code_row c JOIN code_set cs USING (code_set_id) JOIN sae x ON x.run_id = cs.run_id AND x.site_id = cs.site_id "
            f"WHERE c.code_set_id IN ({sets or 'NULL'})"
        )
    every = "*" in names or target.view in names
    place = ("model",) if target.view in OF_WEIGHTS else ("model", "site", "centre", "basis")
    fixed = ", ".join(f"{quoted(getattr(target, name))} AS {name}" for name in place)
    sets = ", ".join(str(one.code_set_id) for one in target.infos)
    coded = every or target.view != "states" or bool(names & {"norm", "code"})
    parts = [f"SELECT {fixed}"]
    if target.view == "states":
        parts.append(", w.state_id, w.document_id, w.position, w.token_id, w.position = 0 AS is_first")
        tables = "FROM state_row w"
        if coded:
            tables += f" JOIN code_row c ON c.item = w.state_id AND c.code_set_id IN ({sets})"
        token = "w.token_id"
    elif target.view == "neurons":
        return (
            f"SELECT {fixed}, (item >> {NEURON_BITS})::INTEGER AS layer, (item & {(1 << NEURON_BITS) - 1})::INTEGER AS neuron, "
            f"norm, code FROM code_row WHERE code_set_id IN ({sets})"
        )
    else:
        parts.append(", c.item AS token_id")
        tables = f"FROM (SELECT * FROM code_row WHERE code_set_id IN ({sets})) c"
        token = "c.item"
    if coded:
        parts.append(", c.norm, c.code")
    if every or "token" in names:
        parts.append(", t.token")
        tables += (
            f" LEFT JOIN token_row t ON t.token_id = {token} AND t.tokenizer = "
            f"(SELECT tokenizer_sha256 FROM model WHERE name = {quoted(target.model)})"
        )
    return "".join(parts) + " " + tables


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
