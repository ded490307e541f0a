"""`sae` as a user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest
from terminal import Run


def test_sae_commands_say_what_they_made(run: Run, rotated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from signarium.ingest.saes import add, train

    monkeypatch.setenv("SIGNARIUM_DB", str(rotated))
    asked: list[tuple[object, ...]] = []

    def trained(path: Path, model: str, site: str, **options: object) -> train.TrainReport:
        asked.append((path, model, site, options))
        return train.TrainReport(
            Path(str(options["output"])), model, site, 480, 800, 200, 0.91234, 33.3, 0.125, notes=["a note"]
        )

    def added(path: Path, model: str, site: str, file: Path, **options: object) -> add.SaeReport:
        asked.append((path, model, site, file, options))
        return add.SaeReport("id", "run", "one", model, site, 480, already=len(asked) > 2)

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
    options = asked[0][3]
    assert isinstance(options, dict) and options.pop("progress") is not None
    assert asked[0][:3] == (rotated, "alpha", "resid_post.1")
    assert options == {
        "text": ["a.txt"], "output": Path("d.safetensors"), "seed": 7, "expansion": 8, "steps": 1500, "l1": 0.01,
        "max_tokens": 65_536, "context": 256, "device": "auto",
    }  # fmt: skip
    assert shown.err == "a note\n" and shown.out == (
        "d.safetensors: 480 directions; on 200 tokens kept aside it explains 0.912 of the variance with 33 firing at a token, "
        "12.5% never\n"
    )
    shown = run("sae", "add", "d.safetensors", "--model", "alpha", *at, "--name", "one")
    assert asked[1][:4] == (rotated, "alpha", "resid_post.1", Path("d.safetensors"))
    assert shown.out == f"one: 480 directions of alpha at resid_post.1 are in {rotated}\n"
    assert run("sae", "add", "d.safetensors", "--model", "alpha", *at).out.endswith("already\n")
