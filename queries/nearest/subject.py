"""The socket of the search: a `Subject` is what can be searched, or named in a query; `queries/subjects.py` lists them.

A method writes one class in its own room. Most are code sets and inherit from `codesets.CodeSets`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from ...catalog import engines
from ...catalog.codes import Codes
from ...catalog.errors import InvalidInput
from ...catalog.index import CodeSetInfo
from .. import subjects
from ..usual import middle, one_model
from .masked import Pattern

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from .answers import Answer
    from .asked import Asked
    from .where import Condition

PlaceKind: TypeAlias = Literal["site", "stream", "own"]


@dataclass(frozen=True)
class Place:
    """Where a code lies: its bits mean the same as those of every other code there."""

    model: str
    site: str
    centre: str
    basis: str
    width: int


@dataclass(frozen=True)
class Target:
    """What a search goes through: the rows of one view at one model, site, centre and basis."""

    view: str
    model: str
    site: str
    centre: str
    basis: str
    width: int
    infos: tuple[CodeSetInfo, ...]

    @property
    def n(self) -> int:
        """Codes searched, before any filter."""
        return sum(info.n for info in self.infos)

    @property
    def place(self) -> Place:
        """Where they lie."""
        return Place(self.model, self.site, self.centre, self.basis, self.width)

    @property
    def subject(self) -> Subject:
        """What they are."""
        return subjects.get(self.view)


@dataclass(frozen=True)
class Choice:
    """What a search was told about its target; None leaves the choice to the subject.

    `prefer` is the view that the query is like: it is searched where no other was named, and its usual centre is taken.
    `usual_site` goes before the middle site. With `exact`, site and centre were given for this target and nothing else, so
    that a subject that has no such choice must refuse them.
    """

    model: str | None
    site: str | None = None
    centre: str | None = None
    basis: str = "standard"
    prefer: str = "states"
    usual_site: str | None = None
    exact: bool = False


@dataclass(frozen=True)
class Start:
    """What a query names, looked up: its code, uint8 (bytes,), or pattern, and where it lies.

    `words` is what the answer calls it, `name` what an error does. `carries` says what goes through a rotation to another
    model: a state's code, a feature's pattern, or the direction that a code stands for. `choice` says what is searched with
    an item that lies in a place of its own, and `within` which view if none was asked for. `block` is that of a neuron:
    what it writes is met behind it.
    """

    place: Place
    code: Codes | Pattern
    words: str
    name: str = "a code"
    carries: Literal["code", "pattern", "direction"] = "code"
    choice: Choice | None = None
    within: str | None = None
    block: int | None = None
    item: int | None = None


@dataclass(frozen=True)
class Search:
    """One search in a catalogue that is open: the `k` rows of `target` nearest to `code` for which `where` holds.

    With `both` the nearer of a code and its opposite counts.
    """

    path: Path
    connection: duckdb.DuckDBPyConnection
    target: Target
    code: Codes | Pattern
    k: int
    where: Condition | None = None
    approximate: bool = False
    both: bool = False
    engine: str = engines.AUTO


class Subject(Protocol):
    """What can be searched, and, with a `prefix`, named in a query.

    Attributes:
        view: the view that its rows are in, which `within` names.
        item: the column that names a row, with others where one does not (of neurons, `layer`).
        prefix: what stands before the colon of a query, as `neuron` in `neuron:12/305`; None if no query names one.
        example: what stands behind the colon, as messages show it.
        place: `site`, where the rows of a site and centre are searched with what lies there too; `stream`, where a model has
            one set of directions of the residual stream; `own`, where the rows lie at sites of their own choice and about no
            centre.
        fixed: whether a query finds its item in one place only, and not at each site.
        both_polarities: whether the opposite of a row counts as the row.
        indexed: whether its rows are codes in index files, which can be searched approximately and in batches.
        default: whether it is searched where no view was named and the preferred one has no rows.
        usual_centre: the centre about which its bits say most.
        first_position: whether its items stand at a first position, which no rotation is fitted on.
        shown: the columns that a terminal shows behind rank and distance.
    """

    @property
    def view(self) -> str: ...
    @property
    def item(self) -> str: ...
    @property
    def prefix(self) -> str | None: ...
    @property
    def example(self) -> str: ...
    @property
    def place(self) -> PlaceKind: ...
    @property
    def fixed(self) -> bool: ...
    @property
    def both_polarities(self) -> bool: ...
    @property
    def indexed(self) -> bool: ...
    @property
    def default(self) -> bool: ...
    @property
    def usual_centre(self) -> str: ...
    @property
    def first_position(self) -> bool: ...
    @property
    def shown(self) -> tuple[str, ...]: ...

    def parse(self, value: str) -> str:
        """What stands behind the prefix of a query, cleaned; raises InvalidInput if it cannot be right."""

    def find(
        self, connection: duckdb.DuckDBPyConnection, asked: Asked, value: str, place: Place | None
    ) -> Start:
        """The item that `value` names; at `place`, unless the subject is `fixed`."""

    def target(self, connection: duckdb.DuckDBPyConnection, choice: Choice) -> Target:
        """What is searched: raises InvalidInput or NotFound, naming what there is or how it is made."""

    def holds(self, connection: duckdb.DuckDBPyConnection, model: str, site: str | None = None) -> bool:
        """Whether there are any rows of a model, at one of its sites if given."""

    def advice(self, model: str, site: str) -> str:
        """What makes rows of it there."""

    def search(self, search: Search) -> Answer:
        """The nearest rows, by (distance, item): rank, distance, and the columns of the view."""

    def columns(self) -> tuple[str, ...]:
        """Columns that a filter may name."""

    def source(self, target: Target, names: frozenset[str]) -> tuple[str, str]:
        """A query for the rows of a target with those columns, of which only `names` count, and the item in it in SQL."""

    def raises(
        self, connection: duckdb.DuckDBPyConnection, target: Target, table: pa.Table, polarities: Any
    ) -> tuple[str, ...]:
        """What the first rows of an answer raise in their polarity, in words."""

    def carried(
        self, connection: duckdb.DuckDBPyConnection, start: Start, rotation_id: int
    ) -> Codes | Pattern | None:
        """What was stored when a rotation carried an item to the other model; None to carry it now."""


class Defaults:
    """What most subjects answer."""

    view: str
    prefix: str | None = None
    example: str = ""
    fixed: bool = True
    both_polarities: bool = False
    indexed: bool = True
    default: bool = False
    usual_centre: str = "mean"
    first_position: bool = False

    def parse(self, value: str) -> str:
        return value.strip()

    def columns(self) -> tuple[str, ...]:
        from ...catalog import parts

        return tuple(parts.view(self.view).columns)

    def raises(self, *_: Any) -> tuple[str, ...]:
        return ()

    def carried(self, connection: Any, start: Any, rotation_id: int) -> Codes | Pattern | None:
        return None


_OTHER_STREAMS = ("k", "v", "ffn")
"""Points that are as wide as the residual stream in some models, and yet are not of it."""


def check_stream(place: Place, direction: str, width: int, what: str) -> None:
    """Raises InvalidInput if `what`, at a place, cannot be compared with a direction of the residual stream of `width`."""
    other = place.site.partition(".")[0] in _OTHER_STREAMS
    if other or place.width != width:
        raise InvalidInput(
            f"{what} at {place.site} has {place.width:,} dimensions{' of its own' if other else ''}, "
            f"and {direction} has {width:,} of the residual stream",
            "take one at a resid_post site",
        )


def default_subject(connection: duckdb.DuckDBPyConnection, choice: Choice) -> Subject:
    """What is searched where no view was named: the preferred one, or the first of the default ones with rows.

    Raises:
        InvalidInput: if the model has none.
    """
    model = one_model(connection, choice.model)
    for subject in default_order(choice.prefer):
        if subject.holds(connection, model):
            return subject
    raise InvalidInput(f"the catalogue has no types or states of {model} yet", "run `signarium ingest`")


def default_order(prefer: str) -> Iterator[Subject]:
    """`prefer`, then the default subjects."""
    yield subjects.get(prefer)
    yield from (subject for subject in subjects.every() if subject.default and subject.view != prefer)


def site_among(choice: Choice, sites: Sequence[str]) -> str:
    """The site that was chosen, else the usual one if it is among `sites`, else the middle one of them."""
    if choice.site is not None:
        return choice.site
    return choice.usual_site if choice.usual_site in sites and choice.usual_site else middle(sites)
