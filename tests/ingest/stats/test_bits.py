from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from signarium.catalog import codes
from signarium.catalog.errors import InvalidInput
from signarium.ingest.stats import bits
from signarium.ingest.stats.bits import (
    Patterns,
    TypeBits,
    agreements,
    count_type,
    fires_at,
    percentiles,
    top_of,
    tops,
)
from signarium.ingest.stats.draws import rng

WIDTHS = (1, 7, 8, 9, 44, 130)


def random_bits(n: int, width: int, seed: int = 0, p: float = 0.5) -> NDArray[np.uint8]:
    return (np.random.default_rng(seed).random((n, width)) < p).astype(np.uint8)


def types_of(matrix: NDArray[np.uint8]) -> TypeBits:
    return TypeBits(np.packbits(matrix, axis=1), matrix.shape[1])


def patterns_of(n: int, width: int, seed: int = 1, p: float = 0.5) -> Patterns:
    """Polarities are random outside the masks too: there they must not count. Every mask has a dimension."""
    mask = random_bits(n, width, seed, p).astype(bool)
    mask[np.arange(n), np.arange(n) % width] = True
    return Patterns(mask, random_bits(n, width, seed + 1).astype(bool))


def counted(matrix: NDArray[np.uint8], patterns: Patterns) -> NDArray[np.int64]:
    """The definition: (features, types)."""
    out = np.zeros((len(patterns), len(matrix)), np.int64)
    for f, t in product(range(len(patterns)), range(len(matrix))):
        registered = np.flatnonzero(patterns.mask[f])
        out[f, t] = sum(1 for d in registered if bool(matrix[t, d]) == patterns.polarity[f, d])
    return out


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """256 types a block and 32 features at a time: the least that there is."""
    monkeypatch.setattr(bits, "BLOCK_BYTES", 1)
    monkeypatch.setattr(bits, "_HELD_BYTES", 1)


# ---- types ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
def test_blocks_are_the_whole(width: int, small_blocks: None) -> None:
    matrix = random_bits(700, width)
    types = types_of(matrix)
    assert (types.n, types.width) == (700, width)
    parts = list(types.blocks())
    assert [start for start, _ in parts] == [0, 256, 512]
    assert np.array_equal(np.concatenate([part.numpy() for _, part in parts]), matrix)
    ids = np.array([[3, 699], [0, 3]])
    assert np.array_equal(types.bits(ids), matrix[ids])


def test_positive_counts_every_type() -> None:
    # More than are unpacked at once.
    matrix = random_bits(9000, 9, p=0.3)
    assert np.array_equal(types_of(matrix).positive, matrix.sum(0, dtype=np.int64))


def test_a_generator_depends_on_its_seed_and_names() -> None:
    def draw(*parts: Any) -> tuple[int, ...]:
        return tuple(rng(*parts).integers(1 << 62, size=3))

    assert draw(0, "split", "fruit") == draw(0, "split", "fruit")
    apart = [(0,), (1,), (0, "a"), (0, "b"), (1, "a"), (0, "a", "b"), (0, "b", "a"), (0, "ab"), (0, "a b")]
    assert len({draw(*one) for one in apart}) == len(apart)


# ---- agreement ------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
def test_agreement_is_counted_dimension_by_dimension(width: int) -> None:
    matrix, patterns = random_bits(60, width), patterns_of(13, width)
    types, expected = types_of(matrix), counted(matrix, patterns)
    assert np.array_equal(patterns.n_dims, [sum(row) for row in patterns.mask])
    counts = patterns.counts(types.codes)
    assert counts.dtype == np.int32 and np.array_equal(counts, expected)
    signed = patterns.signs.numpy()
    assert np.array_equal(signed, np.where(patterns.mask, np.where(patterns.polarity, 1, -1), 0))
    found = list(agreements(types, patterns))
    assert [i for i, _ in found] == list(range(13))
    assert np.array_equal(np.stack([row for _, row in found]), expected)
    # What the catalogue keeps says the same.
    masks, polarities = patterns.packed()
    shares = np.stack([codes.agreement(types.codes, *one) for one in zip(masks, polarities, strict=True)])
    assert np.allclose(shares, expected / patterns.n_dims[:, None], rtol=0, atol=1e-12)
    assert not (polarities & ~masks).any()


@given(
    st.integers(1, 140),
    st.integers(0, 50),
    st.integers(0, 45),
    st.sampled_from([0, 0.3, 1]),
    st.integers(0, 10**6),
)
def test_agreement_is_numpy_whatever_is_registered(
    width: int, n: int, n_features: int, share: float, seed: int
) -> None:
    matrix, generator = random_bits(n, width, seed), np.random.default_rng(seed)
    mask = generator.random((n_features, width)) < generator.choice([0, share], (n_features, 1))
    patterns = Patterns(mask, generator.random((n_features, width)) < 0.5)
    expected = ((matrix[None] == patterns.polarity[:, None]) & patterns.mask[:, None]).sum(2)
    assert np.array_equal(patterns.counts(types_of(matrix).codes), expected)
    for i, row in agreements(types_of(matrix), patterns):
        assert row.dtype == np.int16 and np.array_equal(row, expected[i])


