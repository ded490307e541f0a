"""`neurons` as a user meets it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from made import DECODER
from terminal import Run


def test_neurons_in_every_format(
    run: Run, with_features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGNARIUM_DB", str(with_features))
    at = ["--model", DECODER]
    for arguments, first in (
        (["neurons", "list", *at], "model"),
        (["nearest", "neuron:0/4", "--in", "neurons", *at], "rank"),
        (["nearest", "direction:1000", "--in", "unembedding"], "rank"),
    ):
        objects = json.loads(run(*arguments, "--format", "json").out)
        assert next(iter(objects[0])) == first and len(objects) >= 10
        rows = list(csv.reader(io.StringIO(run(*arguments, "--format", "csv").out)))
        assert rows[0] == list(objects[0]) and len(rows) == len(objects) + 1
        file = tmp_path / "rows.parquet"
        assert run(*arguments, "--format", "parquet", "--output", str(file)).out == ""
        assert pq.read_table(file).num_rows == len(objects)
        assert "\x1b" not in run(*arguments).out
    assert run("neurons", "list", *at, "--limit", "3").err == "the first 3 by surprise; --limit 0 for all\n"
    (card,) = json.loads(run("neurons", "show", "0/4", *at, "--format", "json").out)
    assert card["neuron"]["neuron"] == 4 and len(card["projections"]) == 80
    text = run("neurons", "show", "0/4", *at).out
    assert run("neurons", "show", "0/4", *at, "--output", "card.txt").out == ""
    assert (tmp_path / "card.txt").read_text() == text and text.startswith("neuron 0/4 of decoder\n")
