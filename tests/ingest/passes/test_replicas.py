"""Work dealt to several devices: two threads on the CPU stand for two of them."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
import transformers
from digest import Commands, digest, rows, sound
from effort import in_full, is_full, some

import signarium
from signarium.catalog.errors import InvalidInput, ModelError
from signarium.ingest import size
from signarium.ingest.journal import Journal
from signarium.ingest.model.load import LoadedModel
from signarium.ingest.passes.replicas import AHEAD, Replicas
from signarium.ingest.progress import Silent
from signarium.ingest.states import stage as states

pytestmark = pytest.mark.long

SITES = "embed;resid_post.1;k.1"
TIMES_AND_PLACES = "run"
"""The one table that says on which devices a run was done."""


def two() -> Replicas:
    return Replicas([tiny.loaded("llama"), tiny.loaded("llama")])


def threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("device-")]


# ---- work and its order -------------------------------------------------------------------------


def test_results_come_in_order_whatever_the_speed() -> None:
    seen = []

    def work(i: int) -> Callable[[int], tuple[int, int, str]]:
        def run(number: int) -> tuple[int, int, str]:
            time.sleep(0.02 if number else 0)
            return i, number, threading.current_thread().name

        return run

    with two() as replicas:
        assert replicas.device == "cpu,cpu"
        for i, number, name in replicas.in_order(map(work, range(9))):
            seen.append((i, number))
            assert name.startswith(f"device-{number}")
    assert seen == [(i, i % 2) for i in range(9)]
    assert not threads()


def test_no_more_is_begun_than_each_device_may_have() -> None:
    # Buffers are used in turn, so the caller must be back from a piece before the one that follows in its buffer begins.
    asked = done = 0

    def works() -> Iterator[Callable[[int], int]]:
        nonlocal asked
        for i in range(20):
            assert asked - done < AHEAD * 2
            asked += 1
            yield lambda _, i=i: i

    with two() as replicas:
        for _ in replicas.in_order(works()):
            done += 1
            assert asked == min(20, done - 1 + AHEAD * 2)
    assert done == 20


def test_one_cpu_does_its_work_where_it_is_asked_for() -> None:
    begun = []

    def work(number: int) -> str:
        begun.append(number)
        return threading.current_thread().name

    with Replicas([tiny.loaded("llama")]) as replicas:
        assert replicas.device == "cpu"
        for i, name in enumerate(replicas.in_order([work] * 3)):
            # Nothing runs ahead of who asks.
            assert (len(begun), name) == (i + 1, threading.current_thread().name)


@pytest.mark.parametrize("error", [ModelError("broken"), KeyboardInterrupt()])
def test_an_error_comes_in_its_place_and_ends_the_rest(error: BaseException) -> None:
    begun = []

    def work(i: int) -> Callable[[int], int]:
        def run(_: int) -> int:
            begun.append(i)
            if i == 3:
                raise error
            time.sleep(0.01)
            return i

        return run

    seen = []
    with pytest.raises(type(error)), two() as replicas:
        seen.extend(replicas.in_order(map(work, range(50))))
    # `extend` keeps what came before the error.
    assert seen == [0, 1, 2]
    assert max(begun) <= 3 + AHEAD * 2
    assert not threads()


def test_log_lines_are_off_in_all_threads_and_on_again() -> None:
    log = transformers.utils.logging
    before = log.get_verbosity()
    with two():
        assert log.get_verbosity() == log.ERROR
    assert log.get_verbosity() == before


# ---- an ingest over two devices -----------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, a text of windows of many lengths, and catalogues of one device each."""
    home = tmp_path_factory.mktemp("home")
    words = "The king saw 12 ships, and the sea. "
    (home / "a.jsonl").write_text("".join(f'{{"text": "{words * (1 + 7 * n % 9)}"}}\n' for n in range(1, 24)))
    for architecture in ("llama", "bert") if is_full() else ("llama",):
        tiny.folder(home, architecture)
        with small_shards():
            ingest(home / f"{architecture}.duckdb", home, architecture, device="cpu")
    return home


