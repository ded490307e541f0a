"""`kill -9` at any moment, the same command again, and what comes out is what an undisturbed run leaves."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
from digest import PHASES, Commands, digest, rows, sound
from effort import is_full

from signarium.catalog import index, store
from signarium.catalog.errors import CatalogueMissing

pytestmark = pytest.mark.long

KILLS, EACH = 50 if is_full() else 15, 10
"""Kills in all, and at most of one catalogue: then it may come to its end."""
SITES = "embed;resid_post.0"
SHARD = {"shard_tokens": 100}
ORDER = ("create", "scratch", "commit", "forward", "index")
"""Phases in the order in which they begin."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("inputs")
    # Sources of many lengths, so that batches are padded and their composition could matter.
    lines = [f'{{"text": "{"the king and the ships " * (1 + 7 * i % 11)}{i}"}}' for i in range(12)]
    (folder / "b.jsonl").write_text("\n".join(lines))
    (folder / "a.txt").write_text(tiny.TEXT * 5)
    model = tiny.folder(folder, "gpt2")
    args = ["--text", folder / "a.txt", "--text", folder / "b.jsonl"]
    return [model, *args, "--sites", SITES, "--context", "40", "--device", "cpu"]


def index_files(path: Path) -> dict[str, bytes]:
    """The index files of a catalogue; manifests tell when a run began, so they are checked by opening them."""
    with store.reading(path) as connection:
        sets = index.describe(connection, "true", [])
    assert sets
    for info in sets:
        found = index.open_index(path, info)
        assert found is not None and found.n == info.n, info
    return {one.name: one.read_bytes() for one in index.folder(path).glob("*.faiss")}


@contextmanager
def reader(path: Path) -> Iterator[list[Any]]:
    """Polls the catalogue all the while; the list is what it saw: a number of codes, or an error."""
    seen: list[Any] = []
    over = threading.Event()

    def poll() -> None:
        while not over.is_set():
            begun = time.thread_time()
            try:
                with store.reading(path) as connection:
                    found = connection.execute(
                        "SELECT (SELECT count(*) FROM codes), (SELECT coalesce(sum(n), 0) FROM code_sets), "
                        "(SELECT count(*) FROM types) + (SELECT count(*) FROM types_bos) + (SELECT count(*) FROM states)"
                    ).fetchone()
                    seen.append(found)
            except Exception as error:
                seen.append(error)
            # What is under test has the processor: a look may take a fifth of its time.
            time.sleep(max(0.15, 4 * (time.thread_time() - begun)))

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def check_seen(seen: list[Any]) -> None:
    """No error after the file is there; every look saw whole shards, and never fewer than the look before."""
    last = 0
    there = False
    for one in seen:
        if isinstance(one, CatalogueMissing):
            assert not there
            continue
        assert isinstance(one, tuple), repr(one)
        there = True
        # Codes, codes that shards promise, and codes with their token: three ways to count the same.
        assert one[0] == one[1] == one[2]
        assert one[0] >= last
        last = one[0]
    assert last


