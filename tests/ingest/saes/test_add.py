"""Dictionaries in the catalogue: what an import leaves, again, resumed, moved and changed."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from digest import digest, rows, sound
from safetensors.torch import save_file

from signarium.catalog import bulk, schema, store
from signarium.catalog.codes import pack
from signarium.catalog.errors import InvalidInput, NotFound, RunConflict, SiteError
from signarium.catalog.ids import sae_item
from signarium.ingest import journal
from signarium.ingest.saes import add
from signarium.ingest.saes.add import SaeReport, read_saes
from signarium.ingest.saes.dictionary import Dictionary, save
from signarium.ingest.saes.request import SaeAddRequest
from signarium.ingest.saes.train import untrained

SITE = "resid_post.1"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A catalogue with a model of width 76 and two blocks, of which one site is known."""
    made = small.empty(tmp_path / "c.duckdb")
    with store.writing(made) as session:
        session.add_all(small.model_and_site())
    return made


def file_of(
    folder: Path, name: str = "a", seed: int = 0, width: int = small.WIDTH, n: int = 130, **params: Any
) -> Path:
    one = untrained(width, n, seed)
    one.params.update(params)
    # A dead feature without a direction has a code, too.
    one.w_dec[3] = 0
    save(folder / f"{name}.safetensors", one)
    return folder / f"{name}.safetensors"


def add_to(path: Path, file: Path, site: str = SITE, **other: Any) -> SaeReport:
    return add.add_sae(path, SaeAddRequest("tiny", site, file, **other))


def test_what_it_leaves(path: Path, tmp_path: Path) -> None:
    file = file_of(tmp_path, seed=9, l1=0.25)
    report = add_to(path, file)
    assert not report.already and report.name == "a" and report.n_features == 130 and not report.notes
    ((name, site, n, seed, source, params),) = rows(
        path,
        "SELECT name, site, n_features, seed, source, params FROM saes WHERE sae_id = ?",
        [report.sae_id],
    )
    assert (name, site, n, seed, source) == ("a", SITE, 130, 9, str(file.absolute()))
    assert json.loads(params)["l1"] == 0.25
    assert rows(path, "SELECT subject, centre, basis, width, n FROM code_sets") == [
        ("direction", "zero", "standard", small.WIDTH, 130)
    ]
    decoder = add._read(file)[1].w_dec.numpy()
    found = rows(path, "SELECT item, norm, code FROM code_row ORDER BY item")
    assert [row[0] for row in found] == [sae_item(report.sae_id, j) for j in range(130)]
    assert [row[0] & 0xFFFFFFFF for row in found] == list(range(130)) and found[0][0] > 1 << 32
    assert np.allclose([row[1] for row in found], np.linalg.norm(decoder, axis=1), atol=1e-6)
    assert b"".join(row[2] for row in found) == pack(decoder).tobytes()
    assert rows(path, "SELECT job, status FROM runs") == [("sae", "done")]
    assert rows(path, "SELECT count(*) FROM site") == [(1,)]
    sound(path)


def test_again_does_nothing(path: Path, tmp_path: Path) -> None:
    file = file_of(tmp_path)
    first = add_to(path, file)
    before = digest(path)
    for again in (add_to(path, file), add_to(path, file, name="a")):
        assert again.already and again.sae_id == first.sae_id
    with pytest.raises(RunConflict, match="already in the catalogue as 'a'"):
        add_to(path, file, name="b")
    assert digest(path) == before


def test_names_are_one_file_each(path: Path, tmp_path: Path) -> None:
    add_to(path, file_of(tmp_path))
    other = file_of(tmp_path, "other", seed=1)
    with pytest.raises(RunConflict, match="another dictionary of tiny") as caught:
        add_to(path, other, name="a")
    assert "\n" not in str(caught.value)
    with pytest.raises(RunConflict):
        add_to(path, other, "resid_post.0", name="a")
    assert add_to(path, other).name == "other"
    assert rows(path, "SELECT name FROM saes ORDER BY name") == [("a",), ("other",)]


def test_sites(path: Path, tmp_path: Path) -> None:
    file = file_of(tmp_path)
    add_to(path, file, "resid_post.0")
    assert rows(path, "SELECT name, width FROM site ORDER BY name") == [
        ("resid_post.0", small.WIDTH),
        ("resid_post.1", small.WIDTH),
    ]
    sound(path)
    with pytest.raises(SiteError, match="layers count from 0 to 1"):
        add_to(path, file, "resid_post.2")
    with pytest.raises(SiteError, match="no site"):
        add_to(path, file, "resid")
    with pytest.raises(NotFound, match="ingest the model at that site"):
        add_to(path, file, "k.0")
    with pytest.raises(NotFound, match="nobody"):
        add.add_sae(path, SaeAddRequest("nobody", SITE, file))
    with pytest.raises(InvalidInput, match="width 75"):
        add_to(path, file_of(tmp_path, "narrow", width=75))
    with pytest.raises(InvalidInput, match="not there"):
        add_to(path, tmp_path / "none.safetensors")
    assert rows(path, "SELECT count(*) FROM sae") == [(1,)]
    assert not list(tmp_path.glob("*.lock"))


def test_notes(path: Path, tmp_path: Path) -> None:
    elsewhere = add_to(path, file_of(tmp_path, "b", model_id="m7", model="other", site="resid_post.5"))
    assert "other at resid_post.5" in elsewhere.notes[0]
    square = add_to(path, file_of(tmp_path, "square", n=small.WIDTH))
    assert "square" in square.notes[0]
    assert not add_to(path, file_of(tmp_path, "c", seed=2, model_id="m0", site=SITE)).notes


