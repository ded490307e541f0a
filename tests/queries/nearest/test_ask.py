"""`nearest` against numpy and SQL on the same catalogue; what it chooses, refuses, and shows."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import duckdb
import featured
import numpy as np
import pytest
from effort import in_full, some
from made import DECODER, ENCODER, SITES, Made

import signarium
from signarium.catalog import index
from signarium.catalog.codes import hamming
from signarium.catalog.engines import blocks
from signarium.catalog.errors import (
    CodesChanged,
    IndexDamaged,
    InvalidInput,
    ModelError,
    NotFound,
    SignariumError,
)
from signarium.commands.pages import search as search_page
from signarium.queries.nearest import where as conditions
from signarium.queries.nearest.answers import Answer
from signarium.queries.nearest.asked import query_of
from signarium.queries.states.contexts import contexts

pytestmark = pytest.mark.long

ALL = 10_000
AT = {"model": DECODER, "site": "resid_post.1", "centre": "mean"}


@pytest.fixture(scope="module")
def c(catalogue: Made) -> signarium.Catalogue:
    return signarium.open(catalogue.path)


def query(path: Path, text: str, *values: Any) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(path), read_only=True) as connection:
        return connection.execute(text, values).fetchall()


def state_ids(path: Path, model: str = DECODER) -> list[int]:
    return [
        row[0]
        for row in query(path, "SELECT DISTINCT state_id FROM states WHERE model = ? ORDER BY 1", model)
    ]


def by_numpy(
    path: Path, view: str, item: str, code: bytes, where: str = "true", **at: str
) -> list[tuple[int, int]]:
    """(distance, item) of every row, in order."""
    rows = query(
        path,
        f"SELECT {item}, code FROM {view} WHERE model = ? AND site = ? AND centre = ? AND ({where})",
        at["model"],
        at["site"],
        at["centre"],
    )
    if not rows:
        return []
    codes = np.stack([np.frombuffer(row[1], np.uint8) for row in rows])
    distances = hamming(codes, np.frombuffer(code, np.uint8))
    return sorted((int(d), int(row[0])) for d, row in zip(distances, rows, strict=True))


def by_sql(path: Path, view: str, item: str, code: bytes, where: str, **at: str) -> list[tuple[int, int]]:
    return query(
        path,
        f"SELECT hamming(code, ?) AS d, {item} FROM {view} "
        f"WHERE model = ? AND site = ? AND centre = ? AND ({where}) ORDER BY d, {item}",
        code,
        at["model"],
        at["site"],
        at["centre"],
    )


def answered(answer: Answer) -> list[tuple[int, int]]:
    item = answer.target.subject.item
    columns = answer.table.to_pydict()
    return list(zip(columns["distance"], columns[item], strict=True))


WHERES = (
    "true",
    "position > 3",
    "token_id % 3 = 1 AND NOT is_first",
    "token = ' the' OR token LIKE '%s%'",
    "norm > 12.5",
    'octet_length(code) = 6 AND "bit"(code, 5) = 1',
    "document_id IN (SELECT document_id FROM documents WHERE source LIKE '%second%')",
    "states.position BETWEEN 1 AND 2 -- a comment",
)


@pytest.mark.parametrize("where", [*WHERES[::2], *map(in_full, WHERES[1::2])])
def test_state_equals_numpy_and_sql(c: signarium.Catalogue, where: str) -> None:
    state = state_ids(c.path)[777]
    ((code,),) = query(
        c.path,
        "SELECT code FROM states WHERE model = ? AND site = ? AND centre = ? AND state_id = ?",
        *AT.values(),
        state,
    )
    found = answered(c.nearest(f"state:{state}", k=ALL, where=where, **AT))
    expected = by_numpy(c.path, "states", "state_id", code, where.split("--")[0], **AT)
    assert len(expected) > 20, "the filter is to leave something"
    assert found == expected == by_sql(c.path, "states", "state_id", code, where.split("--")[0], **AT)
    assert answered(c.nearest(f"state:{state}", k=7, where=where, **AT)) == expected[:7]


needs_kernel = pytest.mark.skipif(blocks.missing() is not None, reason=str(blocks.missing()))


@pytest.mark.parametrize("engine", ["faiss", pytest.param("blocks", marks=needs_kernel)])
@pytest.mark.parametrize("where", [None, "token_id % 3 = 1", "false"])
def test_many_queries_are_each_the_answer_to_one(
    c: signarium.Catalogue, engine: str, where: str | None
) -> None:
    states = some(state_ids(c.path)[300:360:6], 4)
    rows = query(
        c.path,
        "SELECT code FROM states WHERE model = ? AND site = ? AND centre = ? AND list_contains(?, state_id) ORDER BY state_id",
        *AT.values(),
        states,
    )
    codes = np.stack([np.frombuffer(code, np.uint8) for (code,) in rows])
    found = c.search(codes, within="states", k=9, where=where, engine=engine, **AT)
    assert found.target.view == "states" and found.distances.dtype == np.int32
    for state, distances, items in zip(states, found.distances, found.items, strict=True):
        alone = answered(c.nearest(f"state:{state}", within="states", k=9, where=where, engine=engine, **AT))
        assert list(zip(distances.tolist(), items.tolist(), strict=True)) == alone
        assert alone == answered(c.nearest(f"state:{state}", within="states", k=9, where=where, **AT))


def test_queries_that_do_not_fit_are_refused(c: signarium.Catalogue) -> None:
    good = np.zeros((2, 6), np.uint8)
    for bad in (good[:, :5], good.astype(np.int64), good.reshape(2, 3, 2), np.zeros((2, 44), np.float32)):
        with pytest.raises(InvalidInput, match=r"uint8 \(n, 6\)|6 bytes"):
            c.search(bad, within="states", **AT)
    for options in ({"k": 0}, {"engine": "none"}, {"where": "no_such = 1"}, {"within": "features"}):
        with pytest.raises(InvalidInput):
            c.search(good, **({"within": "states"} | AT | options))
    with pytest.raises(InvalidInput, match="`engine`"):
        c.nearest('type:" king"', approximate=True, engine="faiss", **AT)
    assert c.search(np.zeros((0, 6), np.uint8), within="states", **AT).items.shape == (0, 10)


@pytest.mark.parametrize("where", [None, "token_id > 100", "token LIKE ' %'", "norm < 25"])
@pytest.mark.parametrize("within", ["types", "types_bos", "states"])
def test_type_equals_numpy_in_every_view(c: signarium.Catalogue, within: str, where: str | None) -> None:
    ((token_id, code),) = query(
        c.path,
        "SELECT token_id, code FROM types WHERE model = ? AND site = ? AND centre = ? AND token = ' king'",
        *AT.values(),
    )
    item = "state_id" if within == "states" else "token_id"
    answer = c.nearest('type:" king"', within=within, k=ALL, where=where, **AT)
    expected = by_numpy(c.path, within, item, code, where or "true", **AT)
    assert answered(answer) == expected
    assert answer.searched == len(expected) > 0
    if within == "types" and where is None:
        assert answered(answer)[0] == (0, token_id)


def test_code_and_its_hex(c: signarium.Catalogue) -> None:
    code = bytes([0xAA] * 5 + [0xA0])
    expected = by_numpy(c.path, "states", "state_id", code, **AT)
    assert answered(c.nearest(f"code:{code.hex()}", k=ALL, **AT)) == expected
    assert answered(c.nearest(f"code:{code.hex().upper()} ", k=ALL, **AT)) == expected


def test_free_text_is_its_last_token_as_ingested(c: signarium.Catalogue, catalogue: Made) -> None:
    # The beginning of the text that was ingested, so that the state itself is in the catalogue.
    rows = query(
        c.path,
        "SELECT state_id, token FROM states WHERE model = ? AND site = ? AND centre = ? AND document_id = "
        "(SELECT document_id FROM documents WHERE chunk = 0 AND source LIKE '%first%') ORDER BY state_id LIMIT 6",
        *AT.values(),
    )
    text = "".join(row[1] for row in rows)
    assert catalogue.texts[0].read_text().startswith(text)
    # Texts may begin alike, so that there are other states at distance 0.
    for position, expected in ((None, rows[-1]), (2, rows[2]), (-6, rows[0])):
        answer = c.nearest(text, k=20, position=position, device="cpu", **AT)
        assert (0, expected[0]) in answered(answer)
        ((code,),) = query(
            c.path,
            "SELECT code FROM states WHERE model = ? AND site = ? AND centre = ? AND state_id = ?",
            *AT.values(),
            expected[0],
        )
        assert answered(answer) == by_numpy(c.path, "states", "state_id", code, **AT)[:20]
    with pytest.raises(InvalidInput, match="position"):
        c.nearest(text, position=6, **AT)
    with pytest.raises(InvalidInput, match="free text"):
        c.nearest('type:" king"', position=0, **AT)


def test_free_text_without_its_model(c: signarium.Catalogue, catalogue: Made, catalogue_copy: Path) -> None:
    with duckdb.connect(str(catalogue_copy)) as connection:
        connection.execute("UPDATE model SET source = '/nowhere/at-all' WHERE name = ?", [DECODER])
    with pytest.raises(ModelError, match="not at hand"):
        signarium.open(catalogue_copy).nearest("the king", **AT)


def test_ties_are_ordered_by_item_also_across_runs(c: signarium.Catalogue) -> None:
    at = {"model": DECODER, "site": "embed", "centre": "zero"}
    # At `embed` a token's states are all alike, so most of the answer is ties, in both runs.
    answer = c.nearest('type:" "', within="states", k=200, **at)
    assert len(answer.target.infos) == 2
    ((code,),) = query(
        c.path,
        "SELECT code FROM types WHERE model = ? AND site = ? AND centre = ? AND token = ' '",
        *at.values(),
    )
    expected = by_numpy(c.path, "states", "state_id", code, **at)
    assert answered(answer) == expected[:200]
    tied = [item for distance, item in answered(answer) if distance == 0]
    both = [
        {row[0] for row in query(c.path, "SELECT item FROM codes WHERE code_set_id = ?", one.code_set_id)}
        for one in answer.target.infos
    ]
    assert set(tied) & both[0] and set(tied) & both[1], "ties are to be in both runs"


def test_rows_equal_the_view(c: signarium.Catalogue) -> None:
    for within, item in (("states", "state_id"), ("types", "token_id")):
        table = c.nearest('type:" king"', within=within, k=1100, **AT).table
        names = [one for one in table.column_names if one not in ("rank", "distance", "context")]
        with duckdb.connect(str(c.path), read_only=True) as connection:
            view = connection.execute(
                f"SELECT * FROM {within} WHERE model = ? AND site = ? AND centre = ?", list(AT.values())
            ).to_arrow_table()
        assert names == view.column_names
        assert [table.schema.field(one).type for one in names] == [
            view.schema.field(one).type for one in names
        ]
        rows = {row[item]: row for row in view.to_pylist()}
        assert table.num_rows == min(1100, len(rows))
        assert [rows[row[item]] for row in table.to_pylist()] == table.select(names).to_pylist()
        assert table.column("rank").to_pylist() == list(range(1, table.num_rows + 1))


# ---- what is chosen -------------------------------------------------------------------------------


def test_choices(c: signarium.Catalogue) -> None:
    state = c.nearest(f"state:{state_ids(c.path)[0]}", model=DECODER)
    assert (state.target.view, state.target.site, state.target.centre) == ("states", "resid_post.1", "zero")
    assert c.nearest('type:" king"', model=DECODER).target.view == "types"
    assert c.nearest("code:" + "00" * 6, model=DECODER).target.view == "states"
    assert (
        search_page.summary(state) == "states of decoder at resid_post.1, centre zero: 1,956 codes of 44 bits"
    )


def test_only_model_is_chosen_and_zero_where_there_is_no_mean(catalogue: Made, tmp_path: Path) -> None:
    path = tmp_path / "one.duckdb"
    signarium.ingest(
        path,
        str(catalogue.decoder_folder),
        sites="embed",
        text=[catalogue.texts[1]],
        stages=["states"],
        context=64,
    )
    one = signarium.open(path)
    answer = one.nearest("code:" + "00" * 6, k=1)
    assert (answer.target.view, answer.target.centre) == ("states", "zero")
    with pytest.raises(InvalidInput, match=r"no types of .*search `within='states'`"):
        one.nearest("code:" + "00" * 6, within="types")
    with pytest.raises(NotFound, match="no types of it were ingested"):
        one.nearest('type:" king"')
    with pytest.raises(NotFound, match=r"centre .*'mean'.*there is zero"):
        one.nearest("code:" + "00" * 6, centre="mean")


def test_several_models_must_be_named(c: signarium.Catalogue) -> None:
    with pytest.raises(InvalidInput, match=r"2 models: choose one with `model`: decoder, encoder"):
        c.nearest('type:" king"')


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": "other"}, ["model 'other'", "decoder", "encoder"]),
        ({"site": "resid_post.9"}, ["'resid_post.9'", "resid_post.0", "resid_post.1", "embed"]),
        ({"site": "nonsense"}, ["'nonsense'", "resid_post.0"]),
        ({"centre": "median"}, ["'median'", "mean", "zero"]),
        ({"within": "neurons"}, ["no neurons of decoder", "--stages neurons"]),
        ({"within": "rotations"}, ["rotations", "states", "types", "features", "neurons", "unembedding"]),
        ({"within": "features"}, ["no features of decoder", "--stages features"]),
        ({"query": "feature:17"}, ["no features", "--stages features"]),
        ({"query": "feature:"}, ["feature:ID"]),
        ({"k": 0}, ["`k=0`"]),
        ({"query": "state:12"}, ["state of decoder", "'12'", "states"]),
        ({"query": f"state:{2**64}"}, [str(2**64), "is not a state_id", "states"]),
        ({"query": "state:-1"}, ["'-1'", "state_id"]),
        ({"query": "state:12a"}, ["'12a'", "state_id"]),
        ({"query": "state:²"}, ["'²'", "state_id"]),
        ({"query": "state:"}, ["state:ID"]),
        ({"query": 'type:""'}, ["type:TOKEN"]),
        ({"query": 'type:"king"'}, ["'king'", 'type:" king"']),
        ({"query": "type:king"}, ["'king'", 'type:" king"']),
        ({"query": "type:zebra crossing"}, ["'zebra crossing'", "one token"]),
        ({"query": "type:\udcff"}, ["Unicode"]),
        ({"query": "code:0011"}, ["2 bytes", "6 bytes (12 digits)"]),
        ({"query": "code:0011223344556677"}, ["8 bytes", "6 bytes"]),
        ({"query": "code:001122334455"}, ["past its width", "last 4 bits"]),
        ({"query": "code:00112233445"}, ["hex"]),
        ({"query": "code:xyz"}, ["'xyz'", "hex"]),
    ],
)
def test_errors_name_what_there_is(c: signarium.Catalogue, given: dict[str, Any], words: list[str]) -> None:
    options = {"model": DECODER, "query": 'type:" king"', **given}
    with pytest.raises(SignariumError) as caught:
        c.nearest(options.pop("query"), **options)
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line


def test_a_site_that_has_no_types_says_where_there_are(c: signarium.Catalogue, catalogue_copy: Path) -> None:
    with duckdb.connect(str(catalogue_copy)) as connection:
        connection.execute(
            "DELETE FROM code_set WHERE subject = 'type' AND site_id IN (SELECT site_id FROM site WHERE name = 'embed')"
        )
    with pytest.raises(NotFound, match=r"type at embed, centre zero, .*resid_post.0 mean"):
        signarium.open(catalogue_copy).nearest(
            'type:" king"', within="states", model=DECODER, site="embed", centre="zero"
        )


# ---- features -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def featured_c(
    catalogue: Made, tmp_path_factory: pytest.TempPathFactory
) -> tuple[signarium.Catalogue, list[featured.Row]]:
    path, rows = featured.copy(catalogue, tmp_path_factory.mktemp("features"), DECODER)
    return signarium.open(path), rows


def masked_by_numpy(path: Path, view: str, item: str, one: featured.Row, where: str) -> list[tuple[int, int]]:
    rows = query(
        path,
        f"SELECT {item}, code FROM {view} WHERE model = ? AND site = ? AND centre = ? AND ({where})",
        *(DECODER, one.site, one.centre),
    )
    bits = np.unpackbits(
        np.stack([np.frombuffer(row[1], np.uint8) for row in rows]), axis=1, count=len(one.mask)
    )
    wrong = ((bits != one.polarity) & (one.mask == 1)).sum(1)
    return sorted((int(d), int(row[0])) for d, row in zip(wrong, rows, strict=True))


@pytest.mark.parametrize("where", [None, "token_id > 100", "norm < 25 AND token LIKE ' %'"])
@pytest.mark.parametrize("within", [None, in_full("types"), "types_bos", "states"])
def test_feature_equals_numpy_in_every_view(
    featured_c: tuple[signarium.Catalogue, list[featured.Row]], within: str | None, where: str | None
) -> None:
    c, rows = featured_c
    item = "state_id" if within == "states" else "token_id"
    # Each answer over all states brings their contexts: the slow part, and not what is tested here.
    for one in some(rows, 5)[:: 5 if within == "states" else 1]:
        expected = masked_by_numpy(c.path, within or "types", item, one, where or "true")
        answer = c.nearest(f"feature:{one.feature_id}", within=within, k=ALL, where=where)
        assert answered(answer) == expected and answer.searched == len(expected) > 0
        assert (answer.target.site, answer.target.centre) == (one.site, one.centre)
        few = c.nearest(
            f"feature:{one.name}", within=within, k=5, where=where, site=one.site, centre=one.centre
        )
        assert answered(few) == expected[:5]
        assert f"feature {one.feature_id}" in search_page.summary(few)


@pytest.mark.parametrize("where", [None, "kind = 'category' AND n_dims > 1", "survives", "false"])
def test_features_of_a_code_equal_numpy(
    featured_c: tuple[signarium.Catalogue, list[featured.Row]], where: str | None
) -> None:
    c, rows = featured_c
    state = state_ids(c.path)[700]
    kept = {row[0] for row in query(c.path, f"SELECT feature_id FROM features WHERE {where or 'true'}")}
    code = bytes([0xAA] * 5 + [0xA0])
    for text, view, item, centre in (
        ('type:" king"', "types", "token = ' king'", "mean"),
        (f"state:{state}", "states", f"state_id = {state}", "zero"),
        (f"code:{code.hex()}", None, "", "zero"),
    ):
        answer = c.nearest(text, within="features", model=DECODER, where=where, k=ALL)
        assert (answer.target.site, answer.target.centre) == ("resid_post.1", centre)
        searched = code
        if view is not None:
            ((searched,),) = query(
                c.path,
                f"SELECT code FROM {view} WHERE model = ? AND site = 'resid_post.1' AND centre = ? AND {item}",
                *(DECODER, centre),
            )
        bits = np.unpackbits(np.frombuffer(searched, np.uint8), count=44)
        expected = []
        for one in rows:
            if (one.site, one.centre) == ("resid_post.1", centre) and one.feature_id in kept:
                wrong = int(((bits != one.polarity) & (one.mask == 1)).sum())
                n_dims = int(one.mask.sum())
                expected.append((1 - wrong / n_dims, one.feature_id, wrong, n_dims))
        expected.sort(key=lambda one: (-one[0], -one[3], one[1]))
        found = answer.table.to_pydict()
        assert list(zip(found["feature_id"], found["distance"], strict=True)) == [
            one[1:3] for one in expected
        ]
        assert np.allclose(found["agreement"], [one[0] for one in expected])
        assert answer.searched == len(expected)
        assert answer.table.column_names == ["rank", "distance", "agreement", *c.features().column_names]
        limited = c.nearest(text, within="features", model=DECODER, where=where, k=1)
        assert limited.table.num_rows == min(1, len(expected)) and limited.searched == len(expected)
        assert "over 44 dimensions" in search_page.summary(answer)
        from signarium.commands.render.formats import rendered

        for width in (80, 120):
            lines = rendered(search_page.display(answer, width), width=width).splitlines()
            assert max(map(len, lines)) <= width and "hidden" not in lines[-2]


def test_features_of_a_free_text(featured_c: tuple[signarium.Catalogue, list[featured.Row]]) -> None:
    c, _ = featured_c
    answer = c.nearest("the king", within="features", model=DECODER, device="cpu")
    assert answer.target.view == "features" and answer.target.centre == "zero" and answer.table.num_rows == 3
    assert answer.query is not None and "token" in answer.query


@pytest.mark.parametrize(
    ("text", "given", "words"),
    [
        ("feature:1000", {"within": "features"}, ["`within='states'`", "types"]),
        ("feature:1000", {"approximate": True}, ["`approximate`"]),
        ('type:" king"', {"within": "features", "approximate": True, "model": DECODER}, ["`approximate`"]),
        ("feature:1000", {"site": "resid_post.1"}, ["elsewhere", "`site='resid_post.1'`"]),
        ("feature:1000", {"centre": "zero"}, ["elsewhere", "`centre='zero'`"]),
        ("feature:animal", {}, ["4 features", "`site`"]),
        ("feature:nothing at all", {}, ["features list"]),
        ("feature:1000", {"where": "nothing > 3"}, ["`where`"]),
        (
            'type:" king"',
            {"within": "features", "where": "nothing > 3", "model": DECODER},
            ["columns are feature_id"],
        ),
        (
            'type:" king"',
            {"within": "features", "site": "embed", "model": DECODER},
            ["'embed'", "resid_post.0"],
        ),
        (
            'type:" king"',
            {"within": "features", "centre": "median", "model": DECODER},
            ["'median'", "mean, zero"],
        ),
        ("feature:1000", {"k": 0}, ["`k=0`"]),
    ],
)
def test_what_features_refuse(
    featured_c: tuple[signarium.Catalogue, list[featured.Row]],
    text: str,
    given: dict[str, Any],
    words: list[str],
) -> None:
    with pytest.raises(SignariumError) as caught:
        featured_c[0].nearest(text, **given)
    line = str(caught.value)
    assert "\n" not in line and all(word in line for word in words), line


def test_a_damaged_index_is_noticed_by_a_feature(
    featured_c: tuple[signarium.Catalogue, list[featured.Row]], tmp_path: Path
) -> None:
    c, _ = featured_c
    copy = tmp_path / "copy.duckdb"
    shutil.copy(c.path, copy)
    shutil.copytree(f"{c.path}.indexes", f"{copy}.indexes")
    expected = answered(c.nearest("feature:1000", k=ALL))
    for file in index.folder(copy).glob("*.faiss"):
        held = bytearray(file.read_bytes())
        for place in range(100, len(held), 6):
            held[place] ^= 0xF0
        file.write_bytes(held)
    assert answered(signarium.open(copy).nearest("feature:1000", k=ALL)) == expected


# ---- --where --------------------------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret.csv"
    file.write_text("a\n1\n")
    return file


@pytest.mark.parametrize(
    "where",
    [
        "1) OR (1=1",
        "true) OR (true",
        "1); DROP TABLE code_row; --",
        "true; DROP TABLE code_row",
        "true; SELECT 1",
        "EXISTS (SELECT 1 FROM read_csv('FILE'))",
        "EXISTS (FROM 'FILE')",
        'EXISTS (FROM "FILE")',
        "position IN (SELECT size FROM read_text('FILE'))",
        "EXISTS (FROM glob('/*'))",
        "EXISTS (WITH a AS (FROM 'FILE') FROM a)",
        "EXISTS (FROM documents WHERE EXISTS (FROM 'FILE'))",
        "EXISTS (WITH \"FILE\" AS (SELECT 1) SELECT 1) AND EXISTS (FROM 'FILE')",
        'EXISTS (WITH "FILE" AS (FROM "FILE") FROM "FILE")',
        "EXISTS (WITH a AS (FROM 'FILE'), \"FILE\" AS (SELECT 1) FROM a)",
        "EXISTS (SELECT 1 FROM code_row)",
        "EXISTS (FROM duckdb_settings())",
        "EXISTS (FROM information_schema.tables)",
        "EXISTS (FROM query('SELECT 1'))",
        "EXISTS (PIVOT 'FILE' ON a USING sum(a))",
        "EXISTS (DESCRIBE 'FILE')",
        "EXISTS (SHOW ALL TABLES)",
        "nothing_like_it > 3",
        "position",
        "'true'",
        "token",
        "count(*) > 1",
        "max(position) > 1",
        "row_number() OVER () > 1",
        "",
        "   ",
        "-- position > 3",
        "position > 3 /*",
        "position > 'x'",
        "token::INT > 3",
        "position > ?",
        "position > $1",
        "position > 3 AS p",
        "position > 3, true",
        "position > 3 FROM documents",
        "position > 3 ORDER BY 1",
        "true UNION SELECT true",
        "DISTINCT position > 3",
        "*",
        "position > 3;",
        "write_log('x') IS NULL",
        "posi\0tion > 3",
        "position > \udcff",
        "NOT " * 900 + "true",
    ],
)
def test_where_that_is_no_condition_is_refused(c: signarium.Catalogue, secret: Path, where: str) -> None:
    where = where.replace("FILE", str(secret))
    before = c.path.read_bytes()
    with pytest.raises(InvalidInput, match="`where`") as caught:
        c.nearest('type:" king"', within="states", where=where, **AT)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900
    assert c.path.read_bytes() == before


def test_unknown_column_names_the_columns(c: signarium.Catalogue) -> None:
    with pytest.raises(InvalidInput, match=r"nothing_like_it.*columns are model, .*position"):
        c.nearest('type:" king"', within="states", where="nothing_like_it > 3", **AT)


@pytest.mark.parametrize(
    "where", ["false", "position < 0", "NULL::BOOLEAN", "token = 'no such token'", "norm < 0"]
)
def test_where_that_matches_nothing(c: signarium.Catalogue, where: str) -> None:
    answer = c.nearest('type:" king"', within="states", where=where, **AT)
    assert (answer.table.num_rows, answer.searched) == (0, 0)
    assert "context" in answer.table.column_names


def test_columns_of_the_place_can_be_named(c: signarium.Catalogue) -> None:
    everywhere = "model = 'decoder' AND site = 'resid_post.1' AND centre = 'mean' AND basis = 'standard'"
    assert c.nearest('type:" king"', within="states", where=everywhere, **AT).searched == 1956
    assert c.nearest('type:" king"', within="states", where="site = 'embed'", **AT).searched == 0


def test_filter_is_remembered_until_the_catalogue_changes(
    catalogue: Made, catalogue_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = []
    original = conditions.matching_items
    monkeypatch.setattr(conditions, "matching_items", lambda *a: resolved.append(1) or original(*a))
    copy = signarium.open(catalogue_copy)
    ask = {"within": "states", "where": "position > 3", "k": ALL, **AT}
    first = copy.nearest('type:" king"', **ask)
    assert answered(copy.nearest('type:" king"', **ask)) == answered(first)
    assert len(resolved) == 1
    more = tmp_path / "more.txt"
    more.write_text("The king saw another sea, and the queen saw it too.\n")
    signarium.ingest(
        catalogue_copy,
        str(catalogue.decoder_folder),
        name=DECODER,
        sites=SITES,
        text=[more],
        context=64,
        stages=["states"],
    )
    after = copy.nearest('type:" king"', **ask)
    assert len(resolved) == 2
    assert after.searched > first.searched
    ((code,),) = query(
        catalogue_copy,
        "SELECT code FROM types WHERE model = ? AND site = ? AND centre = ? AND token = ' king'",
        *AT.values(),
    )
    assert answered(after) == by_numpy(catalogue_copy, "states", "state_id", code, "position > 3", **AT)


def test_filter_over_another_table_is_not_stale(catalogue_copy: Path) -> None:
    copy = signarium.open(catalogue_copy)
    ask = {
        "within": "states",
        "where": "document_id IN (SELECT document_id FROM documents WHERE source = 'x')",
    }
    assert copy.nearest('type:" king"', **ask, **AT).searched == 0
    with duckdb.connect(str(catalogue_copy)) as connection:
        connection.execute("UPDATE document_row SET source = 'x' WHERE chunk = 0")
    assert copy.nearest('type:" king"', **ask, **AT).searched > 0


def test_what_is_random_is_drawn_again(c: signarium.Catalogue) -> None:
    ask = {"within": "states", "where": "random() < 0.5", "k": ALL, **AT}
    assert answered(c.nearest('type:" king"', **ask)) != answered(c.nearest('type:" king"', **ask))


def test_approximate_says_its_recall_and_gives_true_distances(c: signarium.Catalogue) -> None:
    answer = c.nearest('type:" king"', approximate=True, **AT)
    exact = {item: distance for distance, item in answered(c.nearest('type:" king"', k=ALL, **AT))}
    assert answer.recall is not None and 0 <= answer.recall <= 1
    assert all(exact[item] == distance for distance, item in answered(answer))
    assert "recall" in search_page.summary(answer)
    with pytest.raises(InvalidInput, match="cannot be filtered: leave out `approximate` or `where`"):
        c.nearest('type:" king"', approximate=True, where="token_id > 5", **AT)


@pytest.mark.parametrize("text", ["", "  \n", "neuron: a thing", "direction:3", "neuron:12/305"])
def test_what_cannot_be_searched_is_said_before_a_model_is_loaded(c: signarium.Catalogue, text: str) -> None:
    with pytest.raises(InvalidInput, match=r"is empty.*neuron:BLOCK/NEURON|no neuron|no features"):
        c.nearest(text, **AT)
    assert query_of("synapse: a thing") is None


def test_an_index_that_holds_other_items_is_said(catalogue_copy: Path) -> None:
    with duckdb.connect(str(catalogue_copy)) as connection:
        connection.execute("DELETE FROM state_row")
    with pytest.raises(SignariumError, match="db verify"):
        signarium.open(catalogue_copy).nearest('type:" king"', within="states", **AT)


def test_missing_indexes_are_built(catalogue: Made, tmp_path: Path) -> None:
    copy = tmp_path / "bare.duckdb"
    shutil.copy(catalogue.path, copy)
    expected = answered(signarium.open(catalogue.path).nearest('type:" king"', **AT))
    assert answered(signarium.open(copy).nearest('type:" king"', **AT)) == expected
    assert list(index.folder(copy).glob("*.faiss"))


# ---- contexts -------------------------------------------------------------------------------------


def test_every_context_is_the_text_around_its_token(c: signarium.Catalogue) -> None:
    table = c.nearest('type:" king"', within="states", k=ALL, **AT).table
    documents = dict(query(c.path, "SELECT document_id, text FROM documents"))
    sizes = dict(query(c.path, "SELECT document_id, n_tokens FROM documents"))
    seen = set()
    for row in table.to_pylist():
        word = row["token"].lstrip(" ") or row["token"]
        assert f"«{word}»" in row["context"]
        plain = row["context"].replace("«", "").replace("»", "")
        text = documents[row["document_id"]]
        if plain.isascii():
            assert plain in text
        if row["position"] == 0:
            assert row["context"].lstrip(" ").startswith(f"«{word}»")
            seen.add("start")
        if row["position"] == sizes[row["document_id"]] - 1:
            assert row["context"].endswith("»")
            seen.add("end")
        if "\n" in plain:
            seen.add("newline")
        if not plain.isascii():
            seen.add("fragment")
    assert seen == {"start", "end", "newline", "fragment"}


def test_a_context_stays_in_its_document(c: signarium.Catalogue) -> None:
    # 64 tokens a window, 8 on each side: the last token of a window sees none of the next.
    ((state, document),) = query(
        c.path,
        "SELECT state_id, document_id FROM states WHERE model = ? AND site = ? AND centre = ? AND position = 63 "
        "ORDER BY state_id LIMIT 1",
        *AT.values(),
    )
    tokens = query(
        c.path,
        "SELECT token FROM states WHERE model = ? AND site = ? AND centre = ? AND document_id = ? ORDER BY position",
        *AT.values(),
        document,
    )
    with duckdb.connect(str(c.path), read_only=True) as connection:
        (context,) = contexts(connection, DECODER, [state])
    assert context.replace("«", "").replace("»", "") == "".join(row[0] for row in tokens[-9:])


def test_word_pieces_are_joined_to_words(catalogue_copy: Path) -> None:
    with duckdb.connect(str(catalogue_copy)) as connection:
        connection.execute(
            "UPDATE token_row SET token = CASE WHEN token LIKE ' %' THEN coalesce(nullif(ltrim(token, ' '), ''), '_') "
            "WHEN token LIKE '[%' THEN token ELSE '##' || token END "
            "WHERE tokenizer = (SELECT tokenizer_sha256 FROM model WHERE name = ?)",
            [ENCODER],
        )
        ids = [
            row[0]
            for row in connection.execute(
                "SELECT state_id FROM states WHERE model = ? AND centre = 'zero' ORDER BY state_id LIMIT 12",
                [ENCODER],
            ).fetchall()
        ]
        texts = contexts(connection, ENCODER, ids)
    assert texts[0].startswith("«[CLS]»")
    assert all("##" not in text for text in texts)
    # The same tokens, whichever of them is marked.
    plain = [text.replace("«", "").replace("»", "") for text in texts]
    assert plain[1].startswith(plain[0]) and plain[2].startswith(plain[1])
    assert texts[1].startswith("[CLS]«") or texts[1].startswith("[CLS] «")


def test_no_context_for_what_is_no_state(c: signarium.Catalogue) -> None:
    with duckdb.connect(str(c.path), read_only=True) as connection:
        assert contexts(connection, DECODER, []) == []
        assert contexts(connection, DECODER, [5]) == [""]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_display_keeps_the_mark_in_sight(c: signarium.Catalogue, width: int) -> None:
    from signarium.commands.render.formats import rendered

    answer = c.nearest('type:" king"', within="states", k=100, **AT)
    shown = search_page.display(answer, width)
    assert shown.column_names == ["rank", "distance", "state_id", "position", "context"]
    for row, token in zip(shown.to_pylist(), answer.table.column("token").to_pylist(), strict=True):
        assert f"«{token.lstrip(' ') or token}»" in row["context"]
    lines = rendered(shown, width=max(width, 80)).splitlines()
    assert all(len(line) <= max(width, 80) for line in lines)
    if width >= 80:
        assert all("«" in line and "»" in line for line in lines[2:102])


# ---- paths beside it ------------------------------------------------------------------------------


def test_the_file_is_free_between_calls(catalogue_copy: Path) -> None:
    copy = signarium.open(catalogue_copy)
    copy.nearest('type:" king"', where="token_id > 3", **AT)
    with duckdb.connect(str(catalogue_copy)) as connection:
        connection.execute("CREATE TABLE free AS SELECT 1")


def test_a_synthetic_catalogue_answers_like_numpy(tmp_path: Path) -> None:
    import sys

    script = Path(signarium.__file__).parent / "benchmarks" / "synthetic.py"
    path = tmp_path / "c.duckdb"
    subprocess.run(
        [sys.executable, str(script), str(path), "--states", "130000", "--types", "500", "--width", "76"],
        check=True,
    )
    made = signarium.open(path)
    at = {"model": "synthetic", "site": "resid_post.0", "centre": "mean"}
    ((state, code),) = query(
        path, "SELECT state_id, code FROM states ORDER BY state_id LIMIT 1 OFFSET 125000"
    )
    answer = made.nearest(f"state:{state}", k=25)
    assert answered(answer) == by_numpy(path, "states", "state_id", code, **at)[:25]
    where = "position > 200 AND norm > 0.5"
    assert (
        answered(made.nearest(f"state:{state}", k=25, where=where))
        == by_numpy(path, "states", "state_id", code, where, **at)[:25]
    )
    assert sum(one.wrong for one in made.verify() if "documents" not in one.check) == 0


def test_a_damaged_index_is_noticed_by_its_hits(c: signarium.Catalogue, catalogue_copy: Path) -> None:
    copy = signarium.open(catalogue_copy)
    expected = answered(copy.nearest('type:" king"', k=5, **AT))
    for file in index.folder(catalogue_copy).glob("*.faiss"):
        # One bit near the beginning and one near the end; all rows are asked for, so both are among the hits.
        held = bytearray(file.read_bytes())
        held[-200] ^= 0x10
        held[40] ^= 0x10
        file.write_bytes(held)
    assert answered(copy.nearest('type:" king"', k=ALL, **AT))[:5] == expected
    assert copy.index() == []
    assert all(one.ok for one in copy.verify())


def test_names_of_with_hold_where_they_are_given(c: signarium.Catalogue) -> None:
    given = "EXISTS (WITH a AS (SELECT 1 AS x), b AS (FROM a) FROM b WHERE EXISTS (WITH d AS (FROM b) FROM d)) AND true"
    counted = "5 = (WITH RECURSIVE a AS (SELECT 1 AS x UNION ALL SELECT x + 1 FROM a WHERE x < 5) SELECT max(x) FROM a)"
    for where in (given, counted):
        assert c.nearest('type:" king"', within="states", where=where, **AT).searched == 1956


def test_an_interrupt_ends_a_filter_at_once(c: signarium.Catalogue) -> None:
    """As Ctrl-C does: the main thread is never inside the query."""
    where = "(SELECT count(*) FROM states a, states b, states c WHERE hash(a.code, b.code, c.code) = 1) > 0"

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1.5)
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            c.nearest('type:" king"', within="states", where=where, **AT)
        assert time.monotonic() - started < 3
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("prefix", ["state:", "feature:", "neuron:0/", "type:id:"])
def test_a_very_long_number_is_no_id(c: signarium.Catalogue, prefix: str) -> None:
    with pytest.raises(SignariumError):
        c.nearest(prefix + "9" * 5000, model=DECODER)


def test_a_damaged_row_that_is_no_hit_is_noticed(c: signarium.Catalogue, catalogue_copy: Path) -> None:
    """It should have been a hit: only the checksums of the file tell."""
    copy = signarium.open(catalogue_copy)
    expected = answered(copy.nearest('type:" king"', k=3, **AT))
    table = copy.nearest('type:" king"', k=3, **AT).table
    for file in index.folder(catalogue_copy).glob("*.faiss"):
        held = file.read_bytes()
        for code in table.column("code").to_pylist():
            held = held.replace(code, bytes(255 - byte for byte in code))
        file.write_bytes(held)
    assert answered(copy.nearest('type:" king"', k=3, **AT)) == expected


@pytest.mark.parametrize("indexed", [True, False])
def test_a_changed_code_is_noticed(catalogue_copy: Path, indexed: bool) -> None:
    """Of the query itself, or of a hit; also where the index is made of what is wrong."""
    copy = signarium.open(catalogue_copy)
    copy.nearest('type:" king"', k=2, **AT)
    if not indexed:
        shutil.rmtree(index.folder(catalogue_copy))
    with duckdb.connect(str(catalogue_copy)) as connection:
        connection.execute(
            "UPDATE code_row SET code = set_bit(code::BIT, 3, 1 - get_bit(code::BIT, 3))::BLOB WHERE code_set_id IN "
            "(SELECT code_set_id FROM code_set WHERE subject = 'type') AND item IN "
            "(SELECT token_id FROM token_row WHERE token = ' king')"
        )
    for _ in range(2):
        with pytest.raises(
            CodesChanged, match=r"^codes of types of .* around item \d+ are not as they .*db verify"
        ):
            copy.nearest('type:" king"', k=2, **AT)
    with pytest.raises(CodesChanged):
        copy.search(np.zeros((2, 6), np.uint8), within="types", k=ALL, **AT)


def test_a_damaged_index_is_noticed_in_a_batch(
    c: signarium.Catalogue, catalogue_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As of a large file, of which only a part is looked at when it is opened.
    monkeypatch.setattr(index, "_SAMPLE_ROWS", 0)
    monkeypatch.setattr(index, "_CHECKED", 0)
    copy, queries = signarium.open(catalogue_copy), np.zeros((2, 6), np.uint8)
    shutil.rmtree(index.folder(catalogue_copy))
    expected = copy.search(queries, within="types", k=9, **AT).distances
    for file in index.folder(catalogue_copy).glob("*.faiss"):
        held = bytearray(file.read_bytes())
        for place in range(40, len(held), 6):
            held[place] ^= 0xF0
        file.write_bytes(held)
    with pytest.raises(IndexDamaged, match=r"run `signarium db index`"):
        copy.search(queries, within="types", k=9, **AT)
    assert copy.index() == []
    assert np.array_equal(copy.search(queries, within="types", k=9, **AT).distances, expected)
