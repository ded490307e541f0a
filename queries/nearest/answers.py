"""What a search answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .subject import Place, Target

if TYPE_CHECKING:
    import pyarrow as pa

    from ..rotations.stored import RotationFigures


@dataclass(frozen=True)
class Carried:
    """The rotation that a query of another model was carried through; `signs_alone`: from its code, without its floats."""

    rotation: RotationFigures
    signs_alone: bool
    first: bool = False
    """Whether it stands at a first position, which no rotation is fitted on."""


@dataclass(frozen=True)
class Answer:
    """Rows ordered by (distance, item): rank, distance in bits, and the columns of the view searched.

    Features are ordered by agreement instead, a column of its own: each registers another number of dimensions. Where a
    neuron is on either side, `polarity` follows the distance: -1 where it is the opposite of the neuron that is so near (the
    signs that a feature expects are then `feature_polarity`).
    """

    target: Target
    table: pa.Table
    searched: int
    recall: float | None = None
    query: str | None = None
    """Of a free text, the token that was searched; of what has its own place, what it is."""
    place: Place | None = None
    """Where the query was looked up, if that is not where the codes searched lie."""
    across: Carried | None = None
    """How the query came from another model."""
    raises: tuple[str, ...] = ()
    """Of the first neurons in the answer, the tokens that each raises most in its polarity."""
    turned: bool = False
    """Whether either polarity counted. A feature's expected signs, where it did not, are a column `polarity` too."""
