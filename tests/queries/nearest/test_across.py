"""`nearest --across` against numpy on planted twins: what is carried, chosen, refused and said."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import twins
from numpy.typing import NDArray
from twins import ALPHA, BASE, BETA, GAMMA, SITES, WIDTH, Twins

import signarium
from signarium.catalog import carry
from signarium.catalog.codes import hamming, pack, unpack
from signarium.catalog.errors import InvalidInput, NotFound, SignariumError
from signarium.commands.pages import search as search_page
from signarium.queries.nearest.answers import Answer
from signarium.queries.nearest.ask import nearest
from signarium.queries.nearest.asked import Asked
from signarium.queries.nearest.subject import Place

ALL = 10_000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    return twins.make(tmp_path_factory.mktemp("twins") / "c.duckdb")


@pytest.fixture(scope="module")
def c(made: Twins) -> signarium.Catalogue:
    return signarium.open(made.path)


def ordered(codes: NDArray[np.uint8], code: NDArray[np.uint8], first: int = 0) -> list[tuple[int, int]]:
    return sorted((int(d), first + i) for i, d in enumerate(hamming(codes, code)))


def answered(answer: Answer) -> list[tuple[int, int]]:
    columns = answer.table.to_pydict()
    return list(zip(columns["distance"], columns[answer.target.subject.item], strict=True))


def by_hand(
    made: Twins, site: str, code: NDArray[np.uint8], centre_a: Any, centre_b: Any
) -> NDArray[np.uint8]:
    """The carried code with no help from `catalog/carry.py`: truncated means by numerical integration."""
    r = made.rotations[site]
    bits = unpack(code, WIDTH)
    grid = np.linspace(-9, 9, 40_001)
    density = np.exp(-(grid**2) / 2)
    floats = np.empty(WIDTH)
    for d in range(WIDTH):
        x = float(r.mean_a[d]) + float(r.std_a[d]) * grid
        side = (x > centre_a[d]) == bool(bits[d])
        floats[d] = (x * density * side).sum() / (density * side).sum()
    b = (floats - r.mean_a) @ r.matrix.astype(np.float64) + r.mean_b
    return pack(b - centre_b)


@pytest.mark.parametrize("centre", ["zero", "mean"])
@pytest.mark.parametrize("state", [0, 5, 133])
def test_a_state_is_carried_as_by_hand_and_found_as_by_numpy(
    made: Twins, c: signarium.Catalogue, state: int, centre: str
) -> None:
    site = SITES[1]
    away = {m: made.types[m, site].mean(0) if centre == "mean" else np.zeros(WIDTH) for m in (ALPHA, BETA)}
    code = pack(made.states[ALPHA, site][state] - away[ALPHA])
    carried = by_hand(made, site, code, away[ALPHA], away[BETA])
    answer = c.nearest(
        f"state:{BASE + state}", model=ALPHA, within="states", across=BETA, site=site, centre=centre, k=ALL
    )
    stored = pack(made.states[BETA, site] - away[BETA])
    # FAISS, numpy and SQL.
    assert answered(answer) == ordered(stored, carried, BASE)
    with duckdb.connect(str(made.path), read_only=True) as connection:
        rows = connection.execute(
            "SELECT hamming(code, ?) AS d, state_id FROM states WHERE model = ? AND site = ? AND centre = ? ORDER BY ALL",
            [carried.tobytes(), BETA, site, centre],
        ).fetchall()
    assert answered(answer) == rows
    assert answer.table.column_names[:3] == ["rank", "distance", "context"]
    assert set(answer.table.column("model").to_pylist()) == {BETA}


def test_most_states_find_themselves(made: Twins, c: signarium.Catalogue) -> None:
    first = [
        c.nearest(f"state:{BASE + i}", model=ALPHA, across=BETA, site=SITES[1], k=1)
        .table.column("state_id")[0]
        .as_py()
        for i in range(0, 100, 10)
    ]
    assert sum(a == BASE + b for a, b in zip(first, range(0, 100, 10), strict=True)) >= 8


def test_the_other_way_is_turned_back(made: Twins, c: signarium.Catalogue) -> None:
    site = SITES[2]
    code = pack(made.states[ALPHA, site][7])
    carried = by_hand(made, site, code, np.zeros(WIDTH), np.zeros(WIDTH))
    answer = c.nearest(f"state:{BASE + 7}", model=ALPHA, across=BETA, site=site, k=ALL)
    assert answered(answer) == ordered(pack(made.states[BETA, site]), carried, BASE)
    assert answer.across is not None and answer.across.rotation.inverse
    assert "carried by the inverse of the rotation from beta at resid_post.2" in search_page.summary(answer)
    back = c.nearest(f"state:{BASE + 7}", model=BETA, across=ALPHA, site=site)
    assert back.across is not None and not back.across.rotation.inverse
    assert back.table.column("state_id")[0].as_py() == BASE + 7


def test_where_and_approximate_hold_in_b(c: signarium.Catalogue) -> None:
    options: dict[str, Any] = {"model": ALPHA, "across": BETA, "site": SITES[1], "k": ALL}
    whole = answered(c.nearest(f"state:{BASE + 3}", **options))
    some = answered(c.nearest(f"state:{BASE + 3}", where="position < 50", **options))
    assert some == [one for one in whole if one[1] < BASE + 50]
    answer = c.nearest(f"state:{BASE + 3}", approximate=True, **(options | {"k": 5}))
    assert answer.recall is not None


def test_types_and_codes(made: Twins, c: signarium.Catalogue) -> None:
    site = SITES[1]
    away = {m: made.types[m, site].mean(0) for m in (ALPHA, BETA)}
    answer = c.nearest('type:" t7"', model=ALPHA, across=BETA, site=site, k=ALL)
    assert answer.target.view == "types" and answer.target.site == site and answer.target.centre == "mean"
    carried = by_hand(made, site, pack(made.types[ALPHA, site][7] - away[ALPHA]), away[ALPHA], away[BETA])
    assert answered(answer) == ordered(pack(made.types[BETA, site] - away[BETA]), carried)
    assert "a type stands at one" in search_page.summary(answer)
    code = pack(made.states[ALPHA, site][9])
    same = c.nearest(f"code:{code.tobytes().hex()}", model=ALPHA, across=BETA, site=site, k=ALL)
    state = c.nearest(f"state:{BASE + 9}", model=ALPHA, across=BETA, site=site, k=ALL)
    assert answered(same) == answered(state)


def test_a_feature_is_carried_as_a_direction(made: Twins, c: signarium.Catalogue) -> None:
    """By what was made of it in B, where it was; else by its signs times A's deviations, through the rotation."""
    site = SITES[1]
    r = made.rotations[site]
    value = (np.where(made.mask, 2.0 * made.polarity - 1, 0) * r.std_a) @ r.matrix.astype(np.float64)
    kept = np.argsort(-np.abs(value) / r.std_b, kind="stable")[:12]
    x = made.types[BETA, site]
    wrong = ((x[:, kept] > 0) != (value[kept] > 0)).sum(1)
    answer = c.nearest(f"feature:{twins.DIRECTED}", across=BETA, k=ALL, within="types", centre="zero")
    assert answered(answer) == sorted((int(d), i) for i, d in enumerate(wrong))
    answer = c.nearest(f"feature:{twins.FEATURE}", across=BETA, k=ALL)
    assert answer.target.view == "types" and answer.target.centre == "mean"
    wrong = (((x - x.mean(0)) > 0) != made.polarity)[:, made.mask.astype(bool)].sum(1)
    assert answered(answer) == sorted((int(d), i) for i, d in enumerate(wrong))
    assert "searched feature 1000, animal: 12 dimensions, of alpha at resid_post.1" in search_page.summary(
        answer
    )
    for within in ("states", "neurons", "unembedding", "directions"):
        assert c.nearest(f"feature:{twins.FEATURE}", across=BETA, within=within, k=3).table.num_rows == 3
    with pytest.raises(InvalidInput, match="not searched with a feature"):
        c.nearest(f"feature:{twins.FEATURE}", across=BETA, within="features")
    state = c.nearest(f"state:{BASE}", model=ALPHA, across=BETA, within="features", centre="mean")
    assert state.table.column("feature_id").to_pylist() == [twins.CARRIED]


