"""Exact search: SQL, FAISS and numpy give the same rows, whatever the codes, filters and files are like."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from made import copied
from numpy.typing import NDArray

from signarium.catalog import bulk, engines, index, schema, store
from signarium.catalog.codes import hamming, n_bytes
from signarium.catalog.engines import flat, shards
from signarium.catalog.errors import InvalidInput, NotFound
from signarium.catalog.files import temporary
from signarium.catalog.ids import PLACE_BITS
from signarium.catalog.index import CodeIndex, CodeSetInfo

pytestmark = pytest.mark.long

Ints = NDArray[np.int64]


def plain(
    codes: NDArray[np.uint8], items: Ints, query: NDArray[np.uint8], k: int, keep: Ints
) -> list[tuple[int, int]]:
    """The definition: sort all that are kept by (distance, item)."""
    near = sorted(zip(hamming(query, codes[keep]).tolist(), items[keep].tolist(), strict=True))
    return near[:k]


def runs_of(items: Ints) -> Ints:
    starts = np.flatnonzero(np.diff(items, prepend=items[:1] - 2) != 1)
    return np.stack([starts, items[starts], np.diff(np.append(starts, len(items)))], axis=1)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, object]:
    width = draw(st.integers(1, 130))
    n = draw(st.integers(1, 90))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["random", "equal", "two", "few", "sparse"]))
    bits = rng.integers(0, 2, (n, width), dtype=np.uint8)
    if kind == "equal":
        bits[:] = bits[0]
    elif kind == "two":
        bits = bits[rng.integers(0, min(2, n), n)]
    elif kind == "few":
        bits[:, 2:] = 0
    elif kind == "sparse":
        bits = (rng.random((n, width)) < 0.03).astype(np.uint8)
    codes = np.packbits(bits, axis=1)
    queries = np.packbits(rng.integers(0, 2, (draw(st.integers(1, 3)), width), dtype=np.uint8), axis=1)
    if draw(st.booleans()):
        queries[0] = codes[rng.integers(n)]
    # A few texts, each a range of items with holes.
    texts = np.sort(rng.choice(2**31, 3, replace=False).astype(np.int64)) << PLACE_BITS
    items = np.unique(texts[rng.integers(0, 3, n)] + rng.integers(0, 3 * n, n))
    share = draw(st.sampled_from([None, 0.0, 0.02, 0.3, 0.5, 0.8, 1.0]))
    n = len(items)
    keep = None if share is None else np.flatnonzero(rng.random(n) < share)
    if keep is not None and share == 0.02:
        keep = np.array([rng.integers(n)])
    k = draw(st.sampled_from([1, 2, 10, n, n + 7]))
    return {"width": width, "codes": codes[:n], "items": items, "queries": queries, "k": k, "keep": keep}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.empty(tmp_path_factory.mktemp("index") / "c.duckdb")


@settings(max_examples=examples(120))
@given(case=cases(), shard_rows=st.sampled_from([1, 8, 13, 40, 65_536]), piece=st.sampled_from([16, 1 << 20]))
def test_sql_faiss_and_numpy_agree(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, case: dict[str, object], shard_rows: int, piece: int
) -> None:
    monkeypatch.setattr(shards, "_SHARD_ROWS", shard_rows)
    monkeypatch.setattr(flat, "_GATHER_BYTES", piece)
    monkeypatch.setattr(shards, "n_threads", lambda: 3)
    codes, items, k = case["codes"], case["items"], case["k"]
    assert isinstance(codes, np.ndarray)
    assert isinstance(items, np.ndarray)
    assert isinstance(k, int)
    keep = case["keep"]
    rows = np.arange(len(items)) if keep is None else keep
    assert isinstance(rows, np.ndarray)
    one = CodeIndex(case["width"], codes, runs_of(items))  # type: ignore[arg-type]
    chosen = None if keep is None else one.rows_of(items[rows][::-1])
    distances, found = one.search(case["queries"], k, chosen)  # type: ignore[arg-type]
    assert distances.shape == found.shape == (len(case["queries"]), min(k, len(rows)))  # type: ignore[arg-type]
    import duckdb

    with duckdb.connect() as connection:
        from signarium.catalog import parts

        views_macro = next(m for m in parts.macros() if m.name == "hamming")
        connection.execute(f"CREATE MACRO hamming(a, b) AS {views_macro.expression}")
        table = bulk.code_columns(1, items[rows], np.ones(len(rows), np.float32), codes[rows])
        for query, near, who in zip(case["queries"], distances, found, strict=True):  # type: ignore[call-overload]
            answer = list(zip(near.tolist(), who.tolist(), strict=True))
            assert answer == plain(codes, items, query, k, rows)
            sql = "SELECT hamming(code, ?::BLOB) AS distance, item FROM codes ORDER BY distance, item LIMIT ?"
            connection.register("codes", table)
            assert connection.execute(sql, [query.tobytes(), k]).fetchall() == answer


@given(st.lists(st.integers(0, 60), unique=True, max_size=40), st.lists(st.integers(-5, 70), max_size=40))
def test_rows_and_items(stored: list[int], asked: list[int]) -> None:
    items = np.array(sorted(stored), np.int64) + (7 << PLACE_BITS)
    wanted = np.array(asked, np.int64) + (7 << PLACE_BITS)
    one = CodeIndex(8, np.zeros((len(items), 1), np.uint8), runs_of(items))
    assert np.array_equal(one.items_of(np.arange(len(items))), items)
    assert np.array_equal(one.rows_of(wanted), np.flatnonzero(np.isin(items, wanted)))
    assert np.array_equal(one.rows_of(items), np.arange(len(items)))


def test_wrong_queries_are_refused() -> None:
    one = CodeIndex(20, np.zeros((5, 3), np.uint8), np.array([[0, 0, 5]]))
    for size in (2, 4):
        with pytest.raises(InvalidInput, match=f"{size} bytes"):
            one.search(np.zeros((1, size), np.uint8), 1)
    for k in (0, -1):
        with pytest.raises(InvalidInput, match="not positive"):
            one.search(np.zeros((1, 3), np.uint8), k)
    # One query alone may come as a row.
    assert one.search(np.zeros(3, np.uint8), 2)[1].tolist() == [[0, 1]]


def test_nothing_to_search() -> None:
    one = CodeIndex(20, np.zeros((0, 3), np.uint8), np.empty((0, 3), np.int64))
    distances, items = one.search(np.zeros((2, 3), np.uint8), 4)
    assert distances.shape == items.shape == (2, 0)


def test_merge() -> None:
    left = np.array([[1, 4]], np.int32), np.array([[9, 2]])
    right = np.array([[1, 1, 4]], np.int32), np.array([[3, 8, 1]])
    distances, items = engines.merge([left, right], 4)
    assert distances.tolist() == [[1, 1, 1, 4]]
    assert items.tolist() == [[3, 8, 9, 1]]


# ---- files --------------------------------------------------------------------------------------


@pytest.fixture
def catalogue(tmp_path: Path) -> small.Small:
    return small.filled(tmp_path / "c.duckdb")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> small.Small:
    """With its indexes. Copy it, do not change it."""
    one = small.filled(tmp_path_factory.mktemp("built") / "c.duckdb")
    assert index.build_all(one.path) == []
    return one


def info_of(one: small.Small, key: tuple[str, str]) -> CodeSetInfo:
    with store.reading(one.path) as connection:
        found = index.describe(connection, "v.code_set_id = ?", [one.sets[key]])
    assert len(found) == 1
    return found[0]


def check(one: small.Small, key: tuple[str, str], info: CodeSetInfo | None = None) -> CodeIndex:
    """The index that is got answers as the rows do."""
    ident = one.sets[key]
    codes, items = one.codes[ident], one.items[ident]
    with store.reading(one.path) as connection:
        got = index.get(one.path, info or info_of(one, key), connection)
    distances, found = got.search(codes[:3], 5)
    for q in range(3):
        answer = list(zip(distances[q].tolist(), found[q].tolist(), strict=True))
        assert answer == plain(codes, items, codes[q], 5, np.arange(len(items)))
    return got


KEY, OTHER = ("type", "zero"), ("type", "mean")


def of_another(one: small.Small, suffix: str) -> bytes:
    return (index.folder(one.path) / f"{one.sets[OTHER]}{suffix}").read_bytes()


def edited(one: small.Small, **changes: object) -> bytes:
    manifest = json.loads((index.folder(one.path) / f"{one.sets[KEY]}.json").read_text())
    return json.dumps({**manifest, **changes}).encode()


DAMAGE: dict[str, tuple[str, Callable[[small.Small, bytes], bytes | None]]] = {
    "no index": (".faiss", lambda one, old: None),
    "no manifest": (".json", lambda one, old: None),
    "truncated": (".faiss", lambda one, old: old[:-1]),
    "half": (".faiss", lambda one, old: old[: len(old) // 2]),
    "empty": (".faiss", lambda one, old: b""),
    "extended": (".faiss", lambda one, old: old + b"\0"),
    "header": (".faiss", lambda one, old: b"\0" * 20 + old[20:]),
    "zeros": (".faiss", lambda one, old: b"\0" * len(old)),
    "random": (".faiss", lambda one, old: np.random.default_rng(0).bytes(len(old))),
    "codes of another set": (".faiss", lambda one, old: of_another(one, ".faiss")),
    "manifest of another set": (".json", lambda one, old: of_another(one, ".json")),
    "empty manifest": (".json", lambda one, old: b""),
    "half a manifest": (".json", lambda one, old: old[: len(old) // 2]),
    "manifest not UTF-8": (".json", lambda one, old: b"\xff\xfe{"),
    "manifest a list": (".json", lambda one, old: b"[]"),
    "manifest null": (".json", lambda one, old: b"null"),
    "items null": (".json", lambda one, old: edited(one, items=None)),
    "items ragged": (".json", lambda one, old: edited(one, items=[[0, 1], [2]])),
    "items moved": (".json", lambda one, old: edited(one, items=[[0, 1, small.N_TYPES]])),
    "items too large": (".json", lambda one, old: edited(one, items=[[0, 10**30, small.N_TYPES]])),
    "other n": (".json", lambda one, old: edited(one, n=small.N_TYPES - 1)),
    "other state": (".json", lambda one, old: edited(one, state="x")),
    "no sample": (".json", lambda one, old: edited(one, sample=None)),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files_are_built_anew(built: small.Small, tmp_path: Path, name: str) -> None:
    catalogue = replace(built, path=copied(built.path, tmp_path / "c.duckdb"))
    suffix, change = DAMAGE[name]
    info = info_of(catalogue, KEY)
    file = index.folder(catalogue.path) / f"{info.code_set_id}{suffix}"
    assert index.open_index(catalogue.path, info) is not None
    new = change(catalogue, file.read_bytes())
    file.unlink()
    if new is not None:
        file.write_bytes(new)
    assert index.open_index(catalogue.path, info) is None
    assert check(catalogue, KEY).unsaved is None
    assert index.open_index(catalogue.path, info) is not None


def test_a_code_set_that_grew(tmp_path: Path) -> None:
    path = small.empty(tmp_path / "c.duckdb")
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (40, 2), dtype=np.uint8)
    with store.writing(path) as session:
        session.add_all(small.model_and_site(16))
    small.add_codes(path, 1, codes[:30], 16, np.arange(30))
    one = small.Small(path, {KEY: 1}, {1: np.arange(30)}, {1: codes[:30]})
    old = info_of(one, KEY)
    assert check(one, KEY).n == 30
    assert index.build_all(path) == []
    with store.writing(path) as session:
        bulk.insert_codes(
            session, [bulk.code_columns(1, np.arange(30, 40), np.ones(10, np.float32), codes[30:])]
        )
        session.add(small.shard("run-1", 10, 30))
    new = info_of(one, KEY)
    assert (old.n, new.n) == (30, 40)
    assert index.open_index(path, new) is None
    with store.reading(path) as connection:
        assert connection.execute("SELECT n, indexed FROM code_sets").fetchall() == [(40, False)]
    assert check(small.Small(path, {KEY: 1}, {1: np.arange(40)}, {1: codes}), KEY).n == 40
    assert index.build_all(path) == []
    with store.reading(path) as connection:
        assert connection.execute("SELECT n, indexed FROM code_sets").fetchall() == [(40, True)]


def test_rows_that_are_missing(catalogue: small.Small) -> None:
    with store.writing(catalogue.path) as session:
        code_row = schema.code_row
        ident = catalogue.sets[KEY]
        session.execute(code_row.delete().where(code_row.c.code_set_id == ident, code_row.c.item == 3))
    info = info_of(catalogue, KEY)
    with store.reading(catalogue.path) as connection, pytest.raises(NotFound, match="db verify"):
        index.get(catalogue.path, info, connection)


@pytest.mark.parametrize("obstacle", ["file in place of the folder", "folder in place of the index"])
def test_where_nothing_can_be_written(catalogue: small.Small, obstacle: str) -> None:
    """Permissions do not bind the superuser, so that something else stands in the way."""
    home = index.folder(catalogue.path)
    if obstacle.startswith("file"):
        home.write_text("")
    else:
        (home / f"{catalogue.sets[KEY]}.faiss" / "x").mkdir(parents=True)
    assert check(catalogue, KEY).unsaved
    notes = index.build_all(catalogue.path)
    assert notes
    assert all("was not written" in note and "\n" not in note for note in notes)
    with store.reading(catalogue.path) as connection:
        rows = connection.execute("SELECT code_set_id FROM code_sets WHERE indexed").fetchall()
    assert (catalogue.sets[KEY],) not in rows
    if home.is_dir():
        assert not list(home.glob("*.tmp"))


def test_build_all_records(catalogue: small.Small) -> None:
    assert index.build_all(catalogue.path, "another model") == []
    with store.reading(catalogue.path) as connection:
        assert connection.execute("SELECT DISTINCT indexed FROM code_sets").fetchall() == [(False,)]
    for _ in range(2):
        assert index.build_all(catalogue.path, "m0") == []
        with store.reading(catalogue.path) as connection:
            assert connection.execute("SELECT DISTINCT indexed FROM code_sets").fetchall() == [(True,)]
            assert connection.execute("SELECT count(*) FROM index_part").fetchone() == (4,)
    names = {f"{ident}.{kind}" for ident in catalogue.sets.values() for kind in ("faiss", "json")}
    assert {one.name for one in index.folder(catalogue.path).iterdir()} == names


def test_leftovers_go(catalogue: small.Small) -> None:
    home = index.folder(catalogue.path)
    home.mkdir()
    ended = small.python("pass")
    ended.communicate()
    ident = catalogue.sets[KEY]
    alive = temporary(home / f"{ident}.faiss")
    dead = home / alive.name.replace(f".{os.getpid()}.", f".{ended.pid}.")
    unknown, note = home / "12345.faiss", home / "12345.ivf.json"
    # Whatever else lies there is somebody's.
    others = [home / name for name in ("thesis.docx", "12345.faiss.txt", "a.json", "12345.json.bak")]
    for one in (dead, alive, unknown, note, *others):
        one.write_text("")
    index.build_all(catalogue.path, "m0")
    assert [one.exists() for one in (dead, alive, unknown, note)] == [False, True, True, True]
    index.build_all(catalogue.path)
    assert [one.exists() for one in (alive, unknown, note)] == [True, False, False]
    assert index.prune(catalogue.path, []) == 2 * len(catalogue.sets)
    assert sorted(home.iterdir()) == sorted([alive, *others])


def test_nothing_is_changed_through_a_link(catalogue: small.Small, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    before = {name: name.encode() for name in ("thesis.docx", "1.faiss", f"{catalogue.sets[KEY]}.faiss")}
    for name, content in before.items():
        (theirs / name).write_bytes(content)
    index.folder(catalogue.path).symlink_to(theirs)
    notes = index.build_all(catalogue.path)
    assert len(notes) == len(catalogue.sets) and all("is a link" in note for note in notes)
    # It is searched all the same, from memory.
    assert check(catalogue, KEY).unsaved
    assert {one.name: one.read_bytes() for one in theirs.iterdir()} == before


@pytest.mark.parametrize("ending", ["faiss", "json"])
def test_a_pipe_is_not_waited_for(catalogue: small.Small, ending: str) -> None:
    check(catalogue, KEY)
    file = index.folder(catalogue.path) / f"{catalogue.sets[KEY]}.{ending}"
    file.unlink()
    os.mkfifo(file)
    assert "it is a pipe" in str(check(catalogue, KEY).unsaved)
    assert file.is_fifo()


BUILD = """
import sys
from pathlib import Path
from signarium.catalog import index, store
path = Path(sys.argv[1])
with store.reading(path) as connection:
    infos = index.describe(connection, "true", [])
    for _ in range(20):
        for info in infos:
            index.build(path, info, connection)
            index.get(path, info, connection).search(index.open_index(path, info).codes[:1], 3)
