"""Exact search: beside FAISS, USearch, LanceDB and DuckDB; how it grows; the memory that it takes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import plot
from measure import NotMeasured, Setting, child, memory_free, ours, threads
from table import Bar, Row, at_least, at_most, failed

WIDTHS = (576, 2560, 4096)
DRAWN = (576, 2560)
BATCHES = (1, 64, 1024)
PEERS = (
    ("usearch_search", "USearch exact"),
    ("lancedb_search", "LanceDB flat"),
    ("duckdb_search", "DuckDB SQL"),
)
BATCH_BAR, ONE_CORE_BAR, TWO_CORE_BAR = at_least(3.5), at_least(1.0), at_least(1.7)
MEMORY_BAR = at_most(256, "MiB")


def make(folder: Path, n: int, width: int, queries: int = 1024) -> dict[str, Any]:
    """Random codes and queries in files; what a task says of them. Made block by block: 10M codes are not held."""
    size = (width + 7) // 8
    rng = np.random.default_rng(0)
    files = {"codes": folder / f"codes-{n}-{width}.npy", "queries": folder / f"queries-{width}.npy"}
    np.save(files["queries"], rng.integers(0, 256, (queries, size), dtype=np.uint8))
    codes = np.lib.format.open_memmap(files["codes"], "w+", np.uint8, (n, size))
    for start in range(0, n, 1 << 18):
        codes[start : start + (1 << 18)] = rng.integers(
            0, 256, (min(1 << 18, n - start), size), dtype=np.uint8
        )
    codes.flush()
    return {"width": width, "threads": threads(), **{name: str(file) for name, file in files.items()}}


def spoken(seconds: float) -> str:
    """Seconds as one would say them."""
    if seconds < 1e-3:
        return f"{1e6 * seconds:.0f} µs"
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:,.0f} s"


def queries(batch: int) -> str:
    """A number of queries in words."""
    return "1 query" if batch == 1 else f"{batch:,} queries"


def scaled(row: dict[str, Any]) -> str:
    """What was measured, where that was less than all."""
    return (
        "" if row["measured"] == row["batch"] else f" ({row['measured']} of {row['batch']:,} queries, scaled)"
    )


class Scan:
    """What `scan.py` or a peer measured, by work and batch."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.agree: dict[str, bool] = found.get("agree", {})
        self._rows = {(row.get("work", "it"), row["batch"]): row for row in found["rows"]}

    def get(self, work: str, batch: int) -> dict[str, Any]:
        """One measurement."""
        return self._rows[work, batch]

    def seconds(self, work: str, batch: int) -> float:
        """Its seconds."""
        return float(self._rows[work, batch]["seconds"])

    def flat(self, batch: int) -> tuple[float, str]:
        """FAISS's flat index at its quickest: seconds, and every setting's in words."""
        rows = [row for (work, at), row in self._rows.items() if work.startswith("flat:") and at == batch]
        said = ", ".join(
            f"{spoken(row['seconds'])} with {row['work'][5:]} thread{'s' * (row['work'] != 'flat:1')}{scaled(row)}"
            for row in rows
        )
        return min(row["seconds"] for row in rows), f"FAISS flat {said}"

    def line(self, work: str) -> list[tuple[int, float]]:
        """Batches and seconds a query."""
        return sorted((at, row["seconds"] / at) for (name, at), row in self._rows.items() if name == work)


def flats(cores: int) -> list[str]:
    """FAISS's settings: one thread, and as many as it takes by itself."""
    return ["flat:1"] if cores == 1 else ["flat:1", f"flat:{cores}"]


def rows(setting: Setting) -> Iterator[Row]:
    """A million codes of three widths, with one query and with batches; the figure is drawn from the same times."""
    n = 100_000 if setting.quick else 1_000_000
    cap, repeat = (0.5, 3) if setting.quick else (5.0, 9)
    drawn: dict[int, dict[str, list[tuple[int, float]]]] = {}
    for width in WIDTHS:
        task = {**make(setting.scratch, n, width), "seconds": cap, "repeat": repeat}
        truth = setting.scratch / "distances.npy"
        batches = sorted({*BATCHES, 4, 16, 256}) if width in DRAWN else list(BATCHES)
        names = ["auto", "faiss", "blocks", *flats(threads())]
        what = f"{n:,} codes of {width:,} bits, exact, k = 10"
        try:
            found = Scan(
                ours("scan.py", {**task, "batches": batches, "works": names, "distances": str(truth)})
            )
        except NotMeasured as error:
            yield failed(what, error)
            continue
        for batch in BATCHES:
            quickest, said = found.flat(batch)
            mine = found.seconds("auto", batch)
            bar: Bar | None = BATCH_BAR if batch == 64 and width in DRAWN else None
            if batch == 1 and threads() > 1:
                bar = TWO_CORE_BAR
            measured = f"{spoken(mine)}{scaled(found.get('auto', batch))}"
            yield Row(f"{what}, {queries(batch)}", measured, said, quickest / mine, bar)
        if not all(found.agree.values()):
            wrong = [name for name, same in found.agree.items() if not same]
            yield Row(f"{what}: DISTANCES DIFFER", beside=", ".join(wrong))
        yield from one_core(task, what, names)
        yield from filtered(task, what)
        drawn[width] = {f"signarium, {name}": found.line(name) for name in ("faiss", "blocks")}
        drawn[width]["FAISS flat, best threads"] = [(at, found.flat(at)[0] / at) for at in batches]
        for script, name in PEERS:
            try:
                peer = beside(setting, script, task, truth)
                drawn[width][name] = peer.line("it")
            except NotMeasured as error:
                yield failed(f"{what}: {name}", error)
                continue
            for batch in BATCHES:
                mine, row = found.seconds("auto", batch), peer.get("it", batch)
                said = f"{name} {spoken(row['seconds'])}{scaled(row)}"
                yield Row(f"{what}, {queries(batch)}", spoken(mine), said, row["seconds"] / mine)
            if not peer.agree["it"]:
                yield Row(f"{what}: DISTANCES DIFFER", beside=name)
        Path(task["codes"]).unlink()
    file = setting.kept / "search.svg" if setting.quick else Path(__file__).with_name("results-search.svg")
    plot.write(file, {width: drawn[width] for width in DRAWN if width in drawn}, n)


