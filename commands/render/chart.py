"""Small charts of text, side by side on one scale: arms that overlap are still told apart, with or without colour."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_HEIGHT = 9
"""Lines of bars, above and below zero together."""
_AXIS = 8
_BETWEEN = 2
_STEPS = (1.0, 2.0, 2.5, 5.0)
# Downwards there are no finer blocks; upwards the same steps, so that equal bars look equal.
_UP = ((0.75, "█"), (0.25, "▄"), (0.06, "▁"))
_DOWN = ((0.75, "█"), (0.25, "▀"), (0.06, "▔"))
_RAISED, _LOWERED = "33", "34"


@dataclass(frozen=True)
class Panel:
    """One series: a bar for each place on the common axis `x` that it has a value at."""

    title: str
    values: dict[float, float]


@dataclass(frozen=True)
class Scale:
    """Values from `-down * unit` to `up * unit`, a line of text for each unit."""

    unit: float
    up: int
    down: int


def scale_of(values: Sequence[float]) -> Scale:
    """The finest round unit with which `values` and zero fit into `_HEIGHT` lines."""
    high, low = max(0.0, *values), min(0.0, *values)
    # What differs from zero by rounding alone is drawn as zero.
    if high - low < 1e-9:
        return Scale(1.0, 1, 1)
    power = math.floor(math.log10((high - low) / _HEIGHT))
    unit, up, down = 0.0, 0, 0
    for exponent in (power, power + 1):
        for step in _STEPS:
            unit = step * 10.0**exponent
            # Rounded, so that 0.3 / 0.1 takes three lines.
            up, down = (math.ceil(round(size / unit, 9)) for size in (high, -low))
            if up + down <= _HEIGHT:
                return Scale(unit, up, down)
    return Scale(unit, up, down)


def bars(
    panels: Sequence[Panel],
    x: Sequence[float],
    scale: Scale,
    width: int,
    color: bool = False,
    cells: tuple[int, int] | None = None,
) -> Iterator[str]:
    """Panels of bars in lines of at most `width` cells, as many beside each other as fit; `cells` is of `bar_size`."""
    bar, gap = cells or bar_size(panels, len(x), width)
    sizes = [max(len(one.title), len(x) * (bar + gap) - gap) for one in panels]
    row: list[tuple[Panel, int]] = []
    used = _AXIS
    for one, size in zip(panels, sizes, strict=True):
        if row and used + size > width:
            yield from _row(row, x, scale, bar, gap, color)
            yield ""
            row, used = [], _AXIS
        row.append((one, size))
        used += size + _BETWEEN
    if row:
        yield from _row(row, x, scale, bar, gap, color)


def bar_size(panels: Sequence[Panel], n: int, width: int) -> tuple[int, int]:
    """Cells of a bar and of the gap behind it: the widest with which all panels stand side by side."""
    for bar, gap in ((3, 1), (2, 1), (1, 1), (1, 0)):
        cells = sum(max(len(one.title), n * (bar + gap) - gap) + _BETWEEN for one in panels)
        if _AXIS + cells - _BETWEEN <= width:
            return bar, gap
    return 1, 1


def _row(
    row: Sequence[tuple[Panel, int]], x: Sequence[float], scale: Scale, bar: int, gap: int, color: bool
) -> Iterator[str]:
    def line(label: str, mark: str, cells: Sequence[str]) -> str:
        return f"{label:>{_AXIS - 2}} {mark}" + (" " * _BETWEEN).join(cells)

    yield " " * _AXIS + (" " * _BETWEEN).join(one.title.ljust(size) for one, size in row)
    for place in [*range(scale.up - 1, -1, -1), None, *range(-1, -scale.down - 1, -1)]:
        cells = []
        for one, size in row:
            text = ""
            for i, at in enumerate(x):
                # No line where nothing was measured.
                block = " " if at not in one.values else _block(one.values[at] / scale.unit, place)
                if i:
                    text += ("─" if place is None and x[i - 1] in one.values and block == "─" else " ") * gap
                drawn = block * bar
                if color and block not in " ─":
                    drawn = f"\x1b[{_RAISED if place is not None and place >= 0 else _LOWERED}m{drawn}\x1b[0m"
                text += drawn
            cells.append(text + " " * (size - len(x) * (bar + gap) + gap))
        if place is None:
            yield line("0", "┼", cells)
        elif place == scale.up - 1 >= 0:
            yield line(f"{scale.up * scale.unit:+g}", "┤", cells)
        elif scale.down and place == -scale.down:
            yield line(f"{-scale.down * scale.unit:+g}", "┤", cells)
        else:
            yield line("", "│", cells)
    span = len(x) * (bar + gap) - gap
    first, last = f"{x[0]:g}", f"{x[-1]:g}"
    ends = first + last.rjust(span - len(first)) if len(x) > 1 else first
    yield " " * _AXIS + (" " * _BETWEEN).join(ends.ljust(size) for _, size in row)


def _block(height: float, place: int | None) -> str:
    """What fills the line `place` units from zero (-1 is the first below) of a bar of `height` units; None is zero's own."""
    if place is None:
        return "─"
    blocks = _UP if place >= 0 else _DOWN
    filled = height - place if place >= 0 else place + 1 - height
    return next((one for least, one in blocks if filled >= least), " ")
