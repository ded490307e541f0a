from __future__ import annotations

import math
import warnings
from itertools import product
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from signarium.ingest.features import prototypes as module
from signarium.ingest.features.prototypes import (
    Null,
    Nulls,
    Ranks,
    define,
    halves,
    prototypes,
    random_sets,
    rotated_p_values,
    score,
    upper_tail,
)
from signarium.ingest.stats.bits import TypeBits

Ids = NDArray[np.int64]


def random_bits(n: int, width: int, seed: int = 0, p: Any = 0.5) -> NDArray[np.uint8]:
    return (np.random.default_rng(seed).random((n, width)) < p).astype(np.uint8)


def types_of(matrix: NDArray[np.uint8]) -> TypeBits:
    return TypeBits(np.packbits(matrix, axis=1), matrix.shape[1])


def dimensions(matrix: NDArray[np.uint8], positive: Ids, left_out: Ids) -> list[tuple[float, bool]]:
    """Eq. 2 of Bag of Dims: (AUC, whether the positive sign is expected) of every dimension."""
    out = set(range(len(matrix))) - set(left_out.tolist())
    found = []
    for column in matrix.T.astype(int).tolist():
        plus = sum(column[t] for t in positive) / len(positive)
        minus = sum(column[t] for t in out) / len(out)
        found.append((max((1 + plus - minus) / 2, (1 - plus + minus) / 2), plus > minus))
    return found


def registered(aucs: list[float]) -> list[int]:
    """Those at 0.75 or more, else at 0.70 or more, else the first of the best."""
    for tau in (0.75, 0.70):
        if some := [d for d, auc in enumerate(aucs) if auc >= tau]:
            return some
    return [aucs.index(max(aucs))]


def area(positive: list[float], negative: list[float]) -> float:
    wins = sum((p > q) + 0.5 * (p == q) for p, q in product(positive, negative))
    return wins / (len(positive) * len(negative))


# ---- prototypes -----------------------------------------------------------------------------------


def test_a_dimension_is_registered_by_threshold_or_as_the_best() -> None:
    # Dyadic shares, so that 0.75 is met exactly.
    plus = np.array(
        [
            [0.75, 1.0, 0.6875, 0.25, 0.0],
            [0.6875, 0.0, 0.25, 0.3125, 0.25],
            [0.5, 0.25, 0.5, 0.0, 0.25],
            [0.25, 0.25, 0.25, 0.25, 0.25],
        ]
    )
    minus = np.array(
        [
            [0.25, 0.0, 0.25, 0.75, 0.25],
            [0.25, 0.4375, 0.25, 0.25, 0.25],
            [0.25, 0.5, 0.25, 0.25, 0.25],
            [0.25, 0.25, 0.25, 0.25, 0.25],
        ]
    )
    made = prototypes(plus, minus)
    expected = [[0.75, 1, 0.71875, 0.75, 0.625], [0.71875, 0.71875, 0.5, 0.53125, 0.5],
                [0.625, 0.625, 0.625, 0.625, 0.5], [0.5] * 5]  # fmt: skip
    assert np.array_equal(made.auc, expected)
    masks = [[1, 1, 0, 1, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [1, 0, 0, 0, 0]]
    assert np.array_equal(made.patterns.mask, np.array(masks, bool))
    assert np.array_equal(made.threshold, [0.75, 0.70, np.nan, np.nan], equal_nan=True)
    assert made.best_dim.tolist() == [1, 0, 0, 0]
    assert made.best_auc.tolist() == [1, 0.71875, 0.625, 0.5]
    assert made.patterns.polarity[0, :4].tolist() == [True, True, True, False]
    assert made.patterns.polarity[1, :2].tolist() == [True, False]


@pytest.mark.parametrize("width", [7, 44])
def test_prototypes_by_the_definition(width: int) -> None:
    generator = np.random.default_rng(1)
    matrix = random_bits(200, width, p=generator.uniform(0.05, 0.95, width))
    anchors = [np.sort(generator.choice(200, size, replace=False)) for size in (5, 12, 20, 40, 60)]
    # Of several strengths: so that each threshold is the one that counts for some set.
    for ids, tilt in zip(anchors, (0.2, 0.6, 0.9, 0.0, 0.4), strict=True):
        follow = generator.random((len(ids), width)) < tilt
        matrix[ids] = np.where(follow, np.arange(width) % 2, matrix[ids])
    define_on = [ids[::2] for ids in anchors]
    made = define(types_of(matrix), anchors, define_on)
    for i, (own, left_out) in enumerate(zip(define_on, anchors, strict=True)):
        expected = dimensions(matrix, own, left_out)
        aucs = [auc for auc, _ in expected]
        assert np.allclose(made.auc[i], aucs, rtol=0, atol=1e-12)
        dims = registered(aucs)
        assert np.flatnonzero(made.patterns.mask[i]).tolist() == dims
        assert [bool(made.patterns.polarity[i, d]) for d in dims] == [expected[d][1] for d in dims]
        assert made.best_dim[i] == aucs.index(max(aucs))
        used = [tau for tau in (0.75, 0.70) if max(aucs) >= tau]
        assert np.array_equal(made.threshold[i], used[0] if used else np.nan, equal_nan=True)


@pytest.mark.parametrize("kind", [np.int16, np.int64, np.float32])
def test_a_score_stands_among_types_that_are_no_anchors(kind: Any) -> None:
    generator = np.random.default_rng(2)
    scores = generator.integers(0, 6, 150).astype(kind)
    anchors = np.sort(generator.choice(150, 30, replace=False))
    positives = anchors[1::2]
    # Some of the positives above every type that they stand among.
    scores[positives[:3]] = 9
    among = [None, np.flatnonzero(generator.random(150) < 0.5), np.setdiff1d(np.arange(150), anchors)[:1]]
    found = score(scores, positives, anchors, among)
    for some, percentiles in zip(among, found, strict=True):
        kept = [t for t in range(150) if t not in anchors and (some is None or t in some)]
        expected = [area([scores[t]], scores[kept].tolist()) for t in positives]
        assert np.allclose(percentiles, expected, rtol=0, atol=1e-12)
        whole = area(scores[positives].tolist(), scores[kept].tolist())
        assert percentiles.mean() == pytest.approx(whole)


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.float32])
def test_a_score_among_nobody_is_unknown(kind: Any) -> None:
    scores = np.array([3, 0, 2, 2, 5, 1]).astype(kind)
    anchors = np.array([0, 2, 4])
    among = [anchors, np.empty(0, np.int64), np.array([0, 3]), None]
    found = score(scores, anchors, anchors, among)
    assert np.isnan(found[0]).all() and np.isnan(found[1]).all()
    assert [len(one) for one in found] == [3, 3, 3, 3]
    # The others are not touched by it.
    assert found[2].tolist() == [1, 0.5, 1]
    assert found[3] == pytest.approx([1, 2.5 / 3, 1])
    every = np.arange(6)
    assert np.isnan(score(scores, anchors, every, [None])[0]).all()


