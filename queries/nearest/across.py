"""`nearest` with `across`: a query of model A is looked up where a rotation starts, carried through it, and searched in B.

Of a stored item the signs alone are carried (`catalog/carry.py`), of a free text the floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...catalog import carry, codes
from ...catalog.errors import InvalidInput, NotFound, SignariumError, option
from .. import subjects
from ..rotations.stored import RotationFigures, at_site, load, some_between
from ..usual import middle, one_model
from .answers import Carried
from .asked import Asked
from .masked import Pattern
from .plan import Encoder, Plan, prefer_of, words_of
from .subject import Choice, Place, Start, Subject, Target, check_stream, default_order, default_subject

if TYPE_CHECKING:
    import duckdb

Centre = NDArray[np.float64] | None


def plan_across(connection: duckdb.DuckDBPyConnection, asked: Asked) -> Plan:
    """How to search another model.

    Raises:
        InvalidInput, NotFound: naming what there is, or how a rotation is made.
    """
    subject = asked.subject
    if subject is None or not subject.fixed:
        start, place, figures = _at_site(connection, asked, subject)
        prefer, centre = prefer_of(subject), asked.centre
    else:
        start, figures = _fixed(connection, asked, subject)
        assert start.choice is not None
        place, prefer, centre = start.place, start.choice.prefer, start.choice.centre
    target = _target(connection, asked, figures, Choice(None, centre=centre, prefer=prefer))
    rotation = load(connection, figures)
    centre_b = None
    if start is None or start.carries == "code":
        about = target.centre if target.subject.place == "site" else place.centre
        centre_b = _centre(connection, figures.model_b, figures.site_b, about)

    def encode(encoder: Encoder) -> codes.Codes:
        return carry.pack_about(carry.carry_floats(encoder.floats(place), rotation), centre_b)

    both = target.subject.both_polarities or (subject is not None and subject.both_polarities)
    signs_alone = start is not None
    carried = Carried(figures, signs_alone, subject is not None and subject.first_position)
    if start is None:
        return Plan(target, None, both, None, place, encode, carried)
    code = None if subject is None else subject.carried(connection, start, figures.rotation_id)
    if code is None:
        centre_a = None
        if start.carries == "code":
            centre_a = _centre(connection, place.model, place.site, place.centre)
        code = _carry(start, rotation, centre_a, centre_b)
    return Plan(target, code, both, start.words, place, None, carried)


def _carry(start: Start, rotation: carry.Stored, centre_a: Centre, centre_b: Centre) -> codes.Codes | Pattern:
    if isinstance(start.code, Pattern):
        return Pattern(*carry.carry_pattern(start.code.mask, start.code.polarity, rotation))
    if start.carries == "direction":
        # A direction is about no centre, and is compared with codes about any.
        return carry.pack_about(carry.carry_signs(start.code, rotation))
    return carry.carry_code(start.code, rotation, centre_a, centre_b)


# ---- in A -----------------------------------------------------------------------------------------


def _rotations(connection: duckdb.DuckDBPyConnection, model: str, asked: Asked) -> list[RotationFigures]:
    known = [row[0] for row in connection.execute("SELECT name FROM model ORDER BY name").fetchall()]
    assert asked.across is not None
    if asked.across not in known:
        raise NotFound("model", asked.across, known)
    if asked.across == model:
        raise InvalidInput(
            f"{option('across', asked.across)} is the model itself", "name another one, or leave it out"
        )
    return some_between(connection, model, asked.across)


def _at_site(
    connection: duckdb.DuckDBPyConnection, asked: Asked, held: Subject | None
) -> tuple[Start | None, Place, RotationFigures]:
    """A free text, a spelled code, or an item that lies at every site (`held`): at a site of A with a rotation."""
    model = one_model(connection, asked.model)
    rotations = _rotations(connection, model, asked)
    figures = at_site(rotations, asked.site or _usual_site(connection, asked, held, rotations))
    site = figures.site_a
    if held is None:
        # What is there of A does not matter: nothing is looked up.
        usual = subjects.get(prefer_of(None)).usual_centre
        place = Place(model, site, asked.centre or usual, "standard", figures.width)
    else:
        if not held.holds(connection, model, site):
            raise InvalidInput(
                f"no {held.view} of {model} were ingested at {site}, where the rotation to {figures.model_b} starts",
                held.advice(model, site),
            )
        place = held.target(connection, Choice(model, site, asked.centre, prefer=held.view)).place
    if asked.is_text:
        return None, place, figures
    if held is not None:
        return held.find(connection, asked, asked.value, place), place, figures
    return Start(place, codes.from_hex(asked.value, place.width), words_of(asked) or ""), place, figures


def _usual_site(
    connection: duckdb.DuckDBPyConnection,
    asked: Asked,
    held: Subject | None,
    rotations: Sequence[RotationFigures],
) -> str:
    """The site where A alone would be searched, if the rotation there leads to codes of B; else the middle one of those
    whose does."""
    searched = asked.searched

    def leads(figures: RotationFigures) -> bool:
        if held is not None and not held.holds(connection, figures.model_a, figures.site_a):
            return False
        if searched is not None and searched.place == "stream":
            return True
        able = [one for one in subjects.every() if one.default] if searched is None else [searched]
        return any(one.holds(connection, figures.model_b, figures.site_b) for one in able)

    sites = [figures.site_a for figures in rotations if leads(figures)]
    sites = sites or [figures.site_a for figures in rotations]
    choice = Choice(rotations[0].model_a, prefer=prefer_of(held))
    try:
        alone = (held or default_subject(connection, choice)).target(connection, choice).site
    except SignariumError:
        alone = ""
    return alone if alone in sites else middle(sites)


def _fixed(
    connection: duckdb.DuckDBPyConnection, asked: Asked, subject: Subject
) -> tuple[Start, RotationFigures]:
    """An item that lies in one place: through the rotation there, or, if a block writes it, through that at `site` or at
    the first residual site behind the block."""
    start = subject.find(connection, asked, asked.value, None)
    if start.place.basis != "standard":
        raise InvalidInput(f"{start.name} is of basis {start.place.basis}", "name one of the basis standard")
    rotations = _rotations(connection, start.place.model, asked)
    if start.block is None:
        if asked.site not in (None, start.place.site):
            raise InvalidInput(
                f"{start.words} is at {start.place.site}, not at {asked.site}", f"leave out {option('site')}"
            )
        return start, at_site(rotations, start.place.site)
    figures = at_site(rotations, asked.site or _behind(rotations, start.block))
    check_stream(
        replace(start.place, site=figures.site_a, width=figures.width),
        start.words,
        start.place.width,
        "a code",
    )
    return replace(start, place=replace(start.place, site=figures.site_a)), figures


def _behind(rotations: Sequence[RotationFigures], block: int) -> str:
    """The first residual site with a rotation behind a block."""
    for site in (figures.site_a for figures in rotations):
        point, _, layer = site.partition(".")
        if point == "resid_post" and int(layer) >= block:
            return site
    a, b = rotations[0].model_a, rotations[0].model_b
    raise InvalidInput(
        f"no rotation from {a} to {b} is at block {block} or behind it",
        f"pass {option('site')}: there is one at {', '.join(figures.site_a for figures in rotations)}",
    )


# ---- in B -----------------------------------------------------------------------------------------


def _target(
    connection: duckdb.DuckDBPyConnection, asked: Asked, figures: RotationFigures, choice: Choice
) -> Target:
    """What is searched in B: by default what A itself would be searched for, where the rotation leads."""
    model, site = figures.model_b, figures.site_b
    searched = asked.searched
    if searched is not None and searched.place == "stream":
        target = searched.target(connection, Choice(model))
        there = Place(model, site, "zero", "standard", figures.width)
        check_stream(there, target.view, target.width, "what is carried")
        return target
    able = [searched] if searched is not None else list(default_order(choice.prefer))
    for subject in able:
        if subject.holds(connection, model, site):
            return subject.target(connection, replace(choice, model=model, site=site))
    what = searched.view if searched is not None else " or ".join(one.view for one in able[:2])
    raise InvalidInput(
        f"the catalogue has no {what} of {model} at {site}, where the rotation leads",
        able[0].advice(model, site),
    )


def _centre(connection: duckdb.DuckDBPyConnection, model: str, site: str, centre: str) -> Centre:
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
            todo=f"ingest it with the stage types, or pass {option('centre', 'zero')}",
        )
    return np.array([row[0] for row in rows])
