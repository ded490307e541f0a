"""Every engine gives numpy's answer, whatever the codes are like, and in numpy's order where they tie."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from unittest.mock import MagicMock

import numpy as np
import pytest
from digest import first_on_the_path
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from signarium.catalog import engines
from signarium.catalog.engines import blocks, choice, device, flat, plain, shards
from signarium.catalog.errors import InvalidInput

Codes = NDArray[np.uint8]
KINDS = ("random", "equal", "two", "descending", "ascending", "near")
needs_kernel = pytest.mark.skipif(blocks.missing() is not None, reason=str(blocks.missing()))
ON_CPU = ["faiss", pytest.param("blocks", marks=needs_kernel), "tensor"]
"""Matrix products run on a CPU too, only slowly."""


def searcher(name: str, codes: Codes) -> engines.Searcher:
    return {"faiss": flat.Flat, "blocks": blocks.Blocks, "tensor": lambda c: device.Tensor(c, "cpu")}[name](
        codes
    )


def drawn(kind: str, n: int, width: int, rng: np.random.Generator) -> Codes:
    bits = rng.integers(0, 2, (n, width), dtype=np.uint8)
    if kind == "equal":
        bits[:] = bits[0] if n else 0
    elif kind == "two":
        bits = bits[rng.integers(0, min(2, n), n)] if n else bits
    elif kind in ("descending", "ascending"):
        # Every code is nearer to the query of zeros than the one before it, or farther: the heap's worst case.
        ones = np.linspace(width, 0, n).astype(np.int64)
        bits = (np.arange(width) < (ones if kind == "descending" else ones[::-1])[:, None]).astype(np.uint8)
    elif kind == "near":
        bits = (rng.random((n, width)) < 0.02).astype(np.uint8)
    return np.packbits(bits, axis=1)


def by_numpy(codes: Codes, queries: Codes, k: int, rows: NDArray[np.int64] | None) -> tuple[object, object]:
    """The definition: all distances, sorted by (distance, row)."""
    among = np.arange(len(codes)) if rows is None else rows
    apart = np.bitwise_count(codes[among][None] ^ queries[:, None]).sum(-1, dtype=np.int64)
    order = np.lexsort((np.broadcast_to(among, apart.shape), apart), axis=1)[:, :k]
    return np.take_along_axis(apart, order, 1), among[order]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Codes, Codes, int, int, NDArray[np.int64] | None]:
    width = draw(st.one_of(st.integers(1, 200), st.sampled_from([63, 64, 65, 496, 504, 576, 2560])))
    n = draw(st.one_of(st.integers(0, 300), st.sampled_from([127, 128, 129, 500])))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    codes = drawn(draw(st.sampled_from(KINDS)), n, width, rng)
    queries = drawn("random", draw(st.integers(0, 9)), width, rng)
    if draw(st.booleans()):
        queries[:1] = 0
    if n and len(queries) and draw(st.booleans()):
        queries[-1] = codes[rng.integers(n)]
    k = draw(st.sampled_from([1, 2, 10, 70, max(1, n), n + 5]))
    chosen = None
    if draw(st.booleans()):
        chosen = np.flatnonzero(rng.random(n) < draw(st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0])))
    return codes, queries, width, k, chosen


@pytest.mark.parametrize("engine", ON_CPU)
@settings(max_examples=examples(80))
@given(case=cases(), shard_rows=st.sampled_from([1, 50, 65_536]))
def test_every_engine_is_numpy(monkeypatch, engine, case, shard_rows):
    monkeypatch.setattr(shards, "_SHARD_ROWS", shard_rows)
    monkeypatch.setattr(shards, "n_threads", lambda: 3)
    monkeypatch.setattr(device, "_TILE_BYTES", 1 << 16)
    # Few queries at a time, a few rows copied at a time, and answers merged as they come.
    for name, value in {"_ANSWERS": 30, "_GATHER_BYTES": 300, "_PARTS": 2}.items():
        monkeypatch.setattr(flat, name, value)
    codes, queries, _, k, rows = case
    distances, found = searcher(engine, codes).search(queries, k, rows)
    wanted, where = by_numpy(codes, queries, k, rows)
    assert distances.dtype == np.int32 and found.dtype == np.int64
    np.testing.assert_array_equal(distances, wanted)
    np.testing.assert_array_equal(found, where)


@pytest.mark.parametrize("engine", ["numpy", pytest.param("blocks", marks=needs_kernel), "tensor"])
@settings(max_examples=examples(60))
@given(case=cases(), masked=st.booleans())
def test_every_engine_counts_as_numpy_does(engine, case, masked):
    codes, queries, width, _, _ = case
    masks = drawn("random", len(queries), width, np.random.default_rng(len(codes))) if masked else None
    counter = {"numpy": lambda *given: plain.differing(codes, *given)}.get(engine)
    found = (counter or searcher(engine, codes).differing)(queries, masks)  # type: ignore[attr-defined]
    apart = codes[None] ^ queries[:, None]
    wanted = np.bitwise_count(apart if masks is None else apart & masks[:, None]).sum(-1)
    np.testing.assert_array_equal(found, wanted)


@needs_kernel
@pytest.mark.parametrize("width", [8, 576, 2560])
def test_more_queries_than_are_counted_together(monkeypatch, width):
    monkeypatch.setattr(blocks, "_QUERIES", 5)
    rng = np.random.default_rng(0)
    codes, queries = (drawn("random", n, width, rng) for n in (700, 23))
    distances, found = blocks.Blocks(codes).search(queries, 7)
    wanted, where = by_numpy(codes, queries, 7, None)
    np.testing.assert_array_equal(distances, wanted)
    np.testing.assert_array_equal(found, where)
    apart = np.bitwise_count(codes[None] ^ queries[:, None]).sum(-1)
    np.testing.assert_array_equal(blocks.Blocks(codes).differing(queries, None), apart)


@needs_kernel
def test_the_widest_codes_that_the_kernel_takes():
    size = blocks._MOST_BITS // 8
    assert blocks.fits(size) is None and blocks.fits(size + 1) is not None
    codes = np.stack([np.zeros(size, np.uint8), np.full(size, 255, np.uint8)])
    distances, found = blocks.Blocks(codes).search(codes[:1], 2)
    assert distances.tolist() == [[0, 8 * size]] and found.tolist() == [[0, 1]]
    with pytest.raises(InvalidInput, match="engine blocks cannot run"):
        engines.open("blocks", np.zeros((2, size + 1), np.uint8), 8 * size + 8)


@pytest.mark.parametrize("engine", ON_CPU)
def test_codes_in_a_file_that_is_mapped_or_with_gaps(tmp_path, engine):
    rng = np.random.default_rng(0)
    codes = drawn("random", 300, 100, rng)
    codes.tofile(tmp_path / "codes")
    mapped = np.memmap(tmp_path / "codes", np.uint8, "r", shape=codes.shape)
    for one in (mapped, np.asfortranarray(codes), np.repeat(codes, 2, 0)[::2]):
        got = searcher(engine, one).search(codes[:3], 4)
        np.testing.assert_array_equal(got[1], by_numpy(codes, codes[:3], 4, None)[1])


def test_a_gpu_index_whose_ties_are_its_own(monkeypatch):
    """FAISS's GPU index as it may be: any of the equal codes, in any order. The answer is the exact one all the same."""

    class Unordered:
        def __init__(self, resources: object, width: int) -> None:
            self.codes = np.empty((0, width // 8), np.uint8)

        def add(self, codes: Codes) -> None:
            self.codes = np.concatenate([self.codes, codes])

        def search(self, queries: Codes, k: int) -> tuple[object, object]:
            distances, found = by_numpy(self.codes[::-1], queries, k, None)
            return distances, len(self.codes) - 1 - found  # type: ignore[operator]

    lib = flat.faiss()
    monkeypatch.setattr(lib, "GpuIndexBinaryFlat", Unordered, raising=False)
    monkeypatch.setattr(lib, "StandardGpuResources", MagicMock, raising=False)
    rng = np.random.default_rng(0)
    for kind in KINDS:
        codes, queries = drawn(kind, 400, 20, rng), drawn("random", 5, 20, rng)
        for k in (1, 10, 399, 500, 3000):
            distances, found = device.FaissDevice(codes).search(queries, k)
            wanted, where = by_numpy(codes, queries, k, None)
            np.testing.assert_array_equal(distances, wanted)
            np.testing.assert_array_equal(found, where)


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["faiss-gpu", "tensor"])
@pytest.mark.parametrize("width", [40, 576, 2560])
@pytest.mark.parametrize("kind", KINDS)
def test_gpu_engines_are_the_cpu(engine, width, kind):
    if (why := engines.missing(engine)) is not None:
        pytest.skip(why)
    rng = np.random.default_rng(0)
    codes, queries = drawn(kind, 50_000, width, rng), drawn("random", 100, width, rng)
    one = engines.open(engine, codes, width)
    for k in (1, 10, 500):
        for rows in (None, np.flatnonzero(rng.random(len(codes)) < 0.3)):
            for got, wanted in zip(
                one.search(queries, k, rows), flat.Flat(codes).search(queries, k, rows), strict=True
            ):
                np.testing.assert_array_equal(got, wanted)
    few = engines.open(engine, codes[:300], width)
    for got, wanted in zip(
        few.search(queries, 500), flat.Flat(codes[:300]).search(queries, 500), strict=True
    ):
        np.testing.assert_array_equal(got, wanted)
    if engine == "tensor":
        masks = drawn("random", len(queries), width, rng)
        for mask in (None, masks):
            np.testing.assert_array_equal(
                one.differing(queries, mask),  # type: ignore[attr-defined]
                plain.differing(codes, queries, mask),
            )


@pytest.mark.gpu
@pytest.mark.parametrize("queries", [1, 4096])
def test_matrix_products_take_less_than_a_gigabyte_beyond_the_codes(queries):
    if (why := engines.missing("tensor")) is not None:
        pytest.skip(why)
    import torch

    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (200_000, 320), dtype=np.uint8)
    one = engines.open("tensor", codes, 2560)
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    one.search(codes[:queries], 10)
    one.differing(codes[: min(queries, 1000)], None)  # type: ignore[attr-defined]
    assert torch.cuda.max_memory_allocated() - held < 1 << 30


