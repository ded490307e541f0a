"""Signs, norms and statistics of hidden states.

Those of a text's states are taken where the model runs, and only bits and norms leave the device (`Collector`).
Those of types need a mean that is known at the end only, so their floats are kept meanwhile (`types.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..catalog.codes import Codes, n_bytes
from ..catalog.errors import ModelError

_WEIGHTS = (128, 64, 32, 16, 8, 4, 2, 1)


def pack_signs(x: torch.Tensor, centre: torch.Tensor | None = None) -> torch.Tensor:
    """Sign codes of the rows of `x`, (n, width), as uint8 (n, ceil(width / 8)) on the device of `x`.

    Bit d is 1 where x[d] > centre[d] (0 if no centre), compared in float32. See `catalog/codes.py`.
    """
    signs = x > 0 if centre is None else x.float() > centre
    if x.device.type == "cpu":
        return torch.from_numpy(np.packbits(signs.numpy(), axis=-1))
    return pack_bits(signs)


def pack_bits(signs: torch.Tensor) -> torch.Tensor:
    """`numpy.packbits` over the last axis of a bool (n, width), in torch: where an accelerator holds the signs."""
    n, width = signs.shape
    size = n_bytes(width)
    if size * 8 != width:
        signs = torch.nn.functional.pad(signs, (0, size * 8 - width))
    weights = torch.tensor(_WEIGHTS, dtype=torch.uint8, device=signs.device)
    return (signs.reshape(n, size, 8) * weights).sum(-1, dtype=torch.uint8)


def norms_of(x: torch.Tensor) -> torch.Tensor:
    """Euclidean norms of the rows of `x`, (n, width), as float32 (n,)."""
    return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)


def check_norms(norms: NDArray[np.float32], where: str) -> None:
    """Raise ModelError if a norm is NaN or infinite: then its vector is, and has no sign code."""
    if not np.isfinite(norms).all():
        raise ModelError(
            f"the model's hidden states at {where} hold NaN or infinity",
            "try --dtype float32; if it stays, the weights are broken",
        )


@dataclass
class SiteRows:
    """What one site gave over a shard of `n` rows: norms (n,) and, by centre, codes (n, bytes)."""

    norms: NDArray[np.float32]
    codes: dict[str, Codes]


class Collector:
    """Takes hidden states batch by batch and fills the rows of one shard.

    On an accelerator the copies of a batch run while the next batch computes; `close` waits for the last.

    Args:
        n: rows of the shard.
        widths: width of each site, by name.
        centres: by site name and centre, what to subtract (None for `zero`), on the model's device.
    """

    def __init__(
        self, n: int, widths: dict[str, int], centres: dict[str, dict[str, torch.Tensor | None]]
    ) -> None:
        self._centres = centres
        self.rows = {
            site: SiteRows(
                np.empty(n, np.float32),
                {centre: np.empty((n, n_bytes(width)), np.uint8) for centre in centres[site]},
            )
            for site, width in widths.items()
        }
        self._copies: list[tuple[torch.cuda.Event, list[Callable[[], None]]]] = []
        self._open: list[Callable[[], None]] = []

    def take(self, site: str, x: torch.Tensor, rows: NDArray[np.int64]) -> None:
        """Signs and norms of `x`, (len(rows), width), for the given `rows` of the shard."""
        into = self.rows[site]
        self._store(norms_of(x), into.norms, rows)
        for centre, value in self._centres[site].items():
            self._store(pack_signs(x, value), into.codes[centre], rows)

    def _store(self, value: torch.Tensor, into: NDArray[np.generic], rows: NDArray[np.int64]) -> None:
        if value.device.type == "cpu":
            into[rows] = value.numpy()
            return
        if value.device.type != "cuda":
            into[rows] = value.cpu().numpy()
            return
        host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        host.copy_(value, non_blocking=True)
        self._open.append(lambda: into.__setitem__(rows, host.numpy()))

    def end_batch(self) -> None:
        """Say that a batch has been queued; rows of the batch before it are filled in."""
        if not self._open:
            return
        event = torch.cuda.Event()
        event.record()
        self._copies.append((event, self._open))
        self._open = []
        if len(self._copies) > 1:
            self._drain(1)

    def close(self) -> dict[str, SiteRows]:
        """Wait for all copies; the rows by site, checked for NaN.

        Raises:
            ModelError: if a hidden state was NaN or infinite.
        """
        self._drain(0)
        for site, rows in self.rows.items():
            check_norms(rows.norms, site)
        return self.rows

    def _drain(self, keep: int) -> None:
        while len(self._copies) > keep:
            event, stores = self._copies.pop(0)
            event.synchronize()
            for store in stores:
                store()


@dataclass
class Statistics:
    """Sums over rows of one site, mergeable: everything that `dimensions` needs. Arrays are (width,)."""

    n: int
    total: NDArray[np.float64]
    squares: NDArray[np.float64]
    """Squared deviations from this part's own mean."""
    positive: NDArray[np.int64]
    largest: NDArray[np.int64]
    smallest: NDArray[np.int64]

    @classmethod
    def of(cls, x: torch.Tensor) -> Statistics:
        """Statistics of the rows of `x`, (n, width); sums in float64."""
        n, width = x.shape
        wide = x.double()
        total = wide.sum(0)
        squares = (wide - total / n).square_().sum(0)
        largest = torch.bincount(x.argmax(1), minlength=width)
        smallest = torch.bincount(x.argmin(1), minlength=width)
        arrays = [one.cpu().numpy() for one in (total, squares, (x > 0).sum(0), largest, smallest)]
        return cls(n, *arrays)

    def merge(self, other: Statistics) -> Statistics:
        """Statistics of both parts together (Chan, Golub and LeVeque 1983 for the squares)."""
        n = self.n + other.n
        apart = other.total / other.n - self.total / self.n
        squares = self.squares + other.squares + apart**2 * (self.n * other.n / n)
        return Statistics(
            n,
            self.total + other.total,
            squares,
            self.positive + other.positive,
            self.largest + other.largest,
            self.smallest + other.smallest,
        )

    def columns(self) -> dict[str, NDArray[np.float64]]:
        """The columns of the view `dimensions`, each (width,); entropy in bits, std with n in the denominator."""
        p = self.positive / self.n
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = -(np.nan_to_num(p * np.log2(p)) + np.nan_to_num((1 - p) * np.log2(1 - p)))
        return {
            "p_positive": p,
            "entropy": entropy + 0.0,
            "mean": self.total / self.n,
            "std": np.sqrt(self.squares / self.n),
            "argmax_share": self.largest / self.n,
            "argmin_share": self.smallest / self.n,
        }
