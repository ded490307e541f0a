"""The files of a model: finding or fetching them, refusing what must not be loaded, hashing the rest.

Everything here reads files and headers alone, so a bad file is refused before a model is built, and no pickle
and no code that comes with a model is ever run.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import struct
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ...catalog.errors import ModelError

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_OTHER_WEIGHTS = (".h5", ".msgpack", ".onnx", ".npz", ".nemo")
# State that training leaves beside the weights: a pickle, but no weights.
_NO_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "tiktoken.model",
)
_FETCHED = ("*.safetensors", "*.json", "*.model", "*.txt", "*.tiktoken")
_BYTES = {
    name: size
    for size, names in {8: "F64 I64 U64", 4: "F32 I32 U32", 2: "F16 BF16 I16 U16", 1: "I8 U8 BOOL"}.items()
    for name in names.split()
}
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Source:
    """Where a model's files are: a folder, and the GGUF file in it where that is what was asked for."""

    folder: Path
    gguf: Path | None
    name: str
    revision: str | None


# ---- finding ------------------------------------------------------------------------------------


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
        if path.is_dir():
            return Source(path, None, path.name, None)
        if path.suffix.lower() == ".gguf":
            return Source(path.parent, path, path.name[: -len(".gguf")], None)
        if path.suffix.lower() in _PICKLES:
            raise _pickled(path)
        raise ModelError(f"{path} is no model", "give a folder, a .gguf file or a Hugging Face id")
    looks_like_a_path = source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source
    suffixes = (".gguf", ".safetensors", *_PICKLES)
    if not source.strip() or looks_like_a_path or path.suffix.lower() in suffixes:
        raise ModelError(f"no such file or folder: {source!r}", "check the path, or give a Hugging Face id")
    folder = _fetch(source, revision, weights)
    return Source(folder, None, source.rsplit("/", 1)[-1], folder.name)


def _fetch(model_id: str, revision: str | None, weights: bool) -> Path:
    import huggingface_hub as hub
    from huggingface_hub import errors
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    quiet = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    here = "pass a local folder or .gguf file instead"
    try:
        patterns = [p for p in _FETCHED if weights or p != "*.safetensors"]
        folder = hub.snapshot_download(
            model_id, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]
        )
    except errors.HFValidationError as error:
        raise ModelError(f"{model_id!r} is no file, folder or Hugging Face id", here) from error
    except errors.GatedRepoError as error:
        what = f"the Hugging Face model {model_id} is gated"
        raise ModelError(what, "accept its terms on its page and log in with `hf auth login`") from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{model_id} has no revision {revision!r}", "pass another --revision") from error
    except errors.RepositoryNotFoundError as error:
        what = f"no Hugging Face model {model_id!r}, or it is private"
        raise ModelError(what, f"check the id, log in with `hf auth login`, or {here}") from error
    except Exception as error:
        # Offline, no network, a proxy's refusal: many classes of three libraries, one way out.
        what = f"{model_id!r} is no local path, and it cannot be fetched from Hugging Face ({brief(error)})"
        raise ModelError(what, f"check the network, or {here}") from error
    finally:
        if quiet:
            enable_progress_bars()
    return Path(folder)


def brief(error: BaseException) -> str:
    """An error of another library, on one short line."""
    text = " ".join(str(error).split())
    return textwrap.shorten(f"{type(error).__name__}: {text}", 200, placeholder=" ...")


# ---- refusing -----------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ModelError: if the file holds something else.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({brief(error)})", "fetch the model again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is no JSON object", "fetch the model again")
    return value


def check_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a folder.

    Raises:
        ModelError: if there is none, or if it is no model's.
    """
    path = folder / "config.json"
    if not path.is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"{folder} holds an adapter, not a model", "merge it into its base model and save that"
            )
        ggufs = sorted(folder.glob("*.gguf"))
        if ggufs:
            raise ModelError(f"{folder} has no config.json", f"pass the file itself: {ggufs[0]}")
        raise ModelError(
            f"{folder} has no config.json", "give the folder of a model saved with save_pretrained"
        )
    config = read_json(path)
    if not isinstance(config.get("model_type"), str):
        raise ModelError(f"{path} names no model_type", "give the folder of a transformers model")
    return config


def check_tokenizer(folder: Path) -> None:
    """Refuses a folder without a tokenizer.

    Raises:
        ModelError: if no tokenizer file is there.
    """
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES) and not any(folder.glob("*.tiktoken")):
        raise ModelError(f"{folder} has no tokenizer", "save the model's tokenizer.json into it")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights of a folder, in order.

    Raises:
        ModelError: if a shard is missing, or if the weights are pickled or not there.
    """
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelError(f"{index} lists no weights", "fetch the model again")
        files = [folder / name for name in sorted(set(map(str, weight_map.values())))]
        for file in files:
            if not file.is_file():
                raise ModelError(f"{file} is missing, and {index.name} lists it", "fetch the model again")
        return files
    there = sorted(p for p in folder.iterdir() if p.is_file() and p.name not in _NO_WEIGHTS)
    for file in there:
        if file.suffix.lower() in _PICKLES:
            raise _pickled(file)
    for file in there:
        if file.suffix.lower() in _OTHER_WEIGHTS:
            raise ModelError(f"{file} is no safetensors file", "convert it to safetensors with transformers")
    other = next((p for p in there if p.suffix == ".safetensors"), None)
    if other is not None:
        raise ModelError(
            f"{folder} has {other.name} but no model.safetensors", "save it with save_pretrained"
        )
    raise ModelError(f"{folder} has no weights", "put model.safetensors into it, or pass --random-init SEED")


