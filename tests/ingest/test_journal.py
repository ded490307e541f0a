from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from digest import rows
from sqlalchemy.orm import Session

from signarium.catalog import schema
from signarium.catalog.errors import DiskFull
from signarium.ingest.journal import Journal, RunSpec, SetSpec, Shard, now, versions
from signarium.ingest.model.sites import Site
from signarium.migrations import manage

SPEC = RunSpec(
    "r1",
    "states",
    {"context": 8},
    (
        SetSpec(11, Site("embed"), "m/embed", "state", "zero", 48),
        SetSpec(12, Site("embed"), "m/embed", "state", "mean", 48),
        SetSpec(13, Site("k", 1), "m/k.1", "state", "zero", 24),
    ),
    (5 << 32, 3 << 32),
)


def model() -> schema.Model:
    text = dict.fromkeys(("source", "architecture", "weights_sha256", "tokenizer_sha256"), "x")
    numbers = dict.fromkeys(("width", "n_layers", "d_ffn", "vocab_size"), 1)
    return schema.Model(model_id="m", name="m", dtype="float32", added_at=now(), **text, **numbers)


def texts() -> list[schema.TextFile]:
    return [
        schema.TextFile(
            text_id=one, name=str(one), sha256="x", size=1, kind="text",
            tokenizer_sha256="x", context=8, added_at=now(),
        )
        for one in SPEC.texts
    ]  # fmt: skip


def shard(start: int, n: int, write: Any = lambda _: None) -> Shard:
    return Shard(start, n, 10 * n, 1.0, 0.5, 2.0, write)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    manage.ensure(tmp_path / "c.duckdb")
    return tmp_path / "c.duckdb"


def test_a_spec_knows_its_sites() -> None:
    assert SPEC.sites == [Site("embed"), Site("k", 1)]
    assert {k: v.code_set_id for k, v in SPEC.of(Site("embed")).items()} == {"zero": 11, "mean": 12}
    assert set(SPEC.of(Site("k", 1))) == {"zero"}


def test_a_run_from_beginning_to_end(path: Path) -> None:
    journal = Journal(path, SPEC)
    assert journal.begin(model(), "cpu", texts()) == 0
    status = "SELECT status, tokens, finished_at IS NULL FROM runs"
    assert rows(path, status) == [("running", 0, True)]
    assert rows(path, "SELECT place, text_id FROM run_text ORDER BY place") == [(0, 5 << 32), (1, 3 << 32)]
    with journal:
        journal.submit(shard(0, 4))
        journal.submit(shard(4, 3))
    assert rows(path, status) == [("running", 70, True)]
    # Begun again: goes on after the last shard, and nothing is recorded twice.
    again = Journal(path, SPEC)
    assert again.begin(model(), "cpu", texts()) == 7
    with again:
        again.submit(shard(7, 1))
    again.finish(False)
    assert rows(path, status) == [("done", 80, False)]
    assert rows(path, "SELECT complete FROM run") == [(False,)]
    assert rows(path, "SELECT forward_s, pack_s, tokens_per_s FROM runs") == [(3.0, 1.5, 80 / 6)]
    counts = "SELECT (SELECT count(*) FROM {}), (SELECT count(*) FROM {}), (SELECT count(*) FROM {})"
    assert rows(path, counts.format("site", "code_set", "run_text")) == [(2, 3, 2)]
    # A finished run that is gone on with is running until it ends.
    assert Journal(path, SPEC).begin(model(), "cpu", texts()) == 8
    assert rows(path, status) == [("running", 80, True)]


def test_failed_and_then_resumed(path: Path) -> None:
    journal = Journal(path, SPEC)
    journal.begin(model(), "cpu", texts())
    journal.fail("the sky fell")
    assert rows(path, "SELECT status, failure FROM runs JOIN run USING (run_id)") == [
        ("failed", "the sky fell")
    ]
    journal.begin(model(), "cpu", texts())
    assert rows(path, "SELECT status FROM runs") == [("running",)]
    journal.finish(True)
    assert rows(path, "SELECT status FROM runs") == [("done",)]


def test_a_run_that_never_began_cannot_be_recorded_as_failed(path: Path) -> None:
    Journal(path, SPEC).fail("before it began")
    assert rows(path, "SELECT count(*) FROM runs") == [(0,)]


def test_an_error_of_the_thread_reaches_the_caller_and_stops_the_rest(path: Path) -> None:
    journal = Journal(path, SPEC)
    journal.begin(model(), "cpu", texts())
    written: list[int] = []

    def breaks(session: Session) -> None:
        session.add(schema.IndexPart(code_set_id=1, n=1, built_at=now()))
        session.flush()
        raise DiskFull(path, during=True)

    with pytest.raises(DiskFull), journal:
        journal.submit(shard(0, 1, lambda _: written.append(0)))
        journal.submit(shard(1, 1, breaks))
        for i in range(2, 50):
            journal.submit(shard(i, 1, lambda _, i=i: written.append(i)))
    # The first is kept, the second is rolled back whole, none is written after a gap.
    assert written == [0]
    assert rows(path, "SELECT start FROM shard") == [(0,)]
    assert rows(path, "SELECT count(*) FROM index_part") == [(0,)]
    assert not journal._thread.is_alive()


def test_an_error_at_the_last_shard_is_raised_at_the_end(path: Path) -> None:
    journal = Journal(path, SPEC)
    journal.begin(model(), "cpu", texts())

    def breaks(_: Session) -> None:
        time.sleep(0.2)
        raise DiskFull(path, during=True)

    with pytest.raises(DiskFull), journal:
        journal.submit(shard(0, 1, breaks))


def test_an_error_of_the_caller_keeps_what_was_submitted(path: Path) -> None:
    journal = Journal(path, SPEC)
    journal.begin(model(), "cpu", texts())
    with pytest.raises(ZeroDivisionError), journal:
        journal.submit(shard(0, 1, lambda _: time.sleep(0.1)))
        raise ZeroDivisionError
    assert rows(path, "SELECT start FROM shard") == [(0,)]
    assert not journal._thread.is_alive()


def test_the_caller_waits_when_writing_is_slower(path: Path) -> None:
    # At most one shard waits while another is written: memory is that of three.
    journal = Journal(path, SPEC)
    journal.begin(model(), "cpu", texts())
    go, submitted = threading.Event(), list[int]()

    def submit() -> None:
        with journal:
            for i in range(6):
                journal.submit(shard(i, 1, lambda _: go.wait(20)))
                submitted.append(i)

    thread = threading.Thread(target=submit)
    thread.start()
    time.sleep(0.5)
    assert submitted == [0, 1]
    go.set()
    thread.join(30)
    assert rows(path, "SELECT count(*) FROM shard") == [(6,)]


def test_versions_name_what_decides() -> None:
    import json

    found = json.loads(versions())
    assert set(found) >= {"signarium", "torch", "transformers", "tokenizers", "duckdb"}
    assert "unknown" not in found.values()
