"""A sparse autoencoder's dictionary: its weights, reading them from safetensors, writing them.

The names are SAELens': `W_enc`, `b_enc`, `W_dec`, `b_dec`, and `threshold` where the activation is a JumpReLU.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from ...catalog.errors import InvalidInput
from ...catalog.files import replacing
from ..model.weights import brief

_NEEDED = ("W_enc", "b_enc", "W_dec", "b_dec")
_THRESHOLD = "threshold"
_FLOATS = ("F64", "F32", "F16", "BF16")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
APPLY = "apply_b_dec_to_input"
_CFG = "cfg.json"
_CFG_KEPT = ("architecture", "activation_fn_str", APPLY, "normalize_activations", "model_name", "hook_name")


@dataclass(frozen=True, eq=False)
class Dictionary:
    """f = act((x - b_dec) W_enc + b_enc) and x' = f W_dec + b_dec, for rows x.

    Tensors are float32 on one device: `w_enc` [width, n_features], `b_enc` [n_features], `w_dec` [n_features, width],
    `b_dec` [width]. act is ReLU, or with a `threshold` [n_features] JumpReLU: what is not above it is 0 (Rajamanoharan
    2024, section 3). `params["apply_b_dec_to_input"]`, by default true, says whether b_dec is subtracted. `seed` is that
    of the training, None if nobody said.

    Raises:
        InvalidInput: if shapes do not belong together.
    """

    w_enc: Tensor
    b_enc: Tensor
    w_dec: Tensor
    b_dec: Tensor
    seed: int | None
    params: dict[str, Any]
    threshold: Tensor | None = None

    def __post_init__(self) -> None:
        width, n = self.width, self.n_features
        shapes = {"w_enc": (width, n), "b_enc": (n,), "w_dec": (n, width), "b_dec": (width,)}
        if self.threshold is not None:
            shapes["threshold"] = (n,)
        for name, shape in shapes.items():
            found = tuple(getattr(self, name).shape)
            if found != shape or not width or not n:
                raise InvalidInput(
                    f"{name} of a dictionary of width {width} and {n} features has shape {found}"
                )

    @property
    def width(self) -> int:
        """Of the states that it reads."""
        return int(self.b_dec.numel())

    @property
    def n_features(self) -> int:
        """Rows of its decoder."""
        return int(self.b_enc.numel())

    @property
    def subtracts_b_dec(self) -> bool:
        """Whether the encoder reads x - b_dec rather than x."""
        return bool(self.params.get(APPLY, True))

    def encode(self, x: Tensor) -> Tensor:
        """States [n, width] to activations [n, n_features], none negative, in float32.

        Raises:
            InvalidInput: if the states have another width.
        """
        if x.ndim != 2 or x.shape[1] != self.width:
            raise InvalidInput(f"states of shape {tuple(x.shape)} for a dictionary of width {self.width}")
        x = x.to(self.w_enc.dtype)
        before = (x - self.b_dec if self.subtracts_b_dec else x) @ self.w_enc + self.b_enc
        active = torch.relu(before)
        return active if self.threshold is None else active * (before > self.threshold)

    def decode(self, f: Tensor) -> Tensor:
        """Activations [n, n_features] to states [n, width]."""
        return f @ self.w_dec + self.b_dec

    def to(self, device: torch.device) -> Dictionary:
        """The same on `device`."""
        threshold = None if self.threshold is None else self.threshold.to(device)
        return replace(
            self, w_enc=self.w_enc.to(device), b_enc=self.b_enc.to(device), w_dec=self.w_dec.to(device),
            b_dec=self.b_dec.to(device), threshold=threshold,
        )  # fmt: skip


# ---- reading --------------------------------------------------------------------------------------


def load(file: Path) -> Dictionary:
    """The dictionary in a safetensors file, in float32 on the host.

    `W_enc` and `W_dec` are taken in either orientation, each by itself, as the lengths of the biases tell; a dictionary
    with as many features as dimensions is taken as `W_enc` [width, n_features] and `W_dec` [n_features, width], which is
    SAELens' way, since nothing tells. Float types are converted. What the file's metadata say (`seed` and `params`, JSON,
    as `save` writes them) goes into the dictionary. A file that does not say whether b_dec is subtracted is asked about
    in SAELens' `cfg.json` beside it; without one it is. Dictionaries with another activation (top-k, gated) or
    normalised input are refused where that shows.

    Raises:
        InvalidInput: if it is no safetensors file, lacks a tensor, or holds one that cannot be used.
    """
    file = Path(file)
    _check_file(file)
    use = "give a safetensors file with W_enc, b_enc, W_dec and b_dec"
    try:
        with safe_open(file, "pt") as stored:
            metadata = dict(stored.metadata() or {})
            # Names, types and shapes before gigabytes are read.
            known = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
            _check_names(file, sorted(known))
            width, n = _check_shapes(
                file, {k: tuple(v.get_shape()) for k, v in known.items()},
                {k: str(v.get_dtype()) for k, v in known.items()},
            )  # fmt: skip
            # A copy, since the file is mapped and may change under us.
            found = {name: stored.get_tensor(name).to(torch.float32, copy=True) for name in known}
    except InvalidInput:
        raise
    except Exception as error:
        # Damage has many classes, wherever the library meets it.
        raise InvalidInput(f"{file} is no whole safetensors file ({brief(error)})", use) from error
    for name, tensor in found.items():
        if not torch.isfinite(tensor).all():
            raise InvalidInput(f"{name} in {file} holds NaN or infinity", "use another file")
    w_enc, w_dec = found["W_enc"], found["W_dec"]
    seed, params = _said(file, metadata)
    if APPLY not in params:
        params = params | _saelens(file, width, n)
    params.setdefault(APPLY, True)
    if not isinstance(params[APPLY], bool):
        raise InvalidInput(f"{APPLY} of {file} is {params[APPLY]!r}", "say true or false")
    return Dictionary(
        w_enc if w_enc.shape == (width, n) else w_enc.T.contiguous(), found["b_enc"],
        w_dec if w_dec.shape == (n, width) else w_dec.T.contiguous(), found["b_dec"], seed, params,
        found.get(_THRESHOLD),
    )  # fmt: skip


def _check_file(file: Path) -> None:
    use = "give a safetensors file"
    try:
        if file.is_dir():
            raise InvalidInput(f"{file} is a folder", f"{use}, such as {file / 'sae_weights.safetensors'}")
        if not file.is_file():
            there = "is no ordinary file" if file.exists() else "is not there"
            raise InvalidInput(f"{file} {there}", use)
        with file.open("rb") as stream:
            head = stream.read(9)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{file} cannot be read ({brief(error)})", use) from error
    if not head:
        raise InvalidInput(f"{file} is empty", use)
    # torch.save writes a zip or a bare pickle, numpy's .npz is a zip too. A header of 640 bytes begins like a pickle.
    pickled = head[:4] == b"PK\x03\x04" or (head[0] == 0x80 and head[1:2] <= b"\x05" and head[8:] != b"{")
    if pickled or file.suffix.lower() in _PICKLES:
        raise InvalidInput(
            f"{file} is a pickle or a zip of arrays, and was not opened", "convert it to safetensors"
        )


def _check_names(file: Path, names: list[str]) -> None:
    missing = [name for name in _NEEDED if name not in names]
    if missing:
        there = f"it has {', '.join(names[:8])}" if names else "it has no tensor"
        raise InvalidInput(f"{file} lacks {', '.join(missing)}", there)
    others = [name for name in names if name not in (*_NEEDED, _THRESHOLD)]
    if others:
        # A gate or a scale changes what the encoder does; leaving it out would be another dictionary.
        what = f"{file} also holds {', '.join(others[:4])}, which is no part of a ReLU or JumpReLU dictionary"
        raise InvalidInput(what, "save W_enc, b_enc, W_dec, b_dec and threshold alone if they say it all")


def _check_shapes(file: Path, shapes: dict[str, tuple[int, ...]], dtypes: dict[str, str]) -> tuple[int, int]:
    for name, dtype in dtypes.items():
        if dtype not in _FLOATS:
            raise InvalidInput(f"{name} in {file} is stored as {dtype}", f"store it as {', '.join(_FLOATS)}")
    for name in ("b_enc", "b_dec"):
        if len(shapes[name]) != 1 or not shapes[name][0]:
            raise InvalidInput(f"{name} in {file} has shape {list(shapes[name])}", "a bias has one axis")
    (n,), (width,) = shapes["b_enc"], shapes["b_dec"]
    for name in ("W_enc", "W_dec"):
        if shapes[name] not in ((width, n), (n, width)):
            what = f"{name} in {file} has shape {list(shapes[name])}"
            raise InvalidInput(
                what, f"with these biases it must be {[width, n]} or {[n, width]} (width {width})"
            )
    if shapes.get(_THRESHOLD, (n,)) != (n,):
        raise InvalidInput(
            f"{_THRESHOLD} in {file} has shape {list(shapes[_THRESHOLD])}", f"it must be {[n]}"
        )
    return width, n


def _said(file: Path, metadata: dict[str, str]) -> tuple[int | None, dict[str, Any]]:
    """Seed and params from a file's metadata; metadata of other programs go into the params as strings."""
    seed = _json(file, "seed", metadata.pop("seed", "null"))
    if seed is not None and (type(seed) is not int or not 0 <= seed < 1 << 63):
        raise InvalidInput(f"the metadata of {file} give the seed {seed!r}", "it must be a whole number")
    params = _json(file, "params", metadata.pop("params", "{}"))
    if not isinstance(params, dict):
        raise InvalidInput(f"the params in the metadata of {file} are no JSON object")
    if APPLY in metadata:
        params[APPLY] = _json(file, APPLY, metadata.pop(APPLY).lower())
    metadata.pop("format", None)
    return seed, metadata | params


