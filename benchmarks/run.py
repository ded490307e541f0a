"""What the README says about speed and size, measured on this machine, side by side in one run.

    python benchmarks/run.py [--quick] [--only PART,PART] [--peers build/peers]

Prints rows as they come and writes them into benchmarks/RESULTS.md part by part: a part that is not run keeps its
earlier rows with their date. Speed is a ratio against a named peer measured beside it; bars are computed from the run.
Peers live in an environment of their own, which `make bench-setup` makes; a peer that fails is a row that says so.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from measure import HERE, ROOT, Setting, machine, python, versions
from table import Results, failed, line

PARTS = {
    "ingest": "overhead.rows",
    "caches": "caches.rows",
    "search": "search.rows",
    "growth": "search.growth",
    "memory": "search.memory",
    "engines": "costs.rows",
    "load": "load.rows",
    "open": "load.opening",
    "commands": "commands.rows",
    "features": "features.rows",
    "writers": "writers.rows",
    "rotations": "rotations.rows",
}
GPU_PARTS = {"gpu-ingest": "gpu.ingest", "gpu-search": "gpu.search", "gpu-engines": "gpu.engines"}
TITLE = """# Results

`make bench` writes this table, and `make bench-gpu` the parts that need a GPU. Ratios say how many times better ours
is, or what the row divides; whether a bar is met is computed from the run. The speed of a machine wanders: read the
ratios, not the seconds. Rows of one part were measured in one run: FAISS and ours take turns, USearch, LanceDB and
DuckDB come after them in processes of their own, and runners of models take turns run by run.

![Seconds a query against queries a call](results-search.svg)
"""


def measure(
    parts: dict[str, str],
    wanted: Iterable[str],
    output: Path,
    about: str,
    quick: bool,
    peers: Path,
    device: str,
) -> bool:
    """Run parts, print their rows and write them; whether every one ran to its end."""
    results = Results(output, TITLE, [*PARTS, *GPU_PARTS])
    kept = ROOT / "build" / "bench"
    kept.mkdir(parents=True, exist_ok=True)
    good = True
    for part in wanted:
        scratch = Path(tempfile.mkdtemp(prefix="signarium-bench-"))
        module, function = parts[part].split(".")
        date, begun, rows = time.strftime("%Y-%m-%d"), time.perf_counter(), []
        try:
            for row in getattr(importlib.import_module(module), function)(
                Setting(scratch, kept, quick, peers, device)
            ):
                rows.append(row)
                print(line(part, row, date), flush=True)
        except Exception as error:
            good = False
            rows.append(failed(f"{part} was cut short", f"{type(error).__name__}: {error}"))
            print(line(part, rows[-1], date), flush=True)
        finally:
            shutil.rmtree(scratch)
        took = f"{time.perf_counter() - begun:.0f} s"
        results.replace(part, rows, date, f"{about}{'; small sizes' * quick}; the part took {took}")
    return good


def arguments(parts: dict[str, str], description: str | None) -> argparse.ArgumentParser:
    """What `run.py` and `gpu.py` both take."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, written to build/bench/RESULTS.md")
    parser.add_argument("--only", default=",".join(parts), help="parts, separated by commas")
    parser.add_argument("--peers", type=Path, default=ROOT / "build" / "peers", help="the peers' environment")
    return parser


def chosen(parser: argparse.ArgumentParser, parts: dict[str, str], only: str) -> list[str]:
    """The parts that were asked for, in the table's order."""
    asked = only.split(",")
    if unknown := [one for one in asked if one not in parts]:
        parser.error(f"no part {unknown[0]!r}; there is {', '.join(parts)}")
    return [one for one in parts if one in asked]


def output(quick: bool) -> Path:
    """Where the table goes."""
    return ROOT / "build" / "bench" / "RESULTS.md" if quick else HERE / "RESULTS.md"


def main() -> int:
    """Run the parts and write the table."""
    parser = arguments(PARTS, __doc__)
    options = parser.parse_args()
    about = f"{machine()}; {python()}, {versions('torch', 'numpy', 'faiss-cpu', 'faiss-gpu', 'duckdb')}"
    wanted = chosen(parser, PARTS, options.only)
    good = measure(PARTS, wanted, output(options.quick), about, options.quick, options.peers.resolve(), "cpu")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
