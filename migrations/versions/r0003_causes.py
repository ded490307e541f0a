"""Writers and causes: the neurons that write a feature, directions in words, and what a flip does."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_WHOLE, _LONG, _FLOAT, _TEXT = sa.Integer, sa.BigInteger, sa.Double, sa.String

_TABLES: dict[str, dict[str, type[sa.types.TypeEngine]]] = {
    "writer_row": {
        "feature_id": _LONG, "layer": _WHOLE, "neuron": _WHOLE, "rank": _WHOLE, "polarity": _WHOLE,
        "agreement": _FLOAT,
    },
    "coalition_row": {
        "feature_id": _LONG, "layer": _WHOLE, "k": _WHOLE, "agreement": _FLOAT, "agreement_split_half": _FLOAT,
        "agreement_random": _FLOAT,
    },
    "projection_row": {
        "run_id": _TEXT, "site_id": _TEXT, "subject": _TEXT, "item": _LONG, "source": _TEXT, "direction": _TEXT,
        "rank": _WHOLE, "token_id": _WHOLE, "logit": sa.REAL,
    },
    "flip_row": {
        "run_id": _TEXT, "feature_id": _LONG, "site_id": _TEXT, "arm": _TEXT, "dose": _FLOAT, "at_norm": _TEXT,
        "norm": _FLOAT, "own_logit_change": _FLOAT, "other_logit_change": _FLOAT, "kl": _FLOAT, "n": _LONG,
        "own_std_error": _FLOAT, "other_std_error": _FLOAT, "kl_std_error": _FLOAT,
    },
}  # fmt: skip
_OPTIONAL = {"agreement_split_half", "own_std_error", "other_std_error", "kl_std_error"}


def upgrade() -> None:
    """Make the tables."""
    for table, columns in _TABLES.items():
        op.create_table(
            table, *(sa.Column(name, kind(), nullable=name in _OPTIONAL) for name, kind in columns.items())
        )
