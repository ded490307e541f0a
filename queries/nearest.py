"""Nearest codes by Hamming distance: what to search, with which code, among which rows.

Rows are read from the base tables by code set: the views `states` and `types` join every row of a catalogue
before they filter. What comes out has the views' columns; a test holds the two against each other.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..catalog import codes, index, store, views
from ..catalog.errors import InvalidInput, NotFound, SignariumError
from ..catalog.index import CodeIndex, CodeSetInfo
from .models import one_model
from .sandbox import REFUSED_FUNCTIONS

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

SUBJECTS = {
    "states": ("state", "state_id"),
    "types": ("type", "token_id"),
    "types_bos": ("type_bos", "token_id"),
}
"""What `--in` takes: the view, its subject, and the column that is the code set's item."""

CONTEXT_TOKENS = 8
"""Tokens shown on each side of a state."""
MARKS = ("«", "»")


@dataclass(frozen=True)
class StoredQuery:
    """A query that names something in the catalogue, or spells a code: `type:`, `state:`, `code:`."""

    kind: str
    value: str


@dataclass(frozen=True)
class Target:
    """The codes that a search goes through: one view at one model, site, centre and basis."""

    view: str
    model: str
    site: str
    centre: str
    basis: str
    width: int
    infos: tuple[CodeSetInfo, ...]

    @property
    def n(self) -> int:
        """Codes searched, before any filter."""
        return sum(one.n for one in self.infos)


@dataclass(frozen=True)
class Answer:
    """Rows ordered by (distance, item): rank, distance in bits, and the columns of the view searched."""

    target: Target
    table: pa.Table
    searched: int
    recall: float | None = None


_EXAMPLES = {"type": "TOKEN", "state": "ID", "code": "HEX"}


def parse_query(text: str) -> StoredQuery | None:
    """What `type:" king"`, `state:123` or `code:HEX` names; None for free text.

    Raises:
        InvalidInput: if the part behind the colon cannot be right.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput("the query is no valid Unicode text", "write it as UTF-8") from None
    kind, colon, value = text.partition(":")
    if not colon or kind not in _EXAMPLES:
        return None
    if kind == "type" and len(value) >= 2 and value[0] == value[-1] == '"':
        value = value[1:-1]
    if kind != "type":
        value = value.strip()
    if not value:
        raise InvalidInput(f"{text!r} names nothing", f"write {kind}:{_EXAMPLES[kind]}")
    if kind == "state" and not (value.isascii() and value.isdecimal()):
        raise InvalidInput(f"{value!r} is not a state_id", "take one from the view states")
    return StoredQuery(kind, value)


Encode: TypeAlias = Callable[[Target], codes.Codes]
"""Gives the code of a free text at a target's model, site and centre."""


def nearest(
    path: Path,
    query: str,
    *,
    within: str | None = None,
    model: str | None = None,
    site: str | None = None,
    centre: str | None = None,
    k: int = 10,
    where: str | None = None,
    approximate: bool = False,
    encode: Encode | None = None,
) -> Answer:
    """The `k` codes nearest to a stored item, or to a free text whose code `encode` computes.

    A stored item is resolved and searched in one opening of the file; it is closed while a text is encoded.

    Raises:
        InvalidInput, NotFound: naming what there is; InvalidInput for a free text without `encode`.
    """
    stored = parse_query(query)
    if k < 1:
        raise InvalidInput(f"-k {k} is not positive")
    prefer = "types" if stored is not None and stored.kind == "type" else "states"
    if stored is None and encode is None:
        raise InvalidInput(f"{query!r} is free text", "name a stored item: type:TOKEN, state:ID or code:HEX")
    with store.reading(path) as connection:
        target = _resolve(connection, within, model, site, centre, "standard", prefer)
        parsed = _parse_where(connection, where)
        if stored is not None:
            code = _stored_code(connection, target, stored)
            return _search(path, connection, target, code, k, parsed, approximate)
    assert encode is not None
    return search(path, target, encode(target), k=k, where=where, approximate=approximate)


