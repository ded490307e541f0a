"""signarium: a catalogue of what the signs of a transformer's hidden states encode.

>>> import signarium
>>> signarium.ingest("catalogue.duckdb", "HuggingFaceTB/SmolLM2-135M")
>>> c = signarium.open("catalogue.duckdb")
>>> c.sql("SELECT name, width FROM models").to_pylist()
>>> c.nearest('type:" king"', k=5).table

Every command of the command line is a function or a method here, with the same names and options (`--in` is
`within`). They return Arrow tables or small dataclasses and print nothing. Importing this does not import torch, nor DuckDB.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

    from .catalog.codes import Codes
    from .catalog.verify import Finding
    from .queries.nearest import Answer, Target

from . import ingest

__all__ = ["Catalogue", "__version__", "ingest", "open"]
__version__ = "0.1.0"

_MOST_FLIPPED = 0.05


def open(path: str | Path | None = None) -> Catalogue:
    """The catalogue at `path`, else at `$SIGNARIUM_DB`, else at `./catalogue.duckdb`.

    One of an older schema cannot be read; `signarium.Catalogue(path).upgrade()` brings it up.

    Raises:
        CatalogueMissing, NotACatalogue, CatalogueTooOld, CatalogueTooNew: if it cannot be read.
    """
    from .catalog import store

    found = Path(path) if path is not None else store.default_path()
    with store.reading(found):
        # A notebook may change its folder between two calls.
        return Catalogue(found.absolute())


class Catalogue:
    """A catalogue to read. Holds no file open between two calls, so that an ingest can go on beside it.

    Every method may raise one of the subclasses of `signarium.catalog.errors.SignariumError`, whose text is
    one line that says what is wrong and what to do.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"signarium.open({str(self.path)!r})"

    def sql(
        self, query: str, *, allow_files: bool = False, timeout: float = 60.0, memory: int | str = "2GB"
    ) -> pa.Table:
        """The result of one SELECT or EXPLAIN over the views, run in a process of its own, read-only.

        `timeout` is in seconds, `memory` in bytes or text such as "512MB"; `allow_files` lets the query read
        other files. The result may have up to 1 GB.

        Raises:
            QueryRefused, QueryFailed, QueryLimit: if the query is no SELECT, is wrong, or takes too much.
        """
        from .queries.sql import sql

        return sql(self.path, query, allow_files=allow_files, timeout=timeout, memory=memory, check=True)

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
        """The `k` codes nearest to a free text's token or to a stored item (`type:`, `state:`, `code:`).

        `within` is the command line's `--in`: states, types or types_bos. What is not given is chosen: the
        only model, states if there are any (types for a `type:`), the middle one of its resid_post sites, the
        centre mean for types and zero for states; `.target` of the answer says what it was. `where` is a
        condition over the columns of the view searched. `position` counts from 0, negative from the end of a free text, whose
        last token it is otherwise. Only free text loads the model, and torch with it.

        Returns:
            `.table` has rank, distance (in bits), a state's context, and the columns of the view searched, in
            order of (distance, item).

        Raises:
            InvalidInput, NotFound: for what cannot be searched, naming what there is.
        """
        from .queries import nearest

        if position is not None and nearest.parse_query(query) is not None:
            from .catalog.errors import InvalidInput

            raise InvalidInput("--position belongs to free text", "leave it out for a stored item")

        searched: list[str] = []

        def encode(target: Target) -> Codes:
            from .ingest.encode import encode_text

            found = encode_text(self.path, target.model, target.site, target.centre, query, position, device)
            searched.append(f"{found.token!r}, token {found.position} of {found.n_tokens}")
            return found.code

        answer = nearest.nearest(
            self.path,
            query,
            within=within,
            model=model,
            site=site,
            centre=centre,
            k=k,
            where=where,
            approximate=approximate,
            encode=encode,
        )
        return replace(answer, query=searched[0]) if searched else answer

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

    def verify(self, model: str | None = None) -> list[Finding]:
        """Integrity checks; see `signarium.catalog.verify`. With `model`, a sample of its codes is recomputed.

        A recomputed site counts as wrong when more than 5% of its bits differ: batches of another shape flip
        a few in a thousand, other weights about half.

        Raises:
            NotFound, ModelError: if there is no such model, or it is not at hand.
        """
        from .catalog.verify import Finding, verify

        if model is not None:
            from .catalog import store
            from .queries.models import one_model

            with store.reading(self.path) as connection:
                one_model(connection, model)
        findings = verify(self.path)
        if model is not None:
            from .ingest.encode import recheck_types

            for one in recheck_types(self.path, model):
                share = one.flipped / max(1, one.bits)
                what = f"types recomputed at {one.site} ({share:.2%} of the bits differ)"
                findings.append(Finding(what, one.codes, one.codes if share > _MOST_FLIPPED else 0))
        return findings

    def index(self) -> list[str]:
        """Build the indexes that are missing, stale or damaged; what could not be done, in words."""
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
