"""What a `nearest` will do: where its query is looked up, and what is searched with it.

For codes and features of a site both are one place. Neurons and the unembedding are directions of the residual stream
at no site in particular, so a query brings a place of its own to them, and they are compared with any place of that
stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...catalog import codes
from ...catalog.errors import InvalidInput
from ..features.resolve import Feature, find_one, quoted_name, resolve_features
from ..models import one_model
from .masked import Pattern
from .start import (
    Direction,
    StoredQuery,
    dictionary_direction,
    direction_code,
    neuron_code,
    parse_neuron,
    stored_code_in,
)
from .target import OF_WEIGHTS, Place, Target, resolve_directions, resolve_in, resolve_weights, usual_centre

if TYPE_CHECKING:
    import duckdb

_OTHER_STREAMS = ("k", "v", "ffn")
"""Points that are as wide as the residual stream in some models, and yet are not of it."""


@dataclass(frozen=True)
class Plan:
    """A search to be done. `code` is None for a free text, which is encoded at `place`."""

    target: Target
    place: Place
    code: codes.Codes | Pattern | None
    both: bool = False
    """Whether either polarity counts: a neuron is on one of the sides."""
    words: str | None = None
    """What the query is, where the answer should say it."""


def plan(
    connection: duckdb.DuckDBPyConnection,
    query: StoredQuery | None,
    within: str | None,
    model: str | None,
    site: str | None,
    centre: str | None,
) -> Plan:
    """How to search with a stored item, or, with None, a free text.

    Raises:
        InvalidInput, NotFound: naming what there is.
    """
    if query is None or query.kind in ("type", "state", "code"):
        return _item(connection, query, within, model, site, centre)
    return {"feature": _feature, "neuron": _neuron, "direction": _direction}[query.kind](
        connection, query, within, model, site, centre
    )


def _item(
    connection: duckdb.DuckDBPyConnection,
    query: StoredQuery | None,
    within: str | None,
    model: str | None,
    site: str | None,
    centre: str | None,
) -> Plan:
    kind = query.kind if query is not None else "text"
    prefer = "types" if kind == "type" else "states"
    words = None
    if within in OF_WEIGHTS:
        target = resolve_weights(connection, within, one_model(connection, model))
        if kind == "code":
            _no_choice(within, site, centre)
            place = target.place
        else:
            held = {"type": "types", "state": "states"}.get(kind)
            place = resolve_in(connection, held, target.model, site, centre, "standard", prefer).place
            words = f"{kind} {quoted_name(query.value)}" if query is not None else None
    elif within == "directions":
        target = resolve_directions(connection, one_model(connection, model), site)
        held = {"type": "types", "state": "states"}.get(kind)
        if held is not None:
            at = (target.model, target.site, centre, "standard", held)
            place = resolve_in(connection, held, *at).place
        else:
            # No code is read there, so none need be stored.
            place = Place(target.model, target.site, centre or target.centre, target.basis, target.width)
        words = f"{kind} {quoted_name(query.value)}" if query is not None else None
    elif within == "features":
        target = resolve_features(connection, model, site, centre, usual_centre(prefer))
        place = target.place
    else:
        target = resolve_in(connection, within, model, site, centre, "standard", prefer)
        place = target.place
    if within in OF_WEIGHTS:
        check_stream(place, within, target.width, "a code")
    code = None if query is None else stored_code_in(connection, place, query)
    return Plan(target, place, code, within == "neurons", words)


def _feature(
    connection: duckdb.DuckDBPyConnection,
    query: StoredQuery,
    within: str | None,
    model: str | None,
    site: str | None,
    centre: str | None,
) -> Plan:
    if within == "features":
        raise InvalidInput(
            "features are not searched with a feature",
            "pass --in types, states, neurons, unembedding or directions",
        )
    one = find_one(connection, query.value, model, site, centre)
    place = Place(one.model, one.site, one.centre, one.basis, one.width)
    if within in OF_WEIGHTS:
        target = resolve_weights(connection, within, one.model)
        check_stream(place, within, target.width, f"feature {one.feature_id}")
    elif within == "directions":
        target = resolve_directions(connection, one.model, one.site)
    else:
        target = resolve_in(connection, within, one.model, one.site, one.centre, one.basis, "types")
    words = feature_words(one)
    return Plan(target, place, one.pattern, within == "neurons", words)


def feature_words(one: Feature) -> str:
    """A feature as a summary names it."""
    return f"feature {one.feature_id}, {quoted_name(one.name)}: {one.n_dims:,} dimensions"


def _neuron(
    connection: duckdb.DuckDBPyConnection,
    query: StoredQuery,
    within: str | None,
    model: str | None,
    site: str | None,
    centre: str | None,
) -> Plan:
    model = one_model(connection, model)
    neurons = resolve_weights(connection, "neurons", model)
    layer, neuron = parse_neuron(query.value)
    code = neuron_code(connection, neurons, layer, neuron)
    own = _behind(connection, model, layer)
    if within is None and _has_features(connection, model, site or own):
        within = "features"
    target = _beside(connection, neurons.place, within, model, site, centre, own, f"neuron {layer}/{neuron}")
    return Plan(target, neurons.place, code, True, f"neuron {layer}/{neuron}")


def _direction(
    connection: duckdb.DuckDBPyConnection,
    query: StoredQuery,
    within: str | None,
    model: str | None,
    site: str | None,
    centre: str | None,
) -> Plan:
    if (found := dictionary_direction(connection, query.value, model, site)) is not None:
        own = found.place
        words = direction_words(found)
        target = _beside(connection, own, within, own.model, site, centre, own.site, words)
        return Plan(target, own, found.code, within == "neurons", words)
    # The site and the centre say what is searched; of a name they also say which feature.
    numbered = query.value.isdecimal()
    which = (None, None) if numbered else (site, centre)
    one = find_one(connection, query.value, model, *which)
    code, place = direction_code(connection, one.feature_id)
    words = difference_words(one)
    if within in OF_WEIGHTS and not numbered:
        site = centre = None
    target = _beside(connection, place, within, one.model, site, centre, place.site, words)
    return Plan(target, place, code, within == "neurons", words)


def direction_words(one: Direction) -> str:
    """A dictionary's direction as a summary names it."""
    return f"direction {one.number} of {quoted_name(one.name)}"


