"""What the passes of a flip come to: means, errors, and the figures that stand beside their controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import text
from sqlalchemy.orm import Session

from ...catalog.bulk import Figure
from ..stats.figures import Scope, standard_error
from ..stats.outcome import Outcome
from .tokens import Feature

METRICS = ("own_logit_change", "other_logit_change", "flip_kl", "own_less_other")
"""The first three as `Outcome` has them; the last is the first less the second, what a shift of all logits leaves."""
OTHER_TOKENS = "other_tokens"
"""The control of `own_logit_change` that is no arm: what away does to other tokens."""
_SPLIT = "held_out"
MANY = 10
"""Features from which on their own spread says how far a mean over them can be trusted."""


def feature_figures(
    feature: Feature, outcomes: dict[str, Outcome], seed: int, apart: bool = True
) -> list[Figure]:
    """Figures of one feature from the arms at full dose and the norm of away, by arm.

    Control `none` is away itself. The error of a control is that of its difference to away, over the same windows.
    A difference of means is in sample unless it was fitted `apart`, on other windows.
    """
    away = outcomes["away"]
    scope = Scope(feature.site_id, "feature", str(feature.feature_id), seed)
    figures = []

    def add(metric: str, control: str, value: float, paired: NDArray[np.float64]) -> None:
        split = _SPLIT if apart or control != "mean_difference" else "in_sample"
        figures.append(scope.figure(metric, control, split, value, away.n, standard_error(paired)))

    for k, metric in enumerate(METRICS):
        for arm, one in outcomes.items():
            own = one.by_window[k] if arm == "away" else one.by_window[k] - away.by_window[k]
            add(metric, "none" if arm == "away" else arm, float(one.mean[k]), own)
    add(METRICS[0], OTHER_TOKENS, float(away.mean[1]), away.by_window[1] - away.by_window[0])
    return figures


_OTHERS = """SELECT f.feature_id, x.metric, x.control, x.split, x.value, x.std_error
FROM measurement_row x JOIN run r USING (run_id) JOIN feature_row f ON x.subject_id = CAST(f.feature_id AS VARCHAR)
WHERE x.subject = 'feature' AND r.job = 'flip' AND r.finished_at IS NOT NULL AND x.site_id = :site AND f.centre = :centre
  AND f.feature_id <> :feature
QUALIFY dense_rank() OVER (PARTITION BY f.feature_id ORDER BY r.started_at DESC, r.run_id) = 1
ORDER BY f.feature_id"""


def site_figures(session: Session, feature: Feature, own: Sequence[Figure], seed: int) -> list[Figure]:
    """Means over all features flipped so far at the site and centre of `feature`, whose own figures are `own`.

    Of a feature that was flipped several times the latest run counts. A control stands over the features that have it, and
    is left out unless all do. The error of a control is that of its difference to away: over features from `MANY` on,
    else over the windows of each, which says how sure these features are and nothing of others. Without errors, that
    is with one window, there are no figures.
    """
    rows = session.execute(
        text(_OTHERS), {"site": feature.site_id, "centre": feature.centre, "feature": feature.feature_id}
    ).fetchall()
    known = [tuple(row) for row in rows]
    known += [
        (feature.feature_id, one.metric, one.control, one.split, one.value, one.std_error) for one in own
    ]
    ids = sorted({row[0] for row in known})
    values: dict[tuple[str, str], dict[int, tuple[float, float | None]]] = {}
    for ident, metric, control, split, value, error in known:
        if split == _SPLIT:
            values.setdefault((metric, control), {})[ident] = value, error
    scope = Scope(feature.site_id, "flip", feature.centre, seed)
    figures = []
    for (metric, control), found in sorted(values.items()):
        errors = [one[1] for one in found.values()]
        if len(found) < len(ids) or any(one is None for one in errors):
            continue
        one = np.array([found[ident][0] for ident in ids])
        away = np.array([values[metric, "none"][ident][0] for ident in ids])
        figure = scope.mean(metric, control, _SPLIT, one, None if control == "none" else one - away)
        if len(ids) < MANY:
            over_windows = float(np.sqrt(np.square(np.array(errors, np.float64)).sum()) / len(ids))
            figure = replace(figure, std_error=over_windows)
        figures.append(figure)
    return figures
