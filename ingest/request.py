"""What an ingest is asked for: all of its options as one object, checked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..catalog.errors import InvalidInput, option
from . import stages as listed
from .text.sources import COLUMN

AUTO = "auto"


@dataclass(frozen=True)
class IngestRequest:
    """The options of `signarium.ingest`, as they were given; None where one was left out.

    `model` is a Hugging Face id, a folder or a `.gguf` file. `text` are files and folders. `sites` is written as in
    `resid_post.8,16;k.8`, `stages` and `devices` as lists or with commas. `device` runs everything; `devices`, which are
    of one kind, take its place and share out the batches of types and states. `column` is the field of a record that is its text.

    Raises:
        InvalidInput: for a value out of range, for a stage that does not exist or lacks its text, and for options that
            exclude each other or mean nothing without a stage that was not asked for.
    """

    model: str
    text: str | Path | Sequence[str | Path] = ()
    name: str | None = None
    sites: str | Sequence[str] | None = None
    stages: str | Sequence[str] | None = None
    max_tokens: int | None = None
    context: int | None = None
    device: str = AUTO
    devices: str | Sequence[str] | None = None
    dtype: str = AUTO
    attention: str = AUTO
    batch_tokens: int | None = None
    bos: bool = False
    categories: str | Path | None = None
    seeds: int | None = None
    random_init: int | None = None
    revision: str | None = None
    column: str = COLUMN
    dry_run: bool = False

    def __post_init__(self) -> None:
        # A stage that is not there is said first: it needs no reading of the rest.
        assert self.chosen
        for name in ("context", "max_tokens", "batch_tokens", "seeds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInput(f"{option(name, value)} is too small", "it must be 1 or more")
        if self.devices is not None and self.device != AUTO:
            raise InvalidInput(
                f"{option('device')} and {option('devices')} exclude each other", "pass one of them"
            )

    @cached_property
    def chosen(self) -> list[listed.Entry]:
        """The stages to run, in order."""
        options = [name for entry in listed.LISTED for name in entry.options]
        # What an option is where it was left out.
        given = [name for name in options if getattr(self, name) not in (None, False, (), [])]
        return listed.choose(self.stage_names, given)

    @property
    def stage_names(self) -> list[str] | None:
        """The stages that were named; None if none were."""
        return self.stages.split(",") if isinstance(self.stages, str) else _list(self.stages)

    @property
    def texts(self) -> list[str | Path]:
        """The files and folders of text."""
        return [self.text] if isinstance(self.text, str | Path) else list(self.text)

    @property
    def site_spec(self) -> str | None:
        """The sites as one text."""
        return self.sites if self.sites is None or isinstance(self.sites, str) else ";".join(self.sites)

    @property
    def device_names(self) -> list[str]:
        """Where the model runs, at least one."""
        if self.devices is None:
            return [self.device]
        names = self.devices.split(",") if isinstance(self.devices, str) else self.devices
        return [one.strip() for one in names]


def _list(values: Sequence[str] | None) -> list[str] | None:
    return None if values is None else list(values)
