"""The stage `writers` at one site: the neurons of the block behind it that write its features, and all controls.

Every figure is measured with the trained weights and, in the very same way, with weights that know nothing of the
features: `column_shuffled` (each neuron's own weights permuted among the dimensions), `gaussian` or `fair_coin`
(drawn, same shape). Each is drawn `DRAWS` times, since all features share a draw and so its luck. Draws hang on the
seed, a name and the block, not on the site or on the other features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...catalog.bulk import Figure
from ...catalog.errors import InvalidInput, SiteError
from ..stats.bits import Patterns
from ..stats.draws import rng
from ..stats.figures import Scope
from . import agreements, coalitions
from .agreements import (
    FILTERS,
    WRITERS,
    Agreements,
    Extremes,
    Pair,
    Signs,
    Weights,
    Writers,
    above,
    coins,
    floats,
    shuffled,
    signs,
)
from .coalitions import KS

DRAWS = 3
"""Of each control: `gaussian:1`, `gaussian:2`, ..."""
TENTHS = (6, 7, 8)
"""Agreements that the paper counts neurons above, in tenths."""
Floats = NDArray[np.float64]
Values = dict[tuple[str, str, str], Floats]
"""(features,) by (metric, control, split)."""


@dataclass(frozen=True)
class Group:
    """Features of one kind ("category", "discovered") and centre ("zero", "mean"), with their ids (features,)."""

    kind: str
    centre: str
    ids: NDArray[np.int64]
    patterns: Patterns

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.patterns):
            raise InvalidInput(f"{len(self.ids)} ids and {len(self.patterns)} patterns do not match")


@dataclass
class Measured:
    """What a site leaves: columns of `schema.writer_row` and `schema.coalition_row`, and figures about all of it."""

    writers: dict[str, Any]
    coalitions: dict[str, Any]
    figures: list[Figure] = field(default_factory=list)


def measure_site(
    directions: Callable[[int], Tensor],
    n_layers: int,
    layer: int,
    groups: Sequence[Group],
    site_id: str,
    seed: int,
    ks: Sequence[int] = KS,
) -> Measured:
    """Writers and coalitions of all features at `resid_post.<layer>`, and what they are compared with.

    `directions(block)`, [neurons, width] as `LoadedModel.ffn_directions` gives it, is asked for one block at a time.
    Blocks that raise SiteError are left out of the comparison of blocks, but for the site's own. Features without a
    dimension have no writers and are left out. Only blocks with as many neurons are compared: of more, the best is
    better.

    The figures, subject a group's kind and subject_id its centre:

    - `writer_above_0.60`, `_0.70`, `_0.80`: share of features with a neuron of the own block above that agreement;
      controls column_shuffled, gaussian. Suffix `_top_half`, `_top_quarter`: only dimensions count at which the
      neuron's weight is among its own largest half or quarter (`agreements.loud`), and only neurons to which that
      leaves 20 dimensions of the feature (all, of a feature with fewer); a feature without one has none above.
    - `writer_best`: mean over features of the best agreement in the own block; controls other_blocks (the best of
      each other block, their mean), next_blocks (the blocks before and after), column_shuffled, gaussian. Each block
      has its best picked from as many neurons: a neuron picked here and read there would be at 0.5 anyway.
    - `own_block_share`: share of features whose best neuron of all blocks is in the own one (of t blocks that are
      equally good each has 1 / t); controls chance (1 / blocks), column_shuffled.
    - `coalition_K`: mean over features of the share that the vote of the best K neurons gets right;
      `coalition_K_median`: the paper's median, without a standard error. Controls fair_coin, column_shuffled,
      later_block (that of the next block, which writes only behind this site: what the shape of the residual stream
      alone gives; none behind the last). Split `in_sample` is the paper's procedure; `held_out` ranks on one half of the
      dimensions and scores on the other.

    Suffix `_either` means in either polarity. A control's standard error is that of its difference to the figure.

    Raises:
        SiteError: if the own block has no single last FFN map.
        InvalidInput: if patterns are not as wide as what neurons write.
    """
    weights = floats(directions(layer))
    n_neurons, width = weights.shape
    if any(one.patterns.mask.shape[1] != width for one in groups):
        raise InvalidInput(f"the neurons of block {layer} write {width} dimensions, the patterns have others")
    ids, of, patterns = _together(groups, width)
    sizes = coalitions.sizes(n_neurons, ks)
    if not len(ids):
        return Measured(*_columns(ids, layer, None, patterns, sizes, {}), [])
    held = Agreements(patterns)
    values: Values = {}
    blocks: dict[str, Signs] = {}
    for control, one in _variants(weights, layer, seed):
        values |= shares(held, one, control)
        blocks[control] = signs(torch.from_numpy(one))
    del weights, one
    drawn = {name: held.extremes(block) for name, block in blocks.items() if name != "none"}
    values |= over_layers(held, layer, *best_of_blocks(held, directions, n_layers, layer, seed), drawn)
    writers = agreements.top_writers(held.counts(blocks["none"]), patterns.n_dims, WRITERS)
    for i in range(1, DRAWS + 1):
        # Gaussian signs are fair coins, but the coins of coalitions are drawn apart from those.
        del blocks[f"gaussian:{i}"]
        blocks[f"fair_coin:{i}"] = coins(n_neurons, width, rng(seed, f"fair_coin:{i}", layer))
    if (later := _later_block(directions, layer, n_layers, n_neurons)) is not None:
        blocks["later_block"] = later
    curves = coalitions.curves(held, ids, blocks, sizes, seed)
    figures = [
        figure
        for g, group in enumerate(groups)
        if (of == g).any()
        for figure in _figures(site_id, group, of == g, values, curves, sizes, seed)
    ]
    return Measured(*_columns(ids, layer, writers, patterns, sizes, curves), figures)


def _later_block(
    directions: Callable[[int], Tensor], layer: int, n_layers: int, n_neurons: int
) -> Signs | None:
    """The signs of the first block after `layer` that has as many neurons; None if there is none."""
    for i in range(layer + 1, n_layers):
        try:
            weights = directions(i)
        except SiteError:
            continue
        if len(weights) == n_neurons:
            return signs(weights)
    return None


def shares(held: Agreements, weights: Weights, control: str) -> Values:
    """Which features have a neuron above each agreement, by filter and polarity; see `measure_site`."""
    values: Values = {}
    for name, part in (("", None), *((f"_{name}", part) for name, part in FILTERS.items())):
        high, low = held.excess(weights, part)
        for tenths in TENTHS:
            metric = f"writer_above_0.{tenths}0{name}"
            for ending, excess in (("", high), ("_either", np.maximum(high, low))):
                values[metric + ending, control, "in_sample"] = above(excess, tenths).astype(float)
    return values


def best_of_blocks(
    held: Agreements, directions: Callable[[int], Tensor], n_layers: int, layer: int, seed: int | None
) -> tuple[Extremes, Extremes]:
    """The best of every block with as many neurons, trained and column-shuffled (without a seed: none of these).

    Raises:
        SiteError: if block `layer` has none.
    """
    layers: list[int] = []
    trained: list[Pair] = []
    permuted: list[Pair] = []
    n_neurons = len(directions(layer))
    for i in range(n_layers):
        try:
            weights = directions(i)
        except SiteError:
            continue
        if len(weights) != n_neurons:
            continue
        block = signs(weights)
        layers.append(i)
        trained.append(held.extremes(block))
        if seed is not None:
            # The permutation hangs on the shape alone, so these are the signs of the shuffled weights.
            permuted.append(held.extremes(shuffled(block, rng(seed, "column_shuffled:1", i))))
    return Extremes.of(layers, trained), Extremes.of(layers, permuted)


def over_layers(
    held: Agreements,
    layer: int,
    trained: Extremes,
    permuted: Extremes,
    drawn: dict[str, Pair],
) -> Values:
    """`writer_best` and `own_block_share`, with and without `_either`; see `measure_site`.

    `drawn` is what `Agreements.extremes` gave for the own block's controls.
    """
    values: Values = {}
    n_dims = held.patterns.n_dims
    own = trained.layers == layer
    beside = abs(trained.layers - layer) == 1
    for ending in ("", "_either"):
        either = bool(ending)
        counts, others = trained.best(n_dims, either), permuted.best(n_dims, either)
        metric = f"writer_best{ending}"
        values[metric, "none", "in_sample"] = counts[own][0] / n_dims
        for control, blocks in (("other_blocks", ~own), ("next_blocks", beside)):
            if blocks.any():
                values[metric, control, "in_sample"] = counts[blocks].mean(0) / n_dims
        for control, (high, low) in drawn.items():
            best = np.maximum(high, n_dims - low) if either else high
            values[metric, control, "in_sample"] = best / n_dims
        if len(own) < 2:
            continue
        metric = f"own_block_share{ending}"
        for control, one in (("none", counts), ("column_shuffled:1", others)):
            best = one == one.max(0)
            values[metric, control, "in_sample"] = best[own][0] / best.sum(0)
        values[metric, "chance", "in_sample"] = np.full(len(held), 1 / len(own))
    return values


def _variants(weights: Weights, layer: int, seed: int) -> Iterator[tuple[str, Weights]]:
    """The weights and what they are compared with, one at a time: they are large."""
    yield "none", weights
    for i in range(1, DRAWS + 1):
        name = f"column_shuffled:{i}"
        yield name, shuffled(weights, rng(seed, name, layer))
        name = f"gaussian:{i}"
        yield name, rng(seed, name, layer).standard_normal(weights.shape, np.float32)


def _together(groups: Sequence[Group], width: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Patterns]:
    """Ids, the number of the group, and patterns of all features that have a dimension."""
    ids = np.concatenate([np.zeros(0, np.int64), *(one.ids for one in groups)])
    of = np.repeat(np.arange(len(groups)), [len(one.ids) for one in groups])
    empty = np.zeros((0, width), bool)
    mask = np.concatenate([empty, *(one.patterns.mask for one in groups)])
    polarity = np.concatenate([empty, *(one.patterns.polarity for one in groups)])
    some = mask.any(1)
    return ids[some], of[some], Patterns(mask[some], polarity[some])


def _figures(
    site_id: str,
    group: Group,
    own: NDArray[np.bool_],
    values: Values,
    curves: dict[tuple[str, str], Floats],
    ks: Sequence[int],
    seed: int,
) -> Iterator[Figure]:
    """Means over a group's features, and the medians of its coalitions."""
    every = values | {
        (f"coalition_{k}", control, split): curve[:, i]
        for (control, split), curve in curves.items()
        for i, k in enumerate(ks)
    }
    scope = Scope(site_id, group.kind, group.centre, seed)
    for (metric, control, split), of_all in every.items():
        one = of_all[own]
        paired = None if control == "none" else every[metric, "none", split][own] - one
        yield scope.mean(metric, control, split, one, paired)
        known = one[np.isfinite(one)]
        if metric.startswith("coalition_") and len(known):
            middle = float(np.median(known))
            yield scope.figure(f"{metric}_median", control, split, middle, len(known))


