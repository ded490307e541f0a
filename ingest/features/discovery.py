"""Features without labels: neighbourhoods of random tokens, how many are distinct, and what could fake them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...catalog.bulk import Figure
from ..stats.bits import Patterns, TypeBits, agreements, ones, tops
from ..stats.draws import rng
from ..stats.figures import Scope
from .categories import TOP_TYPES, Made
from .coherence import METRICS
from .coherence import Vocabulary as Spelling
from .neighbours import NEIGHBOURS, common, distinct, halves, halves_auc, neighbours, percentiles_of
from .prototypes import Null, Ranks, prototypes, random_sets, rotated_p_values
from .rows import Found, summary

DEFAULT_SEEDS = 1500
"""Of the paper."""
_KIND = "discovered"
_BINS = 10
"""Frequency bins of the rank-matched null."""
COHERENT = 20
"""Top tokens that coherence is measured on."""
_SPARSE = (0.001, 0.01)
Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


def choose_seeds(n_types: int, n: int, seed: int) -> Ids:
    """Random seed tokens, without repeats; the same at every site."""
    return np.sort(rng(seed, "seeds").choice(n_types, min(n, n_types), replace=False))


class Baselines:
    """Coherence of what could fake a feature: it depends on the seeds alone, so one serves all sites."""

    def __init__(self, spelling: Spelling, ranks: Ranks, seeds: Ids, seed: int) -> None:
        self.spelling = spelling
        places = np.searchsorted(ranks.words, seeds)
        sets = {
            "spelling": spelling.spelled_like(seeds, COHERENT),
            "frequency": spelling.as_frequent(seeds, COHERENT),
        }
        if len(ranks.words) >= 2 * COHERENT:
            start = np.clip(places - COHERENT // 2, 0, len(ranks.words) - COHERENT)
            near = ranks.words[start[:, None] + np.arange(COHERENT)]
            generator = rng(seed, "coherence")
            sets["random"] = np.stack(
                [ranks.sets_like(one, generator)[i % len(ranks.shuffles)] for i, one in enumerate(near)]  # type: ignore[index]
            )
        self.measures = {name: spelling.measure(one) for name, one in sets.items()}


@dataclass(frozen=True)
class InBasis:
    """What one basis gives: each seed's neighbours and pattern, and the held-out percentiles of the halves."""

    sets: Ids
    patterns: Patterns
    kept: Ids
    stands_for: Ids
    percentiles: Floats

    @property
    def auc(self) -> Floats:
        """(seeds,): held out; where the defining neighbours have nothing in common they read nothing, in any basis."""
        return np.nan_to_num(self.percentiles.mean(1), nan=0.5)


def in_basis(types: TypeBits, seeds: Ids, seed: int) -> InBasis:
    """Discovery in one basis; the halves of the dimensions are the same in every basis."""
    sets = neighbours(types, seeds)
    patterns = common(types, sets)
    kept, stands_for = distinct(patterns)
    return InBasis(sets, patterns, kept, stands_for, halves_auc(types, seeds, rng(seed, "halves")))


