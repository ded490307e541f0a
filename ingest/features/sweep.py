"""The layer sweep: which residual site reads categories best, chosen on one half of them and scored on the other.

The paper chooses the layer on the categories that it then reports; that figure stands beside ours as the control.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sqlalchemy import text
from sqlalchemy.orm import Session

from ...catalog.bulk import Figure
from ..stats.draws import rng
from ..stats.figures import Scope
from .controls import CENTRES
from .rows import summary

METRIC = "layer_sweep_auc"


def figures(session: Session, model_id: str, words: str, seed: int) -> list[Figure]:
    """Per centre, at the chosen site: the held-out AUC over the other half of the categories (control none) and, of that
    same half, at the site that is best over all of them (control selected_on_test); and every category figure again over
    the half that did not choose (subject `swept`). `words` names the category set; runs with another are not mixed in.
    """
    found = []
    for centre in CENTRES:
        rows = session.execute(
            text(
                "SELECT s.site_id, s.layer, f.name, f.auc_held_out, f.feature_id FROM feature_row f "
                "JOIN site s USING (site_id) JOIN run r ON r.run_id = f.run_id WHERE s.model_id = :model "
                "AND s.point = 'resid_post' AND f.kind = 'category' AND f.centre = :centre "
                "AND json_extract_string(r.params, '$.words') = :words AND f.auc_held_out IS NOT NULL "
                "AND json_extract(r.params, '$.seed')::BIGINT = :seed ORDER BY s.layer, f.name, f.feature_id"
            ),
            {"model": model_id, "centre": centre, "words": words, "seed": seed},
        ).fetchall()
        sites = list(dict.fromkeys(row[0] for row in rows))
        names = sorted({row[2] for row in rows})
        mixed = rng(seed, "sweep").permutation(len(names))
        chosen_on = {names[i] for i in mixed[: (len(names) + 1) // 2]}
        if len(chosen_on) == len(names):
            continue

        def mean(site: str, some: set[str], rows: Sequence[Any] = rows) -> float:
            return float(np.mean([row[3] for row in rows if row[0] == site and row[2] in some]))

        best = max(sites, key=lambda site: mean(site, chosen_on))
        naive = max(sites, key=lambda site: mean(site, set(names)))
        for control, site in (("none", best), ("selected_on_test", naive)):
            values = [row[3] for row in rows if row[0] == site and row[2] not in chosen_on]
            found.append(Scope(best, "category", centre, seed).mean(METRIC, control, "held_out", values))
        reported = [row[4] for row in rows if row[0] == best and row[2] not in chosen_on]
        found += _of_half(session, best, centre, reported, seed)
    return found


def _of_half(session: Session, site_id: str, centre: str, features: Sequence[int], seed: int) -> list[Figure]:
    """What `categories` measures over all categories of a site, over some of its features."""
    listed = ", ".join(f"'{one}'" for one in features)
    rows = session.execute(
        text(
            "SELECT metric, control, split, subject_id, value FROM measurement_row WHERE subject = 'feature' "
            f"AND site_id = :site AND subject_id IN ({listed}) ORDER BY ALL"
        ),
        {"site": site_id},
    ).fetchall()
    groups: dict[tuple[str, str, str], dict[str, float]] = {}
    for metric, control, split, feature, value in rows:
        groups.setdefault((metric, control, split), {})[feature] = value
    order = [str(one) for one in features]
    values = {key: np.array([some.get(one, np.nan) for one in order]) for key, some in groups.items()}
    return summary(site_id, "swept", centre, values, seed)
