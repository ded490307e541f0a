"""A loaded model: what it says of itself, its tokens, and showing what its sites hold during a pass."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import LongTensor, Tensor, nn

from ...catalog.errors import InvalidInput, ModelError, SiteError, option
from . import sites as _sites
from .layout import Layout, Tap
from .probe import as_positions, cache_arguments, first_tensor, hooks, join_heads
from .sites import Site

Sink = Callable[[Site, Tensor], None]
Head = Callable[[str], Tensor | None]
"""Reads a part, "weight" or "bias", of the language-modelling head, in the model's dtype and on its device;
None for a weight that is the token embedding's and for a bias that is not there."""


class _Stop(Exception):
    """Ends a pass once every wanted site was seen; caught where it is raised for."""


@dataclass(frozen=True)
class Origin:
    """Where a model comes from: see the attributes of `LoadedModel`."""

    source: str
    name: str
    revision: str | None
    weights_sha256: str
    random_init_seed: int | None
    config: str
    attention: str
    notes: tuple[str, ...] = ()


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
        config: JSON of what of the config shapes the hidden states (`config.acting`). `attention`: the implementation.
        catalogue_id: the model_id that a catalogue gave it before configs counted; None where that is from its content.
        notes: sentences for the person who loads it.
        causal: found by experiment; earlier positions do not see later tokens.
        sites: every site there is, in model order. `site_notes`: why others are not, by site name.
        max_positions: the longest text in tokens, where there is such a limit.
    """

    def __init__(
        self,
        module: nn.Module,
        tokenizer: Any,
        layout: Layout,
        head: Head,
        origin: Origin,
    ) -> None:
        config: Any = module.config
        self.module = module
        self.tokenizer = tokenizer
        self.layout = layout
        self._head = head
        self.source, self.name, self.revision = origin.source, origin.name, origin.revision
        self.architecture = str(config.model_type)
        self.width, self.n_layers, self.d_ffn = layout.width, layout.n_layers, layout.d_ffn
        self.vocab_size = int(token_embedding(module).weight.shape[0])
        self.dtype = str(token_embedding(module).weight.dtype).removeprefix("torch.")
        self.device = token_embedding(module).weight.device
        self.weights_sha256, self.random_init_seed = origin.weights_sha256, origin.random_init_seed
        self.config, self.attention = origin.config, origin.attention
        self.catalogue_id: str | None = None
        self.notes = list(origin.notes)
        self.causal = layout.causal
        self.sites, self.site_notes = layout.sites, layout.notes
        self.max_positions = max_positions(module)

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

    def check_window(self, tokens: int) -> None:
        """Raises InvalidInput if a window of so many tokens has more positions than the model."""
        if self.max_positions is not None and tokens > self.max_positions:
            raise InvalidInput(
                f"a context of {tokens} is more than the {self.max_positions} positions of {self.name}",
                f"pass {option('context', self.max_positions)}",
            )

    def width_of(self, site: Site) -> int:
        """Width of what `site` shows: n_kv_heads * head_dim for `k`, `d_ffn` for `ffn`, ...

        Raises:
            SiteError: if the model has no such site.
        """
        self.require_site(site)
        return self.layout.widths[site]

    def embedding(self) -> Tensor:
        """[vocab_size, width]: rows of the token embedding, on the model's device."""
        weight: Tensor = token_embedding(self.module).weight
        return weight.detach()

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

    # ---- the head ----

    def unembedding(self) -> Tensor:
        """[vocab_size, width]: the rows of the language-modelling head, on the model's device in its dtype.

        Row t times the output of the final norm is token t's logit, but for `unembedding_bias` and for a
        scale or a soft cap of all logits, which leave their order alone. A tied head is the token embedding's
        own weight; any other is read from the model's files at every call, and not kept. Random weights have
        a random head of the model's own initialisation, from their seed.

        Raises:
            ModelError: if the model has no such head, or if its files lack it.
        """
        rows = self._head_part("weight")
        if rows is None:
            rows = token_embedding(self.module).weight.detach()
        if rows.shape != (self.vocab_size, self.width):
            what = (
                f"the head of {self.name} has shape {list(rows.shape)}, not {[self.vocab_size, self.width]}"
            )
            raise ModelError(what, "use a model whose head reads the residual stream itself")
        return rows

    def unembedding_bias(self) -> Tensor | None:
        """[vocab_size]: what the head adds to the logits (GPT-J, Phi), on the model's device in its dtype.

        None where the head has no bias. Raises as `unembedding` does.
        """
        bias = self._head_part("bias")
        if bias is not None and bias.shape != (self.vocab_size,):
            raise ModelError(f"the head's bias of {self.name} has shape {list(bias.shape)}")
        return bias

    def _head_part(self, part: str) -> Tensor | None:
        if not self.causal:
            # An encoder's head for masked tokens is no linear map of its states, where it has one at all.
            what = f"{self.name} predicts no next token ({self.architecture}), so it has no unembedding"
            raise ModelError(what, "use a causal language model")
        return self._head(part)

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

        kwargs |= cache_arguments(self.layout.with_cache, seen)
        with hooks() as handles, torch.inference_mode():
            for (module, side), taps in by_module.items():
                if side == "in":
                    handles.append(module.register_forward_pre_hook(partial(before, taps), with_kwargs=True))
                else:
                    handles.append(module.register_forward_hook(partial(after, taps)))
            with contextlib.suppress(_Stop):
                # Pinned ids are fetched when the device comes to them; others are waited for.
                ids = input_ids.to(self.device, non_blocking=input_ids.is_pinned())
                self.module(input_ids=ids, **kwargs)
        if left:
            raise SiteError(f"{', '.join(map(str, left))} of {self.name} did not run in this pass")


def _spelled_bytes(raw: str) -> str:
    """A byte-level token, one character a byte, as "<0xC3><0xA9>"; itself where it is no such token."""
    # The printable characters of Latin-1 stand for themselves, the other bytes are counted up from U+0100.
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    byte_of = {chr(b): b for b in plain} | {chr(0x100 + n): b for n, b in enumerate(others)}
    return "".join(f"<0x{byte_of[c]:02X}>" for c in raw) if set(raw) <= byte_of.keys() else raw


def token_embedding(module: Any) -> Any:
    """The module that turns token ids into vectors."""
    return module.get_input_embeddings()


def max_positions(module: Any) -> int | None:
    """The longest text in tokens, or None where there is no such limit."""
    limit = getattr(module.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    token = token_embedding(module)
    for child in module.modules():
        if isinstance(child, nn.Embedding) and child is not token and child.num_embeddings == limit:
            # A table with a padding row counts positions from the row after it.
            if child.padding_idx is not None:
                return limit - child.padding_idx - 1
            return limit
    return limit
