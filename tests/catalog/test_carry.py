"""Carrying codes through a rotation: what a sign says of its float, and what of that a rotation keeps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from signarium.catalog import carry
from signarium.catalog.carry import Rotation
from signarium.catalog.codes import Codes, pack, unpack
from signarium.catalog.errors import InvalidInput

SEEDS = st.integers(0, 2**32 - 1)
WIDTHS = st.integers(1, 70)
FINITE = st.floats(-1e6, 1e6)
SIGNS_ALONE = 1 - math.acos(math.sqrt(2 / math.pi)) / math.pi
"""Share of bits that agree when the signs of isotropic normal states alone pass a Haar rotation: a state and what its
signs say of it have correlation sqrt(2 / pi) in each dimension, before the rotation and, as sums of many, after it."""


def haar(width: int, generator: np.random.Generator) -> NDArray[np.float64]:
    q, r = np.linalg.qr(generator.standard_normal((width, width)))
    return q * np.sign(np.diagonal(r))


def some(width: int, seed: int, flat: float = 0.2) -> Rotation:
    """A random rotation with random moments; a share of the dimensions of A does not vary."""
    g = np.random.default_rng(seed)
    std_a = np.where(g.random(width) < flat, 0.0, np.exp(g.normal(0, 1, width)))
    parts = (
        haar(width, g),
        g.normal(0, 2, width),
        g.normal(0, 2, width),
        std_a,
        np.exp(g.normal(0, 1, width)),
    )
    return Rotation(*(one.astype(np.float32) for one in parts))


# ---- a float from its sign ------------------------------------------------------------------------


def test_truncated_means_are_those_of_a_table() -> None:
    # The half-normal, and one truncated at one standard deviation: phi(1) / (1 - Phi(1)) = 1.525135.
    below, above = carry.sides(np.zeros(1), np.ones(1))
    assert above[0] == pytest.approx(math.sqrt(2 / math.pi)) and below[0] == -above[0]
    below, above = carry.sides(np.zeros(1), np.ones(1), np.ones(1))
    assert above[0] == pytest.approx(1.5251352761609807, rel=1e-12)
    assert below[0] == pytest.approx(-0.2875999709391784, rel=1e-12)


@given(FINITE, st.floats(1e-3, 1e3), st.floats(-20, 20))
def test_sides_stand_where_they_must(mean: float, std: float, z: float) -> None:
    centre = mean + std * z
    below, above = (
        float(one[0]) for one in carry.sides(np.array([mean]), np.array([std]), np.array([centre]))
    )
    assert below <= min(mean, centre) and above >= max(mean, centre)
    # The whole is the mean of its parts.
    p = math.erfc(((centre - mean) / std) / math.sqrt(2)) / 2
    assert p * above + (1 - p) * below == pytest.approx(mean, rel=1e-9, abs=1e-6 * std)


@given(st.floats(-1e300, 1e300), st.floats(0, 1e300), st.floats(-1e300, 1e300))
def test_no_tail_is_too_far(mean: float, std: float, centre: float) -> None:
    with np.errstate(all="raise", under="ignore", over="ignore", invalid="ignore"):
        below, above = carry.sides(np.array([mean]), np.array([std]), np.array([centre]))
    assert below[0] <= centre <= above[0] or math.isinf(above[0] - below[0])
    assert not math.isnan(below[0]) and not math.isnan(above[0])


def test_the_tails_meet_where_the_formula_changes() -> None:
    z = np.array([29.9, 29.999999, 30.000001, 30.1, 1e3, 1e7, 1e9])
    _, above = carry.sides(np.zeros(len(z)), np.ones(len(z)), z)
    assert (np.diff(above) > 0).all()
    # z + 1/z - 2/z^3 + ...
    assert np.allclose(above - z, 1 / z - 2 / z**3, rtol=2e-5, atol=1e-8)


def test_what_does_not_vary_is_its_mean_or_at_the_centre() -> None:
    mean, centre = np.array([2.0, -2.0, 0.0]), np.zeros(3)
    below, above = carry.sides(mean, np.zeros(3), centre)
    assert above.tolist() == [2.0, 0.0, 0.0] and below.tolist() == [0.0, -2.0, 0.0]


@pytest.mark.parametrize(
    ("mean", "std", "centre"),
    [
        (np.zeros(3), np.zeros(2), None),
        (np.zeros(3), -np.ones(3), None),
        (np.full(3, np.nan), np.ones(3), None),
        (np.zeros(3), np.full(3, np.inf), None),
        (np.zeros(3), np.ones(3), np.full(3, np.nan)),
        (np.zeros(3), np.ones(3), np.zeros(4)),
    ],
)
def test_moments_that_are_none(mean: NDArray[np.float64], std: NDArray[np.float64], centre: object) -> None:
    with pytest.raises(InvalidInput):
        carry.sides(mean, std, centre)  # type: ignore[arg-type]


# ---- codes ----------------------------------------------------------------------------------------


def carried(codes: Codes, rotation: Rotation, *centres: Any) -> Codes:
    return np.stack([carry.carry_code(one, rotation, *centres) for one in codes])


@given(WIDTHS, SEEDS)
def test_codes_are_as_by_hand(width: int, seed: int) -> None:
    r = some(width, seed)
    g = np.random.default_rng(seed + 1)
    codes = pack(g.standard_normal((7, width)))
    centre_a, centre_b = g.normal(0, 2, width), g.normal(0, 2, width)
    below, above = carry.sides(r.mean_a, r.std_a, centre_a)
    floats = np.where(unpack(codes, width) == 1, above, below)
    x = (floats - r.mean_a) @ r.matrix.astype(np.float64) + r.mean_b - centre_b
    # A sum that is zero to seven digits may fall on either side.
    clear = np.abs(x) > 1e-4 * (1 + np.abs(floats).sum(1, keepdims=True))
    found = carried(codes, r, centre_a, centre_b)
    assert found.shape == codes.shape and found.dtype == np.uint8
    assert ((unpack(found, width) == (x > 0)) | ~clear).all()
    if width % 8:
        assert not (found[:, -1] & ((1 << (8 - width % 8)) - 1)).any(), "padding is zero"
    assert np.array_equal(
        carry.carry_code(codes[0], r),
        carry.pack_about(carry.carry_floats(carry.expected_floats(codes[0], r), r)),
    )


@given(WIDTHS, SEEDS)
def test_there_and_back(width: int, seed: int) -> None:
    r = some(width, seed)
    x = np.random.default_rng(seed).standard_normal((3, width))
    assert np.allclose(carry.carry_floats(carry.carry_floats(x, r), r.inverse), x, atol=1e-4)
    assert np.allclose(carry.carry_direction(carry.carry_direction(x, r), r.inverse), x, atol=1e-4)
    assert np.array_equal(r.inverse.inverse.matrix, r.matrix)


def test_signs_alone_keep_the_share_of_bits_that_they_must() -> None:
    assert pytest.approx(0.794, abs=5e-4) == SIGNS_ALONE
    width, n = 256, 400
    g = np.random.default_rng(0)
    turn = haar(width, g)
    mean_a, mean_b = g.normal(0, 0.5, width), g.normal(0, 0.5, width)
    r = Rotation(*(one.astype(np.float32) for one in (turn, mean_a, mean_b, np.ones(width), np.ones(width))))
    a = g.standard_normal((n, width)) + mean_a
    b = (a - mean_a) @ turn + mean_b
    # About the means: exactly the isotropic case.
    turned = carried(pack(a - mean_a), r, mean_a, mean_b)
    agree = (unpack(turned, width) == unpack(pack(b - mean_b), width)).mean()
    assert agree == pytest.approx(SIGNS_ALONE, abs=0.01)
    # About zero a code says less of a dimension, and its mean more; together no less.
    about_zero = (unpack(carried(pack(a), r), width) == unpack(pack(b), width)).mean()
    assert about_zero > SIGNS_ALONE - 0.01
    # Floats lose nothing, and an unrelated rotation keeps nothing.
    assert (pack(carry.carry_floats(a, r) - mean_b) == pack(b - mean_b)).mean() > 0.999
    other = Rotation(haar(width, g).astype(np.float32), r.mean_a, r.mean_b, r.std_a, r.std_b)
    chance = carried(pack(a - mean_a), other, mean_a, mean_b)
    assert (unpack(chance, width) == unpack(pack(b - mean_b), width)).mean() == pytest.approx(0.5, abs=0.02)


def test_sizes_matter_where_dimensions_differ() -> None:
    # The plain +-1 would give every dimension one size.
    width, n = 128, 400
    g = np.random.default_rng(1)
    turn, std = haar(width, g), np.exp(g.normal(0, 1.5, width))
    zero = np.zeros(width)
    r = Rotation(*(one.astype(np.float32) for one in (turn, zero, zero, std, std)))
    a = g.standard_normal((n, width)) * std
    truth = unpack(pack(a @ turn), width)
    sized = (unpack(carried(pack(a), r), width) == truth).mean()
    plain = (unpack(pack(np.sign(a) @ turn), width) == truth).mean()
    assert sized > SIGNS_ALONE - 0.02 and sized > plain + 0.05


# ---- directions and features ----------------------------------------------------------------------


def test_a_feature_keeps_its_size_and_follows_a_permutation() -> None:
    width = 20
    g = np.random.default_rng(2)
    order, flip = g.permutation(width), g.choice([-1.0, 1.0], width)
    turn = np.zeros((width, width))
    turn[np.arange(width), order] = flip
    std = np.exp(g.normal(0, 1, width))
    zero = np.zeros(width)
    r = Rotation(*(one.astype(np.float32) for one in (turn, zero, zero, std, std[np.argsort(order)])))
    mask = np.zeros(width, np.uint8)
    mask[[1, 4, 9, 16]] = 1
    positive = np.zeros(width, np.uint8)
    positive[[4, 16]] = 1
    found = carry.carry_pattern(np.packbits(mask), np.packbits(positive), r)
    bits, signs = (unpack(one, width) for one in found)
    assert sorted(np.flatnonzero(bits)) == sorted(order[[1, 4, 9, 16]])
    assert all(signs[order[d]] == ((2 * positive[d] - 1.0) * flip[d] > 0) for d in (1, 4, 9, 16))
    assert not (signs & ~bits & 1).any(), "signs outside the mask are zero"


@given(WIDTHS, SEEDS)
def test_a_carried_feature_has_as_many_dimensions(width: int, seed: int) -> None:
    r = some(width, seed)
    g = np.random.default_rng(seed)
    mask = np.packbits(g.integers(0, 2, width).astype(np.uint8))
    found, signs = carry.carry_pattern(mask, mask, r)
    assert np.bitwise_count(found).sum() == np.bitwise_count(mask).sum()
    assert not (signs & ~found).any()


def test_what_does_not_vary_in_b_is_registered_last() -> None:
    r = some(8, 3, flat=0.0)
    std = r.std_b.copy()
    std[[2, 5]] = 0
    r = Rotation(r.matrix, r.mean_a, r.mean_b, r.std_a, std)
    mask = np.packbits(np.array([1, 1, 1, 1, 1, 1, 0, 0], np.uint8))
    found, _ = carry.carry_pattern(mask, mask, r)
    assert not unpack(found, 8)[[2, 5]].any()


# ---- what is refused ------------------------------------------------------------------------------


def test_shapes_are_checked() -> None:
    r = some(8, 0)
    with pytest.raises(InvalidInput, match="not square"):
        Rotation(r.matrix[:4], r.mean_a, r.mean_b, r.std_a, r.std_b)
    with pytest.raises(InvalidInput, match="mean_b of shape"):
        Rotation(r.matrix, r.mean_a, r.mean_b[:3], r.std_a, r.std_b)
    with pytest.raises(InvalidInput, match="width 8"):
        carry.carry_floats(np.zeros(9), r)
    with pytest.raises(InvalidInput, match="not of width 8"):
        carry.carry_code(np.zeros(2, np.uint8), r)


def test_blobs() -> None:
    r = some(8, 0)
    blobs = [
        getattr(r, name).astype("<f4").tobytes() for name in ("matrix", "mean_a", "mean_b", "std_a", "std_b")
    ]
    again = Rotation.from_blobs(8, *blobs)
    assert np.array_equal(again.matrix, r.matrix) and np.array_equal(again.std_b, r.std_b)
    with pytest.raises(InvalidInput, match="db verify"):
        Rotation.from_blobs(9, *blobs)
    with pytest.raises(InvalidInput, match="db verify"):
        Rotation.from_blobs(8, *blobs[:4], blobs[4][:-4])