def test_directions_and_neurons(made: Twins, c: signarium.Catalogue) -> None:
    site = SITES[1]
    r = made.rotations[site]

    def turned(v: NDArray[np.float64]) -> NDArray[np.uint8]:
        return pack((np.where(v > 0, 1.0, -1.0) * r.std_a) @ r.matrix.astype(np.float64))

    answer = c.nearest('direction:"alpha sae 0"/17'.replace('"', ""), across=BETA, within="directions", k=ALL)
    stored = pack(np.concatenate([made.dictionary + k for k in range(2)]) @ r.matrix.astype(np.float64))
    found = answer.table.to_pydict()
    assert found["distance"] == [d for d, _ in ordered(stored, turned(made.dictionary[17]))]
    assert (found["name"][0], found["feature"][0]) == ("beta sae 0", 17)
    difference = np.where(made.mask, 2.0 * made.polarity - 1, 0.5)
    answer = c.nearest(f"direction:{twins.DIRECTED}", across=BETA, within="states", centre="zero", k=ALL)
    assert answered(answer) == ordered(pack(made.states[BETA, site]), turned(difference), BASE)
    answer = c.nearest("neuron:1/3", model=ALPHA, across=BETA, within="states", centre="zero", k=ALL)
    distances = hamming(pack(made.states[BETA, site]), turned(made.neurons[13]))
    assert answered(answer) == sorted(
        (min(int(d), WIDTH - int(d)), BASE + i) for i, d in enumerate(distances)
    )
    assert set(answer.table.column("polarity").to_pylist()) == {1, -1}


