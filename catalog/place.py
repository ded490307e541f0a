"""Where a catalogue lies: its names, what may stand there, and whether this process has it open.

Nothing here opens the file: closing it again would drop every lock that this process has on it, those of a connection
in another thread or in a notebook among them, and two programs could then write at once.
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path

from .errors import CatalogueMissing, InvalidInput, LeftoverLog, NotACatalogue, option
from .files import kind


def given(path: str | Path) -> Path:
    """The path that a user names, with `~` as the home folder.

    Raises:
        InvalidInput: if no file can have that name, or DuckDB cannot open one that has.
    """
    if str(path).startswith(":memory:"):
        raise InvalidInput(f"{path} is no file, and a catalogue is one", f"pass {option('db', 'PATH')}")
    try:
        found = Path(path).expanduser()
        os.path.realpath(found).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(os.path.realpath(path)).decode("utf-8", "backslashreplace")
        raise InvalidInput(f"{shown} is no UTF-8, and DuckDB opens no other names", "rename it") from None
    except (RuntimeError, ValueError) as error:
        raise InvalidInput(
            f"{str(path)!r} is no path ({error})", f"pass another {option('db', 'PATH')}"
        ) from None
    return found


def sidecar(path: Path, suffix: str) -> Path:
    """A companion of the catalogue: `NAME.duckdb` + `suffix`, beside the file itself if `path` is a link."""
    real = path.resolve()
    return real.with_name(real.name + suffix)


def must_be_file(path: Path) -> None:
    """Refuse what DuckDB would wait for, or take for something else.

    Raises:
        CatalogueMissing, NotACatalogue, InvalidInput.
    """
    given(path)
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise CatalogueMissing(path) from None
    except OSError as error:
        raise InvalidInput(f"{path} may not be opened ({(error.strerror or str(error)).lower()})") from error
    if not stat.S_ISREG(found.st_mode):
        raise NotACatalogue(path, f"it is {kind(found.st_mode)}")
    if found.st_size == 0:
        raise NotACatalogue(path, "it is empty")
    with suppress(FileNotFoundError):
        # DuckDB would read it, wait for it if it is a pipe, and write and cut it if it is a link.
        log = sidecar(path, ".wal")
        if not stat.S_ISREG(mode := log.lstat().st_mode):
            raise InvalidInput(
                f"{log} is {kind(mode)} where DuckDB's log of {path} should be", "move it away"
            )


def must_have_no_log(path: Path) -> None:
    """Before a catalogue is made: a log that another one left would be taken for its own.

    Raises:
        LeftoverLog: if there is one.
    """
    if os.path.lexists(log := sidecar(path, ".wal")):
        raise LeftoverLog(path, log, "its catalogue is gone")


def must_not_be_written(path: Path, output: Path, name: str = "output") -> None:
    """Refuse an output that would take the place of the catalogue, or of a file that belongs to it.

    Raises:
        InvalidInput: if it would.
    """
    real, target = path.resolve(), output.resolve()
    ours = [target, *target.parents]
    if any(
        one == real or (one.parent == real.parent and one.name.startswith(f"{real.name}.")) for one in ours
    ):
        raise InvalidInput(f"{output} belongs to the catalogue", f"name another file for {option(name)}")


def is_open_here(path: Path, to_write: bool = False) -> bool:
    """Whether this process has the file open, under whatever name; `to_write`, whether for writing.

    Descriptors that a program is started with, such as those of `flock FILE signarium ...`, do not count: what opens a
    file in this process closes it for the programs that it starts.
    """
    with suppress(OSError):
        there = path.stat()
        for name in os.listdir("/dev/fd"):
            with suppress(OSError):
                found = int(name)
                writes = fcntl.fcntl(found, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
                ours = fcntl.fcntl(found, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
                if ours and os.path.samestat(os.fstat(found), there) and (writes or not to_write):
                    return True
    return False
