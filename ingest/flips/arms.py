"""The arms of a flip: what each does to the residual stream, at which dose and at which norm.

Bag of Dims, section 10, has the first four, at one dose each and at whatever norm comes out. A push that is as large
is the plainest rival explanation of what a flip does, so here the norm of every change is known, and arms are
compared at the same one, position by position.

h is a state, c the centre of the feature, x = h - c, pi the expected signs on the registered dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..stats.bases import haar

DOSES = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Shares of the registered dimensions that are flipped (of the push, for a difference of means taken out)."""
ARMS = ("away", "toward", "random", "disjoint", "rotated", "mean_difference")
ROTATION = 1
"""Seed of the Haar basis: the first that the stage features reads in."""


@dataclass(frozen=True, eq=False)
class Pattern:
    """Dimensions (k,) in the order in which a dose takes them, and the sign, 1 or -1, that each should have (k,)."""

    dims: Tensor
    signs: Tensor

    @classmethod
    def of(
        cls, mask: NDArray[np.bool_], polarity: NDArray[np.bool_], generator: np.random.Generator
    ) -> Pattern:
        """`mask` and `polarity` are (width,); the order is random."""
        dims = generator.permutation(np.flatnonzero(mask))
        return cls(torch.from_numpy(dims), torch.from_numpy(np.where(polarity[dims], 1.0, -1.0)).float())

    @classmethod
    def random(cls, width: int, n_dims: int, generator: np.random.Generator) -> Pattern:
        """`n_dims` of all dimensions, without expectations."""
        dims = torch.from_numpy(generator.permutation(width)[:n_dims])
        return cls(dims, torch.ones(n_dims))

    def __len__(self) -> int:
        return len(self.dims)

    def count(self, dose: float) -> int:
        """Dimensions that a dose takes: its share, at least one."""
        return max(1, round(dose * len(self)))

    def dosed(self, dose: float) -> Pattern:
        """The first of them: a dose holds all smaller ones."""
        n = self.count(dose)
        return Pattern(self.dims[:n], self.signs[:n])

    def to(self, device: torch.device) -> Pattern:
        """On another device."""
        return Pattern(self.dims.to(device), self.signs.to(device))


# ---- changes of h [..., width]; each gives the changed state --------------------------------------


def set_signs(h: Tensor, centre: Tensor, pattern: Pattern, sign: int) -> Tensor:
    """x_d <- sign pi_d |x_d| on the pattern: `sign` is 1 for toward, -1 for away. `centre` is (width,)."""
    return _set(h, pattern.dims, centre, lambda x: sign * pattern.signs * x.abs())


def turn(h: Tensor, centre: Tensor, pattern: Pattern) -> Tensor:
    """x_d <- -x_d on the pattern's dimensions, whatever their signs."""
    return _set(h, pattern.dims, centre, lambda x: -x)


def _set(h: Tensor, dims: Tensor, centre: Tensor, change) -> Tensor:  # type: ignore[no-untyped-def]
    changed = h.clone()
    changed[..., dims] = centre[dims] + change(h[..., dims] - centre[dims])
    return changed


def push(h: Tensor, unit: Tensor, norms: Tensor) -> Tensor:
    """h - norm u, for u of length 1 (width,) and norms of shape [...]."""
    return h - norms[..., None] * unit


def take_out(h: Tensor, others: Tensor, unit: Tensor, dose: float) -> Tensor:
    """h less the share `dose` of the component of h - others along u; `others` and u are (width,)."""
    return h - dose * ((h - others) @ unit)[..., None] * unit


def at_norms(h: Tensor, changed: Tensor, norms: Tensor) -> Tensor:
    """The same change scaled to `norms` [...]; where it is zero it stays so."""
    delta = changed - h
    own = norm_of(delta)
    factor = torch.where(own > 0, norms / own.clamp_min(torch.finfo(own.dtype).tiny), torch.zeros_like(own))
    return h + factor[..., None] * delta


def norm_of(delta: Tensor) -> Tensor:
    """Euclidean norms [...] of changes [..., width]."""
    return torch.linalg.vector_norm(delta, dim=-1)


