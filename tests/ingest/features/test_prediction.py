from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from torch import Tensor

from signarium.catalog.errors import InvalidInput
from signarium.ingest.features import prediction
from signarium.ingest.features.prediction import sign_majority, sign_only

Array = NDArray[Any]


def whole(shape: tuple[int, ...], low: int = -2, high: int = 2) -> st.SearchStrategy[Array]:
    """Small whole numbers: products are exact, and many scores are equal."""
    return hnp.arrays(np.float32, shape, elements=st.integers(low, high).map(float))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(width: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal(width, width, seed=seed)).Q


def turn(width: int, seed: int) -> Array:
    """A permutation with signs: orthogonal, and exact."""
    draw = np.random.default_rng(seed)
    q = np.zeros((width, width), np.float32)
    q[np.arange(width), draw.permutation(width)] = draw.choice([-1.0, 1.0], width)
    return q


def sign(x: Array) -> Array:
    return np.where(x > 0, 1.0, -1.0).astype(np.float32)


def loud(x: Array, k: int) -> Array:
    out = np.zeros_like(x)
    for row in range(len(x)):
        for d in sorted(range(x.shape[1]), key=lambda d: (-abs(x[row, d]), d))[:k]:
            out[row, d] = 1.0 if x[row, d] > 0 else -1.0
    return out


def rank(scores: Array, target: int) -> int:
    return sorted(range(len(scores)), key=lambda t: (-scores[t], t)).index(target)


def shares(scores: Array, targets: Sequence[int], ks: Sequence[int]) -> dict[int, float]:
    ranks = [rank(row, target) for row, target in zip(scores, targets, strict=True)]
    return {k: sum(r < k for r in ranks) / len(ranks) for k in ks}


# ---- sign-only ----------------------------------------------------------------------------------

KS = (1, 2, 4, 9)


@given(
    st.tuples(st.integers(1, 5), st.integers(1, 12), st.integers(1, 7)).flatmap(
        lambda s: st.tuples(
            whole((s[0], s[2])),
            whole((s[1], s[2])),
            st.none() | whole((s[1],)),
            st.integers(1, s[2]),
            st.integers(0, 99),
        )
    )
)
def test_sign_only_by_sorting(drawn: tuple[Array, Array, Array | None, int, int]) -> None:
    h, rows, bias, loudest, seed = drawn
    logits = h @ rows.T + (0 if bias is None else bias)
    targets = [int(np.flatnonzero(row == row.max())[0]) for row in logits]
    q = turn(h.shape[1], seed)
    turned = h @ q.T
    found = sign_only(
        torch.from_numpy(h), torch.from_numpy(rows), loudest=loudest, seed=seed, ks=KS,
        rotations=[torch.from_numpy(q)], bias=None if bias is None else torch.from_numpy(bias),
    )  # fmt: skip
    assert found["none"] == shares(sign(h) @ rows.T, targets, KS)
    assert found["loudest"] == shares(loud(h, loudest) @ rows.T, targets, KS)
    assert found["haar:1"] == shares(sign(turned) @ q @ rows.T, targets, KS)
    assert found["loudest_haar:1"] == shares(loud(turned, loudest) @ q @ rows.T, targets, KS)
    assert set(found) == {"none", "loudest", "permutation", "loudest_random", "haar:1", "loudest_haar:1"}


def test_rotations_map_back_as_the_formula_says() -> None:
    h, rows, qs = normal(60, 24), normal(90, 24, seed=1), [rotation(24, 2), rotation(24, 3)]
    found = sign_only(h, rows, loudest=5, seed=0, rotations=qs, ks=KS)
    targets = (h @ rows.T).argmax(1).tolist()
    for i, q in enumerate(qs, 1):
        # Q' sign(Q h), a column at a time.
        back = np.stack([(q.T @ torch.from_numpy(sign((q @ x).numpy()))).numpy() for x in h])
        assert found[f"haar:{i}"] == shares(back @ rows.numpy().T, targets, KS)
    assert found["haar:1"] != found["haar:2"]


def test_identities() -> None:
    h, rows = normal(50, 16), normal(70, 16, seed=1)
    same = sign_only(h, rows, loudest=6, seed=0, rotations=[torch.eye(16)], ks=KS)
    assert same["haar:1"] == same["none"]
    assert same["loudest_haar:1"] == same["loudest"]
    assert 0 < same["none"][1] < 1
    every = sign_only(h, rows, loudest=16, seed=0, rotations=[rotation(16, 5)], ks=KS)
    assert every["loudest"] == every["loudest_random"] == every["none"]
    assert every["loudest_haar:1"] == every["haar:1"]
    # States of signs alone lose nothing; states all positive have nothing to permute.
    of_signs = sign_only(torch.from_numpy(sign(h.numpy())), rows, loudest=16, seed=0, ks=KS)
    assert of_signs["none"][1] == 1
    positive = sign_only(h.abs(), rows, loudest=6, seed=0, ks=KS)
    assert positive["permutation"] == positive["none"]


