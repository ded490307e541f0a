"""Our own side of a comparison of ingests: states at given sites into a catalogue, in a process of its own.

    python benchmarks/harvest.py '{"model": FOLDER, "text": FILE, "output": FOLDER, "tokens": N, "sites": "resid_post.14", ...}'

The model is loaded before the clock starts, as for the peers; planning, tokenising, writing, closing and the index of
each site are inside.
"""

from __future__ import annotations

import time
from pathlib import Path
from unittest.mock import patch

from peers import harness

given = harness.task()
harness.threads(given["threads"])

import duckdb  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

import signarium  # noqa: E402
from signarium.ingest.model.load import load_model  # noqa: E402
from signarium.ingest.model.loaded import LoadedModel  # noqa: E402


def run(model: LoadedModel, path: Path, tokens: int) -> None:
    """One ingest."""
    with patch("signarium.ingest.model.load.load_model", lambda *_, **__: model):
        signarium.ingest(  # type: ignore[operator]
            path,
            given["model"],
            text=[Path(given["text"])],
            stages=["states"],
            sites=given["sites"],
            max_tokens=tokens,
            context=given["context"],
            batch_tokens=given["batch_rows"] * given["context"],
        )


def bare(model: LoadedModel) -> float:
    """Tokens a second of the passes alone, to the last site's block: what nobody who runs this model so can exceed."""
    ids = torch.randint(model.vocab_size, (given["batch_rows"], given["context"]))
    sites = model.parse_sites(given["sites"])
    begun = time.perf_counter()
    for _ in range(4):
        model.bare_forward(ids, None, sites)
    return 4 * ids.numel() / (time.perf_counter() - begun)


def main() -> None:
    """Load, ingest once, say what it took."""
    torch.set_num_threads(given["threads"])
    model = load_model(given["model"], device="cpu", dtype="float32")
    folder = Path(given["output"])
    first, path = folder / "first" / "states.duckdb", folder / "all" / "states.duckdb"
    for one in (first, path):
        one.parent.mkdir(parents=True)
    # One batch outside the clock, for what is imported and set up once.
    batch = given["batch_rows"] * given["context"]
    run(model, first, batch)
    before = bare(model)
    with harness.Watch() as watch:
        run(model, path, given["tokens"])
    after = bare(model)
    with duckdb.connect(str(path), read_only=True) as connection:
        codes = connection.execute("SELECT code FROM code_row ORDER BY code_set_id, item").fetchall()
        last = connection.execute(
            "SELECT code FROM code_sets s JOIN code_row USING (code_set_id) WHERE s.site = ? ORDER BY item LIMIT 6",
            [given["sites"].split(";")[-1]],
        ).fetchall()[5][0]
    tokens = len(codes) // len(given["sites"].split(";"))
    disk = harness.size_of(path)
    harness.answer(
        seconds=watch.seconds,
        tokens=tokens,
        states=len(codes),
        disk=disk,
        further=(disk - harness.size_of(first)) / (len(codes) - batch * len(given["sites"].split(";"))),
        indexes=harness.size_of(path.parent) - disk,
        code=len(last),
        peak=watch.peak,
        bare=max(before, after),
        version=f"torch {torch.__version__}, numpy {np.__version__}",
        signs="".join(map(str, np.unpackbits(np.frombuffer(last, np.uint8))[:8])),
    )


if __name__ == "__main__":
    main()
