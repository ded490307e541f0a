"""The surface: which views and macros are in the file."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the table; whoever installs the views writes its one row."""
    op.create_table("surface", sa.Column("hash", sa.String(), nullable=False))
