"""Writing codes and opening what searches them, beside LanceDB, Parquet and plain statements."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measure import NotMeasured, Setting, child, median, threads
from peers.harness import size_of
from search import spoken
from table import Row, failed

SETS = 10
"""Code sets of a shard: five sites with two centres, as an ingest writes them."""
Part = tuple[np.ndarray[Any, Any], ...]


def rows(setting: Setting) -> Iterator[Row]:
    """Rows a second into a catalogue, shard by shard as ingest commits them (opening and closing included)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from signarium.catalog import store
    from signarium.catalog.bulk import code_columns, insert_codes
    from signarium.catalog.shared import ROW_GROUP
    from signarium.migrations import manage

    n = ROW_GROUP // SETS
    for size, shards in ((72, 2 if setting.quick else 8), (512, 1 if setting.quick else 3)):
        path, folder = setting.scratch / f"load{size}.duckdb", setting.scratch / f"parquet{size}"
        folder.mkdir()
        with store.job_lock(path):
            manage.ensure(path)
        took = parquet = 0.0
        for shard in range(shards):
            parts = random_parts(shard, n, size)
            begun = time.perf_counter()
            with store.writing(path) as session:
                insert_codes(session, [code_columns(i, *part) for i, part in enumerate(parts)])
            written = time.perf_counter()
            table = pa.concat_tables([code_columns(i, *part) for i, part in enumerate(parts)])
            pq.write_table(table, folder / f"{shard}.parquet", compression="zstd")
            took += written - begun
            parquet += time.perf_counter() - written
        total = shards * SETS * n
        what = f"load {total:,} codes of {size} bytes"
        mine, disk = total / took, size_of(path) / total
        yield Row(
            what, f"{mine:,.0f} rows/s", f"{disk:.1f} bytes a row, {disk / size:.3f} of the packed bits"
        )
        peer, there = total / parquet, size_of(folder) / total
        yield Row(
            what,
            f"{mine:,.0f} rows/s",
            f"Parquet, zstd: {peer:,.0f} rows/s, {there:.1f} bytes a row",
            mine / peer,
        )
        peer = plain(setting.scratch / f"plain{size}.duckdb", random_parts(0, 5000, size)[0])
        yield Row(
            what,
            f"{mine:,.0f} rows/s",
            f"DuckDB executemany, one transaction: {peer:,.0f} rows/s",
            mine / peer,
        )
        task = {
            "what": "load",
            "output": str(setting.scratch / f"lance{size}"),
            "rows": SETS * n,
            "shards": shards,
            "size": size,
            "threads": threads(),
        }
        try:
            found = child(setting.peer, "peers/lancedb_search.py", task)
        except NotMeasured as error:
            yield failed(f"{what}: LanceDB", error)
            continue
        peer = total / found["seconds"]
        said = f"{found['version']}: {peer:,.0f} rows/s, {found['disk'] / total:.1f} bytes a row"
        yield Row(what, f"{mine:,.0f} rows/s", said, mine / peer)


def random_parts(shard: int, n: int, size: int) -> list[Part]:
    """Items, norms and codes of each code set in a shard."""
    rng = np.random.default_rng(shard)
    return [
        (
            np.arange(shard * n, (shard + 1) * n),
            rng.random(n, dtype=np.float32),
            rng.integers(0, 256, (n, size), dtype=np.uint8),
        )
        for _ in range(SETS)
    ]


def plain(path: Path, part: Part) -> float:
    """Rows a second by one statement a row in one transaction."""
    import duckdb

    some = [(0, int(i), float(norm), code.tobytes()) for i, norm, code in zip(*part, strict=True)]
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE c (code_set_id BIGINT, item BIGINT, norm FLOAT, code BLOB)")
        begun = time.perf_counter()
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO c VALUES (?, ?, ?, ?)", some)
        connection.execute("COMMIT")
        return len(some) / (time.perf_counter() - begun)


def opening(setting: Setting) -> Iterator[Row]:
    """Opening the file that a search reads, and a first query on it; every file is in the page cache."""
    from synthetic import build  # type: ignore[import-not-found]

    from signarium.catalog import engines, index, store
    from signarium.catalog.engines.flat import faiss

    n = 100_000 if setting.quick else 1_000_000
    path = setting.scratch / "open.duckdb"
    build(path, states=n, types=1024)
    with store.reading(path) as connection:
        info = next(one for one in index.describe(connection, "true", []) if one.n == n)
    file = index.folder(path) / f"{info.code_set_id}.faiss"
    query = np.random.default_rng(0).integers(0, 256, (1, info.width // 8), dtype=np.uint8)

    def mine() -> index.CodeIndex:
        found = index.open_index(path, info)
        assert found is not None
        return found

    def read() -> object:
        return faiss().read_index_binary(str(file))

    def search_mine() -> None:
        engines.search(mine().codes, query, 10, width=info.width)

    def search_read() -> None:
        faiss().omp_set_num_threads(1)
        faiss().read_index_binary(str(file)).search(query, 10)

    what = f"open the index of {n:,} codes of {info.width} bits"
    repeat = 5 if setting.quick else 15
    opened, searched = median(mine, repeat), median(search_mine, repeat)
    peer, then = median(read, repeat), median(search_read, repeat)
    yield Row(what, spoken(opened), f"FAISS read_index_binary {spoken(peer)}", peer / opened)
    yield Row(
        f"{what} and search once", spoken(searched), f"FAISS, one thread {spoken(then)}", then / searched
    )
    task = {
        "what": "open",
        "output": str(setting.scratch / "lance-open"),
        "rows": n,
        "size": info.width // 8,
        "threads": threads(),
    }
    try:
        found = child(setting.peer, "peers/lancedb_search.py", task)
    except NotMeasured as error:
        yield failed(f"{what}: LanceDB", error)
        return
    yield Row(what, spoken(opened), f"LanceDB open_table {spoken(found['open'])}", found["open"] / opened)
    yield Row(
        f"{what} and search once",
        spoken(searched),
        f"LanceDB {spoken(found['searched'])}",
        found["searched"] / searched,
    )
