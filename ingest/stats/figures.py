"""Means with their standard errors, as the catalogue stores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...catalog.bulk import Figure

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scope:
    """What figures are about: a subject at a site, and the seed of what is random in them."""

    site_id: str
    subject: str
    subject_id: str
    seed: int

    def figure(
        self, metric: str, control: str, split: str, value: float, n: int, std_error: float | None = None
    ) -> Figure:
        """One figure over `n` things."""
        return Figure(
            self.site_id,
            self.subject,
            self.subject_id,
            metric,
            control,
            split,
            value,
            n,
            self.seed,
            std_error,
        )

    def mean(
        self,
        metric: str,
        control: str,
        split: str,
        values: Sequence[float] | Floats,
        paired: Floats | None = None,
    ) -> Figure:
        """The mean of `values`, NaN left out, with its standard error (that of the mean of `paired`, if given)."""
        known = np.asarray(values, np.float64)
        if paired is not None:
            # Compared over what is known on both sides.
            known = known[np.isfinite(paired)]
            paired = paired[np.isfinite(paired)]
        known = known[np.isfinite(known)]
        mean = float(known.mean()) if len(known) else float("nan")
        return self.figure(
            metric, control, split, mean, len(known), standard_error(known if paired is None else paired)
        )


def standard_error(values: NDArray[np.float64]) -> float | None:
    """Of the mean of independent `values`; None for one."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def clustered_error(values: Floats, groups: NDArray[np.int64]) -> float | None:
    """Standard error of the mean of `values` (n,) where those of one group hang together; None with one group.

    Sums of residuals by group (Liang and Zeger 1986), with the correction for few groups.
    """
    _, place = np.unique(groups, return_inverse=True)
    sums = np.bincount(place, values - values.mean())
    k = len(sums)
    return float(np.sqrt((sums**2).sum() * k / (k - 1)) / len(values)) if k > 1 else None
