"""Is a rotation like a random one? Statistics of it, and of Haar-random orthogonal matrices to compare them with.

What this can tell: that two models share axes (a permutation), or a subspace of some tenth of the dimensions. What it
cannot: that they share anything else. The best rotation between unrelated data is as good as Haar, and so are the
eigenvalues of a cyclic shift; `cyclic_shift` and a rotation of shuffled pairs are there to be shown beside it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..stats.bases import draw_haar
from .fit import MOST_ASSIGNED

ONE_SIDED = ("ks_distance",)
"""Of these only a large value counts, as in the test of that name. A very small one means angles that repel each other
more than random ones do, such as those of a cyclic shift."""


def statistics(matrix: Tensor) -> dict[str, float]:
    """Statistics of an orthogonal `matrix` [width, width] of any float type.

    Returns:
        frobenius_from_identity: |R - I|, sqrt(2 width - 2 trace R); about sqrt(2 width) under Haar.
        ks_distance: Kolmogorov-Smirnov distance of the eigenvalues' angles in [0, pi] from the uniform distribution.
            Both of a conjugate pair count, at the same angle; 1 and -1 count once each, at 0 and pi.
        signed_permutation_distance: |R - P| of the nearest signed permutation P (assignment on |R|); absent above
            width `MOST_ASSIGNED`.
        trace_1, trace_2, trace_3: of R, R^2 and R^3; under Haar about normal with mean 0, 1, 0 and variance 1, 2, 3
            (Diaconis and Shahshahani 1994).
    """
    r = matrix.to(torch.float64)
    width = len(r)
    # (R + R^T) / 2 is symmetric with the cosines of the angles as eigenvalues: cheaper than those of R itself.
    cosines = np.clip(torch.linalg.eigvalsh((r + r.T) / 2).cpu().numpy(), -1, 1)
    share = np.sort(np.arccos(cosines)) / np.pi
    steps = np.arange(width + 1) / width
    found = {
        "frobenius_from_identity": float(torch.linalg.norm(r - torch.eye(width).to(r))),
        "ks_distance": float(max((steps[1:] - share).max(), (share - steps[:-1]).max())),
    }
    if width <= MOST_ASSIGNED:
        sizes = r.abs().cpu().numpy()
        best = sizes[linear_sum_assignment(sizes, maximize=True)].sum()
        # Rounding may leave an exact permutation at a little less than nothing.
        found["signed_permutation_distance"] = float(
            np.sqrt(max(0.0, np.square(sizes).sum() + width - 2 * best))
        )
    found["trace_1"] = float(cosines.sum())
    found["trace_2"] = float((2 * cosines**2 - 1).sum())
    found["trace_3"] = float((4 * cosines**3 - 3 * cosines).sum())
    return found


class Reference:
    """Statistics of Haar-random matrices of one width, drawn from `seed`; kept for the process by (width, seed).

    `draws` holds, by statistic, the figures of `n_draws(width)` matrices. Drawing takes as long as so many QR
    factorisations and `statistics`.
    """

    def __init__(self, width: int, seed: int) -> None:
        self.width, self.seed = width, seed
        self.draws: dict[str, NDArray[np.float64]] = _draws(width, seed)

    def p_values(self, stats: dict[str, float]) -> dict[str, float]:
        """(1 + draws at least as extreme) / (1 + draws), by statistic (Davison and Hinkley 1997, section 4.2).

        Extreme is far from the median of the draws and the figure itself, on either side; of `ONE_SIDED`, large.
        """
        found = {}
        for name, value in stats.items():
            draws = self.draws[name]
            if name in ONE_SIDED:
                count = int((draws >= value).sum())
            else:
                # With the figure itself among them the median treats all alike, which makes the test exact.
                centre = np.median(np.append(draws, value))
                count = int((np.abs(draws - centre) >= abs(value - centre)).sum())
            found[name] = (1 + count) / (1 + len(draws))
        return found


def n_draws(width: int) -> int:
    """Haar matrices that a reference draws: as many as take no more than minutes."""
    if width <= 256:
        return 199
    return 99 if width <= 1024 else 19


@lru_cache(maxsize=16)
def _draws(width: int, seed: int) -> dict[str, NDArray[np.float64]]:
    generator = np.random.default_rng([seed, width])
    rows = [statistics(draw_haar(width, generator)) for _ in range(n_draws(width))]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def cyclic_shift(width: int) -> Tensor:
    """The permutation x -> (x[width - 1], x[0], x[1], ...), float64 [width, width]: no random matrix at all."""
    return torch.eye(width, dtype=torch.float64).roll(1, 1)
