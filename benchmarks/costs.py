"""What engines cost, measured: the table that `engine="auto"` chooses by."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from measure import ROOT, NotMeasured, Setting, machine, ours, threads
from search import WIDTHS, make, queries, spoken
from table import Row, failed

from signarium.catalog import engines

TABLE = ROOT / "catalog" / "engines" / "measured.json"
BATCHES = (1, 2, 4, 8, 16, 64, 1024)
COUNTED = (1, 4, 64)


def rows(setting: Setting) -> Iterator[Row]:
    """Every engine of the CPU at every width and batch; replaces their rows in the table that `auto` chooses by."""
    n = 50_000 if setting.quick else 1_000_000
    table = setting.kept / "measured.json" if setting.quick else TABLE
    for width in WIDTHS:
        task = {**make(setting.scratch, n, width), "seconds": 0.3 if setting.quick else 3.0, "repeat": 5}
        what = f"{n:,} codes of {width:,} bits"
        try:
            found = measure(task, width, n)
        except NotMeasured as error:
            yield failed(what, error)
            continue
        finally:
            Path(task["codes"]).unlink()
        merge(table, found)
        yield from said(found, what)


def said(found: Sequence[dict[str, Any]], what: str) -> Iterator[Row]:
    """A line an engine: seconds by batch."""
    for work, name in dict.fromkeys((row["work"], row["engine"]) for row in found):
        own = [row for row in found if (row["work"], row["engine"]) == (work, name)]
        start = f"; {spoken(own[0]['start'])} to begin" if own[0].get("start") else ""
        batches = ", ".join(f"{queries(row['batch'])} {spoken(row['seconds'])}" for row in own)
        yield Row(f"{work}, engine {name}, {what}", beside=batches + start)


def measure(task: dict[str, Any], width: int, n: int) -> list[dict[str, Any]]:
    """Rows of the CPU's engines over the task's codes."""
    found = ours("scan.py", {**task, "batches": list(BATCHES), "works": list(engines.CPU)})["rows"]
    counts = {"batches": list(COUNTED), "works": ["numpy", "count"]}
    found += ours("scan.py", {**task, **counts})["rows"]
    # The kernel is compiled once and kept on disk: every later process only loads it.
    begin = [ours("scan.py", {**task, "what": "start", "works": ["blocks"]})["seconds"] for _ in range(3)]
    rows = []
    for one in found:
        row = {
            "work": "count" if one["work"] in counts["works"] else "search",
            "engine": "blocks" if one["work"] == "count" else one["work"],
            "width": width,
            "n": n,
            "batch": one["batch"],
            "seconds": float(f"{one['seconds']:.4g}"),
            "threads": threads(),
            "machine": machine(),
        }
        rows.append(row | ({"start": round(min(begin), 2)} if row["engine"] == "blocks" else {}))
    return rows


def merge(table: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Put rows into the table in the place of those of the same engines and widths; a row a line, in a fixed order."""
    known: list[dict[str, Any]] = json.loads(table.read_text())["rows"] if table.exists() else []
    new = {(row["engine"], row["width"]) for row in rows}
    kept = [row for row in known if (row["engine"], row["width"]) not in new]
    every = sorted(
        [*kept, *rows], key=lambda row: (row["work"], row["engine"], row["width"], row["n"], row["batch"])
    )
    table.write_text('{"rows": [\n  ' + ",\n  ".join(json.dumps(row) for row in every) + "\n]}\n")
