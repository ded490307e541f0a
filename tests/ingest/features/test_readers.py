from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from signarium.ingest.features import readers
from signarium.ingest.features.prototypes import score
from signarium.ingest.features.readers import linear, log_odds, probes
from signarium.ingest.stats import bits as bits_module
from signarium.ingest.stats.bits import Patterns, TypeBits, agreements

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


def random_bits(n: int, width: int, seed: int = 0, p: float = 0.5) -> NDArray[np.uint8]:
    return (np.random.default_rng(seed).random((n, width)) < p).astype(np.uint8)


def types_of(matrix: NDArray[np.uint8]) -> TypeBits:
    return TypeBits(np.packbits(matrix, axis=1), matrix.shape[1])


def sets_of(n: int, sizes: list[int], seed: int = 1) -> tuple[list[Ids], list[Ids]]:
    """Anchors, which may overlap, and every second of them to define with."""
    generator = np.random.default_rng(seed)
    anchors = [np.sort(generator.choice(n, size, replace=False)) for size in sizes]
    return anchors, [ids[::2] for ids in anchors]


# ---- log-odds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [7, 44])
def test_log_odds_by_the_formula(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bits_module, "BLOCK_BYTES", 1)
    matrix = random_bits(300, width, p=0.4)
    # Dimensions without a positive bit, and without a negative one: no logarithm of 0.
    matrix[:, 0], matrix[:, 1] = 0, 1
    anchors, define_on = sets_of(300, [4, 21, 50])
    mask = random_bits(3, width, 2).astype(bool)
    mask[:, :2] = True
    weights = log_odds(types_of(matrix), anchors, define_on, mask)
    assert weights.shape == (width, 3)
    found = linear(types_of(matrix), weights)
    assert found.shape == (3, 300)
    for i, (all_ids, own) in enumerate(zip(anchors, define_on, strict=True)):
        outside = [t for t in range(300) if t not in all_ids]
        exact = {}
        for d in np.flatnonzero(mask[i]):
            plus, minus = int(matrix[own, d].sum()), int(matrix[outside, d].sum())
            exact[d] = math.log((plus + 0.5) / (len(own) - plus + 0.5)) - math.log(
                (minus + 0.5) / (len(outside) - minus + 0.5)
            )
        assert np.allclose(weights[:, i], [exact.get(d, 0.0) for d in range(width)], rtol=0, atol=1e-5)
        expected = [sum(w for d, w in exact.items() if row[d]) for row in matrix]
        assert np.allclose(found[i], expected, rtol=0, atol=1e-4)


def planted(reliability: Floats, seed: int) -> tuple[TypeBits, Ids, Ids]:
    """3000 types of independent bits, members being 1 with `reliability` (width,) and the others with 1 less that;
    200 members to define with and 200 to score."""
    generator = np.random.default_rng(seed)
    p = np.tile(1 - reliability, (3000, 1))
    members = generator.choice(3000, 400, replace=False)
    p[members] = reliability
    matrix = (generator.random(p.shape) < p).astype(np.uint8)
    return types_of(matrix), np.sort(members[:200]), np.sort(members[200:])


def held_out(reliability: Floats, seed: int) -> tuple[float, float]:
    """AUC of log-odds, and of counting agreements, over the same dimensions."""
    types, define_on, scored = planted(reliability, seed)
    anchors = np.sort(np.concatenate([define_on, scored]))
    every = np.ones((1, types.width), bool)
    weighed = linear(types, log_odds(types, [anchors], [define_on], every))[0]
    ((_, counts),) = agreements(types, Patterns(every, every))
    first, second = (score(row, scored, anchors, [None])[0] for row in (weighed, counts))
    return float(first.mean()), float(second.mean())


def test_log_odds_read_dimensions_of_different_reliability_better() -> None:
    # Three good dimensions drown among thirty poor ones if all count alike: their signal-to-noise ratios are
    # about 4.6 and 1.3, AUCs of about 0.98 and 0.82. Asked for is a third of that margin.
    found = np.array([held_out(np.r_[np.full(30, 0.52), np.full(3, 0.9)], seed) for seed in range(5)])
    assert (found[:, 0] > found[:, 1]).all()
    assert (found[:, 0] - found[:, 1]).mean() > 0.05


