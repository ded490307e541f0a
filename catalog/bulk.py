"""Bulk rows, as Arrow: codes, states, documents, tokens, statistics. The only module that moves them.

A shard's rows are inserted inside the caller's transaction, together with the record that the shard is done.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .codes import Codes
from .errors import InvalidInput
from .ids import PLACE_BITS
from .shared import ROW_GROUP

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    from sqlalchemy import Column, Table
    from sqlalchemy.orm import Session


def binary_array(codes: Codes) -> pa.Array:
    """`codes`, shape (n, bytes), as an Arrow binary array over the same memory."""
    import pyarrow as pa

    n, size = codes.shape
    values = pa.py_buffer(np.ascontiguousarray(codes))
    if n * size > np.iinfo(np.int32).max:
        offsets = np.arange(n + 1, dtype=np.int64) * size
        return pa.Array.from_buffers(pa.large_binary(), n, [None, pa.py_buffer(offsets), values])
    offsets32 = (np.arange(n + 1, dtype=np.int64) * size).astype(np.int32)
    return pa.Array.from_buffers(pa.binary(), n, [None, pa.py_buffer(offsets32), values])


def code_matrix(column: pa.ChunkedArray, size: int) -> Codes:
    """An Arrow column of codes of `size` bytes each as uint8 of shape (n, size).

    Raises:
        InvalidInput: if a code has another length.
    """
    parts = []
    for chunk in column.chunks:
        if not len(chunk):
            continue
        wide = str(chunk.type).startswith("large")
        _, offsets_buffer, values = chunk.buffers()
        offsets = np.frombuffer(offsets_buffer, dtype=np.int64 if wide else np.int32)
        offsets = offsets[chunk.offset : chunk.offset + len(chunk) + 1]
        if (np.diff(offsets) != size).any():
            raise InvalidInput(f"a stored code is not {size} bytes long", "run `signarium db verify`")
        flat = np.frombuffer(values, dtype=np.uint8)
        parts.append(flat[offsets[0] : offsets[-1]].reshape(len(chunk), size))
    return np.concatenate(parts) if parts else np.empty((0, size), np.uint8)


def insert(session: Session, table: Table, columns: Mapping[str, Any]) -> int:
    """Insert equally long columns (numpy arrays, lists or Arrow arrays) into a bulk table; rows inserted.

    Raises:
        InvalidInput: if the columns are not those of the table.
    """
    import pyarrow as pa
    from duckdb_sqlalchemy import insert_from_arrow

    if set(columns) != set(table.c.keys()):
        raise InvalidInput(f"{table.name} has columns {list(table.c.keys())}, got {sorted(columns)}")
    data = pa.table(dict(columns))
    if data.num_rows:
        insert_from_arrow(session.connection(), table, data)
        _record(session, table.name, data)
    return int(data.num_rows)


def _record(session: Session, name: str, data: pa.Table) -> None:
    from . import digests

    digests.record(session, name, data)


@dataclass(frozen=True)
class Figure:
    """One measurement: `value` of `metric` about `subject`, under `control` (`none`: the figure itself)."""

    site_id: str
    subject: str
    subject_id: str
    metric: str
    control: str
    split: str
    value: float
    n: int
    seed: int | None = None
    std_error: float | None = None


def insert_figures(session: Session, run_id: str, figures: Sequence[Figure]) -> int:
    """Insert measurements of a run; rows inserted. NaN and infinities are no figures and are left out."""
    import pyarrow as pa

    from . import schema

    known = [one for one in figures if math.isfinite(one.value)]
    kinds = {"seed": pa.int64(), "std_error": pa.float64(), "value": pa.float64(), "n": pa.int64()}
    return insert(
        session,
        schema.measurement_row,
        {
            "run_id": pa.array([run_id] * len(known), pa.string()),
            **{
                one.name: pa.array(
                    [getattr(row, one.name) for row in known], kinds.get(one.name, pa.string())
                )
                for one in fields(Figure)
            },
        },
    )


def present(session: Session, column: Column[int], keys: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of `keys` stand in a bulk table's `column` already; same shape as `keys`.

    Keys of one text lie side by side, so each text is one range that DuckDB finds by its zone maps.
    """
    from sqlalchemy import select

    there: list[int] = []
    for base in np.unique(keys >> PLACE_BITS):
        own = keys[keys >> PLACE_BITS == base]
        there += session.scalars(select(column).where(column.between(int(own.min()), int(own.max()))))
    return np.isin(keys, np.array(there, dtype=np.int64))


def code_columns(
    code_set_id: int, items: NDArray[np.int64], norms: NDArray[np.float32], codes: Codes
) -> pa.Table:
    """Rows of `code_row` for one code set: items (n,), norms (n,), codes (n, bytes)."""
    import pyarrow as pa

    n = len(items)
    if norms.shape != (n,) or codes.ndim != 2 or len(codes) != n:
        raise InvalidInput(f"{n} items, norms {norms.shape} and codes {codes.shape} do not belong together")
    return pa.table(
        {
            "code_set_id": np.full(n, code_set_id, dtype=np.int64),
            "item": items,
            "norm": norms.astype(np.float32, copy=False),
            "code": binary_array(codes),
        }
    )


def insert_codes(session: Session, parts: Sequence[pa.Table]) -> int:
    """Insert what `code_columns` made, one statement for all code sets of a shard; rows inserted."""
    import pyarrow as pa
    from duckdb_sqlalchemy import insert_from_arrow

    from . import schema

    data = pa.concat_tables(parts)
    if data.num_rows:
        insert_from_arrow(session.connection(), schema.code_row, data)
        _record(session, "code_row", data)
    return int(data.num_rows)


def read_range(
    connection: duckdb.DuckDBPyConnection, code_set_id: int, size: int, first: int, last: int
) -> tuple[NDArray[np.int64], Codes]:
    """Items (m,) from `first` to `last` of a code set in ascending order, and their codes (m, size).

    Raises:
        InvalidInput: if a code is not `size` bytes long.
    """
    table = connection.execute(
        "SELECT item, code FROM code_row WHERE code_set_id = ? AND item BETWEEN ? AND ?",
        [code_set_id, first, last],
    ).to_arrow_table()
    items, codes = table.column("item").to_numpy(), code_matrix(table.column("code"), size)
    if len(items) > 1 and (np.diff(items) <= 0).any():
        order = np.argsort(items, kind="stable")
        items, codes = items[order], codes[order]
    return items, codes


def stream_items(connection: duckdb.DuckDBPyConnection, code_set_id: int) -> Iterator[NDArray[np.int64]]:
    """The items of a code set as they lie in the file, at most a row group at a time."""
    reader = connection.execute(
        "SELECT item FROM code_row WHERE code_set_id = ?", [code_set_id]
    ).to_arrow_reader(ROW_GROUP)
    for batch in reader:
        yield batch.column(0).to_numpy()


def read_codes(
    connection: duckdb.DuckDBPyConnection, code_set_id: int, size: int
) -> tuple[NDArray[np.int64], Codes]:
    """All items (n,) of a code set in ascending order, and their codes (n, size), in memory."""
    return read_range(connection, code_set_id, size, 0, np.iinfo(np.int64).max)
