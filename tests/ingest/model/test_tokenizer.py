from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from tokenizers import Regex, Tokenizer, normalizers, processors
from tokenizers import pre_tokenizers as pre

from signarium.catalog.errors import ModelError
from signarium.ingest.model import gguf
from signarium.ingest.model.pretokens import CUTS
from signarium.ingest.model.source import find_source
from signarium.ingest.model.tokenizer import load_tokenizer
from signarium.ingest.text.windows import token_ids

TEXT = "The King's 12345 ships,  and\n\n return (x.y)\n   2 1 the naïve 日本 sea"
BYTES = pre.ByteLevel(add_prefix_space=False)
PIECES = r"'s|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def folder(tmp_path: Path, backend: Tokenizer, **config: Any) -> Path:
    """A folder with that tokenizer, and a `tokenizer_config.json` that names another class."""
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    names = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<bos>", "eos_token": "<eos>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names | config))
    return tmp_path


def loaded(path: Path) -> Any:
    return load_tokenizer(find_source(str(path)), path)


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        pre.Sequence(
            [pre.Split(Regex(PIECES), "isolated"), pre.ByteLevel(add_prefix_space=False, use_regex=False)]
        ),
        pre.Sequence([pre.Digits(individual_digits=True), BYTES]),
        pre.ByteLevel(add_prefix_space=True),
    ],
)
@pytest.mark.parametrize("normalizer", [None, normalizers.Lowercase()])
def test_a_text_is_cut_as_tokenizer_json_says(tmp_path: Path, pre_tokenizer: Any, normalizer: Any) -> None:
    backend = tiny.tokenizer().backend_tokenizer
    backend.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        backend.normalizer = normalizer
    tokenizer = loaded(folder(tmp_path, backend))
    alone = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert token_ids(tokenizer, TEXT) == alone.encode(TEXT, add_special_tokens=False).ids
    assert tokenizer.backend_tokenizer.encode(TEXT).ids == alone.encode(TEXT).ids
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)


def test_special_tokens_that_the_file_adds_or_leaves_to_the_config(tmp_path: Path) -> None:
    backend = tiny.tokenizer().backend_tokenizer
    tokenizer = loaded(folder(tmp_path, backend, add_bos_token=True))
    assert tokenizer.backend_tokenizer.encode("a").ids[0] == 0
    backend.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    ids = loaded(folder(tmp_path, backend, add_bos_token=True)).backend_tokenizer.encode("a").ids
    assert ids[0] != 0 and ids[-1] == 1


def test_a_regular_expression_that_backtracks_without_end(tmp_path: Path, capfd: Any) -> None:
    backend = tiny.tokenizer().backend_tokenizer
    backend.pre_tokenizer = pre.Sequence([pre.Split(Regex("(a+)+b"), "isolated"), BYTES])
    path = folder(tmp_path, backend)
    capfd.readouterr()
    with pytest.raises(ModelError, match=f"the tokenizer breaks on the probe of {path}"):
        loaded(path)
    assert capfd.readouterr() == ("", "")


# ---- GGUF ---------------------------------------------------------------------------------------

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
AS_PUBLISHED = {
    "smollm": pre.Sequence([pre.Digits(individual_digits=True), BYTES]),
    "gpt-2": BYTES,
    "starcoder": pre.Sequence([pre.Digits(individual_digits=True), BYTES]),
    "llama-bpe": pre.Split(
        Regex(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
            r"|\s+(?!\S)|\s+"
        ),
        "isolated",
    ),
    "qwen2": pre.Split(
        Regex(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        "isolated",
    ),
}
"""The pre-tokenizers of the models that the names come from, as their tokenizer.json has them."""


@pytest.mark.parametrize("name", AS_PUBLISHED)
def test_the_cuts_of_llama_cpp_are_those_of_the_original_tokenizers(name: str) -> None:
    splits = pre.Sequence([pre.Split(Regex(one), "isolated") for one in CUTS[name].splits])
    byte_level = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    ours = pre.Sequence([splits, byte_level]).pre_tokenize_str(TEXT)
    original = AS_PUBLISHED[name]
    if isinstance(original, pre.Split):
        original = pre.Sequence([original, byte_level])
    assert ours == original.pre_tokenize_str(TEXT)


def test_every_cut_is_a_regular_expression() -> None:
    for name, cut in CUTS.items():
        pieces = pre.Sequence([pre.Split(Regex(one), "isolated") for one in cut.splits]).pre_tokenize_str(
            TEXT
        )
        assert "".join(piece for piece, _ in pieces) == TEXT, name


@pytest.mark.parametrize("name", ["smollm", "llama-bpe", "deepseek-v3"])
def test_a_gguf_file_is_cut_by_the_name_of_its_pre_tokenizer(tmp_path: Path, name: str) -> None:
    file = tiny.gguf(tmp_path / "tiny.gguf", pre=name)
    source = find_source(str(file))
    with gguf.alone(file) as inside:
        tokenizer = load_tokenizer(source, inside)
    alone = tiny.tokenizer().backend_tokenizer
    alone.pre_tokenizer = pre.Sequence(
        [
            *(pre.Split(Regex(one), "isolated") for one in CUTS[name].splits),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alone.model.ignore_merges = CUTS[name].whole
    assert token_ids(tokenizer, TEXT) == alone.encode(TEXT, add_special_tokens=False).ids
    added = tokenizer.backend_tokenizer.encode("a").ids[:-1]
    assert added == ([0] if name == "llama-bpe" else [])


def test_a_pre_tokenizer_that_is_not_known_is_named(tmp_path: Path) -> None:
    file = tiny.gguf(tmp_path / "tiny.gguf", pre="someone-elses")
    with gguf.alone(file) as inside, pytest.raises(ModelError, match="cuts text as 'someone-elses'"):
        load_tokenizer(find_source(str(file)), inside)
