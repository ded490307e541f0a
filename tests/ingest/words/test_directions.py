"""Directions in words, against the head and the norm taken apart by hand."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from signarium.catalog.errors import InvalidInput, ModelError
from signarium.catalog.ids import neuron_item, neuron_place
from signarium.ingest.model.sites import Site
from signarium.ingest.words import directions as words


def by_hand(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the largest and of the smallest, equal ones by id."""
    ids = np.arange(logits.shape[1])
    return tuple(np.stack([np.lexsort((ids, sign * row))[: words.TOP] for row in logits]) for sign in (-1, 1))  # type: ignore[return-value]


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "gpt_neox", "qwen3"])
def test_project_is_what_the_model_would_say(architecture: str) -> None:
    model = tiny.loaded(architecture)
    vocabulary = words.Vocabulary(model)
    directions = model.ffn_directions(1)[:40]
    found = vocabulary.project(directions)
    norm = model.layout.taps[Site("final_norm")].module
    assert norm is not None
    unit = directions / directions.square().mean(1, keepdim=True).sqrt()
    with torch.no_grad():
        # The bias of a LayerNorm raises the same tokens for every direction.
        states = norm(unit) - getattr(norm, "bias", torch.zeros(()))
        logits = (states @ model.unembedding().T).numpy()
    # Rows that no token uses are never named.
    unused = [i for i, token in enumerate(model.token_strings()) if not token]
    assert unused and not np.isin(found.up, unused).any() and not np.isin(found.down, unused).any()
    known = np.setdiff1d(np.arange(model.vocab_size), unused)
    up, down = (known[ids] for ids in by_hand(logits[:, known]))
    assert (found.up == up).mean() > 0.99 and (found.down == down).mean() > 0.99
    assert np.allclose(found.up_logits, np.take_along_axis(logits, up, 1), rtol=1e-4, atol=1e-5)
    assert np.allclose(found.down_logits, np.take_along_axis(logits, down, 1), rtol=1e-4, atol=1e-5)
    # The length of a direction says nothing, its sign turns it.
    again = vocabulary.project(-7 * directions)
    assert (again.up == found.down).mean() > 0.99
    assert np.allclose(again.up_logits, -found.down_logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("n", "values"), [(200, 4), (5200, 4), (5200, 3000), (6001, 100_000)])
def test_equal_logits_are_ordered_by_token(n: int, values: int) -> None:
    """Few values tie at the border, many do so now and then; 6,001 tokens are no whole number of groups."""
    rng = np.random.default_rng(0)
    logits = rng.integers(0, values, (30, n)).astype(np.float32)
    x = torch.from_numpy(logits)
    for largest, expected in zip((True, False), by_hand(logits), strict=True):
        ids, found = words._top(x, words.TOP, largest, torch.zeros(30), lambda row, ids: x[row, ids])
        assert (ids == expected).all()
        assert (found == np.take_along_axis(logits, expected, 1)).all()


