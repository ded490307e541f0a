"""Bases that the standard one is held against: Haar-random ones, and one of equal variances."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

HAAR_SEEDS = (1, 2, 3)
SCALED_SEED = 1
"""Seed of the basis that is rotated after each dimension was divided by its standard deviation over the types."""


@lru_cache(maxsize=16)
def haar(width: int, seed: int) -> torch.Tensor:
    """A Haar-random orthogonal matrix, float32 (width, width), drawn from `seed` (Mezzadri 2007: QR with fixed signs)."""
    return draw_haar(width, np.random.default_rng([seed, width])).float()


def draw_haar(width: int, generator: np.random.Generator) -> torch.Tensor:
    """The next Haar-random matrix of a generator, float64 (width, width)."""
    q, r = torch.linalg.qr(torch.from_numpy(generator.standard_normal((width, width))))
    return q * torch.sign(torch.diagonal(r))


def bases() -> Sequence[str]:
    """Names of the control bases."""
    return [*(f"haar:{seed}" for seed in HAAR_SEEDS), f"scaled:{SCALED_SEED}"]
