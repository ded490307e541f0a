"""Every form in which records come says the same texts; nothing of JSON or CSV is read as prose."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from prose import tokenizer, written

from signarium.catalog.errors import TextError
from signarium.ingest.text.records import read_characters, read_records
from signarium.ingest.text.sources import TextFile, find_texts, identity, without_text
from signarium.ingest.text.windows import windows

TEXTS = ["The king saw the sea.", 'a "quoted", text\nof two lines', "é 日本"]
ROWS: list[dict[str, Any]] = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(rows: list[dict[str, Any]], delimiter: str) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def arrow(rows: list[dict[str, Any]], stream: bool) -> bytes:
    sink = io.BytesIO()
    data = pa.Table.from_pylist(rows)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, data.schema) as writer:
        writer.write_table(data, max_chunksize=2)
    return sink.getvalue()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


FORMS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "a.jsonl": lines,
    "a.ndjson": lines,
    "a.JSONLINES": lines,
    "lines.json": lines,
    "list.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "a.csv": lambda rows: table(rows, ","),
    "a.tsv": lambda rows: table(rows, "\t"),
    "a.parquet": parquet,
    "stream.arrow": lambda rows: arrow(rows, True),
    "file.arrow": lambda rows: arrow(rows, False),
    "a.jsonl.gz": lambda rows: gzip.compress(lines(rows)),
    "a.csv.bz2": lambda rows: bz2.compress(table(rows, ",")),
    "a.json.zst": lambda rows: zstd(json.dumps(rows).encode()),
}


def texts(file: TextFile) -> list[str]:
    records = read_records(file)
    assert records is not None
    return [text for _, text in records]


@pytest.mark.parametrize("name", FORMS)
def test_every_form_says_the_same(tmp_path: Path, name: str) -> None:
    file = written(tmp_path, FORMS[name](ROWS), name)
    assert texts(file) == TEXTS == texts(file)
    # The place of each: lines from 1, rows from 0.
    first = 1 if "json" in name.lower() and "list" not in name and "zst" not in name else 0
    assert [source for source, _ in read_records(file) or ()] == [
        f"{file.name}:{first + i}" for i in range(3)
    ]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), min_size=1, max_size=5))
def test_any_text_comes_back(tmp_path: Path, given_texts: list[str]) -> None:
    for name in ("a.csv", "a.jsonl.gz", "list.json"):
        kept = [text.replace("\r", "").replace("\0", "") for text in given_texts]
        rows = [{"text": text, "n": 1} for text in kept]
        assert texts(written(tmp_path, FORMS[name](rows), name)) == kept


@pytest.mark.parametrize("name", FORMS)
def test_another_column(tmp_path: Path, name: str) -> None:
    content = FORMS[name]([{"body": text, "id": i} for i, text in enumerate(TEXTS)])
    file = written(tmp_path, content, name)
    with pytest.raises(TextError, match=r"has no 'text' \(it has: body, id\): pass `column=NAME`"):
        texts(file)
    (named,) = find_texts([file.path], column="body")
    assert texts(named) == TEXTS
    # Another column of the same bytes is another text.
    assert identity([named]) != identity([file])


@pytest.mark.parametrize("name", [name for name in FORMS if "sv" not in name])
def test_a_null_is_left_out_and_counted_once(tmp_path: Path, name: str) -> None:
    rows = [{"text": "one"}, {"text": None}, {"text": "two"}, {"text": None}]
    file = written(tmp_path, FORMS[name](rows), name)
    assert texts(file) == ["one", "two"] == texts(file)
    assert without_text([file]) == [f"{file.name}: 2 records have no 'text' (null), left out"]


def test_prose_may_be_compressed(tmp_path: Path) -> None:
    for name, pack in (("a.txt.gz", gzip.compress), ("b.md.bz2", bz2.compress), ("c.txt.zst", zstd)):
        file = written(tmp_path, pack(b"\xef\xbb\xbfThe king.\n" * 2000), name)
        assert read_records(file) is None
        assert "".join(read_characters(file)).startswith("The king.\n")
        assert find_texts([tmp_path])[-1].path.name == name
        # The last byte gone.
        cut = written(tmp_path, file.path.read_bytes()[:-3], f"cut{name}")
        with pytest.raises(TextError, match=r"is no whole (gzip|bz2|zstd) file|changed while") as caught:
            list(read_characters(cut))
        assert "\n" not in str(caught.value)
        cut.path.unlink()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("notes", b'{"text": "a"}\n', "holds JSON, not prose"),
        ("part-0001", b'[{"text": "a"}]', "holds JSON, not prose"),
        ("notes.gzip", gzip.compress(b"a"), "is a gzip file by its first bytes"),
        ("table", parquet(ROWS), "is a Parquet file by its first bytes"),
    ],
    # The time stands in what gzip writes, and each worker would have tests of its own.
    ids=["object", "list", "gzip", "parquet"],
)
def test_records_that_are_not_named_so_are_no_prose(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextError, match=says):
        find_texts([tmp_path / name])


def test_csv_that_is_none(tmp_path: Path) -> None:
    for content, says in (
        (b"text,n\na\n", "line 2 of .* has 1 cells, and the header 2"),
        (b'text,n\n"a,1\n', "line 2 of .* is no CSV"),
        (b"text,n\n\xff,1\n", "is not UTF-8"),
        (b"text,text\na,b\n", "has no 'text'"),
    ):
        with pytest.raises(TextError, match=says):
            texts(written(tmp_path, content, "a.csv"))


def test_what_a_folder_holds_beside_text_is_said(tmp_path: Path) -> None:
    for name in ("a.txt", "b.jsonl", "c.png", "d.PNG", "e.tar.xz", "LICENSE", ".hidden"):
        (tmp_path / name).write_bytes(b'{"text": "x"}' + name.encode())
    notes: list[str] = []
    assert [file.path.name for file in find_texts([tmp_path], notes=notes)] == ["a.txt", "b.jsonl"]
    assert notes == [f"{tmp_path}: 4 files are no text and left out (2 .png, 1 .tar.xz, 1 with no ending)"]


def test_a_data_set_on_disk(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        rows = [{"text": f"{part} {text}"} for text in TEXTS]
        (tmp_path / part / "data-00000-of-00001.arrow").write_bytes(arrow(rows, True))
        for name in ("state.json", "dataset_info.json"):
            (tmp_path / part / name).write_text('{"_data_files": []}')
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    notes: list[str] = []
    found = find_texts([tmp_path], notes=notes)
    assert [text for file in found for text in texts(file)] == [
        f"{part} {text}" for part in ("test", "train") for text in TEXTS
    ]
    assert notes == []


CHAT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "The king."}]
TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_chat_is_written_by_the_models_template(tmp_path: Path, name: str) -> None:
    file = written(tmp_path, FORMS[name]([{"messages": CHAT}]), name)
    chats = tiny.tokenizer()
    with pytest.raises(TextError, match="the model has no chat template"):
        list(windows(file, chats, context=64))
    chats.chat_template = TEMPLATE
    written_out = "<user>Who?\n<assistant>The king.\n"
    bos = chats.bos_token_id
    (alone,) = windows(file, chats, context=64)
    assert alone.text == chats.bos_token + written_out
    # Every window gets BOS: the template's is not a second one.
    (window,) = windows(file, chats, context=64, prefix=[bos])
    assert window.text == written_out and window.ids.tolist().count(bos) == 1
    assert chats.decode(window.ids[1:]) == written_out


def test_a_chat_that_is_none(tmp_path: Path) -> None:
    chats = tiny.tokenizer()
    chats.chat_template = "{{ raise_exception('roles must alternate') }}"
    for messages, says in (([{"role": "user"}], "is no list of messages"), (CHAT, "roles must alternate")):
        file = written(tmp_path, lines([{"messages": messages}]), "a.jsonl")
        with pytest.raises(TextError, match=says):
            list(windows(file, chats, context=64))


def test_slow_and_fast_read_the_same(tmp_path: Path) -> None:
    file = written(tmp_path, lines(ROWS), "a.jsonl")
    assert "".join(window.text for window in windows(file, tokenizer("gpt2"), context=8)) == "".join(TEXTS)
