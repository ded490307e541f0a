"""How a job goes, for the person at the terminal: one line that moves, or a line now and then."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..catalog.text import visible
from .output import tell

if TYPE_CHECKING:
    from rich.text import Text

    from ..ingest.job import Estimate
    from ..ingest.size import Step

TRUSTED = 0.1
"""Share of a step from which on its own speed alone says how long it takes; before, the estimate has a say."""
_BAR = 24


class Outlook:
    """How long the steps of an ingest take: what ran so far corrects the estimates of what is to come."""

    def __init__(self, stages: tuple[tuple[str, tuple[Step, ...]], ...] = ()) -> None:
        self.stages = [name for name, _ in stages]
        self._ahead = [(name, step) for name, steps in stages for step in steps]
        self._spent: dict[str, list[float]] = {}
        self._step: Step | None = None
        self.stage = ""

    @property
    def place(self) -> str:
        """Which stage of how many this is, such as `2/5`; nothing where no stages are known."""
        if self.stage not in self.stages:
            return ""
        return f"{self.stages.index(self.stage) + 1}/{len(self.stages)}"

    def enter(self, stage: str) -> None:
        """A stage begins: what is left of earlier ones was not needed."""
        self.stage = stage
        at = self.stages.index(stage)
        self._ahead = [one for one in self._ahead if self.stages.index(one[0]) >= at]

    def start(self, job: str) -> None:
        """A step begins. Steps of its stage that stand before it were not needed."""
        here = [i for i, (stage, step) in enumerate(self._ahead) if (stage, step.job) == (self.stage, job)]
        self._step = None
        if here:
            self._step = self._ahead[here[0]][1]
            del self._ahead[: here[0] + 1]

    def end(self, seconds: float, share: float) -> None:
        """The step took so many seconds for a share of it (less than 1 where an earlier try had done the rest)."""
        if self._step is not None and share > 0 and self._step.seconds > 0:
            spent = self._spent.setdefault(self._step.pace, [0.0, 0.0])
            spent[0] += seconds
            spent[1] += self._step.seconds * share
        self._step = None

    def _expected(self, step: Step) -> float:
        """Seconds of a step on this machine: as much slower than estimated as its like were, else as all that ran."""
        like = self._spent.get(step.pace) or [sum(one) for one in zip(*self._spent.values(), strict=True)]
        return step.seconds * (like[0] / like[1] if like and like[1] else 1.0)

    def step_left(self, seconds: float, share: float) -> float | None:
        """Seconds left of the step, of which a share was done in so many; None while nothing is known."""
        own = seconds / share if share > 0 else None
        if self._step is None:
            return None if own is None else own - seconds
        whole = self._expected(self._step)
        if own is not None:
            weight = min(1.0, share / TRUSTED)
            whole = weight * own + (1 - weight) * whole
        return max(0.0, whole - seconds)

    def later(self) -> float:
        """Seconds of all steps to come."""
        return sum(self._expected(step) for _, step in self._ahead)


class Display:
    """How a job goes: one line on stderr that moves if that is a terminal, else a line on stdout now and then.

    What is said without an error goes to stdout, so that stderr holds the one line of an error and nothing else. The
    line that moves is gone in the end.
    """

    _EVERY_S = 30.0

    def __init__(self) -> None:
        self._live: Any = None
        self._terminal = sys.stderr.isatty()
        self._outlook = Outlook()
        self._what = ""
        self._job, self._unit = "", "tokens"
        self._total = self._done = self._before = 0
        self._begun = self._said = 0.0

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def loading(self, what: str) -> None:
        """See `ingest.progress.Progress`."""
        self._job, self._what = "", what
        self._show()

    def counted(self, name: str, tokens: int) -> None:
        """See `ingest.progress.Progress`."""
        self._job, self._what = "", f"{name}: {tokens:,} tokens counted"
        self._show()
        now = time.monotonic()
        if not self._terminal and now - self._said >= self._EVERY_S:
            if self._said:
                tell(self._what)
            self._said = now

    def planned(self, estimate: Estimate) -> None:
        """See `ingest.progress.Progress`."""
        self._stop()
        scratch = f" + {_mb(estimate.scratch_bytes)} scratch while it runs" if estimate.scratch_bytes else ""
        lines = (
            f"{estimate.model} on {estimate.device}, {', '.join(estimate.sites)}",
            f"to do: {estimate.tokens:,} tokens, {estimate.rows:,} codes"
            + (f", at most {estimate.features:,} features" if estimate.features else ""),
            f"disk: {_mb(estimate.catalogue_bytes)} catalogue + {_mb(estimate.index_bytes)} indexes{scratch}, "
            f"of {_mb(estimate.free_bytes)} free",
        )
        for line in lines:
            tell(line)
        self._outlook = Outlook(estimate.stages)

    def entered(self, stage: str) -> None:
        """See `ingest.progress.Progress`."""
        self._outlook.enter(stage)
        self.loading(stage)

    def started(self, job: str, total: int, done: int, unit: str = "tokens") -> None:
        """See `ingest.progress.Progress`."""
        self._outlook.start(job)
        self._total, self._done, self._before, self._unit = total, done, done, unit
        self._begun = self._said = time.monotonic()
        self._job = job
        self._show()

    def computed(self, units: int) -> None:
        """See `ingest.progress.Progress`."""
        self._done += units
        now = time.monotonic()
        if not self._terminal and now - self._said >= self._EVERY_S:
            self._said = now
            step, everything = self._left()
            place = f"{self._outlook.place} " if self._outlook.place else ""
            tell(
                f"{place}{self._job}: {self._done:,} of {self._total:,} {self._unit}, {self._rate()}, "
                f"{_minutes(step or 0.0)} left" + (f", of all about {_minutes(everything)}" if place else "")
            )

    def ended(self) -> None:
        """See `ingest.progress.Progress`."""
        self._outlook.end(time.monotonic() - self._begun, self._share())
        self._job, self._what = "", self._outlook.stage

    # ---- what is said ----

    def _share(self) -> float:
        """How much of what was left to do is done."""
        return (self._done - self._before) / max(1, self._total - self._before)

    def _rate(self) -> str:
        """So many a second, or, of what takes longer, seconds each."""
        speed = (self._done - self._before) / max(time.monotonic() - self._begun, 1e-9)
        if speed >= 1:
            return f"{speed:,.0f} {self._unit}/s"
        return f"{1 / speed:,.0f} s each" if speed > 0 else ""

    def _left(self) -> tuple[float | None, float]:
        """Seconds left of the step, None while nothing is known, and of everything."""
        step = self._outlook.step_left(time.monotonic() - self._begun, self._share())
        return step, (step or 0.0) + self._outlook.later()

    def line(self, columns: int) -> str:
        """The line that moves, in less than so many columns."""
        place, stage = self._outlook.place, self._outlook.stage
        if not self._job:
            later = self._outlook.later()
            what = f"{place} {self._what}" if place else self._what
            return visible(f"{what} ..." + (f"  all about {_minutes(later)} left" if later else ""))[
                : columns - 1
            ]
        name = self._job if self._job == stage or not stage else f"{stage}: {self._job}"
        head = f"{place} {name}".strip()
        step, everything = self._left()
        tail = [self._rate(), f"step {_minutes(step)}" if step is not None else ""]
        tail.append(f"all about {_minutes(everything)} left" if place and (step or self._done) else "")
        bar = ""
        while True:
            parts = [one for one in (head, *tail) if one]
            room = columns - 1 - len("  ".join(parts))
            if room >= 0 or not any(tail):
                break
            # The whole is what people wait for; the rate is the first to go.
            tail[next(i for i, one in enumerate(tail) if one)] = ""
        if room >= 12:
            width = min(_BAR, room - 4)
            full = round(width * min(1.0, self._done / max(1, self._total)))
            bar = f"[{'#' * full}{'.' * (width - full)}]"
        parts = [one for one in (head, bar, *tail) if one]
        return visible("  ".join(parts))[: columns - 1]

    # ---- the line ----

    def _show(self) -> None:
        """Let the line be there; it is drawn anew four times a second, whether or not anything was computed."""
        if not self._terminal or self._live is not None:
            return
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._live = Live(
            console=console,
            get_renderable=lambda: self._text(console.width),
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with suppress(OSError):
            self._live.start(refresh=True)

    def _text(self, columns: int) -> Text:
        from rich.text import Text

        return Text(self.line(columns), no_wrap=True, overflow="crop", end="")

    def _stop(self) -> None:
        if self._live is not None:
            # The terminal may be gone.
            with suppress(OSError):
                self._live.stop()
            self._live = None


def _minutes(seconds: float) -> str:
    """Seconds as 0:40, 12:05 or 1:02:03."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def _mb(n: float) -> str:
    return f"{n / 1e6:,.1f} MB" if n < 1e9 else f"{n / 1e9:,.2f} GB"
