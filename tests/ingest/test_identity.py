"""A model is all that shapes its forward pass: its weights, its config, its tokenizer, its float type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest
import tiny

import signarium
from signarium.catalog.errors import ModelError, RunConflict
from signarium.catalog.ids import short_id
from signarium.ingest.encode import reload
from signarium.ingest.known import look_up
from signarium.ingest.model.load import load_model


def ingest(path: Path, folder: Path, **options: Any) -> Any:
    options = {"sites": "resid_post.1", "stages": "types", "device": "cpu"} | options
    return signarium.ingest(path, folder, **options)  # type: ignore[operator]


def change(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a catalogue of its types."""
    made = tmp_path_factory.mktemp("identity")
    tiny.folder(made, "llama", name="mine")
    ingest(made / "c.duckdb", made / "mine")
    return made


@pytest.fixture
def copy(home: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    for one in (
        "mine/config.json",
        "mine/model.safetensors",
        "mine/tokenizer.json",
        "mine/tokenizer_config.json",
    ):
        (tmp_path / one).parent.mkdir(exist_ok=True)
        (tmp_path / one).write_bytes((home / one).read_bytes())
    with duckdb.connect(str(tmp_path / "c.duckdb")) as connection:
        connection.execute(f"ATTACH '{home / 'c.duckdb'}' AS old (READ_ONLY)")
        connection.execute("COPY FROM DATABASE old TO c")
        connection.execute("UPDATE model SET source = ?", [str(tmp_path / "mine")])
    return tmp_path


def test_the_same_weights_with_another_config_are_another_model(copy: Path) -> None:
    path, folder = copy / "c.duckdb", copy / "mine"
    change(folder, use_cache=False, eos_token_id=5)
    assert ingest(path, folder).already
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 64}
    change(folder, hidden_act="gelu", rope_parameters=yarn)
    belongs = (
        r"'mine' belongs to the same weights with another config \(hidden_act, rope_parameters\.factor, "
    )
    with pytest.raises(RunConflict, match=belongs):
        ingest(path, folder)
    with pytest.raises(ModelError, match=r"has another config than mine was ingested with \(hidden_act"):
        reload(path, "mine", "cpu")
    report = ingest(path, folder, name="yarn")
    assert not report.already
    assert report.notes[0].startswith(
        "mine in the catalogue is the same weights with another config (hidden_act"
    )
    with duckdb.connect(str(path), read_only=True) as connection:
        differing = connection.execute(
            "SELECT count(*) FROM types a JOIN types b USING (site, centre, token_id) "
            "WHERE a.model = 'mine' AND b.model = 'yarn' AND a.code <> b.code"
        ).fetchone()
    assert differing is not None and differing[0] > 0


def test_the_attention_and_the_tokenizer_count(copy: Path) -> None:
    path, folder = copy / "c.duckdb", copy / "mine"
    eager = load_model(str(folder), device="cpu", attention="eager")
    with pytest.raises(
        RunConflict, match=r"the same weights with the attention sdpa .this is eager.: pass another"
    ):
        look_up(path, eager, None)
    file = folder / "tokenizer.json"
    definition = json.loads(file.read_text())
    file.write_text(json.dumps(definition | {"normalizer": {"type": "Lowercase"}}))
    with pytest.raises(RunConflict, match="the same weights with another tokenizer"):
        look_up(path, load_model(str(folder), device="cpu"), None)
    with pytest.raises(ModelError, match="holds another tokenizer than mine was ingested with"):
        reload(path, "mine", "cpu")


def test_a_model_from_before_configs_were_kept_keeps_its_id(copy: Path) -> None:
    path, folder = copy / "c.duckdb", copy / "mine"
    model = load_model(str(folder), device="cpu")
    earlier = short_id("model", model.weights_sha256, model.tokenizer_sha256, model.dtype)
    with duckdb.connect(str(path)) as connection:
        (old,) = connection.execute("SELECT model_id FROM model").fetchone() or ("",)
        for table in ("run", "site", "model"):
            connection.execute(f"UPDATE {table} SET model_id = ?", [earlier])
        connection.execute("UPDATE model SET config = NULL, attention = NULL")
    assert old != earlier
    assert reload(path, "mine", "cpu").catalogue_id == earlier
    plain = (folder / "config.json").read_text()
    change(folder, hidden_act="relu")
    with pytest.raises(
        RunConflict, match=r"mine has codes of another config of these weights .* of the bits of a type"
    ):
        ingest(path, folder)
    assert not ingest(path, folder, name="relu").already
    (folder / "config.json").write_text(plain)
    report = ingest(path, folder)
    assert report.already and any("was added before its config was kept" in note for note in report.notes)
    with duckdb.connect(str(path), read_only=True) as connection:
        found = connection.execute(
            "SELECT model_id, config, attention FROM model WHERE name = 'mine'"
        ).fetchall()
    assert found == [(earlier, model.config, "sdpa")]
    assert not ingest(path, folder).notes
    change(folder, hidden_act="gelu")
    with pytest.raises(RunConflict, match=r"another config \(hidden_act\): pass another --name"):
        ingest(path, folder)
