"""Which search engine is taken for what, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..catalog import engines as _engines
from ..catalog import store

if TYPE_CHECKING:
    import pyarrow as pa

_BATCHES = (1, 64, 1024)


def engines(path: Path) -> pa.Table:
    """The engine that `auto` takes, by width of the code sets and number of queries, with the seconds that each engine is
    expected to take (null where it cannot run, or was not measured) and why some are not in the running.

    A row for each width, of its largest code set, and each of 1, 64 and 1,024 queries; k is 10. One query is taken to be
    a command of its own, which would first load a kernel; with more that was done before. Codes are copied to a GPU anew
    for every search.
    """
    import pyarrow as pa

    with store.reading(path) as connection:
        sets = connection.execute(
            "SELECT width, max(n) FROM code_sets WHERE n > 0 GROUP BY width ORDER BY width"
        ).fetchall()
    rows = [(width, n, batch) for width, n in sets for batch in _BATCHES]
    chosen = [_engines.explain(*row, started=_engines.CPU[: 1 if row[2] == 1 else None]) for row in rows]
    named = zip(("width", "codes", "queries"), (pa.int32(), pa.int64(), pa.int32()), strict=True)
    columns = {name: pa.array([row[i] for row in rows], kind) for i, (name, kind) in enumerate(named)}
    columns["engine"] = pa.array([one.engine for one in chosen], pa.string())
    for name in _engines.NAMES:
        columns[_column(name)] = pa.array([one.expected.get(name) for one in chosen], pa.float64())
    columns["missing"] = pa.array(
        ["; ".join(f"{name}: {why}" for name, why in one.missing.items()) for one in chosen], pa.string()
    )
    return pa.table(columns)


def _column(name: str) -> str:
    return f"{name.replace('-', '_')}_s"
