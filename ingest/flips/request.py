"""What is asked of `flip`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...catalog.errors import InvalidInput, option


@dataclass(frozen=True)
class FlipRequest:
    """Flip one feature over a text.

    Attributes:
        text: paths of files or folders.
        windows: how many windows of the text are measured on, at most.
        context: tokens of a window, at most.
        seed: of all that is drawn.
        column: the field or column of a record that is its text.

    Raises:
        InvalidInput: if a number is out of range.
    """

    feature_id: int
    text: str | Path | Sequence[str | Path]
    windows: int = 32
    context: int = 128
    device: str = "auto"
    seed: int = 0
    column: str = "text"

    def __post_init__(self) -> None:
        if self.windows < 1 or self.context < 2:
            raise InvalidInput(f"{option('windows')} must be positive, and {option('context')} at least 2")
