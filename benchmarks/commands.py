"""Whole commands, as a user waits for them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from measure import Setting, median
from table import Row


def rows(setting: Setting) -> Iterator[Row]:
    """Commands in processes of their own, and the same from Python."""
    from synthetic import build, first_state  # type: ignore[import-not-found]

    n = 100_000 if setting.quick else 1_000_000
    path = setting.scratch / "states.duckdb"
    build(path, states=n)
    stored = f"state:{first_state() + n // 2}"
    base = [sys.executable, "-m", "signarium", "--db", str(path)]

    def run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)

    peer = median(lambda: run(sys.executable, "-c", "import duckdb"), 7)
    sql = median(lambda: run(*base, "sql", "select 1"), 7)
    yield Row(
        '`sql "select 1"` / `python -c "import duckdb"`',
        f"{sql:.2f} s",
        f"{peer:.2f} s",
        sql / peer,
    )
    run(*base, "nearest", stored)
    near = median(lambda: run(*base, "nearest", stored), 5)
    yield Row(f"`nearest state:ID` over {n:,} codes, as a command", f"{near:.2f} s")
    filtered = median(lambda: run(*base, "nearest", stored, "--where", "position > 3"), 5)
    yield Row("the same with --where 'position > 3'", f"{filtered:.2f} s")

    import signarium

    opened = signarium.open(path)
    call = median(lambda: opened.nearest(stored), 10)
    again = median(lambda: opened.nearest(stored, where="position > 3"), 10)
    yield Row("the same from Python, opening the file and fetching rows included", f"{1e3 * call:.0f} ms")
    yield Row("the same with a filter that was used before", f"{1e3 * again:.0f} ms")
