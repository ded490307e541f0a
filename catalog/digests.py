"""Digests of rows: what was written, so that a later change of any row is seen.

The rows of a table are divided into groups: those of one run or code set, of 1,024 ids side by side, or both (`columns`).
`digest_row` keeps of each group how many rows were written, and the sum of their hashes modulo 2**64: a sum has no order,
grows with each shard, and can be subtracted from. It tells damage, a lost or a doubled row; it is no protection against
somebody who computes it anew.

The hash of a row is defined by the values alone, so that it is the same whatever wrote or reads them. All in whole
numbers of 64 bits without a sign, modulo 2**64; `k_i` is output i of splitmix64 from state 0, made odd:

- a whole number, a truth value or a time (microseconds) is its two's complement; a float its bits as a double, with one
  zero and one NaN; a text (UTF-8) or BLOB of L bytes is L * k_0 + the sum of w_i * k_(i+1) over its words w_i of four
  bytes (little-endian, zeros behind the end), or, of more than 4,096 bytes, its BLAKE2b of eight bytes;
- of each value v that is not NULL, (v ^ v >> 32) * a + b is added up, where `a` (made odd) and `b` are BLAKE2b of sixteen
  bytes of its column's name. A column that is added later is NULL in the rows that are there, and changes no digest;
- that sum goes through the last step of splitmix64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import parts
from .part import BIGINT, BLOB, BOOLEAN, DOUBLE, INTEGER, REAL, TIMESTAMP, VARCHAR, Table
from .shared import ROW_GROUP

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    from sqlalchemy.orm import Session

Group = tuple[str, int]
"""Whose rows they are, as text (a run, a code set, a tokenizer; empty if that is all of a table), and the number of their
ids: id >> BLOCK_BITS, else 0."""
Digests = dict[Group, tuple[int, int]]
"""Of each group, how many rows, and the sum of their hashes from 0 to 2**64 - 1."""
Words = NDArray[np.uint64]

BLOCK_BITS = 10
"""So many ids are read again in a few milliseconds, and their digest takes a thousandth of the room of their codes."""
_LONG = 4096
_VIEW = "digests_to_keep"
_MASK = (1 << 64) - 1


# ---- the hash -----------------------------------------------------------------------------------


def _mix(x: Words) -> Words:
    """The last step of splitmix64, in place."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


