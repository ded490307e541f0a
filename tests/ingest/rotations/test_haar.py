from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_pairs import normal, orthogonal, paired
from scipy import stats

from signarium.ingest.rotations import haar
from signarium.ingest.rotations.fit import fit
from signarium.ingest.rotations.haar import Reference, cyclic_shift, statistics
from signarium.ingest.stats.bases import draw_haar

NAMES = (
    "frobenius_from_identity", "ks_distance", "signed_permutation_distance", "trace_1", "trace_2", "trace_3",
)  # fmt: skip


def test_of_the_identity():
    found = statistics(torch.eye(9))
    assert tuple(found) == NAMES
    # All angles at 0, where a ninth should be below pi / 9.
    assert found == pytest.approx(
        dict(zip(NAMES, (0, 1, 0, 9, 9, 9), strict=True)), abs=1e-6
    )  # fmt: skip


def test_of_a_plane_turned_by_hand():
    """By 60 degrees: a pair of angles at pi / 3; beside it 1 at 0 and -1 at pi."""
    c, s = math.cos(math.pi / 3), math.sin(math.pi / 3)
    r = torch.tensor([[c, s, 0, 0], [-s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, -1]])
    found = statistics(r)
    assert found["trace_1"] == pytest.approx(1) and found["frobenius_from_identity"] == pytest.approx(
        math.sqrt(6)
    )
    assert found["trace_2"] == pytest.approx(2 * math.cos(2 * math.pi / 3) + 2)
    assert found["trace_3"] == pytest.approx(-2)
    # Shares 0, 1/3, 1/3, 1 against steps of a quarter: 3/4 - 1/3.
    assert found["ks_distance"] == pytest.approx(3 / 4 - 1 / 3)
    # The nearest has the sine's places: entries s, s, 1, 1.
    assert found["signed_permutation_distance"] == pytest.approx(math.sqrt(8 - 2 * (2 * s + 2)))


@given(seed=st.integers(0, 999), width=st.integers(1, 40))
@settings(max_examples=examples(20))
def test_against_the_eigenvalues_themselves(seed, width):
    r = draw_haar(width, np.random.default_rng(seed))
    assert torch.allclose(r.T @ r, torch.eye(width, dtype=torch.float64), atol=1e-12)
    found = statistics(r)
    angles = np.abs(np.angle(np.linalg.eigvals(r.numpy())))
    assert found["ks_distance"] == pytest.approx(stats.kstest(angles / np.pi, "uniform").statistic, abs=1e-6)
    for k in (1, 2, 3):
        assert found[f"trace_{k}"] == pytest.approx(
            float(torch.trace(torch.linalg.matrix_power(r, k))), abs=1e-9
        )
    assert found["frobenius_from_identity"] ** 2 == pytest.approx(2 * width - 2 * found["trace_1"], abs=1e-6)


def test_traces_are_those_of_haar_matrices():
    """Mean 0, 1, 0 and variance 1, 2, 3 (Diaconis and Shahshahani): QR without the sign fix fails this."""
    generator = np.random.default_rng(0)
    found = [statistics(draw_haar(24, generator)) for _ in range(600)]
    for k in (1, 2, 3):
        traces = np.array([one[f"trace_{k}"] for one in found])
        assert traces.mean() == pytest.approx(1 if k == 2 else 0, abs=4 * math.sqrt(k / 600))
        # The variance of a variance is 2 / n of its square.
        assert traces.var() == pytest.approx(k, rel=4 * math.sqrt(2 / 600))


def test_p_values_of_haar_matrices_are_uniform():
    """Two hundred against the 199 of the reference: a distance above 0.2 has a chance below one in a thousand."""
    reference, generator = Reference(12, 0), np.random.default_rng(1)
    found = [reference.p_values(statistics(draw_haar(12, generator))) for _ in range(200)]
    for name in NAMES:
        values = np.array([one[name] for one in found])
        assert stats.kstest(values, "uniform").statistic < 0.2
        assert 0.02 <= (values <= 0.1).mean() <= 0.22


def test_a_reference_is_drawn_once_and_by_its_seed():
    one, again, other = Reference(10, 0), Reference(10, 0), Reference(10, 1)
    assert one.draws is again.draws
    assert all(len(one.draws[name]) == haar.n_draws(10) == 199 for name in NAMES)
    assert not np.array_equal(one.draws["trace_1"], other.draws["trace_1"])
    assert [haar.n_draws(width) for width in (256, 257, 1024, 1025)] == [199, 99, 99, 19]


def test_p_values_by_hand():
    reference = Reference(3, 0)
    reference.draws = {"trace_1": np.array([-2.0, -1, 0, 1, 2, 3, 4]), "ks_distance": np.arange(7.0)}
    # Of -2 .. 4 and 9 the median is 1.5; only 9 is 7.5 away. And 2 of 7 are at least 5.
    assert reference.p_values({"trace_1": 9, "ks_distance": 5}) == {"trace_1": 1 / 8, "ks_distance": 3 / 8}
    assert reference.p_values({"trace_1": 1, "ks_distance": -1}) == {"trace_1": 1, "ks_distance": 1}


def p_values(matrix, width=64):
    return Reference(width, 0).p_values(statistics(matrix))


def test_the_identity_is_no_random_rotation():
    assert set(p_values(torch.eye(64)).values()) == {1 / 200}


def test_a_rotation_of_a_quarter_of_the_dimensions_is_none():
    matrix = torch.eye(64, dtype=torch.float64)
    matrix[:16, :16] = orthogonal(16, 0)
    found = p_values(matrix)
    for name in ("frobenius_from_identity", "ks_distance", "trace_1", "signed_permutation_distance"):
        assert found[name] == 1 / 200


def test_a_haar_matrix_and_unrelated_states_look_alike():
    """The best rotation between states that have nothing to do with each other: what a high p-value cannot exclude."""
    fitted = fit(paired(normal(2000, 64, 0), normal(2000, 64, 1)), 0)
    assert min(p_values(fitted.rotation.matrix).values()) > 0.01
    assert min(p_values(fitted.shuffled).values()) > 0.01
    assert min(p_values(draw_haar(64, np.random.default_rng(5))).values()) > 0.01


def test_the_eigenvalues_of_a_cyclic_shift_look_random_and_its_axes_do_not():
    shift = cyclic_shift(64)
    x = torch.arange(64, dtype=torch.float64)
    assert torch.equal(x @ shift, x.roll(1))
    values, found = statistics(shift), p_values(shift)
    assert found["ks_distance"] > 0.5
    # Traces of it, of its square and of its cube are 0.
    for name in ("trace_1", "trace_2", "trace_3", "frobenius_from_identity"):
        assert found[name] > 0.05
    assert values["signed_permutation_distance"] == 0
    assert found["signed_permutation_distance"] == 1 / 200


def test_above_its_width_no_permutation_is_sought(monkeypatch):
    monkeypatch.setattr(haar, "MOST_ASSIGNED", 7)
    assert "signed_permutation_distance" not in statistics(torch.eye(8))
    reference = Reference(8, 77)
    assert "signed_permutation_distance" not in reference.draws
    assert set(reference.p_values(statistics(torch.eye(8)))) == set(NAMES) - {"signed_permutation_distance"}
