"""Files of text: finding them, and what kind each is.

A file is hashed when it is found, and what is read later must be the same bytes. A file is one text, or, where its
ending says so, a record of text a line or a row (`records` reads them); either may be compressed.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ...catalog.errors import InvalidInput, TextError, option

PLAIN = (".txt", ".text", ".md", ".rst")
LINES = (".jsonl", ".ndjson", ".jsonlines")
STREAMS = (*PLAIN, *LINES, ".json", ".csv", ".tsv")
"""What is read from its beginning to its end, and may be compressed."""
TABLES = (".parquet", ".arrow")
PACKED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
ENDINGS = (*STREAMS, *TABLES)
"""What is taken from a folder. A file that is named directly is taken whatever its ending."""
COLUMN = "text"
"""The field or column of a record that is its text."""

_OF_A_DATASET = ("dataset_info.json", "state.json", "dataset_dict.json")
"""What the library datasets writes beside its `.arrow` files."""
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"(\xb5/\xfd": "Zstandard", b"PAR1": "Parquet"}
_READ = 1 << 18
_HEAD = 1 << 16
_SHOWN = 6  # endings in one note
_NONE = "no ending"


@dataclass
class Nulls:
    """How many records of a file had no text. A file is read more than once, and each record counts once."""

    n: int = 0
    _last: int = -1

    def see(self, record: int) -> None:
        """The record of that number, counted from the file's start, is null."""
        if record > self._last:
            self.n, self._last = self.n + 1, record


@dataclass(frozen=True)
class TextFile:
    """A file to read. `name` is the path as the user gave it (for a folder's files: folder/relative path)."""

    path: Path
    name: str
    sha256: str
    size: int
    column: str = COLUMN
    nulls: Nulls = field(default_factory=Nulls, compare=False)

    @property
    def packing(self) -> str | None:
        """How its bytes are compressed: a value of `PACKED`, or None."""
        return PACKED.get(self.path.suffix.lower())

    @property
    def ending(self) -> str:
        """The ending that says what it holds: that below the compression, if it is compressed."""
        return _ending(self.path)

    @property
    def kind(self) -> str:
        """How its bytes are read: `text`, or the ending of a file of records, with its column where that is not `text`."""
        ending = ".jsonl" if self.ending in LINES else self.ending
        if ending not in ENDINGS or ending in PLAIN:
            return "text"
        return ending if self.column == COLUMN else f"{ending}:{self.column}"


def identity(files: Sequence[TextFile]) -> list[list[str]]:
    """What a run's id takes from its texts: the hash and the kind of each, since what a file says depends on both."""
    return [[one.sha256, one.kind] for one in files]


def without_text(files: Sequence[TextFile]) -> list[str]:
    """A note on each file in which records without a text were met."""
    return [
        f"{one.name}: {one.nulls.n} {'record has' if one.nulls.n == 1 else 'records have'} no {one.column!r} (null), left out"
        for one in files
        if one.nulls.n
    ]


def _ending(path: Path) -> str:
    ending = path.suffix.lower()
    return Path(path.stem).suffix.lower() if ending in PACKED else ending


def _is_taken(name: str) -> bool:
    path = Path(name)
    return _ending(path) in (STREAMS if path.suffix.lower() in PACKED else ENDINGS)


# ---- finding ------------------------------------------------------------------------------------


def find_texts(
    paths: str | Path | Sequence[str | Path], column: str = COLUMN, notes: list[str] | None = None
) -> list[TextFile]:
    """The files behind one path or several, in the order given, a folder's sorted by relative path, hidden ones left out.

    Of several files with the same content the first is kept. A folder is searched for `ENDINGS`, compressed or not;
    links to folders inside it are not followed. What a folder holds beside them is said in `notes`, as are links to
    nothing. `column` is the field or column of records that is their text.

    Raises InvalidInput when `paths` is empty, TextError for a path that is missing, cannot be read, is no
    regular file or is empty, for a folder without text, and for a file that holds records and is not named as one.
    """
    notes = [] if notes is None else notes
    if isinstance(paths, str | Path):
        paths = [paths]
    if not paths:
        raise InvalidInput("no text was named", f"pass {option('text', 'PATH')}, a file or a folder")
    found: dict[str, TextFile] = {}
    for given in paths:
        name, path = _shown(given), Path(given).expanduser()
        if stat.S_ISDIR(_stat(path, name).st_mode):
            files = [
                _hashed(path / relative, f"{name.rstrip('/')}/{_shown(relative)}", column)
                for relative in _inside(path, name, notes)
            ]
            if not files:
                raise TextError(f"{name} holds no text", f"its files should end in {', '.join(ENDINGS)}")
            if not any(file.size for file in files):
                raise TextError(f"{name} holds only empty files", "pass a folder with text in it")
        else:
            files = [_hashed(path, name, column)]
            if not files[0].size:
                raise TextError(f"{name} is empty", "pass a file with text in it")
            if not _is_taken(path.name):
                _must_be_prose(path, name)
        for file in files:
            if file.size:
                found.setdefault(file.sha256, file)
    return list(found.values())


