"""Sites: the named points of a model, what a request for them may say, and where they are in a module tree.

Nothing here knows a model by its name. One pass over a few tokens records what every module took in and gave
out; the sites are then found by what equals what: the residual stream before the FFN is what the block's
input plus some sublayer's output is equal to, and so on. What is found this way is checked by the same pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.cache_utils import Cache, DynamicLayer

from ..catalog.errors import SiteError

BLOCK_POINTS = ("k", "v", "attn_out", "resid_mid", "ffn", "mlp_out", "resid_post")
"""Points that every block has one of, in the order in which a pass reaches them."""
POINTS = ("embed", *BLOCK_POINTS, "final_norm")


# ---- names --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """A named point of a model; `layer` counts from 0 and is None for `embed` and `final_norm`."""

    point: str
    layer: int | None = None

    @property
    def name(self) -> str:
        """`resid_post.12`, `embed`."""
        return self.point if self.layer is None else f"{self.point}.{self.layer}"

    @classmethod
    def from_name(cls, name: str) -> Site:
        """The site called `name`.

        Raises:
            SiteError: if `name` is no site's name.
        """
        point, dot, layer = name.partition(".")
        if point not in POINTS or bool(dot) != (point in BLOCK_POINTS) or (dot and not layer.isdecimal()):
            raise SiteError(f"{name!r} is no site", "sites look like resid_post.12 or embed")
        return cls(point, int(layer) if dot else None)

    def __str__(self) -> str:
        return self.name


def parse_sites(spec: str, available: Sequence[Site], notes: Mapping[str, str] | None = None) -> list[Site]:
    """The sites that `spec` asks for, in model order, each once.

    `spec` is items separated by `;`: `embed`, `final_norm`, or a point and its layers: `resid_post.8,16`,
    `k.0-3`, `ffn.*`. `available` are the sites of the model in model order; `notes` says why a site is not
    among them (by its name).

    Raises:
        SiteError: for an unknown point, a layer out of range, a site that the model lacks, an empty spec.
    """
    wanted: set[Site] = set()
    n_layers = 1 + max((s.layer for s in available if s.layer is not None), default=-1)
    for item in (part.strip() for part in re.split(r"[;\s]+", spec) if part.strip()):
        point, dot, layers = item.partition(".")
        if point not in POINTS:
            raise SiteError(f"no point {point!r} in {item!r}", f"there is {', '.join(POINTS)}")
        if point not in BLOCK_POINTS:
            if dot:
                raise SiteError(f"{point} has no layers ({item!r})", f"write {point}")
            wanted.add(_existing(Site(point), available, notes))
        elif not layers:
            raise SiteError(
                f"{item!r} names no layer", f"write {point}.* or {point}.0-{max(n_layers - 1, 0)}"
            )
        elif layers == "*":
            found = [s for s in available if s.point == point]
            # Asking for every layer of a point is asking for those that are there; none at all is a mistake.
            wanted.update(found or [_existing(Site(point, 0), available, notes)])
        else:
            for layer in _layers(item, layers):
                if layer >= n_layers:
                    raise SiteError(f"no layer {layer} in {item!r}", f"layers count from 0 to {n_layers - 1}")
                wanted.add(_existing(Site(point, layer), available, notes))
    if not wanted:
        raise SiteError("no sites were asked for", "sites look like resid_post.8,16;k.8;ffn.*;embed")
    return [site for site in available if site in wanted]


def _layers(item: str, text: str) -> Iterator[int]:
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            raise SiteError(f"cannot read {part!r} in {item!r}", "layers look like 8 or 8,16 or 0-3 or *")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise SiteError(f"the range {part} in {item!r} runs backwards", f"write {last}-{first}")
        # Cut before counting: a typo such as 0-99999999999 must fail at its first layer, not fill the memory.
        yield from range(first, last + 1)


def _existing(site: Site, available: Sequence[Site], notes: Mapping[str, str] | None) -> Site:
    if site in available:
        return site
    why = (notes or {}).get(site.name)
    same = [s.name for s in available if s.point == site.point]
    there = same or list(dict.fromkeys(s.point for s in available))
    shown = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "")
    raise SiteError(f"this model has no site {site.name}" + (f" ({why})" if why else ""), f"there is {shown}")


def default_sites(available: Sequence[Site], n: int = 5) -> list[Site]:
    """Up to `n` evenly spaced `resid_post` sites, the last block's always among them."""
    blocks = [site for site in available if site.point == "resid_post"]
    n = min(n, len(blocks))
    return [blocks[(i + 1) * len(blocks) // n - 1] for i in range(n)]


# ---- where they are -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Tap:
    """Where a pass shows a site's tensor.

    `side` is "in" (an argument of `module`, called `where`), "out" (its output, or the first of several) or
    "cache" (argument 0 or 1, in `where`, of the cache update with layer index `cache_layer`).
    """

    side: str
    module: nn.Module | None = None
    path: str = ""
    where: int | str = 0
    cache_layer: int = -1


@dataclass
class Layout:
    """What a probing pass found. `order` sorts the sites by when a pass reaches them."""

    width: int
    n_layers: int
    d_ffn: int
    causal: bool
    taps: dict[Site, Tap] = field(default_factory=dict)
    widths: dict[Site, int] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    order: dict[Site, int] = field(default_factory=dict)
    with_cache: bool | None = None
    styles: list[str] = field(default_factory=list)

    @property
    def sites(self) -> list[Site]:
        """The sites in model order."""
        blocks = [Site(p, i) for i in range(self.n_layers) for p in BLOCK_POINTS]
        return [s for s in (Site("embed"), *blocks, Site("final_norm")) if s in self.taps]


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
class _Event:
    """One call of one module: what went in and came out, as [batch, position, width] copies."""

    path: str
    module: nn.Module
    entered: int
    left: int = -1
    inputs: dict[int | str, Tensor] = field(default_factory=dict)
    output: Tensor | None = None


@dataclass
class _Record:
    events: list[_Event]
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
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def _record(model: nn.Module, input_ids: Tensor, with_cache: bool | None) -> _Record:
    batch, length = input_ids.shape
    record = _Record([], [], [], torch.empty(0))
    stack: list[_Event] = []
    clock = iter(range(1 << 62))

    def copy(x: Any) -> Tensor | None:
        shaped = as_positions(x if isinstance(x, Tensor) else None, batch, length)
        return None if shaped is None else shaped.detach().clone()

    def enter(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            event = _Event(path, module, next(clock))
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


def find_layout(
    model: nn.Module, input_ids: Tensor, n_layers: int, width: int, d_ffn: int | None, with_cache: bool | None
) -> Layout:
    """Finds and checks the sites of `model`, a text model's backbone.

    `input_ids` is [2, position], both rows alike except for their last token; `n_layers`, `width` and
    `d_ffn` are what the config says. `with_cache` as for `cache_arguments`.

    Raises:
        SiteError: if the blocks or the residual stream are not where the config says.
    """
    record = _record(model, input_ids, with_cache)
    if not record.last.isfinite().all():
        kind = str(record.last.dtype).removeprefix("torch.")
        raise SiteError(f"{type(model).__name__} gives NaN or infinity in {kind}", "pass --dtype float32")
    blocks = _blocks(model, record, n_layers, width)
    layout = Layout(width, n_layers, d_ffn or 0, _is_causal(record.last))
    layout.with_cache = with_cache
    _take_embedding(layout, model, record)
    like: tuple[_Block, _Parts] | None = None
    for layer, block in enumerate(blocks):
        like = _take_block(layout, record, layer, block, like) or like
    _take_final_norm(layout, record, blocks[-1])
    ffn_widths = {w for s, w in layout.widths.items() if s.point == "ffn"}
    if ffn_widths:
        layout.d_ffn = max(ffn_widths)
    return layout


def _is_causal(last: Tensor) -> bool:
    # The rows differ in their last token alone; only attention to later tokens carries that to earlier ones.
    difference = (last[0].float() - last[1].float()).abs().amax(dim=-1)
    return bool(difference[:-1].max() <= 1e-3 * difference[-1])


def _blocks(model: nn.Module, record: _Record, n_layers: int, width: int) -> list[_Event]:
    calls: dict[str, list[_Event]] = {}
    for event in record.events:
        calls.setdefault(event.path, []).append(event)
    seen = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) != n_layers:
            continue
        runs = [calls.get(f"{path}.{i}" if path else str(i), []) for i in range(n_layers)]
        seen.append(path)
        if all(len(r) == 1 for r in runs):
            events = [r[0] for r in runs]
            outputs = [e.output for e in events]
            if all(e.inputs for e in events) and all(o is not None and o.shape[-1] == width for o in outputs):
                return events
    what = f"no list of {n_layers} blocks, each run once with a width of {width}, was found"
    raise SiteError(f"{what} in {type(model).__name__} (lists of that length: {', '.join(seen) or 'none'})")


# ---- what equals what ---------------------------------------------------------------------------


def _close(target: Tensor, *terms: Tensor) -> Tensor:
    """How far `target` is from the sum of `terms`, in roundings, over the last three dimensions; broadcasts.

    Element by element, in units of the rounding of the terms: a tolerance in any other unit would let a
    small sublayer hide behind a large residual stream.
    """
    eps = torch.finfo(target.dtype).eps
    # In float64 the sum itself is exact enough, so what remains is the model's own rounding.
    doubles = [t.double() for t in terms]
    total, size = doubles[0], doubles[0].abs()
    for term in doubles[1:]:
        total, size = total + term, size + term.abs()
    roundings = (total - target.double()).abs() / (eps * size + torch.finfo(torch.float32).tiny)
    return roundings.amax(dim=(-1, -2, -3))


# Two additions, in any order, round by at most half a unit each.
_ROUNDINGS = 1.5


@dataclass
class _Block:
    """One block's calls, and where the pieces of its residual stream are among them."""

    event: _Event
    inside: list[_Event]
    outputs: list[_Event]  # those with an output as wide as the residual stream, by when they left
    inputs: list[tuple[_Event, int | str]]  # those with an input of that width, by when they were entered
    attention: str  # path of the module that attended, or ""


def _block_calls(record: _Record, event: _Event, width: int) -> _Block:
    inside = [e for e in record.events if event.entered < e.entered and e.left < event.left]
    outputs = sorted(
        (e for e in inside if e.output is not None and e.output.shape[-1] == width), key=lambda e: e.left
    )
    inputs = [(e, w) for e in inside for w, x in e.inputs.items() if x.shape[-1] == width]
    prefix = event.path + "."
    ran = [p for p, *_ in record.cached if p.startswith(prefix)] or [
        p for p, *_ in record.attended if p.startswith(prefix)
    ]
    return _Block(event, inside, outputs, inputs, ran[0] if ran else "")


def _outputs(block: _Block) -> Tensor:
    return torch.stack([e.output for e in block.outputs if e.output is not None])


def _sums(base: Tensor, block: _Block) -> Tensor:
    """[output, input]: how far each input of a module in the block is from `base` plus each output."""
    ins = torch.stack([e.inputs[w] for e, w in block.inputs])
    return torch.stack([_close(ins, base, out) for out in _outputs(block)])


@dataclass
class _Parts:
    """The pieces of a block's residual stream.

    sequential: resid_pre + attn = mid, seen going into a module, and mid + mlp = resid_post.
    parallel: resid_pre + attn + mlp = resid_post; there is no `mid`.
    post-norm: mid = norm(resid_pre + attn) and resid_post = norm(mid + mlp); `mid` and `last` are the norms.
    """

    style: str
    attn: _Event
    mlp: _Event
    mid: _Event | None = None
    mid_where: int | str = 0
    last: _Event | None = None
    last_where: int | str = 0

    def hold(self, resid_pre: Tensor, resid_post: Tensor) -> bool:
        """Whether the sums above come out."""
        attn, mlp = self.attn.output, self.mlp.output
        if attn is None or mlp is None or not (attn.shape == mlp.shape == resid_pre.shape):
            return False
        if self.mid is None:
            return bool(_close(resid_post, resid_pre, attn, mlp) <= _ROUNDINGS)
        total = self.mid.inputs.get(self.mid_where)
        if total is None or total.shape != resid_pre.shape or _close(total, resid_pre, attn) > _ROUNDINGS:
            return False
        if self.last is None:
            return bool(_close(resid_post, total, mlp) <= _ROUNDINGS)
        final, mid = self.last.inputs.get(self.last_where), self.mid.output
        if final is None or mid is None or final.shape != mid.shape or _close(final, mid, mlp) > _ROUNDINGS:
            return False
        return self.last.output is not None and _equal(self.last.output, resid_post)

    def moved_to(self, old: _Block, new: _Block) -> _Parts | None:
        """The same places in another block."""
        there = {e.path.removeprefix(new.event.path): e for e in new.inside}

        def move(event: _Event | None) -> _Event | None:
            return None if event is None else there.get(event.path.removeprefix(old.event.path))

        attn, mlp, mid, last = map(move, (self.attn, self.mlp, self.mid, self.last))
        if (
            attn is None
            or mlp is None
            or (mid is None) != (self.mid is None)
            or (last is None) != (self.last is None)
        ):
            return None
        return _Parts(self.style, attn, mlp, mid, self.mid_where, last, self.last_where)


def _take_block(
    layout: Layout, record: _Record, layer: int, event: _Event, like: tuple[_Block, _Parts] | None
) -> tuple[_Block, _Parts] | None:
    """Adds the sites of one block to `layout`, or the reasons why they are not there.

    `like` is what an earlier block looked like; this one most often looks the same, and checking is much
    faster than searching.
    """
    width = layout.width
    block = _block_calls(record, event, width)
    where, resid_pre = next(iter(event.inputs.items()))
    assert event.output is not None
    if resid_pre.shape[-1] != width:
        raise SiteError(
            f"the input of {event.path} is {resid_pre.shape[-1]} wide (argument {where}), not {width}"
        )
    _add(layout, Site("resid_post", layer), Tap("out", event.module, event.path), width, event.left)

    parts = like[1].moved_to(like[0], block) if like else None
    if parts is None or not parts.hold(resid_pre, event.output):
        parts = _search(block, resid_pre, event.output)
    layout.styles.append(parts.style if parts else "unknown")
    mid_site = Site("resid_mid", layer)
    if parts is None:
        what = f"no outputs of two sublayers add up to the residual stream of {event.path}"
        why = f"{what}, a {type(event.module).__name__}"
        layout.notes.update({Site(p, layer).name: why for p in ("attn_out", "resid_mid", "mlp_out")})
    else:
        attn, mlp, mid = parts.attn, parts.mlp, parts.mid
        _add(layout, Site("attn_out", layer), Tap("out", attn.module, attn.path), width, attn.left)
        _add(layout, Site("mlp_out", layer), Tap("out", mlp.module, mlp.path), width, mlp.left)
        if mid is None:
            why = f"attention and FFN of {event.path} run in parallel on the same residual stream"
            layout.notes[mid_site.name] = why
        elif parts.last is None:
            _add(layout, mid_site, Tap("in", mid.module, mid.path, parts.mid_where), width, mid.entered)
        else:
            _add(layout, mid_site, Tap("out", mid.module, mid.path), width, mid.left)
    _take_keys(layout, record, layer, block)
    _take_ffn(layout, layer, block, parts.mlp if parts else None)
    return (block, parts) if parts else None


def _search(block: _Block, resid_pre: Tensor, resid_post: Tensor) -> _Parts | None:
    if not block.outputs or not block.inputs:
        return None
    for find in (_sequential, _parallel, _post_norm):
        if (parts := find(block, resid_pre, resid_post)) is not None:
            return parts
    return None


def _sequential(block: _Block, resid_pre: Tensor, resid_post: Tensor) -> _Parts | None:
    outs = _outputs(block)
    for i, j in _pairs(_sums(resid_pre, block)):
        attn, (reader, where) = block.outputs[i], block.inputs[j]
        if reader.entered < attn.left:
            continue
        rest = _close(resid_post, reader.inputs[where], outs)
        later = [k for k, e in enumerate(block.outputs) if e.left > reader.entered and rest[k] <= _ROUNDINGS]
        if later:
            best = min(later, key=lambda k: (round(float(rest[k]), 3), k))
            return _Parts("sequential", attn, block.outputs[best], reader, where)
    return None


def _parallel(block: _Block, resid_pre: Tensor, resid_post: Tensor) -> _Parts | None:
    best: tuple[float, _Event, _Event] | None = None
    outs = _outputs(block)
    for i, first in enumerate(block.outputs[:-1]):
        errors = _close(resid_post, resid_pre, outs[i], outs[i + 1 :])
        j = int(errors.argmin())
        if errors[j] <= _ROUNDINGS and (best is None or round(float(errors[j]), 3) < best[0]):
            best = (round(float(errors[j]), 3), first, block.outputs[i + 1 + j])
    if best is None:
        return None
    _, attn, mlp = best

    def attends(event: _Event) -> bool:
        return bool(block.attention) and f"{event.path}.".startswith(f"{block.attention}.")

    if attends(mlp) and not attends(attn):
        attn, mlp = mlp, attn
    return _Parts("parallel", attn, mlp)


def _post_norm(block: _Block, resid_pre: Tensor, resid_post: Tensor) -> _Parts | None:
    norms = [(e, w) for e, w in block.inputs if e.output is not None and e.output.shape == resid_pre.shape]
    for i, j in _pairs(_sums(resid_pre, block)):
        attn, (norm, where) = block.outputs[i], block.inputs[j]
        if (norm, where) not in norms or norm.entered < attn.left:
            continue
        for mlp in block.outputs:
            for last, last_where in norms:
                parts = _Parts("post-norm", attn, mlp, norm, where, last, last_where)
                if norm.left < mlp.left < last.entered and parts.hold(resid_pre, resid_post):
                    return parts
    return None


def _pairs(errors: Tensor) -> list[tuple[int, int]]:
    """Indices of the sums that hold, the best first; of equals the earliest."""
    hold = [
        (round(float(e), 3), i, j)
        for i, row in enumerate(errors)
        for j, e in enumerate(row)
        if e <= _ROUNDINGS
    ]
    return [(i, j) for _, i, j in sorted(hold)]


def _same(a: _Event, b: _Event) -> bool:
    return a.output is not None and b.output is not None and torch.equal(a.output, b.output)


# ---- the other points ---------------------------------------------------------------------------


def _add(layout: Layout, site: Site, tap: Tap, width: int, time: int) -> None:
    layout.taps[site] = tap
    layout.widths[site] = width
    layout.order[site] = time


def _take_embedding(layout: Layout, model: Any, record: _Record) -> None:
    module = model.get_input_embeddings()
    calls = [e for e in record.events if e.module is module]
    if len(calls) != 1 or calls[0].output is None:
        raise SiteError(
            f"the token embedding of {type(model).__name__} ran {len(calls)} times in one pass, not once"
        )
    _add(layout, Site("embed"), Tap("out", module, calls[0].path), calls[0].output.shape[-1], calls[0].left)


def _take_final_norm(layout: Layout, record: _Record, last_block: _Event) -> None:
    """Follows the residual stream from the last block to the model's output."""
    stream = last_block.output
    assert stream is not None
    norm: _Event | None = None
    after = [e for e in record.events if e.entered > last_block.left]
    chain: list[_Event] = []
    for event in after:
        if event.output is None or not any(torch.equal(x, stream) for x in event.inputs.values()):
            continue
        # A wrapper that is entered before its only child sees the same input; the chain takes either way out.
        chain.append(event)
        is_map = any(p.dim() > 1 for p in event.module.parameters())
        if (
            norm is None
            and event.output.shape[-1] == layout.width
            and not is_map
            and not _equal(event.output, stream)
        ):
            norm = event
        stream = event.output
    if not _equal(record.last, stream):
        ran = ", ".join(e.path for e in chain) or "no module"
        raise SiteError(
            f"the output of the last block ({last_block.path}) does not lead to the model's last hidden "
            f"state (through {ran})"
        )
    site = Site("final_norm")
    if norm is None:
        layout.notes[site.name] = "this architecture has no norm after its last block"
    else:
        _add(layout, site, Tap("out", norm.module, norm.path), layout.width, norm.left)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _take_keys(layout: Layout, record: _Record, layer: int, block: _Block) -> None:
    batch, length = record.last.shape[:2]
    k_site, v_site = Site("k", layer), Site("v", layer)
    prefix = block.event.path + "."
    cached = [c for c in record.cached if c[0].startswith(prefix)]
    if len(cached) == 1:
        _, time, index, *kv = cached[0]
        if all(x.dim() == 4 and x.shape[0] == batch and x.shape[2] == length for x in kv):
            for which, (site, x) in enumerate(zip((k_site, v_site), kv, strict=True)):
                _add(
                    layout, site, Tap("cache", where=which, cache_layer=index), x.shape[1] * x.shape[3], time
                )
            return
        why = f"what {cached[0][0]} puts into its cache is not [batch, head, position, head_dim]"
    elif cached:
        why = f"{block.event.path} updates its cache {len(cached)} times"
    else:
        why = f"{block.event.path} keeps no keys and values, and no linear map that makes them was found"
        attended = [(k, v) for path, k, v in record.attended if path.startswith(prefix)]
        if len(attended) == 1:
            for site, x in zip((k_site, v_site), attended[0], strict=True):
                if x.dim() == 4 and x.shape[0] == batch and x.shape[2] == length:
                    flat = join_heads(x)
                    makers = [e for e in block.inside if e.output is not None and _equal(e.output, flat)]
                    if makers:
                        event = makers[0]
                        _add(layout, site, Tap("out", event.module, event.path), flat.shape[-1], event.left)
    for site in (k_site, v_site):
        if site not in layout.taps:
            layout.notes[site.name] = why


def _is_linear(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    if next(module.children(), None) is not None or isinstance(module, nn.Embedding):
        return False
    # Quantised maps keep their weight packed, but say how wide they are.
    return (isinstance(weight, Tensor) and weight.dim() == 2) or hasattr(module, "in_features")


def _take_ffn(layout: Layout, layer: int, block: _Block, mlp: _Event | None) -> None:
    site = Site("ffn", layer)
    attention = block.attention + "."
    maps = [
        e
        for e in block.outputs
        if _is_linear(e.module) and not (block.attention and f"{e.path}.".startswith(attention))
    ]
    event = max(maps, key=lambda e: e.entered, default=None)
    has_experts = any(p.dim() == 3 for p in block.event.module.parameters())
    if event is None or not event.inputs or event.output is None:
        layout.notes[site.name] = f"{block.event.path} has no single linear map at the end of its FFN"
        return
    if mlp is not None and mlp.output is not None:
        out = event.output
        normed = any(any(_equal(x, out) for x in e.inputs.values()) and _same(e, mlp) for e in block.inside)
        ends = _equal(out, mlp.output) or normed
    else:
        ends = not has_experts
    if not ends:
        layout.notes[site.name] = (
            f"{event.path} is not all of the FFN's last linear map (a mixture of experts?)"
        )
        return
    where, x = next(iter(event.inputs.items()))
    _add(layout, site, Tap("in", event.module, event.path, where), x.shape[-1], event.entered)
