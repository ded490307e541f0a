"""DuckDB's own SQL over codes in a table, a query at a time. DuckDB is a dependency of the package: its interpreter."""

from __future__ import annotations

import harness

given = harness.task()

import duckdb  # noqa: E402
import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402

STATEMENT = "SELECT item, bit_count(xor(code::BIT, ?::BLOB::BIT)) AS d FROM c ORDER BY d, item LIMIT 10"


def main() -> None:
    """Time each batch."""
    codes, queries = np.load(given["codes"]), np.load(given["queries"])
    connection = duckdb.connect()
    connection.execute(f"SET threads = {given['threads']}")
    values = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(codes.shape[1]), len(codes), [None, pa.py_buffer(codes)]
    )
    held = pa.table({"item": np.arange(len(codes)), "code": values})
    connection.register("held", held)
    connection.execute("CREATE TABLE c AS SELECT * FROM held")
    del held, codes

    def work(m: int) -> np.ndarray:
        found = [connection.execute(STATEMENT, [one.tobytes()]).fetchall() for one in queries[:m]]
        return np.array([[d for _, d in one] for one in found], np.int32)

    np.save(given["distances"], work(4))
    rows = []
    for batch in given["batches"]:
        seconds, m = harness.in_turn({"it": work}, batch, given["seconds"], given["repeat"])["it"]
        rows.append({"batch": batch, "seconds": seconds, "measured": m})
    harness.answer(rows=rows, version=f"DuckDB {duckdb.__version__}")


if __name__ == "__main__":
    main()
