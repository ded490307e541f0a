"""Nearest codes by Hamming distance: resolve, look up, search, in one opening of the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ..catalog import codes, index, store
from ..catalog.bulk import code_matrix
from ..catalog.errors import InvalidInput
from .answers import Answer, answer_rows, contexts, display, summary
from .target import (
    SUBJECTS,
    StoredQuery,
    Target,
    item_name,
    parse_query,
    resolve,
    resolve_in,
    stored_code_in,
)
from .where import Where, matching, parse_where

if TYPE_CHECKING:
    import duckdb

Encode: TypeAlias = Callable[[Target], codes.Codes]
"""Gives the code of a free text at what is to be searched."""

__all__ = [
    "SUBJECTS",
    "Answer",
    "StoredQuery",
    "Target",
    "contexts",
    "display",
    "item_name",
    "nearest",
    "parse_query",
    "resolve",
    "search",
    "summary",
]


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
    _check_approximate(approximate, where)
    prefer = "types" if stored is not None and stored.kind == "type" else "states"
    if stored is None and encode is None:
        raise InvalidInput(f"{query!r} is free text", "name a stored item: type:TOKEN, state:ID or code:HEX")
    with store.reading(path) as connection:
        target = resolve_in(connection, within, model, site, centre, "standard", prefer)
        parsed = parse_where(connection, where)
        if stored is not None:
            code = stored_code_in(connection, target, stored)
            return _search(path, connection, target, code, k, parsed, approximate)
    assert encode is not None
    return search(path, target, encode(target), k=k, where=where, approximate=approximate)


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
    catalogue's views at most; it does not go with `approximate`.

    Raises:
        InvalidInput: if `k` is not positive, or `where` is anything else or fails on a row.
    """
    if k < 1:
        raise InvalidInput(f"-k {k} is not positive")
    _check_approximate(approximate, where)
    with store.reading(path) as connection:
        parsed = parse_where(connection, where)
        return _search(path, connection, target, code, k, parsed, approximate)


def _check_approximate(approximate: bool, where: str | None) -> None:
    if approximate and where is not None:
        raise InvalidInput("--approximate cannot be filtered", "leave out --approximate or --where")


def _search(
    path: Path,
    connection: duckdb.DuckDBPyConnection,
    target: Target,
    code: codes.Codes,
    k: int,
    where: Where | None,
    approximate: bool,
) -> Answer:
    opened = [index.get(path, info, connection) for info in target.infos]
    answer = _search_in(path, connection, target, opened, code, k, where, approximate)
    # The hits come from the index, their codes from the catalogue: if they disagree, the files are damaged.
    stored = code_matrix(answer.table.column("code"), codes.n_bytes(target.width))
    if np.array_equal(codes.hamming(code, stored), answer.table.column("distance").to_numpy()):
        return answer
    opened = [index.build(path, info, connection) for info in target.infos]
    return _search_in(path, connection, target, opened, code, k, where, approximate)


def _search_in(
    path: Path,
    connection: duckdb.DuckDBPyConnection,
    target: Target,
    opened: Sequence[index.CodeIndex],
    code: codes.Codes,
    k: int,
    where: Where | None,
    approximate: bool,
) -> Answer:
    recalls: list[float] = []
    parts = []
    searched = 0
    kept = None if where is None else matching(path, connection, target, opened, where)
    for i, (info, one) in enumerate(zip(target.infos, opened, strict=True)):
        rows = None if kept is None else kept[i]
        searched += one.n if rows is None else len(rows)
        if approximate:
            from ..catalog.approximate import approximate_index

            distances, items, recall = approximate_index(path, info, one).search(code, k)
            recalls.append(recall)
            parts.append((distances, items))
        else:
            parts.append(one.search(code, k, rows))
    distances, items = index.merge(parts, k)
    table = answer_rows(connection, target, items[0], distances[0])
    return Answer(target, table, searched, min(recalls) if recalls else None)
