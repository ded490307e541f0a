"""Categories in data of which it is known whether the axes matter (Bag of Dims notes, section 12)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from signarium.ingest.features import categories, discovery
from signarium.ingest.features.categories import Made, Split, make, read_basis
from signarium.ingest.features.coherence import Vocabulary as Spelling
from signarium.ingest.features.controls import Moments, Rotations
from signarium.ingest.features.prototypes import Ranks
from signarium.ingest.features.readers import Probes
from signarium.ingest.stats.bases import bases
from signarium.ingest.stats.bits import TypeBits
from signarium.ingest.words.anchors import Anchors, Vocabulary

V, D = 4000, 256
SIZE = 40
Floats = NDArray[np.float64]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Told:
    """What the definitions say of one category."""

    in_sample: float
    held_out: float
    log_odds: float
    words: float
    best_dim: float


def by_definition(matrix: NDArray[np.uint8], anchors: Ids, define: Ids, scored: Ids, words: Ids) -> Told:
    others = [t for t in range(len(matrix)) if t not in anchors]
    p_minus = matrix[others].mean(0)

    def prototype(ids: Ids) -> tuple[NDArray[np.bool_], Floats]:
        apart = matrix[ids].mean(0) - p_minus
        auc = 0.5 + np.abs(apart) / 2
        for tau in (0.75, 0.70):
            if (auc >= tau).any():
                return auc >= tau, apart
        return np.arange(len(auc)) == auc.argmax(), apart

    def area(row: Floats, positive: Ids, negative: list[int]) -> float:
        wins = [(row[p] > row[n]) + 0.5 * (row[p] == row[n]) for p in positive for n in negative]
        return sum(wins) / len(wins)

    whole, half = prototype(anchors), prototype(define)
    rows = [((matrix == (apart > 0)) & mask).sum(1).astype(float) for mask, apart in (whole, half)]
    k, m = matrix[define].sum(0), matrix[others].sum(0)
    odds = np.log((k + 0.5) / (len(define) - k + 0.5)) - np.log((m + 0.5) / (len(others) - m + 0.5))
    weighed = np.round(matrix @ (odds * half[0]), 6)
    best = int(np.abs(half[1]).argmax())
    return Told(
        area(rows[0], anchors, others),
        area(rows[1], scored, others),
        area(weighed, scored, others),
        area(rows[1], scored, [t for t in others if t in words]),
        0.5 + np.sign(half[1][best]) * (matrix[scored, best].mean() - p_minus[best]) / 2,
    )


def test_one_basis_by_the_definitions() -> None:
    generator = np.random.default_rng(30)
    matrix = (generator.random((150, 20)) < np.linspace(0.2, 0.8, 20)).astype(np.uint8)
    tilts = {20: 0.0, 21: 0.0, 22: 0.0, 24: 0.3, 31: 0.5, 40: 0.8, 23: 0.0}
    members = [np.sort(generator.choice(150, size, replace=False)) for size in tilts]
    for ids, tilt in zip(members, tilts.values(), strict=True):
        follow = generator.random((len(ids), 20)) < tilt
        matrix[ids] = np.where(follow, np.arange(20) % 2, matrix[ids])
    words = np.flatnonzero(generator.random(150) < 0.6)
    split = Split.of([Anchors(f"c{i}", ids, ()) for i, ids in enumerate(members)], 0)
    found = read_basis(TypeBits(np.packbits(matrix, axis=1), 20), split, words)
    reversed_ = 0
    for i, anchors in enumerate(members):
        assert sorted([*split.define[i], *split.score[i]]) == anchors.tolist()
        told = by_definition(matrix, anchors, split.define[i], split.score[i], words)
        assert found.in_sample.auc[i] == pytest.approx(told.in_sample)
        assert found.held_out.auc[i] == pytest.approx(told.held_out)
        # Sums of the same weights may differ in float32, so that a tie is none.
        assert found.log_odds.auc[i] == pytest.approx(told.log_odds, abs=0.01)
        assert found.held_out.auc_words[i] == pytest.approx(told.words)
        assert found.best_dim_held_out[i] == pytest.approx(told.best_dim)
        reversed_ += told.best_dim < 0.5
    # The scored half may contradict the polarity: then it is read worse than at chance, not better.
    assert reversed_


def test_a_split_is_the_same_whatever_else_there_is() -> None:
    some = [Anchors(name, np.arange(20) + 7 * i, ()) for i, name in enumerate("abc")]
    whole, part = Split.of(some, 0), Split.of(some[1:], 0)
    assert all(np.array_equal(a, b) for a, b in zip(whole.define[1:], part.define, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(whole.score[1:], part.score, strict=True))
    assert not np.array_equal(whole.define[0], Split.of(some, 1).define[0])
    twins = Split.of([Anchors(name, np.arange(40), ()) for name in "ab"], 0)
    assert not np.array_equal(*twins.define)


def word(i: int) -> str:
    letters = ""
    while i or len(letters) < 3:
        letters += "abcdefghijklmnopqrstuvwxyz"[i % 26]
        i //= 26
    return f" {letters}"


def in_bases(x: NDArray[np.float32]) -> dict[str, TypeBits]:
    """Codes without a centre in the basis that `x` is given in, and in the control bases."""
    found = {"standard": TypeBits(np.packbits(x > 0, axis=1), D)}
    rotations = Rotations(D, Moments(x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)))
    for (name, centre), codes in rotations.codes(torch.from_numpy(x)).items():
        if centre == "zero":
            found[name] = TypeBits(codes, D)
    assert list(found) == ["standard", *bases()]
    return found


def made(x: NDArray[np.float32], members: list[Ids], seed: int = 0) -> Made:
    """Categories of `members` in the basis that `x` is given in, and in the control bases."""
    anchors = [Anchors(f"c{i}", np.sort(ids), ()) for i, ids in enumerate(members)]
    vocabulary = Vocabulary([word(i) for i in range(V)])
    assert vocabulary.words.all()
    ranks = Ranks.of(vocabulary.words, np.random.default_rng(seed), draws=20)
    return make(in_bases(x), "s0", "zero", anchors, Split.of(anchors, seed), vocabulary, ranks, seed)


def figures(of: Made, metric: str, split: str = "held_out") -> dict[str, Floats]:
    """Values over categories, by control."""
    values: dict[str, list[float]] = defaultdict(list)
    for _, name, control, where, value, _, _ in of.found.figures:
        if (name, where) == (metric, split):
            values[control].append(value)
    return {control: np.array(some) for control, some in values.items()}


def clusters(seed: int, n: int = 10) -> tuple[NDArray[np.float32], list[Ids]]:
    """Shifted clusters in a random 60-dimensional subspace: no basis is like another, none is privileged.

    The shift is of seven standard deviations of a coordinate of the subspace, about the length of the noise.
    """
    generator = np.random.default_rng(seed)
    subspace = np.linalg.qr(generator.standard_normal((D, 60)))[0].T
    z = generator.standard_normal((V, 60))
    members = np.split(generator.permutation(V)[: n * SIZE], n)
    for ids in members:
        direction = generator.standard_normal(60)
        z[ids] += 7 * direction / np.linalg.norm(direction)
    return (z @ subspace).astype(np.float32), members


def test_without_a_privileged_basis_every_basis_reads_alike() -> None:
    pooled = defaultdict[str, list[float]](list)
    p_rotated = []
    for seed in range(3):
        of = made(*clusters(seed), seed)
        aucs = figures(of, "auc_agreement")
        for control, values in aucs.items():
            pooled[control] += values.tolist()
        p_rotated += figures(of, "p_rotated")["none"].tolist()
        assert (figures(of, "p_anchors")["none"] < 0.01).all()
        assert np.array_equal(of.found.extra["auc_held_out"], aucs["none"])
        assert np.allclose(of.found.extra["auc_rotated"], np.mean([aucs[f"haar:{i}"] for i in (1, 2, 3)], 0))
    # Thirty categories: ten differ by a hundredth and more from basis to basis, one with few dimensions does it.
    mean = {control: np.mean(values) for control, values in pooled.items()}
    assert mean["none"] > 0.9 and abs(mean["anchors"] - 0.5) < 0.05
    assert max(abs(mean["none"] - mean[control]) for control in bases()) < 0.02
    assert len(p_rotated) == 30
    assert np.mean(np.array(p_rotated) < 0.05) < 0.3
    assert np.mean(np.array(p_rotated) > 0.95) < 0.3


def test_one_loud_dimension_spoils_all_bases_but_the_scaled_one() -> None:
    pooled = defaultdict[str, list[float]](list)
    loud = []
    for seed in range(3):
        x, members = clusters(seed)
        x[:, 7] *= 2.0**40
        split = Split.of([Anchors(f"c{i}", np.sort(ids), ()) for i, ids in enumerate(members)], seed)
        for name, codes in in_bases(x).items():
            pooled[name] += read_basis(codes, split, np.arange(V)).held_out.auc.tolist()
        # How far that dimension's sign alone tells the scored halves from the others.
        signs = x[:, 7] > 0
        for define, ids in zip(split.define, split.score, strict=True):
            others = np.delete(signs, np.r_[define, ids]).mean()
            loud.append(0.5 + np.sign(signs[define].mean() - others) * (signs[ids].mean() - others) / 2)
    mean = {name: np.mean(values) for name, values in pooled.items()}
    # Signs do not know how large a dimension is; without the scaled basis the standard one would look like no other.
    assert mean["standard"] > 0.9
    assert abs(mean["standard"] - mean["scaled:1"]) < 0.02
    for i in (1, 2, 3):
        # Every bit is that sign, or its opposite: float32 has no room for what the others add.
        assert pooled[f"haar:{i}"] == pytest.approx(loud)
    assert np.mean(loud) < 0.8


def test_a_privileged_basis_is_seen() -> None:
    generator = np.random.default_rng(10)
    x = generator.standard_normal((V, D)).astype(np.float32)
    members = np.split(generator.permutation(V)[: 20 * SIZE], 20)
    fixed = []
    for ids in members:
        dims = generator.choice(D, 12, replace=False)
        signs = generator.choice([-1.0, 1.0], 12)
        x[ids[:, None], dims] = np.abs(x[ids[:, None], dims]) * signs
        fixed.append(dict(zip(dims.tolist(), (signs > 0).tolist(), strict=True)))
    of = made(x, members)
    aucs = figures(of, "auc_agreement")
    rotated = np.mean([aucs[f"haar:{i}"] for i in (1, 2, 3)], 0)
    # Members have all of some registered dimensions right, others half of them.
    assert aucs["none"].mean() > 0.95
    assert (aucs["none"] > rotated).all() and (aucs["none"] - rotated).mean() > 0.2
    # Its dimensions are of one variance: scaling is no way to find them.
    assert (aucs["none"] > aucs["scaled:1"]).all() and (aucs["none"] - aucs["scaled:1"]).mean() > 0.2
    assert (figures(of, "p_rotated")["none"] < 0.01).mean() > 0.8
    assert (figures(of, "p_anchors")["none"] < 0.01).all()
    # What is registered is what was planted: the shares among the others are close to 1/2, a fixed sign's AUC to 0.75.
    patterns = of.found.patterns
    for i, planted in enumerate(fixed):
        dims = np.flatnonzero(patterns.mask[i]).tolist()
        assert set(dims) <= set(planted)
        assert all(patterns.polarity[i, d] == planted[d] for d in dims)
    p_value = np.array(of.found.extra["p_value"])
    every = [figures(of, name)["none"] for name in ("p_anchors", "p_anchors_rank", "p_rotated")]
    assert np.array_equal(p_value, np.max(every, 0))


def test_random_labels_are_read_at_chance() -> None:
    # On data with clusters, which random sets do not follow.
    x, _ = clusters(20)
    generator = np.random.default_rng(21)
    members = [generator.choice(V, SIZE, replace=False) for _ in range(120)]
    of = made(x, members)
    # Twenty percentiles have a standard error of 0.065, the mean of 120 such means one of 0.006.
    for control in ("none", *bases()):
        for metric in ("auc_agreement", "auc_log_odds", "auc_agreement_words"):
            assert abs(figures(of, metric)[control].mean() - 0.5) < 0.03
    assert abs(figures(of, "auc_probe")["none"].mean() - 0.5) < 0.03
    # In sample the same sets are read well above chance: why halves are held out.
    assert figures(of, "auc_agreement", "in_sample")["none"].mean() > 0.6
    for metric in ("p_anchors", "p_anchors_rank"):
        p = figures(of, metric)["none"]
        assert (p < 0.05).mean() <= 0.15
        # A share of 120 has a standard error of 0.045; the null's own mean, of 100 draws, moves all of them by 0.04.
        for level in (0.25, 0.5, 0.75):
            assert abs((p < level).mean() - level) < 0.15
    assert (np.array(of.found.extra["p_value"]) < 0.05).mean() <= 0.05


def test_a_probe_is_not_scored_among_the_types_that_it_was_trained_against(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def told(types: TypeBits, anchors: list[Ids], define_on: list[Ids], generator: object) -> Probes:
        """Above the members stand those that it saw, and no others."""
        scores = np.zeros((len(anchors), types.n), np.float32)
        scores[:, 1000:2000] = 2
        for row, ids in zip(scores, anchors, strict=True):
            row[ids] = 1
        return Probes(scores, np.arange(1000, 2000))

    monkeypatch.setattr(categories, "probes", told)
    of = made(*clusters(40, 2))
    for metric in ("auc_probe", "auc_probe_words"):
        assert figures(of, metric)["none"].tolist() == [1, 1]


def test_counts_beyond_sixteen_bits() -> None:
    # Members agree on all dimensions, others on none.
    matrix = np.zeros((60, 32_770), np.uint8)
    members = np.arange(0, 60, 3)
    matrix[members] = 1
    split = Split.of([Anchors("all", members, ())], 0)
    found = read_basis(TypeBits(np.packbits(matrix, axis=1), 32_770), split, np.arange(60))
    assert found.whole.patterns.n_dims.tolist() == [32_770]
    assert [one.auc.tolist() for one in (found.in_sample, found.held_out, found.log_odds)] == [[1]] * 3
    assert [one.auc_words.tolist() for one in (found.held_out, found.log_odds)] == [[1]] * 2


def test_neighbours_with_nothing_in_common_read_nothing_in_every_basis_alike() -> None:
    # Twelve independent bits: what is near on six of them differs on the other six.
    generator = np.random.default_rng(50)
    codes = {
        name: TypeBits(np.packbits(generator.random((600, 12)) < 0.5, axis=1), 12)
        for name in ("standard", *bases())
    }
    seeds = np.arange(0, 600, 10)
    names = [word(i) for i in range(600)]
    ranks = Ranks.of(np.ones(600, bool), np.random.default_rng(0), draws=20)
    read = {name: discovery.in_basis(one, seeds, 0) for name, one in codes.items()}
    for one in read.values():
        nothing = np.isnan(one.percentiles).any(1)
        assert nothing.mean() > 0.5
        assert (one.auc[nothing] == 0.5).all()
        assert np.array_equal(one.auc[~nothing], one.percentiles[~nothing].mean(1))
    baselines = discovery.Baselines(Spelling(names, []), ranks, seeds, 0)
    of = discovery.make(codes, "s0", "mean", seeds, names, baselines, ranks, 0)
    assert of.found is not None
    kept = read["standard"].kept
    aucs = figures(of, "auc_agreement")
    assert np.array_equal(aucs["none"], of.found.extra["auc_held_out"])
    for name, one in read.items():
        assert np.array_equal(aucs["none" if name == "standard" else name], one.auc[kept])
    # Where no basis reads anything, none is better.
    p = figures(of, "p_rotated")["none"]
    silent = np.all([aucs[name] == 0.5 for name in ("none", "haar:1", "haar:2", "haar:3")], 0)
    assert silent.any() and (p[silent] == 0.5).all()
    assert np.isfinite(np.array(of.found.extra["p_value"], float)).all()
