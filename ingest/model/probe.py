"""Watching one pass: what every module takes in and gives out, and what goes into caches and attention.

Nothing here knows a model by its name, or what a site is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.cache_utils import Cache, DynamicLayer

from ...catalog.errors import SiteError

# ---- the ways a pass shows its tensors ----------------------------------------------------------


class RecordingCache(Cache):
    """A cache that keeps nothing and shows what it is given.

    `update` passes keys and values, [batch, kv head, position, head_dim], to `seen(layer, key, value)` and
    returns them as they are, so attention runs as in a first pass and no sliding window crops them.
    """

    def __init__(self, seen: Callable[[int, Tensor, Tensor], None] | None = None) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self._seen = seen

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Shows keys and values and returns them."""
        if self._seen is not None:
            self._seen(layer_idx, key_states, value_states)
        return key_states, value_states


def cache_arguments(
    with_cache: bool | None, seen: Callable[[int, Tensor, Tensor], None] | None = None
) -> dict[str, Any]:
    """What `forward` is given: a cache that shows to `seen` (True), no cache (False), nothing (None)."""
    if with_cache:
        return {"past_key_values": RecordingCache(seen), "use_cache": True}
    return {} if with_cache is None else {"use_cache": False}


def first_tensor(value: Any) -> Tensor | None:
    """`value` itself, or the first element of a tuple, list or model output, if that is a tensor."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)) and value and isinstance(value[0], Tensor):
        return value[0]
    return None


def as_positions(x: Tensor | None, batch: int, length: int) -> Tensor | None:
    """`x` as [batch, length, width] where it is that or [batch * length, width], else None."""
    if x is None or not x.is_floating_point():
        return None
    if x.dim() == 3 and x.shape[:2] == (batch, length):
        return x
    if x.dim() == 2 and x.shape[0] == batch * length:
        return x.reshape(batch, length, -1)
    return None


def join_heads(x: Tensor) -> Tensor:
    """[batch, head, position, head_dim] to [batch, position, head * head_dim], heads side by side."""
    return x.transpose(1, 2).flatten(2)


# ---- the probing pass ---------------------------------------------------------------------------


@dataclass
class Event:
    """One call of one module: what went in and came out, as [batch, position, width] copies."""

    path: str
    module: nn.Module
    entered: int
    left: int = -1
    inputs: dict[int | str, Tensor] = field(default_factory=dict)
    output: Tensor | None = None


@dataclass
class Record:
    """What one pass showed."""

    events: list[Event]
    cached: list[tuple[str, int, int, Tensor, Tensor]]  # module running, time, layer index, keys, values
    attended: list[tuple[str, Tensor, Tensor]]  # module running, keys, values of a fused attention call
    last: Tensor


class _AttentionSpy(TorchFunctionMode):
    """Shows keys and values of fused attention calls; encoders have no cache to show them."""

    def __init__(self, seen: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            self._seen(named["key"], named["value"])
        return func(*args, **(kwargs or {}))


@contextmanager
def hooks() -> Iterator[list[Any]]:
    """A list for handles of hooks, all of which are removed at the end."""
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def record_pass(model: nn.Module, input_ids: Tensor, with_cache: bool | None) -> Record:
    """Runs `model`, a backbone, on `input_ids`, [batch, position], and keeps a copy of all that it shows.

    Raises:
        SiteError: if the output is no hidden state.
    """
    batch, length = input_ids.shape
    record = Record([], [], [], torch.empty(0))
    stack: list[Event] = []
    clock = iter(range(1 << 62))

    def copy(x: Any) -> Tensor | None:
        shaped = as_positions(x if isinstance(x, Tensor) else None, batch, length)
        return None if shaped is None else shaped.detach().clone()

    def enter(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            event = Event(path, module, next(clock))
            named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
            event.inputs = {k: shaped for k, value in named if (shaped := copy(value)) is not None}
            stack.append(event)
            record.events.append(event)

        return hook

    def leave(_: nn.Module, __: Any, output: Any) -> None:
        event = stack.pop()
        event.left = next(clock)
        event.output = copy(first_tensor(output))

    def running() -> str:
        return stack[-1].path if stack else ""

    def cached(layer: int, key: Tensor, value: Tensor) -> None:
        record.cached.append((running(), next(clock), layer, key.clone(), value.clone()))

    def attended(key: Tensor, value: Tensor) -> None:
        record.attended.append((running(), key.clone(), value.clone()))

    with hooks() as handles, torch.inference_mode(), _AttentionSpy(attended):
        for path, module in model.named_modules():
            if path:
                handles.append(module.register_forward_pre_hook(enter(path), with_kwargs=True))
                handles.append(module.register_forward_hook(leave))
        output = model(input_ids=input_ids, **cache_arguments(with_cache, cached))
    last = copy(first_tensor(output))
    if last is None:
        raise SiteError(
            "the model's output is no hidden state", "only text models with a residual stream work"
        )
    record.last = last
    return record
