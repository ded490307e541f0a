"""LanceDB over codes, run by the peers' interpreter: a flat search by Hamming distance, loading, opening.

Codes are a column of fixed-size lists of uint8, and there is no index. All queries of a batch go in one call.
"""

from __future__ import annotations

import time
from pathlib import Path

import harness

given = harness.task()
harness.threads(given["threads"])

import lancedb  # noqa: E402
import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402

VERSION = f"LanceDB {lancedb.__version__}"


def arrow(items: np.ndarray, codes: np.ndarray, **more: np.ndarray) -> pa.Table:
    """Items and codes as LanceDB takes them."""
    values = pa.array(np.ascontiguousarray(codes).reshape(-1))
    return pa.table(
        {"item": items, **more, "code": pa.FixedSizeListArray.from_arrays(values, codes.shape[1])}
    )


def nearest(table: lancedb.table.Table, queries: np.ndarray) -> np.ndarray:
    """Distances (q, 10) of the nearest codes, from one call."""
    asked = table.search(list(queries), vector_column_name="code").distance_type("hamming").limit(10)
    found = asked.select(["item", "_distance"]).to_arrow()
    if "query_index" not in found.column_names:
        return found["_distance"].to_numpy()[None]
    order = np.lexsort((found["_distance"].to_numpy(), found["query_index"].to_numpy()))
    return found["_distance"].to_numpy()[order].reshape(len(queries), -1)


def search() -> None:
    """Time each batch."""
    codes, queries = np.load(given["codes"], mmap_mode="r"), np.load(given["queries"])
    database = lancedb.connect(given["output"])
    table = None
    for start in range(0, len(codes), 1 << 18):
        part = codes[start : start + (1 << 18)]
        rows = arrow(np.arange(start, start + len(part)), part)
        table = database.create_table("codes", rows) if table is None else (table.add(rows), table)[1]
    table.optimize()
    np.save(given["distances"], nearest(table, queries[:4]).astype(np.int32))
    rows = []
    for batch in given["batches"]:
        works = {"it": lambda m: nearest(table, queries[:m])}
        seconds, m = harness.in_turn(works, batch, given["seconds"], given["repeat"])["it"]
        rows.append({"batch": batch, "seconds": seconds, "measured": m})
    harness.answer(rows=rows, version=VERSION)


def load() -> None:
    """Rows a second, a shard an `add`."""
    rng = np.random.default_rng(0)
    database, n, size = lancedb.connect(given["output"]), given["rows"], given["size"]
    table, seconds = None, 0.0
    for shard in range(given["shards"]):
        codes = rng.integers(0, 256, (n, size), dtype=np.uint8)
        norms = rng.random(n, dtype=np.float32)
        begun = time.perf_counter()
        rows = arrow(np.arange(shard * n, (shard + 1) * n), codes, norm=norms)
        if table is None:
            table = database.create_table("codes", rows)
        else:
            table.add(rows)
        seconds += time.perf_counter() - begun
    harness.answer(seconds=seconds, disk=harness.size_of(given["output"]), version=VERSION)


def opening() -> None:
    """Seconds to open a table of `rows` codes, and to open it and search it once."""
    database = lancedb.connect(given["output"])
    codes = np.random.default_rng(0).integers(0, 256, (given["rows"], given["size"]), dtype=np.uint8)
    database.create_table("codes", arrow(np.arange(len(codes)), codes))
    del database
    opened, searched = [], []
    for _ in range(5):
        begun = time.perf_counter()
        table = lancedb.connect(given["output"]).open_table("codes")
        opened.append(time.perf_counter() - begun)
        nearest(table, codes[:1])
        searched.append(time.perf_counter() - begun)
    harness.answer(open=sorted(opened)[2], searched=sorted(searched)[2], version=VERSION)


if __name__ == "__main__":
    Path(given["output"]).mkdir(parents=True, exist_ok=True)
    {"search": search, "load": load, "open": opening}[given["what"]]()