def resolve(
    path: Path,
    *,
    within: str | None = None,
    model: str | None = None,
    site: str | None = None,
    centre: str | None = None,
    basis: str = "standard",
    prefer: str = "states",
) -> Target:
    """The codes to search. What is not given: the only model there is; `prefer` if it has codes; the middle
    one of the model's `resid_post` sites; the centre `mean` where there is one, else `zero`.

    Raises:
        NotFound, InvalidInput: naming what there is, if the catalogue has no such codes.
    """
    with store.reading(path) as connection:
        return _resolve(connection, within, model, site, centre, basis, prefer)


def _resolve(
    connection: duckdb.DuckDBPyConnection,
    within: str | None,
    model: str | None,
    site: str | None,
    centre: str | None,
    basis: str,
    prefer: str,
) -> Target:
    if within is not None and within not in SUBJECTS:
        raise InvalidInput(f"{within} cannot be searched", f"there is {', '.join(SUBJECTS)}")
    model = one_model(connection, model)
    # From the tables: the view `code_sets` counts every shard first.
    rows = connection.execute(
        "SELECT s.point, s.layer, s.name, cs.subject, cs.centre, cs.basis, cs.width FROM code_set cs "
        "JOIN site s USING (site_id) JOIN model m USING (model_id) WHERE m.name = ? "
        "AND cs.run_id IN (SELECT run_id FROM shard WHERE tokens > 0) ORDER BY ALL",
        [model],
    ).fetchall()
    there = [name for name in (prefer, *SUBJECTS) if any(row[3] == SUBJECTS[name][0] for row in rows)]
    if not there:
        raise InvalidInput(f"the catalogue has no codes of {model} yet", "run `signarium ingest`")
    view = within or there[0]
    rows = [row for row in rows if row[3] == SUBJECTS[view][0] and row[5] == basis]
    if not rows:
        how = {"states": "--text PATH", "types": "the stage types", "types_bos": "--bos"}[view]
        raise InvalidInput(
            f"the catalogue has no {view} of {model}",
            f"ingest it with {how}, or search --in {', '.join(dict.fromkeys(there))}",
        )
    sites = list(
        dict.fromkeys(
            row[2] for row in sorted(rows, key=lambda row: (row[0] != "resid_post", row[0], row[1] or 0))
        )
    )
    if site is not None and site not in sites:
        raise NotFound(f"site with {view} of {model}", site, sites)
    usual = [one for one in sites if one.startswith("resid_post.")] or sites
    site = site or usual[len(usual) // 2]
    centres = sorted({row[4] for row in rows if row[2] == site})
    if centre is not None and centre not in centres:
        raise NotFound(f"centre for {view} of {model} at {site}", centre, centres)
    centre = centre or ("mean" if "mean" in centres else "zero")
    infos = index.describe(
        connection,
        "v.model = ? AND v.site = ? AND v.subject = ? AND v.centre = ? AND v.basis = ? AND v.n > 0",
        [model, site, SUBJECTS[view][0], centre, basis],
    )
    width = next(row[6] for row in rows if row[2] == site)
    return Target(view, model, site, centre, basis, width, tuple(infos))


def stored_code(path: Path, target: Target, query: StoredQuery) -> codes.Codes:
    """The code that `query` names, at the target's site, centre and basis; uint8 (bytes,).

    Raises:
        NotFound: if the catalogue has no such item there.
        InvalidInput: if `code:` has digits that are no code of the target's width.
    """
    with store.reading(path) as connection:
        return _stored_code(connection, target, query)


def _stored_code(connection: duckdb.DuckDBPyConnection, target: Target, query: StoredQuery) -> codes.Codes:
    if query.kind == "code":
        return codes.from_hex(query.value, target.width)
    subject = query.kind
    item = _token_id(connection, target.model, query.value) if subject == "type" else int(query.value)
    sets = connection.execute(
        "SELECT cs.code_set_id FROM code_set cs JOIN site s USING (site_id) JOIN model m USING (model_id) "
        "WHERE m.name = ? AND s.name = ? AND cs.subject = ? AND cs.centre = ? AND cs.basis = ? ORDER BY ALL",
        [target.model, target.site, subject, target.centre, target.basis],
    ).fetchall()
    for (code_set_id,) in sets if item < 1 << 63 else []:
        row = connection.execute(
            "SELECT code FROM code_row WHERE code_set_id = ? AND item = ?", [code_set_id, item]
        ).fetchone()
        if row:
            return np.frombuffer(row[0], dtype=np.uint8)
    if sets and subject == "state":
        raise NotFound(
            f"state of {target.model}",
            query.value,
            todo="take a state_id from the view states or its answers",
        )
    elsewhere = connection.execute(
        "SELECT DISTINCT site || ' ' || centre FROM code_sets WHERE model = ? AND subject = ? AND n > 0 ORDER BY ALL",
        [target.model, subject],
    ).fetchall()
    raise NotFound(
        f"{subject} at {target.site}, centre {target.centre}, of {target.model}",
        query.value,
        [row[0] for row in elsewhere],
        todo="" if elsewhere else f"no {subject}s of it were ingested",
    )


def _token_id(connection: duckdb.DuckDBPyConnection, model: str, text: str) -> int:
    def ids(token: str) -> list[int]:
        found = connection.execute(
            "SELECT t.token_id FROM token_row t JOIN model m ON m.tokenizer_sha256 = t.tokenizer "
            "WHERE m.name = ? AND t.token = ? AND t.token_id < m.vocab_size ORDER BY t.token_id",
            [model, token],
        ).fetchall()
        return [row[0] for row in found]

    if found := ids(text):
        return int(found[0])
    other = text[1:] if text.startswith(" ") else f" {text}"
    todo = (
        f'there is type:"{other}"'
        if ids(other)
        else "a type is one token of the vocabulary; search text as it is instead"
    )
    raise NotFound(f"token of {model}", text, todo=todo)


def search(
    path: Path,
    target: Target,
    code: codes.Codes,
    *,
    k: int = 10,
    where: str | None = None,
    approximate: bool = False,
) -> Answer:
    """The `k` codes of `target` nearest to `code`, uint8 (bytes,), among the rows for which `where` holds.

    `where` is one boolean expression over the columns of the view searched, with subqueries over the
    catalogue's views at most. `approximate` counts without `where` only: a filtered search is exact.

    Raises:
        InvalidInput: if `k` is not positive, or `where` is anything else or fails on a row.
    """
    if k < 1:
        raise InvalidInput(f"-k {k} is not positive")
    with store.reading(path) as connection:
        parsed = _parse_where(connection, where)
        return _search(path, connection, target, code, k, parsed, approximate)


def _search(
    path: Path,
    connection: duckdb.DuckDBPyConnection,
    target: Target,
    code: codes.Codes,
    k: int,
    where: _Where | None,
    approximate: bool,
) -> Answer:
    recalls: list[float] = []
    parts = []
    searched = 0
    opened = [index.get(path, info, connection) for info in target.infos]
    kept = None if where is None else _matching(path, connection, target, opened, where)
    for i, (info, one) in enumerate(zip(target.infos, opened, strict=True)):
        rows = None if kept is None else kept[i]
        searched += one.n if rows is None else len(rows)
        if approximate and rows is None:
            from ..catalog.approximate import approximate_index

            distances, items, recall = approximate_index(path, info, one).search(code, k)
            recalls.append(recall)
            parts.append((distances, items))
        else:
            parts.append(one.search(code, k, rows))
    distances, items = index.merge(parts, k)
    table = _rows(connection, target, items[0], distances[0])
    return Answer(target, table, searched, min(recalls) if recalls else None)


# ---- --where --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Where:
    """A condition that was found to be one expression that reads nothing but the catalogue."""

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


def _parse_where(connection: duckdb.DuckDBPyConnection, where: str | None) -> _Where | None:
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
    allowed = {one.name for one in views.VIEWS} | _with_names(node)
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
    return _Where(where, frozenset(names), repeatable)


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


def _matching(
    path: Path,
    connection: duckdb.DuckDBPyConnection,
    target: Target,
    opened: Sequence[CodeIndex],
    where: _Where,
) -> list[NDArray[np.int64]]:
    """Rows of each of a target's indexes for which `where` holds.

    Remembered for as long as the catalogue's file stays as it is: the caller holds it open, so nobody writes.
    """
    key = (_state_of(path), target, where.text)
    with _kept_lock:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
    items = _matching_items(connection, target, where)
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


def _matching_items(
    connection: duckdb.DuckDBPyConnection, target: Target, where: _Where
) -> NDArray[np.int64]:
    import duckdb

    view, item = target.view, SUBJECTS[target.view][1]
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
            f"SELECT {item} FROM ({query}) AS {view} WHERE (\n{where.text}\n)"
        ).fetchnumpy()
    except duckdb.Error as error:
        from .sql import one_line

        message = one_line(str(error))
        if "Referenced column" in message:
            message = (
                f"{message.split(' Candidate ')[0]} The columns are {', '.join(views.view(view).columns)}"
            )
        raise InvalidInput(f"--where {_brief(where.text)} cannot be used", message) from error
    return np.asarray(found[item], dtype=np.int64)