def _json(file: Path, what: str, text: str) -> Any:
    try:
        value = json.loads(text)
        # What goes into the catalogue must be JSON in the strict sense: no NaN, no half of a surrogate pair.
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{what} of {file} is no JSON ({brief(error)})") from error
    return value


def _saelens(file: Path, width: int, n: int) -> dict[str, Any]:
    """What SAELens' configuration beside the file says; {} without one."""
    cfg = file.with_name(_CFG)
    if not cfg.is_file():
        return {}
    try:
        text = cfg.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{cfg} cannot be read ({brief(error)})") from error
    said = _json(cfg, "the text", text)
    if not isinstance(said, dict) or not {"d_in", "d_sae"} <= set(said):
        return {}
    if (said["d_in"], said["d_sae"]) != (width, n):
        what = f"{cfg} speaks of {said['d_in']} x {said['d_sae']}, {file.name} has {width} x {n}"
        raise InvalidInput(what, "keep each dictionary in a folder of its own")
    plain = {
        "architecture": ("standard", "jumprelu", None),
        "activation_fn_str": ("relu", None),
        "normalize_activations": ("none", None),
        "reshape_activations": ("none", None),
        "finetuning_scaling_factor": (False, None),
    }
    for key, allowed in plain.items():
        if said.get(key) not in allowed:
            raise InvalidInput(
                f"{file} has {key} {said[key]!r} ({cfg.name})",
                "only ReLU and JumpReLU dictionaries of states as they are can be read",
            )
    return {key: said[key] for key in _CFG_KEPT if key in said}


