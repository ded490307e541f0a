"""Text as the model will see it: files found, read as a stream, tokenized, and cut into windows.

A source (a text file, a line of a `.jsonl`, a row of a `.parquet`) is tokenized as one and then cut. Long
sources are tokenized in overlapping blocks that are joined only where both blocks agree token by token, so
that the ids are those of one call over the whole, while memory stays that of a few blocks.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import stat
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..catalog.errors import InvalidInput, TextError

ENDINGS = (".txt", ".text", ".md", ".rst", ".jsonl", ".parquet")
"""What is taken from a folder. A file that is named directly is taken whatever its ending."""

_READ = 1 << 18
_BLOCK = 1 << 16  # characters that each block adds
_OVERLAP = 1 << 11  # characters that it shares with the block before
_AT_ONCE = 8  # blocks handed to the tokenizer's threads together
_GROUP = 1024  # records handed to them together, at most
_REPORT = 256  # windows between two calls of `progress`


@dataclass(frozen=True)
class TextFile:
    """A file to read. `name` is the path as the user gave it (for a folder's files: folder/relative path)."""

    path: Path
    name: str
    sha256: str
    size: int


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


# ---- finding ------------------------------------------------------------------------------------


def find_texts(paths: Sequence[str | Path]) -> list[TextFile]:
    """The files behind `paths`, in the order given, a folder's sorted by relative path, hidden ones left out.

    Of several files with the same content the first is kept. A folder is searched for `ENDINGS`, links to
    folders inside it are not followed.

    Raises InvalidInput when `paths` is empty, TextError for a path that is missing, cannot be read, is no
    regular file or is empty, and for a folder without text.
    """
    if not paths:
        raise InvalidInput("no text was named", "pass --text PATH, a file or a folder")
    found: dict[str, TextFile] = {}
    for given in paths:
        name, path = _shown(given), Path(given)
        if stat.S_ISDIR(_stat(path, name).st_mode):
            files = [
                _hashed(path / relative, f"{name.rstrip('/')}/{_shown(relative)}")
                for relative in _inside(path, name)
            ]
            if not files:
                raise TextError(f"{name} holds no text", f"its files should end in {', '.join(ENDINGS)}")
            if not any(file.size for file in files):
                raise TextError(f"{name} holds only empty files", "pass a folder with text in it")
        else:
            files = [_hashed(path, name)]
            if not files[0].size:
                raise TextError(f"{name} is empty", "pass a file with text in it")
        for file in files:
            if file.size:
                found.setdefault(file.sha256, file)
    return list(found.values())


def _shown(path: str | Path) -> str:
    # A file name need not be UTF-8, but what goes into the catalogue must be.
    return os.fsencode(path).decode("utf-8", "replace")


def _inside(folder: Path, name: str) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise TextError(
            f"{name} cannot be read ({error.strerror}: {error.filename})", "check its permissions"
        )

    relatives: list[Path] = []
    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [each for each in folders if not each.startswith(".")]
        relatives += [
            Path(place, each).relative_to(folder)
            for each in files
            if not each.startswith(".") and Path(each).suffix.lower() in ENDINGS
        ]
    return sorted(relatives, key=Path.as_posix)


def _stat(path: Path, name: str) -> os.stat_result:
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise TextError(f"there is no file or folder {name}", "check the path given to --text") from None
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from None


def _unreadable(name: str, error: Exception) -> TextError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else error
    return TextError(f"{name} cannot be read ({why})", "check its permissions and its disk")


def _changed(name: str) -> TextError:
    return TextError(f"{name} changed while it was read", "run the command again when nothing writes to it")


def _open(path: Path, name: str) -> BinaryIO:
    # Opening a pipe would block for ever, so what it is comes before opening it.
    if not stat.S_ISREG(_stat(path, name).st_mode):
        raise TextError(f"{name} is not a regular file", "pass a text file or a folder of them")
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise _changed(name) from None
    except OSError as error:
        raise _unreadable(name, error) from None


def _hashed(path: Path, name: str) -> TextFile:
    digest, size = hashlib.sha256(), 0
    with _open(path, name) as stream:
        for piece in _pieces(stream, name):
            digest.update(piece)
            size += len(piece)
    return TextFile(path, name, digest.hexdigest(), size)


def _pieces(stream: BinaryIO, name: str) -> Iterator[bytes]:
    while True:
        try:
            piece = stream.read(_READ)
        except OSError as error:
            raise _unreadable(name, error) from None
        if not piece:
            return
        yield piece


# ---- reading ------------------------------------------------------------------------------------


class _Verified:
    """The bytes of a file as `find_texts` saw it: raises TextError at the end when they are others."""

    def __init__(self, file: TextFile, stream: BinaryIO) -> None:
        self.file, self.stream, self.digest = file, stream, hashlib.sha256()
        if os.fstat(stream.fileno()).st_size != file.size:
            raise _changed(file.name)

    def pieces(self) -> Iterator[bytes]:
        for piece in _pieces(self.stream, self.file.name):
            self.digest.update(piece)
            yield piece
        self.close()

    def lines(self) -> Iterator[bytes]:
        try:
            for line in self.stream:
                self.digest.update(line)
                yield line
        except OSError as error:
            raise _unreadable(self.file.name, error) from None
        self.close()

    def close(self) -> None:
        if self.digest.hexdigest() != self.file.sha256:
            raise _changed(self.file.name)


def _not_utf8(name: str, offset: int) -> TextError:
    return TextError(f"{name} is not UTF-8 text (byte {offset})", "convert it to UTF-8, or leave it out")


def _characters(file: TextFile) -> Iterator[str]:
    """The characters of a plain text file, piece by piece, without a byte order mark at its start."""
    with _open(file.path, file.name) as stream:
        decoder, fed, first = codecs.getincrementaldecoder("utf-8")("strict"), 0, True
        for piece in _Verified(file, stream).pieces():
            text = _decoded(decoder, piece, fed, file.name)
            if (nul := piece.find(b"\0")) >= 0:
                raise TextError(f"{file.name} is a binary file (NUL at byte {fed + nul})", "pass UTF-8 text")
            fed += len(piece)
            if text and first:
                text, first = text.removeprefix("\ufeff"), False
            yield text
        _decoded(decoder, b"", fed, file.name, final=True)


def _decoded(
    decoder: codecs.IncrementalDecoder, piece: bytes, fed: int, name: str, final: bool = False
) -> str:
    held = decoder.getstate()[0]
    try:
        return decoder.decode(piece, final)
    except UnicodeDecodeError as error:
        raise _not_utf8(name, fed - len(held) + error.start) from None


def _lines(file: TextFile) -> Iterator[tuple[str, str]]:
    """(source, text) of every record of a `.jsonl`."""
    fed = 0
    with _open(file.path, file.name) as stream:
        for number, line in enumerate(_Verified(file, stream).lines(), start=1):
            at, start, fed = f"{file.name}:{number}", fed, fed + len(line)
            try:
                shown = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(at, start + error.start) from None
            if number == 1:
                shown = shown.removeprefix("\ufeff")
            if not shown.strip():
                continue
            try:
                record = json.loads(shown)
            except (ValueError, RecursionError) as error:
                why = error.msg if isinstance(error, json.JSONDecodeError) else error
                raise TextError(f"{at} is not JSON ({why})", "give one JSON object a line") from None
            if not isinstance(record, dict):
                raise TextError(f"{at} is not a JSON object", 'give one {"text": "..."} a line')
            if "text" not in record:
                raise TextError(f"{at} has no field 'text'", 'give one {"text": "..."} a line')
            text = record["text"]
            if not isinstance(text, str):
                raise TextError(
                    f"the field 'text' of {at} is not a string", 'give one {"text": "..."} a line'
                )
            if not text.isascii():
                try:
                    text.encode("utf-8")
                except UnicodeEncodeError:
                    raise TextError(f"{at} escapes half of a surrogate pair", "repair that record") from None
            yield at, text


def _rows(file: TextFile) -> Iterator[tuple[str, str]]:
    """(source, text) of every row of a `.parquet` whose `text` is not null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _open(file.path, file.name) as stream:
        before = os.fstat(stream.fileno())
        for _ in _Verified(file, stream).pieces():
            pass  # Parquet is read by seeking, so its bytes are checked before and its times after.
        row = 0
        try:
            stream.seek(0)
            parquet = pq.ParquetFile(stream)
            schema = parquet.schema_arrow
            if schema.names.count("text") != 1:
                there = ", ".join(schema.names) or "none"
                raise TextError(
                    f"{file.name} has no column 'text' (its columns: {there})", "rename one to text"
                )
            kind = schema.field("text").type
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            if not (
                pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
            ):
                raise TextError(f"the column 'text' of {file.name} holds {kind}", "give it strings")
            for batch in parquet.iter_batches(batch_size=_GROUP, columns=["text"]):
                for text in batch.column(0).to_pylist():
                    if text is not None:
                        yield f"{file.name}:{row}", text
                    row += 1
        except UnicodeDecodeError:
            raise TextError(
                f"{file.name}:{row} and after: the text is not UTF-8", "convert it to UTF-8"
            ) from None
        except (pa.ArrowException, OSError) as error:
            raise TextError(f"{file.name} is no readable Parquet file ({error})", "write it anew") from None
        after = os.fstat(stream.fileno())
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise _changed(file.name)


# ---- tokenizing ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """Consecutive tokens of a source and the text they come from."""

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]
    first: int
    shift: int

    def start(self, index: int) -> int:
        """Where token `index` starts in `text`. Few are asked for, so no list of them is made."""
        return self.offsets[self.first + index][0] + self.shift


class _Block:
    """A tokenized stretch of a source, from character `start` on."""

    def __init__(self, start: int, text: str, encoding: Any) -> None:
        self.start, self.text, self.encoding = start, text, encoding
        self.ids: list[int] = encoding.ids
        self.offsets: list[tuple[int, int]] = encoding.offsets

    @property
    def end(self) -> int:
        return self.start + len(self.text)

    def token(self, index: int) -> tuple[int, int, int]:
        begin, end = self.offsets[index]
        return self.start + begin, self.start + end, self.ids[index]

    def clean(self, index: int) -> bool:
        """Whether a token starts here where no other ends later: not inside a character of several tokens."""
        return self.offsets[index][0] >= self.offsets[index - 1][1]

    def word(self, index: int) -> bool:
        """Whether a word of the pre-tokenizer starts here, at white space."""
        encoding, at = self.encoding, self.offsets[index][0]
        return encoding.token_to_word(index) != encoding.token_to_word(index - 1) and (
            self.text[at : at + 1].isspace() or self.text[at - 1 : at].isspace()
        )

    def part(self, first: int, cut: int, last: int, end: int) -> _Part:
        """Tokens `first` to `last`, over the characters from `cut` to `end` of the source."""
        text = self.text[cut - self.start : end - self.start]
        return _Part(text, self.ids[first:last], self.offsets, first, self.start - cut)


def _splice(left: _Block, first: int, right: _Block) -> tuple[int, int] | None:
    """Where `right` can take over from `left`: an index into the tokens of each, or None.

    A tokenizer looks at both sides of a place; `left` lacks what is right of its end and `right` what is left
    of its start. So both must agree for a while on both sides: 16 tokens where a word starts at white space,
    128 elsewhere, more than the 100 characters at which a WordPiece word turns into one unknown token.
    One thing can differ from a single call: a Unigram model settles ties between equally likely readings of a
    repeated character by the rounding of its running sum, which starts anew with a block.
    """
    low = (
        next(
            (i for i in range(len(left.ids) - 1, first - 1, -1) if left.token(i)[0] < right.start), first - 1
        )
        + 1
    )
    places: dict[tuple[int, int, int], int] = {}
    for j in range(len(right.ids)):
        token = right.token(j)
        if token[0] >= left.end:
            break
        places.setdefault(token, j)
    while low < len(left.ids):
        j = places.get(left.token(low), -1)
        if j < 0:
            low += 1
            continue
        length = 1
        while (
            low + length < len(left.ids)
            and j + length < len(right.ids)
            and left.token(low + length) == right.token(j + length)
        ):
            length += 1
        middle = length // 2
        for k in sorted(range(16, length - 15), key=lambda k: abs(k - middle)):
            if not left.clean(low + k):
                continue
            if 128 <= k <= length - 128 or (left.word(low + k) and right.word(j + k)):
                return low + k, j + k
        low += length
    return None


def _parts(pieces: Iterator[str], encode: Callable[[list[str]], list[Any]], name: str) -> Iterator[_Part]:
    """Tokenize one source as if in one call. The parts' texts joined are the source."""
    base, held = 0, ""  # the characters from `base` on that may still be needed
    last: _Block | None = None
    first = cut = 0  # the first token and character of `last` that no earlier part holds
    over = False

    def fill(end: int) -> int:
        """Read up to character `end` of the source; where it stopped."""
        nonlocal held, over
        parts, have = [held], base + len(held)
        while have < end and not over:
            piece = next(pieces, None)
            if piece is None:
                over = True
            else:
                parts.append(piece)
                have += len(piece)
        held = "".join(parts)
        return min(end, have)

    def block(start: int, end: int) -> str:
        return held[start - base : end - base]

    def begin(end: int, overlap: int) -> int:
        """Where the block that follows character `end` starts: at white space, to be in step sooner."""
        start = end - overlap
        return next((i for i in range(start, start + overlap // 4) if held[i - base].isspace()), start)

    while True:
        at = last.end if last else 0
        ends = [at]
        for k in range(1, _AT_ONCE + 1):
            ends.append(fill(at + k * _BLOCK))
            if ends[-1] == ends[-2]:
                ends.pop()
                break
        if len(ends) == 1:
            break
        starts = [begin(end, _OVERLAP) if end else 0 for end in ends[:-1]]
        texts = [block(start, end) for start, end in zip(starts, ends[1:], strict=True)]
        for start, text, encoding in zip(starts, texts, encode(texts), strict=True):
            following = _Block(start, text, encoding)
            if last is None:
                last = following
                continue
            place = _splice(last, first, following)
            overlap = _OVERLAP
            while place is None and (overlap := overlap * 4) < len(last.text):
                start = begin(last.end, overlap)
                text = block(start, following.end)
                following = _Block(start, text, encode([text])[0])
                place = _splice(last, first, following)
            if place is not None:
                end = following.token(place[1])[0]
                yield last.part(first, cut, place[0], end)
                last, first, cut = following, place[1], end
                continue
            # No overlap will do: both become one. Doubling keeps a long stretch from costing its square.
            text = block(last.start, fill(last.end + max(_BLOCK, len(last.text))))
            whole = _Block(last.start, text, encode([text])[0])
            # Earlier parts are given away, so the tokens around their end must have stayed as they were.
            same = slice(max(0, first - 16), first + 16)
            if first and (whole.ids[same], whole.offsets[same]) != (last.ids[same], last.offsets[same]):
                raise TextError(f"{name} is too long to be tokenized in one piece", "split it at line ends")
            last = whole
            break
        assert last is not None
        held, base = held[last.start - base :], last.start
    if last is not None:
        yield last.part(first, cut, len(last.ids), last.end)


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


def _sources(
    file: TextFile, encode: Callable[[list[str]], list[Any]]
) -> Iterator[tuple[str, Iterator[_Part]]]:
    """Every source of a file with its parts, which must be used up before the next one is asked for."""
    records = _records(file)
    if records is None:
        yield file.name, _parts(_characters(file), encode, file.name)
        return
    group: list[tuple[str, str]] = []
    held = 0

    def flush() -> Iterator[tuple[str, Iterator[_Part]]]:
        for (source, text), encoding in zip(group, encode([text for _, text in group]), strict=True):
            yield source, iter([_Block(0, text, encoding).part(0, 0, len(encoding.ids), len(text))])
        group.clear()

    for source, text in records:
        if len(text) > _BLOCK or len(group) == _GROUP or held > _AT_ONCE * _BLOCK:
            yield from flush()
            held = 0
        if len(text) > _BLOCK:
            yield source, _parts(iter([text]), encode, source)
        else:
            group.append((source, text))
            held += len(text)
    yield from flush()


def _records(file: TextFile) -> Iterator[tuple[str, str]] | None:
    """The records of a file that has them, by its ending; None for plain text."""
    match file.path.suffix.lower():
        case ".jsonl":
            return _lines(file)
        case ".parquet":
            return _rows(file)
    return None


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
    if backend is None:
        cuts = _slow(file, tokenizer, room)
    else:

        def encode(texts: list[str]) -> list[Any]:
            return list(backend.encode_batch(texts, add_special_tokens=False))

        cuts = _cuts(_sources(file, encode), room)
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


def _cuts(sources: Iterator[tuple[str, Iterator[_Part]]], room: int) -> Iterator[_Cut]:
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


def _slow(file: TextFile, tokenizer: Any, room: int) -> Iterator[_Cut]:
    def decoded(ids: list[int]) -> Callable[[], str]:
        return lambda: str(
            tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )

    records = _records(file)
    for source, text in iter([(file.name, "".join(_characters(file)))]) if records is None else records:
        ids = list(
            tokenizer(
                text, add_special_tokens=False, truncation=False, padding=False, verbose=False
            ).input_ids
        )
        for chunk, i in enumerate(range(0, len(ids), room)):
            yield source, chunk, ids[i : i + room], decoded(ids[i : i + room])


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
