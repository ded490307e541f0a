"""GGUF files, as llama.cpp writes them."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from ...catalog.errors import ModelError
from ...catalog.files import scratch_folder
from .weights import brief


def read_tensor(file: Path, name: str) -> Tensor | None:
    """The tensor `name` of a GGUF file, dequantised to float32 on the CPU; None where there is none.

    Raises:
        ModelError: if the file is damaged or the packages that read it are missing.
    """
    with alone(file):
        # Inside, the package's reader is the one that has read the file.
        import gguf

        found = next((tensor for tensor in gguf.GGUFReader(file).tensors if tensor.name == name), None)
        if found is None:
            return None
        try:
            rows = gguf.dequantize(found.data, found.tensor_type)
        except Exception as error:
            # Types that the package can name but not read raise whatever it says.
            what = f"{name} in {file} cannot be read ({brief(error)})"
            raise ModelError(what, "use a file with another quantisation") from error
        # A GGUF file gives the fastest axis first, and the rows must outlive the mapped file.
        shape = tuple(int(size) for size in reversed(found.shape))
        return torch.from_numpy(rows.astype("float32").reshape(shape))


_gguf = threading.RLock()


@contextlib.contextmanager
def alone(file: Path) -> Iterator[Path]:
    """A folder that holds nothing but `file`, checked and read once.

    transformers prefers a tokenizer.json or config.json that happens to lie beside a GGUF file, parses the file's
    metadata, tokenizer included, once for each of five questions, and makes the table of names of all architectures
    once for every module of the model; all three end here.

    Raises:
        ModelError: if the file is damaged or the packages that read it are missing.
    """
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ModelError(f"{file} is no GGUF file", "fetch it again")
    try:
        import accelerate  # type: ignore[import-untyped]  # noqa: F401
        import gguf
        from gguf import gguf_reader, tensor_mapping
    except ImportError as error:
        what = f"reading {file} needs the packages gguf and accelerate"
        raise ModelError(what, 'pip install "signarium[gguf]"') from error

    class Reader(gguf_reader.GGUFReader):
        """Reads fields from a plain view: every slice of a mapped array looks up what it is mapped to."""

        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, mapped: Any) -> None:
            self._plain = mapped.view(np.ndarray)

    try:
        reader = Reader(file)
    except Exception as error:
        # The reader fails on damage wherever it meets it, with whatever numpy says.
        raise ModelError(f"{file} is truncated or corrupt ({brief(error)})", "fetch it again") from error
    with scratch_folder() as folder:
        (folder / file.name).symlink_to(file)
        # The package is one for all threads.
        with (
            _gguf,
            mock.patch.multiple(
                gguf,
                GGUFReader=lambda *_, **__: reader,
                get_tensor_name_map=functools.cache(tensor_mapping.get_tensor_name_map),
            ),
        ):
            yield folder
