"""Batches: which windows go through the model together, and where their states end up."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from ...catalog.errors import ModelError
from .pack import Brought, Centres, Packer, SiteRows, empty_rows

if TYPE_CHECKING:
    from ..model.load import LoadedModel
    from ..model.sites import Site

Ids = NDArray[np.int32]


@dataclass
class Clock:
    """Seconds in the model and seconds taking and packing signs, so far.

    They are the device's own, whether or not something else went on beside them: with several devices, or with
    the host at work meanwhile, they may add up to more than the time that passed.
    """

    forward_s: float = 0.0
    pack_s: float = 0.0

    def add(self, other: Clock) -> None:
        """Count what another clock counted."""
        self.forward_s += other.forward_s
        self.pack_s += other.pack_s


Mark = float | torch.cuda.Event


def mark(device: torch.device) -> Mark:
    """This moment in the work of `device`: on CUDA when it comes to this place, not when it is told to."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def seconds(a: Mark, b: Mark) -> float:
    """From mark `a` to mark `b` of one device, which must have passed both."""
    if isinstance(a, float) and isinstance(b, float):
        return b - a
    return a.elapsed_time(b) / 1e3  # type: ignore[union-attr,arg-type]


@contextmanager
def quiet() -> Iterator[None]:
    """No log lines of transformers. It is one setting for all threads: who starts some is quiet around all of them."""
    log = transformers.utils.logging
    level = log.get_verbosity()
    # Some architectures warn of a padding token in a row without a mask: here it stands for itself.
    log.set_verbosity_error()
    try:
        yield
    finally:
        log.set_verbosity(level)


@contextmanager
def one_pass(positions: int) -> Iterator[None]:
    """Around a pass over so many positions: no log lines of transformers, and a way out if memory is too small.

    Raises:
        ModelError: in place of what torch raises when it cannot allocate.
    """
    try:
        with quiet():
            yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        # On a CPU torch has no class of its own for it.
        if not known and "allocate memory" not in str(error):
            raise
        raise ModelError(
            f"a batch of {positions:,} positions does not fit into memory",
            "pass a smaller --batch-tokens, or fewer --sites",
        ) from error


def default_batch_tokens(device: torch.device) -> int:
    """Positions of a batch: enough to fill the device, few enough for a laptop's memory."""
    return 2048 if device.type == "cpu" else 16_384


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Split windows, by index, into batches of similar length with at most `batch_tokens` padded positions.

    The longest come first, so that what does not fit in memory shows at once. A window longer than
    `batch_tokens` is a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


class Pass:
    """Windows that have gone, or are going, through the model: `settle` waits for their signs and norms."""

    def __init__(
        self,
        brought: Brought,
        starts: Sequence[int],
        lengths: Sequence[int],
        marks: tuple[Mark, Mark],
        packing: Sequence[tuple[Mark, Mark]],
    ) -> None:
        self._brought, self._starts, self._lengths = brought, starts, lengths
        self._marks, self._packing = marks, packing

    def settle(self, into: Mapping[str, SiteRows]) -> Clock:
        """Put the states of window i, a row a position, into the rows from `starts[i]` on; what all of it took.

        Raises:
            ModelError: if a hidden state was NaN or infinite.
        """
        self._brought.wait()
        begun = time.perf_counter()
        lengths = np.array(self._lengths)
        longest = int(lengths.max())
        places = np.arange(longest)
        rows = (np.array(self._starts)[:, None] + places).ravel()
        real = None
        if (lengths < longest).any():
            real = np.flatnonzero(places < lengths[:, None])
            rows = rows[real]
        self._brought.fill(into, rows, real)
        packing = sum(seconds(a, b) for a, b in self._packing)
        return Clock(seconds(*self._marks) - packing, packing + time.perf_counter() - begun)


def begin_pass(
    model: LoadedModel, packer: Packer, windows: Sequence[Ids], starts: Sequence[int], sites: Sequence[Site]
) -> Pass:
    """Send `windows` through the model together; on CUDA this does not wait for it."""
    lengths = [len(one) for one in windows]
    longest = max(lengths)
    cuda = model.device.type == "cuda"
    # Out of pinned memory the device fetches them when it comes to them.
    ids = torch.zeros((len(windows), longest), dtype=torch.int64, pin_memory=cuda)
    for i, one in enumerate(windows):
        ids[i, : len(one)] = torch.from_numpy(one.astype(np.int64))
    packing: list[tuple[Mark, Mark]] = []

    def sink(site: Site, x: torch.Tensor) -> None:
        begun = mark(model.device)
        # Signs of padding are dropped on the host, where they are few bytes.
        packer.take(site.name, x.reshape(-1, x.shape[-1]))
        packing.append((begun, mark(model.device)))

    begun = mark(model.device)
    with one_pass(ids.numel()):
        model.forward(ids, lengths if min(lengths) < longest else None, sites, sink)  # type: ignore[arg-type]
    ended = mark(model.device)
    return Pass(packer.bring(), starts, lengths, (begun, ended), packing)


def signs_of(
    model: LoadedModel, windows: Sequence[Ids], sites: Sequence[Site], centres: Centres, batch_tokens: int
) -> dict[str, SiteRows]:
    """By site name, norms and codes of every position of `windows`, in their order.

    Raises:
        ModelError: if a hidden state was NaN or infinite.
    """
    lengths = [len(one) for one in windows]
    starts = np.cumsum([0, *lengths])
    rows = empty_rows(int(starts[-1]), {one.name: model.width_of(one) for one in sites}, centres)
    packer = Packer(model.device, centres)
    for batch in batches(lengths, batch_tokens):
        begin_pass(model, packer, [windows[i] for i in batch], [int(starts[i]) for i in batch], sites).settle(
            rows
        )
    return rows
