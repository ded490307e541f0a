"""The rest of a pass from a changed residual stream, and what its logits say.

The model runs once as it is; after that only the blocks behind the changed one run again. Nothing here knows a model
by its name: a block that need not run is replaced by one that gives out, in the structure that the block's own
output had, the state that was put in. That what comes after needs nothing else is checked (`check`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...catalog.errors import SiteError
from ..model.probe import as_positions, cache_arguments, first_tensor, hooks
from ..model.sites import Site
from .forward import one_pass

if TYPE_CHECKING:
    from ..model.loaded import LoadedModel

_LOGITS = 1 << 24
"""Float32 logits that are held at a time: 64 MB."""


@dataclass(frozen=True, eq=False)
class Shell:
    """A block's output without its first tensor, whose shape is `shape`."""

    value: Any
    shape: torch.Size

    def holding(self, x: Tensor) -> Any:
        """The output with `x` in the first tensor's place."""
        return _with_first(self.value, x.reshape(self.shape))


@dataclass(frozen=True, eq=False)
class Recorded:
    """One batch as the model itself runs it.

    `ids` is [batch, position]; `states` by site and `last`, the state that the head reads, are
    [batch, position, width], on the model's device in its dtype; `shells` are of the blocks in order.
    """

    ids: Tensor
    states: dict[Site, Tensor]
    last: Tensor
    shells: tuple[Shell, ...]


def record(model: LoadedModel, ids: Tensor, sites: Sequence[Site]) -> Recorded:
    """Run `model` on `ids`, [batch, position], and keep its `resid_post` states at `sites`.

    Rows that are shorter are padded on the right: in a causal model no earlier position sees it.

    Raises:
        SiteError: if a block's output is no residual stream.
    """
    batch, length = ids.shape
    layers = {site.layer: site for site in sites}
    shells: list[Shell] = []
    states: dict[Site, Tensor] = {}

    def seen(_: nn.Module, __: Any, output: Any) -> None:
        x = first_tensor(output)
        shaped = as_positions(x, batch, length)
        if x is None or shaped is None:
            raise SiteError(f"block {len(shells)} of {model.name} gives out no residual stream")
        if site := layers.get(len(shells)):
            # The model may go on to write into it.
            states[site] = shaped.clone()
        shells.append(Shell(_with_first(output, x.new_empty(0)), x.shape))

    with hooks() as handles:
        handles += [block.register_forward_hook(seen) for block in _blocks(model)]
        last = _run(model, ids)
    return Recorded(ids, states, last, tuple(shells))


def rest(model: LoadedModel, recorded: Recorded, site: Site, h: Tensor) -> Tensor:
    """The state that the head reads, [batch, position, width], if `h` of that shape stands at `site`, a `resid_post`.

    Only the blocks after it run. The model is as it was afterwards, whatever happens.
    """
    assert site.layer is not None
    done = range(site.layer + 1)
    h = h.to(recorded.states[site].dtype)
    # The blocks before it could give out anything of the right shape: nobody reads it but the next of them.
    outputs = {block: recorded.shells[i].holding(h) for i, block in zip(done, _blocks(model), strict=False)}
    with _replaced(outputs):
        return _run(model, recorded.ids)


def check(model: LoadedModel, ids: Tensor, sites: Sequence[Site]) -> None:
    """Whether the rest of a pass from each of `sites` gives what the whole pass does, on `ids`, [batch, position].

    Raises:
        SiteError: if it does not: later blocks then read more than the residual stream (keys and values of earlier
            blocks, say).
    """
    recorded = record(model, ids, sites)
    for site in sites:
        try:
            last = rest(model, recorded, site, recorded.states[site]).float()
            # On a CPU bit for bit; an accelerator may add in another order.
            same = bool(
                (last - recorded.last.float()).abs().max() <= 1e-3 * recorded.last.float().abs().max()
            )
        except (KeyError, AttributeError, TypeError, IndexError, ValueError, RuntimeError):
            same = False
        if not same:
            raise SiteError(
                f"what {model.name} ({model.architecture}) computes after {site} needs more than its residual stream",
                "flip a feature of another model",
            )


