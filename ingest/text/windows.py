"""Text as the model will see it: tokenized, and cut into windows.

A source (a text file, a line of a `.jsonl`, a row of a `.parquet`) is tokenized as one and then cut; `sources`
finds them, `records` reads them, `splice` tokenizes the long ones in blocks.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...catalog.errors import InvalidInput
from . import splice
from .panics import unbroken
from .records import Render, read_characters, read_records
from .sources import ENDINGS, TextFile, find_texts

__all__ = ["ENDINGS", "Counts", "TextFile", "Window", "count", "find_texts", "take", "windows"]

_GROUP = 1024  # records handed to the tokenizer's threads together, at most
_REPORT = 256  # windows between two calls of `progress`


@dataclass(frozen=True, eq=False)
class Window:
    """One document: at most `context` tokens of one source.

    `source` is the file's name, `NAME:LINE` in a `.jsonl` (lines count from 1, as in editors) or `NAME:ROW`
    in a `.parquet` (rows count from 0, as DuckDB's `file_row_number`). `chunk` counts a source's windows from
    0. `ids` is int32, shape (n_tokens,), with the special tokens. `text` is the slice of the source from the
    start of the window's first token to the start of the next one's: a source's texts joined are the source.
    """

    source: str
    chunk: int
    ids: NDArray[np.int32]
    text: str


@dataclass(frozen=True)
class Counts:
    """`n_tokens` includes special tokens; `text_bytes` is the UTF-8 length of all windows' texts."""

    n_windows: int
    n_tokens: int
    text_bytes: int


# ---- tokenizing ---------------------------------------------------------------------------------


_copies: weakref.WeakKeyDictionary[Any, tuple[int, Any]] = weakref.WeakKeyDictionary()


def _backend(tokenizer: Any) -> Any | None:
    """A copy of a fast tokenizer's backend that neither truncates nor pads, or None for a slow tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "encode_batch"):
        return None
    # Copying a large vocabulary takes half a second, which would be paid for every file.
    size = backend.get_vocab_size(with_added_tokens=True)
    known = _copies.get(tokenizer) if tokenizer is not backend else None
    if known and known[0] == size:
        return known[1]
    try:
        copy = type(backend).from_str(backend.to_str())
    except Exception as error:  # the library raises bare exceptions
        raise InvalidInput(
            f"the tokenizer cannot be copied ({error})", "use a model with a tokenizer.json"
        ) from None
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = bool(getattr(tokenizer, "split_special_tokens", False))
    if tokenizer is not backend:
        _copies[tokenizer] = (size, copy)
    return copy


def _chats(tokenizer: Any, prefix: Sequence[int]) -> Render | None:
    """How the model's chat template writes messages; None if it has no template.

    Many templates begin with BOS. Where every window gets it as its `prefix`, it is taken from the template's text.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    bos = tokenizer.bos_token if tokenizer.bos_token_id in prefix else None

    def render(messages: list[dict[str, Any]]) -> str:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
        return text.removeprefix(bos) if bos else text

    return render


def _sources(
    file: TextFile, encode: Callable[[list[str]], list[Any]], render: Render | None
) -> Iterator[tuple[str, Iterator[splice.Part]]]:
    """Every source of a file with its parts, which must be used up before the next one is asked for."""
    records = read_records(file, render)
    if records is None:
        yield file.name, splice.parts(read_characters(file), encode, file.name)
        return
    group: list[tuple[str, str]] = []
    held = 0

    def flush() -> Iterator[tuple[str, Iterator[splice.Part]]]:
        for (source, text), encoding in zip(group, encode([text for _, text in group]), strict=True):
            yield source, iter([splice.Block(0, text, encoding).part(0, 0, len(encoding.ids), len(text))])
        group.clear()

    for source, text in records:
        if len(text) > splice.BLOCK or len(group) == _GROUP or held > splice.AT_ONCE * splice.BLOCK:
            yield from flush()
            held = 0
        if len(text) > splice.BLOCK:
            yield source, splice.parts(iter([text]), encode, source)
        else:
            group.append((source, text))
            held += len(text)
    yield from flush()


# ---- windows ------------------------------------------------------------------------------------


def windows(
    file: TextFile,
    tokenizer: Any,
    *,
    context: int,
    prefix: Sequence[int] = (),
    suffix: Sequence[int] = (),
    start_window: int = 0,
) -> Iterator[Window]:
    """The documents of a file, in order, without overlap, each of at most `context` tokens.

    `prefix` and `suffix` (BOS; CLS and SEP) stand in every window, within `context`. A source without a token
    gives no window. `start_window` leaves out the file's first windows, which still have to be tokenized. A
    slow tokenizer knows no offsets: its windows' texts are their decoded ids, and it holds a source whole.

    Raises InvalidInput at once when `context` has no room for a token or the tokenizer cannot be copied.
    Raises TextError while reading, for a file that is not UTF-8, holds NUL, has a record without text, or
    changed since `find_texts` (a change that leaves the size alone shows only when the end is reached).
    """
    room = _room(context, prefix, suffix)
    if start_window < 0:
        raise InvalidInput(f"a start at window {start_window}", "windows count from 0")
    backend = _backend(tokenizer)
    render = _chats(tokenizer, prefix)
    if backend is None:
        cuts = _slow(file, tokenizer, room, render)
    else:

        def encode(texts: list[str]) -> list[Any]:
            with unbroken(file.name):
                return list(backend.encode_batch(texts, add_special_tokens=False))

        cuts = _cuts(_sources(file, encode, render), room)
    return _numbered(cuts, prefix, suffix, start_window)


def _room(context: int, prefix: Sequence[int], suffix: Sequence[int]) -> int:
    special = len(prefix) + len(suffix)
    if context <= special:
        raise InvalidInput(
            f"a context of {context} has no room for a token beside {special} special ones",
            f"use --context {special + 1} or more",
        )
    return context - special


_Cut = tuple[str, int, Sequence[int], Callable[[], str]]  # source, chunk, ids, how to make the text


def _numbered(
    cuts: Iterator[_Cut], prefix: Sequence[int], suffix: Sequence[int], start_window: int
) -> Iterator[Window]:
    for number, (source, chunk, ids, text) in enumerate(cuts):
        if number >= start_window:
            yield Window(source, chunk, np.array([*prefix, *ids, *suffix], dtype=np.int32), text())


def _cuts(sources: Iterator[tuple[str, Iterator[splice.Part]]], room: int) -> Iterator[_Cut]:
    for source, parts in sources:
        chunk = 0
        text, ids = "", list[int]()
        for part in parts:
            kept, before = len(ids), len(text)
            text += part.text
            ids += part.ids
            # A window ends where the next one's first token starts, so the last one waits. What was kept is
            # no more than one window, so the others start in this part.
            firsts = range(0, len(ids), room)
            if len(firsts) < 2:
                continue
            # Two tokens of one character share its start, and no text may run backwards.
            places = [0, *(before + part.start(i - kept) for i in firsts[1:])]
            places = list(accumulate(places, max))
            for (i, k), (low, high) in zip(pairwise(firsts), pairwise(places), strict=True):
                yield source, chunk, ids[i:k], partial(text.__getitem__, slice(low, high))
                chunk += 1
            text, ids = text[places[-1] :], ids[firsts[-1] :]
        if ids:
            yield source, chunk, ids, partial(str, text)


def _slow(file: TextFile, tokenizer: Any, room: int, render: Render | None) -> Iterator[_Cut]:
    def decoded(ids: list[int]) -> Callable[[], str]:
        return lambda: str(
            tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )

    records = read_records(file, render)
    for source, text in iter([(file.name, "".join(read_characters(file)))]) if records is None else records:
        ids = list(
            tokenizer(
                text, add_special_tokens=False, truncation=False, padding=False, verbose=False
            ).input_ids
        )
        for chunk, i in enumerate(range(0, len(ids), room)):
            yield source, chunk, ids[i : i + room], decoded(ids[i : i + room])


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of one short text as `windows` cuts it: whole, without special tokens."""
    backend = _backend(tokenizer)
    if backend is None:
        return list(tokenizer(text, add_special_tokens=False, truncation=False, padding=False).input_ids)
    return list(backend.encode(text, add_special_tokens=False).ids)


def take(windows: Iterator[Window], max_tokens: int | None) -> Iterator[Window]:
    """Windows up to and with the one that reaches `max_tokens` tokens, special ones counted; None takes all.

    Raises InvalidInput when `max_tokens` is below 1.
    """
    if max_tokens is not None and max_tokens < 1:
        raise InvalidInput(f"a limit of {max_tokens} tokens leaves no text", "use --max-tokens 1 or more")
    return windows if max_tokens is None else _taken(windows, max_tokens)


def _taken(windows: Iterator[Window], max_tokens: int) -> Iterator[Window]:
    tokens = 0
    for window in windows:
        yield window
        tokens += len(window.ids)
        if tokens >= max_tokens:
            return


def count(
    file: TextFile,
    tokenizer: Any,
    context: int,
    prefix: Sequence[int] = (),
    suffix: Sequence[int] = (),
    limit_tokens: int | None = None,
    progress: Callable[[Counts], None] | None = None,
) -> Counts:
    """What `take(windows(...), limit_tokens)` holds, in one pass that keeps nothing.

    `progress` is called with the counts so far every 256 windows. Raises what `windows` and `take` raise.
    """
    n = n_tokens = text_bytes = 0
    every = windows(file, tokenizer, context=context, prefix=prefix, suffix=suffix)
    for window in take(every, limit_tokens):
        n += 1
        n_tokens += len(window.ids)
        text_bytes += len(window.text) if window.text.isascii() else len(window.text.encode("utf-8"))
        if progress is not None and n % _REPORT == 0:
            progress(Counts(n, n_tokens, text_bytes))
    return Counts(n, n_tokens, text_bytes)
