from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from signarium.catalog.errors import ModelError
from signarium.ingest.model import gguf, weights
from signarium.ingest.model.load import load_model
from signarium.ingest.model.loaded import LoadedModel, token_embedding
from signarium.ingest.model.sites import Site

IDS = torch.LongTensor([[5, 6, 77, 120, 33, 9]])
ENCODERS = ("bert",)
# What the final states go through before the head is not the residual stream's own width.
PROJECTED = ("opt_projected",)
HEADED = tuple(a for a in tiny.ARCHITECTURES if a not in (*ENCODERS, *PROJECTED))
TIED = ("gemma2", "gemma3", "gpt2", "opt")
_SIZES = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128,
}  # fmt: skip
_GPTJ = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 4}


def saved(path: Path, model_type: str, **values: Any) -> Path:
    """A model of an architecture that `tiny` has not, with weights and biases that are not close to zero."""
    ids = {"vocab_size": tiny.VOCAB_SIZE, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(ids | values)))
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape))
    transformers.utils.logging.disable_progress_bar()
    made.float().save_pretrained(path)
    transformers.utils.logging.enable_progress_bar()
    tiny.tokenizer().save_pretrained(path)
    return path


def transformers_logits(path: Path) -> Tensor:
    causal = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: Tensor = causal(IDS).logits[0]
    return logits


def own_logits(model: LoadedModel) -> Tensor:
    site = Site("final_norm")
    logits = tiny.capture(model, IDS, [site])[site][0] @ model.unembedding().T
    bias = model.unembedding_bias()
    return logits if bias is None else logits + bias


def is_tied(model: LoadedModel) -> bool:
    return model.unembedding().data_ptr() == token_embedding(model.module).weight.data_ptr()


def rewritten(folder: Path, **tensors: Tensor | None) -> Path:
    """The folder with tensors replaced, added or (None) left out; "__" stands for a dot."""
    file = folder / "model.safetensors"
    stored: dict[str, Tensor | None] = load_file(file) | {k.replace("__", "."): v for k, v in tensors.items()}
    save_file({k: v.clone() for k, v in stored.items() if v is not None}, file, {"format": "pt"})
    return folder


def refused(model: LoadedModel) -> str:
    with pytest.raises(ModelError) as error:
        model.unembedding()
    line = str(error.value)
    assert "\n" not in line
    with pytest.raises(ModelError):
        model.unembedding_bias()
    return line


@pytest.mark.parametrize("architecture", HEADED)
def test_the_final_norm_times_the_unembedding_is_transformers_logits(architecture: str) -> None:
    model = tiny.loaded(architecture)
    rows = model.unembedding()
    assert rows.shape == (model.vocab_size, model.width)
    assert (rows.dtype, rows.device, rows.requires_grad) == (torch.float32, torch.device("cpu"), False)
    assert is_tied(model) == (architecture in TIED)
    assert model.unembedding_bias() is None
    mine, theirs = own_logits(model), transformers_logits(tiny.built(architecture))
    assert torch.equal(mine.argmax(1), theirs.argmax(1))
    if architecture == "gemma2":
        mine = 30 * torch.tanh(mine / 30)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("model_type", "values", "scale", "biased"),
    [
        ("phi", _SIZES, 1, True),
        ("gptj", _GPTJ, 1, True),
        ("granite", _SIZES | {"logits_scaling": 4.0}, 0.25, False),
        ("cohere", _SIZES | {"logit_scale": 0.5}, 0.5, False),
        ("ctrl", {"n_embd": 48, "dff": 80, "n_layer": 2, "n_head": 4, "n_positions": 128}, 1, True),
    ],
)
def test_biases_and_scales(
    tmp_path: Path, model_type: str, values: dict[str, Any], scale: float, biased: bool
) -> None:
    path = saved(tmp_path, model_type, **values)
    model = load_model(str(path), device="cpu")
    assert (model.unembedding_bias() is not None) == biased
    mine, theirs = own_logits(model), transformers_logits(path)
    assert torch.equal(mine.argmax(1), theirs.argmax(1))
    torch.testing.assert_close(scale * mine, theirs, rtol=1e-4, atol=1e-4)


def test_a_tied_head_is_the_embedding_itself(tmp_path: Path) -> None:
    path = tiny.folder(tmp_path, "llama", tie_word_embeddings=True)
    model = load_model(str(path), device="cpu")
    assert is_tied(model)
    torch.testing.assert_close(own_logits(model), transformers_logits(path), rtol=1e-4, atol=1e-4)


def test_a_head_that_is_stored_counts_where_the_config_ties_it(tmp_path: Path) -> None:
    path = tiny.folder(tmp_path, "llama", tie_word_embeddings=True)
    embedding = load_file(path / "model.safetensors")["model.embed_tokens.weight"]
    assert is_tied(load_model(str(rewritten(path, lm_head__weight=embedding)), device="cpu"))
    other = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(5))
    model = load_model(str(rewritten(path, lm_head__weight=other)), device="cpu")
    assert torch.equal(model.unembedding(), other)
    torch.testing.assert_close(own_logits(model), transformers_logits(path), rtol=1e-4, atol=1e-4)


