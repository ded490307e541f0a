"""GGUF files, as llama.cpp writes them."""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from transformers import modeling_gguf_pytorch_utils

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


def texts(file: Path, *names: str) -> dict[str, str]:
    """Those of some text fields that a GGUF file has, inside `alone`."""
    return {
        name: str(field.contents()) for name in names if (field := _reader(file).fields.get(name)) is not None
    }


def numbers(file: Path) -> dict[str, int | float]:
    """The fields of a GGUF file that hold one number each, inside `alone`."""
    from gguf import GGUFValueType

    kinds = (GGUFValueType.STRING, GGUFValueType.ARRAY)
    fields = {name: one for name, one in _reader(file).fields.items() if not name.startswith("GGUF.")}
    # The counts of a GGUF file are named as those of a config but for this one.
    return {
        name.replace(".block_count", ".layers").replace("_count", "s"): one.contents()
        for name, one in fields.items()
        if one.types and one.types[0] not in kinds
    }


def has(file: Path, name: str) -> bool:
    """Whether a GGUF file has a field, inside `alone`."""
    return name in _reader(file).fields


def n_stored(file: Path) -> int:
    """How many numbers the tensors of a GGUF file hold, inside `alone`."""
    return sum(int(one.n_elements) for one in _reader(file).tensors)


def left_over(file: Path) -> list[str]:
    """Tensors of a GGUF file that went into no weight of the model which was loaded last, inside `alone`."""
    reader = _reader(file)
    if not reader.mapped:
        # The newer loader of transformers reports them itself.
        return []
    known = {name.removesuffix(".weight") for name in reader.mapped}
    return [
        one.name
        for one in reader.tensors
        if one.name.removesuffix(".weight") not in known and not _HARMLESS.fullmatch(one.name)
    ]


_HARMLESS = re.compile(r"output\.(weight|bias)|rope_freqs\.weight|v\..*|mm\..*")
"""The head, which is read when it is asked for; the table of rotary factors (`rotary_factors`); towers of images."""


def rotary_factors(file: Path) -> Tensor | None:
    """[head_dim / 2]: by what the rotary frequencies of a GGUF file are divided (Llama 3.1); None where by nothing."""
    return read_tensor(file, "rope_freqs.weight")


def _reader(file: Path) -> Any:
    import gguf

    return gguf.GGUFReader(file)


def _check_whole(reader: Any, file: Path) -> None:
    """Refuses what no loading could mend, in words that say so."""
    fields = reader.fields
    parts = int(fields["split.count"].contents()) if "split.count" in fields else 1
    if parts > 1:
        number = int(fields["split.no"].contents()) + 1 if "split.no" in fields else 1
        what = f"{file} is part {number} of a model in {parts} files"
        raise ModelError(
            what, "join them with `llama-gguf-split --merge FIRST-PART OUT.gguf`, and give OUT.gguf"
        )
    if "general.architecture" not in fields or not reader.tensors:
        raise ModelError(f"{file} holds no model", "fetch it again")
    if "tokenizer.ggml.tokens" not in fields:
        raise ModelError(f"{file} has no tokenizer", "use a file that was written with its vocabulary")


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
        """Reads fields from a plain view: every slice of a mapped array looks up what it is mapped to.

        `mapped` are the tensors that transformers found a place for, by the loader that does not report the others.
        """

        mapped: ClassVar[dict[str, str]] = {}

        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, mapped: Any) -> None:
            self._plain = mapped.view(np.ndarray)

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            # Whatever a file declares, no more is read, or counted up to, than it holds.
            if offset + int(count) * np.dtype(dtype).itemsize > len(self._plain):
                raise EOFError(f"it ends at byte {len(self._plain):,}, inside what it declares")
            return super()._get(offset, dtype, count, override_order)

    try:
        reader = Reader(file)
    except Exception as error:
        # The reader fails on damage wherever it meets it, with whatever numpy says.
        raise ModelError(f"{file} is truncated or corrupt ({brief(error)})", "fetch it again") from error
    _check_whole(reader, file)
    map_names = modeling_gguf_pytorch_utils.get_gguf_hf_weights_map

    def mapped(*args: Any, **options: Any) -> Any:
        # It calls itself for every module; the outermost call ends last.
        Reader.mapped = map_names(*args, **options)
        return Reader.mapped

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
            mock.patch.object(modeling_gguf_pytorch_utils, "get_gguf_hf_weights_map", mapped),
        ):
            yield folder
