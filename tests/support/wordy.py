"""A tiny model whose vocabulary holds whole words of some categories, so that features can be made of them."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from signarium.ingest.words.anchors import DEFAULT

CATEGORIES = ("animal", "body", "color", "food", "metal", "person")
EACH = 40
ROWS = 1200
INGESTED: dict[str, Any] = {"sites": "resid_post.1,3;k.1", "context": 64, "device": "cpu", "seeds": 30}
"""The options of `catalogue`: places of two widths, and the last block."""


@cache
def words(categories: tuple[str, ...] = CATEGORIES, each: int = EACH) -> dict[str, list[str]]:
    """The first words of some categories of the pack."""
    found: dict[str, list[str]] = {}
    with DEFAULT.open(encoding="utf-8", newline="") as handle:
        for row in csv.DictReader(handle):
            found.setdefault(row["category"], []).append(row["word"])
    names = [one for one in categories if one in found]
    names += [one for one in found if one not in names][: len(categories) - len(names)]
    return {name: found[name][:each] for name in names}


def tokenizer(vocabulary: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which each word of `vocabulary` (else of `words`), behind a space, is one token."""
    chosen = vocabulary or [word for some in words().values() for word in some]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ROWS - 10,
        special_tokens=["<bos>", "<eos>", "<pad>", "<unk>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([f" {word}" for word in chosen] * 9, trainer)
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def folder(home: Path, seed: int = 0) -> Path:
    """A Llama of width 48 with that tokenizer, saved at `home/wordy-SEED`."""
    path = tiny.folder(home, "llama", seed, name=f"wordy-{seed}", vocab_size=ROWS)
    tokenizer().save_pretrained(path)
    return path


def text() -> str:
    """Sentences of those words."""
    lists = list(words().values())
    lines = [
        " ".join(["The", *(one[i % len(one)] for one in lists), "and", "the", "rest."]) for i in range(EACH)
    ]
    return "\n".join(lines) + "\n"


def catalogue(home: Path) -> None:
    """Fills `home` with the model, `a.txt`, and `c.duckdb` with types, states and features. One for a run: see `once`."""
    import signarium

    (home / "a.txt").write_text(text(), encoding="utf-8")
    signarium.ingest(
        home / "c.duckdb",
        folder(home),
        text=[home / "a.txt"],
        stages=["types", "states", "features"],
        **INGESTED,
    )


def copy(path: Path, folder: Path) -> Path:
    """A copy of a catalogue with its indexes, to be changed."""
    made = folder / path.name
    shutil.copy(path, made)
    if (indexes := Path(f"{path}.indexes")).exists():
        shutil.copytree(indexes, f"{made}.indexes")
    return made