def one_core(task: dict[str, Any], what: str, names: list[str]) -> Iterator[Row]:
    """One query where there is one core."""
    works = [name for name in names if not name.startswith("flat:")] + flats(1)
    try:
        found = Scan(ours("scan.py", {**task, "batches": [1], "works": works, "repeat": 15}, cores=1))
    except NotMeasured as error:
        yield failed(f"{what}, 1 query, one core", error, ONE_CORE_BAR)
        return
    quickest, said = found.flat(1)
    mine = found.seconds("auto", 1)
    yield Row(f"{what}, 1 query, one core", spoken(mine), said, quickest / mine, ONE_CORE_BAR)


def filtered(task: dict[str, Any], what: str) -> Iterator[Row]:
    """One query among some of the rows only."""
    try:
        found = Scan(ours("scan.py", {**task, "batches": [1], "works": ["auto", "auto:half", "auto:1%"]}))
    except NotMeasured as error:
        yield failed(f"{what}, filters", error)
        return
    whole = found.seconds("auto", 1)
    for share in ("half", "1%"):
        mine = found.seconds(f"auto:{share}", 1)
        yield Row(
            f"{what}, 1 query, filter: {share} of the rows",
            spoken(mine),
            f"all rows {spoken(whole)}",
            whole / mine,
        )


def beside(setting: Setting, script: str, task: dict[str, Any], truth: Path) -> Scan:
    """A peer's own search, its distances compared with ours.

    Raises:
        NotMeasured: if it could not be run.
    """
    mine, folder = setting.scratch / f"{script}.npy", setting.scratch / f"{script}-{task['width']}"
    more = {
        "what": "search",
        "batches": list(BATCHES),
        "distances": str(mine),
        "output": str(folder),
        "repeat": 3,
    }
    if script == "duckdb_search":
        found = ours(f"peers/{script}.py", {**task, **more})
    else:
        found = child(setting.peer, f"peers/{script}.py", {**task, **more})
    shutil.rmtree(folder, ignore_errors=True)
    found["agree"] = {"it": bool(np.array_equal(np.load(mine), np.load(truth)))}
    return Scan(found)


def growth(setting: Setting) -> Iterator[Row]:
    """From one to ten million codes, beside FAISS on the same machine."""
    sizes = (50_000, 100_000) if setting.quick else (1_000_000, 3_000_000, 10_000_000)
    cap, repeat = (0.5, 3) if setting.quick else (6.0, 5)
    for width in (576, 2560):
        first: dict[int, float] = {}
        for n in sizes:
            what = f"{n:,} codes of {width:,} bits, exact, k = 10"
            # The codes, FAISS's copy of them, and the file in the page cache.
            if memory_free() < 3 * n * width // 8:
                yield failed(what, "too little memory for the codes and FAISS's copy of them")
                continue
            task = {**make(setting.scratch, n, width), "seconds": cap, "repeat": repeat}
            try:
                found = Scan(
                    ours("scan.py", {**task, "batches": [1, 64], "works": ["auto", *flats(threads())]})
                )
            except NotMeasured as error:
                yield failed(what, error)
                continue
            finally:
                Path(task["codes"]).unlink()
            for batch in (1, 64):
                mine, (quickest, said) = found.seconds("auto", batch), found.flat(batch)
                first.setdefault(batch, mine / n)
                grown = f"; ours a code {mine / n / first[batch]:.2f} times that of {sizes[0]:,}"
                yield Row(f"{what}, {queries(batch)}", spoken(mine), said + grown, quickest / mine)


def memory(setting: Setting) -> Iterator[Row]:
    """The most that a search takes beyond codes that are mapped from their file."""
    n = 100_000 if setting.quick else 1_000_000
    for width in WIDTHS:
        task = {**make(setting.scratch, n, width, 4096), "what": "memory", "works": ["auto"]}
        what = f"memory of a search beyond {n:,} codes of {width:,} bits"
        try:
            extra = ours("scan.py", {**task, "batches": [1, 64, 1024, 4096]})["extra"]
        except NotMeasured as error:
            yield failed(what, error, MEMORY_BAR)
            continue
        finally:
            Path(task["codes"]).unlink()
        most = max(extra.values()) / 2**20
        said = ", ".join(f"{queries(int(batch))} {more / 2**20:.1f} MiB" for batch, more in extra.items())
        yield Row(what, f"{most:.1f} MiB", said, bar=MEMORY_BAR, figure=most)