def test_log_odds_of_equal_dimensions_read_as_agreement_does() -> None:
    found = np.array([held_out(np.full(20, 0.65), seed) for seed in range(5)])
    assert np.abs(found[:, 0] - found[:, 1]).max() < 0.03


# ---- probes ---------------------------------------------------------------------------------------


PENALTY = 100.0  # scikit-learn's C = 0.01


class Objective:
    """What is to be minimised, in float64: sum of s log(1 + exp(-y (x w + b))) + 50 |w|^2, x of -1 and 1, s the
    number of examples over twice that of the example's class."""

    def __init__(self, matrix: NDArray[np.uint8], positive: Ids, negative: Ids) -> None:
        self.x = 2.0 * matrix[np.r_[positive, negative]] - 1.0
        self.y = np.r_[np.ones(len(positive)), -np.ones(len(negative))]
        n = len(self.y)
        self.s = np.where(self.y > 0, n / (2 * len(positive)), n / (2 * len(negative)))

    def gradient(self, w: Floats, b: float) -> tuple[Floats, float]:
        pull = -self.y * self.s / (1 + np.exp(self.y * (self.x @ w + b)))
        return self.x.T @ pull + PENALTY * w, float(pull.sum())

    def intercept(self, w: Floats) -> float:
        """The best one for these weights, by bisection: its derivative rises."""
        low, high = -50.0, 50.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if self.gradient(w, middle)[1] > 0 else (middle, high)
        return (low + high) / 2

    def left(self, w: Floats) -> float:
        """The largest component of the gradient at `w`, as a share of what it is without weights."""
        none = np.zeros(len(w))
        largest = [np.abs(self.gradient(v, self.intercept(v))[0]).max() for v in (w, none)]
        return float(largest[0] / largest[1])

    def solution(self) -> Floats:
        """Newton's method, halving steps."""

        def value(v: Floats) -> float:
            margin = self.y * (self.x @ v[1:] + v[0])
            return float((self.s * np.logaddexp(0, -margin)).sum() + PENALTY * (v[1:] ** 2).sum() / 2)

        v = np.zeros(1 + self.x.shape[1])
        full = np.c_[np.ones(len(self.x)), self.x]
        for _ in range(50):
            g, g0 = self.gradient(v[1:], v[0])
            # The penalty is convex enough that no weight is off by that.
            if max(np.abs(g).max(), abs(g0)) < 1e-6:
                return v[1:]
            p = 1 / (1 + np.exp(-full @ v))
            ridge = np.diag(np.r_[0, np.full(len(g), PENALTY)])
            hessian = full.T @ (full * (self.s * p * (1 - p))[:, None]) + ridge
            step, size = np.linalg.solve(hessian, np.r_[g0, g]), 1.0
            # But for what rounding does to a value.
            while value(v - size * step) > value(v) + 1e-9 and size > 1e-9:
                size /= 2
            v = v - size * step
        raise AssertionError("not at the minimum")


def weights_from(scores: NDArray[np.float32], matrix: NDArray[np.uint8]) -> Floats:
    """The weights on bits of -1 and 1 which order types like `scores`, which are linear in bits of 0 and 1."""
    solved, residual, rank, _ = np.linalg.lstsq(matrix.astype(float), scores.astype(float), rcond=None)
    assert rank == matrix.shape[1] and residual.max() < 1e-6
    return solved


@pytest.mark.parametrize("own_bytes", [readers._OWN_BYTES, 1], ids=["together", "one by one"])
@pytest.mark.parametrize("n_negatives", [1024, 150])
def test_a_probe_minimises_what_it_says(
    n_negatives: int, own_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "NEGATIVES", n_negatives)
    monkeypatch.setattr(readers, "_OWN_BYTES", own_bytes)
    matrix = random_bits(500, 24, p=0.45)
    anchors, define_on = sets_of(500, [20, 36, 60, 100])
    # One that a line can tell apart, one that it nearly can.
    matrix[anchors[0], :3] = 1
    matrix[anchors[1], 3:9] |= random_bits(36, 6, 5)
    found = probes(types_of(matrix), anchors, define_on, np.random.default_rng(3))
    assert found.negatives.tolist() == sorted(set(found.negatives.tolist()))
    # Half of a small vocabulary is left to be scored against.
    assert len(found.negatives) == min(n_negatives, 250)
    assert found.scores.shape == (4, 500)
    for i, (all_ids, own) in enumerate(zip(anchors, define_on, strict=True)):
        task = Objective(matrix, own, np.setdiff1d(found.negatives, all_ids))
        # With ten times the penalty or a tenth of it, or another balance, most of it would be left.
        assert task.left(weights_from(found.scores[i][None].T, matrix)[:, 0]) < 0.01


