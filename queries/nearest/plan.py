"""What a `nearest` will do: where its query is looked up, and what is searched with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ...catalog import codes
from ...catalog.text import quoted_name
from .. import subjects
from .answers import Carried
from .asked import CODE, Asked
from .codesets import check_same_stream
from .masked import Pattern
from .subject import Choice, Place, Subject, Target, check_stream, default_subject

if TYPE_CHECKING:
    import duckdb


class Encoder(Protocol):
    """Runs a model over the free text that was asked for."""

    @property
    def token(self) -> str:
        """The token that was searched, and its place in the text, in words."""

    def code(self, place: Place) -> codes.Codes:
        """Its code at a place, uint8 (bytes,)."""

    def floats(self, place: Place) -> NDArray[np.float64]:
        """Its state at a place, (width,), which is what is carried to another model."""


@dataclass(frozen=True)
class Plan:
    """A search to be done.

    `code` is None for a free text, which `encode` gives the code of. With `both`, either polarity counts. `words` and `said`
    are what the answer should say of the query: what it is, and where it was looked up; `carried` how it came from another
    model.
    """

    target: Target
    code: codes.Codes | Pattern | None
    both: bool
    words: str | None = None
    said: Place | None = None
    encode: Callable[[Encoder], codes.Codes] | None = None
    carried: Carried | None = None


def plan(connection: duckdb.DuckDBPyConnection, asked: Asked) -> Plan:
    """How to search within one model.

    Raises:
        InvalidInput, NotFound: naming what there is.
    """
    if asked.subject is None or not asked.subject.fixed:
        return _plan_at_site(connection, asked, asked.subject)
    start = asked.subject.find(connection, asked, asked.value, None)
    assert start.choice is not None
    searched = asked.searched
    if searched is None:
        within = start.within
        searched = subjects.get(within) if within else default_subject(connection, start.choice)
    target = searched.target(connection, start.choice)
    check_same_stream(start, target)
    # What is of no site was looked up at none.
    apart = searched.place != "site" and asked.subject.place != "stream"
    both = searched.both_polarities or asked.subject.both_polarities
    return Plan(target, start.code, both, start.words, start.place if apart else None)


def _plan_at_site(connection: duckdb.DuckDBPyConnection, asked: Asked, held: Subject | None) -> Plan:
    """A free text, a spelled code, or an item that lies at every site (`held`): looked up where it is searched, or, if that is
    no site that it can be looked up at, in a place of its own."""
    choice = Choice(asked.model, asked.site, asked.centre, prefer=prefer_of(held))
    searched = asked.searched or default_subject(connection, choice)
    spelled = not asked.is_text and held is None
    words = words_of(asked)
    if searched.place == "site":
        target = searched.target(connection, choice)
        place, words, said = target.place, None, None
    elif searched.place == "stream":
        target = searched.target(connection, replace(choice, exact=spelled))
        if spelled:
            place, words = target.place, None
        else:
            choice = replace(choice, model=target.model)
            place = (held or default_subject(connection, choice)).target(connection, choice).place
        check_stream(place, target.view, target.width, "a code")
        said = None if spelled else place
    else:
        target = searched.target(connection, replace(choice, centre=None))
        if held is not None:
            choice = replace(choice, model=target.model, site=target.site)
            place = held.target(connection, choice).place
        else:
            # No code is read there, so none need be stored.
            place = replace(target.place, centre=asked.centre or target.centre)
        said = None if spelled else place
    code = None
    if held is not None:
        code = held.find(connection, asked, asked.value, place).code
    elif spelled:
        code = codes.from_hex(asked.value, place.width)
    both = searched.both_polarities
    return Plan(target, code, both, words, said, lambda encoder: encoder.code(place))


def prefer_of(held: Subject | None) -> str:
    """The view that is searched with an item if none was named."""
    return "states" if held is None else held.view


def words_of(asked: Asked) -> str | None:
    """A query that lies at a site as an answer names it; None for a free text, whose token is named."""
    if asked.is_text:
        return None
    prefix = CODE if asked.subject is None else asked.subject.prefix
    return f"{prefix} {quoted_name(asked.value)}"
