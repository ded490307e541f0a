"""The stage neurons: codes of weights, against the weights themselves."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from digest import Commands, digest, rows, sound
from effort import in_full
from sqlalchemy import text

import signarium
from signarium.catalog import store
from signarium.catalog.errors import InvalidInput
from signarium.ingest.neurons import stage as neurons
from signarium.ingest.recheck import recheck
from signarium.ingest.words import directions as words


def ingest(path: Path, source: Path, stages: str = "neurons", **options: Any) -> Any:
    return signarium.ingest(path, str(source), stages=stages, device="cpu", **options)  # type: ignore[operator]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("neurons")
    for architecture in ("llama", "gpt2"):
        ingest(made / f"{architecture}.duckdb", tiny.built(architecture))
    return made


def stored(path: Path, view: str, width: int) -> tuple[np.ndarray, np.ndarray, list[tuple[Any, ...]]]:
    """Bits (n, width), norms (n,) and the other columns, in order."""
    keys = {"neurons": "layer, neuron", "unembedding": "token_id, token"}[view]
    found = rows(path, f"SELECT code, norm, {keys} FROM {view} ORDER BY ALL".replace("ALL", keys))
    codes = np.frombuffer(b"".join(row[0] for row in found), np.uint8).reshape(len(found), -1)
    return np.unpackbits(codes, axis=1), np.array([row[1] for row in found]), [row[2:] for row in found]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_codes_are_the_signs_of_the_weights(home: Path, architecture: str) -> None:
    path = home / f"{architecture}.duckdb"
    model = tiny.loaded(architecture)
    module: Any = model.module
    state = module.state_dict()
    if architecture == "llama":
        # A Linear keeps [width, neurons].
        maps = [state[f"layers.{i}.mlp.down_proj.weight"].T.numpy() for i in range(model.n_layers)]
    else:
        # A Conv1D keeps [neurons, width].
        maps = [state[f"h.{i}.mlp.c_proj.weight"].numpy() for i in range(model.n_layers)]
    bits, norms, places = stored(path, "neurons", model.width)
    every = np.concatenate(maps)
    assert (bits[:, : model.width] == (every > 0)).all()
    assert not bits[:, model.width :].any()
    assert np.allclose(norms, np.linalg.norm(every, axis=1), rtol=1e-6)
    assert places == [(i, n) for i, one in enumerate(maps) for n in range(len(one))]
    bits, norms, places = stored(path, "unembedding", model.width)
    head = model.unembedding().numpy()
    assert (bits[:, : model.width] == (head > 0)).all()
    assert np.allclose(norms, np.linalg.norm(head, axis=1), rtol=1e-6)
    assert [one[0] for one in places] == list(range(model.vocab_size))
    assert [one[1] for one in places] == model.token_strings()


def test_one_index_holds_all_of_them(home: Path) -> None:
    path = home / "llama.duckdb"
    sets = rows(path, "SELECT subject, site, centre, n, indexed FROM code_sets ORDER BY subject")
    model = tiny.loaded()
    assert sets == [
        ("neuron", "residual", "zero", model.n_layers * model.d_ffn, True),
        ("unembedding", "final_norm", "zero", model.vocab_size, True),
    ]
    sound(path)


def test_words_of_each_neuron(home: Path) -> None:
    path = home / "llama.duckdb"
    model = tiny.loaded()
    found = words.Vocabulary(model).project(model.ffn_directions(2))
    ((n,),) = rows(path, "SELECT count(*) FROM projections")
    assert n == model.n_layers * model.d_ffn * 4 * words.TOP
    strings = model.token_strings()
    for neuron in (0, 17):
        tops = rows(
            path,
            "SELECT token_id, token, site FROM projections WHERE subject = 'neuron' AND subject_id = ? AND source = 'float' "
            "AND direction = 'up' ORDER BY rank",
            [f"2/{neuron}"],
        )
        assert [row[0] for row in tops] == found.up[neuron].tolist()
        assert [row[1] for row in tops] == [strings[one] for one in found.up[neuron]]
        assert {row[2] for row in tops} == {"residual"}
    figures = rows(
        path,
        "SELECT control, value, n FROM measurements WHERE metric = 'projection_overlap' AND subject = 'neuron'",
    )
    assert {row[0] for row in figures} == {"none", "random_signs", "haar:1", "shuffled"}
    assert {row[2] for row in figures} == {min(words.SAMPLE, model.n_layers * model.d_ffn)}


def test_they_are_read_again(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.duckdb"
    shutil.copy(home / "gpt2.duckdb", path)
    model = tiny.loaded("gpt2")
    n = model.n_layers * model.d_ffn
    (found,) = recheck(path, "gpt2-0", n=50)
    assert (found.what, found.codes, found.bits, found.flipped) == (
        "neurons read again",
        50,
        50 * model.width,
        0,
    )
    with store.writing(path) as session:
        session.execute(text("UPDATE code_row SET code = (~(code::BIT))::BLOB WHERE item < 1000 AND item % 2 = 0 AND "
                             "code_set_id IN (SELECT code_set_id FROM code_set WHERE subject = 'neuron')"))  # fmt: skip
    (found,) = recheck(path, "gpt2-0", n=n)
    # The padding of the last byte was turned as well.
    assert found.codes == n and found.flipped >= model.d_ffn // 2 * model.width


def test_again_is_nothing(home: Path) -> None:
    path = home / "gpt2.duckdb"
    before = digest(path)
    assert ingest(path, tiny.built("gpt2")).already
    assert digest(path) == before


def test_the_size_is_known_before(home: Path, tmp_path: Path) -> None:
    model = tiny.loaded()
    report = ingest(tmp_path / "c.duckdb", tiny.built(), dry_run=True)
    assert report.estimate.rows == model.n_layers * model.d_ffn + model.vocab_size
    assert not (tmp_path / "c.duckdb").exists()
    # So small a file is mostly blocks that are not full.
    wanted = report.estimate.catalogue_bytes
    assert 0.5 < (home / "llama.duckdb").stat().st_size / wanted < 2


def test_an_encoder_has_codes_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.duckdb"
    ingest(path, tiny.built("bert"))
    assert rows(path, "SELECT DISTINCT subject FROM code_sets") == [("neuron",)]
    assert rows(path, "SELECT count(*) FROM projections") == [(0,)]
    sound(path)


def test_a_model_without_a_last_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neurons, "writing_blocks", lambda model: [])
    with pytest.raises(InvalidInput, match="no neurons"):
        ingest(tmp_path / "c.duckdb", tiny.built())
    assert not (tmp_path / "c.duckdb").exists()


COMMAND = ["ingest", tiny.built(), "--stages", "neurons", "--device", "cpu"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, warm: Commands) -> Path:
    path = tmp_path_factory.mktemp("whole") / "c.duckdb"
    assert warm.run("--db", path, *COMMAND).code == 0
    return path


@pytest.mark.parametrize("nth", [in_full(2), 6])
def test_killed_and_resumed(whole: Path, tmp_path: Path, warm: Commands, nth: int) -> None:
    path = tmp_path / "c.duckdb"
    killed = warm.run("--db", path, *COMMAND, kill_in=("commit", nth, 0.0))
    assert killed.code == -9, "it ended before it was killed"
    again = warm.run("--db", path, *COMMAND)
    assert again.code == 0, again.err
    assert digest(path) == digest(whole)
    sound(path)
