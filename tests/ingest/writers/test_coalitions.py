from __future__ import annotations

import numpy as np
import pytest
import torch
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from signarium.ingest.stats.bits import Patterns
from signarium.ingest.writers import agreements, coalitions
from signarium.ingest.writers.agreements import Agreements, Signs, coins
from signarium.ingest.writers.coalitions import KS, curve, halves, sizes, split_half


def patterns_of(n: int, width: int, seed: int, p: float = 0.5) -> Patterns:
    generator = np.random.default_rng(seed)
    mask = generator.random((n, width)) < p
    mask[np.arange(n), generator.integers(0, width, n)] = True
    return Patterns(mask, generator.random((n, width)) < 0.5)


def literal(select: Patterns, score: Patterns, block: Signs, k: int) -> list[float]:
    """Section 9 as it reads: rank, let the first k vote, look at each dimension."""
    found = []
    for f in range(len(select)):
        agreeing = [
            sum(bool(neuron[d] > 0) == select.polarity[f, d] for d in np.flatnonzero(select.mask[f]))
            for neuron in block
        ]
        order = sorted(range(len(block)), key=lambda i: (-agreeing[i], i))[:k]
        right = 0.0
        dims = np.flatnonzero(score.mask[f])
        for d in dims:
            votes = sum(int(block[i, d]) for i in order)
            right += 0.5 if votes == 0 else float((votes > 0) == score.polarity[f, d])
        found.append(right / len(dims))
    return found


@given(
    n_neurons=st.integers(1, 70),
    width=st.integers(2, 30),
    seed=st.integers(0, 10**6),
    ks=st.sets(st.integers(1, 80), min_size=1, max_size=6),
)
@settings(max_examples=examples(30))
def test_curves_are_those_of_a_literal_count(n_neurons: int, width: int, seed: int, ks: set[int]) -> None:
    patterns, block = patterns_of(3, width, seed), coins(n_neurons, width, np.random.default_rng(seed))
    other = patterns_of(3, width, seed + 1)
    some = sizes(n_neurons, sorted(ks))
    if not some:
        return
    for score in (patterns, other):
        found = curve(Agreements(patterns), score, block, some)
        for i, k in enumerate(some):
            assert found[:, i].tolist() == literal(patterns, score, block, k)


def test_the_sizes_of_the_paper_are_exact_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """All seven intervals, in few products; and in blocks that split neurons and features."""
    block, patterns = coins(1200, 40, np.random.default_rng(0)), patterns_of(70, 40, 1)
    assert len(coalitions._packed(np.diff([0, *KS]).tolist())) == 2
    found = curve(Agreements(patterns), patterns, block, KS)
    some = Patterns(patterns.mask[:2], patterns.polarity[:2])
    for i, k in enumerate(KS):
        assert found[:2, i].tolist() == literal(some, some, block, k)
    monkeypatch.setattr(agreements, "BLOCK_BYTES", 1)
    np.testing.assert_array_equal(found, curve(Agreements(patterns), patterns, block, KS))


