from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import duckdb
import pytest
import small
import tiny
import torch
from digest import Commands, digest, rows, sound
from effort import in_full, some
from safetensors.torch import load_file, save_file

import signarium
from signarium.catalog.errors import DiskFull, ModelError
from signarium.catalog.revisions import REVISIONS
from signarium.ingest import journal, plan, size
from signarium.ingest.journal import Journal
from signarium.ingest.model.load import LoadedModel
from signarium.ingest.progress import Silent

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a text and a catalogue over both."""
    home = tmp_path_factory.mktemp("shared")
    tiny.folder(home, "llama")
    (home / "a.txt").write_text(tiny.TEXT * 12)
    ingest(home / "c.duckdb", home)
    return home


def ingest(path: Path, home: Path, **options: Any) -> Any:
    options = {"sites": "embed;resid_post.1", "context": 32, "device": "cpu"} | options
    return signarium.ingest(path, home / "llama-0", text=[home / "a.txt"], **options)  # type: ignore[operator]


ARGS = ("--sites", "embed;resid_post.1", "--context", "32", "--device", "cpu")


# ---- again, resumed, failed ---------------------------------------------------------------------


def test_the_same_again_does_nothing_and_is_quick(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shared / "c.duckdb"
    files = [path, *Path(f"{path}.indexes").iterdir()]
    before = {one: (one.read_bytes(), one.stat().st_mtime_ns) for one in files}
    monkeypatch.setattr(LoadedModel, "forward", lambda *_: pytest.fail("computed again"))
    started = time.process_time()
    report = ingest(path, shared)
    assert time.process_time() - started < 2
    assert report.already and report.tokens == 0 and report.estimate.tokens == 0
    assert {one: (one.read_bytes(), one.stat().st_mtime_ns) for one in files} == before
    assert sorted(one.name for one in shared.iterdir()) == [
        "a.txt", "c.duckdb", "c.duckdb.indexes", "llama-0"
    ]  # fmt: skip


@pytest.fixture(scope="module")
def in_small_shards(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The digest of a catalogue that was made in shards of 64 tokens."""
    whole = tmp_path_factory.mktemp("whole") / "c.duckdb"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(size, "shard_tokens", lambda _: 64)
        ingest(whole, shared)
    return digest(whole)


