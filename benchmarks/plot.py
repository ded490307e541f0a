"""A figure of times against batch sizes, both axes logarithmic, as SVG; no library is needed for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

Line = Sequence[tuple[int, float]]

_COLOURS = ("#0b6e4f", "#1f6fb2", "#b3541e", "#8a3ffc", "#7a7a7a", "#c2185b")
_WIDE, _HIGH, _LEFT, _TOP, _GAP = 360, 300, 84, 40, 84


def write(path: Path, panels: Mapping[int, Mapping[str, Line]], n: int) -> None:
    """A panel a width: seconds a query against queries a call, a line for each of what was measured."""
    times = [seconds for lines in panels.values() for line in lines.values() for _, seconds in line]
    batches = [batch for lines in panels.values() for line in lines.values() for batch, _ in line]
    if not times:
        return
    low, high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))
    right = max(1.0, math.log10(max(batches)))
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    wide = _LEFT + len(panels) * (_WIDE + _GAP) - _GAP + 24
    tall = _TOP + _HIGH + 56 + 18 * math.ceil(len(names) / 3)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{tall}" viewBox="0 0 {wide} {tall}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{wide}" height="{tall}" fill="white"/>',
    ]
    for place, (width, lines) in enumerate(panels.items()):
        left = _LEFT + place * (_WIDE + _GAP)

        def at(batch: float, seconds: float, left: int = left) -> tuple[float, float]:
            x = left + math.log10(batch) / right * _WIDE
            return x, _TOP + (high - math.log10(seconds)) / max(1, high - low) * _HIGH

        out.append(f'<text x="{left}" y="{_TOP - 14}">{n:,} codes of {width:,} bits, exact, k = 10</text>')
        for power in range(low, high + 1):
            y = at(1, 10.0**power)[1]
            out.append(f'<path d="M{left} {y:.1f}h{_WIDE}" stroke="#ddd"/>')
            out.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{_seconds(power)}</text>')
        for power in range(int(right) + 1):
            x = at(10**power, 1)[0]
            out.append(f'<path d="M{x:.1f} {_TOP}v{_HIGH}" stroke="#ddd"/>')
            out.append(f'<text x="{x:.1f}" y="{_TOP + _HIGH + 18}" text-anchor="middle">{10**power:,}</text>')
        middle = left + _WIDE / 2
        out.append(f'<text x="{middle}" y="{_TOP + _HIGH + 36}" text-anchor="middle">queries a call</text>')
        for name, line in lines.items():
            colour, points = _COLOURS[names.index(name) % len(_COLOURS)], [at(*one) for one in line]
            joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            out.append(f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"/>')
            out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
    out.append(
        f'<text x="12" y="{_TOP + _HIGH / 2}" transform="rotate(-90 12 {_TOP + _HIGH / 2})">a query</text>'
    )
    for place, name in enumerate(names):
        x, y = _LEFT + place % 3 * 250, _TOP + _HIGH + 58 + 18 * (place // 3)
        colour = _COLOURS[place % len(_COLOURS)]
        out.append(f'<path d="M{x} {y - 4}h20" stroke="{colour}" stroke-width="3"/>')
        out.append(f'<text x="{x + 26}" y="{y}">{escape(name)}</text>')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*out, "</svg>"]) + "\n")


def _seconds(power: int) -> str:
    if power >= 0:
        return f"{10**power} s"
    return f"{10 ** (power + 3)} ms" if power >= -3 else f"{10 ** (power + 6):g} µs"
