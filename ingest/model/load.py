"""Loading models: from a folder, a GGUF file or a Hugging Face id, with their sites found and checked."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...catalog.errors import ModelError, SignariumError, SiteError
from . import gguf
from . import weights as _weights
from .config import acting, check_known, check_size, choose_attention, empty_model, load_config, model_class
from .devices import find_device
from .head import read_head
from .layout import Layout, find_layout
from .loaded import LoadedModel, Origin, max_positions, token_embedding
from .quiet import quiet
from .source import Source, find_source
from .stored import Plan, random_module, stored_module
from .tokenizer import load_tokenizer

__all__ = ["LoadedModel", "load_model"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ATTENTIONS = ("auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
_PROBE_LENGTH = 6


def load_model(
    source: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    random_init: int | None = None,
    attention: str = "auto",
    tokenizer_sha256: str | None = None,
) -> LoadedModel:
    """Loads the model at `source`: a folder, a `.gguf` file or a Hugging Face id; finds and checks its sites.

    `device` is "auto" (cuda, then mps, then cpu) or a torch device; `dtype` is "auto" (that of the stored
    weights, float32 for float16 on a CPU and for GGUF), "float32", "bfloat16" or "float16". `random_init`
    keeps the architecture and draws the weights from that seed by the model's own initialisation. `attention` is one of
    `ATTENTIONS`: "auto" is what the config asks for where that needs no package of its own, else what transformers takes.

    Where its tokenizer has another hash than `tokenizer_sha256`, and had that hash when transformers alone made it, it is
    taken as it was: catalogues of an earlier signarium were filled so.

    Raises:
        ModelError: if the model cannot be loaded or must not be.
        SiteError: if its blocks or its residual stream are not where its config says.
    """
    target = find_device(device)
    if dtype != "auto" and dtype not in _DTYPES:
        raise ModelError(f"no dtype {dtype!r}", f"there is auto, {', '.join(_DTYPES)}")
    if attention not in ATTENTIONS:
        raise ModelError(f"no attention {attention!r}", f"there is {', '.join(ATTENTIONS)}")
    found = find_source(source, revision, weights=random_init is None)
    wanted = _Wanted(target, dtype, random_init, attention)
    module, tokenizer, sha256, config = _load(found, wanted)
    layout = _probe(module, tokenizer)
    head = partial(read_head, found, module, random_init)
    acts = str(getattr(module.config.get_text_config(), "_attn_implementation", None) or "eager")
    origin = Origin(source, found.name, found.revision, sha256, random_init, config, acts)
    model = LoadedModel(module, tokenizer, layout, head, origin)
    _try_passes(model)
    if tokenizer_sha256 not in (None, model.tokenizer_sha256):
        earlier = LoadedModel(module, _earlier_tokenizer(found), layout, head, origin)
        if earlier.tokenizer_sha256 == tokenizer_sha256:
            return earlier
    return model


def _earlier_tokenizer(found: Source) -> Any:
    with contextlib.ExitStack() as stack:
        folder = found.tokenizer_folder if found.gguf is None else stack.enter_context(gguf.alone(found.gguf))
        return load_tokenizer(found, folder, earlier=True)


@dataclass(frozen=True)
class _Wanted:
    """The options of `load_model`."""

    device: torch.device
    dtype: str
    random_init: int | None
    attention: str


def _load(found: Source, wanted: _Wanted) -> tuple[Any, Any, str, str]:
    """The module on its device, the tokenizer, the hash of the weights, and the config as it acts."""
    stored: list[_weights.StoredTensor] = []
    device, seed = wanted.device, wanted.random_init
    with contextlib.ExitStack() as stack:
        if found.gguf is None:
            folder = found.folder
            check_known(folder, _weights.check_config(folder))
        else:
            folder = stack.enter_context(gguf.alone(found.gguf))
        config = load_config(found, folder)
        options = _options(model_class(config))
        if found.gguf is None:
            if seed is None:
                stored = _weights.read_headers(_weights.weight_files(folder))
            _weights.check_tokenizer(folder)
        choose_attention(config, wanted.attention)
        acts = acting(config)
        empty = _checked(found, config, options, stored, seed is not None)
        tokenizer = load_tokenizer(found, folder if found.gguf is not None else found.tokenizer_folder)
        kind = _dtype(wanted.dtype, device, config, found, stored)
        if seed is not None:
            module = random_module(config, options, seed).to(dtype=kind)
            sha256 = _weights.hash_tensors(module.state_dict())
        else:
            # Hashing waits for the disk and frees the interpreter, so it costs little beside loading.
            with ThreadPoolExecutor(1) as pool:
                if found.gguf is not None:
                    hashed = pool.submit(_weights.hash_file, found.gguf)
                else:
                    hashed = pool.submit(_weights.hash_stored, stored)
                module = stored_module(Plan(found, folder, config, options, kind, device, stored), empty)
                sha256 = hashed.result()
            if found.adapter is not None:
                found.adapter.merge(module)
                sha256 = found.adapter.sha256(sha256)
            _check_finite(module, found)
    try:
        module = module if module.device == device else module.to(device)
    except torch.OutOfMemoryError as error:
        what = f"{found.name} does not fit into the memory of {device}"
        raise ModelError(what, "pass --dtype bfloat16 or --device cpu") from error
    return module.eval().requires_grad_(False), tokenizer, sha256, acts


def _checked(
    found: Source, config: Any, options: dict[str, Any], stored: list[_weights.StoredTensor], random: bool
) -> nn.Module:
    """The model without its weights, once it is known to have a size that fits them."""
    plain = copy.deepcopy(config)
    packed = plain.__dict__.pop("quantization_config", None) is not None
    empty = empty_model(plain, options, found.where)
    n: int | None = None
    if not random and not packed:
        n = (
            gguf.n_stored(found.gguf)
            if found.gguf is not None
            else sum(math.prod(one.shape) for one in stored)
        )
    check_size(empty, found.where, n)
    return empty


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


def _options(made: type[Any]) -> dict[str, Any]:
    # A pooler is no part of the residual stream, and many encoders are stored without its weights.
    takes = inspect.signature(made.__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in takes else {}


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


def _try_passes(model: LoadedModel) -> None:
    """The shapes that later passes have: one token alone, a special one too, and rows of unlike length.

    Raises:
        ModelError: if the model does not run on one of them.
    """
    special = sorted(i for i in model.tokenizer.all_special_ids if i is not None and i < model.vocab_size)
    ids = _probe_ids(model.vocab_size, 4, set(special))
    rows = [[i] for i in (*special[:1], *ids[:2])]
    shapes: dict[str, tuple[list[list[int]], list[int] | None]] = {"one token alone": (rows, None)}
    if model.max_positions is None or model.max_positions >= len(ids):
        shapes["rows of unlike length"] = ([ids, ids], [len(ids), 1])
    for what, (batch, lengths) in shapes.items():
        try:
            with quiet():
                model.bare_forward(torch.LongTensor(batch), lengths, model.sites[-1:])
        except SignariumError:
            raise
        except Exception as error:
            # Each architecture that needs more says so in its own way.
            reason = f"{model.architecture} does not run on {what} ({_weights.brief(error)})"
            raise ModelError(reason, "use a model that does") from error
