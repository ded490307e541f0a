"""Models in one place: loading them, and showing what their sites hold during a pass."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import LongTensor, Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from ..catalog.errors import InvalidInput, ModelError, SiteError
from . import sites as _sites
from . import weights as _weights
from .sites import Layout, Site, Tap, as_positions, first_tensor, join_heads
from .weights import Source

Sink = Callable[[Site, Tensor], None]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PROBE_LENGTH = 6


class _Stop(Exception):
    """Ends a pass once every wanted site was seen; caught where it is raised for."""


class LoadedModel:
    """A model on its device, its tokenizer, and its sites. Made by `load_model`.

    Attributes:
        source, name, revision: what was asked for, a name for it, and the commit of a Hugging Face id.
        architecture: the config's model_type.
        width, n_layers, d_ffn, vocab_size: `vocab_size` counts the rows of the token embedding; `d_ffn` is
            what the FFN's last linear map takes in (0 where blocks have no single such map).
        dtype, device: of the weights in memory.
        weights_sha256: of the stored tensors (of the file, for GGUF; of the tensors in memory, for random
            weights). Does not depend on how files are split.
        tokenizer_sha256: of the tokenizer's definition and its special tokens.
        random_init_seed: the seed, where the weights are random.
        causal: found by experiment; earlier positions do not see later tokens.
        sites: every site there is, in model order. `site_notes`: why others are not, by site name.
        max_positions: the longest text in tokens, where there is such a limit.
    """

    def __init__(
        self,
        module: nn.Module,
        tokenizer: Any,
        layout: Layout,
        *,
        source: str,
        name: str,
        revision: str | None,
        weights_sha256: str,
        random_init_seed: int | None,
    ) -> None:
        config: Any = module.config
        self.module = module
        self.tokenizer = tokenizer
        self.layout = layout
        self.source, self.name, self.revision = source, name, revision
        self.architecture = str(config.model_type)
        self.width, self.n_layers, self.d_ffn = layout.width, layout.n_layers, layout.d_ffn
        self.vocab_size = int(_embedding(module).weight.shape[0])
        self.dtype = str(_embedding(module).weight.dtype).removeprefix("torch.")
        self.device = _embedding(module).weight.device
        self.weights_sha256, self.random_init_seed = weights_sha256, random_init_seed
        self.causal = layout.causal
        self.sites, self.site_notes = layout.sites, layout.notes
        self.max_positions = _max_positions(module)

    @property
    def residual(self) -> str:
        """How blocks add to the residual stream: sequential, parallel, post-norm, unknown or mixed.

        sequential: resid_pre + attn_out = resid_mid and resid_mid + mlp_out = resid_post. parallel: both are
        added at once, and there is no `resid_mid`. post-norm: each sum is normalised, so `resid_mid` is
        norm(resid_pre + attn_out) and `resid_post` norm(resid_mid + mlp_out). These sums were checked.
        """
        styles = set(self.layout.styles)
        return styles.pop() if len(styles) == 1 else "mixed"

    # ---- sites ----

    def parse_sites(self, spec: str) -> list[Site]:
        """The sites that `spec` asks for, in model order; see `sites.parse_sites`."""
        return _sites.parse_sites(spec, self.sites, self.site_notes)

    def default_sites(self, n: int = 5) -> list[Site]:
        """A few evenly spaced `resid_post` sites, the last block's among them."""
        return _sites.default_sites(self.sites, n)

    def require_site(self, site: Site) -> None:
        """Raises SiteError, with the reason where one is known, if the model has no such site."""
        if site not in self.layout.taps:
            _sites.parse_sites(site.name, self.sites, self.site_notes)

    def width_of(self, site: Site) -> int:
        """Width of what `site` shows: n_kv_heads * head_dim for `k`, `d_ffn` for `ffn`, ...

        Raises:
            SiteError: if the model has no such site.
        """
        self.require_site(site)
        return self.layout.widths[site]

    def ffn_directions(self, layer: int) -> Tensor:
        """[d_ffn, width]: what each neuron of block `layer` writes, no norm gain applied.

        Row n is column n of the FFN's last linear map (row n of GPT-2's Conv1D), on the model's device.

        Raises:
            SiteError: if the block has no single such map.
        """
        site = Site("ffn", layer)
        self.require_site(site)
        module: Any = self.layout.taps[site].module
        weight: Tensor = module.weight.detach()
        # A Linear keeps [out, in], a Conv1D [in, out]; only Linear says how wide it is.
        directions = weight.T if hasattr(module, "in_features") else weight
        if directions.shape != (self.layout.widths[site], self.width):
            raise SiteError(f"the weight of {self.layout.taps[site].path} is packed ({list(weight.shape)})")
        return directions

    # ---- tokens ----

    @cached_property
    def tokenizer_sha256(self) -> str:
        """SHA-256 of the tokenizer's definition and its special tokens."""
        definition = json.loads(self.tokenizer.backend_tokenizer.to_str())
        definition["truncation"] = definition["padding"] = None
        special = {k: str(v) for k, v in sorted(self.tokenizer.special_tokens_map.items())}
        ids = sorted(self.tokenizer.all_special_ids)
        text = json.dumps([definition, special, ids, self.tokenizer_adds()], sort_keys=True)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()

    @property
    def bos_id(self) -> int | None:
        """The token that starts a sequence: BOS, or an encoder's CLS; None where there is none."""
        for token_id in (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id):
            if token_id is not None:
                return int(token_id)
        return None

    def tokenizer_adds(self) -> tuple[list[int], list[int]]:
        """The special tokens that the tokenizer itself puts before and after one text."""
        backend = self.tokenizer.backend_tokenizer
        plain, full = (backend.encode("a", add_special_tokens=special).ids for special in (False, True))
        for start in range(len(full) - len(plain) + 1):
            if full[start : start + len(plain)] == plain:
                return full[:start], full[start + len(plain) :]
        raise ModelError("the tokenizer does not keep a text's tokens together when it adds special tokens")

    def token_strings(self) -> list[str]:
        """Decoded text of every row of the vocabulary, leading space included; "" for rows without a token.

        A token that is no whole UTF-8 text by itself, or a piece of a word with a mark of its own (BERT's
        "##ing"), is its string in the vocabulary, so that no two such tokens look alike; where that string
        is another token's text, its bytes are spelled out, as in "<0xE9>".
        """
        backend = self.tokenizer.backend_tokenizer
        raw = {
            i: token for token, i in backend.get_vocab(with_added_tokens=True).items() if i < self.vocab_size
        }
        added = {i: str(token) for i, token in self.tokenizer.added_tokens_decoder.items()}
        decoder = str(json.loads(backend.to_str()).get("decoder"))
        strings, fragments = [""] * self.vocab_size, list[int]()
        ids = sorted(i for i in raw if i not in added)
        if "WordPiece" in decoder or decoder == "None":
            texts = [raw[i] for i in ids]
        else:
            # Decoders of the sentencepiece kind drop the space of a text's first token, so none comes first.
            anchor = next((i for i in ids if backend.decode([i], skip_special_tokens=False) == "a"), None)
            before = [] if anchor is None else [anchor]
            texts = backend.decode_batch([[*before, i] for i in ids], skip_special_tokens=False)
            texts = [text.removeprefix("a") if before else text for text in texts]
        for i, text in zip(ids, texts, strict=True):
            if "�" in text or re.fullmatch("<0x[0-9A-Fa-f]{2}>", raw[i]):
                fragments.append(i)
            else:
                strings[i] = text
        for i, token in added.items():
            if i < self.vocab_size:
                strings[i] = token
        whole = set(strings)
        for i in fragments:
            # A byte-level vocabulary writes the single byte 0xE9 as "é", which is also a whole token's text.
            strings[i] = _spelled_bytes(raw[i]) if raw[i] in whole else raw[i]
        return strings

    # ---- passes ----

    def forward(
        self, input_ids: LongTensor, lengths: Sequence[int] | None, sites: Sequence[Site], sink: Sink
    ) -> None:
        """Runs the model on `input_ids`, [batch, position], until every one of `sites` was seen.

        `sink(site, x)` is called once a site with x of [batch, position, width] on the model's device and in
        its dtype; it must be done with x when it returns, since the model may overwrite it. `lengths` are the
        tokens of each row that count, the rest being padding on the right; what is shown there means nothing.

        Raises:
            SiteError: if the model lacks one of `sites`.
            InvalidInput: if shapes, lengths or token ids are not what the model takes.
        """
        self._check(input_ids, lengths)
        for site in sites:
            self.require_site(site)
        if sites:
            self._run(input_ids, lengths, sorted(set(sites), key=self.sites.index), sink)

    def bare_forward(
        self, input_ids: LongTensor, lengths: Sequence[int] | None, sites: Sequence[Site]
    ) -> None:
        """The same pass with the same early stop and nothing read from it, to measure the cost of reading."""
        self._check(input_ids, lengths)
        for site in sites:
            self.require_site(site)
        if sites:
            last = max(sites, key=lambda site: self.layout.order[site])
            self._run(input_ids, lengths, [last], lambda _, __: None)

    def _check(self, input_ids: Tensor, lengths: Sequence[int] | None) -> None:
        if input_ids.dim() != 2 or input_ids.numel() == 0 or input_ids.dtype != torch.int64:
            what = f"input_ids of shape {list(input_ids.shape)} and {input_ids.dtype}"
            raise InvalidInput(f"{what} are no int64 [batch, position]")
        batch, length = input_ids.shape
        if lengths is not None and (len(lengths) != batch or not all(1 <= n <= length for n in lengths)):
            raise InvalidInput(f"lengths must be {batch} numbers from 1 to {length}")
        if self.max_positions is not None and length > self.max_positions:
            what = f"{length} tokens are more than the {self.max_positions} positions of {self.name}"
            raise InvalidInput(what, "pass a smaller --context")
        # On an accelerator this would wait for the copy; ids come from the host anyway.
        if input_ids.device.type == "cpu":
            low, high = input_ids.aminmax()
            if low < 0 or high >= self.vocab_size:
                bad = int(high if low >= 0 else low)
                raise InvalidInput(
                    f"token id {bad} is none of the {self.vocab_size} rows of {self.name}'s embedding"
                )

    def _run(
        self, input_ids: Tensor, lengths: Sequence[int] | None, sites: Sequence[Site], sink: Sink
    ) -> None:
        batch, length = input_ids.shape
        kwargs: dict[str, Any] = {}
        if lengths is not None and not self.causal and min(lengths) < length:
            columns = torch.arange(length)
            mask = columns[None] < torch.tensor(list(lengths))[:, None]
            kwargs["attention_mask"] = mask.long().to(self.device)
        left = set(sites)

        def show(site: Site, x: Tensor | None) -> None:
            shaped = as_positions(x, batch, length)
            if shaped is None or shaped.shape[-1] != self.layout.widths[site]:
                shape = [batch, length, self.layout.widths[site]]
                raise SiteError(f"{site} of {self.name} was no tensor of shape {shape} in this pass")
            sink(site, shaped)
            left.discard(site)

        def stop() -> None:
            if not left:
                raise _Stop

        by_module: dict[tuple[nn.Module, str], list[tuple[Site, Tap]]] = {}
        cached: dict[int, list[tuple[Site, Tap]]] = {}
        for site in sites:
            tap = self.layout.taps[site]
            if tap.module is None:
                cached.setdefault(tap.cache_layer, []).append((site, tap))
            else:
                by_module.setdefault((tap.module, tap.side), []).append((site, tap))

        def before(
            taps: list[tuple[Site, Tap]], _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> None:
            for site, tap in taps:
                show(site, args[tap.where] if isinstance(tap.where, int) else kwargs[tap.where])
            stop()

        def after(taps: list[tuple[Site, Tap]], _: nn.Module, __: Any, output: Any) -> None:
            for site, _tap in taps:
                show(site, first_tensor(output))
            stop()

        def seen(layer: int, key: Tensor, value: Tensor) -> None:
            if taps := cached.get(layer):
                for site, tap in taps:
                    show(site, join_heads((key, value)[int(tap.where)]))
                stop()

        kwargs |= _sites.cache_arguments(self.layout.with_cache, seen)
        with _sites.hooks() as handles, torch.inference_mode():
            for (module, side), taps in by_module.items():
                if side == "in":
                    handles.append(module.register_forward_pre_hook(partial(before, taps), with_kwargs=True))
                else:
                    handles.append(module.register_forward_hook(partial(after, taps)))
            with contextlib.suppress(_Stop):
                self.module(input_ids=input_ids.to(self.device), **kwargs)
        if left:
            raise SiteError(f"{', '.join(map(str, left))} of {self.name} did not run in this pass")


def _spelled_bytes(raw: str) -> str:
    """A byte-level token, one character a byte, as "<0xC3><0xA9>"; itself where it is no such token."""
    # The printable characters of Latin-1 stand for themselves, the other bytes are counted up from U+0100.
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    byte_of = {chr(b): b for b in plain} | {chr(0x100 + n): b for n, b in enumerate(others)}
    return "".join(f"<0x{byte_of[c]:02X}>" for c in raw) if set(raw) <= byte_of.keys() else raw


# ---- loading ------------------------------------------------------------------------------------


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
    target = _device(device)
    if dtype != "auto" and dtype not in _DTYPES:
        raise ModelError(f"no dtype {dtype!r}", f"there is auto, {', '.join(_DTYPES)}")
    found = _weights.find_source(source, revision, weights=random_init is None)
    module, tokenizer, sha256 = _load(found, target, dtype, random_init)
    layout = _probe(module, tokenizer)
    return LoadedModel(
        module, tokenizer, layout, source=source, name=found.name, revision=found.revision,
        weights_sha256=sha256, random_init_seed=random_init,
    )  # fmt: skip


def _device(name: str) -> torch.device:
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"no device {name!r}", "there is auto, cpu, cuda, cuda:1, mps") from error
    n = torch.cuda.device_count() if cuda else 0
    if device.type == "cuda" and (device.index or 0) >= n:
        what = f"no device {name!r} here (torch sees {n} CUDA devices)"
        raise ModelError(what, "pass --device auto or cpu")
    if device.type == "mps" and not mps:
        raise ModelError("no device 'mps' here", "pass --device auto or cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ModelError(f"device {name!r} is not supported", "there is auto, cpu, cuda, mps")
    return device


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, log lines or progress bars of transformers; all as it was afterwards."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        # The GGUF reader does not ask whether bars are wanted, so stderr itself is turned away.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def _load(found: Source, device: torch.device, dtype: str, random_init: int | None) -> tuple[Any, Any, str]:
    stored: list[_weights.StoredTensor] = []
    with contextlib.ExitStack() as stack:
        if found.gguf is None:
            folder = found.folder
            _check_known(folder, _weights.check_config(folder))
        else:
            folder = stack.enter_context(_weights.gguf_alone(found.gguf))
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
    if model_type not in CONFIG_MAPPING:
        if "auto_map" in config:
            what = f"{folder} needs code of its own ({model_type}), which is never run"
            raise ModelError(what, "use an architecture that transformers itself has")
        raise ModelError(
            f"transformers {transformers.__version__} knows no architecture {model_type!r} ({folder})",
            "upgrade transformers, or use another model",
        )


def _config(found: Source, folder: Path) -> Any:
    options: dict[str, Any] = {} if found.gguf is None else {"gguf_file": found.gguf.name}
    with _quiet():
        try:
            return AutoConfig.from_pretrained(folder, trust_remote_code=False, **options)
        except Exception as error:
            # Whatever transformers makes of a bad file is one line to the user; its classes vary.
            what = f"the config of {found.gguf or found.folder} cannot be read ({_weights.brief(error)})"
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
    where = found.gguf or found.folder
    options: dict[str, Any] = {} if found.gguf is None else {"gguf_file": found.gguf.name}
    with _quiet():
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
    with _quiet(), torch.random.fork_rng(devices=[]):
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
    where = found.gguf or found.folder
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
    with _quiet():
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
        if tensor.is_floating_point() and tensor.numel():
            low, high = tensor.aminmax()
            if not (torch.isfinite(low) and torch.isfinite(high)):
                what = f"{name} in {found.gguf or found.folder} holds NaN or infinity"
                raise ModelError(what, "fetch the model again")


# ---- probing ------------------------------------------------------------------------------------


def _embedding(module: Any) -> Any:
    return module.get_input_embeddings()


def _probe(module: Any, tokenizer: Any) -> Layout:
    text = module.config.get_text_config()
    n_layers, width = getattr(text, "num_hidden_layers", None), getattr(text, "hidden_size", None)
    if not isinstance(n_layers, int) or not isinstance(width, int):
        raise ModelError(f"the config of {module.config.model_type} has no num_hidden_layers and hidden_size")
    sizes = (getattr(text, key, None) for key in ("intermediate_size", "ffn_dim", "n_inner"))
    d_ffn = next((size for size in sizes if isinstance(size, int)), None)
    try:
        embedding = _embedding(module)
    except NotImplementedError:
        embedding = None
    if not isinstance(getattr(embedding, "weight", None), Tensor):
        raise ModelError(f"{module.config.model_type} has no single token embedding", "use a text model")
    rows, device = embedding.weight.shape[0], embedding.weight.device
    limit = _max_positions(module)
    length = min(_PROBE_LENGTH, limit or _PROBE_LENGTH)
    ids = _probe_ids(rows, length + 1, {*tokenizer.all_special_ids, getattr(text, "pad_token_id", None)})
    batch = torch.tensor([ids[:length], [*ids[: length - 1], ids[length]]], device=device)
    takes_cache = "past_key_values" in inspect.signature(type(module).forward).parameters
    with _quiet():
        # A model whose cache holds more than keys and values cannot use ours, and keeps its other sites.
        for with_cache in (True, False) if takes_cache else (None,):
            try:
                return _sites.find_layout(module, batch, n_layers, width, d_ffn, with_cache)
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


def _max_positions(module: Any) -> int | None:
    limit = getattr(module.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    token = _embedding(module)
    for child in module.modules():
        if isinstance(child, nn.Embedding) and child is not token and child.num_embeddings == limit:
            # A table with a padding row counts positions from the row after it.
            if child.padding_idx is not None:
                return limit - child.padding_idx - 1
            return limit
    return limit
