"""Options of the library as the command line writes them."""

from __future__ import annotations

_OTHERWISE = {"within": "--in", "k": "-k", "every": "--all"}
"""Options that the command line calls otherwise than their Python name."""


def flag(name: str, value: str | None = None) -> str:
    """`within` as `--in`, `max_tokens` as `--max-tokens`; behind it its value, if it has one."""
    written = _OTHERWISE.get(name, "--" + name.replace("_", "-"))
    return written if value is None else f"{written} {value}"
