"""Neighbours in a real model make sense, and those of a random code do not."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import tiny

import signarium

pytestmark = pytest.mark.long

MODEL = Path(__file__).parents[3] / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
FAMILY = {
    " queen",
    " King",
    " kings",
    " king",
    " kingdom",
    " prince",
    " queens",
    "king",
    "King",
    " Queen",
    " royal",
    " Kings",
}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> signarium.Catalogue:
    path = tmp_path_factory.mktemp("real") / "c.duckdb"
    # Loaded once for all tests; the forward pass stops after the first block.
    with patch("signarium.ingest.model.load.load_model", lambda *_, **__: tiny.smollm2()):
        signarium.ingest(path, str(MODEL), name="smol", sites="embed;resid_post.0", stages=["types"])
    return signarium.open(path)


@pytest.mark.real
@pytest.mark.parametrize("site", ["embed", "resid_post.0"])
@pytest.mark.parametrize("centre", ["mean", "zero"])
def test_king_has_royal_neighbours_and_a_random_code_has_none(
    real: signarium.Catalogue, site: str, centre: str
) -> None:
    near = real.nearest('type:" king"', site=site, centre=centre).table.to_pydict()
    assert (near["distance"][0], near["token"][0]) == (0, " king")
    family = FAMILY & set(near["token"][1:])
    assert len(family) >= 3, near["token"]
    random = np.random.default_rng(0).integers(0, 256, 72, dtype=np.uint8).tobytes().hex()
    control = real.nearest(f"code:{random}", site=site, centre=centre).table.to_pydict()
    assert not FAMILY & set(control["token"]), control["token"]
    # Half of 576 bits differ from an unrelated code; a neighbour is far nearer than that.
    assert near["distance"][3] < control["distance"][0]


@pytest.mark.real
def test_the_whole_vocabulary_is_searched(real: signarium.Catalogue) -> None:
    answer = real.nearest('type:" Monday"', site="embed", where="token LIKE ' %day'", k=6)
    assert 6 < answer.searched < 1000 and answer.target.n == 49_152
    days = {f" {one}day" for one in ("Sun", "Mon", "Tues", "Wednes", "Thurs", "Fri", "Satur")}
    assert len(days & set(answer.table.column("token").to_pylist())) >= 5
