"""Batches: which windows go through the model together, and where their states end up."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from ..catalog.errors import ModelError
from .pack import Collector

if TYPE_CHECKING:
    from .model import LoadedModel
    from .sites import Site

Ids = NDArray[np.int32]


@dataclass
class Clock:
    """Seconds in the model and seconds taking and packing signs, so far."""

    forward_s: float = 0.0
    pack_s: float = 0.0


@contextmanager
def one_pass(positions: int) -> Iterator[None]:
    """Around a pass over so many positions: no log lines of transformers, and a way out if memory is too small.

    Raises:
        ModelError: in place of what torch raises when it cannot allocate.
    """
    log = transformers.utils.logging
    level = log.get_verbosity()
    # Some architectures warn of a padding token in a row without a mask: here it stands for itself.
    log.set_verbosity_error()
    try:
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
    finally:
        log.set_verbosity(level)


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


def run_batch(
    model: LoadedModel,
    windows: Sequence[Ids],
    starts: Sequence[int],
    sites: Sequence[Site],
    collector: Collector,
    clock: Clock,
) -> None:
    """One pass over `windows`, whose states go to the collector's rows from `starts` on, a row a position."""
    lengths = [len(one) for one in windows]
    longest = max(lengths)
    padded = min(lengths) < longest
    ids = torch.zeros((len(windows), longest), dtype=torch.int64)
    for i, one in enumerate(windows):
        ids[i, : len(one)] = torch.from_numpy(one.astype(np.int64))
    rows = np.concatenate([np.arange(start, start + n) for start, n in zip(starts, lengths, strict=True)])
    real = (torch.arange(longest)[None] < torch.tensor(lengths)[:, None]).flatten().nonzero().flatten()
    real = real.to(model.device) if padded else real
    started = time.perf_counter()
    packing = 0.0

    def sink(site: Site, x: torch.Tensor) -> None:
        nonlocal packing
        begun = time.perf_counter()
        flat = x.reshape(-1, x.shape[-1])
        collector.take(site.name, flat.index_select(0, real) if padded else flat, rows)
        packing += time.perf_counter() - begun

    with one_pass(ids.numel()):
        model.forward(ids, lengths if padded else None, sites, sink)  # type: ignore[arg-type]
    begun = time.perf_counter()
    collector.end_batch()
    packing += time.perf_counter() - begun
    clock.pack_s += packing
    clock.forward_s += time.perf_counter() - started - packing
