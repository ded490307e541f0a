"""Digests: of the rows that were written."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Make the table; `manage.upgrade` fills it for the rows that are there."""
    op.create_table(
        "digest_row",
        sa.Column("digest_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("table_name", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("block", sa.BigInteger(), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.BigInteger(), nullable=False),
    )