"""


def test_two_processes_build_at_once(catalogue: small.Small) -> None:
    # `open_index` may find the manifest of one and the file of the other: they hold the same bytes.
    children = [small.python(BUILD, catalogue.path) for _ in range(2)]
    for child in children:
        _, errors = child.communicate(timeout=60)
        assert (child.returncode, errors) == (0, "")
    for key in catalogue.sets:
        check(catalogue, key)
    assert not list(index.folder(catalogue.path).glob("*.tmp"))


def test_opened_files_search_with_filters(catalogue: small.Small) -> None:
    """On the memory map itself: read-only, and not aligned to anything."""
    check(catalogue, KEY)
    info = info_of(catalogue, KEY)
    one = index.open_index(catalogue.path, info)
    assert one is not None
    assert isinstance(one.codes, np.memmap)
    codes, items = catalogue.codes[info.code_set_id], catalogue.items[info.code_set_id]
    assert one.codes.shape == (small.N_TYPES, n_bytes(small.WIDTH))
    for rows in (np.array([4]), np.arange(0, 60, 2), np.arange(1, 60)):
        distances, found = one.search(codes[:1], 7, rows)
        assert list(zip(distances[0], found[0], strict=True)) == plain(codes, items, codes[0], 7, rows)


def test_memory_to_build_does_not_grow_with_the_codes(tmp_path: Path) -> None:
    # 40 MB more of codes; held in memory they would show at least once.
    make = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from synthetic import build
for n in sys.argv[3:]:
    build(Path(sys.argv[1]) / f"{n}.duckdb", states=int(n), types=300, indexes=False)
"""
    measure = """
import resource, sys
from pathlib import Path
from signarium.catalog import index
index._CACHE = "16MB"
assert index.build_all(Path(sys.argv[1]), sys.argv[2]) == []
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    benchmarks = Path(index.__file__).resolve().parents[1] / "benchmarks"
    peaks, sizes = [], ("100000", "650000")
    subprocess.run([sys.executable, "-c", make, str(tmp_path), str(benchmarks), *sizes], check=True)
    for n in sizes:
        path = tmp_path / f"{n}.duckdb"
        with store.reading(path) as connection:
            model = str((connection.execute("SELECT model_id FROM model").fetchone() or [""])[0])
        done = subprocess.run(
            [sys.executable, "-c", measure, str(path), model], check=True, capture_output=True
        )
        peaks.append(int(done.stdout) * 1024)
    assert peaks[1] - peaks[0] < 25e6, peaks
