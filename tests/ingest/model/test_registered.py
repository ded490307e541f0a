"""Architectures that are registered from outside: places of classes, and the message when a place is wrong."""

from __future__ import annotations

import pytest

import signarium
from signarium.catalog.errors import InvalidInput, ModelError
from signarium.ingest.model import registered


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registered, "_registered", {})


def test_a_class_that_cannot_be_imported_is_one_line() -> None:
    signarium.register_model("made", "json:JSONDecoder", "no_such_module:Model")
    with pytest.raises(ModelError, match=r"no_such_module:Model cannot be imported \(ModuleNotFoundError"):
        registered.tell_transformers("made")
    signarium.register_model("made", "json:NoSuchClass", "json:JSONEncoder")
    with pytest.raises(ModelError, match=r"json:NoSuchClass cannot be imported \(AttributeError"):
        registered.tell_transformers("made")


def test_classes_that_transformers_refuses_are_one_line() -> None:
    registered.tell_transformers("made")  # registered by nobody
    signarium.register_model("made", "transformers:LlamaConfig", "transformers:LlamaModel")
    with pytest.raises(ModelError, match="transformers refuses the classes of made") as caught:
        registered.tell_transformers("made")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["json.JSONDecoder", "json:", ":JSONDecoder", "a:b:c"])
def test_a_place_names_a_module_and_a_class(place: str) -> None:
    with pytest.raises(InvalidInput, match=r"package\.module:Name"):
        signarium.register_model("made", "json:JSONDecoder", place)
    with pytest.raises(InvalidInput, match="model_type"):
        signarium.register_model("", "json:JSONDecoder", "json:JSONEncoder")
