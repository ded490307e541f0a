"""The record of a run, and the thread that commits its shards while the model computes the next one.

A shard is one transaction: its rows and the record that it is done. A run's id comes from the content of what
it reads, so the same command finds its own shards again and goes on after the last of them.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session

from ..catalog import bulk, schema, store
from ..catalog.errors import SignariumError
from ..catalog.files import remove_folder
from .model.sites import Site

if TYPE_CHECKING:
    from .progress import Progress

_LIBRARIES = ("signarium", "torch", "transformers", "tokenizers", "duckdb", "numpy")


@dataclass(frozen=True)
class SetSpec:
    """A code set that a run fills."""

    code_set_id: int
    site: Site
    site_id: str
    subject: str
    centre: str
    width: int


@dataclass(frozen=True)
class RunSpec:
    """What a run is: its identity and what it fills. `texts` are the text_ids that it reads, in order."""

    run_id: str
    job: str
    params: dict[str, Any]
    sets: tuple[SetSpec, ...]
    texts: tuple[int, ...] = ()

    @property
    def sites(self) -> list[Site]:
        """Its sites, each once, in order."""
        return list(dict.fromkeys(one.site for one in self.sets))

    def of(self, site: Site) -> dict[str, SetSpec]:
        """Its code sets at `site`, by centre."""
        return {one.centre: one for one in self.sets if one.site == site}


@dataclass(frozen=True)
class Shard:
    """Rows ready to be committed: `write` inserts them into the session that it is given."""

    start: int
    n: int
    tokens: int
    forward_s: float
    pack_s: float
    wall_s: float
    write: Callable[[Session], object]


def now() -> datetime:
    """UTC, as the catalogue stores it."""
    return datetime.now(UTC).replace(tzinfo=None)


def versions() -> str:
    """JSON of the versions of the libraries that decide what comes out."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return json.dumps(found)


def site_id(model_id: str, site: Site | str) -> str:
    """The id of a site of a model."""
    return f"{model_id}/{site}"


def add_site(session: Session, model_id: str, site: Site, width: int, ident: str | None = None) -> str:
    """Record a site of a model unless it is there; its id, `ident` where the catalogue gave it another one."""
    ident = ident or site_id(model_id, site)
    if session.get(schema.Site, ident) is None:
        session.add(
            schema.Site(
                site_id=ident,
                model_id=model_id,
                name=site.name,
                point=site.point,
                layer=site.layer,
                width=width,
            )
        )
    return ident


def is_finished(path: Path, run_id: str) -> bool:
    """Whether a run did all that it was asked. The catalogue at `path` must exist."""
    return run_id in finished(path, [run_id])


def finished(path: Path, run_ids: Sequence[str]) -> set[str]:
    """Those of some runs that did all that they were asked; none where there is no catalogue yet."""
    if not path.exists() or not run_ids:
        return set()
    with store.reading(path) as connection:
        rows = connection.execute(
            "SELECT run_id FROM run WHERE finished_at IS NOT NULL AND list_contains(?, run_id)",
            [list(run_ids)],
        ).fetchall()
    return {row[0] for row in rows}


def n_committed(path: Path, run_id: str) -> int:
    """How many units (or items) of a run are committed: where its next shard starts."""
    with store.reading(path) as connection:
        (done,) = connection.execute(
            "SELECT coalesce(max(start + n), 0)::BIGINT FROM shard WHERE run_id = ?", [run_id]
        ).fetchall()[0]
    return int(done)


def scratch(path: Path, run_id: str) -> Path:
    """The folder of what a run keeps beside the catalogue until it has ended."""
    return store.sidecar(path, f".scratch-{run_id}")


def clear(path: Path, run_id: str) -> None:
    """Delete the scratch files of a run that is done, or that has not begun."""
    remove_folder(scratch(path, run_id))


def clear_complete(path: Path, model_id: str) -> None:
    """Delete what is left of a model's runs that were killed between their last commit and the end."""
    with store.reading(path) as connection:
        rows = connection.execute(
            "SELECT run_id FROM run WHERE model_id = ? AND complete AND finished_at IS NOT NULL", [model_id]
        ).fetchall()
    for (run_id,) in rows:
        clear(path, run_id)