def test_free_text_is_carried_with_its_floats(made: Twins) -> None:
    site = SITES[1]
    places = []

    class Encoder:
        token = "words, token 0 of 1"

        def code(self, place: Place) -> NDArray[np.uint8]:
            raise AssertionError("a code cannot be carried as well as floats")

        def floats(self, place: Place) -> NDArray[np.float64]:
            places.append(place)
            return made.states[ALPHA, site][11]

    asked = Asked(query="words", model=ALPHA, across=BETA, site=site, k=ALL)
    answer = nearest(made.path, asked, lambda _: Encoder())
    code = pack(carry.carry_floats(made.states[ALPHA, site][11], made.rotations[site]))
    assert answered(answer) == ordered(pack(made.states[BETA, site]), code, BASE)
    assert answered(answer)[0] == (0, BASE + 11)
    assert [(one.model, one.site) for one in places] == [(ALPHA, site)]
    assert answer.across is not None and not answer.across.signs_alone
    assert "signs alone" not in search_page.summary(answer)
    with pytest.raises(InvalidInput, match="free text"):
        nearest(made.path, Asked(query="words", model=ALPHA, across=BETA))


# ---- what is chosen and said ----------------------------------------------------------------------


def test_the_usual_site_and_the_newest_rotation(c: signarium.Catalogue) -> None:
    # Alone alpha is searched at resid_post.2, the middle one of four.
    alone = c.nearest(f"state:{BASE}", model=ALPHA)
    answer = c.nearest(f"state:{BASE}", model=ALPHA, across=BETA)
    assert alone.target.site == answer.target.site == SITES[2]
    assert (
        c.nearest(f"state:{BASE}", model=ALPHA, across=BETA, site=SITES[1]).across.rotation.rotation_id == 2
    )
    assert (
        c.nearest(f"state:{BASE}", model=BETA, across=ALPHA, site=SITES[1]).across.rotation.rotation_id == 5
    )


