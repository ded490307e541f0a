from __future__ import annotations

import math
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from signarium.catalog.errors import InvalidInput
from signarium.ingest.features import independence
from signarium.ingest.features.independence import Pairs, _information, measure

Bits = NDArray[np.uint8]

matrices = st.tuples(st.integers(1, 40), st.integers(2, 11)).flatmap(
    lambda shape: hnp.arrays(np.uint8, shape, elements=st.integers(0, 1))
)


def counted(bits: Bits) -> Pairs:
    pairs = Pairs.empty(bits.shape[1])
    pairs.add(bits)
    return pairs


def of_pairs(pairs: Pairs) -> NDArray[np.float64]:
    """The information of every pair i < j, in the order of `numpy.triu_indices`, as `measure` sums it up."""
    return np.concatenate(list(_information(pairs)))


def entropy(p: float) -> float:
    return -sum(q * math.log2(q) for q in (p, 1 - p) if q)


def information(a: Bits, b: Bits) -> float:
    """The definition: sum over the table of p log2(p / (p p))."""
    n, total = len(a), 0.0
    for x, y in product((0, 1), repeat=2):
        joint = sum(1 for u, v in zip(a, b, strict=True) if (u, v) == (x, y)) / n
        if joint:
            total += joint * math.log2(joint / ((a == x).mean() * (b == y).mean()))
    return total


def factorial(width: int) -> Bits:
    """Every code of `width` bits once: exactly independent, fair bits."""
    return np.array(list(product((0, 1), repeat=width)), np.uint8)


@given(matrices)
def test_counts_and_information_by_the_definition(bits: Bits) -> None:
    pairs = counted(bits)
    whole = bits.astype(np.int64)
    assert pairs.n == len(bits)
    assert np.array_equal(pairs.positive, whole.sum(0))
    assert np.array_equal(pairs.both, whole.T @ whole)
    expected = [information(bits[:, i], bits[:, j]) for i, j in combinations(range(bits.shape[1]), 2)]
    found = of_pairs(pairs)
    assert found.shape == (len(expected),)
    assert np.allclose(found, expected, rtol=0, atol=1e-12)
    assert (found >= 0).all()


@given(matrices)
def test_the_figures_are_those_of_all_pairs(bits: Bits) -> None:
    pairs = counted(bits)
    values, found = of_pairs(pairs), measure(pairs)
    assert found.mean_mi == pytest.approx(values.mean(), abs=1e-12)
    assert found.max_mi == values.max()
    assert found.share_above == (values > 0.01).mean()
    assert (found.n_pairs, found.n) == (len(values), len(bits))
    assert found.bias == pytest.approx(1 / (2 * len(bits) * math.log(2)))
    varies = np.ptp(bits, axis=0) > 0
    assert found.constant == (~varies).sum()
    if varies.any():
        signs = bits[:, varies] * 2.0 - 1
        correlations = np.atleast_2d(np.corrcoef(signs, rowvar=False))
        expected = varies.sum() ** 2 / (correlations**2).sum()
        assert found.participation_ratio == pytest.approx(expected, rel=1e-9)
    else:
        assert math.isnan(found.participation_ratio)


@given(matrices, st.integers(1, 9))
def test_blocks_give_what_the_whole_gives(bits: Bits, rows: int) -> None:
    whole = counted(bits)
    packed = Pairs.of(np.packbits(bits, axis=-1), bits.shape[1], rows)
    parts = Pairs.empty(bits.shape[1])
    for start in range(0, len(bits), rows):
        parts.add(bits[start : start + rows])
    for other in (packed, parts):
        assert other.n == whole.n
        assert np.array_equal(other.positive, whole.positive)
        assert np.array_equal(other.both, whole.both)


@pytest.mark.parametrize("values", [1, 50, 120])
def test_blocks_of_dimensions_give_what_the_whole_gives(monkeypatch: Any, values: int) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (200, 37), np.uint8)
    bits[:, 5] = 1
    whole, figures = of_pairs(counted(bits)), measure(counted(bits))
    monkeypatch.setattr(independence, "_BLOCK_VALUES", values)
    pairs = counted(bits)
    assert np.array_equal(of_pairs(pairs), whole)
    blocked = measure(pairs)
    assert blocked.participation_ratio == pytest.approx(figures.participation_ratio, rel=1e-12)
    assert blocked.mean_mi == pytest.approx(figures.mean_mi, rel=1e-12)
    assert (blocked.max_mi, blocked.share_above) == (figures.max_mi, figures.share_above)


