"""Prototypes from labelled types, how well they read, and the random anchors that they have to beat.

Bag of Dims, section 3: a dimension is registered when its one-bit AUC reaches the threshold, and a type scores
the share of registered dimensions on which it has the expected sign.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..stats.bits import Patterns, TypeBits, as_words, ones

TAUS = (0.75, 0.70)
"""Thresholds on a dimension's AUC, tried in turn; if none is reached, the single best dimension is registered."""
DRAWS = 100
"""Random anchor sets of a null."""
NULL_NEGATIVES = 2048
"""Random types that a null's sets are scored against; a category's own figures take every type."""
_NEAR = 256
"""Words on either side, by token id, among which an anchor's random twin is drawn. Token ids stand for frequency
ranks: vocabularies list what their training merged, or kept, first."""

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Prototypes:
    """What the AUC of each dimension makes of several anchor sets.

    `auc` is (sets, width); `threshold` (sets,) is NaN where the single best dimension had to do.
    """

    patterns: Patterns
    auc: NDArray[np.float64]
    threshold: NDArray[np.float64]

    @property
    def best_dim(self) -> NDArray[np.int64]:
        """(sets,): the dimension with the largest AUC, the lowest of equals."""
        return self.auc.argmax(1)

    @property
    def best_auc(self) -> NDArray[np.float64]:
        """(sets,): its AUC."""
        return self.auc.max(1)


def prototypes(p_plus: NDArray[np.float64], p_minus: NDArray[np.float64]) -> Prototypes:
    """Register dimensions by AUC_d = 0.5 + |p+_d - p-_d| / 2 (Bag of Dims, Eq. 2), polarity the sign of p+ - p-.

    `p_plus` and `p_minus`, (sets, width), are shares of positive bits among anchors and among the rest.
    """
    auc = 0.5 + np.abs(p_plus - p_minus) / 2
    top = auc.max(1)
    threshold = np.full(len(auc), np.nan)
    for tau in reversed(TAUS):
        threshold[top >= tau] = tau
    mask = auc >= np.where(np.isnan(threshold), np.inf, threshold)[:, None]
    single = np.flatnonzero(np.isnan(threshold))
    mask[single, auc[single].argmax(1)] = True
    return Prototypes(Patterns(mask, p_plus > p_minus), auc, threshold)


def define(types: TypeBits, anchors: Sequence[Ids], define_on: Sequence[Ids]) -> Prototypes:
    """Prototypes of `define_on`, each against all types that are none of the matching `anchors`."""
    n_define, n_anchors = (np.array([len(ids) for ids in sets])[:, None] for sets in (define_on, anchors))
    outside = np.maximum(types.n - n_anchors, 1)
    return prototypes(types.ones(define_on) / n_define, (types.positive - types.ones(anchors)) / outside)


def score(
    scores: NDArray[np.generic], positives: Ids, anchors: Ids, among: Sequence[Ids | None]
) -> list[NDArray[np.float64]]:
    """Percentiles (len(positives),) of `scores` (types,) at `positives` against types that are no `anchors`.

    One array for each of `among`: negatives are those types (None: all). Its mean is the AUC; ties count half. NaN
    where no negative is left.
    """
    own = scores[positives]
    found = []
    for some in among:
        every, out = scores if some is None else scores[some], anchors
        if some is not None:
            inside = np.zeros(len(scores), np.bool_)
            inside[some] = True
            out = anchors[inside[anchors]]
        if np.issubdtype(scores.dtype, np.integer):
            times = np.bincount(every, minlength=int(own.max(initial=0)) + 1)
            times -= np.bincount(scores[out], minlength=len(times))
            upto = times.cumsum()[own]
            below = upto - times[own]
        else:
            # Sorting all scores is quicker than to place each among the few of `own`.
            ordered, left_out = np.sort(every), np.sort(scores[out])
            below, upto = (
                np.searchsorted(ordered, own, side) - np.searchsorted(left_out, own, side)
                for side in ("left", "right")
            )
        found.append((below + upto) / 2 / (len(every) - len(out) or np.nan))
    return found


def halves(ids: Ids, generator: np.random.Generator) -> tuple[Ids, Ids]:
    """A random half to define with (the larger, of an odd number) and one to score, each ascending."""
    mixed = generator.permutation(ids)
    middle = (len(ids) + 1) // 2
    return np.sort(mixed[:middle]), np.sort(mixed[middle:])


# ---- random anchors -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Null:
    """Random anchor sets: the best dimension's AUC in sample, and the held-out AUC of the agreement, each (draws,)."""

    best_dim: NDArray[np.float64]
    held_out: NDArray[np.float64]

    @property
    def p95(self) -> float:
        """95th percentile of the best dimension's AUC."""
        return float(np.percentile(self.best_dim, 95))

    def p_value(self, value: float) -> float:
        """One-sided, of a held-out AUC among those of the draws, taken as normal.

        A hundred draws cannot resolve what a correction for thousands of features asks for; their spread can.
        """
        spread = float(self.held_out.std(ddof=1)) * math.sqrt(1 + 1 / len(self.held_out))
        return upper_tail(value - float(self.held_out.mean()), spread)


def upper_tail(above: float, spread: float) -> float:
    """P(N(0, spread) > above); 0, 1/2 or 1 if there is no spread."""
    if spread <= 0:
        return 0.5 if above == 0 else float(above < 0)
    return math.erfc(above / spread / math.sqrt(2)) / 2


