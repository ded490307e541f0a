"""The list of subjects: what can be searched, and named in a query. A method adds a line, or calls `register`.

A line names the view and where its `Subject` is made, so that the command line has its choices without loading them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from ..catalog.errors import InvalidInput

if TYPE_CHECKING:
    from .nearest.subject import Subject

_LISTED: dict[str, str | Subject] = {
    "states": "states.subject:STATES",
    "types": "types.subject:TYPES",
    "types_bos": "types.subject:TYPES_BOS",
    "features": "features.subject:FEATURES",
    "neurons": "neurons.subject:NEURONS",
    "unembedding": "neurons.subject:UNEMBEDDING",
    "directions": "saes.subject:DIRECTIONS",
}


def register(subject: Subject) -> None:
    """Adds a subject that lives outside the package, or takes the place of the one of that view."""
    _LISTED[subject.view] = subject


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
    listed = _LISTED.get(view)
    if listed is None:
        raise InvalidInput(f"{view} cannot be searched", f"there is {', '.join(_LISTED)}")
    if isinstance(listed, str):
        module, _, name = listed.partition(":")
        listed = cast("Subject", getattr(import_module(f".{module}", __package__), name))
        _LISTED[view] = listed
    return listed


def every() -> list[Subject]:
    """All of them, in order."""
    return [get(view) for view in names()]


def with_prefix(prefix: str) -> Subject | None:
    """The subject that a query names by a prefix, as `neuron` in `neuron:12/305`."""
    return next((subject for subject in every() if subject.prefix == prefix), None)
