"""LoRA adapters, as PEFT saves them: merged into the weights of their base model when that is at hand."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...catalog.errors import ModelError
from ...catalog.ids import digest
from . import hub
from .weights import StoredTensor, hash_stored, pickled, read_headers, read_json

_CONFIG, _FILE = "adapter_config.json", "adapter_model.safetensors"
_NAME = re.compile(r"^(?:base_model\.model\.)?(?P<path>.+)\.lora_(?P<part>[AB])(?:\.\w+)?\.weight$")
_UNREAD = {
    "use_dora": False,
    "bias": "none",
    "modules_to_save": None,
    "layer_replication": None,
    "use_qalora": False,
}
"""What an adapter's config may say beside its factors, with the values that mean nothing is there."""
_MERGE = "merge it into its base model and save that"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    whole = (folder / "config.json").is_file() and any(folder.glob("model*.safetensors"))
    return (folder / _CONFIG).is_file() and not whole


@dataclass(frozen=True)
class Adapter:
    """An adapter that can be merged: the base model's place, and the tensors of both factors of each map."""

    folder: Path
    base: Path
    config: Mapping[str, Any]
    stored: Sequence[StoredTensor]

    @classmethod
    def read(cls, folder: Path) -> Adapter:
        """The adapter in a folder.

        Raises:
            ModelError: if it is none that can be merged, or if its base model is not at hand.
        """
        config = read_json(folder / _CONFIG)
        kind = config.get("peft_type")
        odd = [key for key, usual in _UNREAD.items() if config.get(key) not in (None, usual, [])]
        if kind != "LORA" or odd:
            what = f"{folder} holds an adapter, not a model, and not one that is merged here ({', '.join(odd) or kind})"
            raise ModelError(what, _MERGE)
        if not (folder / _FILE).is_file():
            pickle = next(iter(sorted(folder.glob("adapter_model.bin"))), None)
            raise pickled(pickle) if pickle else ModelError(f"{folder} has no {_FILE}", "fetch it again")
        return cls(folder, _base(folder, config), config, read_headers([folder / _FILE]))

    def sha256(self, base: str) -> str:
        """The hash of the merged weights: of those of the base model, the factors, and how they are scaled."""
        scales = {
            key: self.config.get(key)
            for key in ("r", "lora_alpha", "use_rslora", "alpha_pattern", "fan_in_fan_out")
        }
        return digest(base, hash_stored(self.stored), json.dumps(scales, sort_keys=True))

    def merge(self, module: nn.Module) -> None:
        """Add scale * B A to the weight of every map that the adapter names.

        Raises:
            ModelError: if a factor lacks its other half or has no map in the model, or one of another shape.
        """
        factors: dict[str, dict[str, Tensor]] = {}
        tensors = load_file(self.folder / _FILE)
        for name, tensor in tensors.items():
            found = _NAME.match(name)
            if found is None:
                raise self._refused(f"{name} is no factor of a linear map")
            factors.setdefault(found["path"], {})[found["part"]] = tensor
        maps = dict(module.named_modules())
        prefix = f"{getattr(module, 'base_model_prefix', '')}."
        missing = [path for path in factors if path not in maps and path.removeprefix(prefix) not in maps]
        if missing or not factors:
            what = (
                f"{len(missing)} of its {len(factors)} maps are not in the model ({', '.join(missing[:3])})"
            )
            raise self._refused(what)
        for path, pair in factors.items():
            child: Any = maps.get(path) or maps[path.removeprefix(prefix)]
            self._add(path, child, pair)

    def _add(self, path: str, child: Any, pair: dict[str, Tensor]) -> None:
        if set(pair) != {"A", "B"} or not isinstance(getattr(child, "weight", None), Tensor):
            raise self._refused(f"{path} lacks a factor or a weight")
        change = pair["B"].float() @ pair["A"].float() * self._scale(path, len(pair["A"]))
        # A Conv1D keeps its weight as [in, out].
        change = change if hasattr(child, "in_features") else change.T
        if change.shape != child.weight.shape:
            raise self._refused(
                f"the factors of {path} make {list(change.shape)}, not {list(child.weight.shape)}"
            )
        with torch.no_grad():
            child.weight.copy_(child.weight.float() + change.to(child.weight.device))

    def _scale(self, path: str, rank: int) -> float:
        alpha = float(self.config.get("lora_alpha", rank))
        for pattern, other in (self.config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", path):
                alpha = float(other)
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _refused(self, why: str) -> ModelError:
        return ModelError(
            f"the adapter {self.folder} does not fit its base model {self.base} ({why})", _MERGE
        )


def _base(folder: Path, config: Mapping[str, Any]) -> Path:
    """The folder of the base model: a path, seen from here or from the adapter, or what the cache of the hub has."""
    name = config.get("base_model_name_or_path")
    if isinstance(name, str) and name:
        for path in (Path(name).expanduser(), folder / name):
            if path.is_dir():
                return Path(os.path.abspath(path))
        if (cached := hub.in_cache(name, config.get("revision"))) is not None:
            return cached
    what = f"{folder} holds an adapter, not a model, and its base model {name!r} is not at hand"
    raise ModelError(what, f"fetch that (`hf download {name}`), or merge the two and save that")
