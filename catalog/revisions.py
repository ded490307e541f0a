"""The schema revisions that this program knows; apart from the tables, so that readers need no SQLAlchemy."""

from __future__ import annotations

REVISIONS = ("0001", "0002", "0003", "0004")
"""Every migration, oldest first; a test compares the two."""

HEAD = REVISIONS[-1]
