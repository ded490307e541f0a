"""The schema revisions that this program knows: by the names of their files, so that readers need no Alembic."""

from __future__ import annotations

import os
import re
from pathlib import Path

_VERSIONS = Path(__file__).parents[1] / "migrations" / "versions"

REVISIONS = tuple(sorted(name[1:5] for name in os.listdir(_VERSIONS) if re.match(r"r\d{4}_\w+\.py", name)))
"""Every migration, oldest first: 0001 of `r0001_catalogue.py`. A test compares them with Alembic's history."""

HEAD = REVISIONS[-1]
