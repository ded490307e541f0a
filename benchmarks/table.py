"""The table of results: rows, bars that are computed from them, and the file that keeps the parts of earlier runs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_HEAD = "| part | what | ours | beside it | ratio | bar | met | on |\n|---|---|---:|---|---:|---|---|---|\n"
_ROW = re.compile(r"\| ([a-z-]+) \| .* \|")
_NOTE = re.compile(r"- ([a-z-]+): ")


@dataclass(frozen=True)
class Bar:
    """What a figure must reach: `sign` is >= or <=."""

    sign: str
    value: float
    unit: str = ""

    def met(self, figure: float) -> bool:
        """Whether the figure, unrounded, is on the right side."""
        return figure >= self.value if self.sign == ">=" else figure <= self.value

    def __str__(self) -> str:
        return f"{self.sign} {self.value:g}{' ' + self.unit if self.unit else ''}"


def at_least(value: float, unit: str = "") -> Bar:
    """The figure may not be smaller."""
    return Bar(">=", value, unit)


def at_most(value: float, unit: str = "") -> Bar:
    """The figure may not be larger."""
    return Bar("<=", value, unit)


@dataclass(frozen=True)
class Row:
    """One line: ours, and what stands beside it.

    `ratio` says how many times better ours is, or what the first words of `what` divide. A `bar` is held against
    `figure`, or against the ratio where there is none; without either the bar counts as missed.
    """

    what: str
    ours: str = ""
    beside: str = ""
    ratio: float | None = None
    bar: Bar | None = None
    figure: float | None = None

    def cells(self) -> list[str]:
        """What the table shows."""
        held = self.ratio if self.figure is None else self.figure
        met = "" if self.bar is None else "yes" if held is not None and self.bar.met(held) else "no"
        ratio = (
            "" if self.ratio is None else f"{self.ratio:.3g}" if self.ratio < 100 else f"{self.ratio:,.0f}"
        )
        return [self.what, self.ours, self.beside, ratio, "" if self.bar is None else str(self.bar), met]


def failed(what: str, error: object, bar: Bar | None = None) -> Row:
    """A row for what could not be measured, with the first line of why."""
    why = (str(error).strip().splitlines() or [type(error).__name__])[0]
    # Folders of this machine say nothing to anybody else.
    why = re.sub(r"(/[\w.-]+){2,}/", "", why)
    return Row(what, "", f"not measured: {why[:160]}", bar=bar)


def line(part: str, row: Row, date: str) -> str:
    """A row of the table, without its end."""
    cells = [cell.replace("|", "\\|").replace("\n", " ") for cell in (part, *row.cells(), date)]
    return f"| {' | '.join(cells)} |"


class Results:
    """RESULTS.md: one table whose rows belong to parts, and a line a part about the machine.

    A part that is run again takes the place of its earlier rows; the others stay as they are, with their dates.
    """

    def __init__(self, path: Path, title: str, order: Iterable[str]) -> None:
        self._path, self._title, self._order = path, title, list(order)
        self._rows: dict[str, list[str]] = {}
        self._notes: dict[str, str] = {}
        for text in path.read_text().splitlines() if path.exists() else []:
            if (found := _ROW.match(text)) and found[1] in self._order:
                self._rows.setdefault(found[1], []).append(text)
            elif (found := _NOTE.match(text)) and found[1] in self._order:
                self._notes[found[1]] = text

    def replace(self, part: str, rows: Iterable[Row], date: str, note: str) -> None:
        """Take the rows of one part, and write the file."""
        self._rows[part] = [line(part, row, date) for row in rows]
        self._notes[part] = f"- {part}: {date}; {note}"
        self._write()

    def _write(self) -> None:
        parts = [part for part in self._order if part in self._rows]
        rows = "".join(f"{one}\n" for part in parts for one in self._rows[part])
        notes = "".join(f"{self._notes[part]}\n" for part in parts)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(f"{self._title}\n{_HEAD}{rows}\n## Where each part was measured\n\n{notes}")
