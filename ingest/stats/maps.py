"""Maps from A's states to B's and back, as every reader of a rotation uses them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rotation:
    """x_b ~ (x_a - mean_a) R + mean_b for rows x, with R orthogonal.

    `matrix` is [width, width], means and standard deviations (over the rows that it was fitted on) [width], all
    float64 on one device.
    """

    matrix: Tensor
    mean_a: Tensor
    mean_b: Tensor
    std_a: Tensor
    std_b: Tensor

    def to_b(self, a: Tensor) -> Tensor:
        """States of A, [n, width], in B's basis about B's mean."""
        return (a - self.mean_a) @ self.matrix + self.mean_b

    def to_a(self, b: Tensor) -> Tensor:
        """States of B, [n, width], in A's basis about A's mean."""
        return (b - self.mean_b) @ self.matrix.T + self.mean_a

    def direction_to_b(self, v: Tensor) -> Tensor:
        """Row vectors of A, [..., width], such as a steering direction, in B's basis: no mean is moved."""
        return v @ self.matrix
