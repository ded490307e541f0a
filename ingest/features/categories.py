"""Readable features: categories of words, how well they read, and every control that could explain that away."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...catalog.bulk import Figure
from ..stats.bits import Patterns, TypeBits, agreements, tops
from ..stats.draws import rng
from ..words.anchors import Anchors, Vocabulary
from .prototypes import Nulls, Prototypes, Ranks, define, halves, rotated_p_values, score
from .readers import linear, log_odds, probes
from .rows import Found, summary

TOP_TYPES = 50
_KIND = "category"
Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Split:
    """The anchors of every category, and the random halves that define and are scored: the same at every site."""

    anchors: list[Ids]
    define: list[Ids]
    score: list[Ids]

    @classmethod
    def of(cls, categories: Sequence[Anchors], seed: int) -> Split:
        """One generator a category, from its name."""
        cut = [halves(one.token_ids, rng(seed, "split", one.category)) for one in categories]
        return cls([one.token_ids for one in categories], [one[0] for one in cut], [one[1] for one in cut])


@dataclass(frozen=True)
class Reading:
    """One reader's percentiles, a list over categories of (scored,): among all types, and (if asked for) words alone."""

    all: list[Floats]
    words: list[Floats]

    @property
    def auc(self) -> Floats:
        """(categories,)."""
        return np.array([one.mean() for one in self.all])

    @property
    def auc_words(self) -> Floats:
        """(categories,); NaN where there are no other words."""
        return np.array([one.mean() for one in self.words])


@dataclass(frozen=True)
class InBasis:
    """What one basis shows of the categories."""

    whole: Prototypes
    half: Prototypes
    in_sample: Reading
    held_out: Reading
    log_odds: Reading
    best_dim_held_out: Floats


def read_basis(types: TypeBits, split: Split, words: Ids) -> InBasis:
    """Prototypes and readers in one basis."""
    whole = define(types, split.anchors, split.anchors)
    half = define(types, split.anchors, split.define)
    weights = log_odds(types, split.anchors, split.define, half.patterns.mask)
    counted, halved = ((row for _, row in agreements(types, one.patterns)) for one in (whole, half))
    among = [None, words]
    return InBasis(
        whole,
        half,
        _read(counted, split.anchors, split.anchors),
        _read(halved, split.score, split.anchors, among),
        _read(linear(types, weights), split.score, split.anchors, among),
        _best_dim_held_out(types, half, split),
    )


def _read(
    scores: Iterable[NDArray[np.generic]],
    positives: Sequence[Ids],
    anchors: Sequence[Ids],
    among: Sequence[Ids | None] = (None,),
) -> Reading:
    """Percentiles by `scores`, a row (types,) a category, among all types and, if given, words: ids, or None for all."""
    found = Reading([], [])
    for row, own, left_out in zip(scores, positives, anchors, strict=True):
        everyone, *of_words = score(row, own, left_out, among)
        found.all.append(everyone)
        found.words.extend(of_words)
    return found


def _best_dim_held_out(types: TypeBits, half: Prototypes, split: Split) -> Floats:
    """The one-bit AUC, on the scored half, of the dimension and polarity that the defining half puts first."""
    at = np.arange(len(split.score)), half.best_dim
    n_scored, n_anchors = (np.array([len(ids) for ids in sets]) for sets in (split.score, split.anchors))
    outside = np.maximum(types.n - n_anchors, 1)
    p_minus = (types.positive[half.best_dim] - types.ones(split.anchors)[at]) / outside
    apart = types.ones(split.score)[at] / n_scored - p_minus
    return 0.5 + np.where(half.patterns.polarity[at], apart, -apart) / 2


@dataclass(frozen=True)
class Made:
    """Features at one site and centre, if any were found: their rows, and the figures about all of them."""

    found: Found | None
    figures: list[Figure]


