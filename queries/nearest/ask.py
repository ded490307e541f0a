"""Nearest codes by Hamming distance: resolve, look up, search, in one opening of the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...catalog import codes, engines, index, store
from ...catalog.bulk import code_matrix
from ...catalog.errors import InvalidInput
from ...catalog.ids import neuron_item
from ..features.resolve import features_at, rows_of
from ..words import raised
from . import masked
from .answers import Answer, answer_rows, contexts
from .masked import Pattern
from .plan import plan
from .polarity import either, nearer, opposite
from .start import KINDS, StoredQuery, parse_query
from .target import OF_WEIGHTS, SUBJECTS, Place, Target, item_name, resolve
from .where import Where, matching, matching_items, parse_where

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

Encode: TypeAlias = Callable[[Place], codes.Codes]
"""Gives the code of a free text at a place."""
EncodeState: TypeAlias = Callable[[Place], NDArray[np.float64]]
"""Gives its floats (width,), which are what is carried to another model."""

__all__ = [
    "SUBJECTS",
    "Answer",
    "Neighbours",
    "Place",
    "StoredQuery",
    "Target",
    "contexts",
    "item_name",
    "nearest",
    "parse_query",
    "resolve",
    "search",
    "search_all",
]


def nearest(
    path: Path,
    query: str,
    *,
    within: str | None = None,
    model: str | None = None,
    across: str | None = None,
    site: str | None = None,
    centre: str | None = None,
    k: int = 10,
    where: str | None = None,
    approximate: bool = False,
    engine: str = engines.AUTO,
    encode: Encode | None = None,
    encode_state: EncodeState | None = None,
) -> Answer:
    """The `k` codes nearest to a stored item, or to a free text whose code `encode` computes. With `across`, those of
    that model, to which the query is carried by a rotation, a free text as the floats of `encode_state`.

    From a feature, distance counts the registered dimensions that have another sign; among features, so do they,
    and the order is that of agreement. Where a neuron is on either side, the nearer polarity counts, a column of its own. Every
    `engine` (see `catalog/engines`) gives the same answer.
    A stored item is resolved and searched in one opening of the file; it is closed while a text is encoded.

    Raises:
        InvalidInput, NotFound: naming what there is; InvalidInput for a free text without `encode`.
    """
    stored = parse_query(query)
    if k < 1:
        raise InvalidInput(f"-k {k} is not positive")
    if stored is None and (encode if across is None else encode_state) is None:
        raise InvalidInput(f"{query!r} is free text", f"name a stored item: one of {KINDS}")
    kind = None if stored is None else stored.kind
    if approximate:
        if engine != engines.AUTO:
            raise InvalidInput(
                "--approximate has an index of its own", "leave out --engine, or --approximate"
            )
        if "neurons" in (within, f"{kind}s"):
            raise InvalidInput(
                "approximate search knows one polarity, and neurons have two",
                "leave out --approximate: exact search is fast",
            )
        if within == "features" or kind == "feature":
            raise InvalidInput("features have no approximate search", "leave out --approximate")
    _check_approximate(approximate, where)
    if across is not None:
        from .across import nearest_across

        chosen = (within, model, across, site, centre)
        return nearest_across(path, stored, *chosen, k, where, approximate, engine, encode_state)
    with store.reading(path) as connection:
        parsed = parse_where(connection, where)
        planned = plan(connection, stored, within, model, site, centre)
        target = planned.target
        # Where both are in one place, the target says it.
        elsewhere = target.view in (*OF_WEIGHTS, "directions")
        apart = planned.place if elsewhere and kind not in ("neuron", "code") else None
        if planned.code is not None:
            answer = search_in(
                path, connection, target, planned.code, k, parsed, approximate, planned.both, engine
            )
            return replace(answer, query=planned.words, place=apart)
    assert encode is not None
    code = encode(planned.place)
    answer = search(path, target, code, k=k, where=where, approximate=approximate, engine=engine)
    return replace(answer, place=apart)


def search(
    path: Path,
    target: Target,
    code: codes.Codes,
    *,
    k: int = 10,
    where: str | None = None,
    approximate: bool = False,
    engine: str = engines.AUTO,
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
        both = target.view == "neurons"
        return search_in(path, connection, target, code, k, parsed, approximate, both, engine)


def _check_approximate(approximate: bool, where: str | None) -> None:
    if approximate and where is not None:
        raise InvalidInput("--approximate cannot be filtered", "leave out --approximate or --where")


@dataclass(frozen=True)
class Neighbours:
    """Neighbours of several queries: distances in bits, int32 (q, k'), and items, int64 (q, k'), by (distance, item)."""

    target: Target
    distances: NDArray[np.int32]
    items: NDArray[np.int64]


def search_all(
    path: Path,
    queries: codes.Codes,
    *,
    within: str | None = None,
    model: str | None = None,
    site: str | None = None,
    centre: str | None = None,
    k: int = 10,
    where: str | None = None,
    engine: str = engines.AUTO,
) -> Neighbours:
    """The `k` codes nearest to each of `queries`, uint8 (q, bytes), among the rows for which `where` holds, of the codes
    that `resolve` finds.

    Raises:
        InvalidInput, NotFound: if the queries have another width, `k` is not positive, `where` fails, the engine cannot
            run, or there are no such codes.
    """
    if within == "features":
        raise InvalidInput(
            "features are not searched in batches", "search states, types, neurons or the unembedding"
        )
    target = resolve(path, within=within, model=model, site=site, centre=centre)
    with store.reading(path) as connection:
        parsed = parse_where(connection, where)
        opened = [index.get(path, info, connection) for info in target.infos]
        kept = None if parsed is None else matching(path, connection, target, opened, parsed)
    parts = [
        one.search(queries, k, None if kept is None else kept[i], engine) for i, one in enumerate(opened)
    ]
    return Neighbours(target, *engines.merge(parts, k))


def search_in(
    path: Path,
    connection: duckdb.DuckDBPyConnection,
    target: Target,
    code: codes.Codes | Pattern,
    k: int,
    where: Where | None = None,
    approximate: bool = False,
    both: bool = False,
    engine: str = engines.AUTO,
) -> Answer:
    """`search` with a file that is open; with `both`, in either polarity."""
    if target.view == "features":
        assert not isinstance(code, Pattern)
        return _features(connection, target, code, k, where, both, engine)
    opened = [index.get(path, info, connection) for info in target.infos]
    answer = _search_in(path, connection, target, opened, code, k, where, approximate, both, engine)
    # The hits come from the index, their codes from the catalogue: if they disagree, the files are damaged.
    distances, polarities = _apart(answer.table, target, code, both)
    if not np.array_equal(distances, answer.table.column("distance").to_numpy()):
        opened = [index.build(path, info, connection) for info in target.infos]
        answer = _search_in(path, connection, target, opened, code, k, where, approximate, both, engine)
        _, polarities = _apart(answer.table, target, code, both)
    return _turned(connection, answer, polarities) if both else answer


def _search_in(
    path: Path,
    connection: duckdb.DuckDBPyConnection,
    target: Target,
    opened: Sequence[index.CodeIndex],
    code: codes.Codes | Pattern,
    k: int,
    where: Where | None,
    approximate: bool,
    both: bool,
    engine: str,
) -> Answer:
    recalls: list[float] = []
    parts = []
    searched = 0
    kept = None if where is None else matching(path, connection, target, opened, where)
    for i, (info, one) in enumerate(zip(target.infos, opened, strict=True)):
        rows = None if kept is None else kept[i]
        searched += one.n if rows is None else len(rows)
        if isinstance(code, Pattern):
            parts.append(masked.search(one, code, k, rows, both, engine=engine))
        elif approximate:
            from ...catalog.approximate import approximate_index

            distances, items, recall = approximate_index(path, info, one).search(code, k)
            recalls.append(recall)
            parts.append((distances, items))
        else:
            turned = [code, opposite(code, target.width)] if both else [code]
            parts.append(one.search(np.stack(turned), k, rows, engine))
    distances, items = engines.merge(parts, k)
    if both and not isinstance(code, Pattern):
        distances, items = either(distances, items, k)
    table = answer_rows(connection, target, items[0], distances[0])
    return Answer(target, table, searched, min(recalls) if recalls else None)


def _apart(
    table: pa.Table, target: Target, code: codes.Codes | Pattern, both: bool
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """How far the codes of an answer are from the query, in the nearer polarity if `both` count, and which that is."""
    stored = code_matrix(table.column("code"), codes.n_bytes(target.width))
    if isinstance(code, Pattern):
        distances, size = masked.differing(stored, code).astype(np.int64), int(code.n_dims)
    else:
        distances, size = codes.hamming(code, stored), target.width
    near, polarities = nearer(distances, size)
    return (near if both else distances), polarities


def _turned(connection: duckdb.DuckDBPyConnection, answer: Answer, polarities: NDArray[np.int32]) -> Answer:
    """The answer with its polarities and, of neurons, the first tokens that each raises in its polarity."""
    import pyarrow as pa

    table = answer.table.add_column(2, "polarity", pa.array(polarities))
    if answer.target.view != "neurons":
        return replace(answer, table=table)
    places = zip(*(table.column(name).to_pylist() for name in ("layer", "neuron")), strict=True)
    # What nobody reads is not worth the look-up.
    items = [neuron_item(*one) for one in places][:_SPELLED]
    tokens = raised(connection, answer.target.model, items, polarities[:_SPELLED].tolist())
    return replace(answer, table=table, raises=tuple(tokens))


_SPELLED = 1000
"""Rows that a terminal shows at most."""


def _features(
    connection: duckdb.DuckDBPyConnection,
    target: Target,
    code: codes.Codes,
    k: int,
    where: Where | None,
    both: bool = False,
    engine: str = engines.AUTO,
) -> Answer:
    """The features that a code agrees with most, in either polarity if `both` count: by agreement, then registered
    dimensions (the more the better), then id."""
    import pyarrow as pa

    there = features_at(connection, target)
    kept = np.arange(len(there.ids))
    if where is not None:
        kept = np.flatnonzero(np.isin(there.ids, matching_items(connection, target, where)))
    distance = masked.differing_each(code[None], there.patterns, target.width, engine=engine)[0]
    agreement = codes.agreement(code, there.patterns.mask, there.patterns.polarity)
    sizes = there.patterns.n_dims
    turned: dict[str, NDArray[np.int32]] = {}
    if both:
        distance, polarity = nearer(distance, sizes)
        agreement = 1.0 - distance / sizes
        turned = {"polarity": polarity}
    best = kept[np.lexsort((there.ids[kept], -sizes[kept], -agreement[kept]))][:k]
    rows = rows_of(connection, there.ids[best].tolist())
    if both:
        # The feature's signs and the way in which the neuron is turned would have one name.
        rows = rows.rename_columns(
            ["feature_polarity" if one == "polarity" else one for one in rows.column_names]
        )
    figures = {"distance": distance, **turned, "agreement": agreement}
    columns = {"rank": np.arange(1, len(best) + 1)} | {name: one[best] for name, one in figures.items()}
    table = pa.table({**columns, **dict(zip(rows.column_names, rows.columns, strict=True))})
    return Answer(target, table, len(kept))