@pytest.mark.parametrize(
    ("batch", "error"),
    [
        (1, RuntimeError("mat1 and mat2")),
        in_full(3, ModelError("out of order")),
        (7, KeyboardInterrupt()),
        in_full(12, RuntimeError("mat1 and mat2")),
    ],
)
def test_failing_at_a_batch_and_going_on(
    batch: int,
    error: BaseException,
    shared: Path,
    in_small_shards: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(size, "shard_tokens", lambda _: 64)
    path = tmp_path / "c.duckdb"
    real, count = LoadedModel.forward, 0

    def fails(self: LoadedModel, *args: Any) -> None:
        nonlocal count
        count += 1
        if count == batch:
            raise error
        real(self, *args)

    monkeypatch.setattr(LoadedModel, "forward", fails)
    with pytest.raises(type(error)):
        ingest(path, shared)
    sound(path)
    job, expected = ("types" if batch <= 5 else "states"), "failed"
    if isinstance(error, KeyboardInterrupt):
        expected = "running"
    assert rows(path, "SELECT status FROM runs WHERE job = ?", [job]) == [(expected,)]
    scratch = list(tmp_path.glob("*.scratch-*"))
    assert len(scratch) == (job == "types")
    count = 100
    report = ingest(path, shared)
    assert digest(path) == in_small_shards
    assert rows(path, "SELECT DISTINCT status FROM runs") == [("done",)]
    assert report.tokens <= rows(path, "SELECT sum(tokens) FROM runs")[0][0]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["c.duckdb", "c.duckdb.indexes"]


def test_an_error_is_not_hidden_by_its_record(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ModelError("the cause")

    def full(*_: Any) -> None:
        raise DiskFull(tmp_path, during=True)

    monkeypatch.setattr(LoadedModel, "forward", broken)
    monkeypatch.setattr(Journal, "fail", full)
    with pytest.raises(ModelError, match="the cause"):
        ingest(tmp_path / "c.duckdb", shared)


def test_scratch_files_of_others(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Left by a run that was killed just after its last commit: they go with the next command.
    path = tmp_path / "c.duckdb"
    with monkeypatch.context() as patched:
        patched.setattr(plan, "clear", lambda *_: None)
        run_id = ingest(path, shared).runs[0]
    scratch = journal.scratch(path, run_id)
    content = {one.name: one.read_bytes() for one in scratch.iterdir()}
    assert content
    assert ingest(path, shared).already
    assert not scratch.exists()
    # Left beside a catalogue that has been deleted: what made them need not be what runs now.
    path.unlink()
    scratch.mkdir()
    for name, one in content.items():
        (scratch / name).write_bytes(one[:-400] + bytes(400))
    ingest(path, shared)
    assert digest(path) == digest(shared / "c.duckdb")
    assert not scratch.exists()


def test_two_models_one_after_the_other(shared: Path, tmp_path: Path) -> None:
    path, other = tmp_path / "c.duckdb", tiny.folder(tmp_path, "gpt2")
    ingest(path, shared)
    options: dict[str, Any] = {"sites": "embed;k.1", "context": 32, "device": "cpu"}
    signarium.ingest(path, other, text=[shared / "a.txt"], **options)  # type: ignore[operator]
    sound(path)
    alone = (
        "SELECT site, subject, centre, n, md5(list(code ORDER BY item)::VARCHAR) FROM code_sets "
        "JOIN codes USING (code_set_id) WHERE model = 'llama-0' GROUP BY ALL ORDER BY ALL"
    )
    assert rows(path, alone) == rows(shared / "c.duckdb", alone)
    assert rows(path, "SELECT model, count(*) FROM code_sets WHERE indexed GROUP BY 1 ORDER BY 1") == [
        ("gpt2-0", 8), ("llama-0", 8)
    ]  # fmt: skip
    assert ingest(path, shared).already


def test_a_second_ingest_meanwhile_is_refused(warm: Commands, shared: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.duckdb"
    seen: list[Any] = []

    class Intrudes(Silent):
        def computed(self, tokens: int) -> None:
            if not seen:
                args = ("--db", path, "ingest", shared / "llama-0", "--text", shared / "a.txt", *ARGS)
                seen.append(warm.run(*args))

    ingest(path, shared, progress=Intrudes())
    (second,) = seen
    assert second.code == 1 and second.out == ""
    assert second.lines == [
        f"error: another job works on {path} (PID {os.getpid()}): wait until it ends, or use another --db PATH"
    ]
    assert digest(path) == digest(shared / "c.duckdb")
    assert not Path(f"{path}.lock").exists()


# ---- a full disk --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shard_tokens", "parts"),
    # In small shards the catalogue is the largest file and fails while it is made (None) or at a commit, when
    # such a part is written of what comes on top of an empty one; in large ones a scratch file of
    # 304 x 700 x 4 bytes is beyond the limit at once.
    [(400, (None, 0.1, 0.7)), (10_000, (None,))],
)
def test_a_disk_that_fills_up(
    shard_tokens: int, parts: tuple[float | None, ...], warm: Commands, shared: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text(tiny.TEXT * 60)
    options = ("--context", "32", "--sites", "embed;resid_post.*;k.*;ffn.*", "--device", "cpu")
    args = ("ingest", shared / "llama-0", "--text", tmp_path / "a.txt", *options)
    whole = tmp_path / "whole.duckdb"
    assert warm.run("--db", whole, *args, shard_tokens=shard_tokens).code == 0
    expected = digest(whole)
    committed = set()
    for part in parts:
        path = tmp_path / f"{part}" / "c.duckdb"
        path.parent.mkdir()
        size = small.empty(path).stat().st_size
        if shard_tokens > 1000:
            # The catalogue is there already, so that nothing but scratch files meets the limit.
            limit = 500_000
        else:
            path.unlink()
            limit = 4_000 if part is None else int(size + part * (whole.stat().st_size - size))
        result = warm.run("--db", path, *args, shard_tokens=shard_tokens, file_bytes=limit)
        assert limit < whole.stat().st_size
        assert result.code == 1, (limit, result)
        errors = [line for line in result.lines if line.startswith("error:")]
        assert len(errors) == 1 and "filled up" in errors[0], result.err
        assert len(result.lines) <= 2 and result.lines[-1] == errors[0], result.err
        if path.exists():
            sound(path)
            committed.add(rows(path, "SELECT count(*) FROM shard")[0][0])
        again = warm.run("--db", path, *args, shard_tokens=shard_tokens)
        assert again.code == 0, again.err
        assert digest(path) == expected
        left = {one.name for one in path.parent.iterdir()}
        assert left == {"c.duckdb", "c.duckdb.indexes"}, (limit, left)
    if shard_tokens == 400:
        # Before the first shard, and at several places after it.
        assert len(committed) >= 2, committed


# ---- bad input ----------------------------------------------------------------------------------


def broken_model(shared: Path, folder: Path, kind: str) -> Path:
    home = folder / kind
    shutil.copytree(shared / "llama-0", home)
    weights = home / "model.safetensors"
    match kind:
        case "no-tokenizer":
            for one in home.glob("*token*"):
                one.unlink()
        case "pickled":
            torch.save(load_file(weights), home / "pytorch_model.bin")
            weights.unlink()
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-1000])
        case "nan":
            tensors = load_file(weights)
            tensors["model.layers.1.mlp.up_proj.weight"].view(-1)[5] = float("nan")
            save_file(tensors, weights, {"format": "pt"})
        case "no-bos":
            config = json.loads((home / "tokenizer_config.json").read_text())
            (home / "tokenizer_config.json").write_text(
                json.dumps({k: v for k, v in config.items() if k != "bos_token"})
            )
            (home / "special_tokens_map.json").unlink(missing_ok=True)
    return home


BAD: dict[str, tuple[list[str], str]] = {
    # name: arguments after `ingest` ({m} the model, {t} the folder of the test), what the line must hold
    "text not there": (["{m}", "--text", "{t}/none.txt"], "no file or folder"),
    "binary as text": (["{m}", "--text", "{t}/binary"], "binary file"),
    "not utf-8": (["{m}", "--text", "{t}/latin.txt"], "not UTF-8"),
    "empty text": (["{m}", "--text", "{t}/empty.txt"], "is empty"),
    "folder without text": (["{m}", "--text", "{t}/nothing"], "holds no text"),
    "jsonl without the field": (["{m}", "--text", "{t}/other.jsonl"], "has no 'text'"),
    "blank jsonl": (["{m}", "--text", "{t}/blank.jsonl"], "holds no token"),
    "broken parquet": (["{m}", "--text", "{t}/broken.parquet"], "no readable Parquet"),
    "unknown site": (["{m}", "--sites", "resid.1"], "no point 'resid'"),
    "layer out of range": (["{m}", "--sites", "resid_post.4"], "layers count from 0 to 3"),
    "empty sites": (["{m}", "--sites", ";"], "no sites"),
    "no tokenizer": (["{t}/no-tokenizer"], "tokenizer"),
    "pickled weights": (["{t}/pickled"], "pickle"),
    "truncated weights": (["{t}/truncated"], "model.safetensors"),
    "nan in weights": (["{t}/nan"], "NaN"),
    "model not there": (["{t}/none"], "no such file or folder"),
    "empty model": ([""], "no such file or folder"),
    "a text as model": (["{t}/latin.txt"], "is no model"),
    "hub id not there": (["nobody-here/no-such-model-2b"], "nobody-here/no-such-model-2b"),
    "context too long": (["{m}", "--text", "{t}/good.txt", "--context", "129"], "--context 128"),
    "stage unknown": (["{m}", "--stages", "types,nonsense"], "no stage 'nonsense'"),
    "stage none": (["{m}", "--stages", ","], "no stage was given"),
    "states without text": (["{m}", "--stages", "states"], "--text PATH"),
    "text without states": (["{m}", "--stages", "types", "--text", "{t}/good.txt"], "add states"),
    "bos without bos": (["{t}/no-bos", "--bos"], "no BOS token"),
    "device": (["{m}", "--device", "tpu9"], "no device 'tpu9'"),
    "cuda beyond": (["{m}", "--device", "cuda:77"], "no device 'cuda:77'"),
    "empty name": (["{m}", "--name", " "], "--name is empty"),
    "revision of a folder": (["{m}", "--revision", "main"], "no revision"),
}


@pytest.fixture(scope="module")
def bad(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("bad")
    for kind in ("no-tokenizer", "pickled", "truncated", "nan", "no-bos"):
        broken_model(shared, home, kind)
    (home / "binary").write_bytes(b"\x7fELF\x02\x01\x01\0" * 200)
    (home / "latin.txt").write_bytes("naïve".encode("latin-1"))
    (home / "empty.txt").write_text("")
    (home / "good.txt").write_text(tiny.TEXT)
    (home / "nothing").mkdir()
    (home / "nothing" / "a.bin").write_text("x")
    (home / "other.jsonl").write_text('{"body": "x"}\n')
    (home / "blank.jsonl").write_text('{"text": ""}\n\n')
    (home / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    return home


@pytest.mark.parametrize("there", [False, True])
def test_bad_input_is_one_line_and_changes_nothing(
    there: bool, warm: Commands, shared: Path, bad: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    path = home / "c.duckdb"
    if there:
        shutil.copy(shared / "c.duckdb", path)
    content = path.read_bytes() if there else None
    wrong = []
    for name, (args, expected) in some(list(BAD.items()), 4) if there else BAD.items():
        filled = [one.format(m=shared / "llama-0", t=bad) for one in args]
        if "--text" in filled and "--context" not in filled:
            filled += ["--context", "32"]
        # Beside the catalogue that is there a dry run must refuse the same.
        result = warm.run("--db", path, "ingest", *filled, *(["--dry-run"] if there else []))
        lines = result.lines
        ok = result.code == 1 and len(lines) == 1 and lines[0].startswith("error: ") and expected in lines[0]
        ok = ok and result.out == "" and (path.read_bytes() if path.exists() else None) == content
        if not ok or [one for one in home.iterdir() if one != path]:
            wrong.append((name, result.code, result.err[-600:], sorted(home.iterdir())))
    assert not wrong, "\n".join(map(str, wrong))


def test_bad_catalogues(warm: Commands, shared: Path, tmp_path: Path) -> None:
    good = (shared / "c.duckdb").read_bytes()
    (tmp_path / "text.duckdb").write_text("this is a text\n" * 1000)
    (tmp_path / "empty.duckdb").write_bytes(b"")
    (tmp_path / "cut.duckdb").write_bytes(good[: len(good) // 2])
    (tmp_path / "head.duckdb").write_bytes(good[:2000])
    (tmp_path / "folder.duckdb").mkdir()
    with duckdb.connect(str(tmp_path / "other.duckdb")) as connection:
        connection.execute("CREATE TABLE mine AS SELECT 1 AS a")
    (tmp_path / "newer.duckdb").write_bytes(good)
    with duckdb.connect(str(tmp_path / "newer.duckdb")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    (tmp_path / "older.duckdb").write_bytes(good)
    unwritable = tmp_path / "unwritable"
    unwritable.mkdir(mode=0o555)
    nowhere = Path("/proc") if os.geteuid() == 0 else unwritable
    cases: dict[Path, tuple[str, dict[str, Any]]] = {
        tmp_path / "text.duckdb": ("not a DuckDB file", {}),
        tmp_path / "empty.duckdb": ("it is empty", {}),
        tmp_path / "cut.duckdb": ("damaged", {}),
        tmp_path / "head.duckdb": ("is damaged", {}),
        tmp_path / "folder.duckdb": ("it is a folder", {}),
        tmp_path / "other.duckdb": ("without signarium's tables", {}),
        tmp_path / "newer.duckdb": ("newer than this signarium: upgrade signarium", {}),
        tmp_path / "older.duckdb": ("db upgrade", {"revisions": [*REVISIONS, "later"]}),
        tmp_path / "none" / "c.duckdb": ("there is no folder", {}),
        tmp_path / "text.duckdb" / "c.duckdb": ("there is no folder", {}),
        nowhere / "c.duckdb": ("in a folder that you may write to", {}),
    }
    before = {one: one.read_bytes() for one in tmp_path.glob("*.duckdb") if one.is_file()}
    wrong = []
    for path, (expected, options) in cases.items():
        result = warm.run("--db", path, "ingest", shared / "llama-0", *ARGS, **options)
        lines = result.lines
        if (
            result.code != 1
            or len(lines) != 1
            or not lines[0].startswith("error: ")
            or expected not in lines[0]
        ):
            wrong.append((path.name, result.code, result.err[-600:]))
    assert wrong == []
    assert {one: one.read_bytes() for one in tmp_path.glob("*.duckdb") if one.is_file()} == before
    assert {one.name for one in tmp_path.iterdir()} == {
        *(one.name for one in before), "folder.duckdb", "unwritable"
    }  # fmt: skip
