"""Neurons, the unembedding and directions: searched in either polarity against numpy, listed, shown; flips drawn."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import duckdb
import featured
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import DECODER, ENCODER, Made
from rich.cells import cell_len

import signarium
from signarium.catalog import parts
from signarium.catalog.errors import InvalidInput, NotFound, SignariumError
from signarium.catalog.index import CodeIndex
from signarium.commands.pages import lists as pages
from signarium.commands.pages import neuron as neuron_page
from signarium.commands.pages import search as search_page
from signarium.commands.pages.feature import flips, page
from signarium.commands.render import chart
from signarium.commands.render.formats import rendered
from signarium.commands.render.values import json_text
from signarium.queries.nearest import masked, polarity
from signarium.queries.nearest.answers import Answer
from signarium.queries.neurons import lists as neurons

ALL = 10_000


@pytest.fixture(scope="module")
def made(
    catalogue: Made, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[featured.Row], featured.Causes]:
    path, rows = featured.copy(catalogue, tmp_path_factory.mktemp("neurons"), DECODER)
    return path, rows, featured.add_causes(path, DECODER, rows)


@pytest.fixture(scope="module")
def c(made: tuple[Path, list[featured.Row], featured.Causes]) -> signarium.Catalogue:
    return signarium.open(made[0])


@pytest.fixture(scope="module")
def causes(made: tuple[Path, list[featured.Row], featured.Causes]) -> featured.Causes:
    return made[2]


@pytest.fixture(scope="module")
def rows(made: tuple[Path, list[featured.Row], featured.Causes]) -> list[featured.Row]:
    return made[1]


def query(path: Path, text: str, *values: Any) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(path), read_only=True) as connection:
        return connection.execute(text, values).fetchall()


# ---- either polarity ------------------------------------------------------------------------------


def expected_of(
    bits: np.ndarray, items: np.ndarray, sought: np.ndarray, mask: np.ndarray
) -> list[tuple[int, int, int]]:
    """(distance, item, polarity) of every row over the dimensions in `mask`, in order."""
    apart = ((bits != sought) & (mask == 1)).sum(1)
    size = int(mask.sum())
    found = [
        (min(int(d), size - int(d)), int(item), 1 if 2 * d <= size else -1)
        for d, item in zip(apart, items, strict=True)
    ]
    return sorted(found, key=lambda one: one[:2])


@given(st.integers(1, 70), st.integers(0, 40), st.integers(1, 45), st.integers(0, 2**32 - 1), st.data())
def test_either_polarity_equals_numpy(width: int, n: int, k: int, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    # Few different rows and their opposites: ties, and equal rows all the way down to one.
    kinds = rng.integers(0, 2, (data.draw(st.integers(1, 4)), width)).astype(np.uint8)
    bits = kinds[rng.integers(0, len(kinds), n)] ^ rng.integers(0, 2, (n, 1)).astype(np.uint8)
    sought = kinds[0] ^ (rng.random(width) < data.draw(st.sampled_from([0, 0.3, 1]))).astype(np.uint8)
    if data.draw(st.booleans()) and n:
        bits[0] = sought ^ (np.arange(width) < width // 2)
    items = np.cumsum(rng.integers(1, 4, n)).astype(np.int64)
    runs = np.array([[i, item, 1] for i, item in enumerate(items)], np.int64)
    index = CodeIndex(width, np.packbits(bits, axis=1), runs)
    kept = np.flatnonzero(rng.random(n) < 0.6) if data.draw(st.booleans()) else None
    some = slice(None) if kept is None else kept
    code = np.packbits(sought)
    assert np.array_equal(
        np.unpackbits(polarity.opposite(code, width)), np.unpackbits(np.packbits(1 - sought))
    )
    distances, found = index.search(np.stack([code, polarity.opposite(code, width)]), k, kept)
    distances, found = polarity.either(distances, found, k)
    expected = expected_of(bits[some], items[some], sought, np.ones(width, np.uint8))[:k]
    assert list(zip(distances[0].tolist(), found[0].tolist(), strict=True)) == [one[:2] for one in expected]
    mask = (rng.random(width) < 0.5).astype(np.uint8)
    pattern = masked.Pattern(np.packbits(mask), np.packbits(sought & mask))
    distances, found = masked.search(index, pattern, k, kept, both=True)
    expected = expected_of(bits[some], items[some], sought, mask)[:k]
    assert list(zip(distances[0].tolist(), found[0].tolist(), strict=True)) == [one[:2] for one in expected]


def answered(answer: Answer) -> list[tuple[int, int, int]]:
    table = answer.table.to_pydict()
    if answer.target.view == "neurons":
        items = [a << 24 | b for a, b in zip(table["layer"], table["neuron"], strict=True)]
    else:
        items = table[answer.target.subject.item]
    return list(zip(table["distance"], items, table.get("polarity", [0] * len(items)), strict=True))


def bits_of(c: signarium.Catalogue, view: str, item: str, **at: str) -> tuple[np.ndarray, np.ndarray]:
    found = query(
        c.path,
        f"SELECT {item}, code FROM {view} WHERE model = ? AND site = ? AND centre = ? ORDER BY 1",
        DECODER,
        at["site"],
        at["centre"],
    )
    codes = np.stack([np.frombuffer(row[1], np.uint8) for row in found])
    return np.array([row[0] for row in found]), np.unpackbits(codes, axis=1, count=44)


EVERY = np.ones(44, np.uint8)


@pytest.mark.parametrize(
    "where", [None, "layer = 1", "neuron % 3 = 0 AND norm > 1.2", '"bit"(code, 5) = 1', "false"]
)
def test_neurons_near_a_type(c: signarium.Catalogue, causes: featured.Causes, where: str | None) -> None:
    ids, types = bits_of(c, "types", "token_id", site="resid_post.1", centre="mean")
    ((king,),) = query(c.path, "SELECT min(token_id) FROM types WHERE token = ' king' AND model = ?", DECODER)
    answer = c.nearest('type:" king"', within="neurons", model=DECODER, where=where, k=ALL)
    kept = {
        (a << 24) | b for a, b in query(c.path, f"SELECT layer, neuron FROM neurons WHERE {where or 'true'}")
    }
    some = np.array([one in kept for one in causes.neuron_items.tolist()])
    expected = expected_of(
        causes.neurons[some], causes.neuron_items[some], types[ids.tolist().index(king)], EVERY
    )
    assert answered(answer) == expected and answer.searched == len(expected)
    if where is None:
        half = [one for one in expected if one[0] == 22]
        assert len(half) >= 2 and all(one[2] == 1 for one in half), "an exact half counts as it is"
    assert answer.place is not None and (answer.place.site, answer.place.centre) == ("resid_post.1", "mean")
    assert "either polarity" in search_page.summary(answer) and search_page.summary(answer).endswith(
        'type " king", at resid_post.1, centre mean'
    )
    few = c.nearest('type:" king"', within="neurons", model=DECODER, where=where, k=3)
    assert answered(few) == expected[:3]
    elsewhere = c.nearest('type:" king"', within="neurons", model=DECODER, site="resid_post.0", centre="zero")
    assert elsewhere.place is not None and elsewhere.place.site == "resid_post.0"


def test_rows_of_neurons_and_unembedding_equal_the_views(c: signarium.Catalogue) -> None:
    for within, key in (("neurons", ["layer", "neuron"]), ("unembedding", ["token_id"])):
        table = c.nearest("code:" + "0f" * 5 + "00", within=within, model=DECODER, k=ALL).table
        names = list(parts.view(within).columns)
        extra = ["rank", "distance", "polarity"] if within == "neurons" else ["rank", "distance"]
        assert table.column_names == [*extra, *names]
        with duckdb.connect(str(c.path), read_only=True) as connection:
            view = connection.execute(f"SELECT * FROM {within}").to_arrow_table()
        assert [table.schema.field(one).type for one in names] == [
            view.schema.field(one).type for one in names
        ]
        rows = {tuple(row[one] for one in key): row for row in view.to_pylist()}
        assert len(rows) == table.num_rows
        assert [rows[tuple(row[one] for one in key)] for row in table.to_pylist()] == table.select(
            names
        ).to_pylist()


def test_a_neuron_against_everything(c: signarium.Catalogue, causes: featured.Causes) -> None:
    sought = causes.neurons[4]
    for within, view, item in (("types", "types", "token_id"), ("states", "states", "state_id")):
        centre = "mean" if within == "types" else "zero"
        ids, bits = bits_of(c, view, item, site="resid_post.0", centre=centre)
        answer = c.nearest("neuron:0/4", within=within, model=DECODER, k=50)
        assert (answer.target.site, answer.target.centre) == ("resid_post.0", centre)
        assert answered(answer) == expected_of(bits, ids, sought, EVERY)[:50]
    answer = c.nearest("neuron:0/4", within="unembedding", model=DECODER, k=ALL)
    assert answered(answer) == expected_of(
        causes.unembedding, np.arange(len(causes.unembedding)), sought, EVERY
    )
    answer = c.nearest("neuron:0/4", within="neurons", model=DECODER, k=8)
    # Itself and its four twins, then its three opposites: ties by item.
    assert answered(answer) == [(0, i, 1 if i < 9 else -1) for i in range(4, 12)]
    assert answer.query == "neuron 0/4" and answer.raises[0].startswith('"')
    assert c.nearest("neuron: 1/2 ", within="types", model=DECODER, site="embed").target.site == "embed"


@pytest.mark.parametrize("where", [None, "n_dims > 1"])
def test_features_of_a_neuron(
    c: signarium.Catalogue, rows: list[featured.Row], causes: featured.Causes, where: str | None
) -> None:
    sought = causes.neurons[featured.BLOCKS[0] + 2]
    answer = c.nearest("neuron:1/2", model=DECODER, k=ALL, where=where)
    assert (answer.target.view, answer.target.site, answer.target.centre) == (
        "features",
        "resid_post.1",
        "mean",
    )
    expected = []
    for one in rows:
        n_dims = int(one.mask.sum())
        if (one.site, one.centre) == ("resid_post.1", "mean") and (where is None or n_dims > 1):
            ((d, _, turned),) = expected_of(sought[None], np.zeros(1), one.polarity, one.mask)
            expected.append((1 - d / n_dims, n_dims, one.feature_id, d, turned))
    expected.sort(key=lambda one: (-one[0], -one[1], one[2]))
    table = answer.table
    assert table.column_names[:4] == ["rank", "distance", "polarity", "agreement"]
    found = table.to_pydict()
    assert list(zip(found["feature_id"], found["distance"], found["polarity"], strict=True)) == [
        one[2:] for one in expected
    ]
    assert np.allclose(found["agreement"], [one[0] for one in expected])
    assert isinstance(found["feature_polarity"][0], bytes)


def test_a_feature_and_a_direction_against_directions(
    c: signarium.Catalogue, rows: list[featured.Row], causes: featured.Causes
) -> None:
    one = rows[0]
    answer = c.nearest(f"feature:{one.feature_id}", within="neurons", k=ALL)
    assert answered(answer) == expected_of(causes.neurons, causes.neuron_items, one.polarity, one.mask)
    assert f"at {one.site}, centre {one.centre}" in search_page.summary(answer)
    answer = c.nearest(f"feature:{one.feature_id}", within="unembedding", k=ALL)
    wrong = ((causes.unembedding != one.polarity) & (one.mask == 1)).sum(1)
    assert [row[:2] for row in answered(answer)] == sorted((int(d), i) for i, d in enumerate(wrong))
    # The latest of two runs.
    answer = c.nearest(f"direction:{one.feature_id}", within="neurons", k=ALL)
    assert answered(answer) == expected_of(causes.neurons, causes.neuron_items, causes.direction, EVERY)
    answer = c.nearest(f"direction:{one.feature_id}", k=ALL)
    assert (answer.target.view, answer.target.site) == ("types", one.site)
    ids, bits = bits_of(c, "types", "token_id", site=one.site, centre="mean")
    apart = (bits != causes.direction).sum(1)
    assert [row[:2] for row in answered(answer)] == sorted(zip(apart.tolist(), ids.tolist(), strict=True))
    named = c.nearest("direction: king", within="unembedding", site=one.site, centre=one.centre)
    assert answered(named) == answered(c.nearest(f"direction:{one.feature_id}", within="unembedding"))


def test_a_state_and_a_free_text_against_neurons(c: signarium.Catalogue, causes: featured.Causes) -> None:
    ids, bits = bits_of(c, "states", "state_id", site="resid_post.1", centre="zero")
    answer = c.nearest(f"state:{ids[700]}", within="neurons", model=DECODER, k=ALL)
    assert answered(answer) == expected_of(causes.neurons, causes.neuron_items, bits[700], EVERY)
    with patch("signarium.ingest.encode.encode_text") as encode:
        encode.return_value.code = np.packbits(bits[700])
        encode.return_value.token, encode.return_value.position, encode.return_value.n_tokens = " king", 3, 4
        text = c.nearest("the king", within="neurons", model=DECODER, k=ALL)
        assert encode.call_args.args[1:4] == (DECODER, "resid_post.1", "zero")
    assert answered(text) == answered(answer) and "at resid_post.1, centre zero" in search_page.summary(text)


@pytest.mark.parametrize(
    ("text", "given", "words"),
    [
        ("neuron:12", {}, ["'12' is no neuron", "neuron:12/305"]),
        ("neuron:12/x", {}, ["'12/x' is no neuron"]),
        ("neuron:-1/3", {}, ["no neuron"]),
        ("neuron:²/3", {}, ["no neuron"]),
        ("neuron:" + "9" * 5000 + "/3", {}, ["no neuron"]),
        ("neuron:99/0", {}, ["'99/0'", "2 blocks", "30 to 37 neurons"]),
        ("neuron:1/30", {}, ["'1/30'", "2 blocks"]),
        (f"neuron:0/{1 << 24}", {}, ["2 blocks"]),
        (f"neuron:{1 << 45}/0", {}, ["2 blocks"]),
        ("neuron:", {}, ["neuron:BLOCK/NEURON"]),
        ("neuron:0/1", {"model": ENCODER}, ["no neurons of encoder", "--stages neurons"]),
        ('type:" king"', {"within": "unembedding", "model": ENCODER}, ["no unembedding of encoder", "--stages neurons"]),
        ("neuron:0/1", {"approximate": True}, ["`approximate`"]),
        ('type:" king"', {"approximate": True, "within": "neurons"}, ["`approximate`"]),
        ("neuron:0/1", {"within": "neurons", "site": "embed"}, ["`site`", "leave out"]),
        ("code:" + "00" * 6, {"within": "neurons", "centre": "zero"}, ["`centre`"]),
        ("code:00", {"within": "neurons"}, ["1 bytes", "6 bytes"]),
        ("neuron:0/1", {"within": "types", "site": "nowhere"}, ["'nowhere'", "resid_post.0"]),
        ("direction:1001", {}, ["direction of feature 1001", "signarium flip 1001"]),
        ("direction:", {}, ["direction:FEATURE_ID"]),
        ("direction:77", {}, ["'77'", "features list"]),
        ('type:" king"', {"within": "neurons", "where": "token = 'x'"}, ["columns are model, layer, neuron"]),
    ],
)  # fmt: skip
def test_one_line_says_what_is_wrong(
    c: signarium.Catalogue, text: str, given: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(SignariumError) as caught:
        c.nearest(text, **{"model": DECODER, **given})
    line = str(caught.value)
    assert "\n" not in line and all(word in line for word in words), line


def test_other_widths_and_other_streams_are_refused(
    made: tuple[Path, list[featured.Row], featured.Causes], tmp_path: Path
) -> None:
    path = tmp_path / "c.duckdb"
    shutil.copy(made[0], path)
    with duckdb.connect(str(path)) as connection:
        connection.execute("UPDATE site SET width = 24 WHERE name = 'resid_post.0'")
        connection.execute("UPDATE site SET name = 'k.1', point = 'k' WHERE name = 'resid_post.1'")
        connection.execute(
            "UPDATE code_set SET width = 24 WHERE subject <> 'direction' AND site_id IN "
            "(SELECT site_id FROM site WHERE name = 'resid_post.0')"
        )
    c = signarium.open(path)
    for text, options in (
        ("feature:1000", {"within": "neurons"}),
        ("feature:1006", {"within": "unembedding"}),
        ("neuron:1/1", {"within": "types", "site": "k.1", "model": DECODER}),
        ("neuron:1/1", {"within": "features", "site": "k.1", "model": DECODER}),
        ("direction:1000", {"within": "types", "site": "resid_post.0"}),
        ('type:" king"', {"within": "neurons", "site": "k.1", "model": DECODER}),
    ):
        with pytest.raises(InvalidInput, match=r"dimensions.*residual stream.*resid_post site") as caught:
            c.nearest(text, **options)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("width", [80, 120, None])
def test_answers_fit_a_terminal(c: signarium.Catalogue, width: int | None) -> None:
    for text, within in (
        ('type:" king"', "neurons"),
        ("neuron:0/4", "states"),
        ("neuron:0/4", "features"),
        ("neuron:0/4", "unembedding"),
    ):
        answer = c.nearest(text, within=within, model=DECODER)
        shown = rendered(search_page.display(answer, width), width=width)
        assert "hidden" not in shown and "polarity" in shown
        assert width is None or max(map(cell_len, shown.splitlines())) <= width
    assert search_page.display(c.nearest('type:" king"', within="neurons", model=DECODER)).column_names == [
        *("rank", "distance", "polarity", "neuron", "norm", "raises")
    ]


def test_a_turned_neuron_raises_what_it_lowers(c: signarium.Catalogue) -> None:
    answer = c.nearest('type:" king"', within="neurons", model=DECODER, k=ALL)
    for row, raises in zip(answer.table.to_pylist(), answer.raises, strict=True):
        words = query(
            c.path,
            "SELECT token FROM projections WHERE subject = 'neuron' AND subject_id = ? AND direction = ? AND rank <= 5 "
            "ORDER BY source, rank LIMIT 5",
            f"{row['layer']}/{row['neuron']}",
            "up" if row["polarity"] == 1 else "down",
        )
        assert raises.count('"') >= 2 * len(words) and all(
            one[0].strip() in raises for one in words if one[0].isalpha()
        )
    assert answer.raises.count("") == 1, "one has no words"


# ---- list and show --------------------------------------------------------------------------------


def test_list_equals_python(c: signarium.Catalogue, rows: list[featured.Row]) -> None:
    table = c.neurons(model=DECODER, limit=None)
    sizes = {one.feature_id: int(one.mask.sum()) for one in rows}
    names = {one.feature_id: one.name for one in rows}
    stored = query(c.path, "SELECT feature_id, layer, neuron, polarity, agreement FROM writers")
    expected = []
    for layer, neuron, norm in query(c.path, "SELECT layer, neuron, norm FROM neurons ORDER BY 1, 2"):
        own = [row for row in stored if row[1:3] == (layer, neuron)]
        best = min(own, key=lambda row: (-(2 * row[4] - 1) * sizes[row[0]] ** 0.5, row[0]), default=None)
        found: list[Any] = [DECODER, layer, neuron, norm, len(own)]
        if best is None:
            found += [None] * 6
        else:
            surprise = (2 * best[4] - 1) * sizes[best[0]] ** 0.5
            found += [best[4], best[0], names[best[0]], sizes[best[0]], best[3], surprise]
        expected.append(found)
    assert table.num_rows == sum(featured.BLOCKS)
    assert any(one[-1] is None for one in expected) and any(one[4] > 1 for one in expected)
    by_place = sorted(table.to_pylist(), key=lambda row: (row["layer"], row["neuron"]))
    for row, one in zip(by_place, expected, strict=True):
        assert list(row.values())[:-1] == one[:-1]
        assert row["surprise"] == (None if one[-1] is None else pytest.approx(one[-1]))
    keys = {"surprise": "surprise", "agreement": "best_agreement", "features": "features", "norm": "norm"}
    for sort in neurons.SORTS:
        ordered = c.neurons(model=DECODER, sort=sort, limit=0).column(keys[sort]).to_pylist()
        known = [one for one in ordered if one is not None]
        assert ordered[: len(known)] == sorted(known, reverse=True)
    block = c.neurons(model=DECODER, layer=1, limit=4)
    assert block.num_rows == 4 and set(block.column("layer").to_pylist()) == {1}
    kept = [row for row in table.to_pylist() if row["layer"] == 1][:4]
    assert block.to_pylist() == kept


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sort": "code"}, ["'code'", "surprise, agreement, features, norm"]),
        ({"limit": -1}, ["-1"]),
        ({"layer": 9}, ["'9'", "0 to 1"]),
        ({"model": ENCODER}, ["no neurons of encoder", "--stages neurons"]),
        ({"model": None}, ["`model`"]),
    ],
)
def test_list_errors(c: signarium.Catalogue, given: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SignariumError) as caught:
        c.neurons(**{"model": DECODER, **given})
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("width", [80, 120, None])
def test_list_and_page_fit(c: signarium.Catalogue, width: int | None) -> None:
    shown = rendered(pages.neurons(c.neurons(model=DECODER), width), width=width)
    assert "hidden" not in shown and (width is None or max(map(cell_len, shown.splitlines())) <= width)
    for one in ("0/4", "1/3", "1/29"):
        text = neuron_page.page(c.neuron(one, model=DECODER), width)
        assert "\x1b" not in text and max(map(cell_len, text.splitlines())) <= (width or 100)
    assert "\x1b[1min words\x1b[0m" in neuron_page.page(c.neuron("0/4", model=DECODER), width, True)


def test_a_card_of_a_neuron(c: signarium.Catalogue, causes: featured.Causes) -> None:
    card = c.neuron("0/4", model=DECODER)
    parts = json.loads(json_text(card.parts()))
    assert list(parts) == ["neuron", "projections", "features", "chance", "unembedding"]
    norms = sorted(
        (row[0] for row in query(c.path, "SELECT norm FROM neurons WHERE layer = 0")), reverse=True
    )
    assert parts["neuron"]["norm_rank"] == norms.index(card.neuron.column("norm").to_pylist()[0]) + 1
    assert parts["neuron"]["block_size"] == featured.BLOCKS[0]
    assert parts["neuron"]["features_by_chance"] == pytest.approx(6 * 10 / featured.BLOCKS[0])
    stored = query(
        c.path,
        "SELECT source, direction, rank, token_id, token, logit FROM projections WHERE subject = 'neuron' "
        "AND subject_id = '0/4' ORDER BY source, direction DESC, rank",
    )
    assert [tuple(row.values()) for row in card.projections.to_pylist()] == stored and len(stored) == 80
    ups = [{row[3] for row in stored if row[:2] == (source, "up")} for source in ("float", "sign")]
    assert f"shared {len(ups[0] & ups[1])} of 20" in neuron_page.page(card)
    writers = query(c.path, "SELECT feature_id, rank, polarity FROM writers WHERE layer = 0 AND neuron = 4")
    found = card.features.to_pydict()
    assert sorted(zip(found["feature_id"], found["rank"], found["polarity"], strict=True)) == sorted(writers)
    near = expected_of(causes.unembedding, np.arange(len(causes.unembedding)), causes.neurons[4], EVERY)[:10]
    found = card.unembedding.to_pydict()
    assert list(zip(found["distance"], found["token_id"], found["polarity"], strict=True)) == near
    bare = c.neuron("1/29", model=DECODER)
    assert bare.projections.num_rows == 0 and "in words" not in neuron_page.page(bare)
    with pytest.raises(InvalidInput, match="no neuron"):
        c.neuron("04", model=DECODER)
    with pytest.raises(NotFound, match="2 blocks"):
        c.neuron("2/0", model=DECODER)


def test_what_fair_coins_reach() -> None:
    rng = np.random.default_rng(0)
    for width, n in ((44, 1), (44, 50), (100, 1000), (7, 10_000)):
        draws = rng.binomial(width, 0.5, (400, n)) if n < 10_000 else rng.binomial(width, 0.5, (40, n))
        median = np.median(np.minimum(draws, width - draws).min(1))
        assert abs(neurons.nearest_by_chance(width, n) - median) <= 1
    assert neurons.nearest_by_chance(4096, 458_752) > 1800


# ---- a feature's page -----------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 120, None])
def test_a_page_has_the_causes(c: signarium.Catalogue, rows: list[featured.Row], width: int | None) -> None:
    card = c.feature(rows[0].feature_id)
    text = page(card, width)
    assert "\x1b" not in text and max(map(cell_len, text.splitlines())) <= (width or 110)
    lines = text.splitlines()
    for heading in ("writers", "coalitions of writers", "in words", "what flipping does"):
        assert heading in lines
    assert "fair coins" in text and "the latest of 2 runs" in " ".join(lines)
    assert "difference of means in a text:" in text
    # The second run is the one that is shown, twice as strong.
    assert "-6.20 ± 0.05" in text and "-3.10 ± 0.05" not in text
    assert "resid_post.1, dose 1" in text and "64 positions of 4 windows" in " ".join(lines)
    first = flips(card, width)
    assert "what flipping does" in first and first.splitlines()[0].startswith('" king", feature 1000')
    assert "\x1b[34m" in page(card, width, color=True)
    without = page(c.feature(rows[1].feature_id), width)
    assert "what flipping does" not in without and "in words" not in without and "writers" in without


def test_a_card_has_the_causes(c: signarium.Catalogue, rows: list[featured.Row]) -> None:
    told = c.feature(rows[0].feature_id).parts()
    assert [row["rank"] for row in told["writers"]] == list(range(1, 11))
    assert all(row["raises"] for row in told["writers"])
    assert [row["k"] for row in told["coalitions"]] == [1, 10]
    assert {(row["subject"], row["source"]) for row in told["projections"]} == {
        (a, b) for a in ("feature", "direction") for b in ("float", "sign")
    }
    columns = ", ".join(told["flips"][0])
    view = query(c.path, f"SELECT {columns} FROM flips WHERE run_id = ?", featured.FLIP_RUNS[1])
    assert sorted(map(str, view)) == sorted(str(tuple(row.values())) for row in told["flips"])
    assert list(told["flips"][0]) == list(parts.view("flips").columns)
    assert [row["run_id"] for row in told["flip_runs"]] == list(featured.FLIP_RUNS[::-1])


def test_a_neuron_without_writers_is_short(
    made: tuple[Path, list[featured.Row], featured.Causes], tmp_path: Path
) -> None:
    path = tmp_path / "c.duckdb"
    shutil.copy(made[0], path)
    with duckdb.connect(str(path)) as connection:
        connection.execute("DELETE FROM writer_row; DELETE FROM code_set WHERE subject = 'unembedding'")
    c = signarium.open(path)
    assert pages.neurons(c.neurons(model=DECODER), 80).column_names == ["neuron", "norm"]
    card = c.neuron("0/4", model=DECODER)
    text = neuron_page.page(card)
    assert "features that it writes" not in text and "unembedding" not in text and "in words" in text


# ---- the chart ------------------------------------------------------------------------------------


def test_equal_arms_stand_side_by_side() -> None:
    same = {0.5: -1.0, 1.0: -2.0}
    panels = [chart.Panel("one", same), chart.Panel("other", same)]
    scale = chart.scale_of([-2.0, -1.0])
    assert (scale.unit, scale.up, scale.down) == (0.25, 0, 8)
    lines = list(chart.bars(panels, [0.5, 1.0], scale, 80))
    assert lines[0].split() == ["one", "other"] and lines[1].split()[:2] == ["0", "┼───────"]
    assert lines[-2].startswith("    -2 ┤") and lines[-2].count("█") == 2 * 3
    assert not any("\x1b" in line or "+" in line for line in lines), "there is nothing above zero"
    assert sum(line.count("█") for line in lines) == 2 * 3 * (4 + 8)


@given(
    st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=30),
    st.sampled_from([40, 80, 120]),
)
def test_every_value_fits_its_chart(values: list[float], width: int) -> None:
    scale = chart.scale_of(values)
    assert scale.up + scale.down <= 9
    assert max(values) <= (scale.up + 1e-6) * scale.unit
    assert -min(values) <= (scale.down + 1e-6) * scale.unit
    x = [0.2, 0.4, 0.6, 0.8, 1.0]
    panels = [
        chart.Panel("mean diff.", dict(zip(x, values[i : i + 5], strict=False)))
        for i in range(0, len(values), 5)
    ]
    lines = list(chart.bars(panels, x, scale, width))
    assert max(map(cell_len, lines)) <= width


def test_nothing_measured_draws_no_line() -> None:
    (line,) = [
        one
        for one in chart.bars([chart.Panel("a", {1.0: 0.0})], [0.5, 1.0], chart.scale_of([0.0]), 80)
        if "┼" in one
    ]
    assert line.count("─") == 3


def test_no_chance_without_measurements(c: signarium.Catalogue, rows: list[featured.Row]) -> None:
    card = c.feature(rows[0].feature_id)
    assert card.chance.num_rows == 0 and "the best neuron" not in page(card)
    table = pa.table(
        {
            "kind": ["discovered"] * 3,
            "centre": ["mean"] * 3,
            "metric": ["writer_best_either"] * 3,
            "control": ["none", "column_shuffled", "gaussian"],
            "value": [0.7, 0.65, 0.64],
            "n": [9] * 3,
        }
    )
    text = " ".join(page(replace(card, chance=table)).split())
    assert "either polarity, mean over its 9 discovered features, centre mean: 0.700 here; 0.650 with" in text
