"""What could fake a discovered feature: its top tokens being one word in several spellings, or of one frequency.

Coherence itself is the share of pairs of different words that stand in a common category of WordNet, and beside it the
same share for tokens that are merely spelled alike, merely as frequent, or random words of that frequency.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..words.anchors import Anchors

Ids = NDArray[np.int64]
METRICS = ("same_word_share", "edit_similarity", "rank_distance", "category_share")
_AT_ONCE = 64


def plain(token: str) -> str:
    """A token without case, spacing and marks of its tokenizer: what two variants of a word share."""
    bare = token.strip()
    return (bare[2:] if bare.startswith("##") and len(bare) > 2 else bare).casefold()


class Vocabulary:
    """What the measures need of every type.

    Args:
        strings: decoded tokens. categories: the words of each category that are tokens here.
    """

    def __init__(self, strings: Sequence[str], categories: Sequence[Anchors]) -> None:
        self.plain = [plain(one) for one in strings]
        words = {word: i for i, word in enumerate(dict.fromkeys(self.plain))}
        self.word = np.array([words[one] for one in self.plain])
        member = np.zeros((len(words), len(categories)), np.bool_)
        for j, one in enumerate(categories):
            member[self.word[one.token_ids], j] = True
        self._member = member
        self._listed: NDArray[np.bool_] = np.asarray(member.any(axis=1))

    def measure(self, sets: Ids) -> dict[str, NDArray[np.float64]]:
        """Each of `METRICS`, (sets,), over all pairs of the tokens of each set (sets, size).

        same_word_share: pairs that differ in case or spacing only. edit_similarity: 1 - Levenshtein distance / longer
        length. rank_distance: of log2(token id + 1). category_share: among pairs of different words that are both in
        some category, those that share one; NaN where there is no such pair.
        """
        from rapidfuzz import process
        from rapidfuzz.distance import Levenshtein

        found = {name: np.full(len(sets), np.nan) for name in METRICS}
        first, second = np.triu_indices(sets.shape[1], 1)
        for i, ids in enumerate(sets):
            texts = [self.plain[t] for t in ids]
            similar = process.cdist(texts, texts, scorer=Levenshtein.normalized_similarity)
            words = self.word[ids]
            same = words[first] == words[second]
            ranks = np.log2(ids + 1.0)
            found["same_word_share"][i] = same.mean()
            found["edit_similarity"][i] = similar[first, second].mean()
            found["rank_distance"][i] = np.abs(ranks[first] - ranks[second]).mean()
            listed = ~same & self._listed[words][first] & self._listed[words][second]
            if listed.any():
                member = np.asarray(self._member[words], np.float32)
                found["category_share"][i] = ((member @ member.T)[first, second] > 0)[listed].mean()
        return found

    def spelled_like(self, seeds: Ids, size: int) -> Ids:
        """(seeds, size): the types whose plain text is most like each seed's, ties by token id, the seed left out."""
        from rapidfuzz import process
        from rapidfuzz.distance import Levenshtein

        size = min(size, len(self.plain) - 1)
        out = np.empty((len(seeds), size), np.int64)
        for i in range(0, len(seeds), _AT_ONCE):
            some = seeds[i : i + _AT_ONCE]
            similar = process.cdist(
                [self.plain[t] for t in some],
                self.plain,
                scorer=Levenshtein.normalized_similarity,
                dtype=np.float32,
                workers=-1,
            )
            for j, seed in enumerate(some):
                row = similar[j]
                row[seed] = -1.0
                least = np.partition(row, len(row) - size)[len(row) - size]
                places = np.flatnonzero(row >= least)
                out[i + j] = places[np.argsort(-row[places], kind="stable")[:size]]
        return out

    def as_frequent(self, seeds: Ids, size: int) -> Ids:
        """(seeds, size): the types next to each seed by token id, the seed left out."""
        n = len(self.plain)
        size = min(size, n - 1)
        start = np.clip(seeds - size // 2, 0, n - 1 - size)[:, None]
        found = start + np.arange(size)
        return found + (found >= seeds[:, None])
