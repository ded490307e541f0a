"""What the README says about speed and size, measured on this machine, side by side in one run.

    python benchmarks/run.py [--quick] [--only load,search,commands,features,writers,rotations,ingest]

Prints one table and writes it to benchmarks/RESULTS.md. Speed is a ratio against a named peer measured beside it.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
Row = tuple[str, str, str]


def best(work: Callable[[], object], repeat: int) -> float:
    """Seconds of the quickest of `repeat` calls."""
    times = []
    for _ in range(repeat):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


def median(work: Callable[[], object], repeat: int) -> float:
    """Seconds of the middle one of `repeat` calls."""
    times = []
    for _ in range(repeat):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def ingest(folder: Path, quick: bool) -> list[Row]:
    """A whole ingest of SmolLM2 (planning, writing and indexes included) against bare passes over its batches.

    Each pass of the ingest is followed by the same one with the same early stop and nothing read from it.
    """
    from pydoc_data.topics import topics

    import torch

    import signarium
    from signarium.ingest.model import load_model

    model = load_model(str(MODEL))
    forward = model.forward
    file = folder / "text.txt"
    file.write_text("\n".join(topics[key] for key in sorted(topics)))
    tokens = 4096 if quick else 16_384

    rows: list[Row] = []
    for stage in ("states",) if quick else ("states", "types"):
        bare = 0.0

        def both(ids: torch.Tensor, lengths: list[int] | None, sites: list[object], sink: object) -> None:
            # Pass by pass, so that a machine whose speed wanders slows both alike.
            nonlocal bare
            forward(ids, lengths, sites, sink)  # type: ignore[arg-type]
            begun = time.perf_counter()
            model.bare_forward(ids, lengths, sites)  # type: ignore[arg-type]
            bare += time.perf_counter() - begun

        path = folder / f"{stage}.duckdb"
        options = {"text": [file], "max_tokens": tokens} if stage == "states" else {}
        model.forward = both  # type: ignore[assignment,method-assign]
        begun = time.perf_counter()
        with patch("signarium.ingest.model.load_model", lambda *_, **__: model):
            signarium.ingest(path, str(MODEL), stages=[stage], **options)  # type: ignore[operator]
        whole = time.perf_counter() - begun - bare
        model.forward = forward  # type: ignore[method-assign]
        run = signarium.open(path).runs().to_pylist()[0]
        rows.append(
            (
                f"ingest / bare forward, {stage}, {run['tokens']:,} tokens, 5 sites, float32",
                f"{whole / bare:.3f}",
                f"{run['tokens'] / whole:,.0f} tokens/s; pack {run['pack_s']:.2f} s, write {run['write_s']:.2f} s",
            )
        )
    return rows


def load(folder: Path, quick: bool) -> list[Row]:
    """Rows a second into a catalogue, shard by shard as ingest commits them (opening and closing included)."""
    from signarium.catalog import bulk, store
    from signarium.migrations import manage

    sets = 10
    rows: list[Row] = []
    for size, shards in ((72, 2 if quick else 8), (512, 1 if quick else 3)):
        path = folder / f"load{size}.duckdb"
        with store.job_lock(path):
            manage.ensure(path)
        rng = np.random.default_rng(0)
        n, seconds = bulk.ROW_GROUP // sets, 0.0
        for shard in range(shards):
            parts = [
                (
                    np.arange(shard * n, (shard + 1) * n),
                    rng.random(n, dtype=np.float32),
                    rng.integers(0, 256, (n, size), dtype=np.uint8),
                )
                for _ in range(sets)
            ]
            begun = time.perf_counter()
            with store.writing(path) as session:
                bulk.insert_codes(session, [bulk.code_columns(i, *part) for i, part in enumerate(parts)])
            seconds += time.perf_counter() - begun
        total = shards * sets * n
        ratio = path.stat().st_size / (total * size)
        rows.append(
            (
                f"load {total:,} codes of {size} bytes",
                f"{total / seconds:,.0f} rows/s",
                f"file / packed bits {ratio:.3f}",
            )
        )
    return rows


def search(_: Path, quick: bool) -> list[Row]:
    """One query over a code set, exact, k = 10; beside FAISS's own search, numpy and DuckDB on the same codes."""
    import duckdb

    from signarium.catalog import index

    n, size = (200_000 if quick else 1_000_000), 72
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (n, size), dtype=np.uint8)
    query = rng.integers(0, 256, (1, size), dtype=np.uint8)
    flat = index.faiss().IndexBinaryFlat(8 * size)
    flat.add(codes)
    one = index.CodeIndex(8 * size, codes, np.array([[0, 0, n]]))
    half = np.flatnonzero(rng.random(n) < 0.5)
    some = np.flatnonzero(rng.random(n) < 0.01)
    ours = median(lambda: one.search(query, 10), 30)
    rows: list[Row] = [
        (f"search {n:,} codes of {8 * size} bits, one query, exact", f"{1e3 * ours:.1f} ms", "")
    ]
    for name, chosen in (("half of the rows", half), ("1% of the rows", some)):
        rows.append(
            (
                f"the same, filter: {name}",
                f"{1e3 * median(lambda c=chosen: one.search(query, 10, c), 30):.1f} ms",
                "",
            )
        )  # type: ignore[misc]
    peer = median(lambda: flat.search(query, 10), 10)
    rows.append(("FAISS flat, one thread / ours", f"{peer / ours:.2f}", f"{1e3 * peer:.1f} ms"))
    plain = best(lambda: np.bitwise_count(codes ^ query).sum(1), 3)
    rows.append(("numpy / ours", f"{plain / ours:.1f}", f"{1e3 * plain:.0f} ms"))
    connection = duckdb.connect()
    import pyarrow as pa

    from signarium.catalog.bulk import binary_array

    held = pa.table({"item": np.arange(n), "code": binary_array(codes)})
    connection.register("held", held)
    connection.execute("CREATE TABLE c AS SELECT * FROM held")
    statement = "SELECT item, bit_count(xor(code::BIT, ?::BLOB::BIT)) AS d FROM c ORDER BY d, item LIMIT 10"
    sql = best(lambda: connection.execute(statement, [query.tobytes()]).fetchall(), 3)
    rows.append(("DuckDB SQL / ours", f"{sql / ours:.1f}", f"{1e3 * sql:.0f} ms"))
    return rows


