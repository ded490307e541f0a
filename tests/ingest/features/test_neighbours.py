from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from signarium.ingest.features import neighbours as module
from signarium.ingest.features.neighbours import (
    common,
    distinct,
    halves,
    halves_auc,
    neighbours,
    percentiles_of,
    read_auc,
)
from signarium.ingest.stats.bits import Patterns, TypeBits

Ids = NDArray[np.int64]
Bits = NDArray[np.uint8]


def random_bits(n: int, width: int, seed: int = 0, p: Any = 0.5) -> Bits:
    return (np.random.default_rng(seed).random((n, width)) < p).astype(np.uint8)


def types_of(matrix: Bits) -> TypeBits:
    return TypeBits(np.packbits(matrix, axis=1), matrix.shape[1])


def nearest(matrix: Bits, seed: int, k: int = 20) -> list[int]:
    """All other types by (Hamming distance, id)."""
    apart = (matrix != matrix[seed]).sum(1).tolist()
    return sorted((t for t in range(len(matrix)) if t != seed), key=lambda t: (apart[t], t))[:k]


def agreed(rows: Bits) -> dict[int, bool]:
    """The dimensions on which all of `rows` agree, with their sign."""
    return {d: bool(column[0]) for d, column in enumerate(rows.T) if len(set(column.tolist())) == 1}


def percentile(scores: list[int], t: int, left_out: list[int]) -> float:
    others = [scores[u] for u in range(len(scores)) if u not in left_out]
    return sum((scores[t] > v) + 0.5 * (scores[t] == v) for v in others) / len(others)


