from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from signarium.ingest.stats.bits import Patterns
from signarium.ingest.writers import agreements
from signarium.ingest.writers.agreements import (
    FILTERS,
    LEAST,
    Agreements,
    above,
    coins,
    floats,
    loud,
    shuffled,
    signs,
    top_writers,
)


def drawn(n: int, width: int, seed: int) -> NDArray[np.float32]:
    """Weights with zeros of both signs and many equal magnitudes."""
    values = np.array([-2, -1, -0.5, -0.0, 0.0, 0.5, 1, 2], np.float32)
    return np.random.default_rng(seed).choice(values, (n, width))


def patterns_of(n: int, width: int, seed: int) -> Patterns:
    generator = np.random.default_rng(seed)
    mask = generator.random((n, width)) < generator.random((n, 1))
    mask[np.arange(n), generator.integers(0, width, n)] = True
    return Patterns(mask, generator.random((n, width)) < 0.5)


def by_hand(weights: NDArray[np.float32], patterns: Patterns) -> NDArray[np.int64]:
    """The definition: (features, neurons)."""
    found = np.zeros((len(patterns), len(weights)), np.int64)
    for f, mask in enumerate(patterns.mask):
        for d in np.flatnonzero(mask):
            found[f] += (weights[:, d] > 0) == patterns.polarity[f, d]
    return found


shapes = given(
    n_features=st.integers(1, 5),
    n_neurons=st.integers(1, 150),
    width=st.integers(1, 60),
    seed=st.integers(0, 10**6),
)


@shapes
@settings(max_examples=examples(40))
def test_counts_are_those_counted_by_hand(n_features: int, n_neurons: int, width: int, seed: int) -> None:
    weights, patterns = drawn(n_neurons, width, seed), patterns_of(n_features, width, seed)
    held = Agreements(patterns)
    block = signs(torch.from_numpy(weights))
    expected = by_hand(weights, patterns)
    np.testing.assert_array_equal(held.counts(block), expected)
    high, low = held.extremes(block)
    np.testing.assert_array_equal(high, expected.max(1))
    np.testing.assert_array_equal(low, expected.min(1))


def test_blocks_of_neurons_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, patterns = drawn(200, 30, 0), patterns_of(70, 30, 1)
    block = signs(torch.from_numpy(weights))

    def everything() -> list[NDArray[np.generic]]:
        held = Agreements(patterns)
        top = top_writers(held.counts(block), patterns.n_dims, 7)
        excess = [one for part in (None, *FILTERS.values()) for one in held.excess(weights, part)]
        return [held.counts(block), *held.extremes(block), *excess, top.neuron, top.positive, top.count]

    whole = everything()
    monkeypatch.setattr(agreements, "BLOCK_BYTES", 1)
    assert [(one.start, one.stop) for one in agreements.steps(200, 10)] == [
        (0, 64), (64, 128), (128, 192), (192, 200)
    ]  # fmt: skip
    for one, other in zip(whole, everything(), strict=True):
        np.testing.assert_array_equal(one, other)


@shapes
@settings(max_examples=examples(40))
def test_the_best_stand_in_order_with_ties_by_number(
    n_features: int, n_neurons: int, width: int, seed: int
) -> None:
    weights, patterns = drawn(n_neurons, width, seed), patterns_of(n_features, width, seed)
    found = top_writers(Agreements(patterns).counts(signs(torch.from_numpy(weights))), patterns.n_dims, 20)
    assert found.neuron.shape == (n_features, min(20, n_neurons))
    for f, row in enumerate(by_hand(weights, patterns)):
        n = int(patterns.n_dims[f])
        ordered = sorted(range(n_neurons), key=lambda i: (-max(row[i], n - row[i]), i))[:20]
        assert found.neuron[f].tolist() == ordered
        assert found.positive[f].tolist() == [bool(2 * row[i] >= n) for i in ordered]
        assert found.count[f].tolist() == [max(row[i], n - row[i]) for i in ordered]


def test_zero_and_nan_are_negative() -> None:
    values = torch.tensor([[0.0, -0.0, 1e-30, -1e-30, torch.nan]], dtype=torch.bfloat16)
    np.testing.assert_array_equal(signs(values), [[-1, -1, 1, -1, -1]])
    assert floats(values).dtype == np.float32


