"""What is true of single tokens of a text: the labels that sign prototypes are made for and read by.

For words, a category's token: prototypes are defined on the rows of one half of its tokens and read on those of the
other, since a state that holds its own token would be recognised by it alone. For the toy task, what is true at a
bracket in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..dyck import task
from ..dyck.model import MODEL_TYPE
from ..features.prototypes import halves
from ..stats.draws import rng
from ..stats.paired import Paired
from ..words.anchors import DEFAULT, Vocabulary, read_categories, resolve

if TYPE_CHECKING:
    from ..model.loaded import LoadedModel

FIT_ROWS, TEST_ROWS = 20, 10
"""Rows that a label needs to be defined on, and to be scored on."""
_TOKENS = 4
"""Tokens of a category that must occur, half of them on either side."""

Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Label:
    """A label over the rows (n,) of a `Paired`: `define`d on fit rows, `score`d on test rows.

    `inside` are all rows that have it: those neither define nor score are left out where it is compared with the rest.
    """

    name: str
    define: Bools
    score: Bools
    inside: Bools


def labels(
    model: LoadedModel, windows: Sequence[NDArray[np.int64]], paired: Paired, seed: int
) -> list[Label]:
    """The labels that have enough rows, in a fixed order; `windows[paired.documents[r]]` holds row r."""
    fit, test = _part(paired, paired.fit), _part(paired, paired.test)
    if model.architecture == MODEL_TYPE:
        found = [Label(name, rows & fit, rows & test, rows) for name, rows in _brackets(windows, paired)]
    else:
        found = _words(model, paired, fit, test, seed)
    return [
        one
        for one in found
        if one.define.sum() >= FIT_ROWS
        and one.score.sum() >= TEST_ROWS
        and (fit & ~one.inside).sum() >= FIT_ROWS
        and (test & ~one.inside).sum() >= TEST_ROWS
    ]


def _part(paired: Paired, rows: slice) -> Bools:
    inside = np.zeros(len(paired.token_ids), np.bool_)
    inside[rows] = True
    return inside


def _words(model: LoadedModel, paired: Paired, fit: Bools, test: Bools, seed: int) -> list[Label]:
    categories, _ = read_categories(DEFAULT)
    anchors, _ = resolve(categories, Vocabulary(model.token_strings()), least=_TOKENS)
    there = np.unique(paired.token_ids)
    found = []
    for one in anchors:
        tokens = np.intersect1d(one.token_ids, there)
        if len(tokens) < _TOKENS:
            continue
        # By the category's name: one more category moves no other.
        defining, scoring = halves(tokens, rng(seed, "labels", one.category))
        inside = np.isin(paired.token_ids, tokens)
        found.append(
            Label(
                one.category,
                fit & np.isin(paired.token_ids, defining),
                test & np.isin(paired.token_ids, scoring),
                inside,
            )
        )
    return found


def _brackets(windows: Sequence[NDArray[np.int64]], paired: Paired) -> list[tuple[str, Bools]]:
    longest = max(len(one) for one in windows)
    ids = np.full((len(windows), longest), task.PAD, np.int64)
    for i, one in enumerate(windows):
        ids[i, : len(one)] = one
    true = task.labels(ids)
    at = paired.documents, paired.positions
    depth, valid = true.depth[at], true.valid[at] == 1
    bracket = paired.token_ids - task.FIRST_BRACKET
    is_bracket = (bracket >= 0) & (bracket < len(task.BRACKETS))
    found = [("opening", is_bracket & (bracket % 2 == 0)), ("closing", is_bracket & (bracket % 2 == 1))]
    found += [
        (f"family {task.BRACKETS[2 * k : 2 * k + 2]}", is_bracket & (bracket // 2 == k)) for k in range(3)
    ]
    found += [("broken", ~valid)]
    return found + [(f"depth {d}", valid & (depth == d)) for d in range(task.MAX_DEPTH + 1)]
