"""What is true at each bracket, for `align`: labels of states, and the three contrasts of the cited paper.

The paper (rotations of representations, steering) steers by sticky invalid, by depth, and by closer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from signarium.ingest.rotations.contrasts import UNEMBEDDING, Contrast, Task, measured, register_contrasts
from signarium.ingest.rotations.labels import register_labels
from signarium.ingest.stats.paired import Paired

from . import MODEL_TYPE, task

Bools = NDArray[np.bool_]


def true_at(windows: Sequence[NDArray[np.int64]], paired: Paired) -> tuple[NDArray[np.int64], Bools]:
    """Depth (n,), and whether all is valid up to there (n,), at each row of `paired`."""
    ids = np.full((len(windows), max(len(one) for one in windows)), task.PAD, np.int64)
    for i, one in enumerate(windows):
        ids[i, : len(one)] = one
    true = task.labels(ids)
    at = paired.documents, paired.positions
    return true.depth[at], true.valid[at] == 1


def labels(windows: Sequence[NDArray[np.int64]], paired: Paired) -> list[tuple[str, Bools]]:
    """See `rotations.labels.Labeller`."""
    depth, valid = true_at(windows, paired)
    bracket = paired.token_ids - task.FIRST_BRACKET
    is_bracket = (bracket >= 0) & (bracket < len(task.BRACKETS))
    found = [("opening", is_bracket & (bracket % 2 == 0)), ("closing", is_bracket & (bracket % 2 == 1))]
    found += [
        (f"family {task.BRACKETS[2 * k : 2 * k + 2]}", is_bracket & (bracket // 2 == k)) for k in range(3)
    ]
    found += [("broken", ~valid)]
    return found + [(f"depth {d}", valid & (depth == d)) for d in range(task.MAX_DEPTH + 1)]


def contrasts(windows: Sequence[NDArray[np.int64]], paired: Paired) -> list[Contrast]:
    """See `rotations.contrasts.Task`."""
    depth, valid = true_at(windows, paired)
    later = paired.positions > 0
    ids = [tuple(task.BRACKETS.index(one) + task.FIRST_BRACKET for one in some) for some in ("([{", ")]}")]
    openers, closers = (np.isin(paired.token_ids, some) & later for some in ids)
    four, five = (depth == 4) & later, (depth == 5) & later
    whole, broken = valid & four, ~valid & four
    return [
        # Subtracted: what is valid should come to be called invalid, and stay so.
        Contrast(
            "valid less invalid at depth 4", whole, broken, measured(paired, whole), "invalid less valid", "valid", (0,),
            (1,), -1.0,
        ),
        Contrast("depth 5 less 4", five, four, measured(paired, four), "depth 5 less 4", "depth", (5,), (4,)),
        Contrast(
            "closing less opening", closers, openers, measured(paired, openers), "closing less opening brackets",
            UNEMBEDDING, ids[1], ids[0],
        ),
    ]  # fmt: skip


register_labels(MODEL_TYPE, labels)
register_contrasts(MODEL_TYPE, Task(contrasts, ("depth", "valid")))
