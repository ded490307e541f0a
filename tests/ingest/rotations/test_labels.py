"""Labels of rows: categories by halves of their tokens, and what is true at a bracket."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import wordy

import dyck.labels  # noqa: F401  (registers them)
from dyck import task
from signarium.ingest.model.load import load_model
from signarium.ingest.rotations import labels
from signarium.ingest.stats.paired import Paired


def paired_of(windows: list[np.ndarray]) -> Paired:
    sizes = [len(one) - 1 for one in windows]
    n, of = sum(sizes), len(windows)
    cuts = [0, *np.cumsum([sum(sizes[i * of // 4 : (i + 1) * of // 4]) for i in range(4)]).tolist()]
    slices = [slice(cuts[i], cuts[i + 1]) for i in range(4)]
    return Paired(
        torch.zeros(n, 2), torch.zeros(n, 2), (slices[0], slices[1]), slices[2], slices[3],
        np.concatenate([one[1:] for one in windows]), np.repeat(np.arange(of), sizes),
        np.concatenate([np.arange(1, k + 1) for k in sizes]),
    )  # fmt: skip


def test_words_by_halves_of_their_tokens(tmp_path: Path) -> None:
    model = load_model(str(wordy.folder(tmp_path)), device="cpu")
    rng = np.random.default_rng(0)
    ids = [model.tokenizer(f" {word}").input_ids for some in wordy.words().values() for word in some]
    single = np.array([one[0] for one in ids if len(one) == 1])
    windows = [np.array([0, *rng.choice(single, 30)], np.int64) for _ in range(80)]
    paired = paired_of(windows)
    found = labels.labels(model, windows, paired, 0)
    assert {one.name for one in found} >= set(wordy.words())
    fit, test = np.zeros(len(paired.token_ids), bool), np.zeros(len(paired.token_ids), bool)
    fit[paired.fit], test[paired.test] = True, True
    for one in found:
        assert not (one.define & ~fit).any()
        assert not (one.score & ~test).any()
        assert not ((one.define | one.score) & ~one.inside).any()
        defining, scoring = (set(paired.token_ids[rows]) for rows in (one.define, one.score))
        assert not defining & scoring
    again = labels.labels(model, windows, paired, 0)
    assert all((a.define == b.define).all() for a, b in zip(found, again, strict=True))
    other = labels.labels(model, windows, paired, 1)
    assert any((a.define != b.define).any() for a, b in zip(found, other, strict=False))


def test_brackets_in_their_place() -> None:
    class Toy:
        architecture = "signarium_dyck"

    rows = task.draw(np.random.default_rng(0), 400)
    windows = [row[row != task.PAD] for row in rows]
    paired = paired_of(windows)
    found = {one.name: one for one in labels.labels(Toy(), windows, paired, 0)}  # type: ignore[arg-type]
    assert {"opening", "closing", "broken", "depth 1", "family ()"} <= set(found)
    true = task.labels(rows)
    depth, valid = (x[paired.documents, paired.positions] for x in (true.depth, true.valid))
    assert (found["depth 2"].inside == ((depth == 2) & (valid == 1))).all()
    assert (found["broken"].inside == (valid == 0)).all()
    letters = np.array(list("???" + task.BRACKETS + "?"))[np.minimum(paired.token_ids, 9)]
    assert (found["opening"].inside == np.isin(letters, list("([{"))).all()
    assert (found["family []"].inside == np.isin(letters, list("[]"))).all()
