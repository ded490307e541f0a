"""Approximate search: the recall it states is the recall it has, and its distances are true."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import small

from signarium.catalog import index
from signarium.catalog.approximate import ApproximateIndex, approximate_index
from signarium.catalog.codes import hamming
from signarium.catalog.errors import InvalidInput
from signarium.catalog.index import CodeIndex, CodeSetInfo

WIDTH = 64


def exact_of(n: int, seed: int = 0, first: int = 100) -> CodeIndex:
    codes = np.random.default_rng(seed).integers(0, 256, (n, WIDTH // 8), dtype=np.uint8)
    return CodeIndex(WIDTH, codes, np.array([[0, first, n]]))


def made(path: Path, exact: CodeIndex, state: str = "s") -> ApproximateIndex:
    return approximate_index(path, CodeSetInfo(1, WIDTH, exact.n, state), exact)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "c.duckdb"


def test_recall_is_what_it_says(path: Path) -> None:
    exact = exact_of(3000)
    one = made(path, exact)
    rows = np.sort(np.random.default_rng(0).choice(3000, 100, replace=False))
    reached = []
    for query in exact.codes[rows]:
        true = exact.search(query, 10)[0][0]
        found, items, recall = one.search(query, 10)
        assert recall == one.recall
        assert len(set(items[0].tolist())) == items.shape[1]
        reached.append((found[0] <= true[-1]).sum() / 10)
    assert one.recall == pytest.approx(np.mean(reached))
    # Random codes have no cells to speak of: a recall of 1 would mean that it was not measured.
    assert 0.05 < one.recall < 1
    note = json.loads((index.folder(path) / "1.ivf.json").read_text())
    assert note["recall"] == one.recall
    assert made(path, exact).recall == one.recall


def test_distances_are_true_and_ordered(path: Path) -> None:
    exact = exact_of(2000)
    one = made(path, exact)
    for query in exact_of(20, seed=5).codes:
        distances, items, _ = one.search(query, 25)
        assert np.array_equal(distances[0], hamming(query, exact.codes[items[0] - 100]))
        pairs = list(zip(distances[0].tolist(), items[0].tolist(), strict=True))
        assert pairs == sorted(pairs)


@pytest.mark.parametrize(
    "damage", ["other state", "truncated", "empty", "garbage note", "another set's", "no note"]
)
def test_a_file_that_is_not_its_own_is_built_anew(path: Path, damage: str) -> None:
    old, new = exact_of(500, seed=1), exact_of(501, seed=2)
    made(path, new if damage != "other state" else old)
    file, note = (index.folder(path) / name for name in ("1.ivf", "1.ivf.json"))
    good = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(good[: len(good) // 2])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "garbage note":
        note.write_text("[1]")
    elif damage == "no note":
        note.unlink()
    elif damage == "another set's":
        made(path.with_name("other.duckdb"), old)
        file.write_bytes((index.folder(path.with_name("other.duckdb")) / "1.ivf").read_bytes())
    query = new.codes[7]
    distances, items, _ = made(path, new, "s2" if damage == "other state" else "s").search(query, 1)
    assert (distances[0, 0], items[0, 0]) == (0, 107)
    # The build is seeded: what stands there now is what stood there before the damage.
    if damage != "other state":
        assert file.read_bytes() == good


SMALL = """
import sys
from pathlib import Path
import numpy as np
from signarium.catalog.approximate import approximate_index
from signarium.catalog.index import CodeIndex, CodeSetInfo
for n in (0, 1, 2, 7, 39, 40, 100, 1000):
    codes = np.random.default_rng(n).integers(0, 256, (n, 8), dtype=np.uint8)
    exact = CodeIndex(64, codes, np.array([[0, 5, n]]) if n else np.empty((0, 3), np.int64))
    one = approximate_index(Path(sys.argv[1]), CodeSetInfo(n, 64, n, "s"), exact)
    distances, items, recall = one.search(np.zeros(8, np.uint8), 3)
    assert distances.shape == items.shape and items.shape[1] <= min(3, n)
    assert n == 0 or items.shape[1] > 0
    assert 0 < recall <= 1, recall
"""


def test_few_codes_and_a_quiet_stderr(path: Path) -> None:
    child = small.python(SMALL, path)
    assert child.communicate(timeout=60) == ("", "")
    assert child.returncode == 0


def test_wrong_queries_are_refused(path: Path) -> None:
    one = made(path, exact_of(50))
    with pytest.raises(InvalidInput, match="9 bytes"):
        one.search(np.zeros(9, np.uint8), 1)
    with pytest.raises(InvalidInput, match="not positive"):
        one.search(np.zeros(8, np.uint8), 0)


def test_where_nothing_can_be_written(path: Path) -> None:
    index.folder(path).write_text("")
    exact = exact_of(50)
    assert made(path, exact).search(exact.codes[3], 1)[1].tolist() == [[103]]