@pytest.mark.parametrize("n", [2, 3, 20, 41])
def test_halves_are_two_random_parts(n: int) -> None:
    ids = np.arange(n) * 3 + 5
    a, b = halves(ids, np.random.default_rng(3))
    assert (len(a), len(b)) == (n - n // 2, n // 2)
    assert sorted([*a, *b]) == ids.tolist()
    assert a.tolist() == sorted(a) and b.tolist() == sorted(b)
    again = halves(ids, np.random.default_rng(3))
    assert np.array_equal(a, again[0]) and np.array_equal(b, again[1])
    others = {tuple(halves(ids, np.random.default_rng(seed))[0]) for seed in range(40)}
    assert len(others) > 1


# ---- nulls ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 9, 20])
@pytest.mark.parametrize("n_negatives", [2048, 60])
def test_a_null_defines_with_one_half_and_scores_the_other(
    size: int, n_negatives: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NULL_NEGATIVES", n_negatives)
    matrix = random_bits(200, 20, p=np.linspace(0.1, 0.9, 20))
    nulls = Nulls(types_of(matrix), np.random.default_rng(4))
    sets = random_sets(200, size, np.random.default_rng(5), draws=12)
    negatives = nulls._negatives
    assert len(set(negatives.tolist())) == min(n_negatives, 200)
    found = nulls.of(sets)
    middle = (size + 1) // 2
    for i, ids in enumerate(sets):
        assert found.best_dim[i] == pytest.approx(max(auc for auc, _ in dimensions(matrix, ids, ids)))
        half = dimensions(matrix, ids[:middle], ids)
        dims = registered([auc for auc, _ in half])
        agree = [sum(bool(row[d]) == half[d][1] for d in dims) for row in matrix]
        outside = [agree[t] for t in negatives if t not in ids]
        expected = area([agree[t] for t in ids[middle:]], outside)
        assert found.held_out[i] == pytest.approx(expected, abs=1e-12)


def test_sets_of_one_size_share_a_null() -> None:
    nulls = Nulls(types_of(random_bits(100, 9)), np.random.default_rng(0))
    one = nulls.of_size(10, np.random.default_rng(1))
    assert len(one.best_dim) == len(one.held_out) == 100
    assert nulls.of_size(10, np.random.default_rng(2)) is one
    assert not np.array_equal(nulls.of_size(12, np.random.default_rng(1)).held_out, one.held_out)
    again = Nulls(types_of(random_bits(100, 9)), np.random.default_rng(0)).of_size(
        10, np.random.default_rng(1)
    )
    assert np.array_equal(again.held_out, one.held_out) and np.array_equal(again.best_dim, one.best_dim)


def test_random_sets_have_no_repeats() -> None:
    sets = random_sets(30, 30, np.random.default_rng(6))
    assert sets.shape == (100, 30)
    assert (np.sort(sets, axis=1) == np.arange(30)).all()
    # In random order, so that the first half is no other than the second.
    assert 12 < random_sets(30, 30, np.random.default_rng(7))[:, :15].mean() < 17


def test_what_a_null_says_of_a_value() -> None:
    generator = np.random.default_rng(8)
    held_out = generator.normal(0.5, 0.03, 100)
    null = Null(generator.permutation(np.arange(100) / 100), held_out)
    # The 95th percentile of 0, 0.01 .. 0.99 lies between the 95th and the 96th of them.
    assert null.p95 == pytest.approx(0.9405)
    mean = sum(held_out) / 100
    spread = math.sqrt(sum((x - mean) ** 2 for x in held_out) / 99 * (1 + 1 / 100))
    for value in (0.4, 0.5, 0.55, 0.6, 0.7):
        assert null.p_value(value) == pytest.approx(1 - NormalDist(mean, spread).cdf(value), abs=1e-12)


def test_the_upper_tail_of_a_normal() -> None:
    for above, spread in product((-3.0, -0.5, 0.0, 0.2, 1.0, 4.0), (0.1, 1.0, 7.0)):
        expected = NormalDist(0, spread).cdf(-above)
        assert upper_tail(above, spread) == pytest.approx(expected, abs=1e-12)
    # Far out it does not vanish: thousands of features are corrected for.
    assert upper_tail(30.0, 1.0) == pytest.approx(4.9067e-198, rel=1e-3)
    assert [upper_tail(x, 0.0) for x in (-1.0, 0.0, 1.0)] == [1.0, 0.5, 0.0]


# ---- words of the same rank -----------------------------------------------------------------------


def vocabulary(n: int, seed: int = 0) -> NDArray[np.bool_]:
    """Two thirds of the types are words."""
    return np.random.default_rng(seed).random(n) < 2 / 3


def test_random_words_of_the_same_rank() -> None:
    words = vocabulary(6000)
    ids = np.flatnonzero(words)
    ranks = Ranks.of(words, np.random.default_rng(1))
    for size in (1, 20, 300):
        places = np.sort(np.random.default_rng(size).choice(len(ids), size, replace=False))
        sets = ranks.sets_like(ids[places], np.random.default_rng(2))
        assert sets is not None and sets.shape == (100, size)
        assert words[sets].all()
        for one in sets:
            assert len(set(one.tolist())) == size
            # No word is moved by 2 * 256 places; matching in order keeps the largest distance least.
            assert np.abs(np.sort(np.searchsorted(ids, one)) - places).max() <= 2 * 256
        if size > 1:
            assert len({tuple(sorted(one)) for one in sets.tolist()}) > 90
    again = Ranks.of(words, np.random.default_rng(1)).sets_like(ids[places], np.random.default_rng(2))
    assert again is not None and np.array_equal(again, sets)


def test_twins_of_a_word_are_spread_about_it() -> None:
    words = np.ones(4000, bool)
    sets = Ranks.of(words, np.random.default_rng(3), draws=400).sets_like(
        np.array([2000]), np.random.default_rng(4)
    )
    assert sets is not None
    # One uniform on (-256, 256), as sorting hardly changes the density of places. Five standard errors.
    spread = 512 / math.sqrt(12)
    assert abs(sets.mean() - 2000) < 5 * spread / math.sqrt(400)
    assert abs(sets.std() - spread) < 5 * spread / math.sqrt(2 * 400)


def test_anchors_that_are_no_words_or_stand_at_an_end() -> None:
    words = np.zeros(3000, bool)
    words[100:2100:2] = True
    ids = np.flatnonzero(words)
    ranks = Ranks.of(words, np.random.default_rng(5), draws=20)
    for anchors in (np.arange(40), np.arange(2900, 2960), np.arange(101, 181), np.arange(2080, 2120)):
        sets = ranks.sets_like(anchors, np.random.default_rng(6))
        assert sets is not None and words[sets].all()
        assert all(len(set(one)) == len(anchors) for one in sets.tolist())
        nearest = np.clip(np.searchsorted(ids, anchors), 0, len(ids) - 1)
        # Each of the anchors may also push the next ones on by a place.
        reach = 2 * 256 + len(anchors)
        assert np.abs(np.sort(np.searchsorted(ids, sets), 1) - nearest).max() <= reach


def test_too_few_words() -> None:
    words = np.zeros(200, bool)
    words[:40] = True
    ranks = Ranks.of(words, np.random.default_rng(7))
    generator = np.random.default_rng(8)
    assert ranks.sets_like(np.arange(21), generator) is None
    sets = ranks.sets_like(np.arange(20), generator)
    assert sets is not None and words[sets].all() and all(len(set(one)) == 20 for one in sets.tolist())
    none = Ranks.of(np.zeros(200, bool), np.random.default_rng(7))
    assert none.sets_like(np.arange(3), generator) is None


# ---- rotated bases --------------------------------------------------------------------------------


def test_rotated_bases_by_the_formula() -> None:
    generator = np.random.default_rng(9)
    n = generator.integers(5, 60, 30)
    rotated = generator.uniform(0.4, 1.0, (3, 30))
    own = generator.uniform(0.3, 1.0, 30)
    # One that every basis reads at 1: its binomial is that of half a type out of place.
    rotated[:, 4] = 1.0
    rotated[1, 7], own[9] = np.nan, np.nan
    found = rotated_p_values(own, rotated, n)
    between = within = 0.0
    binomial = []
    for f in range(30):
        mean = sum(rotated[:, f]) / 3
        edge = 1 / (2 * n[f])
        a = min(max(mean, edge), 1 - edge)
        binomial.append(a * (1 - a) / n[f])
        if f != 7:
            between += sum((x - mean) ** 2 for x in rotated[:, f]) / 2
            within += binomial[f]
    for f in range(30):
        if f in (7, 9):
            assert np.isnan(found[f])
            continue
        spread = math.sqrt(between / within * binomial[f] * (1 + 1 / 3))
        expected = NormalDist(0, spread).cdf(-(own[f] - sum(rotated[:, f]) / 3))
        assert found[f] == pytest.approx(expected, abs=1e-12)


def drawn(phi: float, shift: float, seed: int) -> NDArray[np.float64]:
    """p-values of 4000 features whose AUCs differ between bases as the definition says; the standard basis is one
    more draw but for `shift` standard deviations."""
    generator = np.random.default_rng(seed)
    mean = generator.uniform(0.55, 0.95, 4000)
    n = generator.integers(10, 40, 4000)
    spread = np.sqrt(phi * mean * (1 - mean) / n)
    aucs = mean + spread * generator.standard_normal((4, 4000))
    return rotated_p_values(aucs[0] + shift * spread, aucs[1:], n)


@pytest.mark.parametrize("phi", [0.05, 0.8])
def test_a_basis_like_any_other_is_told_apart_at_its_rate(phi: float) -> None:
    # 4000 uniform p-values: a share has a standard error of at most 0.008; the rest is for the normal tails.
    found = drawn(phi, 0.0, 10)
    for level in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert (found < level).mean() == pytest.approx(level, abs=0.03)


def test_a_better_basis_is_told_apart() -> None:
    # Four standard deviations, over the root of 4/3: 3.46 on average, and 1.64 are asked for.
    assert (drawn(0.2, 4.0, 11) < 0.05).mean() > 0.9
    assert (drawn(0.2, -4.0, 11) > 0.95).mean() > 0.9


def test_bases_that_do_not_differ() -> None:
    same = np.full((3, 3), 0.75)
    assert rotated_p_values(np.array([0.7, 0.75, 0.8]), same, np.full(3, 20)).tolist() == [1, 0.5, 0]
    none = rotated_p_values(np.full(4, np.nan), np.full((3, 4), np.nan), np.full(4, 20))
    assert np.isnan(none).all()


def test_one_basis_alone_says_nothing_about_bases() -> None:
    own, one = np.array([0.9, 0.5]), np.array([[0.6, 0.5]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = rotated_p_values(own, one, np.array([20, 20]))
    assert found.shape == (2,) and np.isnan(found).all()
    # Two are enough.
    assert np.isfinite(rotated_p_values(own, np.array([[0.6, 0.5], [0.7, 0.5]]), np.array([20, 20]))).all()
