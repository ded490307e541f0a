"""What a file of text holds: prose as a stream of characters, or its records.

A record's text is its field or column `text`, or another that was named. Where there is none and the record has
`messages`, they are written as the model's own chat template writes them.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import hashlib
import io
import json
import os
import sys
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any, BinaryIO, cast

from ...catalog.errors import TextError, option
from .sources import COLUMN, LINES, TextFile, changed, open_file, pieces, unreadable

MESSAGES = "messages"
"""The field of a chat: a list of objects with `role` and `content`."""

Render = Callable[[list[dict[str, Any]]], str]
"""Writes the messages of a chat as the model reads them."""
Rows = Generator[tuple[int, dict[str, Any]], None, None]
"""Records with their numbers: of a line from 1, as in editors; of a row from 0."""

_ROWS = 1024  # rows of a table that are decoded together
_LINE = 1 << 28  # bytes of a record on one line
_WHOLE = 1 << 31  # bytes of a `.json`, which is parsed as one


class _Hashed(io.RawIOBase):
    """The bytes of a file as `find_texts` saw it: `check` raises TextError when they were others."""

    def __init__(self, file: TextFile, stream: BinaryIO) -> None:
        super().__init__()
        self._file, self._stream, self._digest = file, stream, hashlib.sha256()
        if os.fstat(stream.fileno()).st_size != file.size:
            raise changed(file.name)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            piece = self._stream.read(len(buffer))
        except OSError as error:
            raise unreadable(self._file.name, error) from None
        self._digest.update(piece)
        buffer[: len(piece)] = piece
        return len(piece)

    def check(self) -> None:
        for piece in pieces(self._stream, self._file.name):
            self._digest.update(piece)
        if self._digest.hexdigest() != self._file.sha256:
            raise changed(self._file.name)


@contextmanager
def _content(file: TextFile) -> Iterator[BinaryIO]:
    """The content of a file, uncompressed. What is read must be what was found."""
    with open_file(file.path, file.name) as stream:
        raw = _Hashed(file, stream)
        yield cast(BinaryIO, io.BufferedReader(_Unpacked(file, raw) if file.packing else raw, 1 << 18))
        raw.check()


class _Unpacked(io.RawIOBase):
    """A compressed file's content; whatever is wrong with the compression is a TextError."""

    def __init__(self, file: TextFile, raw: _Hashed) -> None:
        super().__init__()
        self._file = file
        self._inner: Any
        if file.packing == "gzip":
            self._inner = gzip.GzipFile(fileobj=io.BufferedReader(raw))
        elif file.packing == "bz2":
            self._inner = bz2.BZ2File(io.BufferedReader(raw))
        else:
            import pyarrow as pa

            self._inner = pa.CompressedInputStream(pa.PythonFile(io.BufferedReader(raw), "r"), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            piece = self._inner.read(len(buffer))
        except (EOFError, OSError, zlib.error, ValueError) as error:
            why = " ".join(str(error).split())
            raise TextError(
                f"{self._file.name} is no whole {self._file.packing} file ({why})", "compress it anew"
            ) from None
        buffer[: len(piece)] = piece
        return len(piece)


# ---- prose --------------------------------------------------------------------------------------


def read_characters(file: TextFile) -> Iterator[str]:
    """The characters of a plain text file, piece by piece, without a byte order mark at its start."""
    with _content(file) as stream:
        decoder, fed, first = codecs.getincrementaldecoder("utf-8")("strict"), 0, True
        for piece in pieces(stream, file.name):
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


def _not_utf8(name: str, offset: int) -> TextError:
    return TextError(f"{name} is not UTF-8 text (byte {offset})", "convert it to UTF-8, or leave it out")


# ---- records ------------------------------------------------------------------------------------


def read_records(file: TextFile, render: Render | None = None) -> Iterator[tuple[str, str]] | None:
    """(source, text) of the records of a file that has them, by its ending; None for plain text.

    Records whose text is null are left out and counted in `file.nulls`. `render` writes chats; without it they are
    refused.
    """
    readers = {".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet, ".arrow": _arrow}
    reader = _lines if file.ending in LINES else readers.get(file.ending)
    return None if reader is None else _texts(file, reader(file), render)


def _texts(file: TextFile, records: Rows, render: Render | None) -> Iterator[tuple[str, str]]:
    with closing(records):
        for number, record in records:
            at, name = f"{file.name}:{number}", file.column
            if name not in record and name == COLUMN and MESSAGES in record:
                name = MESSAGES
            if name not in record:
                raise _no_column(at, file.column, list(record))
            text = record[name]
            if text is None:
                file.nulls.see(number)
                continue
            if isinstance(text, list) and name != COLUMN:
                text = _chat(text, name, at, render)
            if not isinstance(text, str):
                raise TextError(
                    f"{name!r} of {at} is {_kind(text)}, not a string",
                    f"give it strings, or pass another {option('column', 'NAME')}",
                )
            if not text.isascii():
                try:
                    text.encode("utf-8")
                except UnicodeEncodeError:
                    raise TextError(f"{at} escapes half of a surrogate pair", "repair that record") from None
            yield at, text


def _no_column(at: str, column: str, there: list[str]) -> TextError:
    names = ", ".join(map(str, there[:20])) + (" ..." if len(there) > 20 else "")
    return TextError(
        f"{at} has no {column!r} (it has: {names or 'nothing'})",
        f"pass {option('column', 'NAME')} with the name of its text",
    )


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def _chat(messages: list[Any], name: str, at: str, render: Render | None) -> str:
    if (
        not all(isinstance(one, dict) and {"role", "content"} <= one.keys() for one in messages)
        or not messages
    ):
        raise TextError(
            f"{name!r} of {at} is no list of messages", 'give each message a "role" and a "content"'
        )
    if render is None:
        raise TextError(
            f"{at} holds a chat, and the model has no chat template",
            f"pass {option('column', 'NAME')} with the name of a text",
        )
    try:
        return render(messages)
    except Exception as error:  # a template raises what it likes
        why = " ".join(str(error).split())
        raise TextError(f"the model's chat template refuses {at} ({why})", "repair that record") from None


def _lines(file: TextFile) -> Rows:
    """Every line that holds an object, with its number: lines count from 1, as in editors."""
    fed = number = 0
    with _content(file) as stream:
        while line := stream.readline(_LINE):
            number += 1
            if len(line) >= _LINE:
                raise TextError(
                    f"{file.name}:{number} is longer than {_LINE >> 20} MB", "cut it into records"
                )
            at, start, fed = f"{file.name}:{number}", fed, fed + len(line)
            shown = _utf8(line, at, start)
            if number == 1:
                shown = shown.removeprefix("\ufeff")
            if not shown.strip():
                continue
            yield number, _object(_parsed(shown, at, "give one JSON object a line"), at)


def _utf8(line: bytes, at: str, start: int) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(at, start + error.start) from None


def _parsed(text: str, at: str, todo: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        why = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise TextError(f"{at} is not JSON ({why})", todo) from None


def _object(record: Any, at: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise TextError(f"{at} is not a JSON object", 'give one {"text": "..."} a record')
    return record


def _json(file: TextFile) -> Rows:
    """The objects of a list, counted from 0; one object; or, where each line is an object, those lines."""
    with _content(file) as stream:
        content = stream.read(_WHOLE + 1)
        if len(content) > _WHOLE:
            raise TextError(f"{file.name} is larger than {_WHOLE >> 30} GB", "make it a .jsonl")
    text = _utf8(content, file.name, 0).removeprefix("\ufeff").strip()
    first = text.partition("\n")[0]
    try:
        by_line = text != first and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        by_line = False
    if by_line:
        yield from _lines(file)
        return
    whole = _parsed(text, file.name, "give a list of objects, or one object a line")
    for number, record in enumerate(whole if isinstance(whole, list) else [whole]):
        yield number, _object(record, f"{file.name}:{number}")


def _csv(file: TextFile) -> Rows:
    """The rows below the header, counted from 0."""
    csv.field_size_limit(sys.maxsize)
    with _content(file) as stream:
        text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
        reader = csv.reader(text, delimiter="\t" if file.ending == ".tsv" else ",", strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            if header.count(file.column) != 1 and not (file.column == COLUMN and header.count(MESSAGES) == 1):
                raise _no_column(f"the header of {file.name}", file.column, header)
            for number, row in enumerate(row for row in reader if row):
                if len(row) != len(header):
                    raise TextError(
                        f"line {reader.line_num} of {file.name} has {len(row)} cells, and the header {len(header)}",
                        "quote the cells that hold the delimiter",
                    )
                yield number, dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise TextError(
                f"line {reader.line_num} of {file.name} is no CSV ({error})", "repair it"
            ) from None
        except UnicodeDecodeError:
            raise TextError(
                f"{file.name} is not UTF-8 text", "convert it to UTF-8, or leave it out"
            ) from None
        text.detach()


def _parquet(file: TextFile) -> Rows:
    import pyarrow.parquet as pq

    def opened(stream: BinaryIO) -> tuple[Any, Callable[[str], Iterator[Any]]]:
        parquet = pq.ParquetFile(stream)
        return parquet.schema_arrow, lambda name: parquet.iter_batches(batch_size=_ROWS, columns=[name])

    return _rows(file, opened, "Parquet")


def _arrow(file: TextFile) -> Rows:
    """What the library datasets leaves on disk: record batches as a stream, or as an Arrow file."""
    import pyarrow as pa

    def opened(stream: BinaryIO) -> tuple[Any, Callable[[str], Iterator[Any]]]:
        try:
            reader = pa.ipc.open_stream(stream)
        except pa.ArrowInvalid:
            stream.seek(0)
            file_reader = pa.ipc.open_file(stream)
            every = (file_reader.get_batch(i) for i in range(file_reader.num_record_batches))
            return file_reader.schema, lambda name: (batch.select([name]) for batch in every)
        return reader.schema, lambda name: (batch.select([name]) for batch in reader)

    return _rows(file, opened, "Arrow")


def _rows(
    file: TextFile, opened: Callable[[BinaryIO], tuple[Any, Callable[[str], Iterator[Any]]]], what: str
) -> Rows:
    """The rows of a table, counted from 0, with the one column that is asked for."""
    import pyarrow as pa

    with open_file(file.path, file.name) as stream:
        before = os.fstat(stream.fileno())
        # A table is read by seeking, so its bytes are checked before, and its times after.
        _Hashed(file, stream).check()
        row = 0
        try:
            stream.seek(0)
            schema, batches = opened(stream)
            name = file.column
            if name == COLUMN and COLUMN not in schema.names and MESSAGES in schema.names:
                name = MESSAGES
            if schema.names.count(name) != 1:
                raise _no_column(file.name, file.column, schema.names)
            kind = schema.field(name).type
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            of_text = (
                pa.types.is_string,
                pa.types.is_large_string,
                pa.types.is_string_view,
                pa.types.is_list,
            )
            if not any(test(kind) for test in of_text):
                raise TextError(
                    f"the column {name!r} of {file.name} holds {kind}",
                    f"pass {option('column', 'NAME')} with the name of its text",
                )
            for batch in batches(name):
                for value in batch.column(0).to_pylist():
                    yield row, {name: value}
                    row += 1
        except UnicodeDecodeError:
            raise TextError(
                f"{file.name}:{row} and after: the text is not UTF-8", "convert it to UTF-8"
            ) from None
        except (pa.ArrowException, OSError) as error:
            why = " ".join(str(error).split())
            raise TextError(f"{file.name} is no readable {what} file ({why})", "write it anew") from None
        after = os.fstat(stream.fileno())
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise changed(file.name)
