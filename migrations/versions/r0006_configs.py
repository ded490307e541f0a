"""Configs: what of a model's config shapes its hidden states, and which attention computed them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the columns; of the models that are there, nobody knows any more."""
    op.add_column("model", sa.Column("config", sa.String(), nullable=True))
    op.add_column("model", sa.Column("attention", sa.String(), nullable=True))
