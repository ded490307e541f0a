"""What is made once in a run of the suite, whichever worker asks first."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Once:
    """Folders that all workers of a run share: to be read, not written."""

    root: Path

    def folder(self, name: str, make: Callable[[Path], object]) -> Path:
        """The folder of that name, filled by `make`. Other workers wait; if `make` fails, the next asks again."""
        self.root.mkdir(exist_ok=True)
        path, made = self.root / name, self.root / f"{name}.made"
        with open(self.root / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                # Not renamed into its place: a catalogue names its texts by their paths.
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir()
                make(path)
                made.touch()
        return path

    def copy(self, name: str, make: Callable[[Path], object], to: Path) -> Path:
        """A copy of that folder as `to`, to be changed."""
        return Path(shutil.copytree(self.folder(name, make), to))