@contextmanager
def small_shards() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(size, "shard_tokens", lambda _: 150)
        yield


def ingest(path: Path, home: Path, architecture: str = "llama", **options: Any) -> Any:
    fixed: dict[str, Any] = {
        "sites": SITES,
        "context": 32,
        "batch_tokens": 70,
    }
    fixed |= {"text": [home / "a.jsonl"]}
    return signarium.ingest(path, home / f"{architecture}-0", **(fixed | options))  # type: ignore[operator]


def same(path: Path, expected: Path) -> None:
    assert digest(path, [TIMES_AND_PLACES]) == digest(expected, [TIMES_AND_PLACES])
    query = "SELECT run_id, job, params, complete, failure FROM run ORDER BY run_id"
    assert rows(path, query) == rows(expected, query)


@pytest.mark.parametrize(
    ("architecture", "devices"), [("llama", ["cpu", "cpu", "cpu"]), in_full("bert", "cpu,cpu")]
)
def test_a_catalogue_is_that_of_one_device(
    architecture: str, devices: Any, home: Path, tmp_path: Path
) -> None:
    path = tmp_path / "c.duckdb"
    heard: list[int] = []

    class Hears(Silent):
        def computed(self, units: int) -> None:
            assert threading.current_thread() is threading.main_thread()
            heard.append(units)

    with small_shards():
        report = ingest(path, home, architecture, devices=devices, progress=Hears())
    assert report.estimate.device == (devices if isinstance(devices, str) else ",".join(devices))
    assert rows(path, "SELECT DISTINCT device FROM runs") == [(report.estimate.device,)]
    same(path, home / f"{architecture}.duckdb")
    sound(path)
    assert sum(heard) == report.tokens == rows(path, "SELECT sum(tokens) FROM runs")[0][0]
    assert rows(
        path, "SELECT count(*) FROM runs WHERE NOT (forward_s > 0 AND pack_s > 0 AND tokens_per_s > 0)"
    ) == [(0,)]
    assert not threads()
    # There is nothing left to do for one device either.
    assert ingest(path, home, architecture, device="cpu").already


