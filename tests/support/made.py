"""The small catalogue that the tests read (`conftest.catalogue`): what it is called and where it lies."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

DECODER, ENCODER = "decoder", "encoder"
SITES = "embed;resid_post.0,1"


@dataclass(frozen=True)
class Made:
    """A catalogue with a decoder of width 44 (its codes are padded; two runs of states) and an encoder."""

    path: Path
    texts: tuple[Path, Path]
    decoder_folder: Path


def copied(path: Path, copy: Path) -> Path:
    """A copy of a catalogue and its indexes, to be changed."""
    shutil.copy(path, copy)
    shutil.copytree(f"{path}.indexes", f"{copy}.indexes")
    return copy
