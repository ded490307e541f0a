"""One line that says what a search went through, and how its query came there."""

from __future__ import annotations

from .nearest.answers import Answer, Carried
from .nearest.target import OF_WEIGHTS, Place


def summary(answer: Answer) -> str:
    """One line that says what was searched."""
    target = answer.target
    what = f"codes of {target.width} bits"
    if target.view == "features":
        what = f"feature{'' if answer.searched == 1 else 's'} over {target.width} dimensions"
    if target.view in OF_WEIGHTS:
        line = f"{target.view} of {target.model}: {answer.searched:,} {what}"
    else:
        line = f"{target.view} of {target.model} at {target.site}, centre {target.centre}: {answer.searched:,} {what}"
    if answer.turned:
        line += ", in either polarity"
    if answer.recall is not None:
        line += f"; approximate, recall {answer.recall:.3f} measured on this code set"
    if answer.query is not None:
        line += f"; searched {answer.query}"
        if answer.across is not None and answer.place is not None:
            line += _across(answer.across, answer.place)
        elif answer.place is not None:
            line += f", at {answer.place.site}, centre {answer.place.centre}"
    return line


def _across(carried: Carried, place: Place) -> str:
    """Where the query is from, and the rotation with what is to be known of it."""
    one = carried.rotation
    line = f", of {place.model} at {place.site}"
    if carried.signs_alone:
        line += f", centre {place.centre}, its signs alone"
    way = "the rotation" if not one.inverse else f"the inverse of the rotation from {one.model_b}"
    where = one.site_a if one.site_a == one.site_b else f"{one.site_a} to {one.site_b}"
    line += (
        f"; carried by {way} at {where}: held-out explained variance {one.ev_rotation:.3f}, "
        f"fitted on shuffled pairs {one.ev_shuffled:.3f}"
        + ("" if one.ev_exchanged is None else f", with token types exchanged {one.ev_exchanged:.3f}")
    )
    if not one.explains:
        line += ", not surely more than its nulls, so these may be neighbours by chance"
    if one.rank_warning is not None:
        line += f"; beware: {one.rank_warning}"
    if carried.first:
        line += "; no first position was among what it was fitted on, and a type stands at one"
    return line
