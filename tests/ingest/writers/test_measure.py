from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from signarium.catalog import schema
from signarium.catalog.bulk import Figure
from signarium.catalog.errors import InvalidInput, SiteError
from signarium.ingest.stats.bits import Patterns
from signarium.ingest.stats.draws import rng
from signarium.ingest.writers.agreements import Agreements, floats, shuffled, signs
from signarium.ingest.writers.measure import DRAWS, WRITERS, Group, Measured, best_of_blocks, measure_site

N_LAYERS, NEURONS, WIDTH, LAYER = 4, 120, 160, 2
KS = (1, 10, 50, 100)


def features(n: int, seed: int, p: float = 0.5) -> Patterns:
    generator = np.random.default_rng(seed)
    mask = generator.random((n, WIDTH)) < p
    mask[:, 0] = True
    return Patterns(mask, generator.random((n, WIDTH)) < 0.5)


def model(planted: Patterns | None, per_feature: int = 1, noise: float = 0.1) -> Callable[[int], Tensor]:
    """Gaussian weights; in block `LAYER`, some neurons write each of `planted`, but for a share of `noise`."""

    @cache
    def directions(block: int) -> Tensor:
        generator = np.random.default_rng(100 + block)
        weights = generator.standard_normal((NEURONS, WIDTH))
        if planted is not None and block == LAYER:
            for f in range(len(planted)):
                for i in range(per_feature):
                    expected = np.where(planted.polarity[f], 1, -1)
                    expected[generator.random(WIDTH) < noise] *= -1
                    own = weights[f * per_feature + i]
                    own[:] = np.where(planted.mask[f], abs(own) * expected, own)
        return torch.from_numpy(weights).to(torch.bfloat16)

    return directions


def group(patterns: Patterns, first: int = 1000, kind: str = "category", centre: str = "zero") -> Group:
    return Group(kind, centre, np.arange(len(patterns)) + first, patterns)


def measured(directions: Callable[[int], Tensor], *groups: Group, seed: int = 0) -> Measured:
    return measure_site(directions, N_LAYERS, LAYER, groups, "model/resid_post.2", seed, KS)


def by_name(figures: list[Figure]) -> dict[tuple[str, str, str], Figure]:
    found = {(one.metric, one.control, one.split): one for one in figures}
    assert len(found) == len(figures)
    return found


def columns_equal(one: Measured, other: Measured) -> None:
    for a, b in ((one.writers, other.writers), (one.coalitions, other.coalitions)):
        assert pa.table(a).equals(pa.table(b))


@pytest.fixture(scope="module")
def planted() -> tuple[Patterns, Measured]:
    patterns = features(20, 1)
    return patterns, measured(model(patterns), group(patterns))


def test_planted_writers_are_found(planted: tuple[Patterns, Measured]) -> None:
    patterns, found = planted
    writers = found.writers
    first = writers["rank"] == 1
    assert writers["feature_id"][first].tolist() == list(range(1000, 1020))
    assert writers["neuron"][first].tolist() == list(range(20))
    assert (writers["polarity"][first] == 1).all()
    weights = model(patterns)(LAYER).float().numpy()
    agreement = [
        ((weights[f] > 0) == patterns.polarity[f])[patterns.mask[f]].mean() for f in range(len(patterns))
    ]
    assert writers["agreement"][first].tolist() == agreement
    assert len(writers["rank"]) == 20 * WRITERS
    assert writers["rank"][:WRITERS].tolist() == list(range(1, WRITERS + 1))


def test_planted_writers_beat_every_control(planted: tuple[Patterns, Measured]) -> None:
    figures = by_name(planted[1].figures)
    for filtered in ("", "_top_half"):
        for ending in ("", "_either"):
            metric = f"writer_above_0.80{filtered}{ending}"
            assert figures[metric, "none", "in_sample"].value == 1
            for control in (
                f"{name}:{i}" for name in ("column_shuffled", "gaussian") for i in range(1, DRAWS + 1)
            ):
                other = figures[metric, control, "in_sample"]
                assert other.value < 0.1
                assert other.n == 20
    for ending in ("", "_either"):
        metric = f"writer_best{ending}"
        own = figures[metric, "none", "in_sample"].value
        assert own == pytest.approx(0.9, abs=0.02)
        for control in ("other_blocks", "next_blocks", "column_shuffled:1", "gaussian:3"):
            assert figures[metric, control, "in_sample"].value < own - 0.15