# ---- choosing -----------------------------------------------------------------------------------


@pytest.fixture
def table(monkeypatch, tmp_path):
    """A table of costs, and engines that are all there."""

    def write(rows: list[dict[str, object]]) -> None:
        (tmp_path / "t.json").write_text(json.dumps({"rows": rows}))
        monkeypatch.setattr(choice, "TABLE", tmp_path / "t.json")
        monkeypatch.setattr(choice, "missing", lambda engine, size=1: None)
        choice._table.cache_clear()

    yield write
    choice._table.cache_clear()


def row(engine: str, batch: int, seconds: float, width: int = 576, **more: float) -> dict[str, object]:
    return {
        "work": "search",
        "engine": engine,
        "width": width,
        "n": 1_000_000,
        "batch": batch,
        "seconds": seconds,
        **more,
    }


def test_the_quickest_for_the_batch_is_taken(table):
    table(
        [
            row("faiss", 1, 0.01),
            row("faiss", 64, 0.64),
            row("blocks", 1, 0.05, start=1.0),
            row("blocks", 64, 0.1),
        ]
    )
    begun = {"faiss", "blocks"}
    assert engines.choose(576, 10**6, 1, started=begun) == "faiss"
    assert engines.choose(576, 10**6, 64, started=begun) == "blocks"
    assert engines.choose(576, 10**6, 64) == "faiss", "loading a kernel takes longer than it saves"
    assert engines.choose(576, 10**7, 64) == "blocks"
    assert engines.choose(576, 10**4, 1000, started=begun) == "blocks"
    why = engines.explain(576, 10**6, 64, started=begun)
    assert why.engine == "blocks"
    assert why.expected == pytest.approx({"faiss": 0.64, "blocks": 0.1})
    assert why.missing == {"faiss-gpu": "not measured", "tensor": "not measured"}