def _from_tables(target: Target, names: frozenset[str]) -> str:
    """The rows of a target as a query with the columns of its view, of which only those in `names` count.

    States whose norm and code do not matter come from `state_row` alone, other models' among them: what is no
    item of the target's code sets has no row in its indexes.
    """
    every = "*" in names or target.view in names
    fixed = ", ".join(
        f"{_quoted(value)} AS {name}"
        for name, value in (
            ("model", target.model),
            ("site", target.site),
            ("centre", target.centre),
            ("basis", target.basis),
        )
    )
    sets = ", ".join(str(one.code_set_id) for one in target.infos)
    coded = every or target.view != "states" or bool(names & {"norm", "code"})
    parts = [f"SELECT {fixed}"]
    if target.view == "states":
        parts.append(", w.state_id, w.document_id, w.position, w.token_id, w.position = 0 AS is_first")
        tables = "FROM state_row w"
        if coded:
            tables += f" JOIN code_row c ON c.item = w.state_id AND c.code_set_id IN ({sets})"
        token = "w.token_id"
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
            f"(SELECT tokenizer_sha256 FROM model WHERE name = {_quoted(target.model)})"
        )
    return "".join(parts) + " " + tables


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


# ---- the rows of an answer ------------------------------------------------------------------------


def _rows(
    connection: duckdb.DuckDBPyConnection,
    target: Target,
    items: NDArray[np.int64],
    distances: NDArray[np.int32],
) -> pa.Table:
    """The answer's rows in order: rank, distance, a state's context, and the columns of the view."""
    import pyarrow as pa

    wanted = items.tolist()
    n = len(wanted)
    sets = ", ".join(str(one.code_set_id) for one in target.infos)
    # By rowid: with the condition on the item itself, DuckDB reads the column of codes from end to end.
    ids = f"SELECT rowid FROM code_row WHERE code_set_id IN ({sets}) AND item"
    stored = {
        row[0]: row
        for row in _fetch(
            connection, "SELECT item, norm, code FROM code_row WHERE rowid IN (" + ids, wanted, ")"
        )
    }
    columns: dict[str, Any] = {
        "rank": pa.array(np.arange(1, n + 1)),
        "distance": pa.array(distances),
    }
    try:
        if target.view == "states":
            places = _places(connection, _around(wanted))
            tokens = _tokens(connection, target.model, {place[2] for place in places.values()})
            columns["context"] = pa.array(
                _contexts(connection, target.model, wanted, places, tokens), pa.string()
            )
            token_ids = [places[one][2] for one in wanted]
        else:
            token_ids = wanted
            tokens = _tokens(connection, target.model, set(wanted))
        for name in ("model", "site", "centre", "basis"):
            columns[name] = pa.array([getattr(target, name)] * n, pa.string())
        if target.view == "states":
            columns["state_id"] = pa.array(wanted, pa.int64())
            columns["document_id"] = pa.array([places[one][0] for one in wanted], pa.int64())
            columns["position"] = pa.array([places[one][1] for one in wanted], pa.int32())
        columns["token_id"] = pa.array(token_ids, pa.int32() if target.view == "states" else pa.int64())
        columns["token"] = pa.array([tokens.get(one) for one in token_ids], pa.string())
        if target.view == "states":
            columns["is_first"] = pa.array([places[one][1] == 0 for one in wanted], pa.bool_())
        columns["norm"] = pa.array([stored[one][1] for one in wanted], pa.float32())
        columns["code"] = pa.array([stored[one][2] for one in wanted], pa.binary())
    except KeyError as error:
        raise SignariumError(
            f"the catalogue has no row of {item_name(target)} {error.args[0]}", "run `signarium db verify`"
        ) from error
    return pa.table(columns)