def test_the_planted_block_is_seen(planted: tuple[Patterns, Measured]) -> None:
    figures = by_name(planted[1].figures)
    for ending in ("", "_either"):
        metric = f"own_block_share{ending}"
        assert figures[metric, "none", "in_sample"].value == 1
        assert figures[metric, "chance", "in_sample"].value == 1 / N_LAYERS
        assert figures[metric, "column_shuffled:1", "in_sample"].value < 0.6


def test_controls_see_what_they_destroy_in_a_bias_of_whole_dimensions() -> None:
    """Every neuron of every block writes the same signs: agreement is perfect, and says nothing of writers."""
    signs = torch.where(torch.rand(WIDTH, generator=torch.Generator().manual_seed(0)) < 0.5, -1.0, 1.0)
    mask = features(8, 4).mask
    patterns = Patterns(mask, np.tile(signs.numpy() > 0, (8, 1)))
    figures = by_name(measured(lambda block: signs.expand(NEURONS, WIDTH), group(patterns)).figures)
    assert figures["writer_best", "none", "in_sample"].value == 1
    assert figures["writer_best", "other_blocks", "in_sample"].value == 1
    # Of blocks that are equally good each has its share, which is what chance gives.
    assert figures["own_block_share", "none", "in_sample"].value == 1 / N_LAYERS
    assert figures["coalition_10", "none", "held_out"].value == 1


def test_writers_of_the_opposite_sign_count_in_either_polarity() -> None:
    patterns = features(10, 5)
    opposite = Patterns(patterns.mask, ~patterns.polarity)
    found = measured(model(opposite), group(patterns))
    figures = by_name(found.figures)
    assert figures["writer_above_0.80", "none", "in_sample"].value < 0.1
    assert figures["writer_above_0.80_either", "none", "in_sample"].value == 1
    assert figures["own_block_share_either", "none", "in_sample"].value == 1
    first = found.writers["rank"] == 1
    assert found.writers["neuron"][first].tolist() == list(range(10))
    assert (found.writers["polarity"][first] == -1).all()
    assert (found.writers["agreement"][first] > 0.8).all()


def test_only_a_real_coalition_survives_the_split() -> None:
    patterns = features(10, 6, p=0.9)
    real = by_name(measured(model(patterns, per_feature=10, noise=0.3), group(patterns)).figures)
    fake = by_name(measured(model(None), group(patterns)).figures)
    # What a coin gives on all scored dimensions together.
    spread = 4 * 0.5 / np.sqrt(patterns.n_dims.sum())
    for figures in (real, fake):
        for control in ("none", "fair_coin:1", "fair_coin:2", "column_shuffled:3", "later_block"):
            # The paper's procedure finds coalitions in anything.
            assert figures["coalition_50", control, "in_sample"].value > 0.5 + 3 * spread
            if control != "none":
                other = figures["coalition_50", control, "held_out"]
                assert other.std_error is not None
                assert abs(other.value - 0.5) < spread
    # Ten neurons, each right at 0.7 of all dimensions, vote right at 0.90; half a feature ranks most of them first.
    assert 0.8 < real["coalition_10", "none", "held_out"].value < 0.9 + spread
    assert abs(fake["coalition_10", "none", "held_out"].value - 0.5) < spread


def test_figures_stand_beside_their_rows(planted: tuple[Patterns, Measured]) -> None:
    found = planted[1]
    figures, rows = by_name(found.figures), found.coalitions
    split = rows["agreement_split_half"].to_numpy(zero_copy_only=False)
    for k in KS:
        own = rows["k"] == k
        for control, split_name, values in (
            ("none", "in_sample", rows["agreement"][own]),
            ("fair_coin:1", "in_sample", rows["agreement_random"][own]),
            ("none", "held_out", split[own]),
        ):
            mean = figures[f"coalition_{k}", control, split_name]
            middle = figures[f"coalition_{k}_median", control, split_name]
            assert mean.value == pytest.approx(values.mean())
            assert middle.value == np.median(values)
            assert mean.n == middle.n == 20
        difference = rows["agreement"][own] - rows["agreement_random"][own]
        expected = difference.std(ddof=1) / np.sqrt(20)
        assert figures[f"coalition_{k}", "fair_coin:1", "in_sample"].std_error == pytest.approx(expected)
    assert {(one.subject, one.subject_id, one.site_id) for one in found.figures} == {
        ("category", "zero", "model/resid_post.2")
    }