def make(
    bases: dict[str, TypeBits],
    site_id: str,
    centre: str,
    seeds: Ids,
    names: list[str],
    baselines: Baselines,
    ranks: Ranks,
    seed: int,
) -> Made:
    """Discovered features at one site. `bases` maps `standard` and each control basis to the types' codes;
    `names` are the seeds' tokens."""
    types = bases["standard"]
    read = {name: in_basis(codes, seeds, seed) for name, codes in bases.items()}
    own = read["standard"]
    others = {name: one for name, one in read.items() if name != "standard"}
    rotated = {name: one for name, one in others.items() if name.startswith("haar:")}
    kept = own.kept
    counts = [
        figure
        for control, one in {"none": own, **others}.items()
        for figure in _counts(one, site_id, centre, control, len(seeds), seed)
    ]
    if not len(kept):
        # Neighbours with nothing in common, as in a basis of noise: a figure, too.
        return Made(None, counts)
    patterns = Patterns(own.patterns.mask[kept], own.patterns.polarity[kept])
    sets = own.sets[kept]
    # One pass over the vocabulary for the tops and for the AUC in sample.
    in_sample = np.empty(sets.shape)

    def rows():  # type: ignore[no-untyped-def]
        for i, row in agreements(types, patterns):
            in_sample[i] = percentiles_of(row, sets[i], np.append(sets[i], seeds[kept[i]]))
            yield i, row

    top = tops(rows(), patterns, TOP_TYPES)
    by_rank, null, rank_bin = _nulls(types, seeds, ranks, seed, site_id)
    held_out = own.auc[kept]
    # Neighbours with nothing in common read nothing.
    rotated_aucs = np.stack([one.auc[kept] for one in rotated.values()])
    p_anchors = np.array([null.p_value(x) for x in held_out])
    bins = rank_bin[kept]
    p_rank = np.array(
        [by_rank[b].p_value(x) if b in by_rank else np.nan for b, x in zip(bins, held_out, strict=True)]
    )
    p_rotated = rotated_p_values(held_out, rotated_aucs, np.full(len(kept), own.percentiles.shape[1]))
    single = _best_dims(types, sets)
    repeats = np.bincount(own.stands_for[own.stands_for >= 0], minlength=len(seeds))[kept] - 1
    n = len(kept)
    found = Found(
        kind=_KIND,
        centre=centre,
        names=[names[i] for i in kept],
        patterns=patterns,
        tops=top,
        n_types=types.n,
        extra={
            "threshold": [None] * n,
            "n_members": [sets.shape[1]] * n,
            "seed_token": seeds[kept],
            "repeats": repeats,
            "best_dim": single[0],
            "best_dim_auc": single[1],
            "auc_in_sample": in_sample.mean(1),
            "auc_held_out": held_out,
            "auc_rotated": rotated_aucs.mean(0),
            # Neighbours that were chosen for agreeing beat any random set in sample: that test says nothing here.
            "null_p95": [None] * n,
            "p_value": np.fmax(np.fmax(p_anchors, p_rank), p_rotated),
        },
        members=[[("neighbour", np.sort(one))] for one in sets],
    )
    size, scored = sets.shape[1], own.percentiles.shape[1]
    found.add("n_dims", "none", "in_sample", patterns.n_dims.tolist(), size, seed)
    found.add("auc_agreement", "none", "in_sample", in_sample.mean(1), size, seed)
    found.add("auc_agreement", "none", "held_out", held_out, scored, seed)
    for name, one in others.items():
        found.add("auc_agreement", name, "held_out", one.auc[kept], scored, seed)
    found.add("auc_agreement", "anchors", "held_out", [float(np.nanmean(null.held_out))] * n, scored, seed)
    found.add("best_dim_auc", "none", "in_sample", single[1], size, seed)
    found.add("best_dim_auc", "anchors", "in_sample", [null.p95] * n, size, seed)
    rank_p95 = [by_rank[b].p95 if b in by_rank else np.nan for b in bins]
    found.add("best_dim_auc", "anchors_rank", "in_sample", rank_p95, size, seed)
    for metric, values in (("p_anchors", p_anchors), ("p_anchors_rank", p_rank), ("p_rotated", p_rotated)):
        found.add(metric, "none", "held_out", values, scored, seed)
    measured = baselines.spelling.measure(top.ids[:, :COHERENT])
    for metric in METRICS:
        found.add(metric, "none", "in_sample", measured[metric], COHERENT, seed)
    for name, measures in baselines.measures.items():
        for metric in METRICS:
            found.add(metric, name, "in_sample", measures[metric][kept], COHERENT, seed)
    # Over every seed: those that were kept were chosen in the standard basis.
    read_by_all = {
        ("auc_agreement", "none" if name == "standard" else name, "held_out"): one.auc
        for name, one in read.items()
    }
    kept_figures = found.by_metric()
    figures = [
        *counts,
        *summary(
            site_id, _KIND, centre, {k: v for k, v in kept_figures.items() if k not in read_by_all}, seed
        ),
        *summary(site_id, _KIND, centre, read_by_all, seed),
    ]
    # Firing is counted in the first rotated basis alone: it costs a pass.
    first = next(iter(rotated), None)
    fired = {"none": top.fired}
    if first is not None and len(rotated[first].kept):
        other = rotated[first]
        some = Patterns(other.patterns.mask[other.kept], other.patterns.polarity[other.kept])
        fired[first] = tops(agreements(bases[first], some), some, 1).fired
    scope = Scope(site_id, _KIND, centre, seed)
    for control, values in fired.items():
        figures += [
            scope.mean(
                f"fires_below_{share:g}", control, "in_sample", (values < share * types.n).astype(float)
            )
            for share in _SPARSE
        ]
    return Made(found, figures)


