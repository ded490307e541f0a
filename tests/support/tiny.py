"""Tiny random models with a real tokenizer, saved as safetensors folders.

`tiny.folder(tmp_path, "llama", seed=0)` is a folder that `load_model` takes and a test may change;
`tiny.built` and `tiny.loaded` are shared by all tests. Widths, head counts and windows are small but not
alike, so that a mix-up of two of them shows.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from effort import in_full
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast
from transformers.utils import logging

from signarium.ingest.model.load import LoadedModel, load_model
from signarium.ingest.model.sites import Site

MODELS = Path(__file__).parents[2] / "models"

VOCAB_SIZE = 304
"""Rows of the embedding; the tokenizer has a few tokens less."""
N_TOKENS = 300
N_LAYERS = 4
WINDOW = 5
TEXT = "The king saw 12 ships, and the queen saw the sea – naïve, 日本 and all.\n"

_GQA: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_NEOX: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
_OPT: dict[str, Any] = {
    "hidden_size": 48,
    "ffn_dim": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "word_embed_proj_dim": 48,
}
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _GQA),
    "mistral": ("mistral", _GQA | {"sliding_window": WINDOW, "head_dim": 12}),
    "qwen2": ("qwen2", _GQA),
    "qwen3": ("qwen3", _GQA | {"head_dim": 16}),
    "gemma2": ("gemma2", _GQA | {"sliding_window": WINDOW, "head_dim": 16, "query_pre_attn_scalar": 16}),
    "gemma3": (
        "gemma3_text",
        _GQA
        | {
            "sliding_window": WINDOW,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window_pattern": 2,
        },
    ),
    "phi3": ("phi3", _GQA | {"pad_token_id": 2}),
    # 44 is no multiple of 8, so its codes are padded.
    "gpt2": ("gpt2", {"n_embd": 44, "n_layer": 3, "n_head": 4, "n_positions": 128}),
    "gpt_neox": ("gpt_neox", _NEOX | {"use_parallel_residual": True}),
    "gpt_neox_sequential": ("gpt_neox", _NEOX | {"use_parallel_residual": False}),
    "opt": ("opt", _OPT),
    "opt_projected": ("opt", _OPT | {"word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    "bert": (
        "bert",
        {
            "hidden_size": 48,
            "intermediate_size": 72,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
        },
    ),
}
ARCHITECTURES = tuple(_CONFIGS)
FAMILIES = tuple(
    one if one in ("llama", "gpt2", "gpt_neox", "bert") else in_full(one) for one in ARCHITECTURES
)
"""For tests that ingest: four that differ in how a block reads and adds, the others in full only."""


def config(architecture: str, **changes: Any) -> Any:
    """A transformers config; `changes` replace single values."""
    model_type, values = _CONFIGS[architecture]
    ids = {"vocab_size": VOCAB_SIZE, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    return AutoConfig.for_model(model_type, **(ids | values | changes))


def tokenizer(architecture: str = "llama") -> PreTrainedTokenizerFast:
    """A byte-level BPE with 300 tokens: any UTF-8 text has tokens, with offsets.

    BERT's puts [CLS] before and [SEP] after a text, the others put nothing.
    """
    bert = architecture == "bert"
    special = ["[CLS]", "[SEP]", "[PAD]", "[UNK]"] if bert else ["<bos>", "<eos>", "<pad>", "<unk>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=N_TOKENS,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(
        [" the king and the queen saw the ships and the sea in old stormy water and cold winter"] * 8, trainer
    )
    if bert:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
        )
        names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    else:
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
        names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def model(architecture: str, seed: int = 0, **changes: Any) -> Any:
    """A model with a language-modelling head, its weights drawn from `seed`.

    Weights are large and norm gains and biases differ from 1 and 0, so that no part of a block is close to
    doing nothing.
    """
    kind = AutoModelForMaskedLM if architecture == "bert" else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = kind.from_config(config(architecture, **changes), dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in built.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(0.2 * noise)
            else:
                parameter.add_(0.1 * noise)
    return built.eval()


def folder(
    tmp_path: Path,
    architecture: str = "llama",
    seed: int = 0,
    *,
    name: str | None = None,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "50GB",
    **changes: Any,
) -> Path:
    """Saves model and tokenizer as `tmp_path/name` (`architecture-seed`) and returns that folder."""
    path = tmp_path / (name or f"{architecture}-{seed}")
    if dtype == torch.float32 and max_shard_size == "50GB" and not changes:
        return shutil.copytree(built(architecture, seed), path, dirs_exist_ok=True)
    return _saved(path, architecture, seed, dtype, max_shard_size, **changes)


def _saved(
    path: Path, architecture: str, seed: int, dtype: torch.dtype, max_shard_size: str, **changes: Any
) -> Path:
    made = model(architecture, seed, **changes).to(dtype)
    logging.disable_progress_bar()
    made.save_pretrained(path, max_shard_size=max_shard_size)
    logging.enable_progress_bar()
    tokenizer(architecture).save_pretrained(path)
    return path


_shared = tempfile.TemporaryDirectory(prefix="signarium-tests-")


@cache
def built(architecture: str = "llama", seed: int = 0) -> Path:
    """A folder as `folder` makes it, one for the whole session: to be read, not written."""
    return _saved(Path(_shared.name, f"{architecture}-{seed}"), architecture, seed, torch.float32, "50GB")


@cache
def loaded(architecture: str = "llama", seed: int = 0) -> LoadedModel:
    """`built`, loaded once for the whole session, on the CPU."""
    return load_model(str(built(architecture, seed)), device="cpu")


def need(path: Path) -> Path:
    """`path`, or a failure that says where the file comes from."""
    if not path.exists():
        pytest.fail(f"{path} is missing: run `make setup`")
    return path


@cache
def smollm2() -> LoadedModel:
    """SmolLM2-135M on the CPU, loaded once for the whole session (5 seconds). Mark its tests `real`."""
    return load_model(str(need(MODELS / "SmolLM2-135M-Instruct.Q4_1.gguf")), device="cpu")


def capture(
    model: LoadedModel, ids: Tensor, sites: Sequence[Site], lengths: Sequence[int] | None = None
) -> dict[Site, Tensor]:
    """What one pass shows of `sites`, each once."""
    seen: dict[Site, Tensor] = {}

    def sink(site: Site, x: Tensor) -> None:
        assert site not in seen
        seen[site] = x.clone()

    model.forward(torch.LongTensor(ids), lengths, sites, sink)
    return seen


def gguf(
    path: Path, seed: int = 0, *, pre: str = "gpt-2", architecture: str = "llama", vocabulary: bool = True,
    more: dict[str, Tensor] | None = None, split: int = 0,
) -> Path:  # fmt: skip
    """Writes the tiny Llama, `model("llama", seed)`, and its tokenizer as a GGUF file in float32.

    `pre` is the name of its pre-tokenizer; `architecture` what the file says it is; without `vocabulary` it has no
    tokenizer; `more` are further tensors; `split` is how many tensors each of several files holds.
    """
    from gguf import GGUFWriter, TokenType

    path.parent.mkdir(parents=True, exist_ok=True)
    made = config("llama")
    writer = GGUFWriter(path, architecture, split_max_tensors=split)
    writer.add_context_length(made.max_position_embeddings)
    writer.add_embedding_length(made.hidden_size)
    writer.add_block_count(made.num_hidden_layers)
    writer.add_feed_forward_length(made.intermediate_size)
    writer.add_head_count(made.num_attention_heads)
    writer.add_head_count_kv(made.num_key_value_heads)
    writer.add_layer_norm_rms_eps(made.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCAB_SIZE)
    definition = json.loads(tokenizer().backend_tokenizer.to_str())["model"]
    tokens = sorted(definition["vocab"], key=definition["vocab"].get)
    tokens += [f"<unused{i}>" for i in range(VOCAB_SIZE - len(tokens))]
    special = {"<bos>", "<eos>", "<pad>", "<unk>"}
    if vocabulary:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([TokenType.CONTROL if t in special else TokenType.NORMAL for t in tokens])
        writer.add_token_merges([" ".join(pair) for pair in definition["merges"]])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        writer.add_pad_token_id(2)
        writer.add_unk_token_id(3)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    for key, tensor in model("llama", seed).state_dict().items():
        where = key.removesuffix(".weight")
        if where.startswith("model.layers."):
            _, _, layer, where = where.split(".", 3)
            if where in ("self_attn.q_proj", "self_attn.k_proj"):
                # GGUF turns pairs of neighbours where transformers turns the two halves of a head.
                n_heads = made.num_attention_heads if "q_proj" in where else made.num_key_value_heads
                tensor = tensor.view(n_heads, 2, -1, made.hidden_size).transpose(1, 2)
                tensor = tensor.reshape(-1, made.hidden_size)
            writer.add_tensor(f"blk.{layer}.{names[where]}.weight", tensor.contiguous().numpy())
        else:
            writer.add_tensor(f"{names[where]}.weight", tensor.numpy())
    for name, tensor in (more or {}).items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
