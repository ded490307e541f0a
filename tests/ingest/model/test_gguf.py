from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest
import tiny
import torch

from signarium.catalog.errors import ModelError
from signarium.ingest.model.load import load_model


def test_files_that_cannot_be_loaded_say_why(tmp_path: Path) -> None:
    tiny.gguf(tmp_path / "parts.gguf", split=20)
    second = sorted(tmp_path.glob("parts-00002-of-*.gguf"))[0]
    with pytest.raises(ModelError, match=r"is part 2 of a model in \d files: join them"):
        load_model(str(second), device="cpu")
    other = tiny.gguf(tmp_path / "other.gguf", architecture="glm4moe")
    with pytest.raises(
        ModelError, match=r"cannot read 'glm4moe' from a GGUF file .*other\.gguf.*safetensors"
    ):
        load_model(str(other), device="cpu")
    mute = tiny.gguf(tmp_path / "mute.gguf", vocabulary=False)
    with pytest.raises(ModelError, match=r"mute\.gguf has no tokenizer"):
        load_model(str(mute), device="cpu")


def test_a_tensor_without_a_place_is_named(tmp_path: Path) -> None:
    more = {"blk.0.attn_q.bias": torch.ones(48), "blk.1.ffn_up.scale": torch.ones(1)}
    file = tiny.gguf(tmp_path / "more.gguf", more=more)
    with pytest.raises(ModelError, match=r"hold blk\.0\.attn_q\.bias, blk\.1\.ffn_up\.scale, for which"):
        load_model(str(file), device="cpu")


def test_rotary_frequencies_are_divided_by_their_factors(tmp_path: Path) -> None:
    factors = torch.tensor([1.0, 1.0, 2.0, 4.0, 8.0, 8.0])
    plain = load_model(str(tiny.gguf(tmp_path / "plain.gguf")), device="cpu")
    scaled = load_model(
        str(tiny.gguf(tmp_path / "scaled.gguf", more={"rope_freqs.weight": factors})), device="cpu"
    )
    torch.testing.assert_close(
        scaled.module.rotary_emb.inv_freq * factors, plain.module.rotary_emb.inv_freq, rtol=1e-6, atol=0
    )
    ones = tiny.gguf(tmp_path / "ones.gguf", more={"rope_freqs.weight": torch.ones(6)})
    kept = load_model(str(ones), device="cpu").module.rotary_emb.inv_freq
    assert torch.equal(kept, plain.module.rotary_emb.inv_freq)


@pytest.mark.parametrize(
    "declared",
    [
        struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 4, 1 << 40),
        struct.pack("<QQ", 1 << 40, 0),
        struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1 << 60) + b"a",
    ],
)
def test_a_small_file_that_declares_much(tmp_path: Path, declared: bytes) -> None:
    file = tmp_path / "bomb.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<I", 3) + declared)
    begun = time.monotonic()
    with pytest.raises(ModelError, match=r"bomb\.gguf is truncated or corrupt"):
        load_model(str(file), device="cpu")
    assert time.monotonic() - begun < 2
