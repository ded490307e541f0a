"""Rotations as lists, numbers and pages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pytest
import twins
from twins import ALPHA, BETA, GAMMA, SITES, WIDTH, Twins

import signarium
from signarium.catalog import parts
from signarium.catalog.errors import InvalidInput, NotFound, SignariumError
from signarium.commands.pages import lists as pages
from signarium.commands.pages import rotation as rotation_page
from signarium.commands.render.formats import rendered
from signarium.commands.render.tables import cell_width
from signarium.commands.render.values import json_text
from signarium.queries.rotations import card as rotation_card
from signarium.queries.rotations import stored as rotations


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    return twins.make(tmp_path_factory.mktemp("twins") / "c.duckdb")


@pytest.fixture(scope="module")
def c(made: Twins) -> signarium.Catalogue:
    return signarium.open(made.path)


def test_rows_are_the_view_without_the_matrices(c: signarium.Catalogue) -> None:
    table = c.rotations()
    blobs = {"matrix", "mean_a", "mean_b", "std_a", "std_b"}
    assert table.column_names == [one for one in parts.view("rotations").columns if one not in blobs]
    assert table.column("rotation_id").to_pylist() == [3, 1, 2, 6, 5, 4]
    assert c.rotations(ALPHA).num_rows == 6 and c.rotations(GAMMA).num_rows == 0
    assert rotations.rows(c.path, run_id="align-new").column("rotation_id").to_pylist() == [3, 2, 6]
    with pytest.raises(NotFound, match=r"'delta'.*alpha, beta, gamma"):
        c.rotations("delta")


def test_a_rotation_as_numbers(made: Twins, c: signarium.Catalogue) -> None:
    r = c.rotation(ALPHA, BETA, SITES[1])
    assert r.about.rotation_id == 2 and not r.about.inverse and r.about.explains
    assert r.matrix.shape == (WIDTH, WIDTH) and r.matrix.dtype == np.float32
    assert np.array_equal(r.matrix, made.rotations[SITES[1]].matrix)
    x = made.states[ALPHA, SITES[1]]
    assert np.allclose(r.states(x), made.states[BETA, SITES[1]], atol=1e-4)
    assert np.allclose(r.directions(x[0] - x[1]), r.states(x[0]) - r.states(x[1]), atol=1e-4)
    back = c.rotation(ALPHA, BETA, SITES[2])
    assert back.about.inverse
    assert np.allclose(back.states(made.states[ALPHA, SITES[2]]), made.states[BETA, SITES[2]], atol=1e-4)
    # The middle one of those at 0, 1, 2 and 3.
    assert c.rotation(ALPHA, BETA).about.site_a == SITES[2]
    assert not c.rotation(ALPHA, BETA, SITES[0]).about.explains


@pytest.mark.parametrize(
    ("a", "b", "site", "words"),
    [
        (ALPHA, ALPHA, None, ["to another model"]),
        (ALPHA, "delta", None, ["'delta'"]),
        ("delta", ALPHA, None, ["'delta'"]),
        (ALPHA, GAMMA, None, ["one width"]),
        (ALPHA, BETA, "resid_post.9", ["'resid_post.9'", "align"]),
    ],
)
def test_what_is_refused(c: signarium.Catalogue, a: str, b: str, site: str | None, words: list[str]) -> None:
    for call in (c.rotation, lambda *given: rotation_card.show(c.path, *given)):
        with pytest.raises(SignariumError) as caught:
            call(a, b, site)
        line = str(caught.value)
        assert "\n" not in line and all(word in line for word in words), line


def test_the_page_of_what_is_stored_the_other_way_is_named(made: Twins, tmp_path: Path) -> None:
    copy = tmp_path / "copy.duckdb"
    shutil.copy(made.path, copy)
    with duckdb.connect(str(copy)) as connection:
        connection.execute("DELETE FROM rotation_row WHERE rotation_id NOT IN (4, 5)")
    with pytest.raises(InvalidInput, match="run `signarium rotations show beta alpha`"):
        rotation_card.show(copy, ALPHA, BETA)
    # Its figures were all of the one run that is gone.
    card = rotation_card.show(copy, BETA, ALPHA, SITES[2])
    text = rotation_page.page(card, 80)
    assert "rotation from beta to alpha at resid_post.2" in text
    assert "steering" not in text and "what it carries" not in text and "principal component" not in text


def test_a_card_has_all_that_is_stored(c: signarium.Catalogue) -> None:
    card = rotation_card.show(c.path, ALPHA, BETA, SITES[1])
    assert card.rotation.column("rotation_id").to_pylist() == [2] and card.earlier == 1
    assert card.others.column("rotation_id").to_pylist() == [3, 6]
    assert card.components.num_rows == WIDTH and card.steering.num_rows == 40
    assert card.features.to_pylist()[0]["source_feature_id"] == twins.FEATURE
    assert set(card.measurements.column("run_id").to_pylist()) == {"align-new"}
    parts = card.parts()
    names = ["rotation", "others", "components", "measurements", "steering", "features", "earlier"]
    assert list(parts) == names
    assert json.loads(json_text(parts))["rotation"]["ev_rotation"] == 0.75
    assert not {"matrix", "mean_a"} & set(parts["rotation"])


@pytest.mark.parametrize("width", [60, 80, 120, None])
def test_the_page_fits_and_says_it_all(c: signarium.Catalogue, width: int | None) -> None:
    card = rotation_card.show(c.path, ALPHA, BETA, SITES[1])
    text = rotation_page.page(card, width)
    assert "\x1b" not in text
    if width is not None and width >= 80:
        assert max(map(cell_width, text.splitlines())) <= width
    for word in (
        "rotation from alpha to beta at resid_post.1",
        "any linear map",
        "permutation",
        "by principal component of B",
        "shuffled pairs",
        "trace of R²",
        "cyclic shift",
        "prototypes",
        "noise like A's",
        "independent seed",
        "carried features",
        "depth 5 less 4",
        "B's own",
        "a_new_one",
        "the latest of 2",
    ):
        assert word in text, word
    coloured = rotation_page.page(card, width, color=True)
    assert "\x1b[1msteering\x1b[0m" in coloured and "\x1b[33m█" in coloured


def test_a_bar_is_as_long_as_its_figure(c: signarium.Catalogue) -> None:
    lines = rotation_page.page(rotation_card.show(c.path, ALPHA, BETA, SITES[1]), 80).splitlines()
    bars = {line[:18].strip(): line for line in lines if "│█" in line or "◂" in line}
    assert "◂" in bars["shuffled pairs"] and "█" not in bars["shuffled pairs"]
    assert bars["rotation"].count("█") / bars["any linear map"].count("█") == pytest.approx(
        0.75 / 0.9, abs=0.03
    )


def test_what_is_not_to_be_believed_is_said(c: signarium.Catalogue) -> None:
    text = rotation_page.page(rotation_card.show(c.path, ALPHA, BETA, SITES[0]), 80)
    assert text.count("beware: ") == 2 and "3 of 60 dimensions vary" in text and "shuffled" in text
    said = pages.warnings(c.rotations())
    assert len(said) == 2 and all(line.startswith("resid_post.0: ") for line in said)


@pytest.mark.parametrize("width", [80, 120, None])
def test_lists_fit(c: signarium.Catalogue, width: int | None) -> None:
    shown = pages.rotations(c.rotations(), width)
    lines = rendered(shown, width=width).splitlines()
    assert max(map(cell_width, lines)) <= (width or 200) and "…" not in "".join(lines)
    assert shown.column_names[:3] == ["from", "to", "site"] and shown.column("rank").to_pylist()[0] == "low"
    found = pages.rotations_by_site(rotations.rows(c.path, run_id="align-old"))
    assert (
        "rank" not in found.column_names
        and max(map(cell_width, rendered(found, width=80).splitlines())) <= 80
    )


def test_dictionaries(c: signarium.Catalogue) -> None:
    table = c.saes()
    assert table.column_names == list(parts.view("saes").columns)
    assert table.column("name").to_pylist() == ["alpha sae 0", "alpha sae 1", "beta sae 0", "beta sae 1"]
    assert c.saes(BETA).num_rows == 2


def test_a_carried_feature_says_where_it_is_from(c: signarium.Catalogue) -> None:
    from signarium.commands.pages.feature import page

    assert c.features(kind="direction").column("feature_id").to_pylist() == [twins.CARRIED]
    text = page(c.feature(twins.CARRIED), 80)
    assert "carried    from feature 1000, animal, of alpha at resid_post.1, by a rotation" in text
    assert "members" in text and max(map(cell_width, text.splitlines())) <= 80
    assert c.feature(twins.FEATURE).carried.num_rows == 0
    assert "carried" not in page(c.feature(twins.FEATURE), 80)
    assert c.find(" t3", model=BETA, least=0.0).column("kind").to_pylist() == ["direction"]
    assert c.nearest(f"feature:{twins.CARRIED}", within="states", k=2).table.num_rows == 2


def test_either_null_is_a_null() -> None:
    assert (
        rotations.beats(0.3, None, None)
        and rotations.beats(0.3, 0.1, None)
        and rotations.beats(0.3, 0.1, 0.1)
    )
    assert not rotations.beats(0.3, 0.3, None) and not rotations.beats(-0.9, -0.8, 0.01)
    # Within 1.645 standard errors of the difference it may be chance.
    assert not rotations.beats(0.3, 0.1, 0.13)
    assert not rotations.beats(float("nan"), -0.8, None)
