"""A stage that lives outside the package: the share of positive signs of all types, at each site."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sqlalchemy.orm import Session

from signarium.catalog import bulk, store
from signarium.catalog.ids import short_id
from signarium.ingest.job import Context, Done, Watch
from signarium.ingest.journal import RunSpec, Units, Write, is_finished, n_committed, site_id
from signarium.ingest.size import Size, Step

if TYPE_CHECKING:
    from signarium.ingest.progress import Progress
    from signarium.ingest.stats.moments import Moments

ROW_BYTES = 500


class ToyStage:
    """One run, a shard a site; it watches the passes of the types, too."""

    name: ClassVar[str] = "toy"
    needs: ClassVar[tuple[str, ...]] = ("types",)
    fails_at: ClassVar[int | None] = None
    """The site at which it stops, as if the process were killed."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.sites = [one.name for one in context.sites]
        params = {"sites": self.sites}
        self.spec = RunSpec(short_id("run", context.known.model_id, "toy", params), "toy", params, ())
        self.seen: dict[str, int] = {}
        self.watch = Watch("types", self.see)
        there = context.path.exists()
        self.finished = there and is_finished(context.path, self.spec.run_id)
        done = n_committed(context.path, self.spec.run_id) if there else 0
        left = 0 if self.finished else len(self.sites) - done
        self.size = Size(catalogue_bytes=left * ROW_BYTES, steps=(Step("toy", left * 0.01),) * (left > 0))

    def see(self, site: str, start: int, states: object, moments: Moments) -> None:
        """Count the types that went through the model on the way."""
        self.seen[site] = self.seen.get(site, 0) + len(states)  # type: ignore[arg-type]

    def run(self, progress: Progress) -> Done:
        """Do all that is missing."""
        done = Done([self.spec.run_id], notes=[f"{site}: {n} types seen" for site, n in self.seen.items()])
        if not self.finished:
            self.context.run_units(Units(self.spec, self._share, len(self.sites), "sites"), progress)
            done.changed = True
        return done

    def _share(self, i: int) -> Write:
        if i == self.fails_at:
            raise KeyboardInterrupt
        site = self.sites[i]
        with store.reading(self.context.path) as connection:
            (share, n) = connection.execute(
                "SELECT avg(p_positive), count(*) FROM dimensions WHERE model = ? AND site = ?",
                [self.context.known.name, site],
            ).fetchall()[0]
        ident = site_id(self.context.known.model_id, site)
        figure = bulk.Figure(ident, "toy", "", "toy_share", "none", "in_sample", float(share), int(n))

        def write(session: Session) -> None:
            bulk.insert_figures(session, self.spec.run_id, [figure])

        return write
