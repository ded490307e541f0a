from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prose import tokenizer, whole, written

from signarium.catalog.errors import InvalidInput, TextError
from signarium.ingest.text import sources
from signarium.ingest.text.sources import find_texts
from signarium.ingest.text.windows import Window, windows

# ---- finding ------------------------------------------------------------------------------------


def test_a_folder(tmp_path: Path) -> None:
    for name in (
        "b.txt",
        "a/z.md",
        "a.rst",
        "B.TXT",
        ".hidden.txt",
        ".git/x.txt",
        "x.py",
        "x",
        "copy/b.txt",
        "e.txt",
    ):
        path = tmp_path / "t" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("same" if name.endswith("b.txt") else "" if name == "e.txt" else name)
    found = find_texts([f"{tmp_path}/t/"])
    # copy/b.txt comes after b.txt and has its content; the empty one has nothing to give.
    assert [file.name for file in found] == [
        f"{tmp_path}/t/{name}" for name in ("B.TXT", "a.rst", "a/z.md", "b.txt")
    ]
    assert found[0].size == 5
    assert found[3].sha256 == "0967115f2813a3541eaef77de9d9d5773f1c0c04314b0bbfe4ff3b3b1c55b5d5"


def test_order_is_as_given_and_the_first_of_equals_stays(tmp_path: Path) -> None:
    for name, content in (("z.bin", "z"), ("a.txt", "a"), ("b.txt", "z")):
        (tmp_path / name).write_text(content)
    found = find_texts([tmp_path / "z.bin", str(tmp_path), tmp_path / "z.bin"])
    assert [file.name for file in found] == [f"{tmp_path}/z.bin", f"{tmp_path}/a.txt"]


def test_no_paths() -> None:
    with pytest.raises(InvalidInput, match="no text was named: pass `text=PATH`"):
        find_texts([])


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"no file or folder .*nowhere"):
        find_texts([tmp_path / "nowhere.txt"])
    (tmp_path / "f").write_text("a")
    with pytest.raises(TextError, match="no file or folder"):
        find_texts([tmp_path / "f" / "g"])


def test_a_folder_without_text(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("x")
    with pytest.raises(TextError, match=r"holds no text: .*\.txt.*\.parquet"):
        find_texts([tmp_path])
    (tmp_path / "x.txt").touch()
    with pytest.raises(TextError, match="only empty files"):
        find_texts([tmp_path])


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "x.txt").touch()
    with pytest.raises(TextError, match="is empty"):
        find_texts([tmp_path / "x.txt"])


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.txt")
    for path in (tmp_path / "p.txt", tmp_path, "/dev/null"):
        with pytest.raises(TextError, match="not a regular file"):
            find_texts([path])


def test_a_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "l.txt").symlink_to(tmp_path / "gone")
    with pytest.raises(TextError, match=r"l\.txt"):
        find_texts([tmp_path / "l.txt"])
    (tmp_path / "a.txt").write_text("a")
    notes: list[str] = []
    assert [file.path.name for file in find_texts([tmp_path], notes=notes)] == ["a.txt"]
    assert notes == [f"{tmp_path}: 1 link leads nowhere, left out"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    (tmp_path / "x.txt").write_text("a")

    def refuse(self: Path, mode: str = "r") -> Any:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(TextError, match=rf"x\.txt cannot be read \({os.strerror(number)}\)"):
        find_texts([tmp_path])


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_permissions(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir(mode=0)
    with pytest.raises(TextError, match="cannot be read"):
        find_texts([tmp_path])


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")
    Path(path).write_text("a")
    (file,) = find_texts([path])
    assert file.name == f"{tmp_path}/\ufffd.txt"
    assert [w.text for w in windows(file, tokenizer("gpt2"), context=8)] == ["a"]


# ---- records ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", "is not JSON"),
        (b'{"text": NaN', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'["text"]', "is not a JSON object"),
        (b'{"body": "x"}', r"has no 'text' \(it has: body\): pass `column=NAME`"),
        (b'{"text": 3}', "is a number, not a string"),
        (b'{"text": "\\ud800"}', "half of a surrogate pair"),
        (b'{"text": "a\xff"}', r"not UTF-8 text \(byte 27\)"),
    ],
)
def test_bad_records_name_file_and_line(tmp_path: Path, line: bytes, says: str) -> None:
    file = written(tmp_path, b'{"text": "a"}\n \n' + line + b"\n", "b.jsonl")
    with pytest.raises(TextError, match=says) as caught:
        list(windows(file, tokenizer("gpt2"), context=8))
    assert "b.jsonl:3" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet(tmp_path: Path, kind: pa.DataType) -> None:
    texts = ["one two", None, "", "é three", *(f"row {i}" for i in range(3000))]
    table = pa.table({"n": list(range(len(texts))), "text": pa.array(texts, pa.string()).cast(kind)})
    path = tmp_path / "c.parquet"
    pq.write_table(table, path, row_group_size=700)
    (file,) = find_texts([path])
    found = list(windows(file, tokenizer("gpt2"), context=64))
    assert [(w.source, w.text) for w in found] == [
        (f"{path}:{i}", each) for i, each in enumerate(texts) if each
    ]
    assert all(w.ids.tolist() == whole("gpt2", w.text).ids for w in found[:20])