def make(
    bases: dict[str, TypeBits],
    site_id: str,
    centre: str,
    categories: Sequence[Anchors],
    split: Split,
    vocabulary: Vocabulary,
    ranks: Ranks,
    seed: int,
) -> Made:
    """Categories at one site and centre. `bases` maps `standard` and each control basis to the types' codes."""
    types = bases["standard"]
    words = np.flatnonzero(vocabulary.words)
    read = {name: read_basis(codes, split, words) for name, codes in bases.items()}
    own = read["standard"]
    others = {name: one for name, one in read.items() if name != "standard"}
    rotated = {name: one for name, one in others.items() if name.startswith("haar:")}
    probe = probes(types, split.anchors, split.define, rng(seed, "probe", site_id, centre))
    unseen = [np.setdiff1d(ids, probe.negatives, True) for ids in (np.arange(types.n), words)]
    probed = _read(probe.scores, split.score, split.anchors, unseen)
    nulls = Nulls(types, rng(seed, "negatives", site_id, centre))
    by_size, by_rank = [], []
    for one in categories:
        size = len(one.token_ids)
        by_size.append(nulls.of_size(size, rng(seed, "anchors", site_id, centre, size)))
        sets = ranks.sets_like(one.token_ids, rng(seed, "anchors_rank", one.category))
        by_rank.append(None if sets is None else nulls.of(sets))
    patterns: Patterns = own.whole.patterns
    n = [len(one) for one in split.anchors]
    n_scored = [len(one) for one in split.score]
    held_out = own.held_out.auc
    p_anchors = np.array([null.p_value(x) for null, x in zip(by_size, held_out, strict=True)])
    p_rank = np.array(
        [np.nan if null is None else null.p_value(x) for null, x in zip(by_rank, held_out, strict=True)]
    )
    rotated_aucs = np.stack([one.held_out.auc for one in rotated.values()])
    p_rotated = rotated_p_values(held_out, rotated_aucs, np.array(n_scored))
    null_p95 = np.array([one.p95 for one in by_size])
    found = Found(
        kind=_KIND,
        centre=centre,
        names=[one.category for one in categories],
        patterns=patterns,
        tops=tops(agreements(types, patterns), patterns, TOP_TYPES),
        n_types=types.n,
        extra={
            "threshold": own.whole.threshold,
            "n_members": n,
            "seed_token": [None] * len(n),
            "repeats": [0] * len(n),
            "best_dim": own.whole.best_dim,
            "best_dim_auc": own.whole.best_auc,
            "auc_in_sample": own.in_sample.auc,
            "auc_held_out": held_out,
            "auc_rotated": rotated_aucs.mean(0),
            "null_p95": null_p95,
            "p_value": np.nanmax([p_anchors, p_rank, p_rotated], 0),
        },
        members=[
            [("define", one), ("score", other)] for one, other in zip(split.define, split.score, strict=True)
        ],
    )
    rank_p95 = np.array([np.nan if null is None else null.p95 for null in by_rank])
    for control, basis in {"none": own, **others}.items():
        found.add("best_dim_auc", control, "in_sample", basis.whole.best_auc, n, seed)
        found.add("best_dim_auc", control, "held_out", basis.best_dim_held_out, n_scored, seed)
        found.add("n_dims", control, "in_sample", basis.whole.patterns.n_dims.tolist(), n, seed)
        found.add("auc_agreement", control, "in_sample", basis.in_sample.auc, n, seed)
        found.add("auc_agreement", control, "held_out", basis.held_out.auc, n_scored, seed)
        found.add("auc_agreement_words", control, "held_out", basis.held_out.auc_words, n_scored, seed)
        found.add("auc_log_odds", control, "held_out", basis.log_odds.auc, n_scored, seed)
        found.add("auc_log_odds_words", control, "held_out", basis.log_odds.auc_words, n_scored, seed)
    found.add("best_dim_auc", "anchors", "in_sample", null_p95, n, seed)
    found.add("best_dim_auc", "anchors_rank", "in_sample", rank_p95, n, seed)
    null_means = [float(null.held_out.mean()) for null in by_size]
    rank_means = [np.nan if null is None else float(null.held_out.mean()) for null in by_rank]
    found.add("auc_agreement", "anchors", "held_out", null_means, n_scored, seed)
    found.add("auc_agreement", "anchors_rank", "held_out", rank_means, n_scored, seed)
    found.add("auc_probe", "none", "held_out", probed.auc, n_scored, seed)
    found.add("auc_probe_words", "none", "held_out", probed.auc_words, n_scored, seed)
    for metric, values in (
        ("p_anchors", p_anchors),
        ("p_anchors_rank", p_rank),
        ("p_rotated", p_rotated),
    ):
        found.add(metric, "none", "held_out", values, n_scored, seed)
    return Made(found, summary(site_id, _KIND, centre, found.by_metric(), seed))
