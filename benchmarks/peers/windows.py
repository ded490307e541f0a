"""For peers that leave text and disk to their caller: windows as ours, and a float32 .npy file a site."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from numpy.lib.format import open_memmap

States = Callable[[torch.Tensor], list[torch.Tensor]]


def run(given: dict[str, Any], tokenizer: Any, states: States, output: Path, tokens: int) -> np.ndarray:
    """Tokenise, cut, run, write; the token ids (rows, context) that were run."""
    output.mkdir(parents=True)
    context, step = given["context"], given["batch_rows"]
    ids = tokenizer(Path(given["text"]).read_text(), add_special_tokens=False, verbose=False)["input_ids"]
    rows = np.array(ids[: tokens // context * context], np.int64).reshape(-1, context)
    files = [
        open_memmap(output / f"{layer}.npy", "w+", np.float32, (*rows.shape, given["width"]))
        for layer in given["layers"]
    ]
    for start in range(0, len(rows), step):
        found = states(torch.from_numpy(rows[start : start + step]))
        for file, state in zip(files, found, strict=True):
            file[start : start + step] = state.numpy()
    for file in files:
        file.flush()
    return rows


def measure(given: dict[str, Any], tokenizer: Any, states: States, version: str) -> None:
    """One batch outside the clock, for what is set up once; then all of it."""
    output = Path(given["output"])
    output.mkdir(parents=True)
    run(given, tokenizer, states, output / "first", given["batch_rows"] * given["context"])
    with harness.Watch() as watch:
        rows = run(given, tokenizer, states, output / "all", given["tokens"])
    site = np.load(output / "all" / f"{given['layers'][-1]}.npy", mmap_mode="r")
    harness.answer(
        seconds=watch.seconds,
        tokens=rows.size,
        states=rows.size * len(given["layers"]),
        disk=harness.size_of(output / "all"),
        peak=watch.peak,
        version=version,
        state=site[0, 5, :8].tolist(),
    )
