"""Loading models: from a folder, a GGUF file or a Hugging Face id, with their sites found and checked."""

from __future__ import annotations

import contextlib
import inspect
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from ...catalog.errors import ModelError, SiteError
from . import gguf, registered
from . import weights as _weights
from .devices import find_device
from .head import read_head
from .layout import Layout, find_layout
from .loaded import LoadedModel, Origin, max_positions, token_embedding
from .quiet import quiet
from .source import Source, find_source

__all__ = ["LoadedModel", "load_model"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PROBE_LENGTH = 6


def load_model(
    source: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    random_init: int | None = None,
) -> LoadedModel:
    """Loads the model at `source`: a folder, a `.gguf` file or a Hugging Face id; finds and checks its sites.

    `device` is "auto" (cuda, then mps, then cpu) or a torch device; `dtype` is "auto" (that of the stored
    weights, float32 for float16 on a CPU and for GGUF), "float32", "bfloat16" or "float16". `random_init`
    keeps the architecture and draws the weights from that seed by the model's own initialisation.

    Raises:
        ModelError: if the model cannot be loaded or must not be.
        SiteError: if its blocks or its residual stream are not where its config says.
    """
    target = find_device(device)
    if dtype != "auto" and dtype not in _DTYPES:
        raise ModelError(f"no dtype {dtype!r}", f"there is auto, {', '.join(_DTYPES)}")
    found = find_source(source, revision, weights=random_init is None)
    module, tokenizer, sha256 = _load(found, target, dtype, random_init)
    layout = _probe(module, tokenizer)
    head = partial(read_head, found, module, random_init)
    origin = Origin(source, found.name, found.revision, sha256, random_init)
    return LoadedModel(module, tokenizer, layout, head, origin)


def _load(found: Source, device: torch.device, dtype: str, random_init: int | None) -> tuple[Any, Any, str]:
    stored: list[_weights.StoredTensor] = []
    with contextlib.ExitStack() as stack:
        if found.gguf is None:
            folder = found.folder
            _check_known(folder, _weights.check_config(folder))
        else:
            folder = stack.enter_context(gguf.alone(found.gguf))
        config = _config(found, folder)
        model_class = _model_class(config)
        if found.gguf is None:
            if random_init is None:
                stored = _weights.read_headers(_weights.weight_files(folder))
            _weights.check_tokenizer(folder)
        tokenizer = _tokenizer(found, folder)
        kind = _dtype(dtype, device, config, found, stored)
        if random_init is not None:
            module = _random_module(config, model_class, random_init).to(dtype=kind)
            sha256 = _weights.hash_tensors(module.state_dict())
        else:
            # Hashing waits for the disk and frees the interpreter, so it costs little beside loading.
            with ThreadPoolExecutor(1) as pool:
                if found.gguf is not None:
                    hashed = pool.submit(_weights.hash_file, found.gguf)
                else:
                    hashed = pool.submit(_weights.hash_stored, stored)
                module = _stored_module(found, folder, config, model_class, kind, device)
                sha256 = hashed.result()
            _check_finite(module, found)
    try:
        module = module if module.device == device else module.to(device)
    except torch.OutOfMemoryError as error:
        what = f"{found.name} does not fit into the memory of {device}"
        raise ModelError(what, "pass --dtype bfloat16 or --device cpu") from error
    return module.eval().requires_grad_(False), tokenizer, sha256


def _check_known(folder: Path, config: dict[str, Any]) -> None:
    model_type = config["model_type"]
    registered.tell_transformers(model_type)
    if model_type not in CONFIG_MAPPING:
        if "auto_map" in config:
            what = f"{folder} needs code of its own ({model_type}), which is never run"
            raise ModelError(what, "install its code, and register it with a plugin")
        raise ModelError(
            f"transformers {transformers.__version__} knows no architecture {model_type!r} ({folder})",
            "upgrade transformers, or register it with a plugin",
        )


def _config(found: Source, folder: Path) -> Any:
    options: dict[str, Any] = {} if found.gguf is None else {"gguf_file": found.gguf.name}
    with quiet():
        try:
            return AutoConfig.from_pretrained(folder, trust_remote_code=False, **options)
        except Exception as error:
            # Whatever transformers makes of a bad file is one line to the user; its classes vary.
            what = f"the config of {found.where} cannot be read ({_weights.brief(error)})"
            raise ModelError(what, "fetch the model again") from error


def _model_class(config: Any) -> type[Any]:
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
    model_class: type[Any] = found[0] if isinstance(found, (tuple, list)) else found
    takes = getattr(model_class, "main_input_name", "input_ids")
    if takes != "input_ids":
        raise ModelError(f"{kind} reads {takes}, not text", "use a text model")
    return model_class


def _tokenizer(found: Source, folder: Path) -> Any:
    where = found.where
    options: dict[str, Any] = {} if found.gguf is None else {"gguf_file": found.gguf.name}
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, use_fast=True, trust_remote_code=False, **options
            )
        except Exception as error:
            raise ModelError(
                f"the tokenizer of {where} cannot be loaded ({_weights.brief(error)})",
                "save its tokenizer.json",
            ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"{where} has no fast tokenizer", "save its tokenizer.json")
    # A text is tokenized whole; limits that were saved with the tokenizer would cut it without a word.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _dtype(
    name: str, device: torch.device, config: Any, found: Source, stored: list[_weights.StoredTensor]
) -> torch.dtype | str:
    if name != "auto":
        return _DTYPES[name]
    if found.gguf is not None:
        return torch.float32
    if getattr(config, "quantization_config", None) is not None:
        return "auto"
    kind = _weights.stored_dtype(stored) or getattr(config, "dtype", None) or torch.float32
    if isinstance(kind, str):
        kind = getattr(torch, kind)
    if kind == torch.float64 or (kind == torch.float16 and device.type == "cpu"):
        return torch.float32
    return kind


