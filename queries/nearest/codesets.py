"""Subjects that are code sets: rows of the table `code_row` under a name, each an item and its sign code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...catalog import index
from ...catalog.codes import Codes
from ...catalog.errors import InvalidInput, NotFound, SignariumError, option
from ...catalog.text import quoted_name
from ..usual import one_model
from .answers import Answer
from .search import search_codes
from .sql import rows_by_id, sql_text
from .subject import (
    Choice,
    Defaults,
    Place,
    PlaceKind,
    Search,
    Start,
    Target,
    check_stream,
    default_order,
    site_among,
)

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from .asked import Asked

WITH_ROWS = "cs.run_id IN (SELECT run_id FROM shard WHERE tokens > 0)"
"""A condition on code sets: from the tables, since the view `code_sets` counts every shard first."""
PLACE_COLUMNS = ("model", "site", "centre", "basis")


def code_of(connection: duckdb.DuckDBPyConnection, code_set_id: int, item: int) -> Codes | None:
    """The code of an item of a code set, uint8 (bytes,)."""
    if not 0 <= item < 1 << 63:
        return None
    # By rowid: with the condition on the item itself, DuckDB reads the column of codes from end to end.
    row = connection.execute(
        "SELECT code FROM code_row WHERE rowid IN (SELECT rowid FROM code_row WHERE code_set_id = ? AND item = ?)",
        [code_set_id, item],
    ).fetchone()
    return np.frombuffer(row[0], dtype=np.uint8) if row else None


def set_list(target: Target) -> str:
    """The code sets of a target for SQL's IN."""
    return ", ".join(str(info.code_set_id) for info in target.infos) or "NULL"


def place_columns(target: Target, names: tuple[str, ...] = PLACE_COLUMNS) -> str:
    """The columns that are the same for all rows of a target, for a SELECT."""
    return ", ".join(f"{sql_text(getattr(target, name))} AS {name}" for name in names)


def token_join(target: Target, token_id: str) -> str:
    """A join with the texts `t.token` of a model's vocabulary, by a column of their ids."""
    return (
        f" LEFT JOIN token_row t ON t.token_id = {token_id} AND t.tokenizer = "
        f"(SELECT tokenizer_sha256 FROM model WHERE name = {sql_text(target.model)})"
    )


class CodeSets(Defaults):
    """What all code sets share: the search by their indexes, and rows from the tables.

    Attributes:
        name: what `code_set.subject` says.
    """

    name: str
    item: str
    place: PlaceKind
    shown: tuple[str, ...] = ("norm",)
    same: ClassVar[tuple[str, ...]] = PLACE_COLUMNS
    """Columns of the view that are the same for all rows of a target."""

    def search(self, search: Search) -> Answer:
        return search_codes(search, self.rows)

    def find(
        self, connection: duckdb.DuckDBPyConnection, asked: Asked, value: str, place: Place | None
    ) -> Start:
        raise InvalidInput(f"no query names one of {self.view}")

    def holds(self, connection: duckdb.DuckDBPyConnection, model: str, site: str | None = None) -> bool:
        row = connection.execute(
            "SELECT 1 FROM code_set cs JOIN site s USING (site_id) JOIN model m USING (model_id) WHERE m.name = $model "
            f"AND ($site IS NULL OR s.name = $site) AND cs.subject = $subject AND {WITH_ROWS} LIMIT 1",
            {"model": model, "site": site, "subject": self.name},
        ).fetchone()
        return row is not None

    def rows(
        self,
        connection: duckdb.DuckDBPyConnection,
        target: Target,
        items: NDArray[np.int64],
        distances: NDArray[np.int32],
    ) -> pa.Table:
        """Rows in that order: rank, distance, a context if they have one, and the columns of the view."""
        import pyarrow as pa

        wanted = items.tolist()
        ids = f"SELECT rowid FROM code_row WHERE code_set_id IN ({set_list(target)}) AND item"
        stored = {
            row[0]: row
            for row in rows_by_id(
                connection,
                f"SELECT item, norm, code, code_set_id FROM code_row WHERE rowid IN ({ids}",
                wanted,
                ")",
            )
        }
        ranks = {"rank": pa.array(np.arange(1, len(wanted) + 1)), "distance": pa.array(distances)}
        try:
            special = self.special_columns(
                connection, target, items, {item: row[3] for item, row in stored.items()}
            )
            context = {"context": special.pop("context")} if "context" in special else {}
            same = {name: pa.array([getattr(target, name)] * len(wanted), pa.string()) for name in self.same}
            norms = pa.array([stored[item][1] for item in wanted], pa.float32())
            codes = pa.array([stored[item][2] for item in wanted], pa.binary())
        except KeyError as error:
            raise SignariumError(
                f"the catalogue has no row of {self.item} {error.args[0]}", "run `signarium db verify`"
            ) from error
        return pa.table({**ranks, **context, **same, **special, "norm": norms, "code": codes})

    def special_columns(
        self,
        connection: duckdb.DuckDBPyConnection,
        target: Target,
        items: NDArray[np.int64],
        sets: dict[int, int],
    ) -> dict[str, Any]:
        """The columns of the view between its place and its norm, for some items, and `context` if they have one.

        `sets` are their code sets. Raises KeyError with an item that is not there.
        """
        import pyarrow as pa

        return {self.item: pa.array(items, pa.int64())}

    def source(self, target: Target, names: frozenset[str]) -> tuple[str, str]:
        return (
            f"SELECT {place_columns(target, self.same)}, item AS {self.item}, norm, code FROM code_row "
            f"WHERE code_set_id IN ({set_list(target)})",
            self.item,
        )


