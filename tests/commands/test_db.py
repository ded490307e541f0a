"""`db` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
from made import DECODER
from terminal import Run


def test_db_commands_on_a_current_file(run: Run, catalogue_copy: Path) -> None:
    db = ["--db", str(catalogue_copy), "db"]
    assert run(*db, "verify").code == 0
    checked = run(*db, "verify", "--model", DECODER)
    assert checked.code == 0 and "types recomputed at embed" in checked.out
    before = catalogue_copy.read_bytes()
    assert run(*db, "upgrade").err == f"{catalogue_copy} is up to date\n"
    assert run(*db, "index").err == f"the indexes of {catalogue_copy} are complete\n"
    assert catalogue_copy.read_bytes() == before
    said = run(*db, "index", "--engines", "--format", "json")
    rows = json.loads(said.out)
    assert {one["queries"] for one in rows} == {1, 64, 1024} and {one["width"] for one in rows} == {44, 48}
    for one in rows:
        assert one["queries"] > 1 or one["engine"] == "faiss", (
            "a command of its own would load the others first"
        )
        assert one[f"{one['engine'].replace('-', '_')}_s"] > 0
        assert one["missing"] in (*said.err.splitlines(), "")
    assert "faiss ms" in run(*db, "index", "--engines").out
    next(Path(f"{catalogue_copy}.indexes").glob("*.faiss")).unlink()
    assert run(*db, "index").code == 0
    with duckdb.connect(str(catalogue_copy), read_only=True) as connection:
        (sets,) = connection.execute("SELECT count(*) FROM code_sets").fetchone() or (0,)
    assert len(list(Path(f"{catalogue_copy}.indexes").glob("*.faiss"))) == sets > 0
    with duckdb.connect(str(catalogue_copy)) as connection:
        connection.execute("DELETE FROM code_row WHERE item = 5")
    broken = run(*db, "verify")
    assert broken.code == 1 and "missing, doubled or extra" in broken.out
    assert broken.err.startswith(f"error: {catalogue_copy} is not sound") and broken.err.count("\n") == 1
