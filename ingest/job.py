"""What a stage of `ingest` is, and what a command is that makes a single run: the sockets that the methods fit into.

A stage is planned before a row is written, says its size, and then runs: see `Stage`, and `run.ingest` for the loop. A
command such as `flip` or `align` is a `Job`: see `run_once`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..catalog import store
from ..catalog.errors import DiskFull
from .journal import is_finished
from .size import Size

if TYPE_CHECKING:
    from .progress import Progress

__all__ = ["Done", "Estimate", "Job", "Report", "Size", "run_once"]


@dataclass(frozen=True)
class Estimate(Size):
    """The size of a whole ingest, and where it will run; `free_bytes` are left on the catalogue's disk."""

    model: str = ""
    device: str = ""
    sites: tuple[str, ...] = ()
    free_bytes: int = 0

    def must_fit(self, path: Path) -> None:
        """Refuse what the disk of the catalogue at `path` cannot hold.

        Raises:
            DiskFull: with the bytes that are needed and those that are free.
        """
        needed = self.stored_bytes + self.scratch_bytes
        if self.free_bytes < needed:
            raise DiskFull(path, needed, self.free_bytes)


@dataclass
class Report:
    """What an ingest did. `already` says that everything was in the catalogue before."""

    model: str
    estimate: Estimate
    dry_run: bool = False
    runs: list[str] = field(default_factory=list)
    tokens: int = 0
    already: bool = False
    notes: list[str] = field(default_factory=list)


@dataclass
class Done:
    """What a stage or a job did: its runs, and whether anything was left to do for them.

    `tokens` went through the model for their codes. `notes` are sentences for the person who asked.
    """

    runs: list[str] = field(default_factory=list)
    changed: bool = False
    tokens: int = 0
    notes: list[str] = field(default_factory=list)


# ---- a command that is one run ------------------------------------------------------------------


class Job(Protocol):
    """A command that makes one run: `flip`, `align`, `sae add`."""

    def identify(self, progress: Progress) -> str:
        """The id of the run, from the content of all that it reads. Called under the job lock; it may load models.

        Raises:
            SignariumError: for what can be refused before anything is computed.
        """

    def run(self, run_id: str, progress: Progress) -> list[str]:
        """Compute what is missing of the run, through `journal.run_units`; notes for the person who asked."""


def run_once(path: Path, job: Job, progress: Progress) -> Done:
    """Do a job unless its run is in the catalogue already. One that was cut short is gone on with.

    Raises:
        IngestRunning: if another process works on the catalogue.
        SignariumError: what the job raises.
    """
    with store.job_lock(path):
        run_id = job.identify(progress)
        if is_finished(path, run_id):
            return Done([run_id])
        return Done([run_id], changed=True, notes=job.run(run_id, progress))