def test_the_line_says_what_the_rotation_is_worth(c: signarium.Catalogue) -> None:
    line = search_page.summary(c.nearest(f"state:{BASE + 5}", model=ALPHA, across=BETA, site=SITES[1]))
    assert line == (
        f"states of beta at resid_post.1, centre zero: 400 codes of 60 bits; searched state {BASE + 5}, of alpha at "
        "resid_post.1, centre zero, its signs alone; carried by the rotation at resid_post.1: held-out explained variance 0.750, "
        "fitted on shuffled pairs -0.800, with token types exchanged 0.100"
    )
    line = search_page.summary(c.nearest(f"state:{BASE + 5}", model=ALPHA, across=BETA, site=SITES[0]))
    assert "not surely more than its nulls" in line and "beware: 3 of 60 dimensions vary" in line


@pytest.mark.parametrize(
    ("query", "given", "words"),
    [
        (f"state:{BASE}", {"model": ALPHA, "across": ALPHA}, ["is the model itself"]),
        (f"state:{BASE}", {"model": ALPHA, "across": "delta"}, ["'delta'", "alpha, beta, gamma"]),
        (f"state:{BASE}", {"model": ALPHA, "across": GAMMA}, ["width 60", "width 16", "one width"]),
        (f"state:{BASE}", {"across": BETA}, ["3 models", "`model`"]),
        (f"state:{BASE}", {"model": ALPHA, "across": BETA, "site": "resid_post.9"}, ["'resid_post.9'", "one at resid_post.0", "align"]),
        (f"state:{BASE}", {"model": ALPHA, "across": BETA, "site": SITES[3]}, ["no states or types of beta at", "`text=PATH`"]),
        (f"state:{BASE}", {"model": ALPHA, "across": BETA, "site": SITES[3], "within": "types"}, ["no types of beta", "`sites="]),
        (f"state:{BASE}", {"model": ALPHA, "across": BETA, "site": SITES[0], "within": "features"}, ["no features of beta"]),
        (f"state:{BASE}", {"model": ALPHA, "across": BETA, "site": SITES[0], "within": "directions"}, ["sae add"]),
        (f"state:{BASE}", {"model": ALPHA, "across": BETA, "within": "rotations"}, ["rotations cannot be searched"]),
        (f"state:{BASE}", {"model": ALPHA, "across": BETA, "centre": "median"}, ["'median'"]),
        ("state:12", {"model": ALPHA, "across": BETA}, ["state of alpha", "'12'"]),
        ('type:" zebra"', {"model": ALPHA, "across": BETA}, ["token of alpha"]),
        ("code:00", {"model": ALPHA, "across": BETA}, ["8 bytes"]),
        ("feature:99", {"across": BETA}, ["feature '99'"]),
        (f"feature:{twins.FEATURE}", {"across": ALPHA}, ["is the model itself"]),
        ("neuron:9/9", {"model": ALPHA, "across": BETA}, ["neuron of alpha"]),
        ("direction:alpha sae 0/99", {"across": BETA}, ["direction of alpha sae 0", "40 directions"]),
        ("direction:alpha sae 0/1", {"across": BETA, "site": SITES[0]}, ["is at resid_post.1"]),
        (f"state:{BASE}", {"model": ALPHA, "across": BETA, "k": 0}, ["`k=0`"]),
        (f"state:{BASE}", {"model": ALPHA, "across": BETA, "where": "nothing > 3"}, ["columns are"]),
    ],
)  # fmt: skip
def test_what_is_refused(c: signarium.Catalogue, query: str, given: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SignariumError) as caught:
        c.nearest(query, **given)
    line = str(caught.value)
    assert "\n" not in line and all(word in line for word in words), line