def item_name(target: Target) -> str:
    """The column that names an item of the view searched: `state_id` or `token_id`."""
    return SUBJECTS[target.view][1]


_IN_LIST = 1000
"""Up to so many ids are written into the query: DuckDB then skips what cannot hold them."""


def _fetch(
    connection: duckdb.DuckDBPyConnection, query: str, ids: Sequence[int], rest: str = ""
) -> list[Any]:
    """Rows of a query that ends in the column which is to be one of `ids`, but for its `rest`."""
    if not ids:
        return []
    if len(ids) <= _IN_LIST:
        return connection.execute(f"{query} IN ({', '.join(map(str, ids))}){rest}").fetchall()
    return connection.execute(f"{query} IN (SELECT unnest(?::BIGINT[])){rest}", [list(ids)]).fetchall()


def _around(state_ids: Sequence[int]) -> list[int]:
    reach = range(-CONTEXT_TOKENS, CONTEXT_TOKENS + 1)
    return sorted({one + away for one in state_ids for away in reach})


def _places(connection: duckdb.DuckDBPyConnection, ids: Sequence[int]) -> dict[int, tuple[int, int, int]]:
    """document_id, position and token_id of those states that there are."""
    rows = _fetch(
        connection, "SELECT state_id, document_id, position, token_id FROM state_row WHERE state_id", ids
    )
    return {row[0]: row[1:] for row in rows}