def _blocks(model: LoadedModel) -> list[nn.Module]:
    """The blocks in order: what gives out `resid_post`."""
    found = []
    for layer in range(model.n_layers):
        tap = model.layout.taps[Site("resid_post", layer)]
        assert tap.side == "out" and tap.module is not None
        found.append(tap.module)
    return found


def _run(model: LoadedModel, ids: Tensor) -> Tensor:
    with one_pass(ids.numel()), torch.inference_mode():
        arguments = cache_arguments(None if model.layout.with_cache is None else False)
        last = first_tensor(model.module(input_ids=ids, **arguments))
    if last is None:
        raise SiteError(f"the output of {model.name} is no hidden state")
    return last


@contextmanager
def _replaced(outputs: Mapping[nn.Module, Any]) -> Iterator[None]:
    """Each module gives out what `outputs` says and does nothing else, hooks apart."""
    # Another library may have put a `forward` of its own on a module; it is put back.
    before = {module: module.__dict__.get("forward") for module in outputs}
    try:
        for module, output in outputs.items():
            module.forward = lambda *_, output=output, **__: output
        yield
    finally:
        for module, old in before.items():
            module.__dict__.pop("forward", None)
            if old is not None:
                module.forward = old


def _with_first(value: Any, tensor: Tensor) -> Any:
    """`value` with `tensor` in place of what `first_tensor` finds in it."""
    if isinstance(value, Tensor):
        return tensor
    if isinstance(value, Mapping):
        return type(value)(**{**value, next(iter(value)): tensor})
    if hasattr(value, "_make"):
        return value._make([tensor, *value[1:]])
    return type(value)([tensor, *value[1:]])


# ---- logits -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Effect:
    """What a change does at each of n positions, float64 (n,): the mean change of the logits of the feature's own tokens
    and of other tokens, and KL(before || after) over the whole vocabulary in nats."""

    own: Tensor
    other: Tensor
    kl: Tensor


class Readout:
    """Logits of final states beside those of the model as it is: unembedding times state plus bias, in float32.

    A scale or a soft cap of all logits, which some architectures put behind that, is left out.

    Args:
        unembedding: (V, width); bias: (V,) or None.
        own, other: token ids whose logits are averaged, int64.
        clean: (n, width), final states of the model as it is, at the measured positions.
    """

    def __init__(
        self, unembedding: Tensor, bias: Tensor | None, own: Tensor, other: Tensor, clean: Tensor
    ) -> None:
        self._rows = unembedding.float()
        self._bias = bias.float() if bias is not None else None
        # The mean logit of some tokens is the state times the mean of their rows (and a bias that never changes).
        self._own, self._other = (
            self._rows[ids.to(self._rows.device)].double().mean(0) for ids in (own, other)
        )
        self._clean = clean.float()
        normalisers, expected = [], []
        for logits in self._logits(self._clean):
            normaliser = logits.logsumexp(1)
            normalisers.append(normaliser)
            expected.append((logits - normaliser[:, None]).exp() @ self._rows)
        self._normaliser = torch.cat(normalisers).double()
        self._expected = torch.cat(expected).double()

    @torch.inference_mode()
    def __call__(self, changed: Tensor) -> Effect:
        """The effect at each position of final states `changed`, (n, width)."""
        moved = changed.float().double() - self._clean.double()
        normaliser = torch.cat([one.logsumexp(1) for one in self._logits(changed.float())]).double()
        # sum_t p_t (log p_t - log q_t), where both are linear in their state but for the normaliser: the vocabulary is
        # needed for that alone, once the mean of the unembedding's rows under p is known. Rounding may take it below 0.
        kl = normaliser - self._normaliser - (moved * self._expected).sum(1)
        return Effect(moved @ self._own, moved @ self._other, kl.clamp_min(0))

    def _logits(self, states: Tensor) -> Iterator[Tensor]:
        """(positions, V) of some rows of `states` at a time."""
        for part in states.split(max(1, _LOGITS // len(self._rows))):
            logits = part @ self._rows.T
            yield logits if self._bias is None else logits + self._bias
