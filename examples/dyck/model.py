"""The two-block transformer of the toy task, as a transformers model that folders of it are loaded into.

104,448 parameters: pre-norm, RMSNorm, ReLU, no biases, untied (McCann, arXiv 2605.24577, the toy task).
"""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput
from transformers.utils import ModelOutput

from . import MODEL_TYPE
from .task import BOS, CONTEXT, EOS, MAX_DEPTH, PAD, VOCAB_SIZE, Ids, labels, tokenizer

WEIGHTS = "model.safetensors"
N_FEATURES = 6


class DyckConfig(PreTrainedConfig):
    """Sizes of the model; those of the cited task by default."""

    model_type = MODEL_TYPE

    def __init__(
        self,
        vocab_size: int = VOCAB_SIZE,
        hidden_size: int = 64,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 4,
        intermediate_size: int = 256,
        max_position_embeddings: int = CONTEXT,
        rms_norm_eps: float = 1e-5,
        initializer_range: float = 0.02,
        n_depths: int = MAX_DEPTH + 1,
        pad_token_id: int = PAD,
        bos_token_id: int = BOS,
        eos_token_id: int = EOS,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.n_depths = n_depths
        ends = {"pad_token_id": pad_token_id, "bos_token_id": bos_token_id, "eos_token_id": eos_token_id}
        kwargs |= ends | {"tie_word_embeddings": tie_word_embeddings}
        super().__init__(**kwargs)


def position_features(length: int, width: int, context: int = CONTEXT) -> Tensor:
    """[length, width]: what is added to the token embeddings, the same in every model and never learned.

    Dimensions 0 to 5 hold t/64, 1/(t+1), log(t+1)/log 64, [t=0], cos(2 pi t/64) and sin(2 pi t/64), with the
    context for 64; the rest is zero.
    """
    t = torch.arange(length, dtype=torch.float32)
    turn = 2 * math.pi * t / context
    features = torch.zeros(length, width)
    columns = (t / context, 1 / (t + 1), (t + 1).log() / math.log(context), (t == 0).float())
    features[:, :N_FEATURES] = torch.stack([*columns, turn.cos(), turn.sin()], dim=1)
    return features


class DyckAttention(nn.Module):
    """Causal attention without biases."""

    def __init__(self, config: DyckConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.n_heads = config.num_attention_heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, position, width] to the same."""
        maps = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (m(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for m in maps)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out


class DyckMLP(nn.Module):
    """Two linear maps with a ReLU between."""

    def __init__(self, config: DyckConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, position, width] to the same."""
        out: Tensor = self.down_proj(F.relu(self.up_proj(x)))
        return out


class DyckBlock(nn.Module):
    """Attention, then the MLP, each with its norm before it and added to the residual stream."""

    def __init__(self, config: DyckConfig) -> None:
        super().__init__()
        self.attn_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attn = DyckAttention(config)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = DyckMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, position, width] to the same."""
        x = x + self.attn(self.attn_norm(x))
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class DyckPreTrainedModel(PreTrainedModel):
    """What the models here share. The base class draws weights from N(0, initializer_range^2)."""

    config_class = DyckConfig
    config: DyckConfig
    base_model_prefix = "model"
    _input_embed_layer = "embed"
    _supports_sdpa = True


class DyckModel(DyckPreTrainedModel):
    """The backbone: token ids to final states."""

    def __init__(self, config: DyckConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(DyckBlock(config) for _ in range(config.num_hidden_layers))
        self.final_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> BaseModelOutput:
        """[batch, position] to states of [batch, position, width] after the final norm.

        Attention is causal and padding stands on the right, so `attention_mask` has nothing to do.
        """
        del attention_mask
        x = self.embed(input_ids)
        features = position_features(x.shape[1], x.shape[2], self.config.max_position_embeddings)
        x = x + features.to(x)
        for block in self.blocks:
            x = block(x)
        return BaseModelOutput(last_hidden_state=self.final_norm(x))


class DyckForTokens(DyckPreTrainedModel):
    """The backbone and the token head, which says which token it reads: the current one, not the next.

    It is registered as the language model of the family, so that the rows of the token head are found where
    those of an unembedding are.
    """

    def __init__(self, config: DyckConfig) -> None:
        super().__init__(config)
        self.model = DyckModel(config)
        self.token_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        # Files of the family hold all three heads; here two of them are left out on purpose.
        self._keys_to_ignore_on_load_unexpected = {r"^(depth|valid)_head\."}
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The token head."""
        return self.token_head

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Any:
        """[batch, position] to token logits of [batch, position, vocab_size]."""
        states = self.model(input_ids, attention_mask).last_hidden_state
        return CausalLMOutput(logits=self.token_head(states))


