"""What is true of single tokens of a text: the labels that sign prototypes are made for and read by.

For words, a category's token: prototypes are defined on the rows of one half of its tokens and read on those of the
other, since a state that holds its own token would be recognised by it alone. A type of models may have labels of its
task instead (`register_labels`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..features.prototypes import halves
from ..stats.draws import rng
from ..stats.paired import Paired
from ..words.anchors import Vocabulary, pack, resolve

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


Labeller = Callable[[Sequence[NDArray[np.int64]], Paired], list[tuple[str, Bools]]]
"""From windows of token ids and the rows made of them, `windows[paired.documents[r]][paired.positions[r]]` being the
token of row r, to the labels: names, and which rows (n,) have each."""
_LABELLERS: dict[str, Labeller] = {}


def register_labels(model_type: str, labeller: Labeller) -> None:
    """Label the texts of models of the type `model_type` (of their configuration) by `labeller` in place of words."""
    _LABELLERS[model_type] = labeller


def labels(
    model: LoadedModel, windows: Sequence[NDArray[np.int64]], paired: Paired, seed: int
) -> list[Label]:
    """The labels that have enough rows, in a fixed order; `windows[paired.documents[r]]` holds row r."""
    fit, test = _part(paired, paired.fit), _part(paired, paired.test)
    labeller = _LABELLERS.get(model.architecture)
    if labeller is None:
        found = _words(model, paired, fit, test, seed)
    else:
        found = [Label(name, rows & fit, rows & test, rows) for name, rows in labeller(windows, paired)]
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
    categories = pack()
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
