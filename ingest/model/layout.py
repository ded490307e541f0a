"""Where the sites are in a module tree.

Nothing here knows a model by its name. One pass over a few tokens records what every module took in and gave
out; the sites are then found by what equals what: the residual stream before the FFN is what the block's
input plus some sublayer's output is equal to, and so on. What is found this way is checked by the same pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...catalog.errors import SiteError
from .probe import Event, Record, join_heads, record_pass
from .residual import Block, Parts, block_calls, equal, search
from .sites import BLOCK_POINTS, Site


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


def find_layout(
    model: nn.Module, input_ids: Tensor, n_layers: int, width: int, d_ffn: int | None, with_cache: bool | None
) -> Layout:
    """Finds and checks the sites of `model`, a text model's backbone.

    `input_ids` is [2, position], both rows alike except for their last token; `n_layers`, `width` and
    `d_ffn` are what the config says. `with_cache` as for `cache_arguments`.

    Raises:
        SiteError: if the blocks or the residual stream are not where the config says.
    """
    record = record_pass(model, input_ids, with_cache)
    if not record.last.isfinite().all():
        kind = str(record.last.dtype).removeprefix("torch.")
        raise SiteError(f"{type(model).__name__} gives NaN or infinity in {kind}", "pass --dtype float32")
    blocks = _blocks(model, record, n_layers, width)
    layout = Layout(width, n_layers, d_ffn or 0, _is_causal(record.last))
    layout.with_cache = with_cache
    _take_embedding(layout, model, record)
    like: tuple[Block, Parts] | None = None
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


def _blocks(model: nn.Module, record: Record, n_layers: int, width: int) -> list[Event]:
    calls: dict[str, list[Event]] = {}
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


def _take_block(
    layout: Layout, record: Record, layer: int, event: Event, like: tuple[Block, Parts] | None
) -> tuple[Block, Parts] | None:
    """Adds the sites of one block to `layout`, or the reasons why they are not there.

    `like` is what an earlier block looked like; this one most often looks the same, and checking is much
    faster than searching.
    """
    width = layout.width
    block = block_calls(record, event, width)
    where, resid_pre = next(iter(event.inputs.items()))
    assert event.output is not None
    if resid_pre.shape[-1] != width:
        raise SiteError(
            f"the input of {event.path} is {resid_pre.shape[-1]} wide (argument {where}), not {width}"
        )
    _add(layout, Site("resid_post", layer), Tap("out", event.module, event.path), width, event.left)

    parts = like[1].moved_to(like[0], block) if like else None
    if parts is None or not parts.hold(resid_pre, event.output):
        parts = search(block, resid_pre, event.output)
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


# ---- the other points ---------------------------------------------------------------------------


def _add(layout: Layout, site: Site, tap: Tap, width: int, time: int) -> None:
    layout.taps[site] = tap
    layout.widths[site] = width
    layout.order[site] = time


def _take_embedding(layout: Layout, model: Any, record: Record) -> None:
    module = model.get_input_embeddings()
    calls = [e for e in record.events if e.module is module]
    if len(calls) != 1 or calls[0].output is None:
        raise SiteError(
            f"the token embedding of {type(model).__name__} ran {len(calls)} times in one pass, not once"
        )
    _add(layout, Site("embed"), Tap("out", module, calls[0].path), calls[0].output.shape[-1], calls[0].left)


def _take_final_norm(layout: Layout, record: Record, last_block: Event) -> None:
    """Follows the residual stream from the last block to the model's output."""
    stream = last_block.output
    assert stream is not None
    norm: Event | None = None
    after = [e for e in record.events if e.entered > last_block.left]
    chain: list[Event] = []
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
            and not equal(event.output, stream)
        ):
            norm = event
        stream = event.output
    if not equal(record.last, stream):
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


def _same(a: Event, b: Event) -> bool:
    return a.output is not None and b.output is not None and torch.equal(a.output, b.output)


def _take_keys(layout: Layout, record: Record, layer: int, block: Block) -> None:
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
                    makers = [e for e in block.inside if e.output is not None and equal(e.output, flat)]
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


def _take_ffn(layout: Layout, layer: int, block: Block, mlp: Event | None) -> None:
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
        normed = any(any(equal(x, out) for x in e.inputs.values()) and _same(e, mlp) for e in block.inside)
        ends = equal(out, mlp.output) or normed
    else:
        ends = not has_experts
    if not ends:
        layout.notes[site.name] = (
            f"{event.path} is not all of the FFN's last linear map (a mixture of experts?)"
        )
        return
    where, x = next(iter(event.inputs.items()))
    _add(layout, site, Tap("in", event.module, event.path, where), x.shape[-1], event.entered)
