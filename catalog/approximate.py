"""Approximate search (FAISS binary IVF): opt-in, never the default, and never without its measured recall."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from .codes import Codes, n_bytes
from .index import CodeIndex, CodeSetInfo, Distances, Items, faiss, folder, renamed

_SAMPLE = 100
_SEED = 0
RECALL_K = 10


class ApproximateIndex:
    """Cells of similar codes, of which only the nearest few are searched. `recall` was measured on this code set."""

    def __init__(self, exact: CodeIndex, ivf: Any, recall: float) -> None:
        self._exact, self._ivf, self.recall = exact, ivf, recall

    def search(self, query: Codes, k: int) -> tuple[Distances, Items, float]:
        """Distances (1, k') and items (1, k') for one query (bytes,), and the recall measured at build time."""
        distances, rows = self._ivf.search(np.ascontiguousarray(query[None]), min(k, self._exact.n))
        found = rows[0] >= 0
        return distances[:, found], self._exact.items_of(rows[:, found]), self.recall


def approximate_index(path: Path, info: CodeSetInfo, exact: CodeIndex) -> ApproximateIndex:
    """The IVF index of a code set: from its file if that belongs to this state of it, else built and measured.

    Recall is the share of the exact 10 nearest distances reached, over 100 stored codes (seed 0) as queries.
    """
    lib = faiss()
    base = folder(path) / f"{info.code_set_id}.ivf"
    note = base.with_suffix(".ivf.json")
    try:
        kept = json.loads(note.read_text())
        if kept["state"] == info.state and kept["n"] == info.n:
            return ApproximateIndex(exact, lib.read_index_binary(str(base)), float(kept["recall"]))
    except (OSError, ValueError, KeyError, RuntimeError):
        kept = None
    cells = max(1, min(1024, round(math.sqrt(exact.n))))
    width = 8 * n_bytes(info.width)
    quantizer = lib.IndexBinaryFlat(width)
    ivf = lib.IndexBinaryIVF(quantizer, width, cells)
    ivf.nprobe = max(1, cells // 32)
    ivf.cp.seed = _SEED
    ivf.train(np.ascontiguousarray(exact.codes))
    ivf.add(np.ascontiguousarray(exact.codes))
    recall = _recall(exact, ivf)
    folder(path).mkdir(exist_ok=True)
    with renamed(base) as temporary:
        lib.write_index_binary(ivf, str(temporary))
    with renamed(note) as temporary:
        temporary.write_text(json.dumps({"state": info.state, "n": info.n, "recall": recall, "cells": cells}))
    return ApproximateIndex(exact, ivf, recall)


def _recall(exact: CodeIndex, ivf: Any) -> float:
    rows = np.random.default_rng(_SEED).choice(exact.n, min(_SAMPLE, exact.n), replace=False)
    queries = np.ascontiguousarray(exact.codes[np.sort(rows)])
    k = min(RECALL_K, exact.n)
    true, _ = exact.search(queries, k)
    found, ids = ivf.search(queries, k)
    # By distance: among ties any code is as near as another.
    return float(((found <= true[:, -1:]) & (ids >= 0)).mean())
