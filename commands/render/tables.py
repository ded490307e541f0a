"""Rows as a table for a person: columns that fit the terminal, numbers to the right, the rest to the left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, TypeAlias

from ...catalog.text import visible
from . import TABLE_ROWS
from .values import cell, is_number, plain

_MIN_TEXT = 8  # cells below which a column of text says nothing
_MAX_CELL = 200  # without a terminal there is no width to fit, yet one document must not pad every row


Row: TypeAlias = Sequence[Any]


def table_lines(
    names: Sequence[str],
    batches: Iterable[Sequence[Row]],
    width: int | None,
    color: bool,
    max_rows: int = TABLE_ROWS,
) -> tuple[Iterable[str], int]:
    """The lines of a table of the first `max_rows` rows, after which no batch is drawn; and how many rows it shows."""
    rows: list[Row] = []
    more = False
    for batch in batches:
        room = max_rows - len(rows)
        rows.extend(batch[:room])
        if len(batch) > room:
            more = True
            break
    if list(names) == ["explain_key", "explain_value"]:
        # A plan is a drawing of many lines; cut to one line it says nothing.
        return [visible(plain(row[1]), keep_lines=True).rstrip("\n") for row in rows], len(rows)
    footer = "(1 row)" if len(rows) == 1 else f"({len(rows)} rows)"
    if more:
        footer = f"(first {len(rows)} rows; use --format csv to see all)"
    return chain(_lines(names, rows, width, color), [footer]), len(rows)


def _lines(names: Sequence[str], rows: Sequence[Row], width: int | None, color: bool) -> Iterator[str]:
    heads = [visible(name) for name in names]
    cells = [[cell(value) for value in row] for row in rows]
    numeric = []
    widths = []
    for i, head in enumerate(heads):
        values = [row[i] for row in rows if row[i] is not None]
        numeric.append(bool(values) and all(is_number(value) for value in values))
        natural = max([cell_width(head), *(cell_width(row[i]) for row in cells)])
        widths.append(min(natural, _MAX_CELL) if width is None else natural)
    shown, widths = _fit(widths, numeric, width)
    heads, hidden = heads[:shown], heads[shown:]

    def line(texts: Sequence[str], styles: Sequence[str]) -> str:
        parts = []
        for i in range(shown):
            fitted = _pad(texts[i], widths[i], right=numeric[i])
            if styles[i] and color:
                fitted = f"\x1b[{styles[i]}m{fitted}\x1b[0m"
            parts.append(fitted)
        joined = "  ".join(parts)
        return joined if color else joined.rstrip(" ")

    yield line(heads, ["1"] * shown)
    yield "  ".join("─" * w for w in widths)
    for row, texts in zip(rows, cells, strict=True):
        yield line(texts, ["2" if value is None else "" for value in row])
    if hidden:
        yield _hidden_note(hidden, width)


def _fit(widths: list[int], numeric: list[bool], width: int | None) -> tuple[int, list[int]]:
    """How many leading columns fit into `width` cells, and how wide each is: widest texts shrink first."""
    if width is None or sum(widths) + 2 * (len(widths) - 1) <= width:
        return len(widths), widths
    least = [w if number else min(w, _MIN_TEXT) for w, number in zip(widths, numeric, strict=True)]
    shown, used = 0, -2
    while shown < len(least) and used + 2 + least[shown] <= width:
        used += 2 + least[shown]
        shown += 1
    if shown == 0:
        return 1, [max(1, width)]
    room = width - 2 * (shown - 1)
    kept = widths[:shown]
    cap = max(kept)
    while cap > _MIN_TEXT:
        fitted = [w if number else min(w, cap) for w, number in zip(kept, numeric[:shown], strict=True)]
        if sum(fitted) <= room:
            break
        cap -= 1
    fitted = [w if number else min(w, cap) for w, number in zip(kept, numeric[:shown], strict=True)]
    spare = room - sum(fitted)
    for i, w in enumerate(kept):
        if spare > 0 and fitted[i] < w:
            grown = min(w, fitted[i] + spare)
            spare -= grown - fitted[i]
            fitted[i] = grown
    return shown, fitted


def _hidden_note(hidden: Sequence[str], width: int | None) -> str:
    hint = " hidden: see them with --format json"
    listed = ", ".join(hidden)
    if width is None or cell_width(listed) + len(hint) <= width:
        return listed + hint
    named = 1
    while named < len(hidden):
        tail = f", +{len(hidden) - named - 1} more" if named + 1 < len(hidden) else ""
        if cell_width(", ".join(hidden[: named + 1]) + tail) + len(hint) > width:
            break
        named += 1
    tail = f", +{len(hidden) - named} more" if named < len(hidden) else ""
    return _cut(", ".join(hidden[:named]) + tail + hint, width)


def cell_width(text: str) -> int:
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _cut(text: str, width: int) -> str:
    if cell_width(text) <= width:
        return text
    if text.isascii():
        return text[: width - 1] + "…"
    from rich.cells import set_cell_size

    return set_cell_size(text, width - 1) + "…"


def _pad(text: str, width: int, *, right: bool) -> str:
    text = _cut(text, width)
    blank = " " * (width - cell_width(text))
    return blank + text if right else text + blank
