"""`nearest --across`: a query of model A is looked up where a rotation starts, carried through it, and searched among B's codes.

Of a stored item the signs alone are carried (`catalog/carry.py`), of a free text the floats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...catalog import carry, codes, store
from ...catalog.errors import InvalidInput, NotFound
from ..features.resolve import resolve_features
from ..rotations.stored import load
from .across_start import Asked, Start, has, start_in
from .answers import Answer, Carried
from .ask import search_in
from .masked import Pattern
from .plan import check_stream
from .start import StoredQuery
from .target import (
    AT_SITES,
    OF_WEIGHTS,
    SUBJECTS,
    Place,
    Target,
    resolve_directions,
    resolve_in,
    resolve_weights,
    usual_centre,
)
from .where import parse_where

if TYPE_CHECKING:
    import duckdb
    from numpy.typing import NDArray


def nearest_across(
    path: Path,
    query: StoredQuery | None,
    within: str | None,
    model: str | None,
    across: str,
    site: str | None,
    centre: str | None,
    k: int,
    where: str | None,
    approximate: bool,
    engine: str,
    encode_state: Callable[[Place], NDArray[np.float64]] | None,
) -> Answer:
    """The `k` codes of model `across` nearest to an item of `model`, or to a free text whose floats `encode_state` gives.

    Raises:
        InvalidInput, NotFound: naming what there is, or how a rotation is made.
    """
    if within is not None and within not in SUBJECTS:
        raise InvalidInput(f"{within} cannot be searched", f"there is {', '.join(SUBJECTS)}")
    asked = Asked(within, across, site, centre)
    with store.reading(path) as connection:
        parsed = parse_where(connection, where)
        start = start_in(connection, query, model, asked)
        target = _target(connection, asked, start)
        rotation = load(connection, start.found)
        centre_a = centre_b = None
        if start.code is not None or query is None:
            about = target.centre if target.view not in (*OF_WEIGHTS, "directions") else start.place.centre
            centre_b = _centre(connection, start.found.model_b, start.found.site_b, about)
        if start.code is not None:
            centre_a = _centre(connection, start.place.model, start.place.site, start.place.centre)
        if query is not None:
            carried = _carried(start, rotation, centre_a, centre_b)
            answer = search_in(
                path,
                connection,
                target,
                carried,
                k,
                parsed,
                approximate,
                start.both or target.view == "neurons",
                engine,
            )
    if query is None:
        assert encode_state is not None
        floats = carry.carry_floats(encode_state(start.place), rotation)
        with store.reading(path) as connection:
            # It was free while the model ran.
            parsed = parse_where(connection, where)
            code = carry.pack_about(floats, centre_b)
            both = target.view == "neurons"
            answer = search_in(path, connection, target, code, k, parsed, approximate, both, engine)
    how = Carried(start.found, query is not None, start.code is not None and start.prefer == "types")
    return replace(answer, query=start.words, place=start.place, across=how)


def _carried(
    start: Start,
    rotation: carry.Stored,
    centre_a: NDArray[np.float64] | None,
    centre_b: NDArray[np.float64] | None,
) -> codes.Codes | Pattern:
    if start.carried is not None:
        return start.carried
    if start.pattern is not None:
        return Pattern(*carry.carry_pattern(start.pattern.mask, start.pattern.polarity, rotation))
    if start.direction is not None:
        # A direction is about no centre, and is compared with codes about any.
        return carry.pack_about(carry.carry_signs(start.direction, rotation))
    assert start.code is not None
    return carry.carry_code(start.code, rotation, centre_a, centre_b)


# ---- in B -----------------------------------------------------------------------------------------


def _target(connection: duckdb.DuckDBPyConnection, asked: Asked, start: Start) -> Target:
    """What is searched in B: by default what A itself would be searched for, where the rotation leads."""
    model, site = start.found.model_b, start.found.site_b
    within = asked.within
    if within in OF_WEIGHTS:
        target = resolve_weights(connection, within, model)
        check_stream(
            Place(model, site, "zero", "standard", start.found.width), within, target.width, "what is carried"
        )
        return target
    order = dict.fromkeys((start.prefer, *AT_SITES))
    views = [within] if within is not None else list(order)
    there = [view for view in views if has(connection, model, site, view)]
    if not there:
        what = within or " or ".join(AT_SITES[:2])
        how = {
            "features": f"run `signarium align`, which carries features there, or ingest it with --sites {site} --stages features",
            "directions": f"run `signarium sae add FILE --model {model} --site {site}`",
            "types": f"ingest it with --sites {site}",
        }.get(within or "", f"ingest it with --sites {site} --text PATH")
        raise InvalidInput(f"the catalogue has no {what} of {model} at {site}, where the rotation leads", how)
    view = there[0]
    if view == "features":
        return resolve_features(connection, model, site, start.centre, usual_centre(start.prefer))
    if view == "directions":
        return resolve_directions(connection, model, site)
    return resolve_in(connection, view, model, site, start.centre, "standard", start.prefer)


def _centre(
    connection: duckdb.DuckDBPyConnection, model: str, site: str, centre: str
) -> NDArray[np.float64] | None:
    """What a centre subtracts, (width,); None for zero."""
    if centre == "zero":
        return None
    rows = connection.execute(
        "SELECT mean FROM dimensions WHERE model = ? AND site = ? ORDER BY dim", [model, site]
    ).fetchall()
    if not rows:
        raise NotFound(
            f"centre {centre} of {model} at",
            site,
            todo="ingest it with the stage types, or pass --centre zero",
        )
    return np.array([row[0] for row in rows])
