"""The search of code sets: by their indexes, by a code or a feature's pattern, in either polarity, filtered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ...catalog import codes, engines, index
from ...catalog.bulk import code_matrix
from . import masked
from .answers import Answer
from .masked import Pattern
from .polarity import either, nearer, opposite
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
    """The nearest codes of a target, each compared with the catalogue."""
    path, connection, infos = search.path, search.connection, search.target.infos
    answer = _by_index(search, rows_of, [index.get(path, info, connection) for info in infos])
    # The hits come from the index, their codes from the catalogue: if they disagree, the files are damaged.
    distances, polarities = _recounted(answer.table, search)
    if not np.array_equal(distances, answer.table.column("distance").to_numpy()):
        answer = _by_index(search, rows_of, [index.build(path, info, connection) for info in infos])
        _, polarities = _recounted(answer.table, search)
    return _with_polarities(search, answer, polarities) if search.both else answer


def _by_index(search: Search, rows_of: Rows, opened: Sequence[index.CodeIndex]) -> Answer:
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
    return Answer(target, table, searched, min(recalls) if recalls else None)


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
