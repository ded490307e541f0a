"""A method that lives outside the package: what it keeps in the catalogue.

Each row of its table counts the positive dimensions of one type; its claim says that half of all are positive.
"""

from __future__ import annotations

from signarium.catalog.part import BIGINT, INTEGER, VARCHAR, Claim, Control, Part, View, Word, ref, table

TABLE = table(
    "toy_row", "How many dimensions of one type are positive.", "toys",
    key="run_id, site_id, token_id", optional="note",
    run_id=ref("run"), site_id=ref("site"), token_id=BIGINT, positive=INTEGER, note=VARCHAR,
)  # fmt: skip
VIEW = View(
    "toys",
    "One row per type: how many of its dimensions are positive.",
    {
        "model": "name of the model",
        "site": "named point",
        "token_id": "row of the vocabulary",
        "positive": "dimensions whose sign is positive",
    },
    "SELECT m.name AS model, s.name AS site, x.token_id, x.positive FROM toy_row x JOIN site s USING (site_id) "
    "JOIN model m USING (model_id)",
    order="model, site, token_id",
    shown=("site", "token_id", "positive"),
)
CLAIM = Claim(
    "99.1", "nowhere", "half of all dimensions are positive: share", "0.5",
    "toy", "toy_share", "in_sample", (Control("fair coins", "coins", "near", bound=0.1),),
    point="resid_post", centres=("",), source="A toy", bound=0.4,
)  # fmt: skip
PART = Part(
    "toy",
    tables=(TABLE,),
    views=(VIEW,),
    claims=(CLAIM,),
    words={"toy_share": Word("share"), "coins": Word("coins", "as many fair coins")},
)
