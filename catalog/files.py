"""Files that appear whole or not at all: written under a temporary name beside the final one, then renamed."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_WRITER = re.compile(r"\.(\d+)\.[0-9a-f]{8}\.tmp$")
"""The end of a temporary name, and in it the number of the process that writes."""


@contextmanager
def replacing(final: Path, temporary: Path | None = None, *, sync: bool = True) -> Iterator[Path]:
    """The name of a temporary file, which takes the place of `final` when the block ends; if it raises, nothing is left.

    Args:
        temporary: its name, for files that a later try of the same job should find and write over; else a name that no
            other process takes, with the number of this one in it.
        sync: wait until it is on the disk. Not needed for what can be made again.

    Raises:
        OSError: if it cannot be renamed.
    """
    made = temporary or final.with_name(f"{final.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    made.unlink(missing_ok=True)
    try:
        yield made
        if sync:
            with made.open("rb") as handle:
                os.fsync(handle.fileno())
        os.replace(made, final)
    finally:
        with suppress(OSError):
            made.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Delete the temporary files in `folder` of processes that were killed."""
    for one in folder.glob("*.tmp"):
        writer = _WRITER.search(one.name)
        if writer is not None and not _alive(int(writer[1])):
            one.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
