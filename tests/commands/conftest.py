"""What the tests of the commands share: the entry point, and two catalogues that they only read."""

from __future__ import annotations

import sys
from pathlib import Path

import featured
import pytest
import twins
from made import DECODER, Made
from terminal import Ran, Run

from signarium.cli import main


@pytest.fixture
def run(
    catalogue: Made, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Run:
    """The entry point in this process, in an empty folder, with `$SIGNARIUM_DB` naming the catalogue."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIGNARIUM_DB", str(catalogue.path))

    def call(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["signarium", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capfd.readouterr()
        return Ran(int(caught.value.code or 0), out, err)

    return call


@pytest.fixture(scope="session")
def with_features(catalogue: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue with features, writers and flips. Read it, do not change it."""
    path, rows = featured.copy(catalogue, tmp_path_factory.mktemp("features"), DECODER)
    featured.add_causes(path, DECODER, rows)
    return path


@pytest.fixture(scope="session")
def rotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue of two models with rotations between them. Read it, do not change it."""
    return twins.make(tmp_path_factory.mktemp("rotated") / "c.duckdb").path
