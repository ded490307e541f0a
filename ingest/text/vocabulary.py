"""The texts of a vocabulary's tokens, as rows of the catalogue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sqlalchemy.orm import Session

from ...catalog import bulk, schema


def write_tokens(session: Session, tokenizer: str, strings: Sequence[str]) -> None:
    """Insert the texts of all tokens, or those that a sibling model with a smaller embedding did not have."""
    table = schema.token_row
    there = session.query(table).filter(table.c.tokenizer == tokenizer).count()
    ids = np.arange(there, len(strings), dtype=np.int32)
    bulk.insert(
        session,
        table,
        {"tokenizer": [tokenizer] * len(ids), "token_id": ids, "token": list(strings[there:])},
    )
