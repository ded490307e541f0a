"""The layer sweep: which residual site reads categories best, chosen on one half of them and scored on the other.

The paper chooses the layer on the categories that it then reports; that figure stands beside ours as the control.
"""

from __future__ import annotations

import numpy as np
from sqlalchemy import text
from sqlalchemy.orm import Session

from ...catalog.bulk import Figure
from .bits import rng
from .controls import CENTRES
from .rows import site_figure

METRIC = "layer_sweep_auc"


def figures(session: Session, model_id: str, words: str, seed: int) -> list[Figure]:
    """Per centre: the held-out AUC at the chosen site over the other half (control none), and at the site that is best
    over all categories (control selected_on_test). `words` names the category set; runs with another are not mixed in.
    """
    found = []
    for centre in CENTRES:
        rows = session.execute(
            text(
                "SELECT s.site_id, s.layer, f.name, f.auc_held_out FROM feature_row f JOIN site s USING (site_id) "
                "JOIN run r ON r.run_id = f.run_id WHERE s.model_id = :model AND s.point = 'resid_post' "
                "AND f.kind = 'category' AND f.centre = :centre AND json_extract_string(r.params, '$.words') = :words "
                "AND json_extract(r.params, '$.seed')::BIGINT = :seed "
                "ORDER BY s.layer, f.name, f.feature_id"
            ),
            {"model": model_id, "centre": centre, "words": words, "seed": seed},
        ).fetchall()
        sites = list(dict.fromkeys(row[0] for row in rows))
        names = sorted({row[2] for row in rows})
        if not sites:
            continue
        mixed = rng(seed, "sweep").permutation(len(names))
        chosen_on = {names[i] for i in mixed[: (len(names) + 1) // 2]}
        mean = {
            site: np.mean([row[3] for row in rows if row[0] == site and row[2] in chosen_on])
            for site in sites
        }
        best = max(sites, key=lambda site: mean[site])
        held_out = [row[3] for row in rows if row[0] == best and row[2] not in chosen_on]
        overall = {site: np.mean([row[3] for row in rows if row[0] == site]) for site in sites}
        naive = max(sites, key=lambda site: overall[site])
        same = [row[3] for row in rows if row[0] == naive]
        if held_out:
            found.append(site_figure(best, "category", centre, METRIC, "none", "held_out", held_out, seed))
        found.append(
            site_figure(naive, "category", centre, METRIC, "selected_on_test", "in_sample", same, seed)
        )
    return found
