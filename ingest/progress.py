"""Who wants to know how a job goes. Libraries report; what is shown is made in `commands/`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .job import Estimate


class Progress(Protocol):
    """What a job tells while it runs. The default is `Silent`."""

    def loading(self, what: str) -> None:
        """Something slow without a measure begins."""

    def counted(self, name: str, tokens: int) -> None:
        """So many tokens of the text called `name` were counted so far."""

    def planned(self, estimate: Estimate) -> None:
        """The size is known; nothing has been written."""

    def entered(self, stage: str) -> None:
        """A stage of the estimate begins; the runs that start from now on are its own."""

    def started(self, job: str, total: int, done: int, unit: str = "tokens") -> None:
        """A run of `total` units begins, or goes on after `done` of them."""

    def computed(self, units: int) -> None:
        """So many more units are done."""

    def ended(self) -> None:
        """The run is committed."""


class Silent:
    """A `Progress` that hears and says nothing."""

    def loading(self, what: str) -> None:
        """See `Progress`."""

    def counted(self, name: str, tokens: int) -> None:
        """See `Progress`."""

    def planned(self, estimate: Estimate) -> None:
        """See `Progress`."""

    def entered(self, stage: str) -> None:
        """See `Progress`."""

    def started(self, job: str, total: int, done: int, unit: str = "tokens") -> None:
        """See `Progress`."""

    def computed(self, units: int) -> None:
        """See `Progress`."""

    def ended(self) -> None:
        """See `Progress`."""
