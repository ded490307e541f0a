"""Which rows a direction is taken from, where its effect is read, and in which logits."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import wordy
from numpy.typing import NDArray

from dyck import task
from dyck.model import DyckConfig, DyckForStructure
from signarium.catalog.errors import ModelError
from signarium.ingest.model.load import LoadedModel, load_model
from signarium.ingest.rotations.contrasts import (
    FIT_ROWS,
    TEST_ROWS,
    Contrast,
    contrasts,
    differences,
    head,
    places_of,
)
from signarium.ingest.stats.paired import Paired

Ids = NDArray[np.int64]


def saved_dyck(folder: Path, seed: int = 0) -> Path:
    """A toy model with large random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = DyckForStructure(DyckConfig(initializer_range=0.2)).eval()
    made.save_pretrained(folder)
    task.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dyck(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(str(saved_dyck(tmp_path_factory.mktemp("dyck") / "toy")), device="cpu")


@pytest.fixture(scope="module")
def lexical(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(str(wordy.folder(tmp_path_factory.mktemp("wordy"))), device="cpu")


@cache
def bracket_windows(n: int = 240) -> list[Ids]:
    rows = task.draw(np.random.default_rng(3), n, (20, 48))
    return [row[: int((row != task.PAD).sum())].copy() for row in rows]


def synthetic(windows: list[Ids], width: int, seed: int = 0) -> Paired:
    """Random states, positions 0 among them; a quarter of the windows for each part."""
    lengths = [len(one) for one in windows]
    ends = np.cumsum(lengths)[[len(windows) * k // 4 - 1 for k in (1, 2, 3, 4)]].tolist()
    parts = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    states = torch.randn(2, ends[-1], width, generator=torch.Generator().manual_seed(seed))
    return Paired(
        states[0], states[1], (parts[0], parts[1]), parts[2], parts[3], np.concatenate(windows),
        np.repeat(np.arange(len(windows)), lengths), np.concatenate([np.arange(n) for n in lengths]),
    )  # fmt: skip


def states_of(window: Ids) -> list[tuple[int, bool]]:
    """(depth, valid) after each token, by a stack; at and after the first broken rule the depth stays."""
    stack: list[int] = []
    valid, found = True, []
    for token in window.tolist():
        kind, closing = divmod(token - 3, 2)
        if valid and 3 <= token < 9:
            if not closing and len(stack) < 8:
                stack.append(kind)
            elif closing and stack and stack[-1] == kind:
                stack.pop()
            else:
                valid = False
        found.append((len(stack), valid))
    return found


# ---- the toy family -----------------------------------------------------------------------------


def test_the_toy_family_has_the_three_contrasts_of_the_paper(dyck: LoadedModel) -> None:
    windows = bracket_windows()
    paired = synthetic(windows, dyck.width)
    found, notes = contrasts(dyck, dyck, windows, paired)
    assert not notes
    assert [(c.readout, c.targets, c.others, c.sign) for c in found] == [
        ("valid", (0,), (1,), -1.0),
        ("depth", (5,), (4,), 1.0),
        ("unembedding", (4, 6, 8), (3, 5, 7), 1.0),
    ]
    true = [states_of(one) for one in windows]
    rows = list(zip(paired.documents.tolist(), paired.positions.tolist(), strict=True))
    depth = np.array([true[d][p][0] for d, p in rows])
    valid = np.array([true[d][p][1] for d, p in rows])
    later = paired.positions > 0
    opening, closing = np.isin(paired.token_ids, [3, 5, 7]), np.isin(paired.token_ids, [4, 6, 8])
    expected = [
        (valid & (depth == 4), ~valid & (depth == 4)),
        (depth == 5, depth == 4),
        (closing, opening),
    ]
    test = np.arange(len(rows)) >= paired.test.start
    for one, (positive, negative) in zip(found, expected, strict=True):
        assert np.array_equal(one.positive, positive & later)
        assert np.array_equal(one.negative, negative & later)
        # Where the direction leads away from: what is subtracted leads away from its positive side.
        left = positive if one.sign < 0 else negative
        assert np.array_equal(one.measured, left & later & test)


def test_the_toy_family_needs_enough_rows(dyck: LoadedModel) -> None:
    windows = bracket_windows()[:12]
    found, notes = contrasts(dyck, dyck, windows, synthetic(windows, dyck.width))
    assert [c.readout for c in found] == ["unembedding"]
    assert len(notes) == 2
    assert all("no steering by" in one and "fewer than" in one for one in notes)


def test_heads_of_the_toy_family_are_those_of_its_file(dyck: LoadedModel) -> None:
    made = DyckForStructure.from_pretrained(dyck.source)
    for readout, linear in (
        ("unembedding", made.token_head), ("depth", made.depth_head), ("valid", made.valid_head),
    ):  # fmt: skip
        rows, bias = head(dyck, readout)
        assert torch.equal(rows, linear.weight)
        assert bias is None
    with pytest.raises(ModelError, match=r"has no depth_head\.weight"):
        head(tiny.loaded("llama"), "depth")


def test_random_weights_have_no_heads_of_their_file(dyck: LoadedModel) -> None:
    random = load_model(dyck.source, device="cpu", random_init=3)
    windows = bracket_windows()
    found, notes = contrasts(dyck, random, windows, synthetic(windows, dyck.width))
    assert [c.readout for c in found] == ["unembedding"]
    assert [one.split(":")[0] for one in notes] == [
        "no steering by the depth head",
        "no steering by the valid head",
    ]


# ---- words --------------------------------------------------------------------------------------


def word_windows(model: LoadedModel) -> list[Ids]:
    ids = np.array(model.tokenizer(wordy.text() * 3)["input_ids"], np.int64)
    return [ids[start : start + 32] for start in range(0, len(ids) - 32, 32)]


def test_words_are_the_categories_with_most_rows(lexical: LoadedModel) -> None:
    windows = word_windows(lexical)
    paired = synthetic(windows, lexical.width)
    found, notes = contrasts(lexical, lexical, windows, paired, limit=3)
    assert not notes
    assert len(found) == 3
    counts = [int(one.positive[paired.fit].sum()) for one in found]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] >= FIT_ROWS
    strings = lexical.token_strings()
    for one in found:
        assert one.readout == "unembedding"
        assert one.sign == 1
        assert len(one.targets) == len(one.others)
        assert not set(one.targets) & set(one.others)
        assert {strings[i].strip() for i in one.targets} >= set(wordy.words()[one.name])
        own = np.isin(paired.token_ids, one.targets) & (paired.positions > 0)
        assert np.array_equal(one.positive, own)
        assert np.array_equal(one.negative, ~own & (paired.positions > 0))
        assert np.array_equal(np.flatnonzero(one.measured), [
            r for r in range(paired.test.start, paired.test.stop) if one.negative[r]
        ])  # fmt: skip
        assert one.measured.sum() >= TEST_ROWS
    # No category is another one under a second name.
    for i, one in enumerate(found):
        for other in found[:i]:
            both = (one.positive & other.positive)[paired.fit].sum()
            assert both <= one.positive[paired.fit].sum() / 2
    everything, _ = contrasts(lexical, lexical, windows, paired, limit=50)
    assert [one.name for one in everything[:3]] == [one.name for one in found]


def test_a_text_without_categories_is_said(lexical: LoadedModel) -> None:
    windows = [np.full(32, 5, np.int64) for _ in range(8)]
    found, notes = contrasts(lexical, lexical, windows, synthetic(windows, lexical.width))
    assert not found
    assert notes == ["no steering: no category of words has 20 tokens to fit on, of 3 words"]


def test_an_encoder_has_none(lexical: LoadedModel) -> None:
    bert = tiny.loaded("bert")
    windows = word_windows(lexical)
    for pair in ((bert, bert), (lexical, bert)):
        found, notes = contrasts(*pair, windows, synthetic(windows, bert.width))
        assert not found
        assert len(notes) == 1
        assert "predicts no next token" in notes[0]


def test_heads_of_two_sizes_are_not_compared(lexical: LoadedModel) -> None:
    windows = word_windows(lexical)
    found, notes = contrasts(lexical, tiny.loaded("llama"), windows, synthetic(windows, lexical.width))
    assert not found
    assert notes == ["no steering by the unembedding head: 1200 logits in one model, 304 in the other"]


# ---- directions and places ----------------------------------------------------------------------


def contrast(positive: list[int], negative: list[int], measured: list[int], n: int) -> Contrast:
    rows = np.arange(n)
    sides = [np.isin(rows, some) for some in (positive, negative, measured)]
    return Contrast("x", *sides, "y", "unembedding", (0,), (1,))


def test_a_direction_is_a_difference_of_means_over_the_rows_that_fit() -> None:
    windows = [np.arange(6, dtype=np.int64) for _ in range(4)]
    paired = synthetic(windows, 5)
    # Rows 12 and later are validation and test.
    one = contrast([1, 3, 20], [2, 7, 8, 13], [], 24)
    two = contrast([4], [5], [], 24)
    (in_a, in_b), (other, _) = differences(paired, [one, two])
    assert in_a.dtype == torch.float64
    for states, v in ((paired.a.double(), in_a), (paired.b.double(), in_b)):
        torch.testing.assert_close(v, states[[1, 3]].mean(0) - states[[2, 7, 8]].mean(0))
    torch.testing.assert_close(other, (paired.a[4] - paired.a[5]).double())
    assert differences(paired, []) == []


def test_places_are_few_and_evenly_spaced() -> None:
    windows = [np.arange(20, dtype=np.int64) for _ in range(10)]
    paired = synthetic(windows, 5)
    # Of every window from 4 on all positions, but only position 19 of window 9.
    measured = [*range(80, 180), 199]
    one = contrast([], [], measured, 200)
    everywhere = places_of(one, paired, 64, 50, 50)
    assert list(everywhere) == [4, 5, 6, 7, 8, 9]
    assert everywhere[4] == list(range(1, 20))
    assert everywhere[9] == [19]
    assert list(places_of(one, paired, 12, 50, 50)) == [4, 5, 6, 7, 8]
    few = places_of(one, paired, 12, 2, 3)
    assert len(few) == 2
    assert all(len(some) == 3 and max(some) < 12 for some in few.values())
