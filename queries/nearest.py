"""Nearest codes by Hamming distance: resolve, look up, search, in one opening of the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ..catalog import codes, index, store
from ..catalog.bulk import code_matrix
from ..catalog.errors import InvalidInput
from . import masked
from .answers import Answer, answer_rows, contexts, display, summary
from .masked import Pattern
from .resolve import features_at, find_one, quoted_name, resolve_features, rows_of
from .target import (
    SUBJECTS,
    StoredQuery,
    Target,
    item_name,
    parse_query,
    resolve,
    resolve_in,
    stored_code_in,
    usual_centre,
)
from .where import Where, matching, matching_items, parse_where

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

    From a feature, distance counts the registered dimensions that have another sign; among features, so do they,
    and the order is that of agreement. A stored item is resolved and searched in one opening of the file; it is
    closed while a text is encoded.

    Raises:
        InvalidInput, NotFound: naming what there is; InvalidInput for a free text without `encode`.
    """
    stored = parse_query(query)
    if k < 1:
        raise InvalidInput(f"-k {k} is not positive")
    _check_approximate(approximate, where)
    if stored is None and encode is None:
        raise InvalidInput(
            f"{query!r} is free text", "name a stored item: type:TOKEN, state:ID, feature:ID or code:HEX"
        )
    if approximate and (within == "features" or (stored is not None and stored.kind == "feature")):
        raise InvalidInput("features have no approximate search", "leave out --approximate")
    prefer = "types" if stored is not None and stored.kind in ("type", "feature") else "states"
    with store.reading(path) as connection:
        parsed = parse_where(connection, where)
        if stored is not None and stored.kind == "feature":
            return _from_feature(path, connection, stored.value, within, model, site, centre, k, parsed)
        if within == "features":
            target = resolve_features(connection, model, site, centre, usual_centre(prefer))
        else:
            target = resolve_in(connection, within, model, site, centre, "standard", prefer)
        if stored is not None:
            code = stored_code_in(connection, target, stored)
            return _search(path, connection, target, code, k, parsed, approximate)
    assert encode is not None
    return search(path, target, encode(target), k=k, where=where, approximate=approximate)


def _from_feature(
    path: Path,
    connection: duckdb.DuckDBPyConnection,
    text: str,
    within: str | None,
    model: str | None,
    site: str | None,
    centre: str | None,
    k: int,
    where: Where | None,
) -> Answer:
    if within == "features":
        raise InvalidInput("features are not searched with a feature", "pass --in types, states or types_bos")
    one = find_one(connection, text, model, site, centre)
    target = resolve_in(connection, within, one.model, one.site, one.centre, one.basis, "types")
    answer = _search(path, connection, target, one.pattern, k, where, False)
    words = f"feature {one.feature_id}, {quoted_name(one.name)}: {one.n_dims:,} dimensions"
    return replace(answer, query=words)


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
    code: codes.Codes | Pattern,
    k: int,
    where: Where | None,
    approximate: bool,
) -> Answer:
    if target.view == "features":
        assert not isinstance(code, Pattern)
        return _features(connection, target, code, k, where)
    opened = [index.get(path, info, connection) for info in target.infos]
    answer = _search_in(path, connection, target, opened, code, k, where, approximate)
    # The hits come from the index, their codes from the catalogue: if they disagree, the files are damaged.
    stored = code_matrix(answer.table.column("code"), codes.n_bytes(target.width))
    apart = masked.differing(stored, code) if isinstance(code, Pattern) else codes.hamming(code, stored)
    if np.array_equal(apart, answer.table.column("distance").to_numpy()):
        return answer
    opened = [index.build(path, info, connection) for info in target.infos]
    return _search_in(path, connection, target, opened, code, k, where, approximate)


def _search_in(
    path: Path,
    connection: duckdb.DuckDBPyConnection,
    target: Target,
    opened: Sequence[index.CodeIndex],
    code: codes.Codes | Pattern,
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
        if isinstance(code, Pattern):
            parts.append(masked.search(one, code, k, rows))
        elif approximate:
            from ..catalog.approximate import approximate_index

            distances, items, recall = approximate_index(path, info, one).search(code, k)
            recalls.append(recall)
            parts.append((distances, items))
        else:
            parts.append(one.search(code, k, rows))
    distances, items = index.merge(parts, k)
    table = answer_rows(connection, target, items[0], distances[0])
    return Answer(target, table, searched, min(recalls) if recalls else None)


def _features(
    connection: duckdb.DuckDBPyConnection, target: Target, code: codes.Codes, k: int, where: Where | None
) -> Answer:
    """The features that a code agrees with most: by agreement, then registered dimensions (the more the better), then id."""
    import pyarrow as pa

    there = features_at(connection, target)
    kept = np.arange(len(there.ids))
    if where is not None:
        kept = np.flatnonzero(np.isin(there.ids, matching_items(connection, target, where)))
    distance = masked.differing_each(code[None], there.patterns, target.width)[0]
    agreement = codes.agreement(code, there.patterns.mask, there.patterns.polarity)
    sizes = np.bitwise_count(there.patterns.mask).sum(1, dtype=np.int64)
    best = kept[np.lexsort((there.ids[kept], -sizes[kept], -agreement[kept]))][:k]
    rows = rows_of(connection, there.ids[best].tolist())
    columns = {"rank": np.arange(1, len(best) + 1), "distance": distance[best], "agreement": agreement[best]}
    table = pa.table({**columns, **dict(zip(rows.column_names, rows.columns, strict=True))})
    return Answer(target, table, len(kept))
