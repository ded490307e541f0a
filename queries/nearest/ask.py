"""Nearest codes by Hamming distance: look the query up, and search with it, in one opening of the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...catalog import codes, engines, index, store
from ...catalog.errors import InvalidInput
from ..usual import one_model
from .answers import Answer
from .asked import Asked, Options, prefixes
from .masked import Pattern
from .plan import Encoder, Plan, plan
from .search import must_be_stored
from .subject import Choice, Search, Target, default_subject
from .where import matching, parse_where

if TYPE_CHECKING:
    import duckdb


def nearest(path: Path, asked: Asked, encoder: Callable[[Asked], Encoder] | None = None) -> Answer:
    """The `k` rows nearest to a stored item, or to a free text, whose code `encoder` gives. With `across`, those of that
    model, to which the query is carried by a rotation, a free text as its floats.

    From a feature, distance counts the registered dimensions that have another sign; among features, so do they,
    and the order is that of agreement. Where a neuron is on either side, the nearer polarity counts, a column of its own.
    Every engine gives the same answer. The file is closed while a text is encoded.

    Raises:
        InvalidInput, NotFound: naming what there is; InvalidInput for a free text without `encoder`.
    """
    if asked.is_text and encoder is None:
        raise InvalidInput(f"{asked.query!r} is free text", f"name a stored item: {prefixes()}")
    with store.reading(path) as connection:
        # A filter that is wrong is said before the query is looked up.
        parse_where(connection, asked.where)
        planned = _plan(connection, asked)
        if planned.code is not None:
            return _answer(path, connection, asked, planned, planned.code)
    assert encoder is not None and planned.encode is not None
    encoding = encoder(asked)
    code = planned.encode(encoding)
    with store.reading(path) as connection:
        return replace(_answer(path, connection, asked, planned, code), query=encoding.token)


def _plan(connection: duckdb.DuckDBPyConnection, asked: Asked) -> Plan:
    if asked.across is None:
        return plan(connection, asked)
    # Rotations are loaded where they are asked for.
    from .across import plan_across

    return plan_across(connection, asked)


def _answer(
    path: Path,
    connection: duckdb.DuckDBPyConnection,
    asked: Asked,
    planned: Plan,
    code: codes.Codes | Pattern,
) -> Answer:
    where = parse_where(connection, asked.where)
    how = (asked.k, where, asked.approximate, planned.both, asked.engine)
    answer = planned.target.subject.search(Search(path, connection, planned.target, code, *how))
    return replace(answer, query=planned.words, place=planned.said, across=planned.carried)


@dataclass(frozen=True)
class Neighbours:
    """Neighbours of several queries: distances in bits, int32 (q, k'), and items, int64 (q, k'), by (distance, item)."""

    target: Target
    distances: NDArray[np.int32]
    items: NDArray[np.int64]


def search_all(path: Path, queries: codes.Codes, options: Options) -> Neighbours:
    """The `k` codes nearest to each of `queries`, uint8 (q, bytes), among the rows for which `where` holds.

    What is not given is chosen as for a free text.

    Raises:
        InvalidInput, NotFound: if the queries have another width, `where` fails, the engine cannot run, or there are no
            such codes.
        CodesChanged, IndexDamaged: if the first query's neighbours are not what the catalogue holds, or was given to hold.
    """
    subject = options.searched
    if subject is not None and not subject.indexed:
        raise InvalidInput(
            f"{subject.view} are not searched in batches", "search states, types, neurons or the unembedding"
        )
    with store.reading(path) as connection:
        where = parse_where(connection, options.where)
        choice = Choice(one_model(connection, options.model), options.site, options.centre)
        target = (subject or default_subject(connection, choice)).target(connection, choice)
        opened = [index.get(path, info, connection) for info in target.infos]
        k, engine = options.k, options.engine
        kept = None if where is None else matching(path, target, opened, where)
    parts = [
        searched.search(queries, k, None if kept is None else kept[i], engine)
        for i, searched in enumerate(opened)
    ]
    distances, items = engines.merge(parts, k)
    if items.size:
        # The first query stands for all: each answer read again would take longer than the search.
        with store.reading(path) as connection:
            must_be_stored(connection, target, np.atleast_2d(queries)[0], distances[0], items[0])
    return Neighbours(target, distances, items)
