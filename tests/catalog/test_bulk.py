"""Bulk rows: what goes in comes out, and the file is not much larger than the bits."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import small
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from signarium.catalog import bulk, schema, store
from signarium.catalog.errors import InvalidInput
from signarium.catalog.ids import PLACE_BITS


def random_codes(n: int, size: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, size), dtype=np.uint8)


@given(st.lists(st.integers(0, 9), max_size=4), st.integers(1, 20), st.integers(0, 5), st.integers(0, 5))
def test_arrow_round_trip(chunks: list[int], size: int, head: int, tail: int) -> None:
    """Chunks of any length, empty ones too, each a slice of a longer array."""
    arrays, wanted = [], [np.empty((0, size), np.uint8)]
    for i, n in enumerate(chunks):
        codes = random_codes(head + n + tail, size, i)
        arrays.append(bulk.binary_array(codes).slice(head, n))
        wanted.append(codes[head : head + n])
    column = pa.chunked_array(arrays, type=pa.binary())
    assert np.array_equal(bulk.code_matrix(column, size), np.concatenate(wanted))
    large = column.cast(pa.large_binary())
    assert np.array_equal(bulk.code_matrix(large, size), np.concatenate(wanted))


def test_a_strided_matrix_is_copied_right() -> None:
    codes = random_codes(10, 6)[::2, 1:4]
    assert bulk.binary_array(codes).to_pylist() == [row.tobytes() for row in codes]


@pytest.mark.parametrize("wrong", [b"ab", b"abcd", b"", None])
def test_a_code_of_another_length_is_refused(wrong: bytes | None) -> None:
    column = pa.chunked_array([pa.array([b"abc", wrong, b"abc"], pa.binary())])
    with pytest.raises(InvalidInput, match="not 3 bytes long"):
        bulk.code_matrix(column, 3)


def test_through_the_database(tmp_path: Path) -> None:
    path = small.empty(tmp_path / "c.duckdb")
    codes = random_codes(5000, 72)
    items = np.random.default_rng(1).permutation(20_000)[:5000]
    norms = np.linspace(0, 1, 5000, dtype=np.float32)
    with store.writing(path) as session:
        one = bulk.code_columns(1, items, norms, codes)
        none = bulk.code_columns(2, items[:0], norms[:0], codes[:0])
        assert bulk.insert_codes(session, [one, none]) == 5000
        assert bulk.insert_codes(session, [none]) == 0
    with store.reading(path) as connection:
        found, matrix = bulk.read_codes(connection, 1, 72)
        order = np.argsort(items)
        assert np.array_equal(found, items[order])
        assert np.array_equal(matrix, codes[order])
        assert connection.execute("SELECT sum(norm) FROM code_row").fetchone() == pytest.approx(
            (float(norms.sum(dtype=np.float64)),)
        )
        found, matrix = bulk.read_codes(connection, 2, 72)
        assert found.shape == (0,)
        assert matrix.shape == (0, 72)


def test_columns_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="do not belong together"):
        bulk.code_columns(1, np.arange(3), np.ones(2, np.float32), random_codes(3, 2))
    path = small.empty(tmp_path / "c.duckdb")
    row = {"run_id": ["r"], "place": [0], "text_id": [7]}
    with store.writing(path) as session:
        for columns in ({"run_id": ["r"]}, {**row, "more": [1]}):
            with pytest.raises(InvalidInput, match="run_text has columns"):
                bulk.insert(session, schema.run_text, columns)
        # In any order: columns go by name.
        assert bulk.insert(session, schema.run_text, dict(reversed(row.items()))) == 1
        assert bulk.insert(session, schema.run_text, {key: [] for key in row}) == 0
    with store.reading(path) as connection:
        assert connection.execute("SELECT run_id, place, text_id FROM run_text").fetchall() == [("r", 0, 7)]


def test_present(tmp_path: Path) -> None:
    path = small.empty(tmp_path / "c.duckdb")
    texts = np.array([5, 900, 2**31 - 1], np.int64) << PLACE_BITS
    there = np.concatenate([texts[0] + np.arange(0, 10), texts[2] + np.arange(3, 6)])
    with store.writing(path) as session:
        n = len(there)
        bulk.insert(
            session,
            schema.state_row,
            {
                "state_id": there,
                "document_id": there,
                "position": np.zeros(n, np.int32),
                "token_id": np.zeros(n, np.int32),
            },
        )
        keys = np.concatenate([one + np.arange(-1, 12) for one in texts[:2]] + [texts[2] + np.arange(12)])
        column = schema.state_row.c.state_id
        assert np.array_equal(bulk.present(session, column, keys), np.isin(keys, there))
        assert bulk.present(session, column, keys[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("size", "sets", "shards", "limit"),
    [
        # Shards of a whole row group each; a little more, as windows of text fall; a lot less; all codes in one set.
        (72, 10, [12_288] * 3, 1.2),
        (72, 10, [12_305, 12_538, 12_388], 1.2),
        (72, 6, [20_480, 20_481, 20_500], 1.2),
        (72, 10, [5_000] * 6, 1.2),
        (72, 1, [65_536] * 5, 1.2),
        (512, 4, [7_000] * 2, 1.08),
        (512, 10, [1_234] * 5, 1.08),
    ],
)
def test_file_size(tmp_path: Path, size: int, sets: int, shards: list[int], limit: float) -> None:
    """What the codes add to the file against the packed bits; each shard opens, commits and closes, as ingest does."""
    path = small.empty(tmp_path / "c.duckdb")
    # The tables of other stages stand in every file, whatever is in it, and so does what a table needs for its first row.
    with store.writing(path) as session:
        one = (np.array([1 << 40]), np.ones(1, np.float32), random_codes(1, size, 0))
        bulk.insert_codes(session, [bulk.code_columns(sets, *one)])
        session.add(small.shard("other", 1))
    empty = path.stat().st_size
    rng = np.random.default_rng(0)
    seconds, first = 0.0, 0
    for n in shards:
        items = np.arange(first, first + n)
        first += n
        parts = [
            bulk.code_columns(
                i, items, rng.random(n, dtype=np.float32) * 90, random_codes(n, size, first + i)
            )
            for i in range(sets)
        ]
        started = time.perf_counter()
        with store.writing(path) as session:
            assert bulk.insert_codes(session, parts) == n * sets
            session.add(small.shard("r", n, first))
        seconds += time.perf_counter() - started
    rows = first * sets
    ratio = (path.stat().st_size - empty) / (rows * size)
    sys.stdout.write(
        f"{rows} codes of {size} bytes: {ratio:.3f} times the bits, {rows / seconds:,.0f} codes/s\n"
    )
    assert ratio <= limit
    if size == 72 and max(shards) * sets > 60_000:
        assert rows / seconds > 100_000
    with store.reading(path) as connection:
        assert connection.execute("SELECT count(*) FROM code_row").fetchone() == (rows + 1,)
        found, codes = bulk.read_codes(connection, sets - 1, size)
    assert np.array_equal(found, np.arange(first))
    assert np.array_equal(codes[-shards[-1] :], random_codes(shards[-1], size, first + sets - 1))
