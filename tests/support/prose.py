"""Texts that are hard to cut, and tokenizers of different nature to cut them with."""

from __future__ import annotations

import pydoc_data.topics
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from signarium.ingest.text.windows import TextFile, Window, find_texts

PROSE = "\n".join(pydoc_data.topics.topics.values())
HARD = "日本語の文章👩‍👩‍👧 é e\u0301\u0323 \u200d ñandú Ωμέγα\r\n\t x\u00a0y \u0130 1234567 [SEP] <s> "


class Wrapped:
    """What the module uses of a transformers fast tokenizer."""

    def __init__(self, backend: Tokenizer) -> None:
        self.backend_tokenizer = backend


@cache
def tokenizer(kind: str) -> Any:
    """Small tokenizers of different nature, trained here, and the two real ones."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    corpus = [PROSE[:150_000], HARD * 20]
    if kind == "gpt2":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer: Any = trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, show_progress=False)
    elif kind == "llama":  # no pre-tokenizer: the whole text is one word, with a space put before it
        made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        trainer = trainers.BpeTrainer(
            vocab_size=1500,
            special_tokens=["<unk>", "<s>", *(f"<0x{i:02X}>" for i in range(256))],
            show_progress=False,
        )
        made.train_from_iterator(corpus, trainer)
        made.pre_tokenizer = None
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Metaspace()
        return Wrapped(made)
    elif kind == "bert":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
        made.normalizer = normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(
            vocab_size=1500, special_tokens=["[UNK]", "[SEP]"], show_progress=False
        )
    elif kind == "smollm2":
        return tiny.smollm2().tokenizer
    else:
        return AutoTokenizer.from_pretrained(tiny.need(tiny.MODELS / "all-minilm-l6-v2"))
    made.train_from_iterator(corpus, trainer)
    return Wrapped(made)


@cache
def plain(kind: str) -> Tokenizer:
    backend = Tokenizer.from_str(tokenizer(kind).backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return backend


def whole(kind: str, text: str) -> Any:
    """One call over all of it, with nothing cut off or filled up."""
    return plain(kind).encode(text, add_special_tokens=False)


def written(folder: Path, text: str | bytes, name: str = "a.txt") -> TextFile:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    (file,) = find_texts([path])
    return file


def joined(found: list[Window]) -> list[int]:
    return [int(i) for window in found for i in window.ids]


KINDS = ["gpt2", "llama", "bert"]
REAL = [pytest.param(kind, marks=pytest.mark.real) for kind in ("smollm2", "minilm")]

fragments = st.one_of(
    st.sampled_from([PROSE[k : k + 600] for k in range(0, 60_000, 2_500)]),
    st.tuples(
        st.sampled_from(
            ["a", "ab", " ", "\n", "\r\n", "\t ", "日本", "👩‍👩‍👧", "e\u0301", "\u0301", "0", "12 ", "-",
             "a\x00", "x" * 99 + " ", "[SEP]", "<s>", HARD, "The quick brown fox ", "=== ", "ﬁ\u00ad"]
        ),
        st.integers(1, 900),
    ).map(lambda pair: (pair[0] * pair[1])[:1800]),
    st.text(max_size=300),
)  # fmt: skip