def commands(folder: Path, quick: bool) -> list[Row]:
    """Whole commands, as a user waits for them."""
    from synthetic import build, first_state  # type: ignore[import-not-found]

    n = 100_000 if quick else 1_000_000
    path = folder / "states.duckdb"
    build(path, states=n)
    stored = f"state:{first_state() + n // 2}"
    base = [sys.executable, "-m", "signarium", "--db", str(path)]

    def run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)

    peer = median(lambda: run(sys.executable, "-c", "import duckdb"), 7)
    sql = median(lambda: run(*base, "sql", "select 1"), 7)
    run(*base, "nearest", stored)
    near = median(lambda: run(*base, "nearest", stored), 5)
    filtered = median(lambda: run(*base, "nearest", stored, "--where", "position > 3"), 5)

    import signarium

    opened = signarium.open(path)
    call = median(lambda: opened.nearest(stored), 10)
    again = median(lambda: opened.nearest(stored, where="position > 3"), 10)
    return [
        (
            '`sql "select 1"` / `python -c "import duckdb"`',
            f"{sql / peer:.2f}",
            f"{sql:.2f} s and {peer:.2f} s",
        ),
        (f"`nearest state:ID` over {n:,} codes, as a command", f"{near:.2f} s", ""),
        ("the same with --where 'position > 3'", f"{filtered:.2f} s", ""),
        ("the same from Python, opening the file and fetching rows included", f"{1e3 * call:.0f} ms", ""),
        ("the same with a filter that was used before", f"{1e3 * again:.0f} ms", ""),
    ]


