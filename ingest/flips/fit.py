"""The arms of one feature, made from the model: directions, means of the text, dimensions drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...catalog.errors import NotFound
from ..encode import site_mean
from ..model.sites import Site
from ..passes.forward import batches, default_batch_tokens, one_pass
from ..stats.draws import rng
from ..words.anchors import Vocabulary, matched
from .arms import Arms, Means, Pattern, rotated_direction
from .tokens import Bools, ChosenWindows, Feature, Ids

if TYPE_CHECKING:
    from ..model.loaded import LoadedModel

OTHER_TYPES = 1000
"""Random types that the prototype in a rotated basis is told apart from."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """The arms at every site, and what they were made of.

    `own_tokens` are the feature's, `other_tokens` those that they are compared with. `direction` (width,) is the
    difference of means at the feature's own site at its own length, float32, from the words towards which it points;
    `n_own` the positions with own tokens that it was taken from.
    """

    arms: dict[Site, Arms]
    own_tokens: Ids
    other_tokens: Ids
    direction: Tensor | None
    disjoint_feature: int | None
    n_own: int


def fit_arms(
    path: Path,
    model: LoadedModel,
    feature: Feature,
    other: tuple[Feature, Bools] | None,
    sites: Sequence[Site],
    chosen: ChosenWindows,
    seed: int,
) -> Fitted:
    """Arms at `sites`, the first of which is the feature's own; `other` is `tokens.disjoint_from`."""
    device = model.device
    words = Vocabulary(model.token_strings()).words
    means = text_means(model, chosen.fit, feature.tokens, sites)

    def draw(what: str) -> np.random.Generator:
        return rng(seed, "flip", feature.feature_id, what)

    pattern = Pattern.of(feature.mask, feature.polarity, draw("dims")).to(device)
    random = Pattern.random(model.width, feature.n_dims, draw("random")).to(device)
    disjoint = None
    if other is not None:
        disjoint = Pattern.of(other[1], other[0].polarity, draw("disjoint")).to(device)
    rest = np.setdiff1d(np.arange(model.vocab_size), feature.tokens)
    sample = np.sort(draw("types").choice(rest, min(OTHER_TYPES, len(rest)), replace=False))
    own_types, other_types = (type_states(model, ids, sites) for ids in (feature.tokens, sample))
    arms = {}
    for site in sites:
        mean, origin = means[site], None
        if feature.centre == "mean":
            origin = _type_mean(path, feature.model, site, other_types[site])
        arms[site] = Arms(
            # The mean of the types is that of first positions, which is far from any state of a text.
            mean.text if feature.centre == "mean" else torch.zeros_like(mean.text),
            pattern,
            random,
            disjoint,
            rotated_direction(own_types[site], other_types[site], origin, feature.n_dims),
            mean.unit if mean.length else None,
            mean.others,
        )
    own = means[sites[0]]
    return Fitted(
        arms,
        feature.tokens,
        matched(feature.tokens, words, feature.seed),
        own.own - own.others if own.length else None,
        other[0].feature_id if other is not None else None,
        own.n_own,
    )


def text_means(
    model: LoadedModel, windows: Sequence[NDArray[np.int64]], own: Ids, sites: Sequence[Site]
) -> dict[Site, Means]:
    """Mean states of `windows` at positions > 0, by site, all of them and apart by whether the token is in `own`."""
    lengths = [len(one) for one in windows]
    zero = torch.zeros(2, model.width, dtype=torch.float64, device=model.device)
    sums = {site: zero.clone() for site in sites}
    counts = np.zeros(2, np.int64)
    for batch in batches(lengths, default_batch_tokens(model.device)):
        ids = torch.zeros((len(batch), max(lengths[i] for i in batch)), dtype=torch.int64)
        group = torch.full(ids.shape, -1)
        for row, i in enumerate(batch):
            ids[row, : lengths[i]] = torch.from_numpy(windows[i])
            group[row, 1 : lengths[i]] = torch.from_numpy(np.isin(windows[i][1:], own).astype(np.int64))
        counts += np.array([int((group == k).sum()) for k in range(2)])
        groups = [(group == k).to(model.device) for k in range(2)]

        def take(site: Site, x: Tensor, groups: Sequence[Tensor] = groups) -> None:
            for k, some in enumerate(groups):
                sums[site][k] += x[some].double().sum(0)

        with one_pass(ids.numel()):
            model.forward(ids, None, sites, take)  # type: ignore[arg-type]
    found = {}
    n_others, n_own = (int(one) for one in counts)
    for site, (others, mine) in sums.items():
        found[site] = Means(
            ((others + mine) / max(1, n_others + n_own)).float(),
            (mine / max(1, n_own)).float(),
            (others / max(1, n_others)).float(),
            n_own,
            n_others,
        )
    return found


def type_states(model: LoadedModel, ids: Ids, sites: Sequence[Site]) -> dict[Site, Tensor]:
    """States of tokens alone, float32 (n, width) by site, as the stage types takes them."""
    parts: dict[Site, list[Tensor]] = {site: [] for site in sites}

    def take(site: Site, x: Tensor) -> None:
        parts[site].append(x[:, -1].float().clone())

    for some in torch.from_numpy(ids).split(default_batch_tokens(model.device)):
        with one_pass(some.numel()):
            model.forward(some[:, None], None, sites, take)
    return {site: torch.cat(some) for site, some in parts.items()}


def _type_mean(path: Path, name: str, site: Site, sample: Tensor) -> Tensor:
    """The centre of the types at a site, (width,): the catalogue's, and that of the sample where it has none."""
    try:
        stored = site_mean(path, name, site.name)
    except NotFound:
        return sample.mean(0)
    return torch.from_numpy(stored.astype(np.float32)).to(sample.device)
