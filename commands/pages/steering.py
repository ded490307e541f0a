"""What adding a direction does, its arms beside each other: a block of a rotation's page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ...catalog import parts
from ...catalog.text import visible
from ..render.chart import Panel, bars, scale_of
from ..render.lines import aligned, sentence
from ..render.tables import cell_width
from ..render.values import unknown

if TYPE_CHECKING:
    import pyarrow as pa

_WORDS = parts.words("rotations")
ARMS = ("source", "as_is", "rotated", "random", "own")
"""The arms in the order in which they are shown."""
HEADLINE = 2.0
"""The dose of the figures over all directions."""


def steering(table: pa.Table, width: int, color: bool = False) -> Iterator[str]:
    """For each direction the change of its target against the dose, and all figures at `HEADLINE` or the largest dose."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        groups.setdefault((row["direction"], row["target"]), []).append(row)
    for i, ((direction, target), rows) in enumerate(groups.items()):
        if i:
            yield ""
        yield from sentence(visible(f"{direction}: change of the logits of {target}"), width)
        doses = sorted({row["dose"] for row in rows})
        if len(doses) > 1:
            panels = []
            for arm in _order(rows):
                values = {row["dose"]: row["target_change"] for row in rows if row["arm"] == arm}
                panels.append(Panel(_WORDS[arm].name if arm in ARMS else visible(arm), values))
            yield from bars(panels, doses, scale_of([row["target_change"] for row in rows]), width, color)
        at = HEADLINE if HEADLINE in doses else doses[-1]
        yield f"at dose {at:g}"
        yield from _table([row for row in rows if row["dose"] == at], width)
    if groups:
        there = [one for one in ARMS if any(row["arm"] == one for rows in groups.values() for row in rows)]
        texts = [f"{_WORDS[one].name}: {_WORDS[one].about}" for one in there]
        texts.append(
            "target is its mean logit less that of the others; charts have the dose from left to right; "
            "± is the standard error over windows"
        )
        yield from sentence("; ".join(texts), width)


def _order(rows: Sequence[dict[str, Any]]) -> list[str]:
    there = {row["arm"] for row in rows}
    return [one for one in ARMS if one in there] + sorted(there - set(ARMS))


def _table(rows: Sequence[dict[str, Any]], width: int) -> Iterator[str]:
    cells = [["arm", "norm", "target", "others", "KL (nats)", "positions"]]
    for arm in _order(rows):
        for row in (one for one in rows if one["arm"] == arm):
            cells.append(
                [
                    _WORDS[arm].name if arm in ARMS else visible(arm),
                    f"{row['norm']:.3g}",
                    _with_error(row["target_change"], row["target_std_error"], "+"),
                    _with_error(row["other_change"], row["other_std_error"], "+"),
                    _with_error(row["kl"], row["kl_std_error"], ""),
                    f"{row['n']:,}",
                ]
            )
    lines = aligned(cells)
    if max(map(cell_width, lines)) > width:
        lines = aligned([[one.split(" ±")[0] for one in line] for line in cells])
    yield from lines


def _with_error(value: float, error: float | None, sign: str) -> str:
    text = f"{value:{sign}.3f}"
    return text if unknown(error) else f"{text} ± {error:.3f}"
