"""Searches of ours and FAISS's own over the same codes, in turn, in a process of its own.

    python benchmarks/scan.py '{"codes": FILE.npy, "queries": FILE.npy, "width": BITS, "batches": [...], "works": [...], ...}'

`works` names what is timed: `auto`, `faiss`, `blocks` (engines of the package), `auto:half` and `auto:1%` (with a
filter), `numpy` and `count` (distances of all codes, by numpy and by the kernel), `flat:N` (FAISS's IndexBinaryFlat
with N OpenMP threads). `what` may ask instead for the `memory` that searches take beyond codes that are mapped from
their file, or for what an engine takes to `start`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from peers import harness

given = harness.task()

from signarium.catalog import engines  # noqa: E402
from signarium.catalog.engines.flat import faiss  # noqa: E402

K = 10
CHECKED = 4
Work = Callable[[int], Any]


def works(codes: np.ndarray, queries: np.ndarray) -> dict[str, Work]:
    """What was asked for, as functions of the number of queries; each returns distances and rows."""
    width, names = given["width"], given["works"]
    made: dict[str, Work] = {}
    flat: Any = None
    if any(name.startswith("flat:") for name in names):
        flat = faiss().IndexBinaryFlat(8 * codes.shape[1])
        flat.add(codes)
    rng = np.random.default_rng(0)
    filters = {"half": 0.5, "1%": 0.01}

    def threaded(n: int) -> Work:
        def search(m: int) -> Any:
            faiss().omp_set_num_threads(n)
            return flat.search(queries[:m], K)

        return search

    def engine(name: str, rows: np.ndarray | None) -> Work:
        if name == "auto":
            return lambda m: engines.search(codes, queries[:m], K, width=width, rows=rows)
        opened = engines.open(name, codes, width)
        return lambda m: opened.search(queries[:m], K, rows)

    def counter(engine: str) -> Work:
        return lambda m: (engines.differing(codes, queries[:m], width=width, engine=engine), None)

    for name in names:
        kind, _, more = name.partition(":")
        if kind == "flat":
            made[name] = threaded(int(more))
        elif kind in ("numpy", "count"):
            made[name] = counter("blocks" if kind == "count" else kind)
        else:
            rows = np.flatnonzero(rng.random(len(codes)) < filters[more]) if more else None
            made[name] = engine(kind, rows)
    return made


def started(queries: np.ndarray) -> None:
    """Have behind us what an engine loads or compiles once a process; hardly any codes, so that no memory is kept."""
    for name in ("faiss", "blocks"):
        if engines.missing(name, queries.shape[1]) is None:
            engines.search(queries[:64].copy(), queries[:64], K, width=given["width"], engine=name)


def search() -> None:
    """Time the works at each batch, and compare their distances with those of the first."""
    codes, queries = np.load(given["codes"]), np.load(given["queries"])
    started(queries)
    made = works(codes, queries)
    unfiltered = [name for name in made if not name.startswith("auto:")]
    answers = {name: made[name](CHECKED) for name in unfiltered if name not in ("numpy", "count")}
    first = next(iter(answers.values()), None)
    if given.get("distances"):
        np.save(given["distances"], first[0])
    agree = {
        name: bool(
            np.array_equal(first[0], found[0])
            and (name.startswith("flat:") or np.array_equal(first[1], found[1]))
        )
        for name, found in answers.items()
    }
    rows = []
    for batch in given["batches"]:
        for name, (seconds, m) in harness.in_turn(made, batch, given["seconds"], given["repeat"]).items():
            rows.append({"work": name, "batch": batch, "seconds": seconds, "measured": m})
    harness.answer(rows=rows, agree=agree)


def memory() -> None:
    """The most memory that any of the searches takes beyond what was resident before, codes mapped and read once."""
    queries = np.load(given["queries"])
    started(queries)
    codes = np.load(given["codes"], mmap_mode="r")
    for start in range(0, len(codes), 1 << 16):
        codes[start : start + (1 << 16)].max()
    extra = {}
    before = harness.status("VmRSS")
    for batch in given["batches"]:
        with harness.Watch() as watch:
            engines.search(codes, queries[:batch], K, width=given["width"], engine=given["works"][0])
        # What an earlier batch left behind counts, too.
        extra[batch] = watch.peak - before
    harness.answer(extra=extra)


def start() -> None:
    """What the first search of a process takes beyond the next, over hardly any codes."""
    codes = np.random.default_rng(0).integers(0, 256, (256, (given["width"] + 7) // 8), dtype=np.uint8)
    times = []
    for _ in range(2):
        begun = time.perf_counter()
        engines.search(codes, codes[:64], 1, width=given["width"], engine=given["works"][0])
        times.append(time.perf_counter() - begun)
    harness.answer(seconds=max(0.0, times[0] - times[1]))


if __name__ == "__main__":
    {"search": search, "memory": memory, "start": start}[given.get("what", "search")]()