def test_both_devices_compute(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, names, models = LoadedModel.forward, set(), set()

    def noted(self: LoadedModel, *args: Any) -> None:
        names.add(threading.current_thread().name)
        models.add(id(self.module))
        real(self, *args)

    monkeypatch.setattr(LoadedModel, "forward", noted)
    ingest(tmp_path / "c.duckdb", home, devices="cpu,cpu")
    assert len(names) == len(models) == 2 and all(one.startswith("device-") for one in names)


@pytest.mark.parametrize(
    ("batch", "error"),
    [
        in_full(1, RuntimeError("mat1 and mat2")),
        (4, KeyboardInterrupt()),
        in_full(9, ModelError("x")),
        in_full(14, KeyboardInterrupt()),
    ],
)
def test_failing_at_a_batch_and_going_on_with_other_devices(
    batch: int, error: BaseException, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.duckdb"
    real, count, lock = LoadedModel.forward, 0, threading.Lock()

    def fails(self: LoadedModel, *args: Any) -> None:
        nonlocal count
        with lock:
            count += 1
            mine = count
        if mine == batch:
            raise error
        real(self, *args)

    monkeypatch.setattr(LoadedModel, "forward", fails)
    with small_shards():
        with pytest.raises(type(error)):
            ingest(path, home, devices="cpu,cpu")
        assert not threads()
        sound(path)
        status = "running" if isinstance(error, KeyboardInterrupt) else "failed"
        assert rows(path, "SELECT count(*) FROM runs WHERE status = ?", [status]) == [(1,)]
        count = 1000
        # What two devices began one ends, or three.
        ingest(path, home, **({"device": "cpu"} if batch % 2 else {"devices": "cpu,cpu,cpu"}))
    same(path, home / "llama.duckdb")
    assert not list(tmp_path.glob("*.scratch-*"))


def test_an_error_of_the_writer_ends_the_devices(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = Journal._commit, 0

    def full(self: Journal, shard: Any) -> None:
        nonlocal count
        count += 1
        if self.spec.job == "states" and count > 3:
            raise ModelError("cannot be written")
        real(self, shard)

    path = tmp_path / "c.duckdb"
    with small_shards():
        with monkeypatch.context() as patched:
            patched.setattr(Journal, "_commit", full)
            with pytest.raises(ModelError, match="cannot be written"):
                ingest(path, home, devices="cpu,cpu")
        assert not threads()
        sound(path)
        ingest(path, home, devices="cpu,cpu")
    same(path, home / "llama.duckdb")


def test_shards_are_handed_over_as_soon_as_they_are_whole(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A kill loses what has not been handed over: no more than what the devices are at.
    real, begun, handed = states._forward, 0, []

    def counted(*args: Any) -> Any:
        nonlocal begun
        begun += 1
        return real(*args)

    submit = Journal.submit
    monkeypatch.setattr(states, "_forward", counted)
    monkeypatch.setattr(
        Journal, "submit", lambda self, one: (handed.append((one.start, begun)), submit(self, one))
    )
    with small_shards():
        ingest(tmp_path / "c.duckdb", home, devices="cpu,cpu", stages=["states"], batch_tokens=4096)
    # A batch a shard, and one more for the window that goes alone.
    assert len(handed) > 4
    assert all(begun_then <= i + 2 + AHEAD * 2 for i, (_, begun_then) in enumerate(handed))


def test_killed_and_gone_on_with(home: Path, tmp_path: Path, warm: Commands) -> None:
    path = tmp_path / "c.duckdb"
    args = ["--db", path, "ingest", home / "llama-0", "--text", home / "a.jsonl"]
    args += ["--sites", SITES, "--context", "32", "--batch-tokens", "70", "--devices", "cpu,cpu"]
    for kill_in in some([("commit", 2, 0.01), ("forward", 12, 0.0)], 2):
        killed = warm.run(*args, shard_tokens=150, kill_in=kill_in)
        assert killed.code == -signal.SIGKILL, killed.err
    again = warm.run(*args, shard_tokens=150)
    assert again.code == 0, again.err
    same(path, home / "llama.duckdb")


@pytest.mark.parametrize(
    "when",
    [
        ("forward", 12, 0.01),
        ("commit", 3, 0.02),
        *(in_full((phase, 1, 0.0)) for phase in ("forward", "commit")),
    ],
)
def test_interrupted_as_a_command(
    when: tuple[str, int, float], home: Path, tmp_path: Path, warm: Commands
) -> None:
    (tmp_path / "long.txt").write_text(tiny.TEXT * 2_000)
    path = tmp_path / "c.duckdb"
    args = ["--db", path, "ingest", home / "llama-0", "--text", tmp_path / "long.txt", "--stages", "states"]
    args += ["--sites", SITES, "--batch-tokens", "2000", "--devices", "cpu,cpu"]
    ended = warm.run(*args, shard_tokens=4000, kill_in=when, with_signal="SIGINT")
    assert ended.code == 130, ended.err
    assert ended.lines[-1].startswith("interrupted; ") and "Traceback" not in ended.err
    sound(path)
    assert rows(path, "SELECT status FROM runs") == [("running",)]
    assert (when[0] == "forward") or rows(path, "SELECT count(*) FROM states")[0][0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device": "cpu", "devices": "cpu,cpu"}, "`device` and `devices` exclude each other"),
        ({"devices": "cpu,tpu9"}, "no device 'tpu9'"),
        ({"devices": "cpu,cuda:77"}, "no device 'cuda:77'"),
        ({"devices": "cpu,,cpu"}, "no device ''"),
        ({"devices": []}, "--devices names none"),
    ],
)
def test_devices_that_cannot_be(options: dict[str, Any], says: str, home: Path, tmp_path: Path) -> None:
    with pytest.raises((InvalidInput, ModelError)) as error:
        ingest(tmp_path / "c.duckdb", home, **options)
    assert says in str(error.value)
    assert not list(tmp_path.iterdir())