@given(counts=st.lists(st.integers(1, 500_000), min_size=1, max_size=8), seed=st.integers(0, 10**6))
@settings(max_examples=examples(100))
def test_votes_come_apart_again(counts: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    groups = coalitions._packed(counts)
    assert sorted(i for group in groups for i, _ in group) == list(range(len(counts)))
    for members in groups:
        # Extremes are where rounding would go wrong.
        votes = {i: np.append(generator.integers(-n, n + 1, 50), [n, -n, 0, n, -n]) for i, n in members}
        votes = {i: np.append(one[:-2], generator.permutation(one[-2:])) for i, one in votes.items()}
        total, unit = np.zeros(55, np.int64), 1
        for i, n in members:
            total += unit * votes[i]
            unit *= 2 * n + 1
        assert np.abs(total).max() < 2**24
        for i, one in coalitions._apart(torch.from_numpy(total.astype(np.float32)), members):
            np.testing.assert_array_equal(one.numpy(), votes[i])


def test_sizes_beyond_the_neurons_are_left_out() -> None:
    assert sizes(99) == (1, 10, 50)
    assert sizes(100) == (1, 10, 50, 100)
    assert sizes(5, (7, 5, 2, 2)) == (2, 5)


def test_halves_share_nothing_and_hang_on_the_key_alone() -> None:
    patterns = patterns_of(20, 50, 2)
    keys = np.arange(20) * 7 + 3
    one, other = halves(patterns, keys, 5)
    assert not (one.mask & other.mask).any()
    np.testing.assert_array_equal(one.mask | other.mask, patterns.mask)
    np.testing.assert_array_equal(one.n_dims, patterns.n_dims // 2)
    again, _ = halves(patterns[5:9], keys[5:9], 5)
    np.testing.assert_array_equal(again.mask, one.mask[5:9])
    assert (halves(patterns, keys, 6)[0].mask != one.mask).any()


def test_split_half_of_coins_is_a_coin() -> None:
    """While the paper's procedure, on the very same coins, seems to find writers."""
    patterns = patterns_of(200, 300, 3)
    block, ks = coins(1500, 300, np.random.default_rng(4)), sizes(1500)
    parts = halves(patterns, np.arange(200), 0)
    held_out = split_half(parts, block, ks)
    # 200 features of about 150 dimensions; coalitions of one feature share none of its scored dimensions.
    assert np.abs(held_out.mean(0) - 0.5).max() < 4 * 0.5 / np.sqrt(patterns.n_dims.sum())
    assert (curve(Agreements(patterns), patterns, block, ks)[:, 4] > 0.9).all()


def test_split_half_is_both_ways_and_unknown_for_one_dimension() -> None:
    patterns, block = patterns_of(12, 40, 5), coins(60, 40, np.random.default_rng(6))
    patterns.mask[3] = np.arange(40) == 7
    parts = halves(patterns, np.arange(12), 0)
    found = split_half(parts, block, (1, 10))
    assert np.isnan(found[3]).all()
    rest = [i for i in range(12) if i != 3]
    assert np.isfinite(found[rest]).all()
    one, other = (Patterns(part.mask[rest], part.polarity[rest]) for part in parts)
    for i, k in enumerate((1, 10)):
        ways = np.array([literal(one, other, block, k), literal(other, one, block, k)])
        np.testing.assert_allclose(found[rest, i], ways.mean(0), rtol=0, atol=1e-12)


SECTION_9 = {
    (9216, 897): (0.560, 0.633, 0.746, 0.810, 0.873, 0.939, 0.963),
    (10240, 609): (0.575, 0.660, 0.797, 0.868, 0.913, 0.975, 0.988),
    (14336, 1488): (0.549, 0.608, 0.709, 0.769, 0.821, 0.901, 0.938),
    (25600, 2000): (0.547, 0.602, 0.689, 0.742, 0.810, 0.884, 0.932),
    (25600, 2826): (0.538, 0.584, 0.663, 0.713, 0.772, 0.848, 0.904),
}
"""shared/methods/bag-of-dims.md, section 9: fair coins, (neurons, dimensions of a pattern), by K.

They are six repeats each. One repeat spreads by up to 0.011, so that the table itself is off by up to 0.0045 or so
(one standard error); enough patterns here keep the error of what it is compared with near 0.001.
"""


@pytest.mark.parametrize(("n_neurons", "n_dims"), SECTION_9)
def test_fair_coins_reproduce_the_random_columns_of_section_9(n_neurons: int, n_dims: int) -> None:
    n_patterns = 180_000 // n_dims
    every = np.ones((n_patterns, n_dims), bool)
    patterns = Patterns(every, np.random.default_rng(0).random(every.shape) < 0.5)
    block = coins(n_neurons, n_dims, np.random.default_rng(1))
    found = np.median(curve(Agreements(patterns), patterns, block, KS), axis=0)
    np.testing.assert_allclose(found, SECTION_9[n_neurons, n_dims], rtol=0, atol=0.01)
