"""States in their text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..nearest.sql import rows_by_id, tokens_by_id

if TYPE_CHECKING:
    import duckdb

CONTEXT_TOKENS = 8
"""Tokens shown on each side of a state."""
MARKS = ("«", "»")
"""Around the token itself."""


def places_of(
    connection: duckdb.DuckDBPyConnection, state_ids: Sequence[int]
) -> dict[int, tuple[int, int, int]]:
    """document_id, position and token_id of the states and of their surroundings, as far as there are any."""
    reach = range(-CONTEXT_TOKENS, CONTEXT_TOKENS + 1)
    ids = sorted({state + away for state in state_ids for away in reach})
    query = "SELECT state_id, document_id, position, token_id FROM state_row WHERE state_id"
    return {row[0]: row[1:] for row in rows_by_id(connection, query, ids)}


def contexts(connection: duckdb.DuckDBPyConnection, model: str, state_ids: Sequence[int]) -> list[str]:
    """Each state's surroundings in its document, the token itself between `MARKS`; "" for no such state."""
    places = places_of(connection, state_ids)
    tokens = tokens_by_id(connection, model, {place[2] for place in places.values()})
    return contexts_among(connection, model, state_ids, places, tokens)


def contexts_among(
    connection: duckdb.DuckDBPyConnection,
    model: str,
    state_ids: Sequence[int],
    places: Mapping[int, tuple[int, int, int]],
    tokens: Mapping[int, str | None],
) -> list[str]:
    """`contexts`, of places and tokens that were read already."""
    if not state_ids:
        return []
    marked_joins = connection.execute(
        "SELECT 1 FROM token_row t JOIN model m ON m.tokenizer_sha256 = t.tokenizer "
        "WHERE m.name = ? AND starts_with(t.token, ' ') AND t.token <> ' ' LIMIT 1",
        [model],
    ).fetchone()
    texts = []
    for state in state_ids:
        document = places[state][0] if state in places else None
        near = [
            (away, tokens.get(places[state + away][2], "") or "")
            for away in range(-CONTEXT_TOKENS, CONTEXT_TOKENS + 1)
            if state + away in places and places[state + away][0] == document
        ]
        texts.append(_marked(near, spaced=marked_joins is None))
    return texts


def _marked(tokens: Sequence[tuple[int, str]], spaced: bool) -> str:
    """Tokens joined to text; `spaced` for vocabularies that mark what is joined (##ing) instead of spaces."""
    text = ""
    for away, token in tokens:
        if spaced:
            space, token = (
                ("", token[2:]) if token.startswith("##") and token != "##" else (" " if text else "", token)
            )
        else:
            # The space belongs to the token, but the mark reads better around the word; spaces alone stay in it.
            word = token.lstrip(" ") or token
            space, token = token[: len(token) - len(word)], word
        text += space + (f"{MARKS[0]}{token}{MARKS[1]}" if away == 0 else token)
    return text
