from __future__ import annotations

import math

import numpy as np
import pytest

from signarium.ingest.features import coherence
from signarium.ingest.features.coherence import METRICS, Vocabulary, plain
from signarium.ingest.words.anchors import Anchors

STRINGS = [
    "", " king", "King", "KING\n", " kin", "queen", "##Queen", "cat", " dog", "ring", "Straße", "STRASSE", " ", "12"
]  # fmt: skip
KING, KING_2, KING_3, KIN, QUEEN, QUEEN_2, CAT, DOG, RING = range(1, 10)


def anchors(category: str, *ids: int) -> Anchors:
    return Anchors(category, np.array(ids), tuple(STRINGS[i] for i in ids))


CATEGORIES = [
    # A word is in a category in all of its spellings, whichever was its anchor.
    anchors("royal", KING, QUEEN),
    anchors("family", KIN, QUEEN),
    anchors("animal", CAT, DOG),
]


def levenshtein(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (x != y)))
    return row[-1]


def similarity(a: str, b: str) -> float:
    longer = max(len(a), len(b))
    return 1 - levenshtein(a, b) / longer if longer else 1.0


def test_plain_is_what_variants_of_a_word_share() -> None:
    assert [plain(one) for one in STRINGS] == [
        "", "king", "king", "king", "kin", "queen", "queen", "cat", "dog", "ring", "strasse", "strasse", "", "12"
    ]  # fmt: skip


def test_the_measures_by_hand() -> None:
    sets = np.array(
        [[KING, KING_2, KIN, CAT], [KING, KING_2, KING_3, KING], [QUEEN, QUEEN_2, KIN, KING_3], [CAT, DOG, RING, 10]]
    )  # fmt: skip
    found = Vocabulary(STRINGS, CATEGORIES).measure(sets)
    assert tuple(found) == METRICS
    # Six pairs each. king-king 1, king-kin 0.75 twice, the rest has no letter in its place: 0.
    # queen-queen 1, queen-kin and queen-king 0.2 and 0 twice each: only the n of kin falls on one of queen.
    queen = [1, similarity("queen", "kin"), similarity("queen", "king")]
    assert queen[1:] == [pytest.approx(0.2), 0]
    expected = [2.5 / 6, 1.0, (queen[0] + 2 * queen[1] + 2 * queen[2] + 0.75) / 6]
    assert np.allclose(found["edit_similarity"][:3], expected, atol=1e-6)
    assert np.allclose(found["same_word_share"], [1 / 6, 1, 1 / 6, 0])
    ranks = [[math.log2(i + 1) for i in row] for row in sets]
    apart = [sum(abs(row[a] - row[b]) for a in range(4) for b in range(a)) / 6 for row in ranks]
    assert np.allclose(found["rank_distance"], apart)
    # king-kin twice and king-cat twice and kin-cat: of no common category. No pair of different words. queen is
    # royal like king (2 pairs) and family like kin (2), king and kin share none. cat-dog is the only listed pair.
    assert np.allclose(found["category_share"], [0, np.nan, 4 / 5, 1], equal_nan=True)


def test_measures_of_random_sets() -> None:
    generator = np.random.default_rng(0)
    strings = ["".join(generator.choice(list("ab A"), generator.integers(0, 5))) for _ in range(60)]
    chosen = [np.sort(generator.choice(60, 8, replace=False)) for _ in range(4)]
    vocabulary = Vocabulary(strings, [Anchors(str(i), ids, ()) for i, ids in enumerate(chosen)])
    words = [plain(one) for one in strings]
    listed = [{i for i, ids in enumerate(chosen) if word in {words[t] for t in ids}} for word in words]
    sets = np.stack([generator.choice(60, 7, replace=False) for _ in range(30)])
    found = vocabulary.measure(sets)
    for i, ids in enumerate(sets.tolist()):
        pairs = [(a, b) for j, a in enumerate(ids) for b in ids[:j]]
        same = np.mean([words[a] == words[b] for a, b in pairs])
        assert found["same_word_share"][i] == pytest.approx(same)
        similar = np.mean([similarity(words[a], words[b]) for a, b in pairs])
        assert found["edit_similarity"][i] == pytest.approx(similar, abs=1e-6)
        apart = np.mean([abs(math.log2(a + 1) - math.log2(b + 1)) for a, b in pairs])
        assert found["rank_distance"][i] == pytest.approx(apart)
        both = [(a, b) for a, b in pairs if words[a] != words[b] and listed[a] and listed[b]]
        share = np.mean([bool(listed[a] & listed[b]) for a, b in both]) if both else np.nan
        assert found["category_share"][i] == pytest.approx(share, nan_ok=True)


@pytest.mark.parametrize("size", [1, 7, 20, 500])
def test_those_that_are_spelled_alike(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coherence, "_AT_ONCE", 16)
    generator = np.random.default_rng(1)
    # Few letters: most similarities are shared by many, some types are one word.
    strings = ["".join(generator.choice(list("ab AB"), generator.integers(0, 7))) for _ in range(90)]
    words = [plain(one) for one in strings]
    found = Vocabulary(strings, []).spelled_like(np.arange(90), size)
    assert found.shape == (90, min(size, 89))
    for seed in range(90):
        others = sorted(
            (t for t in range(90) if t != seed),
            key=lambda t, seed=seed: (-round(similarity(words[seed], words[t]), 9), t),
        )
        assert found[seed].tolist() == others[:size]


@pytest.mark.parametrize("size", [1, 2, 7, 20, 89, 500])
def test_those_of_the_same_frequency(size: int) -> None:
    found = Vocabulary(["a"] * 90, []).as_frequent(np.arange(90), size)
    k = min(size, 89)
    assert found.shape == (90, k)
    for seed, ids in enumerate(found.tolist()):
        assert ids == sorted(set(ids)) and seed not in ids and ids[0] >= 0 and ids[-1] < 90
        nearest = sorted(abs(t - seed) for t in range(90) if t != seed)[:k]
        assert sorted(abs(t - seed) for t in ids) == nearest