# ---- writing --------------------------------------------------------------------------------------


def save(file: Path, dictionary: Dictionary) -> None:
    """Write a dictionary as safetensors: the whole file or what was there before, the same bytes every time.

    The metadata are `seed` and `params`, each JSON.

    Raises:
        InvalidInput: if the file cannot be written.
    """
    file = Path(file)
    tensors = {
        "W_enc": dictionary.w_enc, "b_enc": dictionary.b_enc, "W_dec": dictionary.w_dec, "b_dec": dictionary.b_dec,
    }  # fmt: skip
    if dictionary.threshold is not None:
        tensors[_THRESHOLD] = dictionary.threshold
    made = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    length = int.from_bytes(made[:8], "little")
    params = dictionary.params | {APPLY: dictionary.subtracts_b_dec}
    metadata = {
        "format": "pt",
        "params": json.dumps(params, sort_keys=True, allow_nan=False),
        "seed": json.dumps(dictionary.seed),
    }
    # The library writes metadata in an order that changes from one process to the next.
    header = json.dumps({"__metadata__": metadata} | json.loads(made[8 : 8 + length])).encode()
    header += b" " * (-len(header) % 8)
    try:
        with replacing(file.resolve()) as new, new.open("wb") as stream:
            stream.write(len(header).to_bytes(8, "little") + header)
            stream.write(memoryview(made)[8 + length :])
    except OSError as error:
        raise InvalidInput(f"{file} cannot be written ({brief(error)})", "give another file") from error