class Killed(BaseException):
    """Nothing catches it."""


def test_killed_and_again(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the shard, in its transaction, and before the run is closed: in the end all is as without the kills."""
    file, whole = file_of(tmp_path), Path(shutil.copy(path, tmp_path / "whole.duckdb"))
    add_to(whole, file)

    def killed(*_: object, **__: object) -> None:
        raise Killed

    for target in ((add, "pack"), (bulk, "insert_codes"), (journal.Journal, "finish")):
        with monkeypatch.context() as patched:
            patched.setattr(*target, killed)
            with pytest.raises(Killed):
                add_to(path, file)
        assert rows(path, "SELECT status FROM runs") == [("running",)]
        assert read_saes(path, "tiny", SITE) == ([], [])
    assert not add_to(path, file).already
    # When it was added is all that differs.
    assert digest(path, ["sae"]) == digest(whole, ["sae"])
    query = "SELECT * EXCLUDE added_at FROM sae"
    assert rows(path, query) == rows(whole, query) != []
    sound(path)


def test_reading_them_back(path: Path, tmp_path: Path) -> None:
    files = [file_of(tmp_path, name, seed) for seed, name in enumerate("abc")]
    for file in files:
        add_to(path, file)
    found, notes = read_saes(path, "tiny", SITE)
    assert [one.row.name for one in found] == ["a", "b", "c"] and not notes
    row, dictionary = found[1]
    assert isinstance(row, schema.Sae) and isinstance(dictionary, Dictionary)
    assert row.seed == dictionary.seed == 1 and row.n_features == 130
    files[0].unlink()
    file_of(tmp_path, "b", 17)
    files[2].write_bytes(files[2].read_bytes()[:-5])
    found, notes = read_saes(path, "tiny", SITE)
    assert not found and len(notes) == 3
    assert "is gone" in notes[0] and "changed" in notes[1] and "no whole" in notes[2]
    assert read_saes(path, "tiny", "resid_post.0") == ([], [])
    with pytest.raises(NotFound):
        read_saes(path, "nobody", SITE)


def test_a_file_that_moved(path: Path, tmp_path: Path) -> None:
    file = file_of(tmp_path)
    add_to(path, file)
    copied = tmp_path / "copied.safetensors"
    copied.write_bytes(file.read_bytes())
    assert add_to(path, copied).notes == []
    assert rows(path, "SELECT source FROM saes") == [(str(file),)]
    file.unlink()
    report = add_to(path, copied)
    assert report.already and report.name == "a" and str(copied) in report.notes[0]
    assert len(read_saes(path, "tiny", SITE)[0]) == 1


@pytest.mark.parametrize(
    ("hook", "site"),
    [("blocks.0.hook_resid_pre", "embed"), ("blocks.1.hook_resid_pre", "resid_post.0"),
     ("blocks.1.hook_mlp_out", "mlp_out.1")],
)  # fmt: skip
def test_a_dictionary_of_another_place(path: Path, tmp_path: Path, hook: str, site: str) -> None:
    with pytest.raises(
        InvalidInput, match=f"trained at {re.escape(hook)}, .* which is {re.escape(site)} here"
    ):
        add_to(path, file_of(tmp_path, hook_name=hook))
    assert rows(path, "SELECT count(*) FROM sae") == [(0,)]
    for known in ("blocks.1.hook_resid_post", "blocks.1.something", "elsewhere"):
        assert add_to(path, file_of(tmp_path, known, hook_name=known)).site == SITE


def test_a_configuration_that_changed(path: Path, tmp_path: Path) -> None:
    one = untrained(small.WIDTH, 100, 0)
    file = tmp_path / "sae_weights.safetensors"
    save_file({"W_enc": one.w_enc, "b_enc": one.b_enc, "W_dec": one.w_dec, "b_dec": one.b_dec}, file)
    add_to(path, file)
    assert len(read_saes(path, "tiny", SITE)[0]) == 1
    cfg = {"d_in": small.WIDTH, "d_sae": 100, "apply_b_dec_to_input": False}
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    found, notes = read_saes(path, "tiny", SITE)
    assert not found and "changed" in notes[0]


def test_a_file_that_changes_while_it_is_read(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = file_of(tmp_path)

    def slow(one: Path) -> str:
        os.utime(one, ns=(1, 1))
        return "x"

    monkeypatch.setattr(add, "hash_file", slow)
    with pytest.raises(InvalidInput, match="changed while"):
        add_to(path, file)
    assert rows(path, "SELECT count(*) FROM run") == [(0,)]


def test_relative_paths_and_float_types(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = untrained(small.WIDTH, 90, 0)
    tensors = {"W_enc": one.w_enc.T, "b_enc": one.b_enc, "W_dec": one.w_dec.T, "b_dec": one.b_dec}
    save_file({k: v.to(torch.bfloat16).contiguous() for k, v in tensors.items()}, tmp_path / "h.safetensors")
    monkeypatch.chdir(tmp_path)
    add_to(path, Path("h.safetensors"))
    assert rows(path, "SELECT source, seed FROM saes") == [(str(tmp_path / "h.safetensors"), None)]
    (code,) = rows(path, "SELECT code FROM code_row ORDER BY item LIMIT 1")[0]
    assert code == pack(one.w_dec[:1].numpy()).tobytes()