class Journal:
    """One run in the catalogue, for writing.

    Used as a context manager it runs the writing thread; leaving the block waits for the last shard. An error
    in the thread is raised by the next `submit`, or at the end of the block.
    """

    def __init__(self, path: Path, spec: RunSpec) -> None:
        self.path, self.spec = path, spec
        self._queue: queue.Queue[Shard | None] = queue.Queue(maxsize=1)
        self._error: BaseException | None = None
        self._late_s = 0.0
        self._thread = threading.Thread(target=self._work, name="shards", daemon=True)

    def begin(self, model: schema.Model, device: str, texts: Sequence[schema.TextFile] = ()) -> int:
        """Record the run if it is new, and reopen it if not; where its next shard starts."""
        spec = self.spec
        with store.writing(self.path) as session:
            if session.get(schema.Model, model.model_id) is None:
                session.add(model)
            for one in spec.sets:
                add_site(session, model.model_id, one.site, one.width, one.site_id)
            run = session.get(schema.Run, spec.run_id)
            if run is not None:
                run.failure = run.finished_at = None
                run.device, run.versions = device, versions()
                shards = session.query(schema.Shard).filter_by(run_id=spec.run_id).all()
                return max((one.start + one.n for one in shards), default=0)
            session.add(
                schema.Run(
                    run_id=spec.run_id,
                    job=spec.job,
                    model_id=model.model_id,
                    params=json.dumps(spec.params),
                    versions=versions(),
                    device=device,
                    complete=False,
                    started_at=now(),
                )
            )
            for one in spec.sets:
                session.add(
                    schema.CodeSet(
                        code_set_id=one.code_set_id,
                        run_id=spec.run_id,
                        site_id=one.site_id,
                        subject=one.subject,
                        centre=one.centre,
                        basis="standard",
                        width=one.width,
                    )
                )
            for text in texts:
                if session.get(schema.TextFile, text.text_id) is None:
                    session.add(text)
            bulk.insert(
                session,
                schema.run_text,
                {
                    "run_id": [spec.run_id] * len(spec.texts),
                    "place": list(range(len(spec.texts))),
                    "text_id": list(spec.texts),
                },
            )
        return 0

    def finish(self, complete: bool) -> None:
        """Record that the run did all that it was asked; `complete` if no part of its content is left."""
        with store.writing(self.path) as session:
            run = session.get_one(schema.Run, self.spec.run_id)
            run.finished_at, run.complete = now(), complete

    def fail(self, reason: str) -> None:
        """Record why the run stopped. The same command still resumes it."""
        with store.writing(self.path) as session:
            run = session.get(schema.Run, self.spec.run_id)
            if run is not None:
                run.failure = reason

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Around the work of the run: an error is recorded, and raised."""
        try:
            yield
        except Exception as error:
            # The error itself matters more than its record, for which a full disk may have no room.
            with suppress(Exception):
                self.fail(
                    error.what if isinstance(error, SignariumError) else f"{type(error).__name__}: {error}"
                )
            raise

    # ---- shards ----

    def submit(self, shard: Shard) -> None:
        """Hand a shard to the writing thread; waits while it is busy with another."""
        self._raise()
        self._queue.put(shard)

    def __enter__(self) -> Journal:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.put(None)
        self._thread.join()
        if error is None:
            self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (shard := self._queue.get()) is not None:
            if self._error is None:
                try:
                    self._commit(shard)
                except BaseException as error:
                    self._error = error

    def _commit(self, shard: Shard) -> None:
        started = time.perf_counter()
        with store.writing(self.path) as session:
            shard.write(session)
            inserted = time.perf_counter() - started
            session.add(
                schema.Shard(
                    run_id=self.spec.run_id,
                    start=shard.start,
                    n=shard.n,
                    tokens=shard.tokens,
                    forward_s=shard.forward_s,
                    pack_s=shard.pack_s,
                    # What the last commit and checkpoint took is known only now.
                    write_s=inserted + self._late_s,
                    wall_s=shard.wall_s,
                )
            )
        self._late_s = time.perf_counter() - started - inserted


Write = Callable[[Session], object]


@dataclass(frozen=True)
class Units:
    """A run of `n` units, each a shard of its own: `compute(i)` works unit i out and returns what inserts its rows.

    `sizes` is how many tokens (or codes) each unit stands for in the record. Progress counts them in `unit`; it counts
    units where there are no `sizes`, and, with `total`, what `compute` itself reports.
    """

    spec: RunSpec
    compute: Callable[[int], Write]
    n: int
    unit: str = "units"
    sizes: Sequence[int] | None = None
    total: int | None = None


def run_units(path: Path, model: schema.Model, device: str, units: Units, progress: Progress) -> None:
    """Compute and commit each unit of a run that is not committed yet, and record that the run is complete.

    `model` is the row of the model that the run belongs to, `device` what the record says it ran on.
    """
    journal, sizes, total = Journal(path, units.spec), units.sizes, units.total
    start = journal.begin(model, device)
    if total is not None:
        progress.started(units.spec.job, total, 0, units.unit)
    else:
        done = start if sizes is None else sum(sizes[:start])
        progress.started(units.spec.job, units.n if sizes is None else sum(sizes), done, units.unit)
    with journal.failing(), journal:
        for i in range(start, units.n):
            begun = time.perf_counter()
            write = units.compute(i)
            took = time.perf_counter() - begun
            size = 0 if sizes is None else sizes[i]
            journal.submit(Shard(i, 1, size, 0.0, took, took, write))
            if total is None:
                progress.computed(1 if sizes is None else size)
    journal.finish(True)
    progress.ended()