# ---- neighbours -----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [7, 44, 64, 130])
def test_neighbours_are_those_of_a_sort(width: int) -> None:
    matrix = random_bits(300, width)
    types = types_of(matrix)
    seeds = np.sort(np.random.default_rng(1).choice(300, 280, replace=False))
    assert neighbours(types, seeds).tolist() == [nearest(matrix, seed) for seed in seeds]
    columns = np.sort(np.random.default_rng(2).permutation(width)[: width // 2])
    expected = [nearest(matrix[:, columns], seed) for seed in seeds]
    assert neighbours(types, seeds, columns).tolist() == expected


@pytest.mark.parametrize("n_codes", [1, 2, 9])
def test_neighbours_among_equal_codes(n_codes: int) -> None:
    # Up to 150 types with one code: a seed with a high id is not among its own 21 nearest.
    generator = np.random.default_rng(3)
    matrix = random_bits(n_codes, 44, 4)[generator.integers(0, n_codes, 150)]
    seeds = np.arange(150)
    found = neighbours(types_of(matrix), seeds)
    assert found.tolist() == [nearest(matrix, seed) for seed in seeds]


@pytest.mark.parametrize("n", [2, 20, 21, 22])
def test_neighbours_in_a_small_vocabulary(n: int) -> None:
    matrix = random_bits(n, 9)
    found = neighbours(types_of(matrix), np.arange(n))
    assert found.shape == (n, min(20, n - 1))
    assert found.tolist() == [nearest(matrix, seed) for seed in range(n)]


@pytest.mark.parametrize("width", [1, 9, 44])
def test_what_a_set_has_in_common(width: int) -> None:
    matrix = random_bits(400, width, p=np.linspace(0.02, 0.98, width))
    # More sets than are read at once.
    sets = np.stack([np.random.default_rng(seed).choice(400, 6, replace=False) for seed in range(150)])
    found = common(types_of(matrix), sets)
    for i, ids in enumerate(sets):
        expected = agreed(matrix[ids])
        assert np.flatnonzero(found.mask[i]).tolist() == list(expected)
        assert found.polarity[i, list(expected)].tolist() == list(expected.values())


# ---- distinct -------------------------------------------------------------------------------------


def by_a_loop(patterns: Patterns) -> tuple[list[int], list[int]]:
    """Greedy, in order: a feature is the first kept one whose Jaccard index with it is above 0.9."""
    pairs = [
        {(int(d), bool(patterns.polarity[i, d])) for d in np.flatnonzero(patterns.mask[i])}
        for i in range(len(patterns))
    ]
    kept, stands_for = list[int](), list[int]()
    for i, own in enumerate(pairs):
        if not own:
            stands_for.append(-1)
            continue
        same = [j for j in kept if Fraction(len(own & pairs[j]), len(own | pairs[j])) > Fraction(9, 10)]
        stands_for.append(same[0] if same else i)
        if not same:
            kept.append(i)
    return kept, stands_for


def checked(patterns: Patterns) -> list[int]:
    kept, stands_for = distinct(patterns)
    expected = by_a_loop(patterns)
    assert (kept.tolist(), stands_for.tolist()) == expected
    return expected[1]


def test_features_that_repeat_each_other() -> None:
    generator = np.random.default_rng(5)
    base = Patterns(random_bits(6, 200, 6).astype(bool), random_bits(6, 200, 7).astype(bool))
    which = generator.integers(0, 6, 90)
    mask, polarity = base.mask[which], base.polarity[which]
    # Some ten of a hundred pairs differ: on either side of 0.9.
    mask = mask ^ (generator.random(mask.shape) < generator.uniform(0, 0.06, (90, 1)))
    polarity = polarity ^ (generator.random(mask.shape) < generator.uniform(0, 0.02, (90, 1)))
    # Outside the mask polarities say nothing.
    polarity = np.where(mask, polarity, generator.random(mask.shape) < 0.5)
    mask[[4, 50]] = False
    stands_for = checked(Patterns(mask, polarity))
    assert stands_for[4] == stands_for[50] == -1
    assert len(set(stands_for)) not in (7, 90)


def test_exactly_nine_tenths_are_two_features() -> None:
    mask = np.zeros((4, 20), bool)
    mask[0, :10] = mask[1, :9] = mask[2, :10] = mask[3, :] = True
    signs = np.zeros((4, 20), bool)
    signs[2, 0] = True  # 9 shared of 11
    assert checked(Patterns(mask, signs)) == [0, 1, 2, 3]
    more = np.zeros((2, 20), bool)
    more[0, :11] = more[1, :10] = True  # 10 of 11
    assert checked(Patterns(more, np.zeros((2, 20), bool))) == [0, 0]


def test_a_chain_does_not_merge_its_ends() -> None:
    mask = np.zeros((3, 40), bool)
    mask[0, :20] = mask[1, 1:21] = mask[2, 2:22] = True
    # 19 of 21 between neighbours, 18 of 22 between the ends.
    assert checked(Patterns(mask, mask)) == [0, 0, 2]


def test_no_features() -> None:
    none = Patterns(np.zeros((3, 9), bool), np.ones((3, 9), bool))
    assert checked(none) == [-1, -1, -1]


# ---- reading --------------------------------------------------------------------------------------


def test_percentiles_of_places() -> None:
    generator = np.random.default_rng(8)
    row = generator.integers(0, 12, 200).astype(np.int16)
    left_out = np.sort(generator.choice(200, 30, replace=False))
    # Those that are scored may stand above every place that is left.
    row[left_out[:3]] = 40
    scored = left_out[::2]
    expected = [percentile(row.tolist(), t, left_out.tolist()) for t in scored]
    assert np.allclose(percentiles_of(row, scored, left_out), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [np.int16, np.int32])
def test_percentiles_among_nobody_are_unknown(kind: Any) -> None:
    row = np.array([4, 0, 7, 7], kind)
    every = np.arange(4)
    found = percentiles_of(row, np.array([2, 0]), every)
    assert found.shape == (2,) and np.isnan(found).all()
    # One that is left makes them known.
    assert percentiles_of(row, np.array([2, 0, 1]), every[:3]).tolist() == [0.5, 0, 0]
    # So are those of a feature whose set is the whole vocabulary.
    types, patterns = types_of(random_bits(4, 9)), Patterns(np.ones((2, 9), bool), np.ones((2, 9), bool))
    left_out = np.array([every, every])
    assert np.isnan(read_auc(types, patterns, left_out[:, :2], left_out)).all()


def test_reading_features() -> None:
    matrix = random_bits(150, 44, p=0.6)
    patterns = Patterns(random_bits(8, 44, 9, 0.3).astype(bool), random_bits(8, 44, 10).astype(bool))
    patterns.mask[5] = False
    left_out = np.stack([np.random.default_rng(seed).choice(150, 12, replace=False) for seed in range(8)])
    scored = left_out[:, :5]
    found = read_auc(types_of(matrix), patterns, scored, left_out)
    for f in range(8):
        if f == 5:
            assert np.isnan(found[f]).all()
            continue
        counts = [int(((row == patterns.polarity[f]) & patterns.mask[f]).sum()) for row in matrix]
        expected = [percentile(counts, t, left_out[f].tolist()) for t in scored[f]]
        assert np.allclose(found[f], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("width", [2, 9, 44, 45])
def test_halves_of_the_dimensions_are_disjoint(width: int) -> None:
    found_on, read_on = module._halves_of(width, np.random.default_rng(11))
    assert sorted([*found_on, *read_on]) == list(range(width))
    assert len(found_on) == width // 2
    assert found_on.tolist() == sorted(found_on) and read_on.tolist() == sorted(read_on)


@pytest.mark.parametrize("width", [44, 45])
def test_found_on_one_half_and_read_on_the_other(width: int) -> None:
    # Skewed bits, so that ten types have something in common, but not always.
    matrix = random_bits(120, width, p=np.linspace(0.3, 0.85, width))
    seeds = np.arange(0, 120, 4)
    found = halves_auc(types_of(matrix), seeds, np.random.default_rng(12))
    assert found.shape == (30, 10)
    found_on, read_on = module._halves_of(width, np.random.default_rng(12))
    empty = 0
    for i, seed in enumerate(seeds):
        ids = nearest(matrix[:, found_on], seed)
        pattern = agreed(matrix[ids[::2]][:, read_on])
        if not pattern:
            empty += 1
            assert np.isnan(found[i]).all()
            continue
        counts = [sum(bool(row[d]) == sign for d, sign in pattern.items()) for row in matrix[:, read_on]]
        expected = [percentile(counts, t, [*ids, seed]) for t in ids[1::2]]
        assert np.allclose(found[i], expected, rtol=0, atol=1e-12)
    assert empty < 30


def test_given_sets_are_read_on_the_second_half() -> None:
    matrix = random_bits(120, 44, p=0.7)
    sets = np.stack([np.random.default_rng(seed).choice(120, 9, replace=False) for seed in range(12)])
    found = halves(types_of(matrix), sets, sets, np.random.default_rng(13))
    assert found.shape == (12, 4)
    seen = matrix[:, module._halves_of(44, np.random.default_rng(13))[1]]
    for i, ids in enumerate(sets):
        pattern = agreed(seen[ids[::2]])
        if pattern:
            counts = [sum(bool(row[d]) == sign for d, sign in pattern.items()) for row in seen]
            expected = [percentile(counts, t, ids.tolist()) for t in ids[1::2]]
            assert np.allclose(found[i], expected, rtol=0, atol=1e-12)
        else:
            assert np.isnan(found[i]).all()


def test_independent_dimensions_are_read_at_chance() -> None:
    # What neighbours share on one half says nothing about the other, where bits are independent: 60 rows of 10
    # percentiles have a standard error of 0.012, or 0.04 if those of a row were all alike.
    matrix = random_bits(500, 64, p=0.9)
    seeds = np.arange(0, 480, 8)
    found = halves_auc(types_of(matrix), seeds, np.random.default_rng(14))
    assert np.isfinite(found).all()
    assert abs(found.mean() - 0.5) < 0.08
    # On the dimensions that they were found on they are far above all others.
    sets = neighbours(types_of(matrix), seeds)
    left_out = np.concatenate([sets, seeds[:, None]], 1)
    in_sample = read_auc(types_of(matrix), common(types_of(matrix), sets), sets, left_out)
    assert in_sample.mean() > 0.8
