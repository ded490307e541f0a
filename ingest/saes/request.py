"""What is asked of `sae train` and `sae add`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...catalog.errors import InvalidInput, option

BATCH, LR = 4096, 5e-4


@dataclass(frozen=True)
class Settings:
    """How a dictionary is trained: see `train.train`.

    Attributes:
        expansion: features for each dimension.
        l1: weight of the sum of activations in the loss.
        seed: of weights and batches.
        batch: states of a step.
        lr: Adam's learning rate.

    Raises:
        InvalidInput: if a number is out of range.
    """

    expansion: int = 8
    steps: int = 1500
    l1: float = 1e-3
    seed: int = 0
    batch: int = BATCH
    lr: float = LR

    def __post_init__(self) -> None:
        check_seed(self.seed)
        # The upper ends catch typos before they fill the memory.
        for name, value, most in (
            ("expansion", self.expansion, 1024),
            ("steps", self.steps, 1 << 31),
            ("batch", self.batch, 1 << 24),
        ):
            if not 1 <= value <= most:
                raise InvalidInput(f"{name} is {value}", f"it must be 1 to {most}")
        if not (math.isfinite(self.l1) and self.l1 >= 0):
            raise InvalidInput(f"l1 is {self.l1}", "it must be 0 or more")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise InvalidInput(f"lr is {self.lr}", "it must be more than 0")


def check_seed(seed: int) -> None:
    """Refuse a seed that the catalogue could not store.

    Raises:
        InvalidInput: if it is negative, or 2^63 or more.
    """
    if not 0 <= seed < 1 << 63:
        raise InvalidInput(f"the seed is {seed}", "it must be 0 or more, and below 2^63")


@dataclass(frozen=True)
class SaeTrainRequest:
    """Train a dictionary on what the model called `model` has at `site` over a text.

    Attributes:
        text: paths of files or folders.
        output: the file to write (.safetensors).
        max_tokens: of the text; None for all of it.
        context: tokens of a window, at most.
        column: the field or column of a record that is its text.

    Raises:
        InvalidInput: if a number is out of range.
    """

    model: str
    site: str
    text: str | Path | Sequence[str | Path]
    output: Path
    settings: Settings = Settings()
    max_tokens: int | None = 65_536
    context: int = 256
    device: str = "auto"
    column: str = "text"

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InvalidInput(
                f"a limit of {self.max_tokens} tokens leaves no text",
                f"use {option('max_tokens', 1)} or more",
            )


@dataclass(frozen=True)
class SaeAddRequest:
    """Import the dictionary in `file` as one of the model called `model` at `site`; `name` is the file's without its ending
    unless it is given."""

    model: str
    site: str
    file: Path
    name: str | None = None

    @property
    def source(self) -> Path:
        """The file, in full."""
        return Path(self.file).expanduser().absolute()
