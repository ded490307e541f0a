"""`sae` as a user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest
from terminal import Run


def test_sae_commands_say_what_they_made(run: Run, rotated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from signarium.ingest.saes import add, train
    from signarium.ingest.saes.request import SaeAddRequest, SaeTrainRequest, Settings

    monkeypatch.setenv("SIGNARIUM_DB", str(rotated))
    asked: list[tuple[object, ...]] = []

    def trained(path: Path, request: SaeTrainRequest, progress: object) -> train.TrainReport:
        asked.append((path, request, progress))
        where = request.output, request.model, request.site
        return train.TrainReport(*where, 480, 800, 200, 0.91234, 33.3, 0.125, notes=["a note"])

    def added(path: Path, request: SaeAddRequest, progress: object) -> add.SaeReport:
        asked.append((path, request, progress))
        return add.SaeReport("id", "run", "one", request.model, request.site, 480, already=len(asked) > 2)

    monkeypatch.setattr(train, "train_sae", trained)
    monkeypatch.setattr(add, "add_sae", added)
    at = ["--site", "resid_post.1"]
    shown = run(
        "sae",
        "train",
        "alpha",
        *at,
        "--text",
        "a.txt",
        "--output",
        "d.safetensors",
        "--seed",
        "7",
        "--l1",
        "0.01",
    )
    settings = Settings(expansion=8, steps=1500, l1=0.01, seed=7)
    request = SaeTrainRequest(
        "alpha", "resid_post.1", ["a.txt"], Path("d.safetensors"), settings, 65_536, 256, "auto"
    )
    assert asked[0][:2] == (rotated, request) and asked[0][2] is not None
    assert shown.err == "a note\n" and shown.out == (
        "d.safetensors: 480 directions; on 200 tokens kept aside it explains 0.912 of the variance with 33 firing at a token, "
        "12.5% never\n"
    )
    shown = run("sae", "add", "d.safetensors", "--model", "alpha", *at, "--name", "one")
    assert asked[1][:2] == (rotated, SaeAddRequest("alpha", "resid_post.1", Path("d.safetensors"), "one"))
    assert shown.out == f"one: 480 directions of alpha at resid_post.1 are in {rotated}\n"
    assert run("sae", "add", "d.safetensors", "--model", "alpha", *at).out.endswith("already\n")
