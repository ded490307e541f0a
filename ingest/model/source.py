"""What a model was asked for by: a folder, a GGUF file or a Hugging Face id."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ...catalog.errors import ModelError
from . import hub
from .adapter import Adapter, is_adapter
from .weights import PICKLES, pickled


@dataclass(frozen=True)
class Source:
    """Where a model's files are: a folder, and the GGUF file in it where that is what was asked for.

    With an `adapter`, the folder is that of its base model.
    """

    folder: Path
    gguf: Path | None
    name: str
    revision: str | None
    adapter: Adapter | None = None

    @property
    def where(self) -> Path:
        """The file or folder, for messages."""
        return self.gguf or self.folder

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer is: an adapter may bring its own."""
        if self.adapter is not None and (self.adapter.folder / "tokenizer.json").is_file():
            return self.adapter.folder
        return self.folder


def find_source(source: str, revision: str | None = None, weights: bool = True) -> Source:
    """What `source` means: an existing folder or `.gguf` file, else a Hugging Face id, which is fetched.

    `weights=False` fetches config and tokenizer alone.

    Raises:
        ModelError: if it is a path that is not there, no model's file, or an id that cannot be fetched.
    """
    path = Path(source).expanduser()
    if source and os.path.exists(path):
        if revision is not None:
            raise ModelError(
                f"{source} is a local path, which has no revision {revision!r}", "leave out --revision"
            )
        path = Path(os.path.abspath(path))
        try:
            str(path).encode()
        except UnicodeEncodeError:
            shown = os.fsencode(path).decode("utf-8", "backslashreplace")
            raise ModelError(
                f"{shown} is no UTF-8, and tokenizers are read from no other names", "rename it"
            ) from None
        if path.is_dir():
            return _in_folder(path, path.name, None)
        if path.suffix.lower() == ".gguf":
            return Source(path.parent, path, path.name[: -len(".gguf")], None)
        if path.suffix.lower() in PICKLES:
            raise pickled(path)
        raise ModelError(f"{path} is no model", "give a folder, a .gguf file or a Hugging Face id")
    if not is_id(source):
        raise ModelError(f"no such file or folder: {source!r}", "check the path, or give a Hugging Face id")
    folder = hub.fetch(source, revision, weights)
    return _in_folder(folder, source.rsplit("/", 1)[-1], folder.name)


def _in_folder(folder: Path, name: str, revision: str | None) -> Source:
    if is_adapter(folder):
        adapter = Adapter.read(folder)
        return Source(adapter.base, None, name, revision, adapter)
    return Source(folder, None, name, revision)


def is_id(source: str) -> bool:
    """Whether `source` can only be a Hugging Face id: nothing here has that path, and it has not the form of one."""
    path = Path(source).expanduser()
    looks_like_a_path = source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source
    suffixes = (".gguf", ".safetensors", *PICKLES)
    return not (
        not source.strip() or os.path.exists(path) or looks_like_a_path or path.suffix.lower() in suffixes
    )