def test_what_a_gpu_index_hands_to_the_cpu_is_no_work_of_the_gpu():
    assert "faiss-gpu" in engines.able(10, None)
    assert "faiss-gpu" not in engines.able(10, np.arange(3))
    assert "faiss-gpu" not in engines.able(device.FAISS_MOST, None)


def test_what_is_not_there_is_not_taken(table, monkeypatch):
    table([row("faiss", 1, 0.01), row("tensor", 1, 0.001, copy=1e-9)])
    assert engines.choose(576, 10**6, 1, started={"tensor"}) == "tensor"
    assert engines.choose(576, 10**6, 1) == "faiss", "72 MB are copied first"
    monkeypatch.setattr(
        choice, "missing", lambda engine, size=1: "no such luck" if engine == "tensor" else None
    )
    assert engines.choose(576, 10**6, 1, started={"tensor"}) == "faiss"
    assert engines.explain(576, 10**6, 1).missing["tensor"] == "no such luck"


def test_codes_that_do_not_fit_into_the_gpu_are_searched_on_the_cpu(table, monkeypatch):
    def full(codes: Codes) -> engines.Searcher:
        raise device.DeviceFull(codes)

    table([row("faiss", 1, 0.01), row("tensor", 1, 1e-9), row("tensor", 1, 1e-9) | {"work": "count"}])
    monkeypatch.setitem(engines._SEARCHERS, "tensor", full)
    monkeypatch.setattr(engines, "Tensor", full)
    rng = np.random.default_rng(0)
    codes = drawn("random", 300, 576, rng)
    assert engines.choose(576, 300, 3) == "tensor"
    for _ in range(2):
        distances, found = engines.search(codes, codes[:3], 5, width=576)
        wanted, where = by_numpy(codes, codes[:3], 5, None)
        np.testing.assert_array_equal(distances, wanted)
        np.testing.assert_array_equal(found, where)
    opened: dict[str, engines.Searcher] = {}
    assert isinstance(engines.quickest(codes, 576, 3, 5, None, opened), flat.Flat) and [*opened] == ["faiss"]
    with pytest.raises(InvalidInput, match="do not fit into the GPU's memory"):
        engines.search(codes, codes[:3], 5, width=576, engine="tensor")
    real = engines.choose
    monkeypatch.setattr(engines, "choose", lambda *given: "tensor" if "tensor" in given[3] else real(*given))
    np.testing.assert_array_equal(
        engines.differing(codes, codes[:3], width=576), plain.differing(codes, codes[:3], None)
    )


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"rows": [{}, 3, null]}', '{"rows": 5}'])
def test_a_table_that_is_broken_is_no_table(table, tmp_path, text):
    table([])
    (tmp_path / "t.json").write_text(text)
    assert engines.choose(576, 10**6, 64) == "faiss"


