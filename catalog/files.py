"""Files and folders of ours: they appear whole or not at all, and nothing else is written over or deleted.

What is not there yet is written under a temporary name, which no other process takes and which says who writes, and
then renamed. What a killed process left under such a name is swept by the next one. Nothing is read, written or deleted
through a link, or where a pipe, a device or a folder stands in place of a file.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
import stat
import tempfile
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import InvalidInput

_MACHINE = f"{zlib.crc32(os.uname().nodename.encode()) & 0xFFFF:04x}"
_TEMPORARY = re.compile(rf"\.(\d+)\.{_MACHINE}[0-9a-f]{{4}}\.tmp(\.wal)?")
"""The end of a temporary name of this machine, and in it the number of the process that writes."""


def temporary(final: Path) -> Path:
    """A name beside `final` that no other process takes, and that `sweep` knows."""
    return final.with_name(f"{final.name}.{os.getpid()}.{_MACHINE}{uuid.uuid4().hex[:4]}.tmp")


@contextmanager
def replacing(final: Path, *, sync: bool = True) -> Iterator[Path]:
    """The name of a temporary file, which takes the place of `final` when the block ends; if it raises, nothing is left.

    Args:
        sync: wait until it is on the disk. Not needed for what can be made again.

    Raises:
        OSError: if it cannot be renamed, or if `final` is there and is no ordinary file.
    """
    sweep(final.parent, f"{final.name}.")
    made = temporary(final)
    try:
        yield made
        if sync:
            with made.open("rb") as handle:
                os.fsync(handle.fileno())
        with suppress(FileNotFoundError):
            _must_be_regular(final, final.lstat().st_mode)
        os.replace(made, final)
    finally:
        with suppress(OSError):
            made.unlink(missing_ok=True)
            # That of a database which was not closed.
            made.with_name(f"{made.name}.wal").unlink(missing_ok=True)


def opened(file: Path) -> BinaryIO:
    """A file to read.

    Raises:
        OSError: if it is missing or no ordinary file: a pipe would be waited for, and a device has no end.
    """
    _must_be_regular(file, file.stat().st_mode)
    return file.open("rb")


def kind(mode: int) -> str:
    """What a file is, by its mode: `a folder`, `a link` ..."""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket",
             stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}  # fmt: skip
    return kinds.get(stat.S_IFMT(mode), "a file")


def _must_be_regular(file: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"it is {kind(mode)}", str(file))


# ---- folders ------------------------------------------------------------------------------------


def make_folder(folder: Path) -> None:
    """Make a folder of ours, or take the one that is there.

    Raises:
        InvalidInput: if something else has its name, such as a link, through which another's files would be changed.
        OSError: if it cannot be made.
    """
    with suppress(FileExistsError):
        folder.mkdir()
    mode = folder.lstat().st_mode
    if not stat.S_ISDIR(mode):
        raise InvalidInput(f"{folder} is {kind(mode)} where a folder should be", "move it away")


def make_scratch(folder: Path) -> None:
    """As `make_folder`, for files that are written over where they lie: each must be a file that has no other name.

    Raises:
        The errors of `make_folder`.
    """
    make_folder(folder)
    for one in folder.iterdir():
        found = one.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            raise InvalidInput(f"{one} is not a file that signarium made", "move it away")


def remove_folder(folder: Path) -> None:
    """Delete a folder of ours with what is in it, or leave it whole; a link or a file of its name stays.

    Raises:
        OSError: if it cannot be deleted.
    """
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(folder.lstat().st_mode):
            # Under its name it is whole: what is left of it when we are killed must not pass for that.
            going = temporary(folder)
            folder.rename(going)
            shutil.rmtree(going)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder where the system keeps temporary files, for as long as the block; those of killed processes go.

    Raises:
        OSError: if it cannot be made.
    """
    made = temporary(Path(tempfile.gettempdir(), "signarium"))
    sweep(made.parent, "signarium.")
    made.mkdir(mode=0o700)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def sweep(folder: Path, start: str = "") -> None:
    """Delete the temporary files and folders in `folder` that killed processes of this machine left.

    Only those whose names begin with `start`.
    """
    if folder.is_symlink():
        return
    for one in folder.glob(f"{glob.escape(start)}*.tmp*"):
        found = _TEMPORARY.search(one.name)
        if found is None or found.end() != len(one.name) or _alive(int(found[1])):
            continue
        with suppress(OSError):
            mode = one.lstat().st_mode
            if stat.S_ISDIR(mode):
                shutil.rmtree(one)
            elif stat.S_ISREG(mode):
                one.unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