def _options(model_class: type[Any]) -> dict[str, Any]:
    # A pooler is no part of the residual stream, and many encoders are stored without its weights.
    takes = inspect.signature(model_class.__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in takes else {}


def _random_module(config: Any, model_class: type[Any], seed: int) -> Any:
    config.__dict__.pop("quantization_config", None)
    options = {"dtype": torch.float32, "trust_remote_code": False} | _options(model_class)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return AutoModel.from_config(config, **options)
        except Exception as error:
            # Each architecture rejects a bad config in its own way.
            raise ModelError(f"the config makes no {config.model_type} ({_weights.brief(error)})") from error


def _stored_module(
    found: Source,
    folder: Path,
    config: Any,
    model_class: type[Any],
    kind: torch.dtype | str,
    device: torch.device,
) -> Any:
    options = {"config": config, "dtype": kind, "trust_remote_code": False, "output_loading_info": True}
    # Tensors of another shape are named and refused below; transformers would only point at its own log.
    options |= {"ignore_mismatched_sizes": True} | _options(model_class)
    where = found.where
    if found.gguf is not None:
        options |= {"gguf_file": found.gguf.name}
        if (gguf_config := getattr(transformers, "GgufConfig", None)) is not None:
            # Packed weights would need kernels that are fetched at run time, and have no columns to read.
            config.__dict__.pop("quantization_config", None)
            options["quantization_config"] = gguf_config(dequantize=True)
    else:
        options |= {"use_safetensors": True}
        if getattr(config, "quantization_config", None) is not None:
            # Quantised maps cannot be moved once they are built.
            options |= {"device_map": {"": device}}
    with quiet():
        try:
            module, info = AutoModel.from_pretrained(folder, **options)
        except Exception as error:
            # Whatever transformers makes of bad weights is one line to the user; its classes vary by version.
            raise ModelError(f"{where} cannot be loaded ({_weights.brief(error)})") from error
    for key, what in (("missing_keys", "lack"), ("mismatched_keys", "have another shape for")):
        names = sorted(str(k[0] if isinstance(k, tuple) else k) for k in info.get(key) or ())
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise ModelError(f"the weights in {where} {what} {shown}", "fetch the model again")
    if errors := info.get("error_msgs"):
        raise ModelError(f"{where} cannot be loaded ({_weights.brief(ValueError(errors[0]))})")
    return module


def _check_finite(module: nn.Module, found: Source) -> None:
    for name, tensor in module.state_dict().items():
        _weights.check_finite(name, tensor, found.where)


# ---- probing ------------------------------------------------------------------------------------


def _probe(module: Any, tokenizer: Any) -> Layout:
    text = module.config.get_text_config()
    n_layers, width = getattr(text, "num_hidden_layers", None), getattr(text, "hidden_size", None)
    if not isinstance(n_layers, int) or not isinstance(width, int):
        raise ModelError(f"the config of {module.config.model_type} has no num_hidden_layers and hidden_size")
    sizes = (getattr(text, key, None) for key in ("intermediate_size", "ffn_dim", "n_inner"))
    d_ffn = next((size for size in sizes if isinstance(size, int)), None)
    try:
        embedding = token_embedding(module)
    except NotImplementedError:
        embedding = None
    if not isinstance(getattr(embedding, "weight", None), Tensor):
        raise ModelError(f"{module.config.model_type} has no single token embedding", "use a text model")
    rows, device = embedding.weight.shape[0], embedding.weight.device
    limit = max_positions(module)
    length = min(_PROBE_LENGTH, limit or _PROBE_LENGTH)
    ids = _probe_ids(rows, length + 1, {*tokenizer.all_special_ids, getattr(text, "pad_token_id", None)})
    batch = torch.tensor([ids[:length], [*ids[: length - 1], ids[length]]], device=device)
    takes_cache = "past_key_values" in inspect.signature(type(module).forward).parameters
    with quiet():
        # A model whose cache holds more than keys and values cannot use ours, and keeps its other sites.
        for with_cache in (True, False) if takes_cache else (None,):
            try:
                return find_layout(module, batch, n_layers, width, d_ffn, with_cache)
            except SiteError:
                raise
            except Exception as error:
                # A model that cannot be run on text alone says so in its own way.
                failure = error
    what = f"{module.config.model_type} does not run on a few tokens of text ({_weights.brief(failure)})"
    raise ModelError(what, "use a text model") from failure


def _probe_ids(rows: int, n: int, avoid: set[int | None]) -> list[int]:
    # Spread over the vocabulary, and no padding: some models count positions from what is no padding.
    usable = [i for i in range(min(rows, 4096)) if i not in avoid] or list(range(rows))
    return [usable[(7 + 13 * i * max(1, len(usable) // (13 * n))) % len(usable)] for i in range(n)]
