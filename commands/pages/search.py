"""One line that says what a search went through, and how its query came there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...queries.nearest.answers import Answer, Carried
from ...queries.nearest.subject import Place
from ...queries.states.contexts import MARKS

if TYPE_CHECKING:
    import pyarrow as pa


def summary(answer: Answer) -> str:
    """One line that says what was searched."""
    target = answer.target
    what = f"codes of {target.width} bits"
    if target.view == "features":
        what = f"feature{'' if answer.searched == 1 else 's'} over {target.width} dimensions"
    if target.subject.place == "stream":
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


# ---- rows ---

_OTHERS = 2 * 4 + 4 + 8 + 19 + 8
"""Cells that the other columns of `states` take: rank, distance, state_id, position, and what is between."""
_POLARITY = 2 + 8


def display(answer: Answer, width: int | None = None) -> pa.Table:
    """The columns worth a terminal's `width`; a context is cut on both sides so that its mark stays in sight."""
    import pyarrow as pa

    names = ["rank", "distance", *answer.target.subject.shown]
    turned = answer.turned
    if turned:
        names.insert(2, "polarity")
    table = answer.table.select(names)
    if answer.target.view == "neurons":
        places = zip(*(answer.table.column(one).to_pylist() for one in ("layer", "neuron")), strict=True)
        table = table.set_column(names.index("neuron"), "neuron", [[f"{a}/{b}" for a, b in places]])
        if any(answer.raises):
            raises = [*answer.raises, *[""] * (table.num_rows - len(answer.raises))]
            table = table.append_column("raises", pa.array(raises, pa.string()))
    if width is None or "context" not in table.column_names:
        return table
    room = max(16, width - _OTHERS - _POLARITY * turned)
    tokens = answer.table.column("token").to_pylist()
    texts = [
        around_mark(text, token or "", room)
        for text, token in zip(table.column("context").to_pylist(), tokens, strict=True)
    ]
    return table.set_column(table.column_names.index("context"), "context", pa.array(texts, pa.string()))


def around_mark(text: str, token: str, room: int) -> str:
    """`text` cut to `room` cells around its marked `token`."""
    from ...commands.render.tables import cell_width

    if cell_width(text) <= room:
        return text
    for word in (token.lstrip(" ") or token, token.removeprefix("##")):
        start = text.find(f"{MARKS[0]}{word}{MARKS[1]}")
        if start >= 0:
            break
    stop = start + len(word) + 2
    before, marked, after = text[:start], text[start:stop], text[stop:]
    left = max(0, room - cell_width(marked))
    take_after = min(cell_width(after), max(left // 2, left - cell_width(before)))
    take_before = left - take_after
    return _end(before, take_before) + marked + _start(after, take_after)


def _start(text: str, room: int) -> str:
    from ...commands.render.tables import cell_width

    if cell_width(text) <= room:
        return text
    while text and cell_width(text) > room - 1:
        text = text[:-1]
    return text + "…" if room > 0 else ""


def _end(text: str, room: int) -> str:
    from ...commands.render.tables import cell_width

    if cell_width(text) <= room:
        return text
    while text and cell_width(text) > room - 1:
        text = text[1:]
    return "…" + text if room > 0 else ""
