"""What is steered: differences of means, where their effect is read, and in which logits.

Every contrast is two sets of rows of a `Paired`. The direction is the difference of their means over the rows that fit; the
effect is read at rows of the test that the direction is led away from, since the others are already where it leads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...catalog.errors import ModelError
from ..model import source, weights
from ..stats.draws import spaced
from ..stats.paired import Paired
from ..words.anchors import Vocabulary, matched, pack, resolve

if TYPE_CHECKING:
    from ..model.loaded import LoadedModel

FIT_ROWS, TEST_ROWS = 20, 10
"""Rows on either side of a difference of means, and rows at which an effect is read, at the least."""
TOKENS = 3
"""Distinct tokens of a category among its rows, at the least: a direction of one word is not one of a category."""
UNEMBEDDING = "unembedding"
"""The head of a language model; a model may have others in its files."""
_SHARED = 0.5
"""A category with more of its rows than this in one that is taken already would be the same contrast again."""

Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Contrast:
    """One direction and the effect that it should have.

    Attributes:
        name: what the difference is between ("depth 5 less 4", "calendar").
        positive, negative: (n,) rows of a `Paired`; the direction is mean(positive) - mean(negative) over rows that fit.
        measured: (n,) rows at which the effect is read: of the test, at positions > 0, on the side that is left.
        target: in words, the labels or tokens whose logits are measured.
        readout: the head that has these logits (see `head`).
        targets, others: rows of that head: the effect is on the mean logit of `targets` less that of `others`.
        sign: 1 if the direction is added, -1 if it is subtracted.
    """

    name: str
    positive: Bools
    negative: Bools
    measured: Bools
    target: str
    readout: str
    targets: tuple[int, ...]
    others: tuple[int, ...]
    sign: float = 1.0


@dataclass(frozen=True)
class Task:
    """Contrasts of one type of model: from windows and the rows made of them, as `contrasts` takes them, and the heads
    that they are read in beside `UNEMBEDDING`."""

    contrasts: Callable[[Sequence[NDArray[np.int64]], Paired], list[Contrast]]
    heads: tuple[str, ...] = ()


_TASKS: dict[str, Task] = {}


def register_contrasts(model_type: str, task: Task) -> None:
    """Steer models of the type `model_type` (of their configuration) by the contrasts of `task` in place of words."""
    _TASKS[model_type] = task


def head(model: LoadedModel, readout: str) -> tuple[Tensor, Tensor | None]:
    """Rows, (outputs, width), and bias, (outputs,) or None, of a head on the model's device in its dtype.

    `readout` is `UNEMBEDDING`, or the name of a head that is read from the model's files (the tensor NAME_head.weight).

    Raises:
        ModelError: if the model has no such head.
    """
    if readout == UNEMBEDDING:
        return model.unembedding(), model.unembedding_bias()
    name = f"{readout}_head.weight"
    rows = None
    if model.random_init_seed is None:
        folder = source.find_source(model.source, model.revision).folder
        rows = weights.read_tensor(folder, name, lambda stored: stored)
    if rows is None or rows.dim() != 2 or rows.shape[1] != model.width:
        raise ModelError(
            f"{model.name} has no {name} of width {model.width}", "use one that was trained here"
        )
    return rows.to(model.embedding()), None


def contrasts(
    model_a: LoadedModel,
    model_b: LoadedModel,
    windows: Sequence[NDArray[np.int64]],
    paired: Paired,
    *,
    limit: int = 4,
) -> tuple[list[Contrast], list[str]]:
    """The contrasts that have enough rows in `paired`, and notes that say why others are left out.

    `windows[paired.documents[r]][paired.positions[r]]` is the token of row r. For two models of a registered type its
    task names them. For any other language model they are the categories of words with most rows that fit, up to
    `limit`: where they stand less everywhere else. Models without an unembedding have none.
    """
    task = _TASKS.get(model_a.architecture) if model_a.architecture == model_b.architecture else None
    readouts = (UNEMBEDDING, *(task.heads if task else ()))
    notes, there = list[str](), list[str]()
    for readout in readouts:
        try:
            shapes = [head(one, readout)[0].shape[0] for one in (model_a, model_b)]
        except ModelError as error:
            notes.append(f"no steering by the {readout} head: {error.what}")
            continue
        if shapes[0] != shapes[1]:
            notes.append(
                f"no steering by the {readout} head: {shapes[0]} logits in one model, {shapes[1]} in the other"
            )
            continue
        there.append(readout)
    if not there:
        return [], notes
    if task is not None:
        found = task.contrasts(windows, paired)
    else:
        found, more = _words(model_a, paired, limit)
        notes += more
    kept = []
    for one in found:
        if one.readout not in there:
            continue
        few = _too_few(one, paired)
        if few:
            notes.append(f"no steering by {one.name}: {few}")
        else:
            kept.append(one)
    return kept, notes


def _too_few(one: Contrast, paired: Paired) -> str:
    for side in (one.positive, one.negative):
        n = int(side[paired.fit].sum())
        if n < FIT_ROWS:
            return f"{n} tokens to fit on, fewer than {FIT_ROWS}"
    n = int(one.measured.sum())
    return f"{n} tokens to measure at, fewer than {TEST_ROWS}" if n < TEST_ROWS else ""


def measured(paired: Paired, rows: Bools) -> Bools:
    """(n,): those of `rows` that are of the test, and not first in their document: the first is not steered."""
    inside = np.zeros(len(rows), np.bool_)
    inside[paired.test] = True
    found: Bools = rows & inside & (paired.positions > 0)
    return found


# ---- what is added, and where it is read ----------------------------------------------------------


def differences(paired: Paired, contrasts: Sequence[Contrast]) -> list[tuple[Tensor, Tensor]]:
    """mean(positive) - mean(negative) over the rows that fit, in A and in B, float64 (width,) on the host."""
    sides = [side for one in contrasts for side in (one.positive, one.negative)]
    if not sides:
        return []
    inside = torch.from_numpy(np.stack(sides))
    sums = torch.zeros(2, len(sides), paired.width, dtype=torch.float64, device=paired.device)
    for rows, a, b in paired.blocks(paired.fit):
        chosen = inside[:, rows].to(paired.device, torch.float64)
        sums += torch.stack([chosen @ a, chosen @ b])
    means = sums.cpu() / inside[:, paired.fit].sum(1)[:, None]
    apart = means[:, 0::2] - means[:, 1::2]
    return list(zip(apart[0], apart[1], strict=True))


def places_of(
    contrast: Contrast, paired: Paired, cut: int, max_windows: int, max_positions: int
) -> dict[int, list[int]]:
    """Measured positions by window, both ascending: those below `cut`, evenly spaced where there are too many."""
    rows = np.flatnonzero(contrast.measured & (paired.positions < cut) & (paired.positions > 0))
    documents = np.unique(paired.documents[rows])
    found = {}
    for one in documents[spaced(len(documents), min(max_windows, len(documents)))].tolist():
        positions = np.sort(paired.positions[rows[paired.documents[rows] == one]])
        found[one] = positions[spaced(len(positions), min(max_positions, len(positions)))].tolist()
    return found


# ---- words --------------------------------------------------------------------------------------


def _words(model: LoadedModel, paired: Paired, limit: int) -> tuple[list[Contrast], list[str]]:
    vocabulary = Vocabulary(model.token_strings())
    categories = pack()
    anchors, _ = resolve(categories, vocabulary)
    later = paired.positions > 0
    fit = np.zeros(len(later), np.bool_)
    fit[paired.fit] = True
    counts = np.bincount(paired.token_ids[fit & later], minlength=vocabulary.n)
    ranked = []
    for place, one in enumerate(anchors):
        rows = int(counts[one.token_ids].sum())
        if rows >= FIT_ROWS and (counts[one.token_ids] > 0).sum() >= TOKENS:
            ranked.append((rows, place, one))
    found: list[Contrast] = []
    for rows, _, one in sorted(ranked, key=lambda each: (-each[0], each[1])):
        if len(found) == limit:
            break
        if any(counts[np.intersect1d(one.token_ids, c.targets)].sum() > _SHARED * rows for c in found):
            continue
        own = np.isin(paired.token_ids, one.token_ids) & later
        others = matched(one.token_ids, vocabulary.words)
        if not len(others):
            continue
        target = (
            f"{len(one.token_ids)} words of {one.category} less {len(others)} other words of like frequency"
        )
        rest = later & ~own
        found.append(
            Contrast(
                one.category, own, rest, measured(paired, rest), target, UNEMBEDDING, tuple(one.token_ids.tolist()),
                tuple(others.tolist()),
            )
        )  # fmt: skip
    if found:
        return found, []
    return [], [f"no steering: no category of words has {FIT_ROWS} tokens to fit on, of {TOKENS} words"]