@dataclass
class StructureOutput(ModelOutput):
    """Logits of the three heads at every position, and the states after the final norm that they read.

    `token` is [batch, position, vocab_size], `depth` [batch, position, 9], `valid` [batch, position, 2],
    `last_hidden_state` [batch, position, width].
    """

    token: Tensor | None = None
    depth: Tensor | None = None
    valid: Tensor | None = None
    last_hidden_state: Tensor | None = None


class DyckForStructure(DyckPreTrainedModel):
    """The backbone with all three heads: the current token, the depth, and whether all is valid so far."""

    def __init__(self, config: DyckConfig) -> None:
        super().__init__(config)
        self.model = DyckModel(config)
        self.token_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.depth_head = nn.Linear(config.hidden_size, config.n_depths, bias=False)
        self.valid_head = nn.Linear(config.hidden_size, 2, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The token head."""
        return self.token_head

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> StructureOutput:
        """[batch, position] to the logits of the three heads."""
        states = self.model(input_ids, attention_mask).last_hidden_state
        return StructureOutput(
            token=self.token_head(states),
            depth=self.depth_head(states),
            valid=self.valid_head(states),
            last_hidden_state=states,
        )


# ---- scores --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """Shares of tokens that the heads get right, PAD left out, and the summed loss."""

    token: float
    depth: float
    valid: float
    loss: float

    @property
    def lowest(self) -> float:
        """The accuracy of the worst head."""
        return min(self.token, self.depth, self.valid)


def chunks(ids: Ids, n: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Rows by length in `n` chunks without the columns that hold only PAD: the same sums in less time."""
    held = labels(ids)
    lengths = held.mask.sum(1)
    for rows in np.array_split(np.argsort(lengths, kind="stable"), n):
        width = int(lengths[rows].max())
        arrays = (ids, held.depth, held.valid, held.mask)
        x, depth, valid, mask = (torch.from_numpy(a[rows, :width]) for a in arrays)
        yield x, depth, valid, mask


def head_logits(model: DyckForStructure, x: Tensor, mask: Tensor) -> list[Tensor]:
    """Logits of the three heads at the places of `mask`, each [n, classes]."""
    states = model.model(x).last_hidden_state[mask]
    return [model.token_head(states), model.depth_head(states), model.valid_head(states)]


@torch.no_grad()
def evaluate(model: DyckForStructure, ids: Ids) -> Scores:
    """The scores of `model` on rows of shape (n, L)."""
    right, loss, n = np.zeros(3), 0.0, 0
    for x, depth, valid, mask in chunks(ids, -(-len(ids) // 128)):
        wanted = (x[mask], depth[mask], valid[mask])
        for i, (logits, y) in enumerate(zip(head_logits(model, x, mask), wanted, strict=True)):
            right[i] += int((logits.argmax(-1) == y).sum())
            loss += float(F.cross_entropy(logits, y, reduction="sum"))
        n += int(mask.sum())
    shares = [float(share) for share in right / n]
    return Scores(shares[0], shares[1], shares[2], loss / n)


# ---- folders -------------------------------------------------------------------------------------


def save_folder(model: DyckForStructure, folder: Path, training: dict[str, Any]) -> None:
    """Saves config, weights, tokenizer and `training`, as training.json, to `folder`: all of it or nothing."""
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    config = copy.deepcopy(model.config)
    config.architectures, config.dtype = [type(model).__name__], "float32"
    config.save_pretrained(new)
    # As save_pretrained writes it, without its bar on stderr.
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    (new / WEIGHTS).write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))
    tokenizer().save_pretrained(new)
    text = json.dumps(training, indent=1)
    (new / "training.json").write_text(text + "\n", "utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(new, folder)