def test_rows_of_a_table_that_say_nothing_are_left_out(table):
    table([row("faiss", 1, 0.01), row("blocks", 1, float("nan")), row("tensor", 1, 0), {"engine": "faiss"}])
    assert engines.choose(576, 10**6, 1, started=engines.NAMES) == "faiss"


def test_the_table_that_ships_is_whole():
    rows = json.loads(choice.TABLE.read_text())["rows"]
    assert {one["engine"] for one in rows} >= {"faiss", "blocks", "numpy"}
    for one in rows:
        assert one["seconds"] > 0 and one["n"] > 0 and one["batch"] > 0 and one["machine"]
    for width in (64, 576, 2560, 8192):
        assert engines.choose(width, 10**6, 1, engines.CPU) == "faiss"
        if blocks.missing() is None:
            assert engines.choose(width, 10**7, 1024, engines.CPU) == "blocks"
            assert (
                engines.choose(width, 10**6, 1024, ("numpy", "blocks"), ("numpy", "blocks"), "count")
                == "blocks"
            )


@pytest.mark.parametrize("engine", ["nothing", "faiss-gpu", "tensor"])
def test_an_engine_that_cannot_run_is_one_line(engine, monkeypatch):
    monkeypatch.setattr(device, "missing_faiss", lambda: "there is no CUDA device")
    monkeypatch.setattr(device, "missing_tensor", lambda: "there is no CUDA device")
    codes = np.zeros((3, 9), np.uint8)
    with pytest.raises(InvalidInput) as caught:
        engines.search(codes, codes, 1, width=72, engine=engine)
    assert "faiss" in str(caught.value) and "\n" not in str(caught.value)


def test_bad_shapes_are_refused():
    codes = np.zeros((3, 9), np.uint8)
    for call in (
        lambda: engines.search(codes, codes[:, :8], 1, width=72),
        lambda: engines.search(codes, codes, 1, width=64),
        lambda: engines.search(codes, codes, 0, width=72),
        lambda: engines.differing(codes, codes[:, :8], width=72),
        lambda: engines.differing(codes, codes, codes[:, :8], width=72),
        lambda: engines.open("faiss", codes[0], 72),
        lambda: engines.search(codes.astype(np.int64), codes, 1, width=72),
        lambda: engines.search(codes, codes.view(np.int8), 1, width=72),
        lambda: engines.search(codes[:, :0], codes[:, :0], 1, width=0),
        lambda: engines.search(codes, codes, 2.5, width=72),  # type: ignore[arg-type]
        lambda: engines.search(codes, codes, "3", width=72),  # type: ignore[arg-type]
        lambda: engines.differing(codes, codes, codes[:1], width=72),
        *(
            lambda rows=rows: engines.search(codes, codes, 1, width=72, rows=rows)  # type: ignore[misc]
            for rows in (
                np.array([10**12]),
                np.array([-1, 2]),
                np.array([3]),
                np.array([True, False, True]),
                np.ones(2),
                np.array([0, 1], np.uint8),
            )
        ),
    ):
        with pytest.raises(InvalidInput):
            call()


