"""USearch's exact search over codes, run by the peers' interpreter: `usearch.index.search(exact=True)`, Hamming on b1."""

from __future__ import annotations

import harness

given = harness.task()
harness.threads(given["threads"])

import numpy as np  # noqa: E402
import usearch  # noqa: E402
from usearch.index import MetricKind, search  # noqa: E402


def main() -> None:
    """Time each batch."""
    codes, queries = np.load(given["codes"]), np.load(given["queries"])

    def work(m: int) -> np.ndarray:
        found = search(codes, queries[:m], 10, MetricKind.Hamming, exact=True, threads=given["threads"])
        return np.atleast_2d(found.distances)

    np.save(given["distances"], work(4).astype(np.int32))
    rows = []
    for batch in given["batches"]:
        seconds, m = harness.in_turn({"it": work}, batch, given["seconds"], given["repeat"])["it"]
        rows.append({"batch": batch, "seconds": seconds, "measured": m})
    harness.answer(rows=rows, version=f"USearch {usearch.__version__}")


if __name__ == "__main__":
    main()