def test_killed_at_any_moment(warm: Commands, inputs: list[Any], tmp_path: Path) -> None:
    # Expected: whatever is killed, tables (times aside) and index files are those of the undisturbed run.
    undisturbed = tmp_path / "undisturbed.duckdb"
    # What is killed is the work, not the loading of the model: `test_killed_as_a_command_of_its_own` has both.
    options = SHARD | {"loaded": str(inputs[0])}
    whole = warm.run("--db", undisturbed, "ingest", *inputs, **options)
    assert whole.code == 0, whole.err
    expected, files = digest(undisturbed), index_files(undisturbed)
    assert rows(undisturbed, "SELECT count(*) FROM shard")[0][0] >= 7

    draw = random.Random(7)
    phases: Counter[str] = Counter()
    kills = catalogues = looks = 0
    while kills < KILLS:
        path = tmp_path / f"{catalogues}" / "killed.duckdb"
        path.parent.mkdir()
        catalogues += 1
        with reader(path) as seen:
            for step in range(EACH + 1):
                how: dict[str, Any] = {}
                if kills < len(ORDER):
                    # One in each phase for certain, as soon as it begins.
                    how = {"kill_in": (ORDER[kills], 1, 0.0)}
                elif catalogues == 1 or step == EACH or kills == KILLS:
                    pass
                elif draw.random() < 0.3:
                    # What is left to do becomes less.
                    how = {"kill_after": draw.uniform(0, whole.seconds * (1 - step / EACH))}
                else:
                    # By the clock alone most would land in whatever phase is longest: twice in each, in their order.
                    phase = ORDER[step * len(ORDER) // EACH]
                    # It is made once; all else comes more than once.
                    time_of = 1 if phase == "create" else draw.randint(1, 2)
                    how = {"kill_in": (phase, time_of, draw.uniform(0, 0.03))}
                result = warm.run("--db", path, "ingest", *inputs, **options, **how)
                if result.code == 0:
                    break
                assert result.code == -signal.SIGKILL, result.err
                kills += 1
                phases[result.phase] += 1
            assert result.code == 0
        check_seen(seen)
        looks += len(seen)
        assert digest(path) == expected
        assert index_files(path) == files
        sound(path)
        left = {one.name for one in path.parent.iterdir()}
        assert left == {"killed.duckdb", "killed.duckdb.indexes"}, left
        assert {one.suffix for one in index.folder(path).iterdir()} == {".faiss", ".json"}
    print(f"{kills} kills over {catalogues} catalogues, by phase {dict(phases)}; {looks} looks")  # noqa: T201
    assert all(phases[one] for one in PHASES), phases


def test_interrupted_is_one_line_whenever_it_comes(warm: Commands, inputs: list[Any], tmp_path: Path) -> None:
    undisturbed, path = tmp_path / "undisturbed.duckdb", tmp_path / "interrupted.duckdb"
    options = SHARD | {"loaded": str(inputs[0])}
    whole = warm.run("--db", undisturbed, "ingest", *inputs, **options)
    draw = random.Random(3)
    for step in range(7 if is_full() else 4):
        # Every ingest looks first whether the catalogue has to be made: from there on it is the command that is met.
        moment = ("create", 1, draw.uniform(0, whole.seconds * (1 - step / 8)))
        name = ("SIGINT", "SIGTERM", "SIGHUP")[step % 3]
        ended = warm.run("--db", path, "ingest", *inputs, **options, kill_in=moment, with_signal=name)
        if ended.code != 0:
            assert ended.code == 130, ended.err
            assert ended.lines[-1].startswith("interrupted")
            # Neither of ours nor of a library's.
            assert "Traceback" not in ended.err and "Exception" not in ended.err, ended.err
            assert not path.exists() or rows(path, "SELECT count(*) FROM run WHERE failure IS NOT NULL") == [
                (0,)
            ]
    assert warm.run("--db", path, "ingest", *inputs, **options).code == 0
    assert digest(path) == digest(undisturbed)
    sound(path)


def test_killed_as_a_command_of_its_own(warm: Commands, inputs: list[Any], tmp_path: Path) -> None:
    undisturbed, path = tmp_path / "undisturbed.duckdb", tmp_path / "killed.duckdb"
    (tmp_path / "long.txt").write_text(tiny.TEXT * 300)
    inputs = [*inputs, "--text", tmp_path / "long.txt", "--stages", "types,states"]
    assert warm.run("--db", undisturbed, "ingest", *inputs, loaded=str(inputs[0])).code == 0
    args = [sys.executable, "-m", "signarium", "--db", str(path)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}

    def spawn(*command: Any) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        return subprocess.Popen([*args, *map(str, command)], stdout=pipe, stderr=pipe, env=env, cwd=tmp_path)

    with reader(path) as seen:
        process = spawn("ingest", *inputs)
        # As soon as something is committed: before the end, whatever this machine's speed.
        while process.poll() is None and not any(isinstance(one, tuple) and one[0] for one in list(seen)):
            time.sleep(0.005)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        count = "SELECT count(*) FROM codes"
        assert 0 < rows(path, count)[0][0] < rows(undisturbed, count)[0][0]
        again = spawn("ingest", *inputs)
        asks = 0
        while again.poll() is None and (asks := asks + 1) <= (3 if is_full() else 1):
            asked = spawn("sql", "--format", "csv", "SELECT count(*) >= 0 FROM codes")
            out, err = asked.communicate(timeout=60)
            assert (asked.returncode, err) == (0, b"") and b"true" in out.lower()
        _, err = again.communicate()
        assert again.returncode == 0, err
    check_seen(seen)
    assert digest(path) == digest(undisturbed)
    assert index_files(path) == index_files(undisturbed)