def latent(generator: np.random.Generator) -> tuple[NDArray[np.uint8], list[Ids]]:
    """3000 types of 192 bits that depend on each other, as signs of 20 common causes of very different strength; and
    24 overlapping sets of 20 to 150 types that are shifted along one direction of the causes, some hardly."""
    causes = generator.standard_normal((3000, 20))
    anchors = [
        np.sort(generator.choice(3000, size, replace=False)) for size in np.linspace(20, 150, 24).astype(int)
    ]
    for ids, shift in zip(anchors, generator.uniform(0.3, 3, 24), strict=True):
        direction = generator.standard_normal(20)
        causes[ids] += shift * direction / np.linalg.norm(direction)
    loads = generator.standard_normal((20, 192)) * np.logspace(0.5, -0.5, 20)[:, None]
    x = causes @ loads + generator.standard_normal((3000, 192)) + generator.standard_normal(192)
    return (x > 0).astype(np.uint8), anchors


def test_a_probe_reads_as_the_minimum_does() -> None:
    matrix, anchors = latent(np.random.default_rng(8))
    cut = [np.random.default_rng([9, i]).permutation(ids) for i, ids in enumerate(anchors)]
    define_on, scored = [ids[::2] for ids in cut], [ids[1::2] for ids in cut]
    found = probes(types_of(matrix), anchors, define_on, np.random.default_rng(10))
    unseen = np.setdiff1d(np.arange(3000), found.negatives)
    aucs = []
    for i, ids in enumerate(anchors):
        exact = matrix @ Objective(matrix, define_on[i], np.setdiff1d(found.negatives, ids)).solution()
        rows = (found.scores[i], exact)
        aucs.append([score(row, scored[i], ids, [unseen])[0].mean() for row in rows])
    own, minimum = np.array(aucs).T
    assert np.abs(own - minimum).max() <= 0.002
    # Some are hardly read, some well.
    assert minimum.min() < 0.7 and minimum.max() > 0.9


def test_a_probe_sees_neither_the_scored_anchors_nor_other_sets() -> None:
    matrix = random_bits(400, 24)
    anchors, define_on = sets_of(400, [40, 30])
    found = probes(types_of(matrix), anchors, define_on, np.random.default_rng(4)).scores
    weights = weights_from(found.T, matrix)
    # Half of the types are the random ones here; such as are scored later count in no class of their set.
    scored = np.setdiff1d(anchors[0], define_on[0])
    changed = matrix.copy()
    changed[scored] ^= 1
    again = probes(types_of(changed), anchors[:1], define_on[:1], np.random.default_rng(4)).scores
    largest = np.abs(weights[:, 0]).max()
    assert np.abs(weights_from(again.T, changed)[:, 0] - weights[:, 0]).max() < 0.05 * largest
    # Where the defining half turns into its opposite, the weights about do.
    changed[define_on[0]] ^= 1
    other = probes(types_of(changed), anchors[:1], define_on[:1], np.random.default_rng(4)).scores
    assert np.abs(weights_from(other.T, changed)[:, 0] - weights[:, 0]).max() > largest


def test_probes_are_seeded() -> None:
    matrix = random_bits(3000, 9)
    anchors, define_on = sets_of(3000, [30])
    first, again, other = (
        probes(types_of(matrix), anchors, define_on, np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    assert len(first.negatives) == 1024 and len(np.unique(first.negatives)) == 1024
    assert np.array_equal(first.scores, again.scores)
    assert not np.array_equal(first.negatives, other.negatives)


def test_linear_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(bits_module, "BLOCK_BYTES", 1)
    matrix = random_bits(600, 44)
    weights = np.random.default_rng(7).normal(size=(44, 3)).astype(np.float32)
    found = linear(types_of(matrix), torch.from_numpy(weights))
    assert np.allclose(found, (matrix.astype(float) @ weights.astype(float)).T, rtol=0, atol=1e-4)
