"""The list of subjects: what can be searched, and named in a query. A method adds a line, or calls `register`.

A line names the view, the prefix of queries that name its items, and where its `Subject` is made: a search loads those
that it needs alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from ..catalog.errors import InvalidInput

if TYPE_CHECKING:
    from .nearest.subject import Subject

_LISTED: dict[str, tuple[str | None, str | Subject]] = {
    "states": ("state", "states.subject:STATES"),
    "types": ("type", "types.subject:TYPES"),
    "types_bos": (None, "types.subject:TYPES_BOS"),
    "features": ("feature", "features.subject:FEATURES"),
    "neurons": ("neuron", "neurons.subject:NEURONS"),
    "unembedding": (None, "neurons.subject:UNEMBEDDING"),
    "directions": ("direction", "saes.subject:DIRECTIONS"),
}


def register(subject: Subject) -> None:
    """Adds a subject that lives outside the package, or takes the place of the one of that view."""
    _LISTED[subject.view] = (subject.prefix, subject)


def unregister(view: str) -> None:
    """Takes a subject out of the list."""
    _LISTED.pop(view, None)


def names() -> list[str]:
    """The views that can be searched."""
    return list(_LISTED)


def get(view: str) -> Subject:
    """The subject whose rows are in a view.

    Raises:
        InvalidInput: if it cannot be searched; says what can.
    """
    if view not in _LISTED:
        raise InvalidInput(f"{view} cannot be searched", f"there is {', '.join(_LISTED)}")
    prefix, listed = _LISTED[view]
    if isinstance(listed, str):
        module, _, name = listed.partition(":")
        listed = cast("Subject", getattr(import_module(f".{module}", __package__), name))
        _LISTED[view] = (prefix, listed)
    return listed


def every() -> list[Subject]:
    """All of them, in order."""
    return [get(view) for view in names()]


def with_prefix(prefix: str) -> Subject | None:
    """The subject that a query names by a prefix, as `neuron` in `neuron:12/305`."""
    return next((get(view) for view, (known, _) in _LISTED.items() if known == prefix), None)
