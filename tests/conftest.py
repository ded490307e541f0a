"""One small catalogue that the tests read; who wants to change it takes a copy (`catalogue_copy`)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from digest import Commands, commands
from made import DECODER, ENCODER, SITES, Made

IN_MEMORY = Path("/dev/shm")
ROOM = 4 << 30
"""Several times what a session leaves in its folders."""


def _room() -> bool:
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return os.access(IN_MEMORY, os.W_OK) and min(free, shutil.disk_usage(IN_MEMORY).free) > ROOM
    except (OSError, ValueError):
        return False


@pytest.fixture(scope="session", autouse=True)
def in_memory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The tests' folders, in memory if there is room and nobody said where: a disk takes milliseconds for each commit."""
    with pytest.MonkeyPatch.context() as patch:
        if request.config.option.basetemp is None and "PYTEST_DEBUG_TEMPROOT" not in os.environ and _room():
            patch.setenv("PYTEST_DEBUG_TEMPROOT", str(IN_MEMORY))
        base = tmp_path_factory.getbasetemp()
    yield
    if base.is_relative_to(IN_MEMORY) and not request.session.testsfailed:
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """One warm process for all tests: each of its commands is a child of its own."""
    with commands(tmp_path_factory.mktemp("warm")) as made:
        yield made


@pytest.fixture(scope="session", autouse=True)
def without_features() -> Iterator[None]:
    """Most tests are about codes, and features take a second each time; those about them ask for the stage."""
    from signarium.ingest import run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "DEFAULT_STAGES", ("types", "states"))
        yield


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Read it, do not change it."""
    import tiny

    import signarium

    home = tmp_path_factory.mktemp("catalogue")
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
    return Made(path, texts, decoder)


@pytest.fixture
def catalogue_copy(catalogue: Made, tmp_path: Path) -> Path:
    """A copy with its indexes, to be changed."""
    copy = tmp_path / "copy.duckdb"
    shutil.copy(catalogue.path, copy)
    shutil.copytree(f"{catalogue.path}.indexes", f"{copy}.indexes")
    return copy
