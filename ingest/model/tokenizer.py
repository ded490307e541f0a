"""The tokenizer of a model: as its `tokenizer.json` has it, or as llama.cpp reads its GGUF file.

transformers knows the names of the special tokens; how it cuts a text is left to it only where no file says. Its classes put
their own pre-tokenizer and normaliser in the place of those of the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ...catalog.errors import ModelError
from ..text.panics import unbroken
from . import gguf
from .pretokens import CUTS, Cut
from .quiet import quiet
from .source import Source
from .weights import brief, read_json

_USE = "save its tokenizer.json"
_PROBES = ("a" * 64, "A" * 64, " " * 64, "1" * 64, "\n" * 64, "-" * 64, "é" * 64, "aA 1\n" * 16)
"""Texts of one kind of character, over which a regular expression that backtracks without end does."""


def load_tokenizer(source: Source, folder: Path, *, earlier: bool = False) -> Any:
    """The tokenizer of a model whose files are in `folder`, as transformers wraps it.

    `earlier`: as transformers alone makes it, which is how catalogues were filled before signarium 0.2.

    Raises:
        ModelError: if there is none, if it cannot be read, or if nothing says how it cuts a text.
    """
    where = source.where
    file = folder / "tokenizer.json"
    backend = None
    if source.gguf is None and file.is_file() and not earlier:
        with unbroken(f"the probe of {where}"):
            try:
                backend = Tokenizer.from_file(str(file))
            except Exception as error:
                # The library raises bare exceptions.
                raise ModelError(
                    f"the tokenizer of {where} cannot be loaded ({brief(error)})", _USE
                ) from error
    tokenizer = _wrapped(source, folder, backend)
    if backend is not None:
        _say_what_is_added(backend, tokenizer, folder)
        _forget_absent(backend, tokenizer)
        tokenizer._tokenizer = backend
    elif source.gguf is not None and not earlier:
        _cut_as_llama_cpp(tokenizer, source.gguf)
    # A text is tokenized whole; limits that were saved with the tokenizer would cut it without a word.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    with unbroken(f"the probe of {where}"):
        tokenizer.backend_tokenizer.encode_batch(list(_PROBES), add_special_tokens=False)
    return tokenizer


def _wrapped(source: Source, folder: Path, backend: Tokenizer | None) -> Any:
    """What transformers makes of the files: it knows the special tokens by their names."""
    options: dict[str, Any] = {} if source.gguf is None else {"gguf_file": source.gguf.name}
    tokenizer: Any
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, use_fast=True, trust_remote_code=False, **options
            )
        except Exception as error:
            try:
                # A class that transformers lacks, or one that needs further files, names no token that the file lacks.
                tokenizer = PreTrainedTokenizerFast.from_pretrained(folder) if backend is not None else None
            except Exception:
                tokenizer = None
            if tokenizer is None:
                raise ModelError(
                    f"the tokenizer of {source.where} cannot be loaded ({brief(error)})", _USE
                ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"{source.where} has no fast tokenizer", _USE)
    return tokenizer


def _forget_absent(backend: Tokenizer, tokenizer: Any) -> None:
    """Special tokens that a class of transformers takes for granted, and the file lacks."""
    names = tokenizer._special_tokens_map
    for name, token in list(names.items()):
        if token is not None and backend.token_to_id(str(token)) is None:
            names[name] = None
    extra = tokenizer._extra_special_tokens
    tokenizer._extra_special_tokens = [one for one in extra if backend.token_to_id(str(one)) is not None]


def _say_what_is_added(backend: Tokenizer, tokenizer: Any, folder: Path) -> None:
    """Where a `tokenizer.json` adds no special tokens, `tokenizer_config.json` may say outright which to add."""
    file = folder / "tokenizer_config.json"
    if not file.is_file() or len(backend.encode("")) > 0:
        return
    said = read_json(file)
    single, special = "$A", []
    for name, form in (("bos", "{} $A"), ("eos", "$A {}")):
        token, ident = getattr(tokenizer, f"{name}_token"), None
        if said.get(f"add_{name}_token") is True and token is not None:
            ident = backend.token_to_id(token)
        if ident is not None:
            single = single.replace("$A", form.format(token))
            special.append((token, ident))
    if special:
        template = processors.TemplateProcessing(single=single, special_tokens=special)
        old = backend.post_processor
        backend.post_processor = template if old is None else processors.Sequence([old, template])


def _cut_as_llama_cpp(tokenizer: Any, file: Path) -> None:
    """Sets the pre-tokenizer that `tokenizer.ggml.pre` names, which transformers knows for few names."""
    said = gguf.texts(file, "tokenizer.ggml.model", "tokenizer.ggml.pre")
    if said.get("tokenizer.ggml.model") != "gpt2":
        # The other kinds have no pre-tokenizer.
        return
    # A file from before the name was written; llama.cpp takes it so.
    name = said.get("tokenizer.ggml.pre") or "default"
    cut: Cut | None = CUTS.get(name)
    if cut is None:
        what = f"{file} cuts text as {name!r} (tokenizer.ggml.pre), which is not known here"
        raise ModelError(what, "use the model's folder, with its tokenizer.json")
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(one), "isolated") for one in cut.splits),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.model.ignore_merges = cut.whole
    if cut.bos and not gguf.has(file, "tokenizer.ggml.add_bos_token") and tokenizer.bos_token is not None:
        tokenizer.add_bos_token = True