def test_zero_counts_as_negative() -> None:
    # Signs -1, -1: the second token scores 2, the first, which is the target, -2.
    h, rows = torch.tensor([[0.0, -0.0]]), torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    assert sign_only(h, rows, loudest=2, seed=0, ks=(1, 2))["none"] == {1: 0.0, 2: 1.0}


def test_random_dimensions_are_drawn_for_each_row() -> None:
    # With the identity for a head, token t scores what dimension t holds, and the target is the largest.
    n, width, kept = 4000, 20, 5
    h = 1 + normal(n, width).abs()
    found = sign_only(h, torch.eye(width), loudest=kept, seed=3, ks=(kept,))
    # A target is among the kept dimensions or behind all of them; 5 standard errors of 0.25 are 0.034.
    assert found["loudest_random"][kept] == pytest.approx(kept / width, abs=0.034)
    assert found["loudest"][kept] == 1


def test_one_permutation_moves_all_rows() -> None:
    # Row d has its only positive sign in dimension d, so a hit is a dimension that stays where it is.
    width = 30
    h = 2 * torch.eye(width) - 1
    hits = [sign_only(h, torch.eye(width), loudest=1, seed=s, ks=(1,))["permutation"][1] for s in range(40)]
    # A permutation leaves one dimension in place on average, with variance 1.
    assert width * sum(hits) / len(hits) == pytest.approx(1, abs=5 / math.sqrt(len(hits)))
    assert len(set(hits)) > 1


def test_sign_only_depends_on_the_seed_and_not_on_blocks(monkeypatch: Any) -> None:
    draw = np.random.default_rng(0)
    h, rows = (torch.from_numpy(draw.integers(-3, 4, s).astype(np.float32)) for s in ((37, 12), (53, 12)))
    options: dict[str, Any] = {"loudest": 4, "rotations": [torch.from_numpy(turn(12, 1))], "ks": KS}
    found = sign_only(h, rows, seed=7, **options)
    assert sign_only(h, rows, seed=7, **options) == found
    other = sign_only(h, rows, seed=8, **options)
    assert {m for m in found if found[m] != other[m]} <= {"permutation", "loudest_random"}
    assert other != found
    monkeypatch.setattr(prediction, "_SCORES", 5 * 53)
    monkeypatch.setattr(prediction, "_CHUNK", 7 * 12)
    assert sign_only(h, rows, seed=7, **options) == found


def test_a_head_in_bfloat16() -> None:
    h, rows = normal(40, 16), normal(60, 16, seed=1).bfloat16()
    found = sign_only(h, rows, loudest=4, seed=0, ks=KS)
    assert found == sign_only(h, rows.float(), loudest=4, seed=0, ks=KS)


def test_what_sign_only_refuses() -> None:
    h, rows = normal(3, 4), normal(5, 4)
    with pytest.raises(InvalidInput, match="loudest is 5"):
        sign_only(h, rows, loudest=5, seed=0)
    with pytest.raises(InvalidInput, match="no \\[n, D\\]"):
        sign_only(h, normal(5, 3), loudest=1, seed=0)
    with pytest.raises(InvalidInput, match="no \\[n, D\\]"):
        sign_only(h[:0], rows, loudest=1, seed=0)
    with pytest.raises(InvalidInput, match="NaN"):
        sign_only(h / 0, rows, loudest=1, seed=0)
    with pytest.raises(InvalidInput, match="does not turn 4"):
        sign_only(h, rows, loudest=1, seed=0, rotations=[torch.eye(3)])
    with pytest.raises(InvalidInput, match="bias"):
        sign_only(h, rows, loudest=1, seed=0, bias=torch.zeros(4))
    with pytest.raises(InvalidInput, match="k must be"):
        sign_only(h, rows, loudest=1, seed=0, ks=(0, 1))


# ---- majority of the context --------------------------------------------------------------------


@st.composite
def prompts(draw: st.DrawFn) -> tuple[Array, list[Array], Array, Array, Array, int]:
    n, vocab, width = draw(st.integers(1, 4)), draw(st.integers(1, 11)), draw(st.integers(1, 9))
    token = st.integers(0, vocab - 1)
    contexts = [np.array(draw(st.lists(token, min_size=1, max_size=6))) for _ in range(n)]
    targets = np.array([draw(token) for _ in range(n)])
    counts = draw(hnp.arrays(np.int64, vocab, elements=st.integers(0, 3)))
    return (
        draw(whole((vocab, width))), contexts, targets, counts, draw(whole((n, width))),
        draw(st.integers(0, 99)),
    )  # fmt: skip


def majority_scores(embedding: Array, contexts: list[Array]) -> Array:
    scores = np.empty((len(contexts), len(embedding)))
    for row, ids in enumerate(contexts):
        for token in range(len(embedding)):
            agree = 0
            for d in range(embedding.shape[1]):
                positive = sum(embedding[i, d] > 0 for i in ids)
                majority = positive > len(ids) - positive
                agree += bool(embedding[token, d] > 0) == majority
            scores[row, token] = agree
    return scores


