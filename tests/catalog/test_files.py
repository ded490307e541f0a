"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from signarium.catalog import files
from signarium.catalog.errors import InvalidInput
from signarium.catalog.files import make_scratch, remove_folder, replacing, sweep


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


@pytest.mark.parametrize("kind", ["a link", "a pipe", "a folder"])
def test_only_a_file_is_replaced(tmp_path: Path, kind: str) -> None:
    final, other = tmp_path / "a", tmp_path / "other"
    other.write_text("theirs")
    make = {
        "a link": lambda: final.symlink_to(other),
        "a pipe": lambda: os.mkfifo(final),
        "a folder": final.mkdir,
    }
    make[kind]()
    with pytest.raises(OSError, match=f"it is {kind}"), replacing(final) as made:
        made.write_text("new")
    assert names(tmp_path) == ["a", "other"] and other.read_text() == "theirs"


def test_sweeping_spares_the_living(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    alive = files.temporary(tmp_path / "a.json").name
    dead = alive.replace(f".{os.getpid()}.", f".{child}.")
    machine = dead.split(".")[-2]
    elsewhere = dead.replace(machine, f"{int(machine, 16) ^ 0xFFFF0000:08x}")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / dead).touch()
    kept = ["a.json", alive, elsewhere, "short.tmp", dead.replace(str(child), "x"), f"{dead}.txt", f"b{dead}"]
    for name in (*kept, dead, f"{dead}.wal"):
        (tmp_path / name).touch()
    # A link of such a name is somebody's, and so is what it leads to.
    linked = dead.replace("a.json", "a.link")
    (tmp_path / linked).symlink_to(theirs)
    folder = tmp_path / dead.replace("a.json", "a.folder")
    folder.mkdir()
    (folder / "part").touch()
    sweep(tmp_path, "a.")
    assert names(tmp_path) == sorted([*kept, linked, "theirs"])
    assert names(theirs) == [dead]


def test_what_a_killed_process_left_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for final in ("o.csv", "other.csv"):
        alive = files.temporary(tmp_path / final)
        alive.with_name(alive.name.replace(f".{os.getpid()}.", f".{child}.")).touch()
    left = files.temporary(tmp_path / "signarium")
    left = left.with_name(left.name.replace(f".{os.getpid()}.", f".{child}."))
    left.mkdir()
    (left / "spilled").touch()
    with replacing(tmp_path / "o.csv") as made:
        made.touch()
    with files.scratch_folder() as folder:
        assert not left.exists() and list(folder.iterdir()) == []
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "spilled").touch()
    assert [one.split(".")[0] for one in names(tmp_path)] == ["o", "other"]


def test_scratch_is_ours_alone(tmp_path: Path) -> None:
    """Its files are written over where they lie, so none may be another's."""
    theirs, scratch = tmp_path / "theirs", tmp_path / "scratch"
    theirs.mkdir()
    (theirs / "a").write_text("theirs")
    scratch.symlink_to(theirs)
    with pytest.raises(InvalidInput, match="scratch is a link where a folder should be"):
        make_scratch(scratch)
    remove_folder(scratch)
    assert names(theirs) == ["a"]
    scratch.unlink()
    make_scratch(scratch)
    for link in (os.symlink, os.link):
        link(theirs / "a", scratch / "a")
        with pytest.raises(InvalidInput, match="is not a file that signarium made"):
            make_scratch(scratch)
        remove_folder(scratch)
        assert names(tmp_path) == ["theirs"] and names(theirs) == ["a"]
        make_scratch(scratch)
