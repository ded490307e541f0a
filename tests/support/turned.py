"""Twins: models that compute the same as another one in a rotated residual stream.

`rotated_twin(tiny.built("llama"), seed=11)` is a folder that `load_model` takes; `rotation(folder)` is the matrix that
was planted. With rows for states, x_twin = x R at every residual site, and final states times the head are the same
logits. Works for the Llama family (Llama, Mistral, Qwen2, Qwen3): RMSNorm before each part, nothing after it.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from signarium.ingest.model.load import LoadedModel, load_model
from signarium.ingest.stats.bases import haar

FAMILY = ("llama", "mistral", "qwen2", "qwen3")
ROTATION = "rotation.npy"

_shared = tempfile.TemporaryDirectory(prefix="signarium-twins-")


def rotated_twin(source: Path | LoadedModel, seed: int, to: Path | None = None) -> Path:
    """Writes the twin of `source`, a folder or a loaded model (a GGUF file, say), in float32 and returns its folder.

    The folder is `to`, else one that lasts as long as the process. It holds config, safetensors, tokenizer and
    `rotation.npy`: R [width, width], float64, Haar-distributed, drawn from `seed`. Gains of the norms are folded into the
    maps that read behind them, since a gain does not commute with a rotation; a tied head becomes one of its own,
    since the last gain goes into it.
    """
    model = (
        source if isinstance(source, LoadedModel) else load_model(str(source), device="cpu", dtype="float32")
    )
    if model.architecture not in FAMILY:
        raise ValueError(f"{model.architecture} is none of {', '.join(FAMILY)}")
    to = to or Path(tempfile.mkdtemp(dir=_shared.name), f"{model.name}-twin-{seed}")
    # The nearest orthogonal matrix in double precision to one in single.
    u, _, v = torch.linalg.svd(haar(model.width, seed).double())
    r = u @ v
    config = copy.deepcopy(model.module.config)
    config.__dict__.pop("quantization_config", None)
    config.tie_word_embeddings = False
    config.dtype = torch.float32
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    made.load_state_dict(_turned(model, r))
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    made.save_pretrained(to)
    if shown:
        logging.enable_progress_bar()
    model.tokenizer.save_pretrained(to)
    np.save(to / ROTATION, r.numpy())
    return to


def rotation(folder: Path) -> NDArray[np.float64]:
    """The matrix that was planted in a twin, (width, width)."""
    found: NDArray[np.float64] = np.load(folder / ROTATION)
    return found


def _turned(model: LoadedModel, r: Tensor) -> dict[str, Tensor]:
    """The twin's tensors. Maps are [out, in]: one that reads x R takes its rows times R, one that writes R^T times it."""
    state = {name: x.detach().double() for name, x in model.module.state_dict().items()}
    found = {f"model.{name}": x for name, x in state.items()}
    found["model.embed_tokens.weight"] = state["embed_tokens.weight"] @ r
    for layer in range(model.n_layers):
        at = f"layers.{layer}."
        for norm, maps in (
            ("input_layernorm", [f"self_attn.{name}_proj" for name in "qkv"]),
            ("post_attention_layernorm", ["mlp.gate_proj", "mlp.up_proj"]),
        ):
            gain = state[f"{at}{norm}.weight"]
            for name in maps:
                found[f"model.{at}{name}.weight"] = (state[f"{at}{name}.weight"] * gain) @ r
            found[f"model.{at}{norm}.weight"] = torch.ones_like(gain)
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            found[f"model.{at}{name}.weight"] = r.T @ state[f"{at}{name}.weight"]
            if f"{at}{name}.bias" in state:
                found[f"model.{at}{name}.bias"] = state[f"{at}{name}.bias"] @ r
    gain = state["norm.weight"]
    found["model.norm.weight"] = torch.ones_like(gain)
    found["lm_head.weight"] = (model.unembedding().double().cpu() * gain) @ r
    return {name: x.float() for name, x in found.items()}
