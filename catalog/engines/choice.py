"""Which engine is quickest for a search: from costs that the benchmark measured, never from a guess.

`measured.json` is written by `make bench` and `make bench-gpu`: seconds of a search over so many codes, by engine,
width and batch. A search of another size is taken to cost in proportion to its bytes, and a batch between two that
were measured, what lies between them. An engine without a row is never chosen by itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..codes import n_bytes
from ..errors import InvalidInput
from . import blocks, device

AUTO = "auto"
CPU = ("faiss", "blocks")
NAMES = (*CPU, "faiss-gpu", "tensor")
ENGINES = (AUTO, *NAMES)
COUNTING_ON_CPU = ("numpy", "blocks")
COUNTING = (*COUNTING_ON_CPU, "tensor")
"""Engines that count on masked dimensions."""
TABLE = Path(__file__).with_name("measured.json")


@dataclass(frozen=True)
class Choice:
    """An engine, and why it and not another: seconds that each is expected to take, and what keeps the others."""

    engine: str
    expected: dict[str, float]
    missing: dict[str, str]


def missing(engine: str, size: int = 1) -> str | None:
    """Why an engine cannot search codes of `size` bytes here; None if it can."""
    if engine == "blocks":
        return blocks.missing() or blocks.fits(size)
    if engine == "faiss-gpu":
        return device.missing_faiss()
    if engine == "tensor":
        return device.missing_tensor()
    return None


def checked(engine: str, size: int, among: Iterable[str] = NAMES) -> str:
    """`engine`, which somebody asked for.

    Raises:
        InvalidInput: if there is none of that name, or it cannot run here.
    """
    unknown = "it knows no masks" if engine in NAMES else "there is none of that name"
    why = missing(engine, size) if engine in among else unknown
    if why is not None:
        there = [one for one in among if missing(one, size) is None]
        raise InvalidInput(f"engine {engine} cannot run: {why}", f"here are {AUTO}, {', '.join(there)}")
    return engine


def choose(
    width: int,
    n: int,
    batch: int,
    among: Iterable[str] = NAMES,
    started: Container[str] = (),
    work: str = "search",
) -> str:
    """The engine that is expected to answer `batch` queries over `n` codes of `width` bits first.

    What it takes to begin (a kernel to load, codes to copy to a GPU) counts but for engines in `started`. `work` is
    `search`, or `count` for all distances.
    """
    costs = _costs(width, n, batch, among, started, work)
    # Whether an engine can run takes a while to find out: nobody asks about those that would not be taken.
    there = (one for one in sorted(costs, key=lambda one: costs[one]) if missing(one, n_bytes(width)) is None)
    return next(there, next(iter(among)))


def explain(
    width: int, n: int, batch: int, among: Iterable[str] = NAMES, started: Container[str] = ()
) -> Choice:
    """What `choose` takes for a search, with what it expects of each engine, and why some cannot run."""
    costs = _costs(width, n, batch, among, started, "search")
    kept = {one: missing(one, n_bytes(width)) or (None if one in costs else "not measured") for one in among}
    return Choice(
        choose(width, n, batch, among, started),
        {one: costs[one] for one in among if kept[one] is None},
        {one: why for one, why in kept.items() if why is not None},
    )


def start_of(engine: str) -> float:
    """Seconds that an engine takes to begin, whatever the codes."""
    return max(
        (row.get("start", 0.0) for (_, name), rows in _table().items() if name == engine for row in rows),
        default=0.0,
    )


def _costs(
    width: int, n: int, batch: int, among: Iterable[str], started: Container[str], work: str
) -> dict[str, float]:
    expected = {one: _expected(work, one, width, n, batch, one not in started) for one in among}
    return {one: seconds for one, seconds in expected.items() if seconds is not None}


@cache
def _table() -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Rows by work and engine. Without the file, or where a row is broken, nothing was measured."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    try:
        rows = json.loads(TABLE.read_text())["rows"]
    except (OSError, ValueError, TypeError, KeyError):
        return found
    for row in rows if isinstance(rows, list) else []:
        with suppress(TypeError, KeyError, ValueError):
            if all(0 < float(row[name]) < math.inf for name in ("width", "n", "batch", "seconds")):
                found.setdefault((row["work"], row["engine"]), []).append(row)
    return found


def _expected(work: str, engine: str, width: int, n: int, batch: int, start: bool) -> float | None:
    rows = _table().get((work, engine))
    if not rows:
        return None
    near = min({row["width"] for row in rows}, key=lambda one: (abs(math.log(one / width)), one))
    rows = sorted((row for row in rows if row["width"] == near), key=lambda row: row["batch"])
    batches = [row["batch"] for row in rows]
    # Seconds a byte of the codes.
    costs = [row["seconds"] / (row["n"] * n_bytes(row["width"])) for row in rows]
    cost = float(np.interp(batch, batches, costs)) * max(1.0, batch / batches[-1])
    begin = 0.0
    if start:
        begin = rows[0].get("start", 0.0) + rows[0].get("copy", 0.0) * n * n_bytes(width)
    return cost * n * n_bytes(width) + begin