def test_columns_are_those_of_the_tables(planted: tuple[Patterns, Measured]) -> None:
    for columns, table in (
        (planted[1].writers, schema.writer_row),
        (planted[1].coalitions, schema.coalition_row),
    ):
        assert set(columns) == set(table.c.keys())
        assert len({len(one) for one in columns.values()}) == 1


def test_other_features_at_the_site_change_nothing(planted: tuple[Patterns, Measured]) -> None:
    patterns, alone = planted
    found = measured(model(patterns), group(features(7, 9), 5, "discovered", "mean"), group(patterns), seed=0)
    own = pa.table(found.writers).filter(pa.array(found.writers["feature_id"] >= 1000))
    assert own.equals(pa.table(alone.writers))
    votes = pa.table(found.coalitions).filter(pa.array(found.coalitions["feature_id"] >= 1000))
    assert votes.equals(pa.table(alone.coalitions))
    assert [one for one in found.figures if one.subject == "category"] == alone.figures
    columns_equal(measured(model(patterns), group(patterns), seed=0), alone)
    other = measured(model(patterns), group(patterns), seed=1)
    assert pa.table(other.writers).equals(pa.table(alone.writers))
    assert (other.coalitions["agreement_random"] != alone.coalitions["agreement_random"]).any()


def test_small_features(planted: tuple[Patterns, Measured]) -> None:
    """One dimension: no halves. None: no feature."""
    mask = np.zeros((3, WIDTH), bool)
    mask[0, 5] = mask[2, :3] = True
    found = measured(model(None), group(Patterns(mask, features(3, 0).polarity)))
    assert np.unique(found.coalitions["feature_id"]).tolist() == [1000, 1002]
    halves = found.coalitions["agreement_split_half"]
    assert halves.null_count == len(KS)
    assert by_name(found.figures)["coalition_10", "none", "held_out"].n == 1
    assert by_name(found.figures)["writer_best", "none", "in_sample"].value == 1
    nothing = measured(model(None), group(Patterns(mask[1:2], mask[1:2])))
    assert nothing.figures == []
    for columns, like in ((nothing.writers, planted[1].writers), (nothing.coalitions, planted[1].coalitions)):
        assert pa.table(columns).num_rows == 0
        assert pa.table(columns).schema == pa.table(like).schema
    columns_equal(measured(model(None)), nothing)


def test_blocks_without_directions_are_left_out() -> None:
    whole = model(None)

    def without(block: int) -> Tensor:
        if block in gone:
            raise SiteError("no single map")
        return whole(block)

    patterns = features(6, 2)
    gone = {1, 3}
    figures = by_name(measured(without, group(patterns)).figures)
    assert figures["own_block_share", "chance", "in_sample"].value == 1 / 2
    assert ("writer_best", "next_blocks", "in_sample") not in figures
    gone = {0, 1, 3}
    figures = by_name(measured(without, group(patterns)).figures)
    assert not {one for one in figures if one[0].startswith("own_block_share") or one[1] == "other_blocks"}
    gone = {LAYER}
    with pytest.raises(SiteError):
        measured(without, group(patterns))


def test_the_comparison_of_blocks_takes_the_same_shuffled_weights_as_the_own_block() -> None:
    directions, held = model(None), Agreements(features(6, 2))
    _, permuted = best_of_blocks(held, directions, N_LAYERS, LAYER, 3)
    own: NDArray[np.float32] = shuffled(floats(directions(LAYER)), rng(3, "column_shuffled:1", LAYER))
    high, low = held.extremes(signs(torch.from_numpy(own)))
    np.testing.assert_array_equal(permuted.high[LAYER], high)
    np.testing.assert_array_equal(permuted.low[LAYER], low)


def test_patterns_of_another_width_are_refused() -> None:
    wide = np.ones((2, WIDTH + 1), bool)
    with pytest.raises(InvalidInput, match="160 dimensions"):
        measured(model(None), group(Patterns(wide, wide)))
    with pytest.raises(InvalidInput, match="3 ids"):
        Group("category", "zero", np.arange(3), Patterns(wide, wide))
