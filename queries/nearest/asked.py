"""What a search was asked for: its options as one object, checked once, and its query taken apart."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ...catalog import engines
from ...catalog.errors import InvalidInput, option
from .. import subjects
from .subject import Subject

CODE = "code"
"""The prefix of a query that spells a code."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a search goes through, and how; None leaves the choice to the subject.

    Attributes:
        within: the view, one of `subjects.names()`.
        model, site, centre: where its rows lie, or where the query is looked up.
        k: rows of the answer, at most.
        where: a condition over the columns of the view.
        engine: one of `catalog.engines.ENGINES`, which give the same answer.

    Raises:
        InvalidInput: if `within` names no view that can be searched, or `k` is not positive.
    """

    within: str | None = None
    model: str | None = None
    site: str | None = None
    centre: str | None = None
    k: int = 10
    where: str | None = None
    engine: str = engines.AUTO

    def __post_init__(self) -> None:
        if self.within is not None:
            subjects.get(self.within)
        if self.k < 1:
            raise InvalidInput(f"{option('k', self.k)} is not positive")

    @property
    def searched(self) -> Subject | None:
        """The subject that `within` names."""
        return None if self.within is None else subjects.get(self.within)


@dataclass(frozen=True, kw_only=True)
class Asked(Options):
    """The options of `nearest`.

    Attributes:
        query: a free text, or what `query_of` takes apart.
        across: another model, to whose codes the query is carried.
        position: which token of a free text is searched, negative from its end; None for the last.
        approximate: whether a part of the codes is searched, chosen by an IVF index.
        device: where the model runs over a free text.

    Raises:
        InvalidInput: also if the query is written wrong, or options do not go together.
    """

    query: str
    across: str | None = None
    position: int | None = None
    approximate: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.position is not None and not self.is_text:
            raise InvalidInput(f"{option('position')} belongs to free text", "leave it out for a stored item")
        if self.approximate:
            self._check_approximate()

    def _check_approximate(self) -> None:
        without = f"leave out {option('approximate')}"
        if self.engine != engines.AUTO:
            raise InvalidInput(
                f"{option('approximate')} has an index of its own", f"{without} or {option('engine')}"
            )
        for subject in filter(None, (self.searched, self.subject)):
            if subject.both_polarities:
                raise InvalidInput(
                    f"approximate search knows one polarity, and {subject.view} have two",
                    f"{without}: exact search is fast",
                )
            if not subject.indexed:
                raise InvalidInput(f"{subject.view} have no approximate search", without)
        if self.where is not None:
            raise InvalidInput(
                f"{option('approximate')} cannot be filtered", f"{without} or {option('where')}"
            )

    @cached_property
    def stored(self) -> Query | None:
        """The query taken apart; None for a free text."""
        return query_of(self.query)

    @property
    def is_text(self) -> bool:
        """Whether the query is a free text, over which the model runs."""
        return self.stored is None

    @property
    def subject(self) -> Subject | None:
        """What the query names an item of; None for a free text and a spelled code."""
        return None if self.stored is None else subjects.with_prefix(self.stored.prefix)

    @property
    def value(self) -> str:
        """What stands behind the prefix."""
        return "" if self.stored is None else self.stored.value


@dataclass(frozen=True)
class Query:
    """A query that names an item of a subject, or spells a code: `type:" king"`, `neuron:12/305`, `code:HEX`."""

    prefix: str
    value: str


def query_of(text: str) -> Query | None:
    """What `type:" king"`, `state:123`, `feature:17`, `neuron:12/305`, `direction:17` or `code:HEX` names; None for free
    text.

    Raises:
        InvalidInput: if the part behind the colon cannot be right.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput("the query is no valid Unicode text", "write it as UTF-8") from None
    if not text.strip():
        raise InvalidInput("the query is empty", f"give a text, or {prefixes()}")
    prefix, colon, value = text.partition(":")
    subject = subjects.with_prefix(prefix)
    if not colon or (subject is None and prefix != CODE):
        return None
    value = value.strip() if subject is None else subject.parse(value)
    if not value:
        example = "HEX" if subject is None else subject.example
        raise InvalidInput(f"{text!r} names nothing", f"write {prefix}:{example}")
    return Query(prefix, value)


def prefixes() -> str:
    """The stored items that a query may name, as messages list them."""
    named = [f"{subject.prefix}:{subject.example}" for subject in subjects.every() if subject.prefix]
    return f"{', '.join(named)} or {CODE}:HEX"
