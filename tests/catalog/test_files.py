"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from signarium.catalog.files import replacing, sweep


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


@pytest.mark.parametrize("sync", [True, False])
def test_what_was_written_takes_the_place(tmp_path: Path, sync: bool) -> None:
    final = tmp_path / "a.json"
    final.write_text("old")
    with replacing(final, sync=sync) as temporary:
        temporary.write_text("new")
        assert final.read_text() == "old"
        assert temporary.parent == tmp_path
    assert final.read_text() == "new"
    assert names(tmp_path) == ["a.json"]


def test_nothing_is_left_of_what_fails(tmp_path: Path) -> None:
    final = tmp_path / "a.json"
    final.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(final) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(FileNotFoundError), replacing(final):
        pass
    assert final.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_a_name_that_a_later_try_finds(tmp_path: Path) -> None:
    left = tmp_path / "a.new"
    left.write_text("of a process that was killed")
    with replacing(tmp_path / "a", left) as temporary:
        assert temporary == left and not left.exists()
        left.write_text("new")
    assert names(tmp_path) == ["a"]


def test_sweeping_spares_the_living(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    kept = ["a.json", f"a.json.{os.getpid()}.0123abcd.tmp", "short.tmp", "a.json.x.0123abcd.tmp"]
    for name in (*kept, f"a.json.{child}.0123abcd.tmp"):
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert names(tmp_path) == sorted(kept)