def test_parquet_without_a_text_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), tmp_path / "c.parquet")
    with pytest.raises(TextError, match=r"has no 'text' \(it has: body, n\): pass `column=NAME`"):
        list(windows(find_texts([tmp_path])[0], tokenizer("gpt2"), context=8))


def test_parquet_with_another_type(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "c.parquet")
    with pytest.raises(TextError, match="holds int64"):
        list(windows(find_texts([tmp_path])[0], tokenizer("gpt2"), context=8))


def test_parquet_with_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    bad = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"\xff"))
    pq.write_table(pa.table({"text": bad}), tmp_path / "c.parquet")
    with pytest.raises(TextError, match="UTF-8"):
        list(windows(find_texts([tmp_path])[0], tokenizer("gpt2"), context=8))


def test_not_parquet(tmp_path: Path) -> None:
    file = written(tmp_path, b"PAR1 this is none", "c.parquet")
    with pytest.raises(TextError, match="no readable Parquet file") as caught:
        list(windows(file, tokenizer("gpt2"), context=8))
    assert "\n" not in str(caught.value)


# ---- bad files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"ab\xff", r"not UTF-8 text \(byte 2\)"),
        (b"x" * (1 << 18) + b"\xe9t\xe9", r"byte 262144\)"),
        (b"x" * ((1 << 18) - 1) + b"\xe6\x97x", r"byte 262143\)"),  # a character cut off where a piece ends
        (b"ab\xe6\x97", r"byte 2\)"),
        ("text".encode("utf-16"), r"byte 0\)"),
        (b"ab\0c", r"binary file \(NUL at byte 2\)"),
        (b"x" * (1 << 18) + b"\0", r"NUL at byte 262144\)"),
    ],
)
def test_what_is_no_text(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(TextError, match=says):
        list(windows(written(tmp_path, content), tokenizer("gpt2"), context=8))


def test_a_character_across_two_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_READ", 1)
    file = written(tmp_path, "a\u0301👩日")
    assert "".join(w.text for w in windows(file, tokenizer("gpt2"), context=3)) == "a\u0301👩日"


# What may happen to a file between finding and reading it.
def grown(path: Path) -> None:
    path.write_bytes(path.read_bytes() * 2)


def other(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"a", b"b"))


@pytest.mark.parametrize("change", [grown, other])
@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.parquet"])
def test_a_file_that_changed(tmp_path: Path, name: str, change: Callable[[Path], None]) -> None:
    content = b'{"text": "a"}\n'
    file = written(tmp_path, content, name)
    if name == "x.parquet":
        pq.write_table(pa.table({"text": ["a"]}), file.path)
        (file,) = find_texts([file.path])
    assert [w.text for w in windows(file, tokenizer("gpt2"), context=99)] == [
        content.decode() if name == "x.txt" else "a"
    ]
    change(file.path)
    with pytest.raises(TextError, match="changed while it was read"):
        list(windows(file, tokenizer("gpt2"), context=99))


def test_a_file_that_went(tmp_path: Path) -> None:
    file = written(tmp_path, "a")
    file.path.unlink()
    with pytest.raises(TextError, match=r"a\.txt"):
        list(windows(file, tokenizer("gpt2"), context=99))


def test_a_parquet_that_is_touched_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(5000)]}), path, row_group_size=1000)
    (file,) = find_texts([path])
    reading: Iterator[Window] = windows(file, tokenizer("gpt2"), context=99)
    next(reading)
    os.utime(path, ns=(1, 1))
    with pytest.raises(TextError, match="changed while it was read"):
        list(reading)
