from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from signarium.catalog.errors import ModelError
from signarium.ingest.model.load import load_model

PROJECTION = "model.layers.0.self_attn.q_proj"


def rewritten(tmp_path: Path, change: Any, **config: Any) -> str:
    """A tiny Llama whose stored tensors `change` has changed, and whose config has other values."""
    path = tiny.folder(tmp_path, "llama")
    tensors = change(load_file(path / "model.safetensors"))
    save_file(
        {name: one.clone() for name, one in tensors.items()}, path / "model.safetensors", {"format": "pt"}
    )
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return str(path)


def states(source: str) -> Tensor:
    model = load_model(source, device="cpu")
    ids = torch.arange(6)[None]
    return torch.cat([one.flatten() for one in tiny.capture(model, ids, model.default_sites()).values()])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            {f"{PROJECTION}.lora_A.weight": (2, 48), f"{PROJECTION}.lora_B.weight": (48, 2)},
            "merge the adapter",
        ),
        ({f"{PROJECTION}.weight_scale_inv": (1, 1)}, "before they were quantised"),
        ({f"{PROJECTION}.bias": (48,)}, "use the config"),
        ({"adapter.weight": (3, 3)}, "use the config"),
    ],
)
def test_a_tensor_without_a_place_is_named(
    tmp_path: Path, more: dict[str, tuple[int, ...]], says: str
) -> None:
    source = rewritten(tmp_path, lambda old: old | {name: torch.ones(shape) for name, shape in more.items()})
    with pytest.raises(
        ModelError, match=f"hold {next(iter(more))}.*, for which llama has no place: .*{says}"
    ):
        load_model(source, device="cpu")


def test_layers_that_the_config_leaves_out_are_named(tmp_path: Path) -> None:
    source = rewritten(tmp_path, dict, num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"hold model\.layers\.3\.input_layernorm\.weight"):
        load_model(source, device="cpu")


def test_tables_and_towers_are_harmless(tmp_path: Path) -> None:
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6),
        "vision_tower.patch.weight": torch.ones(2, 2),
    }
    source = rewritten(tmp_path, lambda old: old | extra)
    assert torch.equal(states(source), states(str(tiny.built("llama"))))


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"language_model.{name}",
        lambda name: name.replace("model.", "model.language_model.", 1),
    ],
)
def test_prefixes_of_wrapped_models(tmp_path: Path, rename: Any) -> None:
    source = rewritten(tmp_path, lambda old: {rename(name): one for name, one in old.items()})
    assert torch.equal(states(source), states(str(tiny.built("llama"))))
    plain = load_file(tiny.built("llama") / "model.safetensors")["lm_head.weight"]
    assert torch.equal(load_model(source, device="cpu").unembedding(), plain)


def test_names_that_are_not_recognised_are_said(tmp_path: Path) -> None:
    source = rewritten(tmp_path, lambda old: {f"teacher.{name}": one for name, one in old.items()})
    with pytest.raises(
        ModelError, match=r"lack embed_tokens\.weight.* and .* more; they hold teacher\.lm_head"
    ):
        load_model(source, device="cpu")


def test_a_tied_embedding_under_the_name_of_the_head(tmp_path: Path) -> None:
    def only_the_head(old: dict[str, Tensor]) -> dict[str, Tensor]:
        embedding = old.pop("model.embed_tokens.weight")
        return old | {"lm_head.weight": embedding}

    source = rewritten(tmp_path, only_the_head, tie_word_embeddings=True)
    assert torch.equal(states(source), states(str(tiny.built("llama"))))
    model = load_model(source, device="cpu")
    assert model.unembedding().data_ptr() == model.embedding().data_ptr()


def test_flash_attention_of_a_config_is_left_to_who_has_it(tmp_path: Path) -> None:
    source = rewritten(tmp_path, dict, _attn_implementation="flash_attention_2")
    assert load_model(source, device="cpu").attention == "sdpa"
    assert load_model(source, device="cpu", attention="eager").attention == "eager"
    with pytest.raises(ModelError, match="FlashAttention2"):
        load_model(source, device="cpu", attention="flash_attention_2")
    with pytest.raises(ModelError, match="no attention 'fast': there is auto, eager"):
        load_model(source, device="cpu", attention="fast")


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors"])
def test_quantised_weights_that_cannot_be_read_here_are_refused_by_name(tmp_path: Path, method: str) -> None:
    how = {"quant_method": method, "bits": 4, "load_in_4bit": True}
    source = rewritten(tmp_path, dict, quantization_config=how)
    with pytest.raises(
        ModelError, match=f"is quantised with {method}, which cannot be loaded here .*before they"
    ):
        load_model(source, device="cpu")


def test_eight_bit_floats_with_their_scales(tmp_path: Path) -> None:
    blocks = {"quant_method": "fp8", "weight_block_size": [8, 8], "activation_scheme": "dynamic"}

    def packed(old: dict[str, Tensor]) -> dict[str, Tensor]:
        new = dict(old)
        for name in [one for one in old if "proj" in one]:
            rows, columns = old[name].shape
            scale = torch.full((rows // 8, columns // 8), old[name].abs().max() / 448)
            scales = scale.repeat_interleave(8, 0).repeat_interleave(8, 1)
            new[name] = (old[name] / scales).to(torch.float8_e4m3fn)
            new[f"{name}_scale_inv"] = scale
        return new

    source = rewritten(tmp_path, packed, quantization_config=blocks)
    difference = states(source).float().sign() != states(str(tiny.built("llama"))).sign()
    assert difference.float().mean() < 0.1


# ---- adapters -----------------------------------------------------------------------------------


def adapter(tmp_path: Path, base: Path | str, tensors: dict[str, Tensor], **config: Any) -> Path:
    """A folder as PEFT saves it."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    usual = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(base),
        "r": 2,
        "lora_alpha": 6,
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(usual | config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def factors(path: str = PROJECTION) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(2, 48, generator=generator), torch.randn(48, 2, generator=generator)
    return {f"base_model.model.{path}.lora_A.weight": a, f"base_model.model.{path}.lora_B.weight": b}


def test_an_adapter_is_merged_into_its_base(tmp_path: Path) -> None:
    a, b = factors().values()
    merged = rewritten(
        tmp_path, lambda old: old | {f"{PROJECTION}.weight": old[f"{PROJECTION}.weight"] + 3 * b @ a}
    )
    folder = adapter(tmp_path, tiny.built("llama"), factors())
    model = load_model(str(folder), device="cpu")
    torch.testing.assert_close(states(str(folder)), states(merged))
    assert model.name == "adapter"
    assert model.weights_sha256 != load_model(str(tiny.built("llama")), device="cpu").weights_sha256


@pytest.mark.parametrize(
    ("tensors", "config", "says"),
    [
        (
            factors(),
            {"base_model_name_or_path": "someone/gone"},
            "its base model 'someone/gone' is not at hand",
        ),
        (factors(), {"use_dora": True}, "not one that is merged here .use_dora"),
        (factors("model.layers.9.self_attn.q_proj") | factors(), {}, "1 of its 2 maps are not in the model"),
        (factors("model.layers.0.mlp.down_proj"), {}, r"make \[48, 48\], not \[48, 80\]"),
        ({"base_model.model.lm_head.weight": torch.ones(2)}, {}, "is no factor of a linear map"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused(
    tmp_path: Path, tensors: dict[str, Tensor], config: dict[str, Any], says: str
) -> None:
    folder = adapter(tmp_path, tiny.built("llama"), tensors, **config)
    with pytest.raises(ModelError, match=says):
        load_model(str(folder), device="cpu")
