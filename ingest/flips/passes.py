"""The scored windows through the rest of the model, once for every intervention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..model.sites import Site
from ..passes import inject
from ..passes.forward import batches, default_batch_tokens
from ..stats.outcome import Outcome, positions
from .arms import norm_of
from .fit import Fitted
from .tokens import ChosenWindows

if TYPE_CHECKING:
    from ..model.loaded import LoadedModel


HALVED = 8
"""From so many windows on, doses below 1 are measured on every second of them: a curve in half the time, whose last
point, the one that is compared, has all."""


class _Part:
    """Some of the windows, as the model itself runs them, and the readout at their measured positions."""

    def __init__(
        self,
        model: LoadedModel,
        chosen: ChosenWindows,
        windows: Sequence[int],
        fitted: Fitted,
        sites: Sequence[Site],
        unembedding: Tensor,
        bias: Tensor | None,
    ) -> None:
        lengths = [len(chosen.scored[i]) for i in windows]
        self.batches: list[inject.Recorded] = []
        self.measured: list[tuple[Tensor, Tensor]] = []
        self.real: list[Tensor] = []
        owners: list[int] = []
        for batch in batches(lengths, default_batch_tokens(model.device)):
            longest = max(lengths[i] for i in batch)
            ids = torch.zeros((len(batch), longest), dtype=torch.int64)
            for row, i in enumerate(batch):
                ids[row, : lengths[i]] = torch.from_numpy(chosen.scored[windows[i]])
            at = [(row, p) for row, i in enumerate(batch) for p in positions(lengths[i])]
            owners += [windows[batch[row]] for row, _ in at]
            self.batches.append(inject.record(model, ids.to(model.device), sites))
            rows, places = torch.tensor(at, device=model.device).T
            self.measured.append((rows, places))
            real = torch.arange(longest)[None] < torch.tensor([lengths[i] for i in batch])[:, None]
            self.real.append(real.to(model.device))
        self.owners = np.array(owners)
        clean = torch.cat([one.last[at] for one, at in zip(self.batches, self.measured, strict=True)])
        own, other = (torch.from_numpy(ids) for ids in (fitted.own_tokens, fitted.other_tokens))
        self.readout = inject.Readout(unembedding, bias, own, other, clean)


class Passes:
    """Runs the model as it is over the windows that are measured on, and then its rest, changed by one arm at a time.

    Args:
        sites: `resid_post` sites that are going to be changed.
        unembedding, bias: of the model; see `inject.Readout`.
    """

    def __init__(
        self,
        model: LoadedModel,
        chosen: ChosenWindows,
        fitted: Fitted,
        sites: Sequence[Site],
        unembedding: Tensor,
        bias: Tensor | None,
    ) -> None:
        self._model, self._arms = model, fitted.arms
        n = len(chosen.scored)
        parts = [range(0, n, 2), range(1, n, 2)] if n >= HALVED else [range(n)]
        # Once: a large head in another float type takes gigabytes.
        unembedding = unembedding.float()
        self._parts = [_Part(model, chosen, part, fitted, sites, unembedding, bias) for part in parts]

    @torch.inference_mode()
    def run(self, site: Site, arm: str, dose: float, at_norm: str) -> Outcome:
        """One pass: `arm` at `site`, at its own norm or that of away (`at_norm` own or away)."""
        parts = self._parts if dose == 1 else self._parts[:1]
        norms, values = [], []
        for part in parts:
            lasts = []
            for recorded, at, real in zip(part.batches, part.measured, part.real, strict=True):
                h = recorded.states[site]
                changed = self._arms[site].changed(h.float(), arm, dose, at_norm).to(h.dtype)
                # What the model's own float type makes of it is what is applied.
                norms.append(norm_of(changed.float() - h.float())[real].double())
                lasts.append(inject.rest(self._model, recorded, site, changed)[at])
            effect = part.readout(torch.cat(lasts))
            values.append(torch.stack([effect.own, effect.other, effect.kl]))
        owners = np.concatenate([part.owners for part in parts])
        return Outcome.of(float(torch.cat(norms).mean()), torch.cat(values, 1).cpu().numpy(), owners)
