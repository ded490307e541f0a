"""The language-modelling head of a model whose backbone was loaded."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)

from ...catalog.errors import ModelError
from ...catalog.ids import int_id
from . import gguf
from . import weights as _weights
from .loaded import token_embedding
from .quiet import quiet
from .source import Source
from .stored import renaming
from .weights import check_finite


def read_head(found: Source, module: Any, random_init: int | None, part: str) -> Tensor | None:
    """`part` of the language-modelling head of the model that `module` is the backbone of; see `loaded.Head`.

    As transformers does, a head that is stored beside the embedding counts even where the config ties them,
    and one that must be there and is not is refused, since transformers would draw it at random.
    """
    causal, head = _causal_model(module.config)
    path = next(name for name, child in causal.named_modules() if child is head)
    if getattr(head, part, None) is None:
        return None
    tied = part == "weight" and head.weight is token_embedding(causal).weight
    if random_init is not None:
        tensor = None if tied else _random_head(causal, head, part, random_init)
    elif found.gguf is not None:
        # llama.cpp, too, takes a file without this tensor for one with a tied head.
        tied = part == "weight"
        tensor = gguf.read_tensor(found.gguf, f"output.{part}")
    else:
        tensor = _weights.read_tensor(found.folder, f"{path}.{part}", renaming(causal))
    where = found.where
    if tensor is None:
        if tied:
            return None
        what = f"the weights in {where} lack {path}.{part}, which predicts the next token"
        raise ModelError(what, "use weights that were saved with their head")
    embedding = token_embedding(module).weight
    try:
        tensor = tensor.to(device=embedding.device, dtype=embedding.dtype)
    except torch.OutOfMemoryError as error:
        what = f"{path}.{part} of {found.name} does not fit into the memory of {embedding.device}"
        raise ModelError(what, "pass --dtype bfloat16 or --device cpu") from error
    check_finite(f"{path}.{part}", tensor, found.where)
    return None if tied and torch.equal(tensor, embedding) else tensor


def _causal_model(config: Any) -> tuple[Any, Any]:
    """The model with a head that `config` describes, without memory for its weights, and that head.

    Raises:
        ModelError: if there is none, or if more than one linear map stands between backbone and logits.
    """
    kind, use = config.model_type, "use a causal language model"
    # A checkpoint of text and images has its head in the class for both.
    made: Any = AutoModelForCausalLM
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        made = AutoModelForImageTextToText
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            raise ModelError(f"transformers has no language-modelling head for {kind}", use)
    config = copy.deepcopy(config)
    config.__dict__.pop("quantization_config", None)
    with quiet(), torch.device("meta"):
        try:
            causal = made.from_config(config, dtype=torch.float32, trust_remote_code=False)
        except Exception as error:
            # Each architecture rejects a config in its own way.
            what = f"the config makes no {kind} with a language-modelling head ({_weights.brief(error)})"
            raise ModelError(what, use) from error
    head, backbone = causal.get_output_embeddings(), causal.base_model
    if not isinstance(head, nn.Linear) or backbone is causal:
        raise ModelError(f"{kind} has no single language-modelling head", use)
    known = {id(p) for part in (backbone, head) for p in part.parameters()}
    between = [name for name, p in causal.named_parameters() if id(p) not in known]
    if between:
        what = f"the head of {kind} is no single linear map of the final states ({between[0]} is part of it)"
        raise ModelError(what, use)
    return causal, head


def _random_head(causal: Any, head: Any, part: str, seed: int) -> Tensor:
    drawn = copy.deepcopy(head).to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        # The seed as it is would repeat the draws of the token embedding, which makes the head a tied one.
        torch.manual_seed(int_id("unembedding", seed))
        drawn.reset_parameters()
        causal._init_weights(drawn)
    tensor: Tensor = getattr(drawn, part)
    return tensor.detach()