def test_choosing_loads_neither_torch_nor_numba():
    program = (
        "import sys, numpy as np; from signarium.catalog import engines; c = np.zeros((100, 9), np.uint8);"
        "engines.search(c, c[:1], 3, width=72); engines.differing(c, c[:1], width=72);"
        "print(sorted({'torch', 'numba', 'llvmlite'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def in_child(program: str, **environment: str) -> str:
    """What a program prints over random codes `c`, in a process of its own that is given a minute."""
    begin = (
        "import os, sys, numpy as np; from signarium.catalog import engines\n"
        "c = np.random.default_rng(0).integers(0, 256, (300_000, 8), dtype=np.uint8)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", begin + program],
        check=True, capture_output=True, text=True, timeout=60, env=os.environ | environment,
    )  # fmt: skip
    return done.stdout


@pytest.mark.parametrize("engine", ["faiss", pytest.param("blocks", marks=needs_kernel)])
def test_a_forked_child_searches_too(engine):
    search = f"engines.search(c, c[:4], 3, width=64, engine='{engine}')[1][:, 0].tolist()"
    program = f"""
first = {search}
if (child := os.fork()) == 0:
    os._exit(0 if {search} == first else 1)
print(first, os.waitpid(child, 0)[1])
"""
    assert in_child(program) == "[0, 1, 2, 3] 0\n"


@needs_kernel
def test_a_damaged_cache_of_the_kernel_is_made_anew(tmp_path):
    search = "print(engines.search(c, c[:3], 3, width=64, engine='blocks')[1][:, 0].tolist())"
    kept = {"NUMBA_CACHE_DIR": str(tmp_path)}
    wanted = in_child(search, **kept)
    # A function's index names its data: each of them is damaged in each way.
    damages = (lambda _: b"", lambda whole: whole[:100], lambda _: b"garbage")
    for ending in ("nbi", "nbc"):
        files = sorted(tmp_path.rglob(f"*.{ending}"))
        assert len(files) >= len(damages)
        for i, one in enumerate(files):
            one.write_bytes(damages[i % len(damages)](one.read_bytes()))
    assert in_child(search, **kept) == wanted == "[0, 1, 2]\n"
    assert all(one.stat().st_size > 100 for one in tmp_path.rglob("*.nb?"))
    assert in_child(search, **kept) == wanted


@needs_kernel
def test_a_cache_that_cannot_be_written_costs_no_answer(tmp_path):
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
    search = "print(engines.search(c, c[:3], 3, width=64, engine='blocks')[1][:, 0].tolist())"
    wanted = "[0, 1, 2]\n"
    assert in_child(limited + search, NUMBA_CACHE_DIR=str(tmp_path)) == wanted
    assert in_child(search, NUMBA_CACHE_DIR=str(tmp_path)) == wanted


@needs_kernel
@pytest.mark.parametrize(
    "broken", ["raise ImportError('Numba needs NumPy 1.0 or less')", "raise OSError('no LLVM\\nhere')"]
)
def test_a_numba_that_does_not_load_is_left_alone(tmp_path, broken):
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text(broken)
    program = (
        "from signarium.catalog import engines;"
        "print(engines.choose(2560, 10**9, 4096, ('faiss', 'blocks')), engines.missing('blocks'))"
    )
    environment = os.environ | {"PYTHONPATH": first_on_the_path(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment
    )
    assert done.stdout.startswith("faiss numba does not load (") and done.stdout.count("\n") == 1


@needs_kernel
def test_without_numba_faiss_answers():
    program = (
        "import sys; sys.modules['numba'] = None; import numpy as np; from signarium.catalog import engines;"
        "c = np.random.default_rng(0).integers(0, 256, (2000, 72), dtype=np.uint8);"
        "d, r = engines.search(c, c, 1, width=576, engine='auto'); print((d == 0).all(), (r[:, 0] == range(2000)).all());"
        "print(engines.choose(576, 10**9, 4096, ('faiss', 'blocks')), engines.missing('blocks'))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["True True", "faiss numba is not installed"]
