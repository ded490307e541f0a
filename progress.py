"""How a job goes, for the person at the terminal."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from .catalog.text import visible

if TYPE_CHECKING:
    from .ingest.job import Estimate


class Display:
    """How an ingest goes: a bar on stderr if that is a terminal, else a line on stdout now and then.

    What is said without an error goes to stdout, so that stderr holds the one line of an error and nothing else.
    """

    _EVERY_S = 30.0

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._terminal = sys.stderr.isatty()
        self._job, self._unit = "", "tokens"
        self._total = self._done = self._before = 0
        self._begun = self._said = 0.0

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def loading(self, what: str) -> None:
        """See `ingest.progress.Progress`."""
        self._stop()
        if self._terminal:
            click.echo(visible(f"{what} ..."), err=True)

    def counted(self, name: str, tokens: int) -> None:
        """See `ingest.progress.Progress`."""
        now = time.monotonic()
        if now - self._said >= (1.0 if self._terminal else self._EVERY_S):
            if self._said:
                click.echo(f"{name}: {tokens:,} tokens counted", err=self._terminal)
            self._said = now

    def planned(self, estimate: Estimate) -> None:
        """See `ingest.progress.Progress`."""
        scratch = f" + {_mb(estimate.scratch_bytes)} scratch while it runs" if estimate.scratch_bytes else ""
        lines = (
            f"{estimate.model} on {estimate.device}, {', '.join(estimate.sites)}",
            f"to do: {estimate.tokens:,} tokens, {estimate.rows:,} codes"
            + (f", at most {estimate.features:,} features" if estimate.features else ""),
            f"disk: {_mb(estimate.catalogue_bytes)} catalogue + {_mb(estimate.index_bytes)} indexes{scratch}, "
            f"of {_mb(estimate.free_bytes)} free",
        )
        for line in lines:
            click.echo(visible(line))

    def entered(self, stage: str) -> None:
        """See `ingest.progress.Progress`."""

    def started(self, job: str, total: int, done: int, unit: str = "tokens") -> None:
        """See `ingest.progress.Progress`."""
        self._stop()
        self._job, self._total, self._done, self._before = job, total, done, done
        self._unit = unit
        self._begun = self._said = time.monotonic()
        if not self._terminal:
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True, no_color=bool(os.environ.get("NO_COLOR"))),
        )
        self._task = self._bar.add_task(job, total=total, completed=done, rate="", unit=unit)
        self._bar.start()

    def computed(self, units: int) -> None:
        """See `ingest.progress.Progress`."""
        self._done += units
        now = time.monotonic()
        speed = (self._done - self._before) / max(now - self._begun, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, advance=units, rate=self._rate(speed))
        elif not self._terminal and now - self._said >= self._EVERY_S:
            self._said = now
            left = round(max(0, self._total - self._done) / speed)
            click.echo(
                f"{self._job}: {self._done:,} of {self._total:,} {self._unit}, {self._rate(speed)}, "
                f"{left // 60}:{left % 60:02d} left"
            )

    def _rate(self, speed: float) -> str:
        """So many a second, or, of what takes longer, seconds each."""
        if speed >= 1:
            return f"{speed:,.0f} {self._unit}/s"
        return f"{1 / max(speed, 1e-9):,.0f} s each"

    def ended(self) -> None:
        """See `ingest.progress.Progress`."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _mb(n: float) -> str:
    return f"{n / 1e6:,.1f} MB" if n < 1e9 else f"{n / 1e9:,.2f} GB"
