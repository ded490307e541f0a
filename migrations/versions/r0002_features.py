"""Features: what they are made of, what agrees with them, and many measurements beside each."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_NAMES = ("run_id", "site_id", "subject", "subject_id", "metric", "control", "split")


def _needed(name: str, kind: type[sa.types.TypeEngine]) -> sa.Column:
    return sa.Column(name, kind(), nullable=False)


def upgrade() -> None:
    """Make the tables of features, and move measurements to a table without a key."""
    op.create_table(
        "measurement_row",
        *(_needed(name, sa.String) for name in _NAMES),
        _needed("value", sa.Double),
        _needed("n", sa.BigInteger),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column("std_error", sa.Double(), nullable=True),
    )
    names = ", ".join((*_NAMES, "value", "n", "seed"))
    op.execute(f"INSERT INTO measurement_row ({names}) SELECT {names} FROM measurement ORDER BY ALL")
    op.drop_table("measurement")
    # Masks are random bits, which do not compress.
    op.execute(
        "CREATE TABLE feature_row (feature_id BIGINT NOT NULL, run_id VARCHAR NOT NULL, site_id VARCHAR NOT NULL, "
        "kind VARCHAR NOT NULL, name VARCHAR NOT NULL, centre VARCHAR NOT NULL, basis VARCHAR NOT NULL, "
        "n_dims INTEGER NOT NULL, mask BLOB NOT NULL USING COMPRESSION uncompressed, "
        "polarity BLOB NOT NULL USING COMPRESSION uncompressed, threshold DOUBLE, n_members INTEGER NOT NULL, "
        "seed_token INTEGER, repeats INTEGER NOT NULL, best_dim INTEGER, best_dim_auc DOUBLE, auc_in_sample DOUBLE, "
        "auc_held_out DOUBLE, auc_rotated DOUBLE, null_p95 DOUBLE, p_value DOUBLE, fire_rate DOUBLE NOT NULL, "
        "agreement_mean DOUBLE NOT NULL, agreement_std DOUBLE NOT NULL)"
    )
    op.create_table(
        "feature_member",
        _needed("feature_id", sa.BigInteger),
        _needed("token_id", sa.Integer),
        _needed("part", sa.String),
    )
    op.create_table(
        "feature_type_row",
        _needed("feature_id", sa.BigInteger),
        _needed("rank", sa.Integer),
        _needed("token_id", sa.Integer),
        _needed("agreement", sa.Double),
    )
    op.create_table(
        "feature_state_row",
        _needed("run_id", sa.String),
        _needed("feature_id", sa.BigInteger),
        _needed("state_id", sa.BigInteger),
        _needed("agreement", sa.Double),
    )