def _columns(
    ids: NDArray[np.int64],
    layer: int,
    writers: Writers | None,
    patterns: Patterns,
    ks: Sequence[int],
    curves: dict[tuple[str, str], Floats],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Columns of `schema.writer_row` and of `schema.coalition_row`; of no rows where there is nothing."""
    n_dims = patterns.n_dims[:, None]
    if writers is None:
        none = np.zeros((0, 0), np.int64)
        writers = Writers(none, none.astype(bool), none)
    n, kept = writers.neuron.shape
    nothing = np.zeros((n, len(ks)))
    columns = {
        "feature_id": np.repeat(ids, kept),
        "layer": np.full(n * kept, layer, np.int32),
        "neuron": writers.neuron.astype(np.int32).ravel(),
        "rank": np.tile(np.arange(1, kept + 1, dtype=np.int32), n),
        "polarity": np.where(writers.positive, 1, -1).astype(np.int32).ravel(),
        "agreement": (writers.count / n_dims).ravel(),
    }
    votes = {
        "feature_id": np.repeat(ids, len(ks)),
        "layer": np.full(n * len(ks), layer, np.int32),
        "k": np.tile(np.array(ks, np.int32), n),
        "agreement": curves.get(("none", "in_sample"), nothing).ravel(),
        # NaN, where a feature has one dimension, becomes NULL.
        "agreement_split_half": pa.array(
            curves.get(("none", "held_out"), nothing).ravel(), pa.float64(), from_pandas=True
        ),
        "agreement_random": curves.get(("fair_coin:1", "in_sample"), nothing).ravel(),
    }
    return columns, votes