# ---- directions -----------------------------------------------------------------------------------


def rotated_direction(own: Tensor, others: Tensor, centre: Tensor | None, n_dims: int) -> Tensor:
    """The feature's push read in a Haar basis Q and mapped back, of length 1: u = Q pi / |pi| (width,).

    `own` (n, width) are the states of the feature's words as types, `others` (m, width) those of other types. Of the
    turned, centred coordinates the `n_dims` whose signs tell the two apart best are registered, as a prototype is made
    in the standard basis. (A rotation of the expected signs themselves would be a random direction, which has nothing to
    do with the words: the arm random is that already.)
    """
    q = haar(own.shape[-1], ROTATION).to(own.device)
    shares = []
    for states in (own, others):
        x = states if centre is None else states - centre
        shares.append(((x @ q) > 0).double().mean(0))
    apart = shares[0] - shares[1]
    # Equals by the lower dimension, as everywhere.
    chosen = torch.argsort(-apart.abs(), stable=True)[:n_dims]
    signs = torch.where(apart[chosen] > 0, 1.0, -1.0)
    return q[:, chosen] @ signs / len(chosen) ** 0.5


@dataclass(frozen=True, eq=False)
class Means:
    """Mean states over the text that fits, positions > 0, float32 (width,): all of them, at the feature's own tokens and
    at the others. Counts of both."""

    text: Tensor
    own: Tensor
    others: Tensor
    n_own: int
    n_others: int

    @property
    def length(self) -> float:
        """Euclidean norm of the difference of means; 0 if one of the two is missing, or is no number."""
        length = float(norm_of(self.own - self.others)) if self.n_own and self.n_others else 0.0
        return length if math.isfinite(length) else 0.0

    @property
    def unit(self) -> Tensor:
        """The difference of means at length 1."""
        return (self.own - self.others) / self.length


# ---- one site -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Arms:
    """Everything that the arms need at one site; on the model's device.

    `disjoint` and `difference` are None where there is no other feature, or no difference of means.
    """

    centre: Tensor
    feature: Pattern
    random: Pattern
    disjoint: Pattern | None
    rotated: Tensor
    difference: Tensor | None
    others: Tensor

    def has(self, arm: str) -> bool:
        """Whether the arm can be run."""
        return {"disjoint": self.disjoint, "mean_difference": self.difference}.get(arm, self) is not None

    def key(self, arm: str, dose: float, at_norm: str) -> tuple[object, ...]:
        """Equal for what changes states alike: a feature of few dimensions has fewer than five doses."""
        own: object = dose
        if arm in ("away", "toward"):
            own = self.feature.count(dose)
        elif arm == "random":
            own = self.random.count(dose)
        elif arm == "disjoint" and self.disjoint is not None:
            own = self.disjoint.count(dose)
        elif at_norm == "away":
            own = 0
        # Doses below 1 are measured on fewer windows.
        return (arm, at_norm, own, self.feature.count(dose) if at_norm == "away" else 0, dose == 1)

    def changed(self, h: Tensor, arm: str, dose: float, at_norm: str) -> Tensor:
        """`h` [..., position, width], float32, as the arm leaves it."""
        if at_norm == "away":
            away = set_signs(h, self.centre, self.feature.dosed(dose), -1)
            norms = norm_of(away - h)
            if arm == "rotated":
                return push(h, self.rotated, norms)
            if arm == "mean_difference":
                assert self.difference is not None
                return push(h, self.difference, norms)
            return at_norms(h, self.changed(h, arm, dose, "own"), norms)
        if arm in ("away", "toward"):
            return set_signs(h, self.centre, self.feature.dosed(dose), -1 if arm == "away" else 1)
        if arm == "random":
            return turn(h, self.centre, self.random.dosed(dose))
        if arm == "disjoint":
            assert self.disjoint is not None
            return set_signs(h, self.centre, self.disjoint.dosed(dose), -1)
        assert arm == "mean_difference" and self.difference is not None
        changed = take_out(h, self.others, self.difference, dose)
        # The means are of later positions: a hundred times as long, a first one has a component that means nothing.
        changed[..., 0, :] = h[..., 0, :]
        return changed