def test_rows_that_are_alike_have_equal_logits_and_go_by_token() -> None:
    """Wherever they lie: a product of matrices adds the first columns in another order than the last ones."""
    vocabulary = words.Vocabulary(tiny.loaded())
    rng = np.random.default_rng(2)
    alike = np.sort(rng.permutation(vocabulary.size)[: 3 * words.TOP // 2])
    head = torch.from_numpy(rng.standard_normal((vocabulary.size, vocabulary.width), np.float32))
    head[alike] = 3 * head[alike[0]]
    vocabulary.unembedding, vocabulary._longest = head, float(torch.linalg.vector_norm(head, dim=1).max())
    vocabulary._unused, vocabulary._norm = vocabulary._unused[:0], None
    directions = (
        head[alike[0]] + torch.from_numpy(rng.standard_normal((130, vocabulary.width), np.float32)) / 8
    )
    found = vocabulary.project(directions)
    assert (found.up == alike[: words.TOP]).all()
    assert (found.up_logits == found.up_logits[:, :1]).all()


def test_blocks_do_not_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = words.Vocabulary(tiny.loaded())
    directions = torch.from_numpy(np.random.default_rng(1).standard_normal((50, vocabulary.width))).float()
    whole = vocabulary.project(directions)
    monkeypatch.setattr(words, "_LOGIT_BYTES", 4 * vocabulary.size * 7)
    parts = vocabulary.project(directions)
    assert (whole.up == parts.up).all() and (whole.down == parts.down).all()
    assert len(vocabulary.project(directions[:0]).up) == 0


def test_a_zero_direction_and_a_wrong_shape() -> None:
    vocabulary = words.Vocabulary(tiny.loaded())
    found = vocabulary.project(torch.zeros(2, vocabulary.width))
    assert (found.up == np.arange(words.TOP)).all() and not found.up_logits.any()
    with pytest.raises(InvalidInput, match="are no"):
        vocabulary.project(torch.zeros(2, vocabulary.width + 1))


def test_an_encoder_has_no_words() -> None:
    with pytest.raises(ModelError, match="unembedding"):
        words.Vocabulary(tiny.loaded("bert"))


def test_overlap_sees_directions_that_are_their_signs() -> None:
    vocabulary = words.Vocabulary(tiny.loaded())
    rng = np.random.default_rng(2)
    signed = torch.from_numpy(rng.choice([-1.0, 1.0], (200, vocabulary.width))).float()
    found = {one.control: one for one in words.overlap_figures(vocabulary, signed, "s", "neuron", "", 0)}
    assert set(found) == {"none", "random_signs", "haar:1", "shuffled"}
    assert found["none"].value == found["random_signs"].value == 1.0 and found["none"].n == 200
    for control in ("haar:1", "shuffled"):
        assert 0 <= found[control].value < 0.95
        assert found[control].std_error is not None
    # One direction's signs say little of another's words.
    assert found["shuffled"].value < found["haar:1"].value - 0.1


def test_gaussian_directions_are_their_own_control() -> None:
    vocabulary = words.Vocabulary(tiny.loaded())
    x = torch.from_numpy(np.random.default_rng(3).standard_normal((600, vocabulary.width))).float()
    found = {one.control: one for one in words.overlap_figures(vocabulary, x, "s", "neuron", "", 0)}
    for control in ("random_signs", "haar:1"):
        one = found[control]
        assert one.std_error is not None
        assert abs(found["none"].value - one.value) < 4 * one.std_error


def test_rows_lie_by_item() -> None:
    vocabulary = words.Vocabulary(tiny.loaded())
    x = tiny.loaded().ffn_directions(0)[:3]
    found = {"float": vocabulary.project(x), "sign": vocabulary.project(words.signs(x))}
    rows = words.rows("r", "s", "neuron", np.array([5, 6, 7]), found)
    assert {len(one) for one in rows.values()} == {3 * 4 * words.TOP}
    assert (np.diff(rows["item"]) >= 0).all()
    of = (rows["item"] == 6) & (rows["source"] == "sign") & (rows["direction"] == "down")
    assert (rows["token_id"][of] == found["sign"].down[1]).all()
    assert (rows["rank"][of] == np.arange(1, words.TOP + 1)).all()
    assert (rows["logit"][of] == found["sign"].down_logits[1]).all()


@given(st.integers(0, 40), st.lists(st.integers(0, 30), max_size=6))
def test_evenly(n: int, sizes: list[int]) -> None:
    chosen = words.evenly(n, sizes)
    assert len(chosen) == len(sizes)
    for some, size in zip(chosen, sizes, strict=True):
        assert len(np.unique(some)) == len(some)
        assert all(0 <= one < size for one in some)
    total = sum(map(len, chosen))
    assert total <= n and (total == min(n, sum(sizes)) or n < sum(sizes))


@given(st.integers(0, 200), st.integers(0, (1 << 24) - 1))
def test_the_item_of_a_neuron(layer: int, neuron: int) -> None:
    assert neuron_place(neuron_item(layer, neuron)) == (layer, neuron)
