"""The search of code sets: by their indexes, by a code or a feature's pattern, in either polarity, filtered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ...catalog import codes, digests, engines, index
from ...catalog.bulk import code_matrix
from ...catalog.errors import CodesChanged, IndexDamaged
from . import masked
from .answers import Answer
from .masked import Pattern
from .polarity import either, nearer, opposite
from .sql import rows_by_id
from .subject import Search, Target
from .where import matching

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa


class Rows(Protocol):
    """Gives the rows of items at their distances."""

    def __call__(
        self,
        connection: duckdb.DuckDBPyConnection,
        target: Target,
        items: NDArray[np.int64],
        distances: NDArray[np.int32],
    ) -> pa.Table: ...


def search_codes(search: Search, rows_of: Rows) -> Answer:
    """The nearest codes of a target, each compared with the catalogue, and those around the best with what was written.

    Raises:
        CodesChanged: if those are not in the catalogue as they were written.
    """
    path, connection, infos = search.path, search.connection, search.target.infos
    answer, items = _by_index(search, rows_of, [index.get(path, info, connection) for info in infos])
    # The hits come from the index, their codes from the catalogue: if they disagree, one of them is damaged.
    distances, polarities = _recounted(answer.table, search)
    apart = np.flatnonzero(distances != answer.table.column("distance").to_numpy())
    must_be_as_written(connection, search.target, [*items[:1], *items[apart[:1]]])
    if len(apart):
        opened = [index.build(path, info, connection) for info in infos]
        answer, items = _by_index(search, rows_of, opened)
        must_be_as_written(connection, search.target, items[:1])
        _, polarities = _recounted(answer.table, search)
    return _with_polarities(search, answer, polarities) if search.both else answer


def must_be_as_written(
    connection: duckdb.DuckDBPyConnection, target: Target, items: Iterable[np.int64]
) -> None:
    """Compare the codes around some items with the digests of what was written.

    Raises:
        CodesChanged: if they are others.
    """
    sets = [info.code_set_id for info in target.infos]
    for item in dict.fromkeys(int(one) for one in items):
        if digests.codes_changed(connection, sets, item):
            raise CodesChanged(
                f"codes of {target.view} of {target.model} at {target.site} around item {item}"
            )


def must_be_stored(
    connection: duckdb.DuckDBPyConnection,
    target: Target,
    code: codes.Codes,
    distances: NDArray[np.int32],
    items: NDArray[np.int64],
) -> None:
    """Compare the neighbours of a code, as an engine found them, with the catalogue.

    Raises:
        CodesChanged: if the catalogue's codes are not those that were written.
        IndexDamaged: if they are, and the index holds others.
    """
    sets = ", ".join(str(info.code_set_id) for info in target.infos)
    rows = rows_by_id(
        connection,
        "SELECT item, code FROM code_row WHERE rowid IN "
        f"(SELECT rowid FROM code_row WHERE code_set_id IN ({sets}) AND item",
        items.tolist(),
        ")",
    )
    stored = {item: int(codes.hamming(code, np.frombuffer(packed, np.uint8))) for item, packed in rows}
    apart = [item for item, distance in zip(items, distances, strict=True) if stored.get(item) != distance]
    must_be_as_written(connection, target, [items[0], *apart[:1]])
    if apart:
        raise IndexDamaged(f"{target.view} of {target.model} at {target.site}")


def _by_index(
    search: Search, rows_of: Rows, opened: Sequence[index.CodeIndex]
) -> tuple[Answer, NDArray[np.int64]]:
    """The answer, and its items."""
    target, code, k = search.target, search.code, search.k
    recalls: list[float] = []
    parts = []
    searched = 0
    kept = None if search.where is None else matching(search.path, target, opened, search.where)
    for i, (info, codes_of_set) in enumerate(zip(target.infos, opened, strict=True)):
        rows = None if kept is None else kept[i]
        searched += codes_of_set.n if rows is None else len(rows)
        if isinstance(code, Pattern):
            parts.append(masked.search(codes_of_set, code, k, rows, search.both, engine=search.engine))
        elif search.approximate:
            from ...catalog.approximate import approximate_index

            distances, items, recall = approximate_index(search.path, info, codes_of_set).search(code, k)
            recalls.append(recall)
            parts.append((distances, items))
        else:
            sought = [code, opposite(code, target.width)] if search.both else [code]
            parts.append(codes_of_set.search(np.stack(sought), k, rows, search.engine))
    distances, items = engines.merge(parts, k)
    if search.both and not isinstance(code, Pattern):
        distances, items = either(distances, items, k)
    table = rows_of(search.connection, target, items[0], distances[0])
    return Answer(target, table, searched, min(recalls) if recalls else None), items[0]


def _recounted(table: pa.Table, search: Search) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Distances of an answer's stored codes from the query, in the nearer polarity if both count, and which that is."""
    code, width = search.code, search.target.width
    stored = code_matrix(table.column("code"), codes.n_bytes(width))
    if isinstance(code, Pattern):
        distances, size = masked.differing(stored, code).astype(np.int64), int(code.n_dims)
    else:
        distances, size = codes.hamming(code, stored), width
    near, polarities = nearer(distances, size)
    return (near if search.both else distances), polarities


def _with_polarities(search: Search, answer: Answer, polarities: NDArray[np.int32]) -> Answer:
    import pyarrow as pa

    table = answer.table.add_column(2, "polarity", pa.array(polarities))
    raises = answer.target.subject.raises(search.connection, answer.target, table, polarities)
    return replace(answer, table=table, raises=raises, turned=True)
