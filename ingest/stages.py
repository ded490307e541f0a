"""The stages of `ingest`, in their order. Reading this list imports no stage, and so no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from ..catalog.errors import InvalidInput, option

if TYPE_CHECKING:
    from .job import Context, Stage


@dataclass(frozen=True)
class Entry:
    """A line of the list. `make` is where its class is, `MODULE:CLASS` below this package, or the class itself.

    `options` are those of `IngestRequest` that mean nothing without the stage. A stage that `reads_text` is left out where
    there is no text; `usual` stages run where none are named.
    """

    name: str
    make: str | Callable[[Context], Stage]
    options: tuple[str, ...] = ()
    reads_text: bool = False
    usual: bool = True

    def plan(self, context: Context) -> Stage:
        """The stage, planned.

        Raises:
            SignariumError: for what it cannot do.
        """
        if not isinstance(self.make, str):
            return self.make(context)
        module, _, name = self.make.partition(":")
        made: Stage = getattr(import_module(f".{module}", __package__), name)(context)
        return made


LISTED = [
    Entry("types", "types.stage:TypeStage", options=("bos",)),
    Entry("states", "states.stage:StateStage", options=("text",), reads_text=True),
    Entry("features", "features.stage:FeatureStage", options=("categories", "seeds")),
    # About a third of the work behind the forward passes, and not needed for a first look.
    Entry("neurons", "neurons.stage:NeuronStage", usual=False),
    Entry("writers", "writers.stage:WriterStage", usual=False),
]


ALL = "all"
"""Stands for every stage of the list."""


def names() -> tuple[str, ...]:
    """The stages by name, in the order in which they run."""
    return tuple(one.name for one in LISTED)


@contextmanager
def registered(stage: type[Stage]) -> Iterator[None]:
    """A stage of a program around this one, behind those that are listed; it runs where it is asked for by name.

    Raises:
        ValueError: if its name is taken, or a stage that it needs is not listed.
    """
    register(stage)
    try:
        yield
    finally:
        LISTED[:] = [one for one in LISTED if one.make is not stage]


def register(stage: type[Stage]) -> None:
    """List a stage of a program around this one, for the life of the process: see `registered`."""
    if stage.name in names():
        raise ValueError(f"there is a stage {stage.name!r} already")
    if missing := [one for one in stage.needs if one not in names()]:
        raise ValueError(f"{stage.name} needs {', '.join(missing)}, which is not listed")
    LISTED.append(Entry(stage.name, stage, usual=False))


def choose(wanted: Sequence[str] | None, given: Sequence[str]) -> list[Entry]:
    """The stages that were asked for, in order; without any, the usual ones; for `all`, those that have what they read.

    `given` are the options that were given.

    Raises:
        InvalidInput: for a name that is not listed, a stage that lacks its text, or an option that lacks its stage.
    """
    there = f"there is {', '.join(names())}"
    if wanted is None or list(wanted) == [ALL]:
        fits = [one for one in LISTED if "text" in given or not one.reads_text]
        wanted = [one.name for one in fits if one.usual or wanted is not None]
    for name in wanted:
        if name not in names():
            raise InvalidInput(f"no stage {name!r}", there)
    if not wanted:
        raise InvalidInput("no stage was given", there)
    for one in LISTED:
        if one.name in wanted and one.reads_text and "text" not in given:
            raise InvalidInput(f"the stage {one.name} needs a text", f"pass {option('text', 'PATH')}")
        lost = [name for name in one.options if name in given]
        if one.name not in wanted and lost:
            verb = "belongs" if len(lost) == 1 else "belong"
            raise InvalidInput(
                f"{' and '.join(map(option, lost))} {verb} to the stage {one.name}",
                f"add {one.name} to {option('stages')}, or leave {' and '.join(map(option, lost))} out",
            )
    return [one for one in LISTED if one.name in wanted]
