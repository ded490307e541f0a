from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from signarium.catalog.errors import ModelError
from signarium.ingest.model import source, weights
from signarium.ingest.model.load import load_model

LAYER = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.folder(tmp_path, "llama", name="tiny-llama")


def refused(source: object, capfd: Any, **options: Any) -> str:
    """The one line with which loading `source` is refused; nothing else is printed."""
    capfd.readouterr()
    with pytest.raises(ModelError) as error:
        load_model(str(source), **options)
    out, err = capfd.readouterr()
    assert out == err == ""
    line = str(error.value)
    assert "\n" not in line
    return line


class Bomb:
    """Creates `marker` when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


# ---- finding ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source", ["./nothing", "/nothing/here", "~/nothing-here", "a/b/c", "model.gguf", "", "a/m.gguf"]
)
def test_a_path_that_is_not_there(source: str, capfd: Any) -> None:
    line = refused(source, capfd)
    assert line.startswith(f"no such file or folder: {source!r}")


def test_an_existing_path_wins_over_an_id(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    found = source.find_source("tiny-llama")
    assert (found.folder, found.gguf, found.name, found.revision) == (folder, None, "tiny-llama", None)
    with pytest.raises(ModelError, match="a local path, which has no revision 'main': leave out --revision"):
        source.find_source("tiny-llama", "main")


def test_a_gguf_file_names_the_model(tmp_path: Path) -> None:
    file = tmp_path / "Tiny.Q4_1.gguf"
    file.write_bytes(b"GGUF")
    found = source.find_source(str(file))
    assert (found.folder, found.gguf, found.name) == (tmp_path, file, "Tiny.Q4_1")


def test_an_id_is_fetched_and_its_commit_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    snapshot = folder.rename(folder.parent / "0123456789abcdef")

    def snapshot_download(repo_id: str, **options: Any) -> str:
        asked.update(options, repo_id=repo_id)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    model = load_model("someone/tiny", revision="main")
    assert (model.source, model.name, model.revision) == ("someone/tiny", "tiny", "0123456789abcdef")
    assert asked["repo_id"] == "someone/tiny"
    assert asked["revision"] == "main"
    # Pickles and code are not even fetched.
    assert not any(p.endswith((".bin", ".pt", ".py")) for p in asked["allow_patterns"])


def hub_error(name: str) -> Exception:
    from huggingface_hub import errors

    kind = getattr(errors, name)
    if name in ("HFValidationError", "LocalEntryNotFoundError", "OfflineModeIsEnabled"):
        return kind("first line\nsecond line")  # type: ignore[no-any-return]
    response = SimpleNamespace(headers={}, request=None)
    return kind("first line\nsecond line", response=response)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("GatedRepoError", "is gated: accept its terms"),
        ("RepositoryNotFoundError", "no Hugging Face model 'someone/tiny', or it is private: check the id"),
        ("RevisionNotFoundError", "has no revision 'x': pass another --revision"),
        ("HFValidationError", "'someone/tiny' is no file, folder or Hugging Face id"),
        ("LocalEntryNotFoundError", "cannot be fetched from Hugging Face"),
        ("OfflineModeIsEnabled", "cannot be fetched from Hugging Face"),
    ],
)
def test_an_id_that_cannot_be_fetched(
    error: str, says: str, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def snapshot_download(*_: Any, **__: Any) -> str:
        raise hub_error(error)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert says in refused("someone/tiny", capfd, revision="x")


# ---- refusing -----------------------------------------------------------------------------------


def test_a_folder_without_a_config(folder: Path, capfd: Any) -> None:
    (folder / "config.json").unlink()
    assert "has no config.json" in refused(folder, capfd)
    (folder / "x.gguf").write_bytes(b"GGUF")
    assert f"pass the file itself: {folder / 'x.gguf'}" in refused(folder, capfd)
    (folder / "adapter_config.json").write_text("{}")
    assert "an adapter, not a model" in refused(folder, capfd)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model_type": 3}'])
def test_a_config_that_is_none(folder: Path, text: str, capfd: Any) -> None:
    (folder / "config.json").write_text(text)
    assert "config.json" in refused(folder, capfd)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_pickles_are_named_and_never_opened(folder: Path, name: str, tmp_path: Path, capfd: Any) -> None:
    marker = tmp_path / "the pickle ran"
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(marker)))
    for place in (folder, folder / name):
        line = refused(place, capfd)
        assert name in line
        assert "convert it to safetensors" in line
    assert not marker.exists()
    pickle.loads((folder / name).read_bytes())
    assert marker.exists()  # so the check above would have seen it


def test_a_pickle_beside_safetensors_is_ignored(folder: Path, tmp_path: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    load_model(str(folder))
    assert not (tmp_path / "ran").exists()


def test_code_that_comes_with_a_model_is_never_run(folder: Path, tmp_path: Path, capfd: Any) -> None:
    marker = tmp_path / "the code ran"
    code = f"open({str(marker)!r}, 'w')\nclass C: pass\nclass M: pass\nclass T: pass\n"
    (folder / "own.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own.C", "AutoModel": "own.M", "AutoTokenizer": ["own.T", "own.T"]}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": own, "model_type": "own"}))
    line = refused(folder, capfd)
    assert "needs code of its own (own), which is never run" in line
    # An architecture that transformers has is loaded by transformers' own code.
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": own}))
    assert load_model(str(folder)).architecture == "llama"
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "from_the_future"}))
    assert "knows no architecture 'from_the_future'" in (line := refused(folder, capfd))
    assert "register it with a plugin" in line
    assert not marker.exists()


def test_a_folder_without_a_tokenizer(folder: Path, capfd: Any) -> None:
    for file in folder.glob("*token*"):
        file.unlink()
    assert f"{folder} has no tokenizer" in refused(folder, capfd)


def test_a_broken_tokenizer(folder: Path, capfd: Any) -> None:
    (folder / "tokenizer.json").write_text("{}")
    assert f"the tokenizer of {folder} cannot be loaded" in refused(folder, capfd)


@pytest.mark.parametrize("cut", [0, 5, 100, -1, -1000])
def test_a_truncated_file(folder: Path, cut: int, capfd: Any) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    line = refused(folder, capfd)
    assert line.startswith(f"{file} is truncated or corrupt")


def test_a_file_with_bytes_too_many_or_a_wrong_header(folder: Path, capfd: Any) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole + b"\0")
    assert "truncated or corrupt (its header describes" in refused(folder, capfd)
    (length,) = struct.unpack("<Q", whole[:8])
    file.write_bytes(whole[:8] + b"x" * length + whole[8 + length :])
    assert "truncated or corrupt (its header cannot be read" in refused(folder, capfd)
    header = json.loads(whole[8 : 8 + length])
    header[LAYER]["shape"][0] += 1
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    file.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
    assert f"{LAYER} of shape [49, 80] and type F32 takes 15360 bytes" in refused(folder, capfd)


def test_a_missing_shard(tmp_path: Path, capfd: Any) -> None:
    path = tiny.folder(tmp_path, "llama", max_shard_size="100KB")
    shards = sorted(path.glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[1].unlink()
    assert refused(path, capfd).startswith(
        f"{shards[1]} is missing, and model.safetensors.index.json lists it"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(folder: Path, value: float, capfd: Any) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[LAYER][3, 4] = value

    edit_weights(folder, change)
    assert "layers.1.mlp.down_proj.weight" in (line := refused(folder, capfd))
    assert "holds NaN or infinity" in line


def test_weights_that_lack_a_tensor(folder: Path, capfd: Any) -> None:
    edit_weights(folder, lambda tensors: tensors.__delitem__(LAYER))
    line = refused(folder, capfd)
    assert "lack layers.1.mlp.down_proj.weight" in line


def test_weights_of_another_shape(folder: Path, capfd: Any) -> None:
    edit_weights(folder, lambda tensors: tensors.update({LAYER: tensors[LAYER][:, :-1].contiguous()}))
    assert "have another shape for layers.1.mlp.down_proj.weight" in refused(folder, capfd)


def test_weights_that_are_not_there(folder: Path, capfd: Any) -> None:
    file = folder / "model.safetensors"
    file.rename(folder / "other.safetensors")
    assert "has other.safetensors but no model.safetensors" in refused(folder, capfd)
    (folder / "other.safetensors").unlink()
    assert "has no weights: put model.safetensors into it, or pass --random-init" in refused(folder, capfd)


@pytest.mark.parametrize(
    ("model_type", "says"),
    [
        ("t5", "t5 is an encoder-decoder"),
        ("bart", "bart is an encoder-decoder"),
        ("vit", "vit reads pixel_values, not text"),
        ("wav2vec2", "wav2vec2 reads input_values, not text"),
    ],
)
def test_models_without_one_residual_stream_over_text(
    tmp_path: Path, model_type: str, says: str, capfd: Any
) -> None:
    AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    assert says in refused(tmp_path, capfd)


@pytest.mark.parametrize("content", [b"GGUF", b"GGUF" + bytes(range(256)) * 8, b"not at all", b""])
def test_a_corrupt_gguf(tmp_path: Path, content: bytes, capfd: Any) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    line = refused(file, capfd)
    assert line.startswith(f"{file} is ")


def test_gguf_needs_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF\3\0\0\0")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    assert 'pip install "signarium[gguf]"' in refused(file, capfd)


# ---- hashing ------------------------------------------------------------------------------------


def hash_of(folder: Path) -> str:
    return weights.hash_stored(weights.read_headers(weights.weight_files(folder)))


def test_the_hash_does_not_depend_on_files_or_metadata(tmp_path: Path) -> None:
    whole = tiny.folder(tmp_path, "llama", name="whole")
    sharded = tiny.folder(tmp_path, "llama", name="sharded", max_shard_size="100KB")
    assert not (sharded / "model.safetensors").exists()
    other_metadata = tmp_path / "metadata"
    shutil.copytree(whole, other_metadata)
    tensors = load_file(whole / "model.safetensors")
    save_file(
        dict(reversed(tensors.items())), other_metadata / "model.safetensors", {"format": "pt", "by": "x"}
    )
    expected = hash_of(whole)
    assert len(expected) == 64
    assert hash_of(sharded) == hash_of(other_metadata) == expected
    assert load_model(str(sharded)).weights_sha256 == load_model(str(whole)).weights_sha256 == expected
    # ... and on nothing less than every bit, name, shape and type.
    seen = {expected}
    for change in (
        lambda t: t[LAYER].view(torch.int32)[0, 0].bitwise_xor_(1),
        lambda t: t.update({"other": t.pop(LAYER)}),
        lambda t: t.update({LAYER: t[LAYER].reshape(80, 48)}),
        lambda t: t.update({LAYER: t[LAYER].view(torch.int32)}),
    ):
        changed = {k: v.clone() for k, v in tensors.items()}
        change(changed)
        save_file(changed, other_metadata / "model.safetensors", {"format": "pt"})
        seen.add(hash_of(other_metadata))
    assert len(seen) == 5


def test_the_hash_does_not_mix_up_neighbours(tmp_path: Path) -> None:
    seen = set()
    for i, cut in enumerate((2, 3)):
        folder = tmp_path / str(i)
        folder.mkdir()
        data = torch.arange(8, dtype=torch.float32)
        save_file({"a": data[:cut].clone(), "b": data[cut:].clone()}, folder / "model.safetensors")
        seen.add(hash_of(folder))
    assert len(seen) == 2


def test_stored_dtype_is_that_of_most_bytes(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(
        {
            "a": torch.zeros(9, dtype=torch.bfloat16),
            "b": torch.zeros(2),
            "c": torch.zeros(99, dtype=torch.int64),
        },
        file,
    )
    assert weights.stored_dtype(weights.read_headers([file])) == torch.bfloat16
    save_file({"c": torch.zeros(99, dtype=torch.int64)}, file)
    assert weights.stored_dtype(weights.read_headers([file])) is None


def test_files_are_not_left_open_or_changed(folder: Path) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    load_model(str(folder))
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before
    assert os.access(folder, os.W_OK)


# ---- files made to break a reader ---------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 200_000,
        b'{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1e300], "data_offsets": [0, 4]}}',
    ],
)
def test_a_header_that_is_none(folder: Path, header: bytes, capfd: Any) -> None:
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    assert "model.safetensors is truncated or corrupt" in refused(folder, capfd)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/../../b", ".."])
def test_an_index_names_files_of_its_folder_alone(folder: Path, name: str, capfd: Any) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert f"names {name!r}, which is no file of its folder" in refused(folder, capfd)


def test_a_device_or_a_deep_config_is_not_read(folder: Path, capfd: Any) -> None:
    (folder / "config.json").write_text('{"a": ' * 100_000 + "1" + "}" * 100_000)
    assert "config.json cannot be read" in refused(folder, capfd)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/dev/zero")
    assert "no config.json" in refused(folder, capfd)
