"""Dictionaries in safetensors files: what is read, in which orientation, what is refused and how."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from signarium.catalog import files
from signarium.catalog.errors import InvalidInput
from signarium.ingest.saes.dictionary import Dictionary, load, save

WIDTH, FEATURES = 6, 10


def made(width: int = WIDTH, features: int = FEATURES, **other: Any) -> Dictionary:
    drawn = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=drawn)

    values: dict[str, Any] = {"seed": 7, "params": {"l1": 0.1}} | other
    return Dictionary(
        normal(width, features), normal(features), normal(features, width), normal(width), **values
    )


def tensors(one: Dictionary) -> dict[str, torch.Tensor]:
    return {"W_enc": one.w_enc, "b_enc": one.b_enc, "W_dec": one.w_dec, "b_dec": one.b_dec}


def stored(path: Path, change: dict[str, Any], metadata: dict[str, str] | None = None) -> Path:
    found = tensors(made()) | change
    save_file({k: v.contiguous() for k, v in found.items() if v is not None}, path, metadata)
    return path


def refused(path: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        load(path)
    line = str(caught.value)
    assert "\n" not in line and path.name in line
    return line


def same(a: Dictionary, b: Dictionary) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tensors(a).values(), tensors(b).values(), strict=True))


# ---- there and back -------------------------------------------------------------------------------


def test_there_and_back(tmp_path: Path) -> None:
    one = made(params={"l1": 0.1, "said": ["é", None]})
    save(tmp_path / "a.safetensors", one)
    again = load(tmp_path / "a.safetensors")
    assert same(one, again) and again.seed == 7
    assert again.params == one.params | {"apply_b_dec_to_input": True}
    save(tmp_path / "a.safetensors", again)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    # The library's own order of metadata differs from call to call.
    found = set()
    for i in range(12):
        save(tmp_path / f"{i}.safetensors", made())
        found.add((tmp_path / f"{i}.safetensors").read_bytes())
    assert len(found) == 1
    # `load` adds what the file did not say; from then on there and back changes nothing.
    for _ in range(2):
        save(tmp_path / "a.safetensors", load(tmp_path / "0.safetensors"))
        assert (tmp_path / "a.safetensors").read_bytes() in found


def test_arithmetic_by_hand() -> None:
    x = torch.randn(4, WIDTH)
    one = made()
    f = ((x - one.b_dec) @ one.w_enc + one.b_enc).clamp(min=0)
    assert torch.allclose(one.encode(x), f)
    assert torch.allclose(one.decode(f), f @ one.w_dec + one.b_dec)
    plain = made(params={"apply_b_dec_to_input": False})
    assert torch.allclose(plain.encode(x.double()), (x @ one.w_enc + one.b_enc).clamp(min=0))
    jump = made(threshold=torch.full((FEATURES,), 0.5))
    assert torch.allclose(jump.encode(x), f * (f > 0.5))
    with pytest.raises(InvalidInput, match="width 6"):
        one.encode(torch.zeros(3, 5))
    with pytest.raises(InvalidInput, match="w_dec"):
        Dictionary(one.w_enc, one.b_enc, one.w_dec.T, one.b_dec, None, {})


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.safetensors"
    save(file, made())
    before = file.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(InvalidInput, match="cannot be written"):
        save(file, made(seed=8))
    assert file.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


# ---- what is accepted -----------------------------------------------------------------------------


@pytest.mark.parametrize("turned", [("W_enc",), ("W_dec",), ("W_enc", "W_dec")])
def test_either_orientation(tmp_path: Path, turned: tuple[str, ...]) -> None:
    one = made()
    file = stored(tmp_path / "a.safetensors", {name: tensors(one)[name].T for name in turned})
    assert same(load(file), one)


def test_square_ones_are_as_saelens_has_them(tmp_path: Path) -> None:
    one = made(8, 8)
    save_file(tensors(one), tmp_path / "a.safetensors")
    assert same(load(tmp_path / "a.safetensors"), one)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types(tmp_path: Path, kind: torch.dtype) -> None:
    file = stored(tmp_path / "a.safetensors", {k: v.to(kind) for k, v in tensors(made()).items()})
    found = load(file)
    assert found.w_enc.dtype == torch.float32
    assert torch.equal(found.w_enc, made().w_enc.to(kind).float())
    assert found.seed is None and found.params == {"apply_b_dec_to_input": True}


def test_a_threshold(tmp_path: Path) -> None:
    file = stored(tmp_path / "a.safetensors", {"threshold": torch.ones(FEATURES)})
    found = load(file)
    assert found.threshold is not None and found.threshold.tolist() == [1.0] * FEATURES
    save(tmp_path / "b.safetensors", found)
    assert torch.equal(load(tmp_path / "b.safetensors").threshold, found.threshold)  # type: ignore[arg-type]
    assert refused(stored(tmp_path / "c.safetensors", {"threshold": torch.ones(3)})).startswith("threshold")


def test_a_header_that_begins_like_a_pickle(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    for padding in range(700):
        save(file, made(params={"p": "x" * padding}))
        if file.read_bytes()[:2] == b"\x80\x02":
            break
    else:
        raise AssertionError("no header of 640 bytes")
    assert same(load(file), made())


def test_saelens_configuration(tmp_path: Path) -> None:
    file = stored(tmp_path / "sae_weights.safetensors", {})
    cfg = {"d_in": WIDTH, "d_sae": FEATURES, "architecture": "standard", "normalize_activations": "none"}

    def write(**other: Any) -> None:
        (tmp_path / "cfg.json").write_text(json.dumps(cfg | other))

    write(apply_b_dec_to_input=False, device="cuda")
    found = load(file)
    assert not found.subtracts_b_dec and found.params["architecture"] == "standard"
    assert "device" not in found.params
    for other in ({"architecture": "topk"}, {"normalize_activations": "layer_norm"}, {"d_sae": 9}):
        write(**other)
        with pytest.raises(InvalidInput, match=r"cfg\.json"):
            load(file)
    # What the file itself says comes first.
    stored(file, {}, {"apply_b_dec_to_input": "True"})
    assert load(file).subtracts_b_dec
    stored(file, {})
    (tmp_path / "cfg.json").write_text('{"model_type": "gpt2"}')
    assert load(file).subtracts_b_dec
    (tmp_path / "cfg.json").write_text("{")
    with pytest.raises(InvalidInput, match=r"cfg\.json"):
        load(file)


# ---- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
def test_missing_misshapen_and_infinite_tensors_are_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / "a.safetensors"
    assert f"lacks {name}" in refused(stored(file, {name: None}))
    assert name in refused(stored(file, {name: torch.zeros(3, 4, 5)}))
    assert name in refused(stored(file, {name: tensors(made())[name].to(torch.int32)}))
    bad = tensors(made())[name].clone()
    bad.view(-1)[-1] = torch.nan
    assert "NaN" in refused(stored(file, {name: bad})) and name in refused(file)


def test_what_a_conversion_makes_infinite(tmp_path: Path) -> None:
    bad = torch.full((WIDTH,), 1e300, dtype=torch.float64)
    assert "infinity" in refused(stored(tmp_path / "a.safetensors", {"b_dec": bad}))


def test_other_tensors_and_empty_ones(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    assert "r_mag" in refused(stored(file, {"r_mag": torch.zeros(FEATURES)}))
    assert "b_enc" in refused(stored(file, {"b_enc": torch.zeros(0), "W_enc": torch.zeros(WIDTH, 0)}))
    save_file({}, file)
    assert "no tensor" in refused(file)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"abc", "whole"),
        ((10**18).to_bytes(8, "little") + b"{}", "whole"),
        ((200_000).to_bytes(8, "little") + b"[" * 200_000, "whole"),
        (pickle.dumps({"W_enc": 1}), "pickle"),
        (b"PK\x03\x04" + b"0" * 100, "pickle"),
        (b"GGUF" + b"0" * 100, "whole"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, word: str) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(content)
    assert word in refused(file)


def test_every_truncation(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", made())
    whole = (tmp_path / "a.safetensors").read_bytes()
    for n in range(0, len(whole), 13):
        (tmp_path / "b.safetensors").write_bytes(whole[:n])
        refused(tmp_path / "b.safetensors")


def test_places_without_a_file(tmp_path: Path) -> None:
    assert "folder" in refused(tmp_path)
    assert "not there" in refused(tmp_path / "nowhere.safetensors")
    torch.save({"W_enc": torch.zeros(2)}, tmp_path / "sae.pt")
    assert "pickle" in refused(tmp_path / "sae.pt")
    with pytest.raises(InvalidInput, match="no ordinary file"):
        load(Path("/dev/null"))


@pytest.mark.parametrize(
    "metadata",
    [
        {"seed": "x"},
        {"seed": "-1"},
        {"seed": "1.5"},
        {"seed": "true"},
        {"seed": str(1 << 63)},
        {"params": "[1]"},
        {"params": '{"a": NaN}'},
        {"params": '{"a": "\\ud800"}'},
        {"params": "[" * 100_000},
        {"params": '{"apply_b_dec_to_input": 1}'},
        {"apply_b_dec_to_input": "perhaps"},
    ],
)
def test_metadata_that_say_nothing(tmp_path: Path, metadata: dict[str, str]) -> None:
    refused(stored(tmp_path / "a.safetensors", {}, metadata))


def test_metadata_of_others_are_kept(tmp_path: Path) -> None:
    file = stored(tmp_path / "a.safetensors", {}, {"format": "pt", "made_by": "someone", "seed": "null"})
    found = load(file)
    assert found.seed is None and found.params == {"made_by": "someone", "apply_b_dec_to_input": True}
