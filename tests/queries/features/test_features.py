"""Features against numpy and SQL on the same catalogue: list, show, find, read; and what a terminal shows of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import featured
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from effort import some
from hypothesis import given
from hypothesis import strategies as st
from made import DECODER, ENCODER, Made
from rich.cells import cell_len

import signarium
from signarium.catalog import parts
from signarium.catalog.codes import agreement
from signarium.catalog.errors import InvalidInput, NotFound, SignariumError, TextError
from signarium.commands.pages import lists as pages
from signarium.commands.pages import reading
from signarium.commands.pages.feature import page
from signarium.commands.render.formats import rendered
from signarium.commands.render.values import json_text
from signarium.queries.features import annotate
from signarium.queries.features import lists as features
from signarium.queries.nearest import masked

TEXT = "The king saw another sea, and the queen saw it too."


@pytest.fixture(scope="module")
def made(catalogue: Made, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[featured.Row]]:
    return featured.copy(catalogue, tmp_path_factory.mktemp("features"), DECODER)


@pytest.fixture(scope="module")
def c(made: tuple[Path, list[featured.Row]]) -> signarium.Catalogue:
    return signarium.open(made[0])


@pytest.fixture(scope="module")
def rows(made: tuple[Path, list[featured.Row]]) -> list[featured.Row]:
    return made[1]


def query(path: Path, text: str, *values: Any) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(path), read_only=True) as connection:
        return connection.execute(text, values).fetchall()


# ---- patterns -------------------------------------------------------------------------------------


@given(st.integers(1, 200), st.integers(0, 20), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_both_counts_equal_the_bits(width: int, n: int, f: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (n, width)).astype(np.uint8)
    mask = rng.integers(0, 2, (f, width)).astype(np.uint8)
    polarity = rng.integers(0, 2, (f, width)).astype(np.uint8)
    expected = ((bits[:, None] != polarity) & (mask == 1)).sum(-1)
    packed = [np.packbits(one, axis=-1) for one in (bits, mask, polarity)]
    patterns = masked.Pattern(packed[1], packed[2])
    assert np.array_equal(masked.differing_each(packed[0], patterns, width), expected)
    for i in range(f):
        found = masked.differing(packed[0], masked.Pattern(packed[1][i], packed[2][i]))
        assert np.array_equal(found, expected[:, i])


def test_codes_of_another_width_are_refused() -> None:
    codes, masks = np.zeros((50, 4), np.uint8), np.zeros((20, 9), np.uint8)
    with pytest.raises(InvalidInput, match="9 bytes"):
        masked.differing(codes, masked.Pattern(masks[0], masks[0]))
    with pytest.raises(InvalidInput, match="9 bytes"):
        masked.differing_each(codes, masked.Pattern(masks, masks), 72)


# ---- list -----------------------------------------------------------------------------------------


def test_list_is_the_view(c: signarium.Catalogue, rows: list[featured.Row]) -> None:
    table = c.features(limit=None)
    columns = list(parts.view("features").columns)
    assert sorted(table.column_names) == sorted(columns) and table.column_names[-2:] == ["mask", "polarity"]
    with duckdb.connect(str(c.path), read_only=True) as connection:
        view = connection.execute("SELECT * FROM features").to_arrow_table().select(table.column_names)
    assert sorted(view.to_pylist(), key=str) == sorted(table.to_pylist(), key=str)
    assert c.features(limit=0).num_rows == len(rows) == c.features(model=DECODER).num_rows
    assert c.features(limit=5).to_pylist() == table.slice(0, 5).to_pylist()


@pytest.mark.parametrize("sort", features.SORTS)
def test_list_in_order(c: signarium.Catalogue, sort: str) -> None:
    found = c.features(sort=sort, limit=None).to_pylist()
    backwards = sort not in ("name", "p_value")
    known = [one for one in found if one[sort] is not None]
    assert found[: len(known)] == known, "what is unknown comes last"
    keys = [(one[sort], one["feature_id"]) for one in known]
    by_id = sorted(keys, key=lambda one: one[1])
    assert keys == sorted(by_id, key=lambda one: one[0], reverse=backwards)


def test_list_narrowed(c: signarium.Catalogue, rows: list[featured.Row]) -> None:
    for name, value in (("site", "resid_post.0"), ("kind", "discovered"), ("centre", "mean")):
        found = c.features(**{name: value, "limit": None}).column("feature_id").to_pylist()  # type: ignore[arg-type]
        assert sorted(found) == [one.feature_id for one in rows if getattr(one, name) == value] != []
    for survives in (True, False):
        found = c.features(survives=survives, limit=None)
        expected = query(c.path, "SELECT count(*) FROM features WHERE survives = ?", survives)
        assert [(found.num_rows,)] == expected and set(found.column("survives").to_pylist()) == {survives}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sort": "mask"}, ["'mask'", "auc_held_out", "p_value"]),
        ({"model": "other"}, ["'other'", "decoder", "encoder"]),
        ({"model": ENCODER}, ["no features of encoder", "--stages features"]),
        ({"site": "embed"}, ["site with features", "'embed'", "resid_post.0, resid_post.1"]),
        ({"kind": "neuron"}, ["'neuron'", "category", "discovered"]),
        ({"centre": "median"}, ["'median'", "mean", "zero"]),
        ({"limit": -1}, ["-1"]),
    ],
)
def test_list_errors(c: signarium.Catalogue, given: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SignariumError) as caught:
        c.features(**given)
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words)


def test_a_catalogue_without_features(catalogue: Made) -> None:
    bare = signarium.open(catalogue.path)
    for call in (
        lambda: bare.features(),
        lambda: bare.feature(17),
        lambda: bare.find(" king", model=DECODER),
        lambda: bare.read(TEXT, model=DECODER),
        lambda: bare.nearest("feature:17"),
        lambda: bare.nearest('type:" king"', within="features", model=DECODER),
    ):
        with pytest.raises(
            InvalidInput, match=r"no features.* yet: run `signarium ingest MODEL.*--stages features`"
        ):
            call()


# ---- one ------------------------------------------------------------------------------------------


def test_a_card_is_the_rows_of_the_views(c: signarium.Catalogue, rows: list[featured.Row]) -> None:
    one = rows[0]
    card = c.feature(one.feature_id)
    assert card.feature.column("feature_id").to_pylist() == [one.feature_id]
    told = card.parts()
    for name in ("members", "types", "states"):
        columns = [column for column in told[name][0] if column != "context"]
        order = "rank" if name != "members" else "part, token_id"
        view = query(
            c.path,
            f"SELECT {', '.join(columns)} FROM feature_{name} WHERE feature_id = ? ORDER BY {order}",
            one.feature_id,
        )
        assert [tuple(row[column] for column in columns) for row in told[name]] == view != []
    assert len(told["states"]) == 20 and len(told["types"]) == 50
    for row in told["states"]:
        assert f"«{row['token'].lstrip(' ') or row['token']}»" in row["context"]
    assert len(told["measurements"]) == len(
        query(c.path, "SELECT 1 FROM measurements WHERE subject_id = ?", str(one.feature_id))
    )
    assert card.measurements.column_names == list(parts.view("measurements").columns)


def test_the_histogram_counts_all_types(c: signarium.Catalogue, rows: list[featured.Row]) -> None:
    for one in some(rows, 4):
        table = c.feature(one.feature_id).histogram
        codes = query(
            c.path,
            "SELECT code FROM types WHERE model = ? AND site = ? AND centre = ?",
            DECODER,
            one.site,
            one.centre,
        )
        packed = np.stack([np.frombuffer(row[0], np.uint8) for row in codes])
        agreeing = agreement(packed, np.packbits(one.mask), np.packbits(one.polarity))
        expected, _ = np.histogram(agreeing + 1e-9, np.append(np.arange(20) / 20, 1.01))
        assert table.column("types").to_pylist() == expected.tolist()
        assert sum(table.column("members").to_pylist()) == 3


def test_names_and_ids(c: signarium.Catalogue, rows: list[featured.Row]) -> None:
    there = {"site": "resid_post.1", "centre": "zero"}
    (expected,) = [
        one.feature_id
        for one in rows
        if one.name == "animal" and one.site == "resid_post.1" and one.centre == "zero"
    ]
    assert c.feature("animal", **there).parts()["feature"]["feature_id"] == expected
    assert c.feature(str(expected)).parts() == c.feature(expected).parts()
    for name in (" king", '" king"'):
        assert c.feature(name, **there).parts()["feature"]["name"] == " king"


@pytest.mark.parametrize(
    ("feature", "given", "words"),
    [
        ("animal", {}, ["4 features", "`site`", "`centre`", "1001", "resid_post.0 mean"]),
        ("animal", {"site": "resid_post.1"}, ["2 features", "`centre`", "1007"]),
        ("anima", {}, ["'anima'", "animal"]),
        ("king", {}, ["'king'", '" king"']),
        ("99", {}, ["'99'", "features list"]),
        (str(2**70), {}, ["features list"]),
        ("1000", {"site": "resid_post.1"}, ["elsewhere", "resid_post.0 mean", "`site='resid_post.1'`"]),
        ("1000", {"model": ENCODER}, ["no features of encoder"]),
        ("1000", {"site": "nowhere"}, ["'nowhere'", "resid_post.0"]),
    ],
)
def test_one_feature_or_a_line_that_says_why(
    c: signarium.Catalogue, feature: str, given: dict[str, str], words: list[str]
) -> None:
    with pytest.raises(SignariumError) as caught:
        c.feature(feature, **given)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("width", [80, 120, None])
def test_a_page_fits_and_says_everything(
    c: signarium.Catalogue, rows: list[featured.Row], width: int | None
) -> None:
    for one in rows[:3]:
        card = c.feature(one.feature_id)
        text = page(card, width)
        assert "\x1b" not in text and "\x1b[1m" in page(card, width, color=True)
        assert max(map(cell_len, text.splitlines())) <= (width or 110)
        for word in (str(one.feature_id), one.site, "evidence", "a_new_one", "members", "«", "held out"):
            assert word in text
    first = page(c.feature(rows[0].feature_id), width)
    assert "survives: p = 0.001" in first and "other words of a category" in first
    assert ("rotated:1" in first) == (width == 120)
    if width == 80:
        assert "0.750" in first, "the mean of two rotated bases"
    assert "does not survive: p = 0.5" in page(c.feature(rows[1].feature_id))
    single = page(c.feature(rows[2].feature_id))
    assert "not tested" in single and "single best dimension" in single
    # Unknown metrics come after those with a name.
    assert first.index("logistic probe") < first.index("a_new_one")


def test_a_rescore_doubles_no_state(
    made: tuple[Path, list[featured.Row]], c: signarium.Catalogue, tmp_path: Path
) -> None:
    path = tmp_path / "c.duckdb"
    shutil.copy(made[0], path)
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            "INSERT INTO feature_state_row SELECT * REPLACE ('again' AS run_id) FROM feature_state_row"
        )
    again = signarium.open(path).feature(1000).states
    assert again.num_rows == 20 and again.equals(c.feature(1000).states)


def test_scaled_figures_have_a_heading(c: signarium.Catalogue) -> None:
    card = c.feature(1000)
    some = card.measurements.filter(pc.equal(card.measurements["control"], "haar:1"))
    scaled = some.set_column(
        some.column_names.index("control"), "control", pa.array(["scaled:1"] * len(some), pa.string())
    )
    text = page(replace(card, measurements=pa.concat_tables([card.measurements, scaled])), 120)
    heads = next(line for line in text.splitlines() if line.startswith("figure"))
    assert heads.split().index("rotated:2") + 1 == heads.split().index("scaled:1")
    assert "scaled: rotated, after giving every dimension the same variance" in " ".join(text.split())


def test_a_card_as_json(c: signarium.Catalogue, rows: list[featured.Row]) -> None:
    parts = json.loads(json_text(c.feature(rows[0].feature_id).parts()))
    assert list(parts) == [
        *("feature", "members", "types", "states", "measurements", "histogram"),
        *("writers", "chance", "coalitions", "projections", "flips", "flip_runs", "carried"),
    ]
    assert parts["feature"]["mask"] == np.packbits(rows[0].mask).tobytes().hex()


def test_a_feature_without_codes_has_no_histogram(
    made: tuple[Path, list[featured.Row]], tmp_path: Path
) -> None:
    path = tmp_path / "c.duckdb"
    shutil.copy(made[0], path)
    with duckdb.connect(str(path)) as connection:
        connection.execute("DELETE FROM code_set WHERE subject = 'type'")
        connection.execute(
            "DELETE FROM measurement_row; DELETE FROM feature_type_row; DELETE FROM feature_state_row"
        )
    card = signarium.open(path).feature(1000)
    assert card.histogram.num_rows == card.states.num_rows == 0
    text = page(card, 80)
    assert "no measurements" in text and "scores" not in text and "states that" not in text


# ---- find -----------------------------------------------------------------------------------------


def test_find_equals_numpy(c: signarium.Catalogue, rows: list[featured.Row]) -> None:
    ((token,),) = query(
        c.path, "SELECT DISTINCT token_id FROM types WHERE model = ? AND token = ' king'", DECODER
    )
    for least in (0.0, 0.8):
        expected = []
        for one in rows:
            ((code,),) = query(
                c.path,
                "SELECT code FROM types WHERE model = ? AND site = ? AND centre = ? AND token_id = ?",
                DECODER,
                one.site,
                one.centre,
                token,
            )
            bits = np.unpackbits(np.frombuffer(code, np.uint8), count=len(one.mask))
            share = 1 - ((bits != one.polarity) & (one.mask == 1)).sum() / one.mask.sum()
            std = 0.0 if one.feature_id % 3 == 2 else 0.1
            if share >= least:
                surprise = (share - 0.5) / std if std else None
                expected.append((one.feature_id, share, surprise))
        expected.sort(key=lambda one: (one[2] is None, -(one[2] or 0), -one[1], one[0]))
        for text in (" king", '" king"', f"id:{token}"):
            table = c.find(text, model=DECODER, least=least, limit=None)
            found = table.to_pydict()
            assert found["feature_id"] == [one[0] for one in expected]
            assert np.allclose(found["agreement"], [one[1] for one in expected])
            assert [one is None for one in found["surprise"]] == [one[2] is None for one in expected]
            assert found["rank"] == list(range(1, len(expected) + 1))
        assert table.column_names == ["rank", "agreement", "surprise", *c.features().column_names]
        assert (
            c.find(" king", model=DECODER, least=least, limit=2).to_pylist() == table.slice(0, 2).to_pylist()
        )
    one_place = c.find(" king", model=DECODER, site="resid_post.1", centre="mean", least=0, limit=0)
    assert one_place.num_rows == 3


@pytest.mark.parametrize(
    ("token", "given", "words"),
    [
        ("king", {}, ["'king'", 'there is " king"']),
        ("zebra crossing", {}, ["one token"]),
        ("id:99999", {}, ["ids go from 0"]),
        (" king", {"model": None}, ["`model`"]),
        (" king", {"site": "embed"}, ["'embed'"]),
    ],
)
def test_find_errors(c: signarium.Catalogue, token: str, given: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SignariumError) as caught:
        c.find(token, **{"model": DECODER, **given})
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("width", [80, 120, None])
def test_lists_fit_a_terminal(c: signarium.Catalogue, width: int | None) -> None:
    for table in (c.features(), c.find(" king", model=DECODER, least=0)):
        text = rendered(pages.features(table, width), width=width)
        assert "hidden" not in text and "mask" not in text
        assert width is None or max(map(cell_len, text.splitlines())) <= width


# ---- read -----------------------------------------------------------------------------------------


def read_by_numpy(
    c: signarium.Catalogue, rows: list[featured.Row], at: annotate.Target, codes: np.ndarray, every: bool
) -> list[list[int]]:
    """For each token the features with an agreement from 0.5, in order."""
    found = []
    for code in codes:
        bits = np.unpackbits(code, count=at.width)
        ranked = []
        for one in rows:
            hidden = one.feature_id % 3 == 2 or one.mask.sum() < annotate.LEAST_DIMS
            if (one.site, one.centre) != (at.site, at.centre) or (hidden and not every):
                continue
            share = 1 - ((bits != one.polarity) & (one.mask == 1)).sum() / one.mask.sum()
            single = one.kind == "discovered"
            mean, std = (0.55, 0.05) if single else (0.5, 0.0 if one.feature_id % 3 == 2 else 0.1)
            if share >= 0.5:
                ranked.append(
                    (std == 0, -round((share - mean) / std, 9) if std else 0, -share, one.feature_id)
                )
        found.append([one[3] for one in sorted(ranked)])
    return found


@pytest.mark.parametrize(("centre", "every"), [(None, False), ("mean", True)])
def test_read_equals_numpy_on_the_codes_of_the_text(
    c: signarium.Catalogue, rows: list[featured.Row], centre: str | None, every: bool
) -> None:
    from signarium.ingest.encode import encode_tokens

    at = annotate.place(c.path, DECODER, None, centre)
    assert (at.site, at.centre) == ("resid_post.1", centre or "zero")
    encoded = encode_tokens(c.path, DECODER, [(at.site, at.centre)], TEXT, 256, "cpu")
    expected = read_by_numpy(c, rows, at, encoded.codes[at.site, at.centre], every)
    table = c.read(
        TEXT, model=DECODER, centre=centre, top=9, least=0.5, first=True, every=every, device="cpu"
    )
    found: dict[int, list[int]] = {}
    for row in table.to_pylist():
        found.setdefault(row["position"], [])
        if row["rank"] is not None:
            assert row["rank"] == len(found[row["position"]]) + 1
            found[row["position"]].append(row["feature_id"])
    assert list(found.values()) == expected and any(expected)
    tokens = {row["position"]: row["token"] for row in table.to_pylist()}
    assert "".join(tokens.values()) == TEXT
    # Fewer of them, and the first position left out.
    short = c.read(
        TEXT, model=DECODER, centre=centre, top=1, least=0.5, every=every, device="cpu"
    ).to_pylist()
    assert [row["feature_id"] for row in short] == [None, *((one or [None])[0] for one in expected[1:])]
    assert [row["is_first"] for row in short] == [True] + [False] * (len(short) - 1)


def test_read_where_most_categories_are_shown(made: tuple[Path, list[featured.Row]], tmp_path: Path) -> None:
    """Three categories of 7 dimensions at each place, of which as many beat their null as `shown` says."""
    path = tmp_path / "c.duckdb"
    shutil.copy(made[0], path)
    chosen: dict[tuple[str | None, str | None], tuple[str, str]] = {}

    def places(**shown: int) -> dict[tuple[str | None, str | None], tuple[str, str]]:
        with duckdb.connect(str(path)) as connection:
            connection.execute("DELETE FROM feature_row WHERE feature_id >= 5000")
            for i in range(3):
                connection.execute(
                    f"INSERT INTO feature_row SELECT f.* REPLACE ({5000 + 1000 * i} + feature_id AS feature_id, "
                    f"CASE WHEN {i} < map({list(shown)}, {list(shown.values())})[s.layer || centre] THEN 0.1 ELSE 0.99 END "
                    "AS null_p95) FROM feature_row f JOIN site s USING (site_id) WHERE f.name = 'animal'"
                )
        for asked in ((None, None), ("resid_post.0", None), (None, "mean")):
            at = annotate.place(path, DECODER, *asked)
            chosen[asked] = (at.site, at.centre)
        return chosen

    low, high = "resid_post.0", "resid_post.1"
    found = places(**{"0zero": 1, "1zero": 2, "0mean": 3, "1mean": 3})
    assert list(found.values()) == [(high, "zero"), (low, "zero"), (low, "mean")]
    found = places(**{"0zero": 2, "1zero": 2, "0mean": 1, "1mean": 3})
    assert list(found.values()) == [(low, "zero"), (low, "zero"), (high, "mean")]
    found = places(**{"0zero": 0, "1zero": 0, "0mean": 1, "1mean": 3})
    assert list(found.values()) == [(high, "mean"), (low, "mean"), (high, "mean")]
    found = places(**{"0zero": 0, "1zero": 0, "0mean": 0, "1mean": 0})
    assert list(found.values()) == [(high, "zero"), (low, "zero"), (high, "mean")]


def test_read_shows_what_stands_its_test(made: tuple[Path, list[featured.Row]], tmp_path: Path) -> None:
    path = tmp_path / "c.duckdb"
    shutil.copy(made[0], path)
    with duckdb.connect(str(path)) as connection:
        # No anchors were drawn for a discovered feature; two categories, one of them not tested.
        connection.execute(
            "UPDATE feature_row SET n_dims = 7; UPDATE feature_row SET null_p95 = NULL WHERE kind = 'discovered' "
            "OR name = 'animal'; UPDATE feature_row SET p_value = 0.9 WHERE feature_id = 1003; "
            "UPDATE feature_row SET null_p95 = 0.9 WHERE feature_id = 1005"
        )
        shown = connection.execute(f"SELECT feature_id FROM features WHERE {annotate._USUAL} ORDER BY 1")
        assert [row[0] for row in shown.fetchall()] == [
            *(1000, 1001, 1002),
            1004,
            *(1006, 1007, 1008, 1009, 1010, 1011),
        ]


def test_codes_of_a_text_are_those_of_ingest(c: signarium.Catalogue, catalogue: Made) -> None:
    from signarium.ingest.encode import encode_tokens

    text = catalogue.texts[1].read_text()
    places = [("resid_post.1", "zero"), ("resid_post.1", "mean"), ("embed", "zero")]
    encoded = encode_tokens(c.path, DECODER, places, text, 64, "cpu")
    for site, centre in places:
        stored = query(
            c.path,
            "SELECT d.chunk, s.position, s.token_id, s.token, s.code FROM states s JOIN documents d USING (document_id) "
            "WHERE s.model = ? AND s.site = ? AND s.centre = ? AND d.source LIKE '%second%' ORDER BY 1, 2",
            DECODER,
            site,
            centre,
        )
        columns = (encoded.chunks, encoded.positions, encoded.token_ids)
        assert [row[:3] for row in stored] == list(zip(*(one.tolist() for one in columns), strict=True))
        assert [row[3] for row in stored] == encoded.tokens
        mine = encoded.codes[site, centre]
        kept = np.stack([np.frombuffer(row[4], np.uint8) for row in stored])
        # Batches of another shape may flip a bit.
        assert np.bitwise_count(mine ^ kept).sum() <= 1e-3 * 8 * kept.size
    assert np.array_equal(encoded.is_first, encoded.positions == 0)


def test_long_texts_are_read_in_windows(c: signarium.Catalogue, tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text(TEXT * 3)
    table = c.read(file=file, model=DECODER, context=16, device="cpu")
    rows = table.to_pylist()
    assert max(row["position"] for row in rows) == 15 and max(row["chunk"] for row in rows) > 1
    shown = reading.display(table)
    assert shown.column_names == ["chunk", "position", "token", "features"]
    assert reading.display(c.read(TEXT, model=DECODER)).column_names == ["position", "token", "features"]
    assert (
        shown.column("features").to_pylist().count("(first position)")
        == max(row["chunk"] for row in rows) + 1
    )
    text = rendered(shown, width=80)
    assert max(map(cell_len, text.splitlines())) <= 80
    assert "decoder at resid_post.1, centre zero" in reading.summary(table)


def test_read_errors(c: signarium.Catalogue, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    cases: list[tuple[type[SignariumError], dict[str, Any]]] = [
        (InvalidInput, {}),
        (InvalidInput, {"text": TEXT, "file": "x"}),
        (InvalidInput, {"text": ""}),
        (InvalidInput, {"text": TEXT, "top": 0}),
        (InvalidInput, {"text": "\udcff"}),
        (InvalidInput, {"text": TEXT, "context": 0}),
        (NotFound, {"text": TEXT, "site": "embed"}),
        (NotFound, {"text": TEXT, "centre": "median"}),
        (TextError, {"file": tmp_path / "none.txt"}),
        (TextError, {"file": tmp_path / "latin.txt"}),
    ]
    for error, given_ in cases:
        with pytest.raises(error) as caught:
            c.read(**{"model": DECODER, "device": "cpu", **given_})
        assert "\n" not in str(caught.value)


@given(st.integers(1, 6), st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_the_best_of_each_token(n: int, f: int, top: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Few values, so that there are ties.
    agreeing = rng.integers(0, 4, (n, f)) / 4
    surprise = np.where(rng.random(f) < 0.2, np.nan, agreeing * 2)
    kept = rng.random((n, f)) < 0.7
    for i, best in enumerate(annotate._best(kept, agreeing, surprise, top)):
        keys = [
            (bool(np.isnan(surprise[i, j])), -np.nan_to_num(surprise[i, j]), -agreeing[i, j], j)
            for j in np.flatnonzero(kept[i])
        ]
        assert best.tolist() == [int(one[3]) for one in sorted(keys)][:top]