class AtSites(CodeSets):
    """Code sets of which there is one at each site and centre, so that a query is looked up where it is searched.

    A method makes one with its names, and overrides `item_of` if a query names its items by more than their number.
    """

    place: PlaceKind = "site"
    fixed = False
    default = True
    numbered = True
    """Whether a query names an item by its number."""

    def __init__(self, view: str, name: str, item: str, prefix: str | None = None) -> None:
        self.view, self.name, self.item, self.prefix = view, name, item, prefix
        self.example = "ID"

    def advice(self, model: str, site: str) -> str:
        return f"ingest it with {option('sites', site)}"

    def item_of(self, connection: duckdb.DuckDBPyConnection, model: str, value: str) -> int:
        """The item that a query names.

        Raises:
            NotFound: if the model has none.
        """
        return int(value)

    def parse(self, value: str) -> str:
        value = value.strip()
        # Ids have 63 bits, and Python refuses to read very long numbers.
        if value and not (value.isascii() and value.isdecimal() and len(value.lstrip("0")) < 20):
            raise InvalidInput(f"{value[:40]!r} is not a {self.item}", f"take one from the view {self.view}")
        return value

    def find(
        self, connection: duckdb.DuckDBPyConnection, asked: Asked, value: str, place: Place | None
    ) -> Start:
        """Raises NotFound: if the catalogue has no such item at the place; names the places where there are some."""
        assert place is not None
        item = self.item_of(connection, place.model, value)
        sets = connection.execute(
            "SELECT cs.code_set_id FROM code_set cs JOIN site s USING (site_id) JOIN model m USING (model_id) "
            "WHERE m.name = ? AND s.name = ? AND cs.subject = ? AND cs.centre = ? AND cs.basis = ? ORDER BY ALL",
            [place.model, place.site, self.name, place.centre, place.basis],
        ).fetchall()
        for (code_set_id,) in sets:
            code = code_of(connection, code_set_id, item)
            if code is not None:
                return Start(place, code, f"{self.prefix} {quoted_name(value)}", item=item)
        if sets and self.numbered:
            raise NotFound(
                f"{self.name} of {place.model}",
                value,
                todo=f"take a {self.item} from the view {self.view} or its answers",
            )
        elsewhere = connection.execute(
            "SELECT DISTINCT site || ' ' || centre FROM code_sets WHERE model = ? AND subject = ? AND n > 0 ORDER BY ALL",
            [place.model, self.name],
        ).fetchall()
        raise NotFound(
            f"{self.name} at {place.site}, centre {place.centre}, of {place.model}",
            value,
            [row[0] for row in elsewhere],
            todo="" if elsewhere else f"no {self.view} of it were ingested",
        )

    def target(self, connection: duckdb.DuckDBPyConnection, choice: Choice) -> Target:
        """The codes of one place. What is not given: the only model; `usual_site` if it has such codes, else the middle
        one of the `resid_post` sites; the usual centre where there are codes with it."""
        model = one_model(connection, choice.model)
        rows = connection.execute(
            "SELECT s.point, s.layer, s.name, cs.subject, cs.centre, cs.basis, cs.width FROM code_set cs "
            f"JOIN site s USING (site_id) JOIN model m USING (model_id) WHERE m.name = ? AND {WITH_ROWS} ORDER BY ALL",
            [model],
        ).fetchall()
        held = {row[3] for row in rows}
        rows = [row for row in rows if row[3] == self.name and row[5] == choice.basis]
        if not rows:
            # Nobody is sent to a view that has nothing either.
            order = default_order(choice.prefer)
            there = [one.view for one in order if getattr(one, "name", None) in held]
            if not there:
                raise InvalidInput(
                    f"the catalogue has no types or states of {model} yet", "run `signarium ingest`"
                )
            raise InvalidInput(
                f"the catalogue has no {self.view} of {model}",
                f"{self.ingested_with()}, or search {option('within', ', '.join(there))}",
            )
        by_place = sorted(rows, key=lambda row: (row[0] != "resid_post", row[0], row[1] or 0))
        sites = list(dict.fromkeys(row[2] for row in by_place))
        if choice.site is not None and choice.site not in sites:
            raise NotFound(f"site with {self.view} of {model}", choice.site, sites)
        site = site_among(choice, sites)
        centres = sorted({row[4] for row in rows if row[2] == site})
        centre = choice.centre
        if centre is not None and centre not in centres:
            raise NotFound(f"centre for {self.view} of {model} at {site}", centre, centres)
        if centre is None:
            centre = self.usual_centre if self.usual_centre in centres else centres[-1]
        infos = index.describe(
            connection,
            "v.model = ? AND v.site = ? AND v.subject = ? AND v.centre = ? AND v.basis = ? AND v.n > 0",
            [model, site, self.name, centre, choice.basis],
        )
        width = next(row[6] for row in rows if row[2] == site)
        return Target(self.view, model, site, centre, choice.basis, width, tuple(infos))

    def ingested_with(self) -> str:
        """What makes such codes."""
        return "ingest it with their stage"


