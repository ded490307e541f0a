"""signarium: a catalogue of what the signs of a transformer's hidden states encode.

>>> import signarium
>>> signarium.ingest("catalogue.duckdb", "HuggingFaceTB/SmolLM2-135M")
>>> c = signarium.open("catalogue.duckdb")
>>> c.sql("SELECT name, width FROM models").to_pandas()
>>> c.nearest('type:" king"', k=5).table

Every command of the command line is a function or a method here, with the same names and options. They return
Arrow tables or small dataclasses and print nothing. Importing this does not import torch, nor DuckDB.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from .catalog.verify import Finding
    from .queries.nearest import Answer

from . import ingest

__all__ = ["Catalogue", "ingest", "open"]
__version__ = "0.1.0"


def open(path: str | Path | None = None) -> Catalogue:
    """The catalogue at `path`, else at `$SIGNARIUM_DB`, else at `./catalogue.duckdb`.

    Raises:
        CatalogueMissing, NotACatalogue, CatalogueTooOld, CatalogueTooNew: if it cannot be read.
    """
    from .catalog import store

    found = Path(path) if path is not None else store.default_path()
    with store.reading(found):
        return Catalogue(found)


class Catalogue:
    """A catalogue to read. Holds no file open between two calls, so that an ingest can go on beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"signarium.open({str(self.path)!r})"

    def sql(self, query: str, **options: Any) -> pa.Table:
        """The result of one SELECT or EXPLAIN; see `signarium.queries.sql.sql`."""
        from .queries.sql import sql

        return sql(self.path, query, **options)

    def nearest(
        self,
        query: str,
        *,
        within: str | None = None,
        model: str | None = None,
        site: str | None = None,
        centre: str | None = None,
        k: int = 10,
        where: str | None = None,
        position: int | None = None,
        approximate: bool = False,
        device: str = "auto",
    ) -> Answer:
        """The codes nearest to a free text's token or to a stored item (`type:`, `state:`, `code:`).

        `within` is the command line's `--in`. Only free text loads the model, and torch with it.

        Raises:
            SignariumError: one of its subclasses, for anything that the caller can mend.
        """
        from .queries import nearest

        stored = nearest.parse_query(query)
        if stored is not None and position is not None:
            from .catalog.errors import InvalidInput

            raise InvalidInput("--position belongs to free text", "leave it out for a stored item")
        target = nearest.resolve(
            self.path,
            within=within,
            model=model,
            site=site,
            centre=centre,
            prefer="types" if stored is not None and stored.kind == "type" else "states",
        )
        if stored is not None:
            code = nearest.stored_code(self.path, target, stored)
        else:
            from .ingest.encode import encode_text

            code = encode_text(
                self.path, target.model, target.site, target.centre, query, position, device
            ).code
        return nearest.search(self.path, target, code, k=k, where=where, approximate=approximate)

    def models(self) -> pa.Table:
        """The view `models`, by name."""
        return self._rows("models")

    def runs(self, model: str | None = None) -> pa.Table:
        """The view `runs`, oldest first."""
        return self._rows("runs", model)

    def sites(self, model: str | None = None) -> pa.Table:
        """The view `sites`, by model, point and layer."""
        return self._rows("sites", model)

    def info(self) -> pa.Table:
        """Sizes and counts."""
        from .queries.models import info

        return info(self.path)

    def verify(self) -> list[Finding]:
        """Integrity checks; see `signarium.catalog.verify`."""
        from .catalog.verify import verify

        return verify(self.path)

    def index(self) -> list[str]:
        """Build the indexes that are missing or stale; what could not be done, in words."""
        from .catalog import store
        from .catalog.index import build_all

        with store.reading(self.path):
            pass
        with store.job_lock(self.path):
            return build_all(self.path)

    def upgrade(self) -> Path | None:
        """Bring an older catalogue to this schema; the copy that was kept, or None if nothing was to do."""
        from .migrations.manage import upgrade

        return upgrade(self.path)

    def _rows(self, view: str, model: str | None = None) -> pa.Table:
        from .queries.models import rows

        return rows(self.path, view, model)
