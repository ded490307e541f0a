"""The backbone with the weights of its files, every tensor of which has its place, or with random ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from ...catalog.errors import ModelError
from . import gguf
from .loaded import token_embedding
from .quiet import quiet
from .source import Source
from .weights import StoredTensor, brief

_HARMLESS = re.compile(
    r"(^|\.)(rotary_emb\.inv_freq|rope\.freqs|masked_bias|position_ids|attn\.bias|attention\.bias)$"
    r"|^(model\.)?(vision_tower|vision_model|visual|audio_tower|embed_vision|embed_audio|multi_modal_projector|mm_projector"
    r"|vision_projection|image_newline)(\.|$)"
)
"""Tables that the module makes itself, and the towers of a checkpoint of several kinds that is loaded for its text."""
_WRAPPERS = ((r"(^|\.)_orig_mod\.", r"\1"), (r"(^|\.)_fsdp_wrapped_module\.", r"\1"))
_OUTER = ((r"^(module\.)+", ""), (r"^model\.language_model\.", "model."), (r"^language_model\.", ""))
"""Prefixes of a compiled, a distributed and a larger model; the last for a model that has no such child."""


@dataclass(frozen=True)
class Plan:
    """What is to be loaded: `options` are those of the class of the backbone, `stored` the tensors of safetensors files."""

    source: Source
    folder: Path
    config: Any
    options: Mapping[str, Any]
    dtype: torch.dtype | str
    device: torch.device
    stored: Sequence[StoredTensor]


def random_module(config: Any, options: Mapping[str, Any], seed: int) -> Any:
    """The backbone with the weights that its own initialisation draws from `seed`, in float32."""
    config.__dict__.pop("quantization_config", None)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False, **options)
        except Exception as error:
            # Each architecture rejects a bad config in its own way.
            raise ModelError(f"the config makes no {config.model_type} ({brief(error)})") from error


def stored_module(plan: Plan, empty: nn.Module) -> Any:
    """The backbone with its weights. `empty` is the same without memory for them.

    Raises:
        ModelError: if the files lack a tensor, have one of another shape or one that has no place, or are packed in a way
            that cannot be read here.
    """
    where, config = plan.source.where, plan.config
    options = {
        "config": config, "dtype": plan.dtype, "trust_remote_code": False, "output_loading_info": True,
        # Tensors of another shape are named and refused below; transformers would only point at its own log.
        "ignore_mismatched_sizes": True,
    } | dict(plan.options)  # fmt: skip
    packed = getattr(config, "quantization_config", None)
    if plan.source.gguf is not None:
        options |= {"gguf_file": plan.source.gguf.name}
        if (gguf_config := getattr(transformers, "GgufConfig", None)) is not None:
            # Packed weights would need kernels that are fetched at run time, and have no columns to read.
            config.__dict__.pop("quantization_config", None)
            options["quantization_config"] = gguf_config(dequantize=True)
    else:
        options |= {"use_safetensors": True}
        if renamed := _renamed(plan.stored, empty, config):
            options |= {"key_mapping": renamed}
        if packed is not None:
            # Quantised maps cannot be moved once they are built.
            options |= {"device_map": {"": plan.device}}
    with quiet():
        try:
            module, info = AutoModel.from_pretrained(plan.folder, **options)
        except Exception as error:
            if packed is not None:
                what = f"{where} is quantised with {quantisation(packed)}, which cannot be loaded here ({brief(error)})"
                raise ModelError(what, "use the model's weights before they were quantised") from error
            # Whatever transformers makes of bad weights is one line to the user; its classes vary by version.
            raise ModelError(f"{where} cannot be loaded ({brief(error)})") from error
        _check_complete(info, where)
        left = _without_place(info.get("unexpected_keys") or (), module, config)
    if plan.source.gguf is not None:
        left += gguf.left_over(plan.source.gguf)
        _divide_frequencies(module, plan.source.gguf)
    if left:
        what = f"the weights in {where} hold {_listed(left)}, for which {config.model_type} has no place"
        raise ModelError(what, _mend(left))
    return module


def quantisation(packed: Any) -> str:
    """The method of a config's `quantization_config`."""
    method = (
        packed.get("quant_method")
        if isinstance(packed, Mapping)
        else getattr(packed, "quant_method", "an unnamed method")
    )
    return str(getattr(method, "value", method))


