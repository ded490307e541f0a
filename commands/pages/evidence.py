"""Claim by claim: what was published, what comes out here, its control, and whether the claim survives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from ...catalog.text import visible
from ..render.tables import cell_width

if TYPE_CHECKING:
    import pyarrow as pa

_ORDER = (
    *("claim_id", "source", "claim", "metric", "published", "model", "from_model", "site", "centre"),
    *("value", "control", "control_value", "verdict"),
)
_HEADS = ("claim", "published", "here", "control", "figure", "verdict")
_CAPS = (None, 11, None, 16, None, 16)
"""Cells beyond which these are wrapped; the claim takes what is left."""
_RIGHT = (False, False, True, False, True, False)
_LEAST_CLAIM = 12
_FIGURE = ("claim_id", "model", "from_model", "site", "centre")
"""What the rows of one figure have in common."""


def page(table: pa.Table, width: int | None = None, color: bool = False) -> str:
    """`rows` as a table of at most `width` cells: claims wrapped, figures to three digits, the verdict last.

    A claim and where it was measured stand once, beside all controls of that figure. Without a terminal every column of
    every row is there.
    """
    found = table.to_pylist()
    if width is None:
        texts = [[_cell(row[name]) for name in _ORDER] for row in found]
        blocks = [[[one] for one in line] for line in texts]
        heads, right = list(_ORDER), [name in ("value", "control_value") for name in _ORDER]
        sizes = _sizes(heads, blocks)
    else:
        heads, right = list(_HEADS), list(_RIGHT)
        blocks = _blocks(found, width)
        sizes = _sizes(heads, blocks)
    lines = [_line(heads, sizes, right)]
    if color:
        lines[0] = f"\x1b[1m{lines[0]}\x1b[0m"
    lines.append("  ".join("─" * size for size in sizes))
    for block in blocks:
        for i in range(max(map(len, block))):
            lines.append(_line([one[i] if i < len(one) else "" for one in block], sizes, right))
    lines.append("(1 row)" if len(found) == 1 else f"({len(found)} rows)")
    return "\n".join(lines) + "\n"


def markdown(table: pa.Table) -> str:
    """`rows` as a table for a document: a row for each control, the claim and its figure where they begin."""
    found = table.to_pylist()
    place = _place_of(found)
    lines = ["| claim | published | here | control | verdict |", "|---|---|---|---|---|"]
    before: tuple[Any, ...] = ()
    for row in found:
        key = tuple(row[name] for name in _FIGURE)
        claim = f"{row['claim_id']} {row['claim']}" if key[:1] != before[:1] else ""
        where = place(row)
        if where and key != before:
            claim += f" ({where})" if claim else where
        figure = [row["published"], _cell(row["value"])] if key != before else ["", ""]
        control = (
            row["control"]
            if row["control_value"] is None
            else f"{row['control']}: {_cell(row['control_value'])}"
        )
        cells = [claim, *figure, control, row["verdict"]]
        lines.append("| " + " | ".join(_cell(one).replace("|", "\\|") for one in cells) + " |")
        before = key
    return "\n".join(lines) + "\n"


def _place_of(found: list[dict[str, Any]]) -> Callable[[dict[str, Any]], str]:
    """Says where a row was measured, as far as rows differ in it."""
    several = {name for name in ("model", "site", "centre") if len({row[name] for row in found}) > 1}

    def place(row: dict[str, Any]) -> str:
        parts = [
            visible(str(row[name])) for name in ("model", "site", "centre") if name in several and row[name]
        ]
        if row["from_model"]:
            # A pair is named even where all claims are of one model.
            parts = [f"{visible(row['from_model'])} → {visible(row['model'])}", *parts["model" in several :]]
        return " ".join(parts)

    return place


def _blocks(found: list[dict[str, Any]], width: int) -> list[list[list[str]]]:
    """For each figure of a claim the lines of each column of `_HEADS`."""
    place = _place_of(found)
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in found:
        key = tuple(str(row[name]) for name in _FIGURE)
        groups.setdefault(key, []).append(row)
    blocks: list[list[list[str]]] = []
    claims: list[tuple[str, str]] = []
    for (claim_id, *_), rows_ in groups.items():
        new = not claims or claims[-1][0] != claim_id
        claims.append((claim_id, _cell(rows_[0]["claim"]) if new else ""))
        block: list[list[str]] = [
            [place(rows_[0])],
            _wrapped(rows_[0]["published"], 1),
            [_cell(rows_[0]["value"])],
        ]
        parts = [
            [_wrapped(row["control"], 3), [_cell(row["control_value"])], _wrapped(row["verdict"], 5)]
            for row in rows_
        ]
        for i in range(3):
            heights = [max(map(len, part)) for part in parts]
            block.append(
                [
                    one
                    for part, n in zip(parts, heights, strict=True)
                    for one in part[i] + [""] * (n - len(part[i]))
                ]
            )
        blocks.append(block)
    others = sum(_sizes(list(_HEADS[1:]), [block[1:] for block in blocks])) + 2 * (len(_HEADS) - 1)
    room = max(_LEAST_CLAIM, width - others)
    for block, (_, claim) in zip(blocks, claims, strict=True):
        block[0] = [
            *wrap(claim, room, break_on_hyphens=False),
            *(line for line in wrap(block[0][0], room, initial_indent="  ", subsequent_indent="  ")),
        ]
    return blocks


def _wrapped(value: Any, column: int) -> list[str]:
    return wrap(_cell(value), _CAPS[column] or 1000) or [""]


def _sizes(heads: list[str], blocks: list[list[list[str]]]) -> list[int]:
    return [
        max([len(head), *(cell_width(one) for block in blocks for one in block[i])])
        for i, head in enumerate(heads)
    ]


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        if value == 0 or 0.001 <= abs(value) < 1000:
            return f"{value:.3f}"
        return f"{value:.3g}" if abs(value) >= 1000 else f"{value:.1e}"
    return visible(str(value))


def _line(texts: list[str], sizes: list[int], right: list[bool]) -> str:
    parts: Iterator[str] = (
        " " * (size - cell_width(text)) + text if numeric else text + " " * (size - cell_width(text))
        for text, size, numeric in zip(texts, sizes, right, strict=True)
    )
    return "  ".join(parts).rstrip()