def _shown(path: str | Path) -> str:
    # A file name need not be UTF-8, but what goes into the catalogue must be.
    return os.fsencode(path).decode("utf-8", "replace")


def _inside(folder: Path, name: str, notes: list[str]) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise TextError(
            f"{name} cannot be read ({error.strerror}: {error.filename})", "check its permissions"
        )

    relatives: list[Path] = []
    others: Counter[str] = Counter()
    links = 0
    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [each for each in folders if not each.startswith(".")]
        of_a_dataset = _OF_A_DATASET if any(each.endswith(".arrow") for each in files) else _OF_A_DATASET[2:]
        for each in files:
            if each.startswith(".") or each in of_a_dataset:
                continue
            if not _is_taken(each):
                others["".join(Path(each).suffixes[-2:]).lower() or _NONE] += 1
            elif not Path(place, each).exists():
                links += 1
            else:
                relatives.append(Path(place, each).relative_to(folder))
    if others:
        total = sum(others.values())
        listed = sorted(others.items(), key=lambda pair: (-pair[1], pair[0]))
        shown = [f"{n} {'with ' if ending == _NONE else ''}{ending}" for ending, n in listed[:_SHOWN]]
        if more := sum(n for _, n in listed[_SHOWN:]):
            shown.append(f"{more} more")
        are = "file is" if total == 1 else "files are"
        notes.append(f"{name}: {total} {are} no text and left out ({', '.join(shown)})")
    if links:
        notes.append(f"{name}: {links} {'link leads' if links == 1 else 'links lead'} nowhere, left out")
    return sorted(relatives, key=Path.as_posix)


def _stat(path: Path, name: str) -> os.stat_result:
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise TextError(
            f"there is no file or folder {name}", f"check the path given to {option('text')}"
        ) from None
    except (OSError, ValueError) as error:
        raise unreadable(name, error) from None


def unreadable(name: str, error: Exception) -> TextError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else error
    return TextError(f"{name} cannot be read ({why})", "check its permissions and its disk")


def changed(name: str) -> TextError:
    return TextError(f"{name} changed while it was read", "run the command again when nothing writes to it")


def _must_be_prose(path: Path, name: str) -> None:
    """Of a file whose ending says nothing: it is read as prose, which records and compressed bytes are not."""
    with open_file(path, name) as stream:
        try:
            head = stream.read(_HEAD)
        except OSError as error:
            raise unreadable(name, error) from None
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            raise TextError(
                f"{name} is a {what} file by its first bytes",
                "name it by what it holds, such as NAME.jsonl.gz",
            )
    line = head.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")[0]
    try:
        is_record = isinstance(json.loads(line), dict | list)
    except (ValueError, RecursionError):
        is_record = False
    if is_record:
        raise TextError(f"{name} holds JSON, not prose", "name it .jsonl (a record a line) or .json (a list)")


def open_file(path: Path, name: str) -> BinaryIO:
    # Opening a pipe would block for ever, so what it is comes before opening it.
    if not stat.S_ISREG(_stat(path, name).st_mode):
        raise TextError(f"{name} is not a regular file", "pass a text file or a folder of them")
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise changed(name) from None
    except OSError as error:
        raise unreadable(name, error) from None


def _hashed(path: Path, name: str, column: str) -> TextFile:
    digest, size = hashlib.sha256(), 0
    with open_file(path, name) as stream:
        for piece in pieces(stream, name):
            digest.update(piece)
            size += len(piece)
    return TextFile(path, name, digest.hexdigest(), size, column)


def pieces(stream: BinaryIO, name: str) -> Iterator[bytes]:
    while True:
        try:
            piece = stream.read(_READ)
        except OSError as error:
            raise unreadable(name, error) from None
        if not piece:
            return
        yield piece