@pytest.mark.parametrize("width", [9, 44])
def test_agreement_in_parts(width: int, small_blocks: None) -> None:
    matrix, patterns = random_bits(600, width), patterns_of(130, width)
    expected = (matrix[None] == patterns.polarity[:, None]) & patterns.mask[:, None]
    found = list(agreements(types_of(matrix), patterns))
    assert [i for i, _ in found] == list(range(130))
    assert np.array_equal(np.stack([row for _, row in found]), expected.sum(2))


@pytest.mark.parametrize("width", [32_767, 32_768, 40_001])
def test_counts_beyond_sixteen_bits(width: int) -> None:
    # All dimensions, all but one, half of them, none.
    matrix = np.ones((4, width), np.uint8)
    matrix[1, width // 3] = matrix[2, ::2] = matrix[3] = 0
    every = np.ones((2, width), bool)
    patterns = Patterns(every, np.array([every[0], ~every[0]]))
    ones = [width, width - 1, width // 2, 0]
    expected = [ones, [width - one for one in ones]]
    found = [row for _, row in agreements(types_of(matrix), patterns)]
    assert [row.tolist() for row in found] == expected
    assert {row.dtype for row in found} == {np.dtype(count_type(width))}
    assert np.iinfo(found[0].dtype).bits == (16 if width < 2**15 else 32)
    assert patterns.counts(np.packbits(matrix, axis=1)).tolist() == expected
    best = tops(agreements(types_of(matrix), patterns), patterns, 2)
    assert best.ids.tolist() == [[0, 1], [3, 2]]
    assert best.counts.tolist() == [[width, width - 1], [width, width - width // 2]]
    assert best.mean == pytest.approx([np.mean(row) / width for row in expected])
    assert best.std == pytest.approx([np.std(row) / width for row in expected])


def test_a_slice_of_patterns_and_those_that_do_not_match() -> None:
    patterns = patterns_of(5, 9)
    assert np.array_equal(patterns[1:3].mask, patterns.mask[1:3])
    assert np.array_equal(patterns[1:3].polarity, patterns.polarity[1:3])
    with pytest.raises(InvalidInput, match="do not match"):
        Patterns(patterns.mask, patterns.polarity[:, :8])
    with pytest.raises(InvalidInput, match="do not match"):
        Patterns(patterns.mask[0], patterns.polarity[0])


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("k", [1, 7, 80, 500])
def test_tops_are_those_of_a_sort(width: int, k: int) -> None:
    # Few dimensions and 80 types: most counts are shared by many.
    matrix, patterns = random_bits(80, width), patterns_of(6, width, p=0.2)
    counts = counted(matrix, patterns)
    found = tops(agreements(types_of(matrix), patterns), patterns, k)
    assert found.ids.shape == found.counts.shape == (6, min(k, 80))
    for f, row in enumerate(counts):
        best = sorted(range(80), key=lambda t: (-row[t], t))[:k]
        assert found.ids[f].tolist() == best
        assert found.counts[f].tolist() == [row[t] for t in best]
        n = int(patterns.n_dims[f])
        assert found.fired[f] == sum(1 for c in row if 5 * int(c) >= 4 * n)
        assert found.mean[f] == pytest.approx(np.mean(row / n), abs=1e-9)
        assert found.std[f] == pytest.approx(np.std(row / n), abs=1e-6)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 50))
def test_the_top_of_a_row(values: list[int], k: int) -> None:
    row = np.array(values, np.int16)
    ids, their = top_of(row, np.bincount(row, minlength=7), k)
    best = sorted(range(len(values)), key=lambda t: (-values[t], t))[:k]
    assert ids.tolist() == best
    assert their.tolist() == [values[t] for t in best]


def test_a_feature_fires_from_four_fifths_of_its_dimensions() -> None:
    n = np.arange(20_000)
    assert np.array_equal(fires_at(n), -(-4 * n // 5))


# ---- percentiles ----------------------------------------------------------------------------------

values = st.lists(st.integers(-3, 3) | st.floats(-1, 1, width=32), min_size=1, max_size=25)


@given(values, values)
def test_the_mean_percentile_is_the_area_under_the_roc_curve(above: list[float], below: list[float]) -> None:
    found = percentiles(np.array(above, np.float64), np.array(below, np.float64))
    shares = [sum((p > q) + 0.5 * (p == q) for q in below) / len(below) for p in above]
    assert np.allclose(found, shares, rtol=0, atol=1e-12)
    area = sum((p > q) + 0.5 * (p == q) for p, q in product(above, below)) / (len(above) * len(below))
    assert found.mean() == pytest.approx(area, abs=1e-12)


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.float32])
def test_percentiles_of_counts(kind: Any) -> None:
    generator = np.random.default_rng(4)
    a, b = generator.integers(0, 5, 30).astype(kind), generator.integers(0, 5, 200).astype(kind)
    expected = [((b < p).sum() + (b == p).sum() / 2) / 200 for p in a]
    assert np.allclose(percentiles(a, b), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_percentiles_among_nobody_are_unknown(kind: Any) -> None:
    found = percentiles(np.array([1, 0, 1], kind), np.empty(0, kind))
    assert found.shape == (3,) and np.isnan(found).all()
    assert percentiles(np.empty(0, kind), np.array([1, 2], kind)).shape == (0,)