def _best_dims(types: TypeBits, sets: Ids) -> tuple[Ids, Floats]:
    """The dimension that tells the neighbours of each seed best from all other types, and its AUC."""
    dims, aucs = [], []
    for i in range(0, len(sets), 256):
        inside = ones(types.bits(sets[i : i + 256]))
        size = sets.shape[1]
        made = prototypes(inside / size, (types.positive - inside) / max(1, types.n - size))
        dims.append(made.best_dim)
        aucs.append(made.best_auc)
    return np.concatenate(dims), np.concatenate(aucs)


def _nulls(
    types: TypeBits, seeds: Ids, ranks: Ranks, seed: int, site_id: str
) -> tuple[dict[int, Null], Null, NDArray[np.int64]]:
    """Nulls of random types, and of random words of each frequency bin; and the bin of each seed.

    The sets stand where the neighbours of a feature would: every second one defines on half of the dimensions.
    """
    size = min(NEIGHBOURS, types.n - 1)
    sets = {-1: random_sets(types.n, size, rng(seed, "null", site_id), len(ranks.shuffles))}
    places = np.searchsorted(ranks.words, seeds)
    n_words = len(ranks.words)
    bins = np.minimum(places * _BINS // max(1, n_words), _BINS - 1)
    if n_words >= 2 * size:
        for b in range(_BINS):
            start = min(max(0, (2 * b + 1) * n_words // (2 * _BINS) - size // 2), n_words - size)
            found = ranks.sets_like(ranks.words[start : start + size], rng(seed, "null", site_id, b))
            if found is not None:
                sets[b] = found
    draws = len(sets[-1])
    every = np.concatenate(list(sets.values()))
    aucs = halves(types, every, every, rng(seed, "halves")).mean(1)
    best = _best_dims(types, every)[1]
    nulls = {}
    for i, name in enumerate(sets):
        part = slice(i * draws, (i + 1) * draws)
        # Random types with nothing in common read nothing.
        nulls[name] = Null(best[part], np.nan_to_num(aucs[part], nan=0.5))
    null = nulls.pop(-1)
    return nulls, null, bins


def _counts(one: InBasis, site_id: str, centre: str, control: str, n_seeds: int, seed: int) -> list[Figure]:
    """Seeds whose neighbours have a dimension in common, and how many different features those are."""
    found = (one.stands_for >= 0).astype(float)
    values = {"features_found": float(found.sum()), "features_distinct": float(len(one.kept))}
    scope = Scope(site_id, _KIND, centre, seed)
    figures = [scope.figure(metric, control, "in_sample", value, n_seeds) for metric, value in values.items()]
    figures.append(scope.mean("yield", control, "in_sample", found))
    is_distinct = np.zeros(n_seeds)
    is_distinct[one.kept] = 1.0
    return [*figures, scope.mean("yield_distinct", control, "in_sample", is_distinct)]