def _tokens(connection: duckdb.DuckDBPyConnection, model: str, token_ids: set[int]) -> dict[int, str]:
    rows = _fetch(
        connection,
        "SELECT token_id, token FROM token_row WHERE tokenizer = "
        f"(SELECT tokenizer_sha256 FROM model WHERE name = {_quoted(model)}) AND token_id",
        sorted(token_ids),
    )
    return dict(rows)


def contexts(connection: duckdb.DuckDBPyConnection, model: str, state_ids: Sequence[int]) -> list[str]:
    """Each state's surroundings in its document, the token itself between `MARKS`; "" for no such state."""
    places = _places(connection, _around(state_ids))
    tokens = _tokens(connection, model, {place[2] for place in places.values()})
    return _contexts(connection, model, state_ids, places, tokens)


def _contexts(
    connection: duckdb.DuckDBPyConnection,
    model: str,
    state_ids: Sequence[int],
    places: dict[int, tuple[int, int, int]],
    tokens: dict[int, str],
) -> list[str]:
    if not state_ids:
        return []
    marked_joins = connection.execute(
        "SELECT 1 FROM token_row t JOIN model m ON m.tokenizer_sha256 = t.tokenizer "
        "WHERE m.name = ? AND starts_with(t.token, ' ') AND t.token <> ' ' LIMIT 1",
        [model],
    ).fetchone()
    found = []
    for one in state_ids:
        document = places[one][0] if one in places else None
        near = [
            (away, tokens.get(places[one + away][2], ""))
            for away in range(-CONTEXT_TOKENS, CONTEXT_TOKENS + 1)
            if one + away in places and places[one + away][0] == document
        ]
        found.append(_marked(near, spaced=marked_joins is None))
    return found