def difference_words(one: Feature) -> str:
    """A feature's difference of means likewise."""
    return f"direction of feature {one.feature_id}, {quoted_name(one.name)}"


def _beside(
    connection: duckdb.DuckDBPyConnection,
    place: Place,
    within: str | None,
    model: str,
    site: str | None,
    centre: str | None,
    usual_site: str,
    what: str,
) -> Target:
    """What is searched with a direction, which has its own place: by default at `usual_site`."""
    if within in OF_WEIGHTS:
        _no_choice(within, site, centre)
        target = resolve_weights(connection, within, model)
    elif within == "features":
        target = resolve_features(connection, model, site, centre, usual_centre("types"), usual_site)
    elif within == "directions":
        if centre is not None:
            raise InvalidInput("directions have no centre of choice", "leave out --centre")
        target = resolve_directions(connection, model, site, usual_site)
    else:
        target = resolve_in(connection, within, model, site, centre, "standard", "types", usual_site)
    check_stream(target.place, what, place.width, f"one of {target.view}")
    return target


def _behind(connection: duckdb.DuckDBPyConnection, model: str, layer: int) -> str:
    """The first `resid_post` site behind a block that holds anything: an earlier one knows nothing of its neurons."""
    row = connection.execute(
        "SELECT s.name FROM site s JOIN model m USING (model_id) WHERE m.name = ? AND s.point = 'resid_post' AND s.layer >= ? "
        "AND s.site_id IN (SELECT site_id FROM code_set WHERE subject = 'type' UNION ALL SELECT site_id FROM feature_row) "
        "ORDER BY s.layer LIMIT 1",
        [model, layer],
    ).fetchone()
    return row[0] if row is not None else f"resid_post.{layer}"


def _has_features(connection: duckdb.DuckDBPyConnection, model: str, site: str) -> bool:
    row = connection.execute(
        "SELECT 1 FROM feature_row f JOIN site s USING (site_id) JOIN model m USING (model_id) "
        "WHERE m.name = ? AND s.name = ? AND f.basis = 'standard' LIMIT 1",
        [model, site],
    ).fetchone()
    return row is not None


def _no_choice(within: str, site: str | None, centre: str | None) -> None:
    if site is not None or centre is not None:
        given = " and ".join(
            f"--{name}" for name, value in (("site", site), ("centre", centre)) if value is not None
        )
        what = "neurons are" if within == "neurons" else "the unembedding is"
        raise InvalidInput(f"{what} at no site of choice", f"leave out {given}")


def check_stream(place: Place, direction: str, width: int, what: str) -> None:
    """`what` lies at a place and is to be compared with a direction of the residual stream, or many, of `width`."""
    other = place.site.partition(".")[0] in _OTHER_STREAMS
    if other or place.width != width:
        raise InvalidInput(
            f"{what} at {place.site} has {place.width:,} dimensions{' of its own' if other else ''}, "
            f"and {direction} has {width:,} of the residual stream",
            "take one at a resid_post site",
        )
