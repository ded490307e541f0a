"""Tokens of a vocabulary by their text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...catalog.errors import NotFound

if TYPE_CHECKING:
    import duckdb


def unquoted(text: str) -> str:
    """`text` without the double quotes around it that show where it ends."""
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] == '"' else text


def token_id(
    connection: duckdb.DuckDBPyConnection,
    model: str,
    text: str,
    prefix: str = "type:",
    otherwise: str = "a type is one token of the vocabulary; search text as it is instead",
) -> int:
    """The id of the token whose text is `text`, leading space included; the lowest of several. `id:NUMBER` is an id itself.

    Raises:
        NotFound: if there is none; names the token with or without a space if there is that, behind `prefix`.
    """

    def ids(token: str) -> list[int]:
        rows = connection.execute(
            "SELECT t.token_id FROM token_row t JOIN model m ON m.tokenizer_sha256 = t.tokenizer "
            "WHERE m.name = ? AND t.token = ? AND t.token_id < m.vocab_size ORDER BY t.token_id",
            [model, token],
        ).fetchall()
        return [int(row[0]) for row in rows]

    if known := ids(text):
        return known[0]
    number = text.removeprefix("id:")
    if number != text and number.isascii() and number.isdecimal():
        row = connection.execute("SELECT vocab_size FROM model WHERE name = ?", [model]).fetchone()
        size = row[0] if row else 0
        # Python refuses to read numbers of thousands of digits.
        if len(number) > 18 or int(number) >= size:
            raise NotFound(f"token of {model}", text, todo=f"ids go from 0 to {size - 1}")
        return int(number)
    other = text[1:] if text.startswith(" ") else f" {text}"
    raise NotFound(f"token of {model}", text, todo=f'there is {prefix}"{other}"' if ids(other) else otherwise)
