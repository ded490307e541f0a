"""Where a query that is carried to another model starts: its place in A, and the rotation that it goes through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...catalog import codes
from ...catalog.errors import InvalidInput, NotFound, SignariumError
from ..features.resolve import find_one, quoted_name
from ..models import one_model
from ..rotations.stored import Found, at_site, some_between
from .masked import Pattern
from .plan import check_stream, difference_words, direction_words, feature_words
from .start import (
    StoredQuery,
    dictionary_direction,
    direction_code,
    neuron_code,
    parse_neuron,
    stored_code_in,
)
from .target import AT_SITES, OF_WEIGHTS, SUBJECTS, Place, middle, resolve_in, resolve_weights, usual_centre

if TYPE_CHECKING:
    import duckdb

_HELD = {"type": "types", "state": "states"}
"""The view that a stored query is a row of."""


@dataclass(frozen=True)
class Asked:
    """The options of `nearest`."""

    within: str | None
    across: str
    site: str | None
    centre: str | None


@dataclass(frozen=True)
class Start:
    """A query of A, looked up: the rotation that it goes through, and where it lies.

    `code` is a state's, `pattern` a feature's, `direction` a direction's; none of a free text. `carried` is the feature
    of B that `align` made of it, if it did.
    """

    found: Found
    place: Place
    words: str | None
    prefer: str
    centre: str | None
    code: codes.Codes | None = None
    pattern: Pattern | None = None
    direction: codes.Codes | None = None
    both: bool = False
    carried: Pattern | None = None


def start_in(
    connection: duckdb.DuckDBPyConnection, query: StoredQuery | None, model: str | None, asked: Asked
) -> Start:
    if query is not None and query.kind == "feature":
        return _feature(connection, query, model, asked)
    if query is not None and query.kind == "direction":
        return _direction(connection, query, model, asked)
    if query is not None and query.kind == "neuron":
        return _neuron(connection, query, model, asked)
    return _item(connection, query, model, asked)


def _rotations(connection: duckdb.DuckDBPyConnection, model: str, across: str) -> list[Found]:
    known = [row[0] for row in connection.execute("SELECT name FROM model ORDER BY name").fetchall()]
    if across not in known:
        raise NotFound("model", across, known)
    if across == model:
        raise InvalidInput(f"--across {across} is the model itself", "name another one, or leave it out")
    return some_between(connection, model, across)


def _item(
    connection: duckdb.DuckDBPyConnection, query: StoredQuery | None, model: str | None, asked: Asked
) -> Start:
    """A text, a state, a type or a code: something at one site of A, chosen among those with a rotation."""
    kind = query.kind if query is not None else "text"
    model = one_model(connection, model)
    there = _rotations(connection, model, asked.across)
    held, prefer = _HELD.get(kind), "types" if kind == "type" else "states"
    usual = asked.site or _usual(connection, there, held, prefer, asked.within)
    found = at_site(there, usual)
    words = f"{kind} {quoted_name(query.value)}" if query is not None else None
    if held is None:
        # What is there of A does not matter: nothing is looked up.
        place = Place(model, found.site_a, asked.centre or usual_centre(prefer), "standard", found.width)
    else:
        if not has(connection, model, found.site_a, held):
            raise InvalidInput(
                f"no {held} of {model} were ingested at {found.site_a}, where the rotation to {found.model_b} starts",
                f"ingest it with --sites {found.site_a}{' --text PATH' if held == 'states' else ''}",
            )
        at = (model, found.site_a, asked.centre, "standard", prefer)
        place = resolve_in(connection, held, *at).place
    code = None if query is None else stored_code_in(connection, place, query)
    return Start(found, place, words, prefer, asked.centre, code)


def _usual(
    connection: duckdb.DuckDBPyConnection,
    there: Sequence[Found],
    held: str | None,
    prefer: str,
    within: str | None,
) -> str:
    """The site where A alone would be searched, if the rotation there leads to codes of B; else the middle one of those
    whose does."""

    def leads(one: Found) -> bool:
        if held is not None and not has(connection, one.model_a, one.site_a, held):
            return False
        if within in OF_WEIGHTS:
            return True
        views = (within,) if within is not None else AT_SITES
        return any(has(connection, one.model_b, one.site_b, view) for view in views)

    able = [one for one in there if leads(one)] or list(there)
    try:
        alone = resolve_in(connection, held, there[0].model_a, None, None, "standard", prefer).site
    except SignariumError:
        alone = ""
    sites = [one.site_a for one in able]
    return alone if alone in sites else middle(sites)


def has(connection: duckdb.DuckDBPyConnection, model: str, site: str, view: str) -> bool:
    """Whether a site of a model holds any rows of one of the views that can be searched there."""
    subject = SUBJECTS[view][0]
    if view == "features":
        table, condition = "feature_row x", "x.basis = 'standard'"
    else:
        table = "code_set x JOIN run r USING (run_id)"
        job = " AND r.job = 'sae'" if view == "directions" else ""
        condition = (
            f"x.subject = '{subject}' AND x.run_id IN (SELECT run_id FROM shard WHERE tokens > 0){job}"
        )
    row = connection.execute(
        f"SELECT 1 FROM {table} JOIN site s ON s.site_id = x.site_id JOIN model m ON m.model_id = s.model_id "
        f"WHERE m.name = ? AND s.name = ? AND {condition} LIMIT 1",
        [model, site],
    ).fetchone()
    return row is not None


def _feature(
    connection: duckdb.DuckDBPyConnection, query: StoredQuery, model: str | None, asked: Asked
) -> Start:
    if asked.within == "features":
        raise InvalidInput(
            "features are not searched with a feature",
            "pass --in types, states, neurons, unembedding or directions",
        )
    one = find_one(connection, query.value, model, asked.site, asked.centre)
    if one.basis != "standard":
        raise InvalidInput(
            f"feature {one.feature_id} is of basis {one.basis}", "name one of the basis standard"
        )
    found = at_site(_rotations(connection, one.model, asked.across), one.site)
    place = Place(one.model, one.site, one.centre, one.basis, one.width)
    row = connection.execute(
        "SELECT f.mask, f.polarity FROM carried_row c JOIN feature_row f USING (feature_id) WHERE c.rotation_id = ? "
        "AND c.source_feature_id = ?",
        [found.rotation_id, one.feature_id],
    ).fetchone()
    carried = None if row is None else Pattern(*(np.frombuffer(part, np.uint8) for part in row))
    return Start(found, place, feature_words(one), "types", one.centre, pattern=one.pattern, carried=carried)


def _direction(
    connection: duckdb.DuckDBPyConnection, query: StoredQuery, model: str | None, asked: Asked
) -> Start:
    named = dictionary_direction(connection, query.value, model, asked.site)
    if named is not None:
        code, place, words = named.code, named.place, direction_words(named)
    else:
        one = find_one(connection, query.value, model, asked.site, None)
        code, place = direction_code(connection, one.feature_id)
        words = difference_words(one)
    if asked.site not in (None, place.site):
        raise InvalidInput(f"{words} is at {place.site}, not at {asked.site}", "leave out --site")
    found = at_site(_rotations(connection, place.model, asked.across), place.site)
    return Start(found, place, words, "types", asked.centre, direction=code)


def _neuron(
    connection: duckdb.DuckDBPyConnection, query: StoredQuery, model: str | None, asked: Asked
) -> Start:
    """What a neuron writes, through the rotation at `--site` or at the first residual site behind its block."""
    model = one_model(connection, model)
    there = _rotations(connection, model, asked.across)
    neurons = resolve_weights(connection, "neurons", model)
    layer, number = parse_neuron(query.value)
    code = neuron_code(connection, neurons, layer, number)
    if asked.site is not None:
        found = at_site(there, asked.site)
    else:
        behind = [
            one for one in there
            if one.site_a.startswith("resid_post.") and int(one.site_a.partition(".")[2]) >= layer
        ]  # fmt: skip
        if not behind:
            raise InvalidInput(
                f"no rotation from {model} to {asked.across} is at block {layer} or behind it",
                f"pass --site: there is one at {', '.join(one.site_a for one in there)}",
            )
        found = behind[0]
    place = Place(model, found.site_a, "zero", "standard", neurons.width)
    words = f"neuron {layer}/{number}"
    check_stream(Place(model, found.site_a, "zero", "standard", found.width), words, neurons.width, "a code")
    return Start(found, place, words, "types", asked.centre, direction=code, both=True)