@given(prompts())
def test_sign_majority_by_sorting(drawn: tuple[Array, list[Array], Array, Array, Array, int]) -> None:
    embedding, contexts, targets, counts, h, seed = drawn
    q = turn(embedding.shape[1], seed)
    found = sign_majority(
        torch.from_numpy(embedding), contexts, targets, counts, ks=KS,
        h_final=torch.from_numpy(h), rotations=[torch.from_numpy(q)],
    )  # fmt: skip
    assert set(found) == {"none", "frequency", "repeat", "full_dot", "haar:1"}
    assert found["none"] == shares(majority_scores(embedding, contexts), targets, KS)
    assert found["haar:1"] == shares(majority_scores(embedding @ q.T, contexts), targets, KS)
    assert found["full_dot"] == shares(h @ embedding.T, targets, KS)
    assert found["frequency"] == shares(np.tile(counts, (len(targets), 1)), targets, KS)
    # A token of the context scores above all counts, by where it stands last.
    recent = np.tile(counts, (len(targets), 1))
    for row, ids in enumerate(contexts):
        for position, token in enumerate(ids):
            recent[row, token] = 1000 + position
    assert found["repeat"] == shares(recent, targets, KS)


def test_a_prompt_worked_out_by_hand() -> None:
    embedding = torch.tensor([[1.0, 1.0, 1.0], [-1.0, 1.0, 0.0], [1.0, -1.0, 1.0], [-2.0, -2.0, -2.0]])
    counts = np.array([5, 0, 5, 9])
    # Tokens 1 and 2 tie on every dimension, so the majority is -, -, -. Agreements: 0, 2, 1, 3.
    contexts, targets = [np.array([1, 2])] * 4, np.arange(4)
    found = sign_majority(embedding, contexts, targets, counts, ks=(1, 2, 3))
    assert found["none"] == {1: 0.25, 2: 0.5, 3: 0.75}
    one = {t: sign_majority(embedding, contexts[:1], np.array([t]), counts, ks=(1, 2, 3)) for t in range(4)}
    # By agreement: 3, 1, 2, 0. By count: 3, 0, 2, 1. Context first: 2, 1, 3, 0.
    orders = {"none": [3, 1, 2, 0], "frequency": [3, 0, 2, 1], "repeat": [2, 1, 3, 0]}
    for method, order in orders.items():
        for place, token in enumerate(order):
            assert one[token][method] == {k: float(place < k) for k in (1, 2, 3)}


def test_a_rotated_basis() -> None:
    draw = np.random.default_rng(4)
    embedding, q = normal(80, 24), rotation(24, 9)
    contexts, targets = [draw.integers(0, 80, 7) for _ in range(30)], draw.integers(0, 80, 30)
    counts = draw.integers(0, 9, 80)
    found = sign_majority(embedding, contexts, targets, counts, ks=KS, rotations=[torch.eye(24), q])
    assert found["haar:1"] == found["none"]
    assert found["haar:2"] == shares(
        majority_scores((embedding @ q.T).numpy(), contexts), targets.tolist(), KS
    )


def test_sign_majority_does_not_depend_on_blocks(monkeypatch: Any) -> None:
    draw = np.random.default_rng(5)
    embedding, h = (
        torch.from_numpy(draw.integers(-2, 3, s).astype(np.float32)) for s in ((61, 13), (29, 13))
    )
    contexts, targets = [draw.integers(0, 61, 6) for _ in range(29)], draw.integers(0, 61, 29)
    counts, q = draw.integers(0, 4, 61), torch.from_numpy(turn(13, 2))
    options: dict[str, Any] = {"ks": KS, "h_final": h, "rotations": [q]}
    found = sign_majority(embedding, contexts, targets, counts, **options)
    monkeypatch.setattr(prediction, "_SCORES", 4 * 61)
    monkeypatch.setattr(prediction, "_CHUNK", 5 * 13)
    assert sign_majority(embedding, contexts, targets, counts, **options) == found


def test_what_sign_majority_refuses() -> None:
    embedding, counts = normal(5, 4), np.ones(5, np.int64)
    one = [np.array([1, 2])]
    for contexts, targets, says in (
        ([], np.array([], np.int64), "0 prompts"),
        (one, np.array([1, 2]), "1 prompts"),
        ([np.array([], np.int64)], np.array([1]), "no token"),
        (one, np.array([5]), "none of the 5 rows"),
        ([np.array([-1])], np.array([1]), "none of the 5 rows"),
    ):
        with pytest.raises(InvalidInput, match=says):
            sign_majority(embedding, contexts, targets, counts)
    with pytest.raises(InvalidInput, match="counts of shape"):
        sign_majority(embedding, one, np.array([1]), counts[:4])
    with pytest.raises(InvalidInput, match="2 states"):
        sign_majority(embedding, one, np.array([1]), counts, h_final=normal(2, 4))
    with pytest.raises(InvalidInput, match="does not turn 4"):
        sign_majority(embedding, one, np.array([1]), counts, rotations=[torch.eye(5)])
