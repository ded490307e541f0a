"""The lock of a job: one ingest, or one upgrade, at a time on a catalogue."""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import IngestRunning, InvalidInput
from .files import kind, sweep
from .place import sidecar

_LOCK = re.compile(rb"(\d+\n)?")
"""What a lock file holds: the number of a process, or nothing yet."""


@contextmanager
def job_lock(path: Path) -> Iterator[None]:
    """Held by an ingest or an upgrade for as long as it works; released by the system if it is killed.

    Raises:
        IngestRunning: if another process holds it.
    """
    file = sidecar(path, ".lock")
    handle = _take_lock(path, file)
    try:
        with suppress(OSError):
            # Only to name the holder; a full disk must not stop a job that may not need it.
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        sweep(file.parent, f"{path.resolve().name}.")
        yield
    finally:
        # While it is held: whoever waits on this file finds it gone and opens the next one.
        with suppress(OSError):
            if os.path.samestat(os.fstat(handle), file.lstat()):
                file.unlink()
        os.close(handle)


def _take_lock(path: Path, file: Path) -> int:
    """The handle of `file`, locked."""
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                _must_be_lock(file, file.lstat().st_mode)
            # Between the line above and this one it may have become a link or a pipe.
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            handle = os.open(file, flags, 0o644)
        except OSError as error:
            raise InvalidInput(
                f"cannot write beside {path} ({error.strerror})",
                "pass --db PATH in a folder that you may write to",
            ) from error
        try:
            written = os.pread(handle, 32, 0)
            _must_be_lock(file, os.fstat(handle).st_mode, written)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before us may have removed the file between our opening and locking it.
            if os.path.samestat(os.fstat(handle), os.stat(file)):
                return handle
        except BlockingIOError as error:
            os.close(handle)
            pid = written.decode().strip()
            raise IngestRunning(path, f"PID {pid}" if pid else "another process") from error
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(handle)
            raise no_locks(path, error.strerror) from error
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _must_be_lock(file: Path, mode: int, written: bytes = b"") -> None:
    """Our lock file holds the number of a process, or nothing yet: what else has its name is not written over."""
    if not stat.S_ISREG(mode) or not _LOCK.fullmatch(written):
        what = kind(mode) if not stat.S_ISREG(mode) else "another program's file"
        raise InvalidInput(f"{file} is {what} where the lock of a job should be", "move it away")


def no_locks(path: Path, why: str | None) -> InvalidInput:
    """The error of a disk that cannot lock files."""
    return InvalidInput(
        f"the disk of {path} has no file locks ({why}), without which two programs could write at once",
        "put the catalogue on a local disk, or mount this one with locks",
    )