def test_no_rotation_says_how_one_is_made(made: Twins, tmp_path: Path) -> None:
    copy = tmp_path / "copy.duckdb"
    shutil.copy(made.path, copy)
    with duckdb.connect(str(copy)) as connection:
        connection.execute("DELETE FROM rotation_row")
    with pytest.raises(InvalidInput, match="run `signarium align alpha beta --text PATH`"):
        signarium.open(copy).nearest(f"state:{BASE}", model=ALPHA, across=BETA)
    with duckdb.connect(str(copy)) as connection:
        connection.execute("DELETE FROM code_set WHERE subject = 'state' AND site_id LIKE 'alpha/%'")
    with pytest.raises(SignariumError):
        signarium.open(copy).nearest(f"state:{BASE}", model=ALPHA, across=BETA)


def test_a_damaged_rotation_is_no_traceback(made: Twins, tmp_path: Path) -> None:
    copy = tmp_path / "copy.duckdb"
    shutil.copy(made.path, copy)
    with duckdb.connect(str(copy)) as connection:
        connection.execute("UPDATE rotation_row SET matrix = '\\x00'::BLOB")
    with pytest.raises(InvalidInput, match="db verify"):
        signarium.open(copy).nearest(f"state:{BASE}", model=ALPHA, across=BETA)


# ---- dictionaries within one model ----------------------------------------------------------------


def test_directions_are_searched_in_their_model(made: Twins, c: signarium.Catalogue) -> None:
    stored = pack(np.concatenate([made.dictionary + k for k in range(2)]))
    state = pack(made.states[ALPHA, SITES[1]][4])
    answer = c.nearest(f"state:{BASE + 4}", model=ALPHA, within="directions", k=ALL)
    expected = ordered(stored, state)
    rows = answer.table.to_pylist()
    assert [
        (row["distance"], (row["name"] == "alpha sae 1") * twins.N_SAE + row["feature"]) for row in rows
    ] == expected
    assert answer.table.column_names == [
        "rank",
        "distance",
        "model",
        "site",
        "centre",
        "basis",
        "name",
        "feature",
        "norm",
        "code",
    ]
    kept = c.nearest(
        f"state:{BASE + 4}", model=ALPHA, within="directions", where="name LIKE '%1' AND feature < 9", k=ALL
    )
    assert kept.searched == 9 and {row["name"] for row in kept.table.to_pylist()} == {"alpha sae 1"}
    with pytest.raises(
        InvalidInput, match="columns are model, site, centre, basis, name, feature, norm, code"
    ):
        c.nearest(f"state:{BASE + 4}", model=ALPHA, within="directions", where="token = 'x'")
    own = c.nearest("direction:alpha sae 1/3", within="directions", k=1).table.to_pylist()
    assert [(row["distance"], row["name"], row["feature"]) for row in own] == [(0, "alpha sae 1", 3)]
    states = c.nearest("direction:alpha sae 1/3", within="states", centre="zero", k=ALL)
    assert answered(states) == ordered(pack(made.states[ALPHA, SITES[1]]), pack(made.dictionary[3] + 1), BASE)
    neurons = c.nearest("neuron:1/3", model=ALPHA, within="directions", k=3)
    assert "polarity" in neurons.table.column_names
    shown = search_page.display(answer, 80)
    assert shown.column_names == ["rank", "distance", "name", "feature", "norm"]
    for other in ('type:" t7"', f"feature:{twins.FEATURE}", "code:" + "00" * 8):
        options = {} if other.startswith("feature") else {"model": ALPHA}
        assert c.nearest(other, within="directions", k=2, **options).table.num_rows == 2


def test_dictionaries_that_are_not_there(c: signarium.Catalogue) -> None:
    with pytest.raises(NotFound, match=r"'resid_post\.0'"):
        c.nearest(f"state:{BASE}", model=ALPHA, within="directions", site=SITES[0])
    with pytest.raises(InvalidInput, match="no dictionary of gamma"):
        c.nearest("code:0000", model=GAMMA, within="directions")
    with pytest.raises(SignariumError, match="no dictionary 'nothing'"):
        c.nearest("direction:nothing/3")