def _pickled(file: Path) -> ModelError:
    what = f"{file} is a pickle, which can run any code when it is loaded, so it was not opened"
    return ModelError(what, "convert it to safetensors (load it where you trust it and call save_pretrained)")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file: `n_bytes` from byte `start` of `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    n_bytes: int


def read_headers(files: Iterable[Path]) -> list[StoredTensor]:
    """The tensors of safetensors files, sorted by name.

    Raises:
        ModelError: if a file is truncated or corrupt, or if two files hold the same tensor.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in _read_header(file):
            if tensor.name in tensors:
                raise ModelError(f"{tensor.name} is in {tensors[tensor.name].file.name} and in {file.name}")
            tensors[tensor.name] = tensor
    return [tensors[name] for name in sorted(tensors)]


def _read_header(file: Path) -> list[StoredTensor]:
    def bad(why: str) -> ModelError:
        return ModelError(f"{file} is truncated or corrupt ({why})", "fetch it again")

    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(8)
        if len(head) < 8:
            raise bad(f"{size} bytes are no safetensors file")
        (length,) = struct.unpack("<Q", head)
        if 8 + length > size:
            raise bad(f"a header of {length} bytes in a file of {size}")
        try:
            header = json.loads(stream.read(length).decode("utf-8"))
            entries = {k: v for k, v in header.items() if k != "__metadata__"}
            data = 8 + length
            tensors = [
                StoredTensor(
                    name, v["dtype"], tuple(v["shape"]), file, data + v["data_offsets"][0],
                    v["data_offsets"][1] - v["data_offsets"][0],
                )
                for name, v in entries.items()
            ]  # fmt: skip
            end = max((t.start + t.n_bytes for t in tensors), default=data)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise bad(f"its header cannot be read: {brief(error)}") from error
    if end != size:
        raise bad(f"its header describes {end} bytes and the file has {size}")
    for t in tensors:
        expected = math.prod(t.shape) * _BYTES.get(t.dtype, 0)
        if t.n_bytes < 0 or t.start < data or (expected and t.n_bytes != expected):
            raise bad(f"{t.name} of shape {list(t.shape)} and type {t.dtype} takes {t.n_bytes} bytes")
    return tensors


def stored_dtype(tensors: Iterable[StoredTensor]) -> torch.dtype | None:
    """The float type that most of the stored bytes are in; None where there is none."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        if tensor.dtype in _FLOATS:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.n_bytes
    return _FLOATS[max(sizes, key=lambda name: sizes[name])] if sizes else None


def read_tensor(folder: Path, name: str, module_name: Callable[[str], str]) -> Tensor | None:
    """The tensor `name` of a model whose safetensors files are in `folder`, on the CPU as it is stored.

    None where there is none. `module_name` turns a stored name into the one that the model's modules have.

    Raises:
        ModelError: if the files are damaged, or if the tensor is packed in some way of its own.
    """
    found = next((t for t in read_headers(weight_files(folder)) if module_name(t.name) == name), None)
    if found is None:
        return None
    if found.dtype not in _FLOATS:
        what = f"{found.name} in {found.file} is stored as {found.dtype}, which has no plain rows"
        raise ModelError(what, "use the model's weights before they were quantised")
    try:
        with safe_open(found.file, "pt") as stored:
            tensor: Tensor = stored.get_tensor(found.name)
    except Exception as error:
        # The file was whole when it was loaded; what happened to it since has many classes.
        what = f"{found.name} cannot be read from {found.file} ({brief(error)})"
        raise ModelError(what, "fetch the model again") from error
    return tensor


def read_gguf_tensor(file: Path, name: str) -> Tensor | None:
    """The tensor `name` of a GGUF file, dequantised to float32 on the CPU; None where there is none.

    Raises:
        ModelError: if the file is damaged or the packages that read it are missing.
    """
    with gguf_alone(file):
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
def gguf_alone(file: Path) -> Iterator[Path]:
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
    with tempfile.TemporaryDirectory(prefix="signarium-") as folder:
        Path(folder, file.name).symlink_to(file)
        # The package is one for all threads.
        with (
            _gguf,
            mock.patch.multiple(
                gguf,
                GGUFReader=lambda *_, **__: reader,
                get_tensor_name_map=functools.cache(tensor_mapping.get_tensor_name_map),
            ),
        ):
            yield Path(folder)


# ---- hashing ------------------------------------------------------------------------------------


def hash_stored(tensors: Iterable[StoredTensor]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes: the same however the tensors are spread over files."""
    digest = hashlib.sha256()
    for tensor in sorted(tensors, key=lambda t: t.name):
        _describe(digest, tensor.name, tensor.dtype, tensor.shape)
        with tensor.file.open("rb") as stream:
            stream.seek(tensor.start)
            left = tensor.n_bytes
            while left:
                chunk = stream.read(min(left, _CHUNK))
                if not chunk:
                    raise ModelError(f"{tensor.file} ended inside {tensor.name}", "fetch it again")
                digest.update(chunk)
                left -= len(chunk)
    return digest.hexdigest()


def hash_file(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of tensors in memory, by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        _describe(digest, name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _describe(digest: Any, name: str, dtype: str, shape: tuple[int, ...]) -> None:
    digest.update(json.dumps([name, dtype, list(shape)]).encode("utf-8"))