def random_sets(n: int, size: int, generator: np.random.Generator, draws: int = DRAWS) -> Ids:
    """(draws, size): random types of `n`, each set without repeats, in random order."""
    return np.stack([generator.choice(n, size, replace=False) for _ in range(draws)])


@dataclass(frozen=True)
class Ranks:
    """Words in the order of their token ids, and as many shuffles of it that move a word by little only.

    Taking the words at the same places of a shuffle gives a random set of words of the same frequency rank.
    """

    words: Ids
    shuffles: NDArray[np.int32]

    @classmethod
    def of(cls, words: NDArray[np.bool_], generator: np.random.Generator, draws: int = DRAWS) -> Ranks:
        """`words` says which types are words."""
        ids = np.flatnonzero(words)
        places = np.arange(len(ids))
        shuffles = [np.argsort(places + generator.uniform(-_NEAR, _NEAR, len(ids))) for _ in range(draws)]
        return cls(ids, np.array(shuffles, np.int32).reshape(draws, len(ids)))

    def sets_like(self, anchors: Ids, generator: np.random.Generator) -> Ids | None:
        """(draws, len(anchors)): words of the ranks of `anchors` (ascending); None if there are too few words."""
        n = len(self.words)
        if len(anchors) > n // 2:
            return None
        # Each place once: the next free one upwards, and, at the end of the list, downwards.
        places = np.searchsorted(self.words, anchors)
        places = np.maximum.accumulate(places - np.arange(len(anchors))) + np.arange(len(anchors))
        room = n - len(anchors) + np.arange(len(anchors))
        places = np.minimum(places, room)
        sets = self.words[self.shuffles[:, places]]
        return generator.permuted(sets, axis=1)


class Nulls:
    """Nulls at one site and centre; sets of one size share theirs."""

    def __init__(self, types: TypeBits, generator: np.random.Generator) -> None:
        self._types = types
        chosen = generator.choice(types.n, min(NULL_NEGATIVES, types.n), replace=False)
        self._negatives = np.sort(chosen)
        self._is_negative = np.zeros(types.n, np.bool_)
        self._is_negative[chosen] = True
        self._words = as_words(types.codes)
        self._negative_codes = types.codes[self._negatives]
        self._by_size: dict[int, Null] = {}

    def of_size(self, size: int, generator: np.random.Generator) -> Null:
        """The null of `size` random types, which the first caller draws."""
        if size not in self._by_size:
            self._by_size[size] = self.of(random_sets(self._types.n, size, generator))
        return self._by_size[size]

    def of(self, sets: Ids) -> Null:
        """The null of given sets (draws, size) in random order: the first half defines, the second is scored."""
        types = self._types
        draws, size = sets.shape
        middle = (size + 1) // 2
        defining, others = (ones(types.bits(part)) for part in (sets[:, :middle], sets[:, middle:]))
        inside = defining + others
        p_minus = (types.positive - inside) / max(1, types.n - size)
        in_sample = prototypes(inside / size, p_minus)
        made = prototypes(defining / middle, p_minus).patterns
        against = made.counts(self._negative_codes)
        masks, signs = (as_words(one)[:, None] for one in made.packed())
        apart = np.bitwise_count((self._words[sets] ^ signs) & masks)
        own = made.n_dims[:, None] - apart.sum(2, dtype=np.int64)
        # One histogram of agreements a set; what of the set is among the negatives is taken out again.
        width = types.width + 1
        places = np.arange(draws)[:, None] * width
        times = np.bincount((places + against).ravel(), minlength=draws * width)
        times -= np.bincount((places + own)[self._is_negative[sets]], minlength=draws * width)
        times = times.reshape(draws, width)
        upto = times.cumsum(1)
        scored = own[:, middle:]
        below = np.take_along_axis(upto, scored, 1) - np.take_along_axis(times, scored, 1) / 2
        return Null(in_sample.best_auc, (below / np.maximum(upto[:, -1:], 1)).mean(1))


def rotated_p_values(
    own: NDArray[np.float64], rotated: NDArray[np.float64], n: NDArray[np.int64]
) -> NDArray[np.float64]:
    """One-sided p-values (features,) that AUCs in the standard basis lie above those of random bases.

    `own` is (features,), `rotated` (bases, features), `n` the scored types of each. If the axes are like any others, the
    standard basis is one more draw, so a difference is measured by how much random bases differ among themselves.
    Three say little for one feature; their variance is taken as phi A (1 - A) / n, an overdispersed binomial, with one
    phi for all features. NaN where an AUC is, or with one basis alone.
    """
    draws = len(rotated)
    mean = rotated.mean(0)
    expected = np.clip(mean, 0.5 / n, 1 - 0.5 / n)
    binomial = expected * (1 - expected) / n
    variances = rotated.var(0, ddof=1) if draws > 1 else np.full(len(own), np.nan)
    known = np.isfinite(variances)
    phi = float(variances[known].sum() / binomial[known].sum()) if known.any() else np.nan
    spread = np.sqrt(phi * binomial * (1 + 1 / draws))
    return np.array(
        [
            upper_tail(float(a), float(s)) if np.isfinite(a) and np.isfinite(s) else np.nan
            for a, s in zip(own - mean, spread, strict=True)
        ]
    )
