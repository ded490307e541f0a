"""Which tokens are compared, and which windows of a text are measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from signarium.catalog.errors import InvalidInput
from signarium.ingest.flips import tokens
from signarium.ingest.flips.run import later_layers
from signarium.ingest.model.sites import Site
from signarium.ingest.stats import draws, outcome
from signarium.ingest.text.windows import find_texts, token_ids
from signarium.ingest.words import anchors


@given(st.integers(1, 60), st.data())
def test_spaced(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    found = draws.spaced(n, k)
    assert len(set(found)) == k and found == sorted(found) and all(0 <= one < n for one in found)


@given(st.integers(2, 300))
def test_measured_positions(length: int) -> None:
    found = outcome.positions(length)
    assert len(set(found)) == min(outcome.POSITIONS, length - 1) and found == sorted(found)
    assert found[0] >= 1 and found[-1] == length - 1


@given(st.integers(0, 40), st.integers(0, 41))
def test_later_layers(layer: int, more: int) -> None:
    found = later_layers(layer, layer + 1 + more)
    assert len(set(found)) == min(2, more) and found == sorted(found)
    assert not found or (found[0] > layer and found[-1] == layer + more)


def test_tokens_of_like_frequency() -> None:
    words = np.ones(20, np.bool_)
    words[[4, 6]] = False
    assert anchors.matched(np.array([5, 7, 19]), words).tolist() == [3, 8, 18]
    # The seed that a feature was found from is no other token, and each is used once.
    assert anchors.matched(np.array([5, 7, 19]), words, seed=8).tolist() == [3, 9, 18]
    few = np.zeros(20, np.bool_)
    few[11] = True
    assert anchors.matched(np.array([5, 6]), few).tolist() == [4, 7]


def feature(own: list[int]) -> tokens.Feature:
    none = np.zeros(48, np.bool_)
    return tokens.Feature(
        7, "m", "m", Site("resid_post", 1), "m/resid_post.1", "category", "royal", "zero", none, none,
        np.array(own), None,
    )  # fmt: skip


@pytest.mark.parametrize(
    "every, n, expected",
    [(1, 6, (6, 3, 6, True)), (4, 6, (6, 2, 3, True)), (20, 6, (6, 1, 1, False)), (1, 1, (1, 1, 1, False))],
)
def test_windows(tmp_path: Path, every: int, n: int, expected: tuple[int, int, int, bool]) -> None:
    """20 windows, every so-manieth of which has the feature's token."""
    model = tiny.loaded("llama")
    (king,) = token_ids(model.tokenizer, " king")
    plain = token_ids(model.tokenizer, " the sea")
    size = 8
    text = "".join(
        model.tokenizer.decode(([plain[0]] + [king if i % every == 0 else plain[0]] + plain * size)[:size])
        for i in range(20)
    )
    file = tmp_path / "a.txt"
    file.write_text(text)
    assert len(token_ids(model.tokenizer, text)) == 20 * size
    heard: list[tuple[str, int]] = []
    found = tokens.choose_windows(
        model, find_texts([file]), feature([king]), n, size, lambda *one: heard.append(one)
    )
    assert (len(found.scored), len(found.fit), found.with_own, found.apart) == expected
    assert sum(king in one[1:] for one in found.scored) == expected[2]
    assert all(king in one[1:] for one in found.fit)
    assert heard


def test_a_text_without_the_tokens(tmp_path: Path) -> None:
    model = tiny.loaded("llama")
    (king,) = token_ids(model.tokenizer, " king")
    file = tmp_path / "a.txt"
    # A first position is none to measure at.
    file.write_text(" king")
    with pytest.raises(
        InvalidInput, match=r"^the text has none of the 1 tokens of feature 7 \(royal\): pass"
    ):
        tokens.choose_windows(model, find_texts([file]), feature([king]), 4, 8, lambda *_: None)