def features(folder: Path, quick: bool) -> list[Row]:
    """Categories and discovered features with all their controls, at one site and centre, on synthetic codes."""
    import json

    rows: list[Row] = []
    shapes = [(32_768, 576, 300)] if quick else [(49_152, 576, 1500), (262_144, 5120, 1500)]
    for types, width, seeds in shapes:
        command = [sys.executable, str(HERE / "features.py"), *map(str, (types, width, seeds)), str(folder)]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(result.stdout)
        rows.append(
            (
                f"features of {types:,} types at width {width:,}: 175 categories, {seeds:,} seeds, one site and centre",
                f"{found['categories_s']:.0f} s and {found['discovery_s']:.0f} s",
                f"peak {found['peak_bytes'] / 2**30:.2f} GiB; baselines, once a model, {found['baselines_s']:.0f} s",
            )
        )
    return rows


def writers(folder: Path, quick: bool) -> list[Row]:  # noqa: ARG001
    """Agreements of features with every neuron of a model, and coalitions in one block, on synthetic weights."""
    import json

    rows: list[Row] = []
    # Neurons of a block, blocks, width, features: SmolLM2's, and those of a model with 8 billion parameters.
    shapes = [(1536, 4, 576, 500)] if quick else [(1536, 30, 576, 8400), (14_336, 32, 4096, 1500)]
    for neurons, blocks, width, n in shapes:
        command = [sys.executable, str(HERE / "writers.py"), *map(str, (neurons, blocks, width, n))]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(result.stdout)
        rows.append(
            (
                f"agreements of {n:,} features with {blocks * neurons:,} neurons of width {width:,}",
                f"{found['agreements_s']:.1f} s",
                f"peak {found['peak_bytes'] / 2**30:.2f} GiB; coalitions of one block, 7 sizes, "
                f"{found['coalition_s']:.1f} s, and in split halves {found['split_half_s']:.1f} s",
            )
        )
    return rows


def rotations(folder: Path, quick: bool) -> list[Row]:
    """A rotation at one site with all that it is compared with, on synthetic states mapped from a file."""
    import json

    rows: list[Row] = []
    for width, tokens in [(1024, 16_384)] if quick else [(1024, 65_536), (4096, 65_536)]:
        command = [sys.executable, str(HERE / "rotations.py"), str(width), str(tokens), str(folder)]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(result.stdout)
        seconds = sum(found[name] for name in ("fit_s", "explained_s", "statistics_s"))
        rows.append(
            (
                f"rotation of one site of width {width:,}, {tokens:,} tokens, {found['device']}",
                f"{seconds:.0f} s",
                f"fit {found['fit_s']:.0f} s (of it decompositions {found['decompositions_s']:.0f} s), explained variance "
                f"{found['explained_s']:.0f} s, statistics {found['statistics_s']:.0f} s; peak beyond the states "
                f"{found['peak_bytes'] / 2**30:.2f} GiB, where a float64 matrix of that width has {width * width / 2**27:.2f}; "
                f"33 such sites, extrapolated and not run: {33 * seconds / 60:.0f} min",
            )
        )
    return rows


PARTS = {
    "load": load,
    "search": search,
    "commands": commands,
    "features": features,
    "writers": writers,
    "rotations": rotations,
    "ingest": ingest,
}


def processor() -> str:
    """The processor's name, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def main() -> None:
    """Run the parts and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, nothing written to RESULTS.md")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    options = parser.parse_args()
    sys.path.insert(0, str(HERE))
    from signarium.catalog.index import n_threads

    rows: list[Row] = []
    for name in options.only.split(","):
        folder = Path(tempfile.mkdtemp(prefix="signarium-bench-"))
        try:
            for row in PARTS[name](folder, options.quick):
                rows.append(row)
                print(" | ".join(row), flush=True)
        finally:
            shutil.rmtree(folder)
    head = f"# Results\n\n{processor()}, {n_threads()} cores, Python {platform.python_version()}; `make bench`.\n\n"
    table = "| what | figure | beside it |\n|---|---|---|\n" + "".join(
        f"| {' | '.join(row)} |\n" for row in rows
    )
    if not options.quick and options.only == ",".join(PARTS):
        (HERE / "RESULTS.md").write_text(head + table)


if __name__ == "__main__":
    main()