@given(width=st.integers(1, 40), seed=st.integers(0, 10**6))
def test_a_filter_is_the_median_and_the_upper_quartile(width: int, seed: int) -> None:
    weights = np.random.default_rng(seed).standard_normal((3, width)).astype(np.float32)
    for part, quantile in ((2, 0.5), (4, 0.75)):
        limit = np.quantile(np.abs(weights), quantile, axis=1, keepdims=True)
        np.testing.assert_array_equal(loud(weights, part), np.abs(weights) >= limit)


@pytest.mark.parametrize("part", FILTERS.values())
def test_filtered_agreement_is_that_of_what_is_left(part: int) -> None:
    """Also: a neuron with too few dimensions left does not count, whatever its agreement."""
    weights, patterns = drawn(60, 90, 3), patterns_of(25, 90, 4)
    found = Agreements(patterns).excess(weights, part)
    magnitude = np.abs(weights)
    limit = -np.sort(-magnitude, axis=1)[:, -(-90 // part) - 1, None]
    without = 0
    for f in range(len(patterns)):
        shares = []
        for weight, counts in zip(weights, magnitude >= limit, strict=True):
            left = np.flatnonzero(patterns.mask[f] & counts)
            if len(left) >= min(LEAST, patterns.n_dims[f]):
                agreeing = sum(bool(weight[d] > 0) == patterns.polarity[f, d] for d in left)
                shares.append(Fraction(agreeing, len(left)))
        without += not shares
        for tenths in (6, 7, 8):
            limits = Fraction(tenths, 10)
            assert above(found[0], tenths)[f] == any(one > limits for one in shares)
            assert above(found[1], tenths)[f] == any(1 - one > limits for one in shares)
    assert 0 < without < len(patterns)


@shapes
@settings(max_examples=examples(60))
def test_excess_is_that_counted_by_hand(n_features: int, n_neurons: int, width: int, seed: int) -> None:
    """With features that have no dimension, too."""
    weights, patterns = drawn(n_neurons, width, seed), patterns_of(n_features, width, seed)
    patterns.mask[::3] = False
    held = Agreements(patterns)
    agree = (weights > 0)[None] == patterns.polarity[:, None]
    for part in (None, *FILTERS.values()):
        counted = patterns.mask[:, None] & (loud(weights, part)[None] if part else True)
        right, left = (agree & counted).sum(2), counted.sum(2)
        enough = left >= (1 if part is None else np.clip(patterns.n_dims, 1, LEAST)[:, None])
        shares = np.where(enough, (2 * right - left) / np.maximum(left, 1), 0).astype(np.float32)
        most, least = held.excess(weights, part)
        np.testing.assert_array_equal(most, np.maximum(shares.max(1), 0))
        np.testing.assert_array_equal(least, np.maximum(-shares.min(1), 0))


@given(n=st.integers(1, 5000), agreeing=st.integers(0, 5000))
@settings(max_examples=examples(200))
def test_above_is_above_and_not_at(n: int, agreeing: int) -> None:
    agreeing = min(agreeing, n)
    excess = np.array([2 * agreeing - n], np.float32) / np.float32(n)
    for tenths in (6, 7, 8):
        assert above(excess, tenths)[0] == (10 * agreeing > tenths * n)
        at = np.array([(2 * tenths - 10) * n], np.float32) / np.float32(10 * n)
        assert not above(at, tenths)[0]


def test_shuffling_permutes_within_a_neuron_and_signs_as_weights() -> None:
    weights = np.random.default_rng(0).standard_normal((40, 64)).astype(np.float32)
    moved = shuffled(weights, np.random.default_rng(1))
    np.testing.assert_array_equal(np.sort(moved, 1), np.sort(weights, 1))
    places = np.argsort(np.argsort(weights, 1), 1)
    assert (np.argsort(np.argsort(moved, 1), 1) != places).mean() > 0.9
    # No two neurons share a permutation: a column of ranks does not stay together.
    same = np.tile(np.arange(64, dtype=np.float32), (40, 1))
    assert len(np.unique(shuffled(same, np.random.default_rng(2)), axis=0)) == 40
    as_signs = shuffled(signs(torch.from_numpy(weights)), np.random.default_rng(1))
    np.testing.assert_array_equal(as_signs, signs(torch.from_numpy(moved)))


def test_coins_are_fair_and_repeat() -> None:
    one = coins(301, 77, np.random.default_rng(0))
    assert one.shape == (301, 77)
    assert set(np.unique(one)) == {-1, 1}
    assert abs(one.mean()) < 4 / np.sqrt(one.size)
    np.testing.assert_array_equal(one, coins(301, 77, np.random.default_rng(0)))
