"""The stage writers, end to end on a tiny model: SQL = numpy, later features, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import wordy
from digest import digest, rows, sound
from once import Once

import signarium
from signarium.catalog import parts
from signarium.catalog.codes import unpack
from signarium.catalog.errors import InvalidInput
from signarium.ingest.model.load import load_model
from signarium.ingest.words import directions as words
from signarium.ingest.writers.agreements import WRITERS
from signarium.ingest.writers.coalitions import KS

pytestmark = pytest.mark.long

OPTIONS: dict[str, Any] = {name: wordy.INGESTED[name] for name in ("sites", "device", "seeds")}


def ingest(path: Path, home: Path, stages: str, **options: Any) -> Any:
    source = str(home / "wordy-0")
    return signarium.ingest(path, source, stages=stages, **(OPTIONS | options))  # type: ignore[operator]


@pytest.fixture(scope="module")
def home(once: Once, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shared, made = once.folder("wordy", wordy.catalogue), tmp_path_factory.mktemp("writers")
    (made / "wordy-0").symlink_to(shared / "wordy-0")
    ingest(wordy.copy(shared / "c.duckdb", made), made, "neurons,writers", seeds=None)
    return made


def test_writers_are_what_sql_counts(home: Path) -> None:
    """The 50 neurons of a feature's block by `agreement` over the views, both polarities, ties by neuron."""
    path = home / "c.duckdb"
    features = rows(
        path,
        "SELECT feature_id, site, n_dims FROM features WHERE site LIKE 'resid_post.%' ORDER BY hash(feature_id) LIMIT 20",
    )
    for ident, site, n_dims in features:
        layer = int(site.partition(".")[2])
        expected = rows(
            path,
            "WITH one AS (SELECT mask, polarity FROM features WHERE feature_id = ?), each AS (SELECT neuron, "
            "round(agreement(n.code, one.mask, one.polarity) * ?)::INTEGER AS agreeing FROM neurons n CROSS JOIN one "
            "WHERE layer = ?) SELECT neuron, CASE WHEN 2 * agreeing >= ? THEN 1 ELSE -1 END, "
            "greatest(agreeing, ? - agreeing) FROM each ORDER BY 3 DESC, neuron LIMIT ?",
            [ident, n_dims, layer, n_dims, n_dims, WRITERS],
        )
        found = rows(
            path,
            "SELECT neuron, polarity, agreement, layer FROM writers WHERE feature_id = ? ORDER BY rank",
            [ident],
        )
        assert [row[:2] for row in found] == [row[:2] for row in expected]
        assert [row[2] for row in found] == [row[2] / n_dims for row in expected]
        assert {row[3] for row in found} == {layer}


def test_every_feature_that_a_block_writes_has_them(home: Path) -> None:
    path = home / "c.duckdb"
    wanted = rows(path, "SELECT feature_id FROM features WHERE site LIKE 'resid_post.%' ORDER BY ALL")
    assert wanted
    assert rows(path, "SELECT DISTINCT feature_id FROM writers ORDER BY ALL") == wanted
    sizes = [k for k in KS if tiny.loaded().d_ffn >= k]
    assert rows(path, "SELECT feature_id, list(k ORDER BY k) FROM coalitions GROUP BY ALL ORDER BY ALL") == [
        (one, sizes) for (one,) in wanted
    ]
    assert (
        rows(
            path,
            "SELECT DISTINCT subject_id::BIGINT FROM projections WHERE subject = 'feature' ORDER BY ALL",
        )
        == wanted
    )
    sound(path)


def test_a_feature_in_words(home: Path) -> None:
    path = home / "c.duckdb"
    ident, site, mask, polarity = rows(
        path,
        "SELECT feature_id, site, mask, polarity FROM features WHERE site = 'resid_post.1' ORDER BY n_dims DESC LIMIT 1",
    )[0]
    model = load_model(str(home / "wordy-0"), device="cpu")
    m, p = (unpack(np.frombuffer(one, np.uint8), model.width).astype(bool) for one in (mask, polarity))
    code = np.where(m, np.where(p, 1.0, -1.0), 0.0)
    std = np.array(
        [row[0] for row in rows(path, "SELECT std FROM dimensions WHERE site = ? ORDER BY dim", [site])]
    )
    expected = words.Vocabulary(model).project(torch.from_numpy(np.stack([code, code * std])).float())
    for i, source in enumerate(("sign", "float")):
        found = rows(
            path,
            "SELECT token_id FROM projections WHERE subject = 'feature' AND subject_id = ? AND source = ? "
            "AND direction = 'up' ORDER BY rank",
            [str(ident), source],
        )
        assert [row[0] for row in found] == expected.up[i].tolist()


def test_evidence_has_their_rows(home: Path) -> None:
    """Every claim has its rows; a random model's neurons say in words what any direction says."""
    found = rows(
        home / "c.duckdb",
        "SELECT claim_id, control, verdict FROM evidence WHERE split_part(claim_id, '.', 1) IN ('7', '8', '9')",
    )
    known = {row[:2] for row in found}
    for one in parts.claims():
        if one.claim_id.split(".")[0] in ("7", "8", "9"):
            assert {(one.claim_id, control.name) for control in one.judged} <= known
    measured = {row[0] for row in found if row[2] != "not measured"}
    # So small a block has no 200 neurons.
    assert measured == {"7.1", "7.2", "7.3", "7.4", "7.5", "9.1", "9.2"}
    judged = {(row[0], row[1]): row[2] for row in found}
    assert judged["9.1", "the same sizes, signs drawn"] == "does not survive"
    controls = rows(
        home / "c.duckdb",
        "SELECT control, value, std_error FROM measurements WHERE site = 'resid_post.1' AND subject = 'discovered' "
        "AND metric = 'coalition_50' AND split = 'held_out'",
    )
    share = {row[0]: row[1] for row in controls}
    assert set(share) == {"none", "later_block"} | {
        f"{name}:{i}" for name in ("fair_coin", "column_shuffled") for i in (1, 2, 3)
    }
    for control, value, error in controls:
        assert abs(value - share["none"]) < 5 * error + 0.1, control


def test_again_and_later_features(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.duckdb"
    shutil.copy(home / "c.duckdb", path)
    before = digest(path, without=["index_part"])
    assert ingest(path, home, "neurons,writers", seeds=None).already
    assert digest(path, without=["index_part"]) == before
    ((n,),) = rows(path, "SELECT count(DISTINCT feature_id) FROM writers")
    ingest(path, home, "features,writers", seeds=8, sites="resid_post.1")
    ((more,),) = rows(path, "SELECT count(DISTINCT feature_id) FROM writers")
    ((features,),) = rows(path, "SELECT count(*) FROM features WHERE site LIKE 'resid_post.%'")
    assert n < more == features
    assert rows(path, "SELECT count(*) FROM runs WHERE job = 'writers'") == [(2,)]
    sound(path)


def test_without_features_there_are_no_writers(home: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="has none") as error:
        ingest(tmp_path / "c.duckdb", home, "types,writers", seeds=None)
    assert "add features" in error.value.todo
    assert not (tmp_path / "c.duckdb").exists()
