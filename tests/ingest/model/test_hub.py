from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import tiny

import signarium
from signarium.catalog.errors import ModelError
from signarium.ingest.model.hub import fetch

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The client of the hub, over a folder: what it serves, and what was fetched of it."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.fetched, self.cached = root, list[str](), root.parent / "cached"
        self.cached.mkdir()
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", self.model_info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.hf_hub_download)
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", self.find)

    def model_info(self, *_: Any, **__: Any) -> Any:
        files = sorted(one for one in self.root.rglob("*") if one.is_file())
        there = [
            SimpleNamespace(rfilename=str(one.relative_to(self.root)), size=one.stat().st_size)
            for one in files
        ]
        return SimpleNamespace(sha=COMMIT, siblings=there)

    def find(self, _: str, name: str, **__: Any) -> str | None:
        return str(self.cached / name) if (self.cached / name).exists() else None

    def hf_hub_download(self, _: str, name: str, **__: Any) -> str:
        self.fetched.append(name)
        return str(shutil.copy(self.root / name, self.cached / name))

    def snapshot_download(self, model_id: str, *, revision: str, allow_patterns: list[str]) -> str:
        assert revision == COMMIT
        for name in allow_patterns:
            if (self.root / name).exists() and self.find(model_id, name) is None:
                self.hf_hub_download(model_id, name)
        return str(self.cached)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub with an empty model."""
    (tmp_path / "hub").mkdir()
    return Hub(tmp_path / "hub", monkeypatch)


def test_the_weights_that_are_needed_and_no_others(hub: Hub) -> None:
    for name in (
        "config.json",
        "tokenizer.json",
        "model-1.safetensors",
        "consolidated.safetensors",
        "README.md",
    ):
        (hub.root / name).write_text("{}")
    (hub.root / "original").mkdir()
    (hub.root / "original" / "model.safetensors").write_text("")
    index = {"weight_map": {"a": "model-1.safetensors"}}
    (hub.root / "model.safetensors.index.json").write_text(json.dumps(index))
    fetch("someone/tiny", None, True)
    assert sorted(hub.fetched) == [
        "config.json", "model-1.safetensors", "model.safetensors.index.json", "tokenizer.json",
    ]  # fmt: skip
    fetch("someone/tiny", None, True)
    assert hub.fetched.count("model-1.safetensors") == 1
    (hub.root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../secret"}}))
    with pytest.raises(ModelError, match=r"names '\.\./\.\./secret', which is no file of its folder"):
        fetch("someone/tiny", None, True)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("pytorch_model.bin", "weights in pytorch_model.bin alone, a pickle"),
        ("tiny-Q8_0.gguf", "no safetensors, but tiny-Q8_0.gguf: fetch it"),
        ("other.safetensors", r"has no model\.safetensors .it has other\.safetensors"),
    ],
)
def test_a_model_without_safetensors_says_what_it_has(hub: Hub, name: str, says: str) -> None:
    (hub.root / "config.json").write_text("{}")
    (hub.root / name).write_text("")
    with pytest.raises(ModelError, match=says):
        fetch("someone/tiny", None, True)
    assert hub.fetched == []


def test_a_dry_run_says_what_it_would_fetch(hub: Hub, tmp_path: Path) -> None:
    shutil.copytree(tiny.built("llama"), hub.root, dirs_exist_ok=True)
    options: dict[str, Any] = {"sites": "embed", "stages": "types", "device": "cpu", "dry_run": True}
    report = signarium.ingest(tmp_path / "c.duckdb", "someone/tiny", **options)  # type: ignore[operator]
    assert report.dry_run and report.notes[0].startswith("would fetch 0.")
    assert "model.safetensors (" in report.notes[0] and hub.fetched == []
    fetch("someone/tiny", None, True)
    report = signarium.ingest(tmp_path / "c.duckdb", "someone/tiny", **options)  # type: ignore[operator]
    assert report.estimate.tokens == tiny.VOCAB_SIZE
