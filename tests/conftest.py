"""One small catalogue that the tests read; who wants to change it takes a copy (`catalogue_copy`)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import absent
import effort
import pytest
from digest import Commands, commands
from made import DECODER, ENCODER, SITES, Made, copied
from once import Once

IN_MEMORY = Path("/dev/shm")
TEMP_ROOT = "PYTEST_DEBUG_TEMPROOT"
ROOM = 4 << 30
"""Several times what a run leaves in its folders."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--full`, for `make test-full`."""
    parser.addoption("--full", action="store_true", help="every parameter, and the full number of examples")


def pytest_configure(config: pytest.Config) -> None:
    """How much is done, before a test is imported; and the folders in memory, before a worker starts."""
    effort.choose(config.getoption("full"))
    absent.expect_no_pandas()
    if _chooses_folders(config) and _room():
        os.environ[TEMP_ROOT] = str(IN_MEMORY)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what only `--full` runs; and files that take long begin first, so that both workers end together."""
    left_out = [item for item in items if item.get_closest_marker("full")]
    if left_out and not config.getoption("full"):
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("full")]
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def _chooses_folders(config: pytest.Config) -> bool:
    """A worker's folders lie where those of its controller are, and nobody else may have said where."""
    return config.option.basetemp is None and TEMP_ROOT not in os.environ


def _room() -> bool:
    """A disk takes milliseconds for each commit, and a suite makes thousands."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return os.access(IN_MEMORY, os.W_OK) and min(free, shutil.disk_usage(IN_MEMORY).free) > ROOM
    except (OSError, ValueError):
        return False


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Once:
    """Folders that are made once in this run, by whichever worker needs them first."""
    base = tmp_path_factory.getbasetemp()
    # A worker of xdist has its folder inside that of the run.
    return Once((base.parent if hasattr(request.config, "workerinput") else base) / "once")


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """One warm process for all tests: each of its commands is a child of its own."""
    with commands(tmp_path_factory.mktemp("warm")) as made:
        yield made


@pytest.fixture(scope="session", autouse=True)
def without_features() -> Iterator[None]:
    """Most tests are about codes, and features take a second each time; those about them ask for the stage."""
    from signarium.ingest import stages

    with pytest.MonkeyPatch.context() as patch:
        fewer = [replace(one, usual=one.name in ("types", "states")) for one in stages.LISTED]
        patch.setattr(stages, "LISTED", fewer)
        yield


@pytest.fixture(scope="session", autouse=True)
def empty_catalogues(once: Once) -> Iterator[None]:
    """A new catalogue is a copy of an empty one, which the migrations made once in this run."""
    from signarium.catalog import surface
    from signarium.migrations import manage

    migrate = manage.migrate
    empty = once.folder("empty", lambda home: migrate(home / "empty.duckdb")) / "empty.duckdb"
    views = surface.fingerprint()

    def copy_or_migrate(path: Path, *args: Any, **options: Any) -> None:
        # A test that registers a part of its own, or names a revision, has its catalogue made.
        if args or options or path.exists() or surface.fingerprint() != views:
            migrate(path, *args, **options)
        else:
            shutil.copy(empty, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manage, "migrate", copy_or_migrate)
        yield


def _make_catalogue(home: Path) -> None:
    import tiny

    import signarium

    texts = (home / "first.txt", home / "second.txt")
    # The end of the second has characters of several bytes, whose tokens are pieces of them.
    texts[0].write_text(topics["assert"] + topics["if"], encoding="utf-8")
    texts[1].write_text(topics["pass"] + "\nnaïve 日本\n", encoding="utf-8")
    decoder, encoder = tiny.folder(home, "gpt2"), tiny.folder(home, "bert", seed=1)
    path = home / "catalogue.duckdb"
    signarium.ingest(path, str(decoder), name=DECODER, sites=SITES, text=[texts[0]], context=64, bos=True)
    signarium.ingest(
        path, str(decoder), name=DECODER, sites=SITES, text=[texts[1]], context=64, stages=["states"]
    )
    signarium.ingest(path, str(encoder), name=ENCODER, sites="resid_post.1", text=[texts[1]], context=64)


@pytest.fixture(scope="session")
def catalogue(once: Once, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Read it, do not change it."""
    home = once.folder("catalogue", _make_catalogue)
    # Each worker reads a file of its own: a reader and a test that waits for the file do not meet.
    path = copied(home / "catalogue.duckdb", tmp_path_factory.mktemp("catalogue") / "catalogue.duckdb")
    return Made(path, (home / "first.txt", home / "second.txt"), home / "gpt2-0")


@pytest.fixture
def catalogue_copy(catalogue: Made, tmp_path: Path) -> Path:
    """A copy with its indexes, to be changed."""
    return copied(catalogue.path, tmp_path / "copy.duckdb")