def _check_complete(info: Mapping[str, Any], where: Path) -> None:
    there = sorted(map(str, info.get("unexpected_keys") or ()))
    for key, what in (("missing_keys", "lack"), ("mismatched_keys", "have another shape for")):
        names = sorted(str(k[0] if isinstance(k, tuple) else k) for k in info.get(key) or ())
        if names:
            has = f"; they hold {_listed(there)}" if there and key == "missing_keys" else ""
            raise ModelError(f"the weights in {where} {what} {_listed(names)}{has}", "fetch the model again")
    if errors := info.get("error_msgs"):
        raise ModelError(f"{where} cannot be loaded ({brief(ValueError(errors[0]))})")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _mend(left: Sequence[str]) -> str:
    if any("lora_" in name for name in left):
        return "merge the adapter into its model, and save that"
    if any(re.search(r"scale|zeros|absmax|qweight|g_idx", name) for name in left):
        return (
            "put the quantization_config back into config.json, or use the weights before they were quantised"
        )
    return "use the config that was saved with them"


# ---- names --------------------------------------------------------------------------------------


def unwrapped(model: nn.Module) -> Callable[[str], str]:
    """From a name in the files of a wrapped model (compiled, distributed, part of a larger one) to that in `model`."""
    rules = [*_WRAPPERS, *(rule for rule in _OUTER if not _has_child(model, rule[0]))]

    def rename(name: str) -> str:
        for pattern, plain in rules:
            name = re.sub(pattern, plain, name)
        return name

    return rename


def renaming(model: Any) -> Callable[[str], str]:
    """From the name that files give a tensor to that in `model` (GPT-NeoX stores its head as embed_out)."""
    renamings = [t for t in get_model_conversion_mapping(model) if isinstance(t, WeightRenaming)]
    plain = unwrapped(model)
    return lambda stored: str(rename_source_key(plain(stored), renamings, [])[0])


def _has_child(model: nn.Module, pattern: str) -> bool:
    names = {name for path, _ in model.named_modules() for name in path.split(".")}
    return ("language_model" if "language_model" in pattern else "module") in names


def _renamed(stored: Iterable[StoredTensor], empty: nn.Module, config: Any) -> dict[str, str]:
    """For transformers, the names that it would not find: those with prefixes, and a tied embedding under the head's name."""
    rename = unwrapped(empty)
    plain = {one.name: rename(one.name) for one in stored}
    renamed = {f"^{re.escape(old)}$": new for old, new in plain.items() if old != new}
    embedding = token_embedding(empty).weight
    path = next((name for name, one in empty.named_parameters() if one is embedding), "")
    heads = [
        old for old, new in plain.items() if re.search(r"(^|\.)(lm_head|embed_out|output)\.weight$", new)
    ]
    tied = getattr(config.get_text_config(), "tie_word_embeddings", False)
    if tied and path and len(heads) == 1 and not any(new.endswith(path) for new in plain.values()):
        prefix = getattr(empty, "base_model_prefix", "")
        renamed[f"^{re.escape(heads[0])}$"] = f"{prefix}.{path}" if prefix else path
    return renamed


def _without_place(names: Iterable[str], module: nn.Module, config: Any) -> list[str]:
    """Those of some tensors that are neither harmless nor part of a head of the architecture.

    Of a class that transformers lacks nobody knows the heads: whatever stands outside its backbone may be one.
    """
    left = sorted(name for name in names if not _HARMLESS.search(name))
    named = list(getattr(config, "architectures", None) or ())
    classes = [getattr(transformers, str(name), None) for name in named]
    causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    for made in (causal, *classes):
        if left and isinstance(made, type) and issubclass(made, nn.Module):
            left = _not_in(made, config, left)
    prefix = getattr(module, "base_model_prefix", "")
    if prefix and None in classes:
        left = [name for name in left if name.startswith(f"{prefix}.")]
    return left


def _not_in(made: type[Any], config: Any, names: list[str]) -> list[str]:
    with torch.device("meta"):
        try:
            whole = made(config)
        except Exception:
            # An architecture that the config names and does not make has no tensors.
            return names
    there, rename = set(whole.state_dict()), renaming(whole)
    return [name for name in names if name not in there and rename(name) not in there]


# ---- GGUF ---------------------------------------------------------------------------------------


def _divide_frequencies(module: nn.Module, file: Path) -> None:
    """Applies the factors of rotary frequencies, which transformers leaves out; llama.cpp divides by them."""
    factors = gguf.rotary_factors(file)
    if factors is None or bool((factors == 1).all()):
        return
    found = [one for one in module.modules() if isinstance(getattr(one, "inv_freq", None), torch.Tensor)]
    fitting = [one for one in found if one.inv_freq.shape == factors.shape]
    if not fitting or len(fitting) < len(found):
        raise ModelError(
            f"the factors of rotary frequencies in {file} have no place", "use the model's folder"
        )
    for one in fitting:
        table: Any = one.inv_freq
        one.inv_freq = table / factors.to(table)
