"""Copies of a model, one a device, and work dealt to them in turn, with its results in order.

Every device has a thread of its own that sends batches to it. What the calling thread does meanwhile (reading and
tokenizing text, handing over rows to be written) is hidden behind them. A single CPU has no such thread: it would
take a core from the model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import torch

from .forward import quiet

if TYPE_CHECKING:
    from ..model.load import LoadedModel

T = TypeVar("T")

AHEAD = 2
"""Pieces of work that a device has at a time: one that runs and one that waits, so that it never does."""


class Replicas:
    """Models with the same weights, one a device. Work is dealt to them inside a `with` block.

    Attributes:
        models: one a device, at least one.
    """

    def __init__(self, models: Sequence[LoadedModel]) -> None:
        self.models = list(models)
        self._threads: list[ThreadPoolExecutor] = []
        self._stack = ExitStack()

    @property
    def device(self) -> str:
        """What a run's record says: all devices, in order."""
        return ",".join(str(one.device) for one in self.models)

    @property
    def threaded(self) -> bool:
        """Whether work runs in threads, one for each device, and not in that of the caller."""
        return len(self.models) > 1 or self.models[0].device.type == "cuda"

    def __enter__(self) -> Replicas:
        if self.threaded:
            self._stack.enter_context(quiet())
            self._threads = [
                ThreadPoolExecutor(1, f"device-{i}", _settle_on, (one.device,))
                for i, one in enumerate(self.models)
            ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in self._threads:
            one.shutdown(wait=False, cancel_futures=True)
        # All are told first: each still ends the batch that it is at.
        for one in self._threads:
            one.shutdown()
        self._threads = []
        self._stack.close()

    def in_order(self, works: Iterable[Callable[[int], T]]) -> Iterator[T]:
        """What each of `works` returns, called with the number of the model it is dealt to, in their order.

        Up to `AHEAD` a device are begun before the first of them is asked for, and that many in all are the most
        that the caller has not come back from. Piece i goes to device i modulo their number, whatever their speed, so
        that the same work goes to the same device when it is done again. Raises what a piece raised, in its place.
        """
        begun: deque[Future[T]] = deque()
        for i, work in enumerate(works):
            if not self._threads:
                yield work(0)
                continue
            number = i % len(self.models)
            begun.append(self._threads[number].submit(work, number))
            if len(begun) == AHEAD * len(self.models):
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


def _settle_on(device: torch.device) -> None:
    """Kernels that are not torch's own run on a thread's current device, wherever their tensors are."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
