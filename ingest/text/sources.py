"""Files of text: finding them, and reading what they hold as a stream.

A file is hashed when it is found, and what is read later must be the same bytes. A file is one text, or, where
its ending says so, a record of text a line (`.jsonl`) or a row (`.parquet`).
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ...catalog.errors import InvalidInput, TextError

ENDINGS = (".txt", ".text", ".md", ".rst", ".jsonl", ".parquet")
"""What is taken from a folder. A file that is named directly is taken whatever its ending."""

_READ = 1 << 18
_ROWS = 1024  # rows of a `.parquet` that are decoded together


@dataclass(frozen=True)
class TextFile:
    """A file to read. `name` is the path as the user gave it (for a folder's files: folder/relative path)."""

    path: Path
    name: str
    sha256: str
    size: int

    @property
    def kind(self) -> str:
        """How its bytes are read: `.jsonl`, `.parquet`, or `text` for everything else."""
        ending = self.path.suffix.lower()
        return ending if ending in (".jsonl", ".parquet") else "text"


def identity(files: Sequence[TextFile]) -> list[list[str]]:
    """What a run's id takes from its texts: the hash and the kind of each, since what a file says depends on both."""
    return [[one.sha256, one.kind] for one in files]


# ---- finding ------------------------------------------------------------------------------------


def find_texts(paths: str | Path | Sequence[str | Path]) -> list[TextFile]:
    """The files behind one path or several, in the order given, a folder's sorted by relative path, hidden ones left out.

    Of several files with the same content the first is kept. A folder is searched for `ENDINGS`, links to
    folders inside it are not followed.

    Raises InvalidInput when `paths` is empty, TextError for a path that is missing, cannot be read, is no
    regular file or is empty, and for a folder without text.
    """
    if isinstance(paths, str | Path):
        paths = [paths]
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


def read_characters(file: TextFile) -> Iterator[str]:
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
            for batch in parquet.iter_batches(batch_size=_ROWS, columns=["text"]):
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


def read_records(file: TextFile) -> Iterator[tuple[str, str]] | None:
    """The records of a file that has them, by its ending; None for plain text."""
    match file.path.suffix.lower():
        case ".jsonl":
            return _lines(file)
        case ".parquet":
            return _rows(file)
    return None
