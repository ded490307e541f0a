"""Text that came from files and vocabularies, made safe to show."""

from __future__ import annotations

import re

# C0, DEL and C1 drive a terminal; bidirectional controls and line separators let text pose as other text.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_CONTROL_KEEP_LINES = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: str, *, keep_lines: bool = False) -> str:
    """`text` with control characters replaced by visible symbols; newlines stay with `keep_lines`."""
    pattern = _CONTROL_KEEP_LINES if keep_lines else _CONTROL
    return pattern.sub(_symbol, text)


def _symbol(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def spelled(token: str | None, token_id: int) -> str:
    """A token in quotes, safe for a terminal, or its id where its text is unknown."""
    return f"id:{token_id}" if token is None else f'"{visible(token)}"'


def quoted_name(text: str) -> str:
    """A name in double quotes if it has a space that they would make visible."""
    return f'"{text}"' if text != text.strip() or not text else text
