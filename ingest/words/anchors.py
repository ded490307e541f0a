"""Categories of words, and the tokens that are their anchors (Bag of Dims, section 3).

A category is a list of words, of the pack that ships or of a user's file. Its anchors in a model are the words
that are one token of that model's vocabulary.
"""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...catalog.errors import InvalidInput

DEFAULT = Path(__file__).with_name("categories.csv")
"""The pack: made from WordNet by `scripts/wordnet_categories.py`, its notice is `categories.LICENSE`."""
LEAST = 20
"""A category with fewer anchors is left out."""

_COLUMNS = ("category", "word")
_SHOWN = 8  # names in one note
_FORMAT = "give a CSV in UTF-8 with the header category,word and one word a row"


@dataclass(frozen=True)
class Category:
    """Words that belong together, each once, in the order of their file."""

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Anchors:
    """The tokens of a category: `token_ids` (n,) ascending and unique, `words[i]` is what gave `token_ids[i]`."""

    category: str
    token_ids: NDArray[np.int64]
    words: tuple[str, ...]


# ---- files --------------------------------------------------------------------------------------


def read_categories(path: Path) -> tuple[list[Category], list[str]]:
    """The categories of a CSV with the columns `category` and `word`, in order of appearance, and notes.

    Other columns are ignored, as are blanks around a cell, rows without a word, and a byte order mark. A word
    that a category names again is dropped, and a note says how many were.

    Raises InvalidInput for a path that is no readable file, and for a file that is not UTF-8, is no CSV, lacks
    the columns, holds no word, or has a category without a name or with a control character in it.
    """
    file = os.fsencode(path).decode("utf-8", "replace")
    text = _text(path, file)
    words: dict[str, dict[str, None]] = {}
    again: dict[str, dict[str, None]] = {}
    for line, name, word in _rows(text, file):
        if not word:
            continue
        if not name:
            raise InvalidInput(f"line {line} of {file} has a word but no category", "name the category")
        if name not in words and any(unicodedata.category(one) in ("Cc", "Zl", "Zp") for one in name):
            raise InvalidInput(
                f"line {line} of {file} has a control character in the category {name!r}", "take it out"
            )
        (again if word in words.setdefault(name, {}) else words).setdefault(name, {})[word] = None
    if not words:
        raise InvalidInput(f"{file} names no word", _FORMAT)
    notes = [
        f"{path.name}: {name} names {len(twice)} {'word' if len(twice) == 1 else 'words'} twice"
        for name, twice in list(again.items())[:_SHOWN]
    ]
    if len(again) > _SHOWN:
        notes.append(f"{path.name}: {len(again) - _SHOWN} more categories name a word twice")
    return [Category(name, tuple(each)) for name, each in words.items()], notes


@cache
def pack() -> tuple[Category, ...]:
    """The categories of the pack that ships, read once in a process."""
    return tuple(read_categories(DEFAULT)[0])


def _text(path: Path, file: str) -> str:
    if path.is_dir():
        raise InvalidInput(f"{file} is a folder", "name a CSV file of categories")
    # What is no regular file, such as a pipe, could be waited for without end.
    if not path.is_file():
        raise InvalidInput(f"there is no file {file}", "name a CSV file of categories")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read ({error.strerror or error})", "check it") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidInput(f"line {line} of {file} is not UTF-8", _FORMAT) from None
    if not text.strip():
        raise InvalidInput(f"{file} is empty", _FORMAT)
    return text


def _rows(text: str, file: str) -> Iterator[tuple[int, str, str]]:
    """Yields (line, category, word)."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[int] | None = None
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if columns is None:
                if not any(cells):
                    continue
                if any(cells.count(name) != 1 for name in _COLUMNS):
                    raise InvalidInput(
                        f"line {reader.line_num} of {file} is no header category,word", _FORMAT
                    )
                columns = [cells.index(name) for name in _COLUMNS]
            else:
                name, word = (cells[column] if column < len(cells) else "" for column in columns)
                yield reader.line_num, name, word
    except csv.Error as error:
        raise InvalidInput(f"line {reader.line_num} of {file} is no CSV ({error})", _FORMAT) from None


# ---- tokens -------------------------------------------------------------------------------------


class Vocabulary:
    """The rows of a vocabulary as words.

    Args:
        strings: the decoded text of each row, a leading space included, "" for a row without a token. The pieces
            of WordPiece that continue a word look like "##ing".

    Attributes:
        strings: as given. n: how many.
        words: (V,) which are whole words: two letters or more and nothing else, after a space where the
            vocabulary marks the start of a word so, as it does if more than a tenth of its tokens begin with one.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.strings = strings
        self.n = len(strings)
        tokens = sum(1 for each in strings if each)
        marked = 10 * sum(each.startswith(" ") for each in strings) > tokens
        self.words: NDArray[np.bool_] = np.fromiter(
            (_is_word(each, marked) for each in strings), np.bool_, self.n
        )
        self._ids: dict[str, int] = {}
        for token_id, string in enumerate(strings):
            if string:
                self._ids.setdefault(string, token_id)
        # A tokenizer that writes everything in lower case finds "France" as "france".
        self._lower = not any(each.strip().isalpha() and each != each.lower() for each in strings)

    def token_of(self, word: str) -> int | None:
        """The id of the one token that is " word", else of "word", else None; the lowest of several."""
        if self._lower:
            word = word.lower()
        if not word:
            return None
        return self._ids.get(f" {word}", self._ids.get(word))


def _is_word(string: str, marked: bool) -> bool:
    if marked:
        if not string.startswith(" "):
            return False
        string = string[1:]
    return len(string) >= 2 and string.isalpha()


def resolve(
    categories: Sequence[Category], vocabulary: Vocabulary, least: int = LEAST
) -> tuple[list[Anchors], list[str]]:
    """The anchors of each category that has `least` or more, and a note that names the others.

    Two words that are one token count once, as the first of them.
    """
    found, few = list[Anchors](), list[tuple[str, int]]()
    for category in categories:
        tokens: dict[int, str] = {}
        for word in category.words:
            token_id = vocabulary.token_of(word)
            if token_id is not None:
                tokens.setdefault(token_id, word)
        if len(tokens) < least:
            few.append((category.name, len(tokens)))
            continue
        ids = sorted(tokens)
        found.append(Anchors(category.name, np.array(ids, np.int64), tuple(tokens[i] for i in ids)))
    if not few:
        return found, []
    named = ", ".join(f"{name} ({n})" for name, n in few[:_SHOWN]) + (", ..." if len(few) > _SHOWN else "")
    have, they = ("1 category has", "it is") if len(few) == 1 else (f"{len(few)} categories have", "they are")
    return found, [
        f"{have} fewer than {least} words that are one token here: {named}; {they} left out",
    ]


def matched(own: NDArray[np.int64], words: NDArray[np.bool_], seed: int | None = None) -> NDArray[np.int64]:
    """For each of `own`, in their order, the nearest free token in id, the lower of equals: another plain word.

    Token ids stand for frequency ranks (see `features.prototypes.Ranks`). `words` (V,) says which tokens are plain
    words; where there are fewer of them than needed, any token will do. The `seed` of a discovered feature is none.
    """
    free = words.copy()
    free[own] = False
    if free.sum() < len(own):
        free[:] = True
        free[own] = False
    if seed is not None and free.sum() > len(own):
        free[seed] = False
    chosen: list[int] = []
    for token in own:
        candidates = np.flatnonzero(free)
        if not len(candidates):
            break
        place = int(np.abs(candidates - token).argmin())
        chosen.append(int(candidates[place]))
        free[candidates[place]] = False
    return np.array(chosen, np.int64)
