"""Patterns of signs in another basis."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from signarium.ingest.rotations.features import turn
from signarium.ingest.stats.bases import haar
from signarium.ingest.stats.bits import Patterns

WIDTH = 48


def some_patterns(seed: int, n: int = 5) -> Patterns:
    rng = np.random.default_rng(seed)
    mask = rng.random((n, WIDTH)) < 0.2
    mask[:, 0] = True
    return Patterns(mask, (rng.random((n, WIDTH)) < 0.5) & mask)


@given(st.integers(0, 1000))
def test_by_a_signed_permutation_nothing_is_lost(seed: int) -> None:
    """Every dimension goes to one place, with its sign; there and back is what it was."""
    rng = np.random.default_rng(seed)
    order, signs = rng.permutation(WIDTH), rng.choice([-1.0, 1.0], WIDTH)
    matrix = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    matrix[torch.arange(WIDTH), torch.from_numpy(order)] = torch.from_numpy(signs)
    std = rng.uniform(0.5, 2, WIDTH)
    moved = np.empty(WIDTH)
    moved[order] = std
    patterns = some_patterns(seed)
    there = turn(patterns, matrix, std, moved)
    assert (there.n_dims == patterns.n_dims).all()
    assert (there.mask[:, order] == patterns.mask).all()
    expected = np.where(signs > 0, patterns.polarity, ~patterns.polarity) & patterns.mask
    assert (there.polarity[:, order] == expected).all()
    back = turn(there, matrix.T, moved, std)
    assert (back.mask == patterns.mask).all()
    assert (back.polarity == patterns.polarity).all()


def test_by_a_haar_matrix_the_sizes_stay_and_the_signs_are_those_of_the_direction() -> None:
    patterns, matrix = some_patterns(1), haar(WIDTH, 11).double()
    std = np.linspace(0.5, 3, WIDTH)
    there = turn(patterns, matrix, std, np.ones(WIDTH))
    assert (there.n_dims == patterns.n_dims).all()
    signed = patterns.mask * np.where(patterns.polarity, 1.0, -1.0) * std @ matrix.numpy()
    for row, mask, polarity in zip(signed, there.mask, there.polarity, strict=True):
        assert np.abs(row[mask]).min() >= np.abs(row[~mask]).max()
        assert (polarity[mask] == (row[mask] > 0)).all()
        assert not polarity[~mask].any()


def test_a_dimension_that_never_moves_is_not_registered() -> None:
    patterns = some_patterns(2)
    std = np.ones(WIDTH)
    std[5] = 0
    there = turn(patterns, haar(WIDTH, 11).double(), np.ones(WIDTH), std)
    assert not there.mask[:, 5].any()
