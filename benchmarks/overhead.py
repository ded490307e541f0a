"""A whole ingest of SmolLM2 (planning, writing and indexes included) against bare passes over its batches."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from measure import MODEL, Setting
from table import Row, at_most

BAR = at_most(1.08)


def topics() -> str:
    """The text: what Python's own help says, about 113,000 tokens of SmolLM2."""
    from pydoc_data.topics import topics as found

    return "\n".join(found[key] for key in sorted(found))


def rows(setting: Setting) -> Iterator[Row]:
    """Each pass of the ingest is followed by the same one with the same early stop and nothing read from it.

    But for the window that goes through the model once more alone, to count the bits that batching flips: that pass is
    part of the ingest, and no part of a bare forward over the text.
    """
    import torch

    import signarium
    from signarium.ingest.model.load import load_model

    model = load_model(str(MODEL))
    forward = model.forward
    file = Path(setting.scratch / "text.txt")
    file.write_text(topics())
    tokens = 4096 if setting.quick else 16_384
    seen: set[bytes] = set()

    with patch("signarium.ingest.model.load.load_model", lambda *_, **__: model):
        # What a process imports and sets up once is no more part of it than loading the model is.
        signarium.ingest(
            setting.scratch / "first.duckdb", str(MODEL), stages=["states"], text=[file], max_tokens=64
        )  # type: ignore[operator]

    for stage in ("states",) if setting.quick else ("states", "types"):
        bare = 0.0
        seen.clear()

        def both(ids: torch.Tensor, lengths: list[int] | None, sites: list[object], sink: object) -> None:
            # Pass by pass, so that a machine whose speed wanders slows both alike.
            nonlocal bare
            forward(ids, lengths, sites, sink)  # type: ignore[arg-type]
            windows = {row.numpy().tobytes() for row in ids}
            if windows <= seen:
                return
            seen.update(windows)
            begun = time.perf_counter()
            model.bare_forward(ids, lengths, sites)  # type: ignore[arg-type]
            bare += time.perf_counter() - begun

        path = setting.scratch / f"{stage}.duckdb"
        options = {"text": [file], "max_tokens": tokens} if stage == "states" else {}
        model.forward = both  # type: ignore[assignment,method-assign]
        begun = time.perf_counter()
        with patch("signarium.ingest.model.load.load_model", lambda *_, **__: model):
            signarium.ingest(path, str(MODEL), stages=[stage], **options)  # type: ignore[operator]
        whole = time.perf_counter() - begun - bare
        model.forward = forward  # type: ignore[method-assign]
        run = signarium.open(path).runs().to_pylist()[0]
        yield Row(
            f"ingest / bare forward, {stage}, {run['tokens']:,} tokens, 5 sites, float32",
            f"{run['tokens'] / whole:,.0f} tokens/s",
            f"bare {run['tokens'] / bare:,.0f} tokens/s; of the ingest pack {run['pack_s']:.2f} s, "
            f"write {run['write_s']:.2f} s",
            whole / bare,
            BAR,
        )
