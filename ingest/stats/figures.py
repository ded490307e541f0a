"""Means with their standard errors, as the catalogue stores them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...catalog.bulk import Figure

Floats = NDArray[np.float64]


def site_figure(
    site_id: str, subject: str, subject_id: str, metric: str, control: str, split: str,
    values: Sequence[float] | Floats, seed: int | None = None, paired: Floats | None = None,
) -> Figure:  # fmt: skip
    """The mean of `values`, NaN left out, with its standard error (that of the mean of `paired`, if given): a figure
    about all of a site."""
    known = np.asarray(values, np.float64)
    if paired is not None:
        # Compared over what is known on both sides.
        known = known[np.isfinite(paired)]
        paired = paired[np.isfinite(paired)]
    known = known[np.isfinite(known)]
    mean = float(known.mean()) if len(known) else float("nan")
    of = known if paired is None else paired
    return Figure(
        site_id, subject, subject_id, metric, control, split, mean, len(known), seed, standard_error(of)
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