def _marked(tokens: Sequence[tuple[int, str]], spaced: bool) -> str:
    """Tokens joined to text; `spaced` for vocabularies that mark what is joined (##ing) instead of spaces."""
    text = ""
    for away, token in tokens:
        if spaced:
            space, token = (
                ("", token[2:]) if token.startswith("##") and token != "##" else (" " if text else "", token)
            )
        else:
            # The space belongs to the token, but the mark reads better around the word; spaces alone stay in it.
            word = token.lstrip(" ") or token
            space, token = token[: len(token) - len(word)], word
        text += space + (f"{MARKS[0]}{token}{MARKS[1]}" if away == 0 else token)
    return text


# ---- for a reader ---------------------------------------------------------------------------------

_SHOWN = {
    "states": ("rank", "distance", "state_id", "position", "context"),
    "types": ("rank", "distance", "token_id", "token", "norm"),
    "types_bos": ("rank", "distance", "token_id", "token", "norm"),
}
_OTHERS = 2 * 4 + 4 + 8 + 19 + 8
"""Cells that the other columns of `states` take: rank, distance, state_id, position, and what is between."""


def display(answer: Answer, width: int | None = None) -> pa.Table:
    """The columns worth a terminal's `width`; a context is cut on both sides so that its mark stays in sight."""
    table = answer.table.select(list(_SHOWN[answer.target.view]))
    if width is None or "context" not in table.column_names:
        return table
    import pyarrow as pa

    room = max(16, width - _OTHERS)
    tokens = answer.table.column("token").to_pylist()
    texts = [
        _around_mark(text, token or "", room)
        for text, token in zip(table.column("context").to_pylist(), tokens, strict=True)
    ]
    return table.set_column(table.column_names.index("context"), "context", pa.array(texts, pa.string()))


def _around_mark(text: str, token: str, room: int) -> str:
    """`text` cut to `room` cells around its marked `token`."""
    from .formats import _cells

    if _cells(text) <= room:
        return text
    for word in (token.lstrip(" ") or token, token.removeprefix("##")):
        start = text.find(f"{MARKS[0]}{word}{MARKS[1]}")
        if start >= 0:
            break
    stop = start + len(word) + 2
    before, marked, after = text[:start], text[start:stop], text[stop:]
    left = max(0, room - _cells(marked))
    take_after = min(_cells(after), max(left // 2, left - _cells(before)))
    take_before = left - take_after
    return _end(before, take_before) + marked + _start(after, take_after)


def _start(text: str, room: int) -> str:
    from .formats import _cells

    if _cells(text) <= room:
        return text
    while text and _cells(text) > room - 1:
        text = text[:-1]
    return text + "…" if room > 0 else ""


def _end(text: str, room: int) -> str:
    from .formats import _cells

    if _cells(text) <= room:
        return text
    while text and _cells(text) > room - 1:
        text = text[1:]
    return "…" + text if room > 0 else ""


def display_columns(answer: Answer) -> list[str]:
    """The columns that `display` keeps."""
    return list(_SHOWN[answer.target.view])


def summary(answer: Answer) -> str:
    """One line that says what was searched."""
    target = answer.target
    line = f"{target.view} of {target.model} at {target.site}, centre {target.centre}: {answer.searched:,} codes of {target.width} bits"
    if answer.recall is not None:
        line += f"; approximate, recall {answer.recall:.3f} measured on this code set"
    return line


def as_dict(answer: Answer) -> dict[str, Any]:
    """The answer's columns as Python lists."""
    return answer.table.to_pydict()
