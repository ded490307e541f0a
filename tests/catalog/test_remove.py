"""What is removed is gone with what depends on it, and nothing else is; made again, it is what it was."""

from __future__ import annotations

from pathlib import Path

import duckdb
import featured
import pytest
from digest import digest, rows
from made import DECODER, SITES, Made

import signarium
from signarium.catalog import index, parts, store
from signarium.catalog.errors import IngestRunning, NotFound
from signarium.catalog.verify import verify


def broken(path: Path) -> list[str]:
    return [one.check for one in verify(path) if not one.ok]


def test_a_run_comes_back_as_it_was(catalogue: Made, catalogue_copy: Path) -> None:
    before = digest(catalogue_copy)
    c = signarium.open(catalogue_copy)
    for job, text in (("states", catalogue.texts[1]), ("types_bos", None)):
        (run,) = rows(
            catalogue_copy,
            "SELECT run_id FROM runs WHERE model = ? AND job = ? ORDER BY started_at DESC LIMIT 1",
            [DECODER, job],
        )[0]
        counted = c.remove("run", run, dry_run=True)
        assert digest(catalogue_copy) == before
        assert c.remove("run", run) == counted
        assert counted["runs"] == 1 and counted["codes"] > 100
        # The encoder read the second text with a tokenizer of its own: these are the decoder's documents.
        assert (counted.get("documents", 0) > 0) == (job == "states")
        assert broken(catalogue_copy) == []
        sets = {row[0] for row in rows(catalogue_copy, "SELECT code_set_id FROM code_set")}
        assert {int(one.stem) for one in index.folder(catalogue_copy).glob("*.faiss")} == sets
        signarium.ingest(
            catalogue_copy, str(catalogue.decoder_folder), name=DECODER, sites=SITES, context=64,
            text=[text] if text else [], bos=text is None, stages=["states" if text else "types"],
        )  # fmt: skip
        assert digest(catalogue_copy) == before


def test_with_a_damaged_run_goes_its_damage(catalogue_copy: Path) -> None:
    """Rows that were lost, changed or doubled before are no longer missed, and what is left is as sound as it was."""
    path = catalogue_copy
    run, tables = (
        rows(path, "SELECT run_id, model_id FROM run WHERE job = 'states' ORDER BY ALL")[0][0],
        ("code_row", "shard"),
    )
    with duckdb.connect(str(path)) as connection:
        sets = f"code_set_id IN (SELECT code_set_id FROM code_set WHERE run_id = '{run}')"
        connection.execute(f"DELETE FROM code_row WHERE {sets} AND item % 2 = 0")
        connection.execute(f"UPDATE code_row SET norm = 1 WHERE {sets} AND item % 5 = 0")
        connection.execute(f"DELETE FROM shard WHERE run_id = '{run}'")
        connection.execute("DELETE FROM document_row; DELETE FROM state_row WHERE state_id % 3 = 0")
        connection.execute("UPDATE token_row SET token = 'x' WHERE token_id = 3")
    found = broken(path)
    assert {f"{parts.tables()[one].rows} that are not as they were written" for one in tables} < set(found)
    signarium.open(path).remove("run", run)
    written = [one for one in broken(path) if one.endswith("not as they were written")]
    assert written == [
        f"{rows} that are not as they were written" for rows in ("tokens", "documents", "states")
    ]


def test_a_model_goes_whole_and_alone(catalogue: Made, catalogue_copy: Path) -> None:
    c = signarium.open(catalogue_copy)
    others = rows(catalogue.path, "SELECT * FROM types WHERE model <> ? ORDER BY ALL", [DECODER])
    c.remove("model", DECODER)
    assert broken(catalogue_copy) == []
    assert rows(catalogue_copy, "SELECT * FROM types ORDER BY ALL") == others
    assert rows(catalogue_copy, "SELECT DISTINCT tokenizer FROM token_row") == rows(
        catalogue_copy, "SELECT tokenizer_sha256 FROM models"
    )


def test_with_a_run_goes_what_was_computed_from_it(catalogue: Made, tmp_path: Path) -> None:
    path, made = featured.copy(catalogue, tmp_path, DECODER)
    featured.add_causes(path, DECODER, made)
    c = signarium.open(path)
    (flip,) = rows(path, "SELECT min(run_id) FROM runs WHERE job = 'flip'")[0]
    features = rows(path, "SELECT count(*) FROM features")
    assert c.remove("run", flip)["flips"] > 0
    assert rows(path, "SELECT count(*) FROM features") == features
    types = rows(path, "SELECT run_id FROM runs WHERE model = ? AND job = 'types'", [DECODER])
    assert c.remove("run", types[0][0])["features"] == features[0][0]
    assert rows(path, "SELECT DISTINCT job FROM runs WHERE model = ? ORDER BY job", [DECODER]) == [
        ("states",),
        ("types_bos",),
    ]
    assert [one for one in broken(path) if not one.startswith("index files")] == []


def test_features_of_types_stay_when_a_text_goes(catalogue: Made, tmp_path: Path) -> None:
    path, _ = featured.copy(catalogue, tmp_path, DECODER)
    features = rows(path, "SELECT count(*) FROM features")
    for (run,) in rows(path, "SELECT run_id FROM runs WHERE model = ? AND job = 'states'", [DECODER]):
        signarium.open(path).remove("run", run)
    assert rows(path, "SELECT count(*) FROM features") == features
    assert rows(path, "SELECT count(*) FROM feature_states") == [(0,)]
    assert [one for one in broken(path) if not one.startswith("index files")] == []


def test_refused(catalogue_copy: Path) -> None:
    c = signarium.open(catalogue_copy)
    before = digest(catalogue_copy)
    with pytest.raises(NotFound, match="no run 'x'"):
        c.remove("run", "x")
    with pytest.raises(NotFound, match=r"no model .it.s."):
        c.remove("model", "it's")
    with store.job_lock(catalogue_copy), pytest.raises(IngestRunning):
        c.remove("model", DECODER)
    assert digest(catalogue_copy) == before