@dataclass(frozen=True)
class OfStream(CodeSets):
    """A code set of which a model has one: directions of the residual stream, at no site in particular."""

    view: str
    name: str
    item: str
    place: PlaceKind = "stream"
    same: ClassVar[tuple[str, ...]] = ("model",)
    made_with: str = "neurons"
    """The stage of `ingest` that makes it."""
    such: str = "neurons are"
    """How a sentence about it begins."""

    def advice(self, model: str, site: str) -> str:
        return f"run `signarium ingest MODEL --name {model} --stages {self.made_with}`"

    def target(self, connection: duckdb.DuckDBPyConnection, choice: Choice) -> Target:
        """The one code set of the model; the latest of several."""
        if choice.exact:
            given = [name for name in ("site", "centre") if getattr(choice, name) is not None]
            if given:
                raise InvalidInput(
                    f"{self.such} at no site of choice", f"leave out {' and '.join(map(option, given))}"
                )
        model = one_model(connection, choice.model)
        row = connection.execute(
            "SELECT s.name, cs.centre, cs.width, cs.code_set_id FROM code_set cs JOIN site s USING (site_id) "
            "JOIN model m USING (model_id) JOIN run r USING (run_id) WHERE m.name = ? AND cs.subject = ? "
            f"AND cs.basis = 'standard' AND {WITH_ROWS} ORDER BY r.started_at DESC, r.run_id LIMIT 1",
            [model, self.name],
        ).fetchone()
        if row is None:
            raise InvalidInput(f"the catalogue has no {self.view} of {model} yet", self.advice(model, ""))
        site, centre, width, ident = row
        infos = index.describe(connection, "v.code_set_id = ?", [ident])
        return Target(self.view, model, site, centre, "standard", width, tuple(infos))


def check_same_stream(start: Start, target: Target) -> None:
    """Raises InvalidInput if a query and what is searched with it are not directions of one residual stream."""
    if start.carries == "direction":
        check_stream(target.place, start.words, start.place.width, f"one of {target.view}")
    elif target.subject.place == "stream":
        check_stream(start.place, target.view, target.width, start.name)
