"""What a stage of `ingest` is, and what a command is that makes a single run: the sockets that the methods fit into.

A stage is planned before a row is written, says its size, and then runs: see `Stage`, and `run.ingest` for the loop. A
command such as `flip` or `align` is a `Job`: see `run_once`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from ..catalog import store
from ..catalog.errors import DiskFull
from .journal import Units, is_finished, run_units
from .known import model_row
from .size import Size, Step

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from .known import Known
    from .model.loaded import LoadedModel
    from .model.sites import Site
    from .passes.replicas import Replicas
    from .plan import JobPlan
    from .progress import Progress
    from .request import IngestRequest
    from .stats.moments import Moments
    from .text.sources import TextFile

__all__ = ["Context", "Done", "Estimate", "Job", "Report", "Size", "Stage", "Step", "Watch", "run_once"]


@dataclass(frozen=True)
class Estimate(Size):
    """The size of a whole ingest, and where it will run; `free_bytes` are left on the catalogue's disk.

    `stages` are those that will run, in order, each with its steps.
    """

    model: str = ""
    device: str = ""
    sites: tuple[str, ...] = ()
    free_bytes: int = 0
    stages: tuple[tuple[str, tuple[Step, ...]], ...] = ()

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

    def add(self, other: Done) -> None:
        """Count what another part of the same stage did."""
        self.runs += other.runs
        self.changed = self.changed or other.changed
        self.tokens += other.tokens
        self.notes += other.notes


# ---- a stage of `ingest` ------------------------------------------------------------------------


class See(Protocol):
    """What a watch is told of a shard of another stage's passes."""

    def __call__(self, site: str, start: int, states: Tensor, moments: Moments) -> None:
        """States (n, width) of the items from `start` on at a site, and the moments of all of that stage's items there."""


@dataclass(frozen=True)
class Watch:
    """A wish to see the states that another stage computes, so that they need not be computed again."""

    stage: str
    see: See


@dataclass
class Context:
    """What every stage is planned with, and what the stages tell one another.

    `window` is how many tokens a window of text has, `texts` are the files to read. A stage that is planned adds what it
    will leave: runs of codes to `plans`, sites whose types are stored by then to `typed`, its size to `coming`. `means`
    are the type means that are known, by site; the stage types adds its own when it has run.
    `notes` are sentences for the person who asked.
    """

    path: Path
    request: IngestRequest
    replicas: Replicas
    known: Known
    sites: list[Site]
    window: int
    batch_tokens: int
    texts: list[TextFile]
    progress: Progress
    typed: set[str]
    means: dict[str, NDArray[np.float64]]
    plans: list[JobPlan] = field(default_factory=list)
    coming: Size = field(default_factory=Size)
    watches: list[Watch] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def model(self) -> LoadedModel:
        """The model, on the first device."""
        return self.replicas.models[0]

    @property
    def asked(self) -> bool:
        """Whether the stages were named by the user, not taken because they are usual."""
        return self.request.stages is not None

    def todo(self, job: str) -> list[JobPlan]:
        """The runs of a job that have something left to compute."""
        return [one for one in self.plans if one.spec.job == job and not one.done]

    def run_units(self, units: Units, progress: Progress) -> None:
        """See `journal.run_units`: a run of the ingested model, on its first device."""
        row = model_row(self.model, self.known.name)
        run_units(self.path, row, str(self.model.device), units, progress)


class Stage(Protocol):
    """A stage: planned by its constructor, from a `Context`, before a row is written.

    `needs` names the stages that must run before it, where they run. `watch` is what it wants to see of another's passes.

    Raises:
        SignariumError: from the constructor, for what it cannot do.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    size: Size
    watch: Watch | None

    def __init__(self, context: Context) -> None: ...

    def run(self, progress: Progress) -> Done:
        """Do all that is missing."""


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
