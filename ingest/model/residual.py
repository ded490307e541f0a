"""How one block adds to the residual stream: which sublayers' outputs add up to it, and where.

A sum holds if it holds within the rounding of its terms, at every position and in every dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .probe import Event, Record

# ---- what equals what ---------------------------------------------------------------------------


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether both have one shape and the same numbers."""
    return a.shape == b.shape and torch.equal(a, b)


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
class Block:
    """One block's calls, and where the pieces of its residual stream are among them."""

    event: Event
    inside: list[Event]
    outputs: list[Event]  # those with an output as wide as the residual stream, by when they left
    inputs: list[tuple[Event, int | str]]  # those with an input of that width, by when they were entered
    attention: str  # path of the module that attended, or ""


def block_calls(record: Record, event: Event, width: int) -> Block:
    """The calls inside the block whose own call is `event`; `width` is that of the residual stream."""
    inside = [e for e in record.events if event.entered < e.entered and e.left < event.left]
    outputs = sorted(
        (e for e in inside if e.output is not None and e.output.shape[-1] == width), key=lambda e: e.left
    )
    inputs = [(e, w) for e in inside for w, x in e.inputs.items() if x.shape[-1] == width]
    prefix = event.path + "."
    ran = [p for p, *_ in record.cached if p.startswith(prefix)] or [
        p for p, *_ in record.attended if p.startswith(prefix)
    ]
    return Block(event, inside, outputs, inputs, ran[0] if ran else "")


def _outputs(block: Block) -> Tensor:
    return torch.stack([e.output for e in block.outputs if e.output is not None])


def _sums(base: Tensor, block: Block) -> Tensor:
    """[output, input]: how far each input of a module in the block is from `base` plus each output."""
    ins = torch.stack([e.inputs[w] for e, w in block.inputs])
    return torch.stack([_close(ins, base, out) for out in _outputs(block)])


@dataclass
class Parts:
    """The pieces of a block's residual stream.

    sequential: resid_pre + attn = mid, seen going into a module, and mid + mlp = resid_post.
    parallel: resid_pre + attn + mlp = resid_post; there is no `mid`.
    post-norm: mid = norm(resid_pre + attn) and resid_post = norm(mid + mlp); `mid` and `last` are the norms.
    """

    style: str
    attn: Event
    mlp: Event
    mid: Event | None = None
    mid_where: int | str = 0
    last: Event | None = None
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
        return self.last.output is not None and equal(self.last.output, resid_post)

    def moved_to(self, old: Block, new: Block) -> Parts | None:
        """The same places in another block."""
        there = {e.path.removeprefix(new.event.path): e for e in new.inside}

        def move(event: Event | None) -> Event | None:
            return None if event is None else there.get(event.path.removeprefix(old.event.path))

        attn, mlp, mid, last = map(move, (self.attn, self.mlp, self.mid, self.last))
        if (
            attn is None
            or mlp is None
            or (mid is None) != (self.mid is None)
            or (last is None) != (self.last is None)
        ):
            return None
        return Parts(self.style, attn, mlp, mid, self.mid_where, last, self.last_where)


# ---- searching ----------------------------------------------------------------------------------


def search(block: Block, resid_pre: Tensor, resid_post: Tensor) -> Parts | None:
    """The pieces of the block's residual stream, or None where no sublayers' outputs add up to it."""
    if not block.outputs or not block.inputs:
        return None
    for find in (_sequential, _parallel, _post_norm):
        if (parts := find(block, resid_pre, resid_post)) is not None:
            return parts
    return None


def _sequential(block: Block, resid_pre: Tensor, resid_post: Tensor) -> Parts | None:
    outs = _outputs(block)
    for i, j in _pairs(_sums(resid_pre, block)):
        attn, (reader, where) = block.outputs[i], block.inputs[j]
        if reader.entered < attn.left:
            continue
        rest = _close(resid_post, reader.inputs[where], outs)
        later = [k for k, e in enumerate(block.outputs) if e.left > reader.entered and rest[k] <= _ROUNDINGS]
        if later:
            best = min(later, key=lambda k: (round(float(rest[k]), 3), k))
            return Parts("sequential", attn, block.outputs[best], reader, where)
    return None


def _parallel(block: Block, resid_pre: Tensor, resid_post: Tensor) -> Parts | None:
    best: tuple[float, Event, Event] | None = None
    outs = _outputs(block)
    for i, first in enumerate(block.outputs[:-1]):
        errors = _close(resid_post, resid_pre, outs[i], outs[i + 1 :])
        j = int(errors.argmin())
        if errors[j] <= _ROUNDINGS and (best is None or round(float(errors[j]), 3) < best[0]):
            best = (round(float(errors[j]), 3), first, block.outputs[i + 1 + j])
    if best is None:
        return None
    _, attn, mlp = best

    def attends(event: Event) -> bool:
        return bool(block.attention) and f"{event.path}.".startswith(f"{block.attention}.")

    if attends(mlp) and not attends(attn):
        attn, mlp = mlp, attn
    return Parts("parallel", attn, mlp)


def _post_norm(block: Block, resid_pre: Tensor, resid_post: Tensor) -> Parts | None:
    norms = [(e, w) for e, w in block.inputs if e.output is not None and e.output.shape == resid_pre.shape]
    for i, j in _pairs(_sums(resid_pre, block)):
        attn, (norm, where) = block.outputs[i], block.inputs[j]
        if (norm, where) not in norms or norm.entered < attn.left:
            continue
        for mlp in block.outputs:
            for last, last_where in norms:
                parts = Parts("post-norm", attn, mlp, norm, where, last, last_where)
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
