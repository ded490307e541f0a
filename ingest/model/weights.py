"""The files of a model: refusing what must not be loaded, hashing the rest.

Everything here reads files and headers alone, so a bad file is refused before a model is built, and no pickle
and no code that comes with a model is ever run.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ...catalog.errors import ModelError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
OTHER_WEIGHTS = (".h5", ".msgpack", ".onnx", ".npz", ".nemo")
# State that training leaves beside the weights: a pickle, but no weights.
_NO_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "tiktoken.model",
)
_BYTES = {
    name: size
    for size, names in {8: "F64 I64 U64", 4: "F32 I32 U32", 2: "F16 BF16 I16 U16", 1: "I8 U8 BOOL"}.items()
    for name in names.split()
}
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CHUNK = 1 << 22
_MOST_JSON = 100_000_000
"""Bytes of a header or config: the limit that safetensors sets to its headers."""


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
        # A device or a pipe in its place would be read without end.
        if not path.is_file() or (size := path.stat().st_size) > _MOST_JSON:
            raise ValueError(f"{size:,} bytes" if path.is_file() else "no regular file")
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
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
    if not any((folder / name).is_file() for name in TOKENIZER_FILES) and not any(folder.glob("*.tiktoken")):
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
        files = [folder / name for name in shards(index)]
        for file in files:
            if not file.is_file():
                raise ModelError(f"{file} is missing, and {index.name} lists it", "fetch the model again")
        return files
    there = sorted(p for p in folder.iterdir() if p.is_file() and p.name not in _NO_WEIGHTS)
    for file in there:
        if file.suffix.lower() in PICKLES:
            raise pickled(file)
    for file in there:
        if file.suffix.lower() in OTHER_WEIGHTS:
            raise ModelError(f"{file} is no safetensors file", "convert it to safetensors with transformers")
    other = next((p for p in there if p.suffix == ".safetensors"), None)
    if other is not None:
        raise ModelError(
            f"{folder} has {other.name} but no model.safetensors", "save it with save_pretrained"
        )
    raise ModelError(f"{folder} has no weights", "put model.safetensors into it, or pass --random-init SEED")


def shards(index: Path) -> list[str]:
    """The names of the files that an index of weights lists, each of its own folder.

    Raises:
        ModelError: if it lists none, or one elsewhere.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index} lists no weights", "fetch the model again")
    names = sorted(set(map(str, weight_map.values())))
    outside = next((name for name in names if name in ("", "..") or Path(name).name != name), None)
    if outside is not None:
        what = f"{index} names {outside!r}, which is no file of its folder"
        raise ModelError(what, "fetch the model again")
    return names


def pickled(file: Path) -> ModelError:
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

    if not file.is_file():
        raise bad("no regular file")
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(8)
        if len(head) < 8:
            raise bad(f"{size} bytes are no safetensors file")
        (length,) = struct.unpack("<Q", head)
        if 8 + length > size or length > _MOST_JSON:
            raise bad(f"a header of {length} bytes in a file of {size}")
        try:
            header = json.loads(stream.read(length).decode("utf-8"))
            entries = {k: v for k, v in header.items() if k != "__metadata__"}
            data = 8 + length
            if any(not _plain(v) for v in entries.values()):
                raise ValueError("a tensor without type, shape or place")
            tensors = [
                StoredTensor(
                    name, v["dtype"], tuple(v["shape"]), file, data + v["data_offsets"][0],
                    v["data_offsets"][1] - v["data_offsets"][0],
                )
                for name, v in entries.items()
            ]  # fmt: skip
            end = max((t.start + t.n_bytes for t in tensors), default=data)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise bad(f"its header cannot be read: {brief(error)}") from error
    if end != size:
        raise bad(f"its header describes {end} bytes and the file has {size}")
    for t in tensors:
        expected = math.prod(t.shape) * _BYTES.get(t.dtype, 0)
        if t.n_bytes < 0 or t.start < data or (expected and t.n_bytes != expected):
            raise bad(f"{t.name} of shape {list(t.shape)} and type {t.dtype} takes {t.n_bytes} bytes")
    return tensors


def _plain(entry: Any) -> bool:
    """Whether an entry of a header has the types that it should have."""
    counts = [*entry["shape"], *entry["data_offsets"]]
    return isinstance(entry["dtype"], str) and all(type(one) is int and one >= 0 for one in counts)


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


def check_finite(name: str, tensor: Tensor, where: Path) -> None:
    """Raises ModelError if a tensor that was read from `where` holds NaN or infinity."""
    if tensor.is_floating_point() and tensor.numel():
        low, high = tensor.aminmax()
        if not (torch.isfinite(low) and torch.isfinite(high)):
            what = f"{name} in {where} holds NaN or infinity"
            raise ModelError(what, "fetch the model again")


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
