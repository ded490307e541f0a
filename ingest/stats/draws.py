"""What a seed draws, and picks that are evenly spaced."""

from __future__ import annotations

import numpy as np

from ...catalog.ids import digest


def rng(seed: int, *names: object) -> np.random.Generator:
    """A generator of its own for everything that has a name, so that one more category moves no other."""
    return np.random.default_rng(int(digest(seed, *map(str, names))[:16], 16))


def spaced(n: int, k: int) -> list[int]:
    """`k` of 0 .. n - 1, evenly spaced, each from the middle of its share."""
    return [(2 * i + 1) * n // (2 * k) for i in range(k)]
