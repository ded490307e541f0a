"""Sign codes: the format that every catalogue holds, in numpy and in DuckDB's macros."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pytest
import small
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from signarium.catalog import store
from signarium.catalog.codes import agreement, from_hex, hamming, n_bytes, pack, unpack
from signarium.catalog.errors import InvalidInput

WIDTHS = st.integers(1, 200)
SEEDS = st.integers(0, 2**32 - 1)


def bits(seed: int, n: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 2, (n, width), dtype=np.uint8)


@given(WIDTHS, SEEDS)
def test_round_trip(width: int, seed: int) -> None:
    wanted = bits(seed, 3, width)
    codes = pack(np.where(wanted == 1, 0.5, -0.5))
    assert codes.shape == (3, n_bytes(width))
    assert codes.dtype == np.uint8
    assert np.array_equal(codes, np.packbits(wanted, axis=-1))
    assert np.array_equal(unpack(codes, width), wanted)
    if width % 8:
        assert not (codes[:, -1] & ((1 << (8 - width % 8)) - 1)).any(), "padding is zero"


def test_signs() -> None:
    tiny = np.finfo(np.float32).smallest_subnormal
    x = np.array([0.0, -0.0, 1.0, -1.0, tiny, -tiny, 3e38, -3e38], np.float32)
    assert pack(x).tolist() == [0b00101010]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_not_finite_is_refused(value: float, kind: type) -> None:
    x = np.ones((2, 9), kind)
    x[1, 8] = value
    with pytest.raises(InvalidInput, match="NaN or infinity"):
        pack(x)


def test_wrong_width_is_refused() -> None:
    for width in (8, 17):
        with pytest.raises(InvalidInput, match="not of width"):
            unpack(np.zeros((1, 2), np.uint8), width)


@given(WIDTHS, SEEDS)
def test_hamming_is_a_metric(width: int, seed: int) -> None:
    raw = bits(seed, 3, width)
    a, b, c = np.packbits(raw, axis=-1)
    assert hamming(a, b) == hamming(b, a) == (raw[0] != raw[1]).sum()
    assert hamming(a, a) == 0
    assert hamming(a, c) <= hamming(a, b) + hamming(b, c)


def test_hamming_broadcasts() -> None:
    a, b = pack(np.ones((4, 1, 20))), pack(-np.ones((1, 3, 20)))
    assert hamming(a, b).tolist() == [[20] * 3] * 4


@given(WIDTHS, SEEDS)
def test_agreement(width: int, seed: int) -> None:
    code, mask, polarity = bits(seed, 3, width)
    n = int(mask.sum())
    found = agreement(*np.packbits(np.stack([code, mask, polarity]), axis=-1))
    if n == 0:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(1 - ((code != polarity) & (mask == 1)).sum() / n)


@given(WIDTHS, SEEDS)
def test_hex_round_trip(width: int, seed: int) -> None:
    code = np.packbits(bits(seed, 1, width)[0])
    assert np.array_equal(from_hex(f" {code.tobytes().hex().upper()}\n", width), code)


@pytest.mark.parametrize("text", ["", "f", "abc", "zz00", "0x00", "000000", "00", "ffff", "0001", "ä0"])
def test_hex_is_refused(text: str) -> None:
    # Width 15: two bytes, the last bit zero.
    with pytest.raises(InvalidInput) as caught:
        from_hex(text, 15)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def macros(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.empty(tmp_path_factory.mktemp("macros") / "c.duckdb")


@settings(max_examples=examples(25))
@given(width=WIDTHS, seed=SEEDS)
def test_macros_equal_numpy(macros: Path, width: int, seed: int) -> None:
    raw = bits(seed, 3, width)
    raw[1, 0] = 1
    a, b, c = np.packbits(raw, axis=-1)
    with store.reading(macros) as connection:
        sql = (
            "SELECT hamming(a, b), agreement(a, b, c), "
            f"[get_bit(a::BIT, d::INTEGER) FOR d IN range({width})], "
            f"[sign_bit(a, d) FOR d IN range({width})], "
            f"""["bit"(a, d) FOR d IN range({width})] """
            "FROM (SELECT ?::BLOB AS a, ?::BLOB AS b, ?::BLOB AS c)"
        )
        row = connection.execute(sql, [a.tobytes(), b.tobytes(), c.tobytes()]).fetchone()
    assert row is not None
    assert row[0] == hamming(a, b)
    assert row[1] == pytest.approx(float(agreement(a, b, c)))
    assert row[2] == row[3] == row[4] == raw[0].tolist()


def test_macro_of_an_empty_mask_is_null(macros: Path) -> None:
    with store.reading(macros) as connection:
        assert connection.execute(
            "SELECT agreement(a, a, a) FROM (SELECT '\\x00'::BLOB AS a)"
        ).fetchall() == [(None,)]


def test_macro_refuses_unequal_lengths(macros: Path) -> None:
    with store.reading(macros) as connection, pytest.raises(duckdb.Error):
        connection.execute("SELECT hamming('\\x00'::BLOB, '\\x00\\x00'::BLOB)").fetchall()