def test_independent_fair_bits_show_the_bias_and_no_more() -> None:
    n, width = 20_000, 40
    bits = np.random.default_rng(1).integers(0, 2, (n, width), np.uint8)
    found = measure(counted(bits))
    # 2 n ln 2 times the information of such a pair is chi-squared with one degree of freedom; 780 pairs.
    assert found.bias == pytest.approx(3.607e-5, rel=1e-3)
    assert 0.75 < found.mean_mi / found.bias < 1.25
    assert found.max_mi < 25 * found.bias
    assert found.share_above == 0
    # Sampling alone gives each of the 39 other dimensions a squared correlation of 1 / (n - 1).
    assert found.participation_ratio == pytest.approx(width / (1 + (width - 1) / (n - 1)), abs=0.05)


def test_exactly_independent_bits() -> None:
    pairs = counted(factorial(6))
    assert np.allclose(of_pairs(pairs), 0, atol=1e-12)
    assert measure(pairs).participation_ratio == pytest.approx(6)


@pytest.mark.parametrize("p", [0.5, 0.1, 0.001])
def test_a_dimension_and_its_double_or_its_opposite_share_their_entropy(p: float) -> None:
    one = (np.arange(1000) < 1000 * p).astype(np.uint8)
    pairs = counted(np.stack([one, one, 1 - one], axis=1))
    assert np.allclose(of_pairs(pairs), entropy(p), atol=1e-12)
    found = measure(pairs)
    assert found.participation_ratio == pytest.approx(1, rel=1e-9)
    assert found.max_mi == pytest.approx(entropy(p))
    assert found.share_above == (1 if entropy(p) > 0.01 else 0)


def test_two_groups_of_equal_dimensions_are_two_effective_dimensions() -> None:
    bits = factorial(2)[:, [0, 0, 0, 1, 1, 1]]
    assert measure(counted(bits)).participation_ratio == pytest.approx(2)
    # Six of the fifteen pairs are equal and fair, one bit each.
    assert measure(counted(bits)).mean_mi == pytest.approx(6 / 15)


def test_a_small_correlation_of_balanced_bits() -> None:
    bits = np.repeat(np.array([[1, 1], [1, 0], [0, 1], [0, 0]], np.uint8), [110, 90, 90, 110], axis=0)
    (found,) = of_pairs(counted(bits))
    assert found == pytest.approx(1 - entropy(0.55), abs=1e-12)
    assert found == pytest.approx(0.1**2 / (2 * math.log(2)), rel=0.01)


def test_constant_dimensions_carry_nothing_and_do_not_count_as_effective() -> None:
    bits = np.concatenate([factorial(3), np.ones((8, 1), np.uint8), np.zeros((8, 1), np.uint8)], axis=1)
    found = measure(counted(bits))
    assert (found.constant, found.n_pairs) == (2, 10)
    assert found.participation_ratio == pytest.approx(3)
    assert found.max_mi == 0
    none = measure(counted(np.ones((4, 3), np.uint8)))
    assert (none.constant, none.mean_mi) == (3, 0)
    assert math.isnan(none.participation_ratio)


def test_counts_past_what_float32_holds() -> None:
    pairs = counted(np.ones((3, 2), np.uint8))
    pairs.both += 1 << 40
    pairs.add(np.ones((2, 2), np.uint8))
    assert (pairs.both == (1 << 40) + 5).all()


def test_what_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no codes"):
        measure(Pairs.empty(4))
    with pytest.raises(InvalidInput, match="no pair"):
        measure(counted(np.ones((4, 1), np.uint8)))
    with pytest.raises(InvalidInput, match="0 or 1"):
        counted(np.full((2, 3), 2, np.uint8))
    for bits in (np.ones((2, 3), np.uint8), np.ones(4, np.uint8), np.ones((2, 4), np.int64)):
        with pytest.raises(InvalidInput, match=r"no uint8 \[n, 4\]"):
            Pairs.empty(4).add(bits)  # type: ignore[arg-type]
