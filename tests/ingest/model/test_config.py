from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from signarium.catalog.errors import ModelError
from signarium.ingest.differences import differences
from signarium.ingest.model.config import acting
from signarium.ingest.model.load import load_model


def changed(tmp_path: Path, **values: Any) -> str:
    path = tiny.folder(tmp_path, "llama")
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return str(path)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"num_hidden_layers": 10**10}, r"asks for num_hidden_layers = 10,000,000,000"),
        ({"num_attention_heads": 10**9}, "asks for num_attention_heads"),
        ({"vocab_size": 10**9}, r"describes [\d,]+ weights, and its files hold [\d,]+"),
        ({"hidden_size": 4_000_000}, "describes|makes no llama"),
        ({"vocab_size": "many"}, "cannot be read"),
    ],
)
def test_a_config_that_asks_for_the_impossible(tmp_path: Path, values: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        load_model(changed(tmp_path, **values), device="cpu")


def test_random_weights_beyond_this_machine(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"takes [0-9,]+ GB, and this machine has [0-9,]+ GB"):
        load_model(changed(tmp_path, vocab_size=10**12), device="cpu", random_init=0)


def test_a_config_acts_by_what_shapes_the_states() -> None:
    plain = acting(tiny.config("llama"))
    assert acting(tiny.config("llama", use_cache=False, attention_dropout=0.3, eos_token_id=7)) == plain
    other = acting(tiny.config("llama", hidden_act="gelu", rms_norm_eps=1e-5))
    assert differences(plain, other) == ["hidden_act", "rms_norm_eps"]
    scaled = tiny.config("llama", rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0})
    assert differences(plain, acting(scaled)) == ["rope_parameters.factor", "rope_parameters.rope_type"]
