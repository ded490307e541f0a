"""The config of a model: read, refused where it asks for the impossible, and as it acts on the forward pass."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from ...catalog.errors import ModelError
from . import gguf, registered
from .quiet import quiet
from .source import Source
from .weights import brief

_MOST_PARTS = 2000
"""Blocks, heads or experts of a block: more than any model has, and few enough to be built in Python."""
_PARTS = re.compile(r"(layers?|blocks|depth|heads?|experts)$")
_INERT = re.compile(
    r"transformers_version|architectures|(torch_)?dtype|_?name_or_path|use_cache|return_dict|output_\w+|tie_\w+|(bos|eos|sep)_token_id"
    r"|id2label|label2id|problem_type|\w*dropout\w*|\w*_pdrop|initializer_\w+|chunk_size_feed_forward|auto_map|torchscript"
    r"|gradient_checkpointing|unsloth\w*|(vision|audio|video|image)_\w+|\w*attn_implementation\w*|is_decoder|add_cross_attention"
    r"|cross_attention_hidden_size|decoder_start_token_id|finetuning_task|task_specific_params|model_type|scale_attn_by_dropout"
)
"""Keys that leave the hidden states of a text alone."""


def check_known(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuses a `config.json` of an architecture that transformers lacks, or one too large to be built.

    Raises:
        ModelError: with what there is instead.
    """
    model_type = config["model_type"]
    check_parts(folder, config)
    registered.tell_transformers(model_type)
    if model_type not in CONFIG_MAPPING:
        if "auto_map" in config:
            what = f"{folder} needs code of its own ({model_type}), which is never run"
            raise ModelError(what, "install its code, and register it with a plugin")
        raise ModelError(
            f"transformers {transformers.__version__} knows no architecture {model_type!r} ({folder})",
            "upgrade transformers, or register it with a plugin",
        )


def check_parts(where: Path, values: Mapping[str, Any]) -> None:
    """Refuses counts that would be built one by one for hours, before anything is built.

    Raises:
        ModelError: naming the key.
    """
    for key, value in _leaves(values):
        if isinstance(value, (int, float)) and value > _MOST_PARTS and _PARTS.search(key):
            raise ModelError(f"{where} asks for {key} = {value:,}", f"no model has more than {_MOST_PARTS:,}")


def _leaves(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        else:
            yield str(key), value


def load_config(found: Source, folder: Path) -> Any:
    """The config of the model in `folder`, with no attention that must be installed.

    Raises:
        ModelError: if it cannot be read.
    """
    options: dict[str, Any] = {} if found.gguf is None else {"gguf_file": found.gguf.name}
    if found.gguf is not None:
        check_parts(found.gguf, gguf.numbers(found.gguf))
    with quiet():
        try:
            return AutoConfig.from_pretrained(folder, trust_remote_code=False, **options)
        except Exception as error:
            if found.gguf is not None and "not supported" in str(error):
                architecture = gguf.texts(found.gguf, "general.architecture")["general.architecture"]
                what = (
                    f"transformers {transformers.__version__} cannot read {architecture!r} from a GGUF file"
                )
                raise ModelError(
                    f"{what} ({found.gguf})", "use the model's folder with safetensors"
                ) from error
            # Whatever transformers makes of a bad file is one line to the user; its classes vary.
            what = f"the config of {found.where} cannot be read ({brief(error)})"
            raise ModelError(what, "fetch the model again") from error


def model_class(config: Any) -> type[Any]:
    """The class of the backbone, refused where it is no text model with one residual stream."""
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{kind} is an encoder-decoder, which has two residual streams", "use a decoder or an encoder"
        )
    try:
        found: Any = MODEL_MAPPING[type(config)]
    except KeyError:
        raise ModelError(f"transformers has no backbone for {kind}", "use a text model") from None
    made: type[Any] = found[0] if isinstance(found, (tuple, list)) else found
    takes = getattr(made, "main_input_name", "input_ids")
    if takes != "input_ids":
        raise ModelError(f"{kind} reads {takes}, not text", "use a text model")
    return made


def choose_attention(config: Any, asked: str) -> None:
    """Makes `config` ask for the attention `asked`; "auto" keeps `eager` and `sdpa`, and leaves any other to transformers.

    A config may ask for kernels that its author had.
    """
    for one in _configs(config):
        wanted = getattr(one, "_attn_implementation", None)
        if asked != "auto":
            one._attn_implementation = asked
        elif wanted not in (None, "eager", "sdpa"):
            one._attn_implementation = None


def _configs(config: Any) -> Iterator[Any]:
    yield config
    for name in getattr(config, "sub_configs", None) or ():
        if (below := getattr(config, name, None)) is not None:
            yield from _configs(below)


def empty_model(config: Any, options: Mapping[str, Any], where: Path) -> nn.Module:
    """The backbone without memory for its weights.

    Raises:
        ModelError: if the config makes none.
    """
    with quiet(), torch.device("meta"):
        try:
            made: nn.Module = AutoModel.from_config(
                config, dtype=torch.float32, trust_remote_code=False, **options
            )
        except Exception as error:
            # Each architecture rejects a bad config in its own way.
            what = f"the config of {where} makes no {config.model_type} ({brief(error)})"
            raise ModelError(what) from error
    return made


def check_size(model: nn.Module, where: Path, stored: int | None) -> None:
    """Refuses a config that describes far more numbers than the weights hold (`stored`; None where they are drawn at random),
    or than this machine could ever hold.

    Raises:
        ModelError: with both sizes.
    """
    n = sum(one.numel() for one in model.parameters())
    if stored is not None and n > 1.5 * stored + 1_000_000:
        what = f"the config of {where} describes {n:,} weights, and its files hold {stored:,}"
        raise ModelError(what, "fetch the model again")
    needed = 2 * n + sum(one.numel() * one.element_size() for one in model.buffers())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > 4 * memory:
        what = (
            f"the model of {where} takes {needed / 1e9:,.0f} GB, and this machine has {memory / 1e9:,.0f} GB"
        )
        raise ModelError(what, "use a smaller model")


def acting(config: Any) -> str:
    """JSON of what of a config shapes the hidden states: the values that differ from those of its class."""
    try:
        usual = type(config)().to_dict()
    except Exception:
        # A class that cannot be made from nothing has no usual values.
        usual = {}
    return json.dumps(_differing(config.to_dict(), usual), sort_keys=True, default=str)


def _differing(values: Mapping[str, Any], usual: Any) -> dict[str, Any]:
    usual = usual if isinstance(usual, Mapping) else {}
    different: dict[str, Any] = {}
    for key, value in values.items():
        if _INERT.fullmatch(str(key)) or (key in usual and usual[key] == value):
            continue
        if value is None and key not in usual:
            continue
        different[str(key)] = _differing(value, usual.get(key)) if isinstance(value, Mapping) else value
    return {key: value for key, value in different.items() if value != {}}
