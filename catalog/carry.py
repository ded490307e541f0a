"""Carrying codes from one model to another through a rotation: x_b ~ (x_a - mean_a) R + mean_b for rows x.

A stored code has lost the size of each dimension. What is carried in its place is the mean that the dimension has on
that side of its centre, if it is normal with the mean and standard deviation of the rotation's fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from .codes import Codes, pack, unpack
from .errors import InvalidInput

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_DIRECT = 30.0
"""Up to here `erfc` is far from underflow; beyond it the continued fraction needs few terms."""
_TERMS = 12
PARTS = ("matrix", "mean_a", "mean_b", "std_a", "std_b")
"""What a stored rotation is made of: BLOBs of the view `rotations`."""


Array = TypeVar("Array", bound=Any)
Other = TypeVar("Other", bound=Any)


@dataclass(frozen=True, eq=False)
class Rotation(Generic[Array]):
    """The map from A's states to B's at one site: x_b ~ (x_a - mean_a) R + mean_b for rows x, with R orthogonal.

    `matrix` is R, (width, width); means and standard deviations, over the tokens that it was fitted on, are (width,). All
    are numpy arrays, or all torch tensors of one float type on one device: float32 as stored, float64 as fitted.

    Raises:
        InvalidInput: if the shapes do not belong together.
    """

    matrix: Array
    mean_a: Array
    mean_b: Array
    std_a: Array
    std_b: Array

    def __post_init__(self) -> None:
        if self.matrix.ndim != 2 or self.matrix.shape[0] != self.matrix.shape[1]:
            raise InvalidInput(f"a rotation of shape {tuple(self.matrix.shape)} is not square")
        for name in PARTS[1:]:
            if (shape := tuple(getattr(self, name).shape)) != (self.width,):
                raise InvalidInput(f"{name} of shape {shape} is not of width {self.width}")

    @property
    def width(self) -> int:
        """Dimensions of both models."""
        return len(self.matrix)

    @property
    def inverse(self) -> Rotation[Array]:
        """From B to A."""
        return Rotation(self.matrix.T, self.mean_b, self.mean_a, self.std_b, self.std_a)

    def to_b(self, a: Array) -> Array:
        """States of A, (..., width), in B's basis about B's mean."""
        return self.direction_to_b(a - self.mean_a) + self.mean_b

    def to_a(self, b: Array) -> Array:
        """States of B, (..., width), in A's basis about A's mean."""
        return (b - self.mean_b) @ self.matrix.T + self.mean_a

    def direction_to_b(self, v: Array) -> Array:
        """Row vectors of A, (..., width), such as a steering direction, in B's basis: no mean is moved."""
        return v @ self.matrix

    def each(self, change: Callable[[Array], Other]) -> Rotation[Other]:
        """The same map, its matrix and vectors as `change` gives them: in another float type, on another device."""
        return Rotation(*(change(getattr(self, name)) for name in PARTS))

    @classmethod
    def from_blobs(
        cls, width: int, matrix: bytes, mean_a: bytes, mean_b: bytes, std_a: bytes, std_b: bytes
    ) -> Rotation[NDArray[np.float32]]:
        """From the BLOBs of the view `rotations`: float32, little-endian, row-major.

        Raises:
            InvalidInput: if one of them has another length.
        """
        parts = []
        for blob, n in ((matrix, width * width), *((one, width) for one in (mean_a, mean_b, std_a, std_b))):
            if len(blob) != 4 * n:
                raise InvalidInput(
                    f"a stored rotation of width {width} has {len(blob)} bytes where {4 * n} belong",
                    "run `signarium db verify`",
                )
            parts.append(np.frombuffer(blob, "<f4").astype(np.float32, copy=False))
        return Rotation(parts[0].reshape(width, width), *parts[1:])


Stored = Rotation[NDArray[np.float32]]
"""A rotation as the catalogue keeps it."""


def _hazard(z: Floats) -> Floats:
    """phi(z) / (1 - Phi(z)) of the standard normal, (n,): what a normal beyond z is in the mean.

    Beyond `_DIRECT` by the continued fraction z + 1/(z + 2/(z + 3/(z + ...))) (Abramowitz and Stegun 26.2.14).
    """
    found = np.empty(len(z))
    far = z > _DIRECT
    for i in np.flatnonzero(~far):
        at = float(z[i])
        found[i] = math.exp(-at * at / 2) / math.sqrt(2 * math.pi) / (math.erfc(at / math.sqrt(2)) / 2)
    tail = z[far]
    rest = tail.copy()
    for k in range(_TERMS, 0, -1):
        rest = tail + k / rest
    found[far] = rest
    return found


