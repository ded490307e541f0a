"""Rows of brackets and their labels, against a stack machine that looks at one token at a time."""

from __future__ import annotations

import numpy as np
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dyck import task
from signarium.catalog.errors import InvalidInput

SETS = {
    "held_out": (task.draw, (2, 62)),
    "long": (task.draw_long, (50, 60)),
    "compositional": (task.draw_compositional, (6, 56)),
}

rows_of_ids = arrays(
    np.int64, st.tuples(st.integers(0, 5), st.integers(0, 40)), elements=st.integers(0, task.VOCAB_SIZE - 1)
)
# Mostly opening brackets of one kind, so that depths of eight and more are reached.
deep_rows = arrays(
    np.int64,
    st.tuples(st.integers(1, 4), st.integers(8, 40)),
    elements=st.sampled_from([3, 3, 3, 5, 4, 6, 9]),
)


def one_by_one(row: list[int]) -> tuple[list[int], list[int]]:
    stack: list[int] = []
    broken = False
    depths, valid = [], []
    for token in row:
        if not broken and 3 <= token <= 8:
            if token % 2 == 1:
                if len(stack) == 8:
                    broken = True
                else:
                    stack.append(token)
            elif stack and stack[-1] == token - 1:
                stack.pop()
            else:
                broken = True
        depths.append(len(stack))
        valid.append(0 if broken else 1)
    return depths, valid


@settings(max_examples=examples(150))
@given(st.one_of(rows_of_ids, deep_rows))
def test_labels_are_those_of_a_stack_machine(ids: np.ndarray) -> None:
    found = task.labels(ids)
    for i, row in enumerate(ids.tolist()):
        depths, valid = one_by_one(row)
        assert found.depth[i].tolist() == depths
        assert found.valid[i].tolist() == valid
        assert found.mask[i].tolist() == [token != task.PAD for token in row]


@settings(max_examples=examples(50))
@given(st.one_of(rows_of_ids, deep_rows), st.integers(0, 40))
def test_a_row_that_is_cut_keeps_its_labels(ids: np.ndarray, end: int) -> None:
    whole, cut = task.labels(ids), task.labels(ids[:, :end].astype(np.int32))
    assert np.array_equal(cut.depth, whole.depth[:, :end])
    assert np.array_equal(cut.valid, whole.valid[:, :end])
    assert np.array_equal(cut.mask, whole.mask[:, :end])


@pytest.mark.parametrize(
    ("word", "depth", "valid"),
    [
        ("(" * 8, 8, 1),
        ("(" * 9, 8, 0),  # too deep, and the depth stays what it was
        ("(" * 9 + ")" * 3, 8, 0),
        ("([)", 2, 0),
        ("([)]]", 2, 0),
        (")", 0, 0),
        ("()[]{}", 0, 1),
        ("({[", 3, 1),
    ],
)
def test_labels_of_words(word: str, depth: int, valid: int) -> None:
    ids = np.array([[task.BOS, *(3 + task.BRACKETS.index(c) for c in word), task.EOS]])
    found = task.labels(ids)
    assert (found.depth[0, -1], found.valid[0, -1]) == (depth, valid)


@pytest.mark.parametrize("ids", [np.zeros(3, dtype=np.int64), np.zeros((2, 3))])
def test_labels_want_a_matrix_of_integers(ids: np.ndarray) -> None:
    with pytest.raises(InvalidInput, match="integers"):
        task.labels(ids)


@settings(max_examples=examples(30))
@given(st.sampled_from(sorted(SETS)), st.integers(0, 2**32), st.integers(1, 40))
def test_rows_are_bos_brackets_eos_padding(kind: str, seed: int, n: int) -> None:
    draw, (low, high) = SETS[kind]
    ids = draw(np.random.default_rng(seed), n)
    assert ids.shape == (n, task.CONTEXT)
    for row in ids:
        end = row.tolist().index(task.EOS)
        assert row[0] == task.BOS
        assert low <= end - 1 <= high
        assert ((row[1:end] >= 3) & (row[1:end] <= 8)).all()
        assert (row[end + 1 :] == task.PAD).all()
    last = task.labels(ids).valid[:, -1]
    assert last[:: 1 if kind == "compositional" else 2].all()


def test_what_is_drawn_is_what_is_written() -> None:
    ids = task.draw(np.random.default_rng(0), 6000)
    found = task.labels(ids)
    lengths = found.mask.sum(1) - 2
    assert lengths.min() == 2
    assert lengths.max() == 62
    assert abs(lengths.mean() - 32) < 1
    assert found.depth.max() == 8
    free = (found.depth[::2, :-1] > 0) & (found.depth[::2, :-1] < 8)
    following = ids[::2, 1:]
    free &= (following >= 3) & (following <= 8)
    assert abs((following[free] % 2 == 1).mean() - 0.55) < 0.01
    opened = following[(following >= 3) & (following % 2 == 1) & (following <= 7)]
    assert np.allclose([np.mean(opened == b) for b in (3, 5, 7)], 1 / 3, atol=0.01)
    random = ids[1::2]
    assert np.allclose([np.mean(random[(random > 2)] == b) for b in range(3, 9)], 1 / 6, atol=0.01)
    # A closing bracket is rarely the right one, so hardly a longer random row stays valid.
    assert found.valid[1::2, -1][lengths[1::2] > 8].mean() < 0.05


def test_compositional_rows_hold_one_nest_of_one_kind() -> None:
    depths = set()
    for word in task.text(task.draw_compositional(np.random.default_rng(1), 400)):
        nests = word
        for pair in ("()", "[]", "{}"):
            # Pairs beside the nest go; one inside it is its innermost pair and goes, too.
            nests = nests.replace(pair, "")
        assert len(set(nests)) == 2
        depth = len(nests) // 2
        opening, closing = nests[0], nests[-1]
        assert nests == opening * depth + closing * depth
        depths.add(depth + 1)
    assert depths == set(range(3, 9))


def test_streams_do_not_meet() -> None:
    training = {row.tobytes() for step in range(4) for row in task.batch_rows(0, step, 64) if row[10]}
    held = [row.tobytes() for row in task.held_out_rows("held_out", 256) if row[10]]
    assert not training.intersection(held)
    assert np.array_equal(task.batch_rows(3, 5, 8), task.batch_rows(3, 5, 8))
    assert not np.array_equal(task.batch_rows(3, 5, 8), task.batch_rows(4, 5, 8))
    assert not np.array_equal(task.held_out_rows("long", 8), task.held_out_rows("long", 8, seed=1))
    with pytest.raises(InvalidInput, match="there is held_out, long, compositional"):
        task.held_out_rows("short", 8)


def test_the_tokenizer_reads_what_text_writes() -> None:
    tokenizer = task.tokenizer()
    ids = task.draw(np.random.default_rng(2), 50)
    for row, word in zip(ids, task.text(ids), strict=True):
        assert tokenizer(word)["input_ids"] == row[row != task.PAD].tolist()
        assert tokenizer.decode(row, skip_special_tokens=True) == word
    assert tokenizer("( a\n")["input_ids"] == [task.BOS, 3, task.UNK, task.UNK, task.UNK, task.EOS]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
