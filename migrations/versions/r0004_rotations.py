"""Rotations: what carries one model's states to another's, what it carries, and the dictionaries that it is tried on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_WHOLE, _LONG, _FLOAT, _TEXT, _BLOB = sa.Integer, sa.BigInteger, sa.Double, sa.String, sa.LargeBinary

_TABLES: dict[str, dict[str, type[sa.types.TypeEngine]]] = {
    "rotation_row": {
        "rotation_id": _LONG, "run_id": _TEXT, "site_a_id": _TEXT, "site_b_id": _TEXT, "width": _WHOLE, "n_fit": _LONG,
        "n_validation": _LONG, "n_test": _LONG, "ev_identity": _FLOAT, "ev_mean_shift": _FLOAT, "ev_rotation": _FLOAT,
        "ev_scaled": _FLOAT, "ev_affine": _FLOAT, "ev_permutation": _FLOAT, "ev_shuffled": _FLOAT, "ev_exchanged": _FLOAT,
        "ev_exchanged_error": _FLOAT, "ev_shuffled_error": _FLOAT,
        "ev_unseen": _FLOAT,
        "ev_token_mean": _FLOAT, "scale": _FLOAT, "ridge": _FLOAT, "effective_rank_a": _FLOAT,
        "effective_rank_b": _FLOAT, "halves_agreement": _FLOAT, "frobenius_from_identity": _FLOAT,
        "rank_warning": _TEXT, "matrix": _BLOB, "mean_a": _BLOB, "mean_b": _BLOB, "std_a": _BLOB, "std_b": _BLOB,
    },
    "rotation_component_row": {
        "rotation_id": _LONG, "component": _WHOLE, "variance_share": _FLOAT, "ev_rotation": _FLOAT, "ev_affine": _FLOAT,
        "ev_shuffled": _FLOAT,
    },
    "carried_row": {"feature_id": _LONG, "rotation_id": _LONG, "source_feature_id": _LONG},
    "steering_row": {
        "rotation_id": _LONG, "direction": _TEXT, "arm": _TEXT, "dose": _FLOAT, "norm": _FLOAT, "target": _TEXT,
        "target_change": _FLOAT, "other_change": _FLOAT, "kl": _FLOAT, "n": _LONG, "target_std_error": _FLOAT,
        "other_std_error": _FLOAT, "kl_std_error": _FLOAT,
    },
}  # fmt: skip
_OPTIONAL = {
    "ev_permutation", "ev_exchanged", "ev_exchanged_error", "ev_shuffled_error", "ev_unseen",
    "halves_agreement", "rank_warning", "target_std_error", "other_std_error",
    "kl_std_error",
}  # fmt: skip


def upgrade() -> None:
    """Make the tables."""
    for table, columns in _TABLES.items():
        op.create_table(
            table, *(sa.Column(name, kind(), nullable=name in _OPTIONAL) for name, kind in columns.items())
        )
    op.create_table(
        "sae",
        sa.Column("sae_id", sa.String(), primary_key=True),
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("site_id", sa.String(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("n_features", sa.Integer(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column("params", sa.String(), nullable=False),
        sa.Column("added_at", sa.DateTime(), nullable=False),
    )
