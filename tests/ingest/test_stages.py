"""The list of stages, and a stage that is registered from outside: planned, sized, run and resumed by its line alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from digest import digest, rows, sound
from toystage import ROW_BYTES, ToyStage

import signarium
from signarium.catalog.errors import InvalidInput
from signarium.ingest import stages
from signarium.ingest.request import IngestRequest

SITES = "embed;resid_post.0,1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("toy"), "llama")


@pytest.fixture
def toy() -> Iterator[None]:
    with stages.registered(ToyStage):
        yield


def ingest(path: Path, folder: Path, wanted: str, **options: object) -> object:
    return signarium.ingest(path, folder, sites=SITES, stages=wanted, device="cpu", **options)  # type: ignore[arg-type]


def shares(path: Path) -> list[tuple[object, ...]]:
    return rows(path, "SELECT site, value, n FROM measurements WHERE metric = 'toy_share' ORDER BY site")


@pytest.mark.usefixtures("toy")
def test_a_stage_from_outside_is_planned_sized_and_run(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.duckdb"
    plain = signarium.ingest(path, folder, sites=SITES, stages="types", device="cpu", dry_run=True)
    both = signarium.ingest(path, folder, sites=SITES, stages="types,toy", device="cpu", dry_run=True)
    assert both.estimate.catalogue_bytes - plain.estimate.catalogue_bytes == 3 * ROW_BYTES
    assert [name for name, _ in both.estimate.stages] == ["types", "toy"]
    done = signarium.ingest(path, folder, sites=SITES, stages="toy,types", device="cpu")
    # It saw the passes of the stage before it, every type once.
    assert done.notes == [
        f"{site}: {tiny.VOCAB_SIZE} types seen" for site in ("embed", "resid_post.0", "resid_post.1")
    ]
    assert [(site, n) for site, _, n in shares(path)] == [
        (site, 48) for site in ("embed", "resid_post.0", "resid_post.1")
    ]
    assert rows(path, "SELECT job, status FROM runs ORDER BY job") == [("toy", "done"), ("types", "done")]
    sound(path)
    before = digest(path)
    again = signarium.ingest(path, folder, sites=SITES, stages="toy", device="cpu")
    assert again.already and again.estimate.stored_bytes == 0 and again.runs == done.runs[1:]
    assert digest(path) == before


@pytest.mark.usefixtures("toy")
def test_a_stage_from_outside_is_resumed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, path = tmp_path / "whole.duckdb", tmp_path / "c.duckdb"
    ingest(whole, folder, "types,toy")
    monkeypatch.setattr(ToyStage, "fails_at", 2)
    with pytest.raises(KeyboardInterrupt):
        ingest(path, folder, "types,toy")
    assert len(shares(path)) == 2
    monkeypatch.setattr(ToyStage, "fails_at", None)
    report = signarium.ingest(path, folder, sites=SITES, stages="toy", device="cpu")
    assert report.estimate.catalogue_bytes == ROW_BYTES and not report.already
    assert shares(path) == shares(whole) and digest(path) == digest(whole)


def test_what_is_registered_is_gone_afterwards_and_no_default() -> None:
    before = stages.names()
    with stages.registered(ToyStage):
        assert stages.names() == (*before, "toy")
        assert "toy" not in [one.name for one in stages.choose(None, ["text"])]
        with pytest.raises(ValueError, match="there is a stage 'toy' already"):
            stages.register(ToyStage)
    assert stages.names() == before
    orphan = type("Orphan", (ToyStage,), {"name": "orphan", "needs": ("nothing",)})
    with pytest.raises(ValueError, match="orphan needs nothing"):
        stages.register(orphan)


def test_the_list_is_read_without_torch() -> None:
    script = (
        "import sys; from signarium.ingest import stages; print(*stages.names(), *[m for m in ('torch', 'numpy', 'duckdb') "
        "if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown == "types states features neurons writers\n"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stages": "types,dreams"}, "no stage 'dreams': there is types, states, features, neurons, writers"),
        ({"stages": []}, "no stage was given"),
        ({"stages": "states"}, "the stage states needs a text: pass `text=PATH`"),
        ({"stages": "types", "text": "a.txt"}, "`text` belongs to the stage states"),
        ({"stages": "neurons", "bos": True}, "`bos` belongs to the stage types"),
        (
            {"stages": "types", "seeds": 3, "categories": "a.csv"},
            "`categories` and `seeds` belong to the stage features",
        ),
        ({"stages": "features", "seeds": 0}, "`seeds=0` is too small: it must be 1 or more"),
        ({"context": 0}, "`context=0` is too small: it must be 1 or more"),
        ({"device": "cpu", "devices": "cpu"}, "`device` and `devices` exclude each other"),
    ],
)
def test_a_request_is_checked_when_it_is_made(options: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidInput) as error:
        IngestRequest("model", **options)  # type: ignore[arg-type]
    assert says in str(error.value)


def test_all_stages_are_those_that_have_what_they_read() -> None:
    every = [entry.name for entry in stages.choose(["all"], ["text"])]
    assert every == list(stages.names())
    assert [entry.name for entry in stages.choose(["all"], [])] == [
        name for name in every if name != "states"
    ]
    with pytest.raises(InvalidInput, match="no stage 'all'"):
        stages.choose(["all", "types"], [])


def test_a_first_look_is_what_runs_where_no_stage_is_named() -> None:
    # In a process of its own: this one's tests run fewer.
    code = "from signarium.ingest.stages import choose; print([e.name for e in choose(None, ['text'])])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['types', 'states', 'features']"
