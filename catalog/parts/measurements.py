"""Measurements: every figure, each beside the control that could explain it away."""

from __future__ import annotations

from ..part import BIGINT, DOUBLE, VARCHAR, Part, View, ref, table
from ..shared import SITE

_TABLES = (
    table(
        "measurement_row", "One figure with the control that it stands beside. Many: some thirty a feature.", "measurements",
        key="run_id, site_id, subject, subject_id, metric, control, split", optional="seed, std_error",
        run_id=ref("run"), site_id=ref("site"), subject=VARCHAR, subject_id=VARCHAR, metric=VARCHAR, control=VARCHAR,
        split=VARCHAR, value=DOUBLE, n=BIGINT, seed=BIGINT, std_error=DOUBLE,
    ),
)  # fmt: skip

_VIEWS = (
    View(
        "measurements",
        "One row per figure, each beside the control that could explain it away.",
        {
            "run_id": "the job that measured it",
            **SITE,
            "subject": "what it is about: `type`, `state`, `feature`, `category`, `discovered`, `prediction`, `neuron`, `flip`, "
            "`rotation` or `sae`",
            "subject_id": "the feature or the dictionary; for figures about all of a site the centre, or nothing; of a rotation to this "
            "model the name of model A",
            "metric": "what was measured",
            "control": "`none` for the figure itself, else the control",
            "split": "`in_sample` or `held_out`",
            "value": "the figure",
            "n": "how many things it was measured on",
            "seed": "of what was random in it",
            "std_error": "standard error of a mean over features; of a control, that of its difference to the figure itself",
        },
        """SELECT x.run_id, m.name AS model, s.name AS site, x.subject, x.subject_id, x.metric, x.control, x.split,
  x.value, x.n, x.seed, x.std_error
FROM measurement_row x JOIN site s USING (site_id) JOIN model m USING (model_id)""",
    ),
)

PART = Part(name="measurements", tables=_TABLES, views=_VIEWS)