@cache
def _multipliers() -> Words:
    counter = np.arange(1, _LONG // 4 + 2, dtype=np.uint64)
    return _mix(counter * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)


@cache
def _keys(name: str) -> tuple[np.uint64, np.uint64]:
    both = hashlib.blake2b(name.encode(), digest_size=16).digest()
    return np.uint64(int.from_bytes(both[:8], "little") | 1), np.uint64(int.from_bytes(both[8:], "little"))


def _of_bytes(array: pa.Array) -> Words:
    """The hashes of binary values; of NULL any."""
    _, offsets, buffer = array.buffers()
    wide = str(array.type).startswith("large")
    edges = np.frombuffer(offsets, np.int64 if wide else np.int32)[
        array.offset : array.offset + len(array) + 1
    ]
    flat = np.frombuffer(buffer, np.uint8) if buffer is not None else np.empty(0, np.uint8)
    lengths = np.diff(edges)
    if len(array) and lengths[0] <= _LONG and (lengths == lengths[0]).all():
        return _of_matrix(flat[edges[0] : edges[-1]].reshape(len(array), lengths[0]))
    found = np.zeros(len(array), np.uint64)
    for length in np.unique(lengths).tolist():
        rows = np.flatnonzero(lengths == length)
        if length <= _LONG:
            found[rows] = _of_matrix(flat[edges[rows, None] + np.arange(length)])
            continue
        for row in rows.tolist():
            one = hashlib.blake2b(flat[edges[row] : edges[row + 1]].data, digest_size=8).digest()
            found[row] = int.from_bytes(one, "little")
    return found


def _of_matrix(values: NDArray[np.uint8]) -> Words:
    """The hashes of values of one length, (n, bytes)."""
    n, length = values.shape
    if not length:
        return np.zeros(n, np.uint64)
    k = _multipliers()
    if length % 4:
        values = np.pad(values, ((0, 0), (0, -length % 4)))
    words = np.ascontiguousarray(values).view("<u4")
    found: Words = np.einsum("ij,j->i", words, k[1 : words.shape[1] + 1])
    found += np.uint64(length * int(k[0]) & _MASK)
    return found


def checksum(data: NDArray[np.uint8]) -> int:
    """A hash of up to 4 MB of a file, uint8 (bytes,): of its pages of 4,096 bytes as BLOBs, each times its own multiplier."""
    whole = len(data) // _LONG * _LONG
    pages = [_of_matrix(data[:whole].reshape(-1, _LONG)), _of_matrix(data[None, whole:])]
    found = np.concatenate(pages)
    found ^= found >> np.uint64(32)
    return int(_mix((found * _multipliers()[: len(found)]).sum(keepdims=True))[0])


def _values(column: pa.ChunkedArray, kind: str) -> Words:
    """What stands for each value of a column; of NULL any."""
    import pyarrow as pa

    if kind in (VARCHAR, BLOB):
        parts_of = []
        for chunk in column.chunks:
            if kind == VARCHAR:
                # Most texts stand in many rows: each is hashed once.
                coded = chunk.dictionary_encode()
                parts_of.append(_of_bytes(coded.dictionary)[coded.indices.fill_null(0).to_numpy()])
            else:
                parts_of.append(_of_bytes(chunk))
        return np.concatenate(parts_of) if parts_of else np.empty(0, np.uint64)
    if kind in (REAL, DOUBLE):
        floats = column.fill_null(0.0).to_numpy().astype(np.float64) + 0.0
        if np.isnan(floats).any():
            floats[np.isnan(floats)] = np.nan
        return floats.view(np.uint64)
    whole = column.cast(pa.int64() if kind != BOOLEAN else pa.int8()).fill_null(0).to_numpy()
    return whole.astype(np.int64).view(np.uint64)


def _arrow(kind: str) -> pa.DataType:
    import pyarrow as pa

    return {
        VARCHAR: pa.string(), INTEGER: pa.int32(), BIGINT: pa.int64(), DOUBLE: pa.float64(), REAL: pa.float32(),
        BLOB: pa.binary(), BOOLEAN: pa.bool_(), TIMESTAMP: pa.timestamp("us"),
    }[kind]  # fmt: skip


def _hashes(table: Table, data: pa.Table) -> Words:
    total = np.zeros(data.num_rows, np.uint64)
    for column in covered(table):
        given, kind = data.column(column.name), parts.kind(column)
        if given.null_count == len(given):
            continue
        # As the file will hold it: a list of whole numbers may be given for floats.
        if not (kind == BLOB or given.type == _arrow(kind)):
            given = given.cast(_arrow(kind), safe=False)
        values = _values(given, kind)
        a, b = _keys(column.name)
        term = values >> np.uint64(32)
        term ^= values
        term *= a
        term += b
        if given.null_count:
            term[given.is_null().to_numpy()] = 0
        total += term
    return _mix(total)


# ---- groups -------------------------------------------------------------------------------------


def covered(table: Table) -> list[parts.Column]:
    """The columns of a table that stay as they were written; none for a table that keeps no digests."""
    return [column for column in table.columns if column.name not in table.changing]


def tables() -> list[Table]:
    """The tables whose rows have digests."""
    return [table for table in parts.tables().values() if covered(table)]


def columns(table: Table) -> tuple[str, str]:
    """The columns by which a table's rows are in groups: of their owner, and of their ids; either may be empty."""
    if table.group:
        owner, block = table.group
        return owner, block
    first = table.columns[0]
    if table.column("run_id") is not None:
        return "run_id", ""
    if parts.kind(first) in (INTEGER, BIGINT):
        return "", first.name
    return (first.name if parts.kind(first) == VARCHAR else ""), ""


def of(table: Table, data: pa.Table) -> Digests:
    """The digests of rows of a table, by group.

    Args:
        data: at least its covered columns, under their names.
    """
    n = data.num_rows
    if not n:
        return {}
    hashes = _hashes(table, data)
    owner, block = columns(table)
    owners: list[str] = [""]
    owned = blocks = np.zeros(n, np.int64)
    if owner:
        coded = data.column(owner).combine_chunks().dictionary_encode()
        owners = [str(one) for one in coded.dictionary.to_pylist()]
        owned = coded.indices.to_numpy().astype(np.int64)
    if block:
        blocks = data.column(block).to_numpy().astype(np.int64) >> BLOCK_BITS
    starts = _runs(owned, blocks)
    if len(starts) > 64 and len(starts) * 16 > n:
        order = np.lexsort((blocks, owned))
        owned, blocks, hashes = owned[order], blocks[order], hashes[order]
        starts = _runs(owned, blocks)
    found: Digests = {}
    counts = np.diff(starts, append=n).tolist()
    sums = np.add.reduceat(hashes, starts).tolist()
    places = zip(owned[starts].tolist(), blocks[starts].tolist(), counts, sums, strict=True)
    for place, number, count, total in places:
        _add(found, (owners[place], number), count, total)
    return found


def _runs(owned: NDArray[np.int64], blocks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where another group begins, the first row included."""
    changed = (np.diff(owned) != 0) | (np.diff(blocks) != 0)
    return np.concatenate([[0], np.flatnonzero(changed) + 1])


def _add(digests: Digests, group: Group, n: int, total: int) -> None:
    had = digests.get(group, (0, 0))
    digests[group] = had[0] + n, (had[1] + total) & _MASK


# ---- what was written ---------------------------------------------------------------------------


def watch(session: Session) -> None:
    """Note every row that the session adds, changes or deletes as an object."""
    from sqlalchemy import event

    event.listen(session, "after_flush", _flushed)


def _flushed(session: Session, _: Any) -> None:
    for sign, objects in ((1, session.new), (1, session.dirty), (-1, session.dirty), (-1, session.deleted)):
        for one in objects:
            _note_object(session, one, sign)


def _note_object(session: Session, one: Any, sign: int) -> None:
    import pyarrow as pa
    from sqlalchemy import inspect

    table, values = parts.tables()[one.__table__.name], inspect(one).attrs
    row = {}
    for column in covered(table):
        before = values[column.name].history.deleted if sign < 0 else ()
        row[column.name] = pa.array(
            [before[0] if before else getattr(one, column.name)], _arrow(parts.kind(column))
        )
    if row:
        _note(session, table.name, of(table, pa.table(row)), sign)


def record(session: Session, name: str, data: pa.Table) -> None:
    """Note rows that are inserted into the table `name`; `store.writing` keeps that with them when it commits."""
    table = parts.tables()[name]
    if covered(table):
        _note(session, name, of(table, data))


def _note(session: Session, name: str, digests: Digests, sign: int = 1) -> None:
    noted = session.info.setdefault("digests", {}).setdefault(name, {})
    for group, (n, total) in digests.items():
        _add(noted, group, sign * n, sign * total)


def keep(session: Session) -> None:
    """Insert what was noted since the session began."""
    import pyarrow as pa

    session.flush()
    rows = [
        (name, owner, block, n, total - (total >> 63 << 64))
        for name, digests in session.info.pop("digests", {}).items()
        for (owner, block), (n, total) in digests.items()
        if n or total
    ]
    if rows:
        kinds = {
            column.name: _arrow(parts.kind(column)) for column in parts.tables()["digest_row"].columns[1:]
        }
        columns = zip(*rows, strict=True)
        data = {name: pa.array(column, kinds[name]) for name, column in zip(kinds, columns, strict=True)}
        raw = _raw(session)
        raw.register(_VIEW, pa.table(data))
        last = "(SELECT coalesce(max(digest_id), 0) FROM digest_row)"
        raw.execute(f"INSERT INTO digest_row SELECT {last} + row_number() OVER (), * FROM {_VIEW}")
        raw.unregister(_VIEW)


def cover(session: Session) -> None:
    """Note the rows of tables that have no digest yet, as they are: those of a catalogue from before there were any."""
    raw = _raw(session)
    for table in tables():
        kept = raw.execute("SELECT 1 FROM digest_row WHERE table_name = ? LIMIT 1", [table.name]).fetchall()
        if not kept:
            for digests in stream(raw, table):
                _note(session, table.name, digests)


def forget(session: Session, name: str, condition: str, gone: str) -> None:
    """Note that the rows of a table for which `condition` holds will be deleted.

    Args:
        gone: a condition on `digest_row` for groups whose owner goes, whether they still have all their rows or not.
    """
    table = parts.tables()[name]
    if not covered(table):
        return
    raw = _raw(session)
    group = _group_sql(table)
    left = f"(SELECT DISTINCT {group} FROM {name} WHERE ({condition}) IS NOT TRUE)"
    losing = f"(SELECT DISTINCT {group} FROM {name} WHERE {condition})"
    for digests in stream(raw, table, f"({condition}) AND ({group}) IN {left}"):
        _note(session, name, digests, -1)
    raw.execute(
        f"DELETE FROM digest_row WHERE table_name = '{name}' AND (owner, block) NOT IN {left} "
        f"AND ((owner, block) IN {losing} OR ({gone}))"
    )


def _raw(session: Session) -> Any:
    """DuckDB's connection under a session, in its transaction."""
    return session.connection().connection.dbapi_connection


# ---- what is there ------------------------------------------------------------------------------


def _group_sql(table: Table) -> str:
    owner, block = columns(table)
    return f"{f'{owner}::VARCHAR' if owner else repr('')}, {f'{block} >> {BLOCK_BITS}' if block else '0'}"


def stream(connection: Any, table: Table, condition: str = "true") -> Iterator[Digests]:
    """The digests of what a table holds, of a row group at a time."""
    import pyarrow as pa

    names = ", ".join(column.name for column in covered(table))
    reader = connection.execute(f"SELECT {names} FROM {table.name} WHERE {condition}").to_arrow_reader(
        ROW_GROUP
    )
    for batch in reader:
        yield of(table, pa.Table.from_batches([batch]))


def stored(connection: duckdb.DuckDBPyConnection, name: str, condition: str = "true") -> Digests:
    """The digests that were kept of a table's groups."""
    rows = connection.execute(
        "SELECT owner, block, sum(n), sum(hash) FROM digest_row "
        f"WHERE table_name = '{name}' AND {condition} GROUP BY ALL"
    ).fetchall()
    return {(owner, block): (int(n), int(total) & _MASK) for owner, block, n, total in rows}


def changed(connection: duckdb.DuckDBPyConnection, table: Table) -> tuple[int, list[Group] | None]:
    """How many rows of a table were looked at, and which groups are not as they were written.

    None in place of groups if there are rows and no digests: they are from before those were kept.
    """
    written = stored(connection, table.name)
    there: Digests = {}
    for digests in stream(connection, table):
        for group, (n, total) in digests.items():
            _add(there, group, n, total)
    looked = sum(n for n, _ in there.values())
    if looked and not written:
        return looked, None
    wrong = [
        group for group in {**written, **there} if written.get(group, (0, 0)) != there.get(group, (0, 0))
    ]
    return looked, sorted(wrong)


def codes_changed(connection: duckdb.DuckDBPyConnection, code_sets: Sequence[int], item: int) -> bool:
    """Whether the codes around an item, in some code sets, are not as they were written. A few milliseconds."""
    table, block = parts.tables()["code_row"], item >> BLOCK_BITS
    sets = ", ".join(map(str, code_sets))
    owners = ", ".join(f"'{one}'" for one in code_sets)
    rows = connection.execute(
        f"SELECT owner, n, hash FROM digest_row WHERE table_name = 'code_row' AND block = {block} AND owner IN ({owners})"
    ).fetchall()
    if not rows:
        # From before digests were kept: where there are others, `verify` says that these are missing.
        return False
    written: Digests = {}
    for owner, n, total in rows:
        _add(written, (owner, block), n, total)
    first = block << BLOCK_BITS
    among = f"code_set_id IN ({sets}) AND item BETWEEN {first} AND {first + (1 << BLOCK_BITS) - 1}"
    # Not `stream`: a reader of batches takes twice as long as a table of so few rows.
    there = connection.execute(
        f"SELECT code_set_id, item, norm, code FROM code_row WHERE {among}"
    ).to_arrow_table()
    return written != of(table, there)
