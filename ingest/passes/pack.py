"""Signs, norms and statistics of hidden states.

Those of a text's states are taken where the model runs, and only bits and norms leave the device (`Packer`).
Those of types need a mean that is known at the end only, so their floats are kept meanwhile (`types.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...catalog.codes import Codes, n_bytes
from ...catalog.errors import ModelError

_TO_TOP_BYTE = sum(1 << 63 - 9 * k for k in range(8)) - (1 << 64)
"""Times this, eight bytes of 0 or 1 in one word leave byte k as bit 7 - k of the word's top byte: 8k + 63 - 9k is
63 - k, no other product of two bits lands there, and no two land on one place, so that nothing is carried."""
_BUFFERS = 2


def pack_signs(x: torch.Tensor, centre: torch.Tensor | None = None) -> torch.Tensor:
    """Sign codes of the rows of `x`, (n, width), as uint8 (n, ceil(width / 8)) on the device of `x`.

    Bit d is 1 where x[d] > centre[d] (0 if no centre), compared in float32. See `catalog/codes.py`.
    """
    # A centre in float32 makes the comparison one in float32, without a copy of `x` where a device can cast as it reads.
    signs = x > (0 if centre is None else centre)
    if x.device.type == "cpu":
        return torch.from_numpy(np.packbits(signs.numpy(), axis=-1))
    return pack_bits(signs)


def pack_bits(signs: torch.Tensor) -> torch.Tensor:
    """`numpy.packbits` over the last axis of a bool (n, width), in torch: where an accelerator holds the signs.

    Nothing in it waits for the device.
    """
    n, width = signs.shape
    size = n_bytes(width)
    if size * 8 != width:
        signs = torch.nn.functional.pad(signs, (0, size * 8 - width))
    # A reduction over eight elements would leave most of an accelerator idle; a product of words does not.
    words = signs.reshape(-1).view(torch.uint8).view(torch.int64)
    return (words * _TO_TOP_BYTE).view(torch.uint8).view(n, size, 8)[..., 7].contiguous()


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


Centres = Mapping[str, Mapping[str, torch.Tensor | None]]
"""By site name and centre, what to subtract, (width,) float32; None for `zero`."""


@dataclass
class SiteRows:
    """What one site gave over `n` rows: norms (n,) and, by centre, codes (n, bytes)."""

    norms: NDArray[np.float32]
    codes: dict[str, Codes]


def empty_rows(n: int, widths: Mapping[str, int], centres: Centres) -> dict[str, SiteRows]:
    """Room for `n` rows at each site of `widths`."""
    return {
        site: SiteRows(
            np.empty(n, np.float32),
            {centre: np.empty((n, n_bytes(width)), np.uint8) for centre in centres[site]},
        )
        for site, width in widths.items()
    }


class Packer:
    """Takes signs and norms of hidden states on the device of a model, and brings them to the host by the batch.

    On CUDA they are copied by a stream of their own, beside what the device computes next, into one of two pinned
    buffers in turn: at most two batches may be brought that have not been used up (`Brought`).
    """

    def __init__(self, device: torch.device, centres: Centres) -> None:
        self._centres = {
            site: {centre: None if value is None else value.to(device) for centre, value in own.items()}
            for site, own in centres.items()
        }
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._buffers = [torch.empty(0, dtype=torch.uint8)] * _BUFFERS
        self._taken: dict[tuple[str, str], torch.Tensor] = {}

    def take(self, site: str, x: torch.Tensor) -> None:
        """Norms of the rows of `x`, (n, width), and their signs around each centre of `site`."""
        self._taken[site, ""] = norms_of(x)
        for centre, value in self._centres[site].items():
            self._taken[site, centre] = pack_signs(x, value)

    def bring(self) -> Brought:
        """What was taken since the last call, on its way to the host."""
        taken, self._taken = self._taken, {}
        if self._copies is None:
            return Brought({key: value.cpu() for key, value in taken.items()}, None)
        # Norms first, so that every one of them lies on a multiple of its size.
        order = sorted(taken, key=lambda key: key[1] != "")
        size = sum(taken[key].nbytes for key in order)
        buffer = self._buffers.pop(0)
        if len(buffer) < size:
            buffer = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        self._buffers.append(buffer)
        self._copies.wait_stream(torch.cuda.current_stream(self._copies.device))
        values, at = {}, 0
        with torch.cuda.stream(self._copies):
            for key in order:
                value = taken[key]
                host = buffer[at : at + value.nbytes].view(value.dtype).view(value.shape)
                host.copy_(value, non_blocking=True)
                # Its memory must not go to another tensor of the model's stream before it was read.
                value.record_stream(self._copies)
                values[key] = host
                at += value.nbytes
        return Brought(values, self._copies.record_event())


class Brought:
    """Norms and codes of one batch, in host memory once their copies are done."""

    def __init__(self, values: dict[tuple[str, str], torch.Tensor], done: torch.cuda.Event | None) -> None:
        self._values, self._done = values, done

    def wait(self) -> None:
        """Until the copies are done, and so everything before them on the device."""
        if self._done is not None:
            self._done.synchronize()

    def fill(
        self, into: Mapping[str, SiteRows], rows: NDArray[np.int64], real: NDArray[np.int64] | None
    ) -> None:
        """Put them into the given `rows`; `real` says which of the batch's positions are meant, None for all.

        Raises:
            ModelError: if a hidden state was NaN or infinite.
        """
        for (site, centre), value in self._values.items():
            found = value.numpy() if real is None else value.numpy()[real]
            if centre:
                into[site].codes[centre][rows] = found
            else:
                check_norms(found, site)
                into[site].norms[rows] = found


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
