"""Digests of rows: the same whatever reads them, of any order, in sums."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
import small
from hypothesis import given
from hypothesis import strategies as st

from signarium.catalog import bulk, digests, parts, schema, store
from signarium.catalog.part import (
    BIGINT,
    BLOB,
    BOOLEAN,
    DOUBLE,
    INTEGER,
    REAL,
    TIMESTAMP,
    VARCHAR,
    Column,
    table,
)

M = 1 << 64
EVERY = table(
    "every", "One of each.", "all", optional="text, whole, float, short, blob, truth, time",
    place=BIGINT, text=VARCHAR, whole=INTEGER, float=DOUBLE, short=REAL, blob=BLOB, truth=BOOLEAN, time=TIMESTAMP,
)  # fmt: skip
LATER = EVERY._replace(columns=(*EVERY.columns, Column("later", VARCHAR, optional=True)))
TYPES = {
    "place": pa.int64(), "text": pa.string(), "whole": pa.int32(), "float": pa.float64(), "short": pa.float32(),
    "blob": pa.binary(), "truth": pa.bool_(), "time": pa.timestamp("us"),
}  # fmt: skip


# ---- as the docstring defines it, a value at a time --------------------------------------------------


def mix(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % M
    x = (x ^ x >> 27) * 0x94D049BB133111EB % M
    return x ^ x >> 31


def multiplier(i: int) -> int:
    return mix((i + 1) * 0x9E3779B97F4A7C15 % M) | 1


def word(value: Any) -> int:
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        if len(value) > 4096:
            return int.from_bytes(hashlib.blake2b(value, digest_size=8).digest(), "little")
        words = struct.unpack(f"<{-(-len(value) // 4)}I", value + bytes(-len(value) % 4))
        return (len(value) * multiplier(0) + sum(w * multiplier(i + 1) for i, w in enumerate(words))) % M
    if isinstance(value, float):
        value = float("nan") if value != value else value + 0.0
        return int(struct.unpack("<Q", struct.pack("<d", value))[0])
    if isinstance(value, datetime):
        value = (value - datetime(1970, 1, 1)) // timedelta(microseconds=1)
    return int(value) % M


def hashed(row: dict[str, Any]) -> int:
    total = 0
    for name, value in row.items():
        if value is not None:
            key = hashlib.blake2b(name.encode(), digest_size=16).digest()
            a, b = int.from_bytes(key[:8], "little") | 1, int.from_bytes(key[8:], "little")
            v = word(value)
            total += (v ^ v >> 32) * a + b
    return mix(total % M)


def short(value: float) -> float:
    return float(np.float32(value))


ROWS: list[dict[str, Any]] = [
    dict.fromkeys(TYPES) | {"place": 0},
    {"place": 1, "text": "", "whole": 0, "float": 0.0, "short": 0.0, "blob": b"", "truth": False, "time": datetime(1970, 1, 1)},
    {"place": 2, "text": "é", "whole": -1, "float": -0.0, "short": -0.0, "blob": b"\0", "truth": True, "time": small.WHEN},
    {"place": 1023, "text": "a" * 4096, "float": float("nan"), "short": short(0.1), "blob": bytes(range(256)) * 16},
    {"place": 1024, "text": "a" * 4097, "float": float("inf"), "short": float("-inf"), "blob": bytes(5000)},
    {"place": -1, "text": "abcd", "whole": 2**31 - 1, "float": 5e-324, "short": short(1e30), "blob": bytes(72)},
    {"place": 2**62, "text": "abc", "whole": -(2**31), "float": 1e308, "blob": bytes(73), "time": datetime(1, 1, 1, 0, 0, 0, 7)},
]  # fmt: skip


def arrow(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.table({name: pa.array([row.get(name) for row in rows], kind) for name, kind in TYPES.items()})


def expected(rows: list[dict[str, Any]]) -> digests.Digests:
    found: digests.Digests = {}
    for row in rows:
        n, total = found.get(("", row["place"] >> 10), (0, 0))
        found["", row["place"] >> 10] = n + 1, (total + hashed(row)) % M
    return found


def test_the_hash_is_as_it_is_written_down() -> None:
    assert digests.of(EVERY, arrow(ROWS)) == expected(ROWS)
    # In a file for ever: a change of these numbers is a change of every catalogue.
    assert [hashed(row) for row in ROWS[:3]] == HASHED
    assert digests.of(
        LATER, arrow(ROWS).append_column("later", pa.nulls(len(ROWS), pa.string()))
    ) == expected(ROWS)


HASHED = [11001092955619112890, 4866088641363739418, 9636935326579510737]


def test_what_duckdb_gives_back_has_the_same_digest(tmp_path: Path) -> None:
    """Whatever it does to zeros, NaN and long texts between writing and reading."""
    kinds = ", ".join(f'"{one.name}" {one.kind}' for one in EVERY.columns)
    data = arrow(ROWS * 50)
    with duckdb.connect(str(tmp_path / "x.duckdb")) as connection:
        connection.execute(f"CREATE TABLE every ({kinds})")
        connection.execute("INSERT INTO every SELECT * FROM data")
    assert data.num_rows == 350
    with duckdb.connect(str(tmp_path / "x.duckdb"), read_only=True) as connection:
        found = merged(digests.stream(connection, EVERY))
    assert found == digests.of(EVERY, data)


def merged(many: Iterator[digests.Digests]) -> digests.Digests:
    found: digests.Digests = {}
    for one in many:
        for group, (n, total) in one.items():
            had = found.get(group, (0, 0))
            found[group] = had[0] + n, (had[1] + total) % M
    return found


@given(st.integers(0, 2**32), st.integers(1, 300), st.integers(1, 9))
def test_sums_have_no_order_and_no_shards(seed: int, n: int, shards: int) -> None:
    rng = np.random.default_rng(seed)
    data = bulk.code_columns(
        5, rng.permutation(5000)[:n], rng.random(n, np.float32), rng.integers(0, 256, (n, 10), dtype=np.uint8)
    )
    code_row = parts.tables()["code_row"]
    whole = digests.of(code_row, data)
    assert set(whole) == {("5", one) for one in np.unique(data["item"].to_numpy() >> 10).tolist()}
    edges = np.linspace(0, n, shards + 1).astype(int)
    some = (data.slice(a, b - a) for a, b in pairwise(edges))
    assert merged(digests.of(code_row, one) for one in some) == whole
    assert digests.of(code_row, data.take(rng.permutation(n))) == whole
    doubled = digests.of(code_row, pa.concat_tables([data, data.slice(0, 1)]))
    assert doubled != whole


def test_flipped_bits_are_seen_wherever_they_are() -> None:
    """Also two of them that stand at the end of words, where products lose what overflows."""
    codes = np.zeros((1, 72), np.uint8)

    def digest() -> digests.Digests:
        one = bulk.code_columns(1, np.array([3]), np.ones(1, np.float32), codes)
        return digests.of(parts.tables()["code_row"], one)

    seen = {digest()[("1", 0)]}
    for first in range(0, 576, 7):
        for second in (first, 56, 63, 575):
            before = codes.copy()
            for bit in {first, second}:
                codes[0, bit // 8] ^= 128 >> bit % 8
            seen.add(digest()[("1", 0)])
            codes = before
    pairs = {frozenset({a, b}) for a in range(0, 576, 7) for b in (a, 56, 63, 575)}
    assert len(seen) == 1 + len(pairs)


# ---- in a catalogue -------------------------------------------------------------------------------


def wrong(path: Path) -> dict[str, list[digests.Group] | None]:
    with store.reading(path) as connection:
        found = {one.name: digests.changed(connection, one)[1] for one in digests.tables()}
    return {name: groups for name, groups in found.items() if groups != []}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return small.filled(tmp_path / "c.duckdb").path


def test_every_table_is_covered(path: Path) -> None:
    assert wrong(path) == {}
    names = {one.name for one in digests.tables()}
    assert set(parts.tables()) - names == {"surface", "digest_row"}


def test_rows_as_objects(path: Path) -> None:
    """Added, changed and deleted."""
    with store.writing(path) as session:
        session.get_one(schema.Model, "m0").revision = "abc"
        session.get_one(schema.Run, "types").failure = "none"
        session.add(small.shard("types", 4, start=60))
        session.delete(session.get_one(schema.Shard, ("states", 0)))
    assert wrong(path) == {}
    with store.writing(path) as session, pytest.raises(RuntimeError):
        session.add(small.shard("types", 4, start=64))
        session.flush()
        raise RuntimeError
    assert wrong(path) == {}


def test_part_of_a_group_is_taken_out(path: Path) -> None:
    """What goes is subtracted, so that earlier damage is still seen; a group goes with its last row."""
    with duckdb.connect(str(path)) as connection:
        connection.execute("UPDATE token_row SET token = 'x' WHERE token_id = 3")
    with store.writing(path) as session:
        for name, condition in (("token_row", "token_id > 9"), ("state_row", "true")):
            digests.forget(session, name, condition, "false")
            session.connection().exec_driver_sql(f"DELETE FROM {name} WHERE {condition}")
    assert wrong(path) == {"token_row": [("t", 0)]}
    with store.reading(path) as connection:
        assert digests.stored(connection, "state_row") == {}
        assert digests.stored(connection, "token_row")[("t", 0)][0] == 10


def test_around_an_item(path: Path) -> None:
    made = small.filled(path)
    sets = [made.sets["type", "zero"], made.sets["type", "mean"]]

    def changed(item: int) -> bool:
        with store.reading(path) as connection:
            return digests.codes_changed(connection, sets, item)

    assert not changed(7)
    with duckdb.connect(str(path)) as connection:
        connection.execute("DELETE FROM code_row WHERE item = 8 AND code_set_id = ?", [sets[1]])
    assert changed(7) and not changed(2000)


def test_a_checksum_sees_any_byte() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 4095, 4096, 9000):
        data = rng.integers(0, 256, n, dtype=np.uint8)
        seen = {
            digests.checksum(data),
            digests.checksum(data[:-1]),
            digests.checksum(np.append(data, 0).astype(np.uint8)),
        }
        for place in {0, n // 2, n - 1}:
            data[place] ^= 128
            seen.add(digests.checksum(data))
            data[place] ^= 128
        assert len(seen) == 3 + len({0, n // 2, n - 1})
