"""States of the same tokens in two models at one site, and the split of their documents.

Rows are tokens, in the order first half of the fit, second half, validation, test, so that each part is one slice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK_BYTES = 64 << 20
"""Of a block of rows of one model in float64."""


@dataclass(frozen=True, eq=False)
class Paired:
    """States of the same n tokens in models A and B.

    `a` and `b` are [n, width] on the host, in the float type of their model, perhaps mapped from a file. `halves`,
    `validation` and `test` are consecutive slices of rows that share no document. `token_ids` and `documents` are
    int64 (n,), documents numbered from 0, as are `positions` in the document. Blocks go to `device`.
    """

    a: Tensor
    b: Tensor
    halves: tuple[slice, slice]
    validation: slice
    test: slice
    token_ids: NDArray[np.int64]
    documents: NDArray[np.int64]
    positions: NDArray[np.int64]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    groups: NDArray[np.int64] | None = None
    """What hangs together, (n,): the sources where documents were parted by source. None: each document for itself."""
    rows: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    """Which rows of `a` and `b` stand for this one's, each (n,), if not all in their order."""

    @property
    def width(self) -> int:
        """d_model."""
        return int(self.a.shape[1])

    @property
    def clusters(self) -> NDArray[np.int64]:
        """What errors are taken over, (n,): `groups`, else documents."""
        return self.documents if self.groups is None else self.groups

    @property
    def fit(self) -> slice:
        """Rows of both halves."""
        return slice(self.halves[0].start, self.halves[1].stop)

    def swapped(self) -> Paired:
        """B in A's place."""
        return Paired(
            self.b, self.a, self.halves, self.validation, self.test, self.token_ids, self.documents, self.positions,
            self.device, self.groups, None if self.rows is None else self.rows[::-1],
        )  # fmt: skip

    def blocks(
        self, rows: slice, dtype: torch.dtype = torch.float64
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(rows, a, b) of some consecutive rows at a time, on `device`."""
        size = max(1, BLOCK_BYTES // (8 * self.width))
        for start in range(rows.start, rows.stop, size):
            some = slice(start, min(rows.stop, start + size))
            both = [self.a[some], self.b[some]] if self.rows is None else [
                x[torch.from_numpy(rows[some])] for x, rows in zip((self.a, self.b), self.rows, strict=True)
            ]  # fmt: skip
            yield some, both[0].to(self.device, dtype), both[1].to(self.device, dtype)


def n_rows(rows: slice) -> int:
    """How many rows a slice of `Paired` has."""
    return int(rows.stop - rows.start)
