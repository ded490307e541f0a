"""Architectures that are registered from outside.

A class may be given as text, "package.module:Name". It is imported when a model of the architecture is loaded, so a
registration costs the commands that only read nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ...catalog.errors import InvalidInput, ModelError


@dataclass(frozen=True)
class Architecture:
    """What `register_model` was told; see there."""

    model_type: str
    config: str | type[Any]
    backbone: str | type[Any]
    causal: str | type[Any] | None
    modules: tuple[str, ...]


_registered: dict[str, Architecture] = {}


def register_model(
    model_type: str,
    config: str | type[Any],
    backbone: str | type[Any],
    *,
    causal: str | type[Any] | None = None,
    modules: Sequence[str] = (),
) -> None:
    """Registers an architecture that transformers lacks. Registering it again replaces the registration.

    `model_type` is that of its `config.json`. `config` is a subclass of `PreTrainedConfig`, `backbone` a
    `PreTrainedModel` from token ids to `last_hidden_state`, `causal` the same with a language-modelling head, where
    there is one: each a class, or its place as text, "package.module:Name". `modules` are imported with them, such as
    a module that tells `align` of the labels in its texts (`ingest.rotations.labels.register_labels`).

    Raises:
        InvalidInput: if `model_type` is empty, or a place has another form.
    """
    if not model_type:
        raise InvalidInput("an architecture needs a name", "pass the model_type of its config.json")
    for place in (config, backbone, causal):
        if isinstance(place, str) and (place.count(":") != 1 or not all(place.split(":"))):
            raise InvalidInput(f"{place!r} is no place of a class", "write it as package.module:Name")
    _registered[model_type] = Architecture(model_type, config, backbone, causal, tuple(modules))


def tell_transformers(model_type: str) -> None:
    """Makes the classes of a registered architecture known to transformers; for another `model_type` does nothing.

    Raises:
        ModelError: if a class cannot be imported, or transformers refuses it.
    """
    if model_type in _registered:
        _tell(_registered[model_type])


@cache
def _tell(architecture: Architecture) -> None:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    config, backbone, causal = map(_class, (architecture.config, architecture.backbone, architecture.causal))
    try:
        AutoConfig.register(architecture.model_type, config, exist_ok=True)
        AutoModel.register(config, backbone, exist_ok=True)
        if causal is not None:
            AutoModelForCausalLM.register(config, causal, exist_ok=True)
    except Exception as error:
        what = f"transformers refuses the classes of {architecture.model_type} ({_brief(error)})"
        raise ModelError(what, "register a PreTrainedConfig and PreTrainedModels of it") from error
    for module in architecture.modules:
        _class(module)


def _class(place: str | type[Any] | None) -> Any:
    """The class at `place`, "package.module:Name", or the module where there is no name."""
    if not isinstance(place, str):
        return place
    module, _, name = place.partition(":")
    try:
        found = importlib.import_module(module)
        return getattr(found, name) if name else found
    except Exception as error:
        # A module of the user's may fail in any way; it is one line, as for any other model that cannot be loaded.
        what = f"{place} cannot be imported ({type(error).__name__}: {_brief(error)})"
        raise ModelError(what, "mend the module that registers it") from error


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
