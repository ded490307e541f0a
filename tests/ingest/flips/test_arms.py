"""What each arm does to a state."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from signarium.ingest.flips.arms import ARMS, DOSES, Arms, Pattern, norm_of, rotated_direction, set_signs
from signarium.ingest.stats.bases import haar

WIDTH, N_DIMS = 32, 11
H = torch.randn(4, 6, WIDTH, generator=torch.Generator().manual_seed(0))
ZERO = torch.zeros(WIDTH)


def unit(seed: int) -> torch.Tensor:
    made = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
    return made / made.norm()


@pytest.fixture(params=["zero", "mean"])
def arms(request: pytest.FixtureRequest) -> Arms:
    rng = np.random.default_rng(0)
    mask = np.arange(WIDTH) < N_DIMS
    polarity = rng.random(WIDTH) < 0.5
    centre = (
        ZERO if request.param == "zero" else torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
    )
    return Arms(
        centre, Pattern.of(mask, polarity, rng), Pattern.random(WIDTH, N_DIMS, rng), Pattern.of(~mask, polarity, rng),
        unit(2), unit(3), torch.ones(WIDTH),
    )  # fmt: skip


def test_away_and_toward_set_the_signs(arms: Arms) -> None:
    away = arms.changed(H, "away", 1.0, "own")
    toward = arms.changed(H, "toward", 1.0, "own")
    dims, signs = arms.feature.dims, arms.feature.signs
    x = (H - arms.centre)[..., dims].abs()
    assert torch.allclose((away - arms.centre)[..., dims], -signs * x, atol=1e-6)
    assert torch.allclose((toward - arms.centre)[..., dims], signs * x, atol=1e-6)
    rest = np.setdiff1d(np.arange(WIDTH), dims)
    assert torch.equal(away[..., rest], H[..., rest]) and torch.equal(toward[..., rest], H[..., rest])
    # Twice is once, and the one undoes the other.
    assert torch.allclose(arms.changed(away, "away", 1.0, "own"), away, atol=1e-6)
    assert torch.allclose(arms.changed(away, "toward", 1.0, "own"), toward, atol=1e-6)
    # Between them they change each registered dimension once.
    both = ((away != H) ^ (toward != H))[..., dims]
    assert both.all() or arms.centre.any()


def test_away_is_exact_about_zero() -> None:
    pattern = Pattern(torch.tensor([3, 1]), torch.tensor([1.0, -1.0]))
    away = set_signs(H, ZERO, pattern, -1)
    assert torch.equal(away[..., 3], -H[..., 3].abs()) and torch.equal(away[..., 1], H[..., 1].abs())
    assert torch.equal(set_signs(away, ZERO, pattern, -1), away)


@pytest.mark.parametrize("n", [1, 2, 11])
def test_doses_are_nested(n: int) -> None:
    pattern = Pattern.of(np.arange(WIDTH) < n, np.ones(WIDTH, bool), np.random.default_rng(0))
    before: set[int] = set()
    for dose in DOSES:
        taken = set(pattern.dosed(dose).dims.tolist())
        assert len(taken) == max(1, round(dose * n)) and before <= taken
        before = taken
    assert before == set(range(n))


def test_arms_at_equal_norm(arms: Arms) -> None:
    for dose in DOSES:
        norms = norm_of(arms.changed(H, "away", dose, "own") - H)
        for arm in ARMS[1:]:
            changed = arms.changed(H, arm, dose, "away")
            own = norms if arm in ("rotated", "mean_difference") else None
            if own is None:
                # What an arm leaves alone has no direction to be scaled in.
                moved = norm_of(arms.changed(H, arm, dose, "own") - H) > 0
                own = torch.where(moved, norms, torch.zeros_like(norms))
            assert torch.allclose(norm_of(changed - H), own, atol=1e-4), arm


def test_what_is_zero_stays_zero(arms: Arms) -> None:
    toward = arms.changed(H, "toward", 1.0, "own")
    assert torch.allclose(arms.changed(toward, "toward", 1.0, "away"), toward, atol=1e-3) or arms.centre.any()
    exact = replace(arms, centre=ZERO)
    toward = exact.changed(H, "toward", 1.0, "own")
    assert torch.equal(exact.changed(toward, "toward", 1.0, "away"), toward)


def test_the_difference_of_means_is_taken_out(arms: Arms) -> None:
    assert arms.difference is not None
    for dose in (0.4, 1.0):
        changed = arms.changed(H, "mean_difference", dose, "own")
        left = (changed - arms.others) @ arms.difference
        expected = (1 - dose) * ((H - arms.others) @ arms.difference)
        assert torch.allclose(left[:, 1:], expected[:, 1:], atol=1e-5)
        # The means are of later positions.
        assert torch.equal(changed[:, 0], H[:, 0])
    pushed = arms.changed(H, "mean_difference", 1.0, "away")
    assert ((pushed - H) @ arms.difference <= 0).all()


def test_what_changes_states_alike_has_one_key(arms: Arms) -> None:
    seen: dict[tuple[object, ...], torch.Tensor] = {}
    small = replace(arms, feature=arms.feature.dosed(0.2), random=arms.random.dosed(0.2))
    rows = [(arm, dose, norm) for arm in ARMS for dose in DOSES for norm in ("own", "away")]
    for arm, dose, norm in rows:
        if (arm, norm) in (("rotated", "own"), ("away", "away")):
            continue
        changed = small.changed(H, arm, dose, norm)
        assert torch.equal(seen.setdefault(small.key(arm, dose, norm), changed), changed)
    assert len(seen) < len(rows) * 0.7
    assert not replace(arms, disjoint=None).has("disjoint") and arms.has("disjoint") and arms.has("away")


def test_a_direction_planted_in_the_rotated_basis_is_found() -> None:
    q = haar(WIDTH, 1)
    made = torch.Generator().manual_seed(0)
    others = torch.randn(400, WIDTH, generator=made)
    own = torch.randn(40, WIDTH, generator=made)
    own[:, :] += 4 * (q[:, 5] - q[:, 7])
    found = rotated_direction(own, others, None, 2)
    assert torch.allclose(found, (q[:, 5] - q[:, 7]) / 2**0.5, atol=1e-6)
    shifted = rotated_direction(own + 9, others + 9, torch.full((WIDTH,), 9.0), 2)
    assert torch.allclose(shifted, found, atol=1e-5)
    assert float(rotated_direction(own, others, None, 7).norm()) == pytest.approx(1, abs=1e-5)