def sides(mean: NDArray[Any], std: NDArray[Any], centre: NDArray[Any] | None = None) -> tuple[Floats, Floats]:
    """What each dimension is in the mean below and above its centre (zero if None), each (width,).

    E[x | x > c] = mu + s phi(z) / (1 - Phi(z)) and E[x | x < c] = mu - s phi(z) / Phi(z) with z = (c - mu) / s, for a
    normal x. A dimension that does not vary is its mean, or the centre where the mean is on the other side.

    Raises:
        InvalidInput: if a figure is not finite or a deviation negative.
    """
    mu, s = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    c = np.zeros_like(mu) if centre is None else np.asarray(centre, np.float64)
    if mu.shape != s.shape or mu.shape != c.shape or mu.ndim != 1:
        raise InvalidInput(f"means {mu.shape}, deviations {s.shape} and centres {c.shape} do not match")
    if not (np.isfinite(mu).all() and np.isfinite(s).all() and np.isfinite(c).all()) or (s < 0).any():
        raise InvalidInput("a mean, deviation or centre is no finite number", "run `signarium db verify`")
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # Where s is nothing beside the way to the centre, z only says which side that is.
        z = np.clip(np.where(s > 0, (c - mu) / s, np.sign(c - mu) * np.inf), -1e150, 1e150)
    z = np.nan_to_num(z)
    # Of a dimension that never is on this side, rounding must not put it back on the other.
    above = np.maximum(mu + s * _hazard(z), np.maximum(mu, c))
    below = np.minimum(mu - s * _hazard(-z), np.minimum(mu, c))
    far = np.abs(z) > 1e8
    above[far], below[far] = np.maximum(mu, c)[far], np.minimum(mu, c)[far]
    return below, above


def expected_floats(codes: Codes, rotation: Stored, centre: NDArray[Any] | None = None) -> Floats:
    """A's states in the mean, given their codes about `centre` (zero if None): (..., bytes) to (..., width)."""
    below, above = sides(rotation.mean_a, rotation.std_a, centre)
    return np.where(unpack(codes, rotation.width) == 1, above, below)


def carry_floats(x: NDArray[Any], rotation: Stored) -> Floats:
    """States of A, (..., width), in B's basis about B's mean, in float64.

    Raises:
        InvalidInput: if they have another width.
    """
    x = np.asarray(x, np.float64)
    _check(x, rotation)
    return _wide(rotation).to_b(x)


def carry_direction(v: NDArray[Any], rotation: Stored) -> Floats:
    """Directions of A, (..., width), in B's basis, in float64: no mean is moved.

    Raises:
        InvalidInput: if they have another width.
    """
    v = np.asarray(v, np.float64)
    _check(v, rotation)
    return _wide(rotation).direction_to_b(v)


def _wide(rotation: Stored) -> Rotation[Floats]:
    return rotation.each(lambda x: x.astype(np.float64))


def _check(x: Floats, rotation: Stored) -> None:
    if x.shape[-1:] != (rotation.width,):
        raise InvalidInput(
            f"vectors of shape {x.shape} cannot be carried by a rotation of width {rotation.width}"
        )


def pack_about(x: Floats, centre: NDArray[Any] | None = None) -> Codes:
    """Sign codes of `x`, (..., width), about `centre` (zero if None), as the catalogue packs them."""
    return pack(x if centre is None else x - np.asarray(centre, np.float64))


def carry_code(
    code: Codes,
    rotation: Stored,
    centre_a: NDArray[Any] | None = None,
    centre_b: NDArray[Any] | None = None,
) -> Codes:
    """One code of A, (bytes,), as a code of B: its expected floats carried, their signs taken about B's centre."""
    return pack_about(carry_floats(expected_floats(code, rotation, centre_a), rotation), centre_b)


def carry_signs(code: Codes, rotation: Stored) -> Floats:
    """The direction that a sign code of A stands for, in B's basis, (width,): each sign times that dimension's spread."""
    signs = 2.0 * unpack(code, rotation.width) - 1.0
    return carry_direction(signs * rotation.std_a, rotation)


def carry_pattern(mask: Codes, polarity: Codes, rotation: Stored) -> tuple[Codes, Codes]:
    """One feature's registered dimensions and signs, each (bytes,), in B: mask and polarity; see `carry_patterns`."""
    masks, signs = (unpack(one, rotation.width).astype(np.bool_)[None] for one in (mask, polarity))
    matrix = _wide(rotation).matrix
    kept, positive = carry_patterns(masks, signs, matrix, rotation.std_a, rotation.std_b)
    return np.packbits(kept[0]), np.packbits(positive[0])


def carry_patterns(
    mask: Bools, polarity: Bools, matrix: Floats, std_a: NDArray[Any], std_b: NDArray[Any]
) -> tuple[Bools, Bools]:
    """Registered dimensions and signs of features, each (features, width), in B: masks and polarities.

    Of each feature the direction mask * sign * `std_a` is carried by `matrix`; of B's dimensions as many are kept as the
    feature had, the largest beside their `std_b` first (ties by number; a dimension that does not vary last), with the
    signs that they have.
    """
    value = (mask * np.where(polarity, 1.0, -1.0) * std_a) @ matrix
    size = np.divide(np.abs(value), std_b, out=np.full(value.shape, -1.0), where=std_b > 0, dtype=np.float64)
    order = np.argsort(-size, axis=1, kind="stable")
    kept = np.zeros_like(mask)
    np.put_along_axis(kept, order, np.arange(mask.shape[1]) < mask.sum(1)[:, None], axis=1)
    return kept, kept & (value > 0)
