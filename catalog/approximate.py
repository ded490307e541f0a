"""Approximate search (FAISS binary IVF): opt-in, never the default, and never without its measured recall."""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .codes import Codes, hamming, n_bytes
from .engines import Distances
from .engines.flat import faiss
from .errors import InvalidInput
from .files import make_folder, opened, replacing
from .index import CodeIndex, CodeSetInfo, Items, folder

_SAMPLE = 100
_SEED = 0
RECALL_K = 10


class ApproximateIndex:
    """Cells of similar codes, of which only the nearest few are searched; `recall` was measured on these codes."""

    def __init__(self, exact: CodeIndex, ivf: Any, recall: float) -> None:
        self._exact, self._ivf, self.recall = exact, ivf, recall

    def search(self, query: Codes, k: int) -> tuple[Distances, Items, float]:
        """Distances (1, k') and items (1, k') for one query (bytes,), and the recall measured at build time.

        Ordered by (distance, item). k' is `k`, or fewer where the cells searched hold fewer codes.

        Raises:
            InvalidInput: if the query has another width or `k` is not positive.
        """
        if query.shape != (n_bytes(self._exact.width),):
            raise InvalidInput(
                f"a code of {query.size} bytes cannot be searched among codes of {self._exact.width} bits"
            )
        if k < 1:
            raise InvalidInput(f"-k {k} is not positive")
        rows = _nearest_rows(self._ivf, query[None], k, self._exact.n)[0]
        rows = rows[rows >= 0]
        # From the codes themselves: a damaged file may lead to the wrong rows, never to a wrong distance.
        distances = hamming(query, self._exact.codes[rows]).astype(np.int32)
        order = np.lexsort((rows, distances))
        return distances[None, order], self._exact.items_of(rows[order])[None], self.recall


def approximate_index(path: Path, info: CodeSetInfo, exact: CodeIndex) -> ApproximateIndex:
    """The IVF index of a code set: from its file if that is of this state of it, else built and measured.

    Recall is the share of the exact 10 nearest distances reached, over 100 stored codes (seed 0) as queries.
    Where the file cannot be written, the index is kept in memory only.
    """
    lib = faiss()
    base = folder(path) / f"{info.code_set_id}.ivf"
    note = base.with_suffix(".ivf.json")
    with suppress(OSError, ValueError, KeyError, TypeError, RuntimeError):
        kept = _kept(note, info)
        if kept is not None and kept["sha256"] == _sha256(base):
            ivf = lib.read_index_binary(str(base))
            if (ivf.ntotal, ivf.code_size) == (info.n, n_bytes(info.width)):
                return ApproximateIndex(exact, ivf, float(kept["recall"]))
    cells = max(1, min(1024, round(math.sqrt(exact.n))))
    width = 8 * n_bytes(info.width)
    quantizer = lib.IndexBinaryFlat(width)
    ivf = lib.IndexBinaryIVF(quantizer, width, cells)
    ivf.nprobe = max(1, cells // 32)
    ivf.cp.seed = _SEED
    # FAISS warns on stderr below 39 codes a cell; what such cells are worth is in the recall.
    ivf.cp.min_points_per_centroid = 1
    if exact.n:
        codes = np.ascontiguousarray(exact.codes)
        ivf.train(codes)
        ivf.add(codes)
    recall = _recall(exact, ivf)
    with suppress(OSError, RuntimeError, InvalidInput):
        make_folder(folder(path))
        with replacing(base, sync=False) as temporary:
            lib.write_index_binary(ivf, str(temporary))
        with replacing(note, sync=False) as temporary:
            temporary.write_text(
                json.dumps(
                    {
                        "state": info.state,
                        "n": info.n,
                        "recall": recall,
                        "cells": cells,
                        "sha256": _sha256(base),
                    }
                )
            )
    return ApproximateIndex(exact, ivf, recall)


def is_damaged(path: Path, info: CodeSetInfo) -> bool | None:
    """Whether the file of a code set's IVF index has changed since it was written; None if there is none of this state."""
    base = folder(path) / f"{info.code_set_id}.ivf"
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = _kept(base.with_suffix(".ivf.json"), info)
        return None if kept is None else bool(kept["sha256"] != _sha256(base))
    return None


def _kept(note: Path, info: CodeSetInfo) -> dict[str, Any] | None:
    """What is noted of the file, if that is of this state of the code set."""
    with opened(note) as file:
        kept: dict[str, Any] = json.load(file)
    return kept if (kept["state"], kept["n"]) == (info.state, info.n) else None


def _sha256(file: Path) -> str:
    found = hashlib.sha256()
    with opened(file) as handle:
        while piece := handle.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


def _nearest_rows(ivf: Any, queries: Codes, k: int, n: int) -> NDArray[np.int64]:
    """Rows (q, k') nearest to `queries` (q, bytes) in the cells searched; -1 where those hold too few."""
    if not n:
        return np.empty((len(queries), 0), np.int64)
    rows: NDArray[np.int64] = ivf.search(np.ascontiguousarray(queries), min(k, n))[1]
    return np.where(rows < n, rows, -1)


def _recall(exact: CodeIndex, ivf: Any) -> float:
    if not exact.n:
        return 1.0
    rows = np.sort(np.random.default_rng(_SEED).choice(exact.n, min(_SAMPLE, exact.n), replace=False))
    queries = np.ascontiguousarray(exact.codes[rows])
    k = min(RECALL_K, exact.n)
    true, _ = exact.search(queries, k)
    found = _nearest_rows(ivf, queries, k, exact.n)
    # By distance: among ties any code is as near as another.
    near = hamming(queries[:, None], exact.codes[found]) <= true[:, -1:]
    return float((near & (found >= 0)).mean())