def test_a_head_is_read_when_it_is_asked_for(monkeypatch: Any) -> None:
    asked: list[str] = []
    read = weights.read_tensor

    def counted(folder: Path, name: str, *rest: Any) -> Tensor | None:
        asked.append(name)
        return read(folder, name, *rest)

    monkeypatch.setattr(weights, "read_tensor", counted)
    model = load_model(str(tiny.built("llama")), device="cpu")
    assert asked == []
    first = model.unembedding()
    assert asked == ["lm_head.weight"]
    assert torch.equal(model.unembedding(), first)


def test_heads_in_shards_and_in_other_types(tmp_path: Path) -> None:
    expected = load_file(tiny.built("llama") / "model.safetensors")["lm_head.weight"]
    shards = tiny.folder(tmp_path, "llama", name="shards", max_shard_size="60KB")
    assert not (shards / "model.safetensors").exists()
    assert torch.equal(load_model(str(shards), device="cpu").unembedding(), expected)
    half = tiny.folder(tmp_path, "llama", name="half", dtype=torch.bfloat16)
    assert torch.equal(load_model(str(half), device="cpu").unembedding(), expected.bfloat16())
    wide = load_model(str(half), device="cpu", dtype="float32").unembedding()
    assert wide.dtype == torch.float32
    assert torch.equal(wide, expected.bfloat16().float())


def test_a_gguf_file_has_its_head_in_a_tensor_of_its_own(tmp_path: Path) -> None:
    model = load_model(str(tiny.gguf(tmp_path / "tiny.gguf")), device="cpu")
    expected = load_file(tiny.built("llama") / "model.safetensors")["lm_head.weight"]
    assert torch.equal(model.unembedding(), expected)
    assert model.unembedding_bias() is None


@pytest.mark.real
def test_smollm2_is_tied_as_its_file_says() -> None:
    from gguf import GGUFReader

    model = tiny.smollm2()
    names = {tensor.name for tensor in GGUFReader(model.source).tensors}
    assert "token_embd.weight" in names
    assert "output.weight" not in names
    assert is_tied(model)
    assert model.unembedding().shape == (49152, 576)
    # The reader of heads, on the file's one tensor of such a shape: 8 bits a value there.
    read = gguf.read_tensor(Path(model.source), "token_embd.weight")
    assert read is not None
    assert torch.equal(read, model.unembedding())


# ---- random weights -----------------------------------------------------------------------------


def test_random_weights_have_a_random_head_from_their_seed() -> None:
    one, again, other = (load_model(str(tiny.built("llama")), random_init=seed) for seed in (3, 3, 4))
    rows = one.unembedding()
    assert rows.shape == (one.vocab_size, one.width)
    assert torch.equal(rows, again.unembedding())
    assert not torch.equal(rows, other.unembedding())
    # Llama's initialisation: normal with a standard deviation of 0.02, of 14,592 values.
    assert float(rows.std()) == pytest.approx(0.02, rel=0.05)
    assert abs(float(rows.mean())) < 0.02 * 5 / 14592**0.5
    embedding = token_embedding(one.module).weight
    both = torch.stack([rows.reshape(-1), embedding.reshape(-1)])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 5 / 14592**0.5


def test_random_weights_are_tied_where_the_config_ties_them(tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    assert is_tied(load_model(str(tiny.built("gpt2")), random_init=3))
    model = load_model(str(saved(tmp_path, "phi", **_SIZES)), random_init=3)
    bias = model.unembedding_bias()
    assert bias is not None
    assert torch.equal(bias, torch.zeros(tiny.VOCAB_SIZE))
    assert not is_tied(model)
    assert torch.equal(torch.random.get_rng_state(), state)


# ---- refused ------------------------------------------------------------------------------------


def test_an_encoder_has_no_unembedding(tmp_path: Path) -> None:
    assert "predicts no next token (bert)" in refused(tiny.loaded("bert"))
    # A decoder's head may be more than one map.
    path = saved(tmp_path, "bert", **_SIZES, is_decoder=True)
    assert "no single linear map" in refused(load_model(str(path), device="cpu"))


@pytest.mark.real
def test_minilm_has_no_unembedding() -> None:
    model = load_model(str(tiny.need(tiny.MODELS / "all-minilm-l6-v2")), device="cpu")
    assert "predicts no next token" in refused(model)


def test_a_head_behind_a_projection() -> None:
    with pytest.raises(ModelError, match=r"has shape \[304, 32\], not \[304, 48\]"):
        tiny.loaded("opt_projected").unembedding()


def test_weights_without_their_head_are_not_made_up(tmp_path: Path) -> None:
    model = load_model(str(rewritten(tiny.folder(tmp_path), lm_head__weight=None)), device="cpu")
    with pytest.raises(ModelError, match=r"lack lm_head\.weight, which predicts the next token") as error:
        model.unembedding()
    assert "\n" not in str(error.value)
    assert model.unembedding_bias() is None


def test_a_head_with_broken_values_or_none_at_all(tmp_path: Path) -> None:
    head = load_file(tiny.built("llama") / "model.safetensors")["lm_head.weight"].clone()
    head[7, 3] = torch.nan
    broken = load_model(str(rewritten(tiny.folder(tmp_path), lm_head__weight=head)), device="cpu")
    with pytest.raises(ModelError, match=r"lm_head\.weight .* holds NaN or infinity"):
        broken.unembedding()
    packed = rewritten(tmp_path / "llama-0", lm_head__weight=torch.zeros(head.shape, dtype=torch.int8))
    with pytest.raises(ModelError, match="stored as I8"):
        load_model(str(packed), device="cpu").unembedding()
    (packed / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        broken.unembedding()
