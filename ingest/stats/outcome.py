"""What a change of the residual stream does at the measured positions of some windows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .figures import standard_error

POSITIONS = 16
"""Measured positions of a window, at most."""


def positions(length: int) -> list[int]:
    """The measured positions of a window of `length` tokens, position 0 never among them: at most `POSITIONS`, evenly
    spaced up to the last."""
    k = min(POSITIONS, length - 1)
    return [(i + 1) * (length - 1) // k for i in range(k)]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an intervention does to the next-token distribution, at `n` measured positions.

    `norm` is the mean Euclidean length of the change over all positions of the windows. `mean` (4,) holds the change of
    the mean logit of the feature's own tokens, that of other tokens, the Kullback-Leibler divergence in nats, and the
    first less the second; `by_window` (4, windows) the same over the positions of each window.
    """

    norm: float
    mean: NDArray[np.float64]
    by_window: NDArray[np.float64]
    n: int

    @classmethod
    def of(cls, norm: float, values: NDArray[np.float64], windows: NDArray[np.int64]) -> Outcome:
        """From the first three at each position, `values` (3, n), and the number of its window, `windows` (n,)."""
        values = np.concatenate([values, values[:1] - values[1:2]])
        _, windows = np.unique(windows, return_inverse=True)
        times = np.bincount(windows)
        sums = np.stack([np.bincount(windows, row) for row in values])
        return cls(norm, values.mean(1), sums / times, values.shape[1])

    @property
    def errors(self) -> list[float | None]:
        """Standard errors of `mean` over windows; None where there is one window."""
        return [standard_error(values) for values in self.by_window]
