from __future__ import annotations

import errno
import json
import os
import pydoc_data.topics
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from signarium.catalog.errors import InvalidInput, TextError
from signarium.ingest import text as module
from signarium.ingest.text import Counts, TextFile, Window, count, find_texts, take, windows

MODELS = Path(__file__).parents[2] / "models"
PROSE = "\n".join(pydoc_data.topics.topics.values())
HARD = "日本語の文章👩‍👩‍👧 é e\u0301\u0323 \u200d ñandú Ωμέγα\r\n\t x\u00a0y \u0130 1234567 [SEP] <s> "


class Wrapped:
    """What the module uses of a transformers fast tokenizer."""

    def __init__(self, backend: Tokenizer) -> None:
        self.backend_tokenizer = backend


@cache
def tokenizer(kind: str) -> Any:
    """Small tokenizers of different nature, trained here, and the two real ones."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    corpus = [PROSE[:150_000], HARD * 20]
    if kind == "gpt2":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer: Any = trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, show_progress=False)
    elif kind == "llama":  # no pre-tokenizer: the whole text is one word, with a space put before it
        made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        trainer = trainers.BpeTrainer(
            vocab_size=1500,
            special_tokens=["<unk>", "<s>", *(f"<0x{i:02X}>" for i in range(256))],
            show_progress=False,
        )
        made.train_from_iterator(corpus, trainer)
        made.pre_tokenizer = None
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Metaspace()
        return Wrapped(made)
    elif kind == "bert":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
        made.normalizer = normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(
            vocab_size=1500, special_tokens=["[UNK]", "[SEP]"], show_progress=False
        )
    elif kind == "smollm2":
        transformers = pytest.importorskip("transformers")
        return transformers.AutoTokenizer.from_pretrained(MODELS, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    else:
        transformers = pytest.importorskip("transformers")
        return transformers.AutoTokenizer.from_pretrained(MODELS / "all-minilm-l6-v2")
    made.train_from_iterator(corpus, trainer)
    return Wrapped(made)


@cache
def plain(kind: str) -> Tokenizer:
    backend = Tokenizer.from_str(tokenizer(kind).backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return backend


def whole(kind: str, text: str) -> Any:
    """One call over all of it, with nothing cut off or filled up."""
    return plain(kind).encode(text, add_special_tokens=False)


def written(folder: Path, text: str | bytes, name: str = "a.txt") -> TextFile:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    (file,) = find_texts([path])
    return file


def joined(found: list[Window]) -> list[int]:
    return [int(i) for window in found for i in window.ids]


KINDS = ["gpt2", "llama", "bert"]
REAL = [pytest.param(kind, marks=pytest.mark.real) for kind in ("smollm2", "minilm")]


# ---- splicing -----------------------------------------------------------------------------------


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 700)
    monkeypatch.setattr(module, "_OVERLAP", 256)
    monkeypatch.setattr(module, "_AT_ONCE", 3)


def parts(kind: str, text: str, piece: int = 100) -> tuple[list[Any], list[tuple[int, int]]]:
    """The parts of a text and, per token, (place in the whole text, id)."""
    backend = module._backend(tokenizer(kind))
    assert backend is not None
    pieces = (text[i : i + piece] for i in range(0, len(text), piece))
    found = list(module._parts(pieces, lambda t: backend.encode_batch(t, add_special_tokens=False), "x"))
    tokens, at = [], 0
    for part in found:
        tokens += [(at + part.start(i), each) for i, each in enumerate(part.ids)]
        at += len(part.text)
    return found, tokens


def assert_as_whole(kind: str, text: str) -> int:
    found, tokens = parts(kind, text)
    expected = whole(kind, text)
    assert "".join(part.text for part in found) == text
    assert tokens == [(begin, each) for (begin, _), each in zip(expected.offsets, expected.ids, strict=True)]
    return len(found)


fragments = st.one_of(
    st.sampled_from([PROSE[k : k + 600] for k in range(0, 60_000, 2_500)]),
    st.tuples(
        st.sampled_from(
            ["a", "ab", " ", "\n", "\r\n", "\t ", "日本", "👩‍👩‍👧", "e\u0301", "\u0301", "0", "12 ", "-",
             "a\x00", "x" * 99 + " ", "[SEP]", "<s>", HARD, "The quick brown fox ", "=== ", "ﬁ\u00ad"]
        ),
        st.integers(1, 900),
    ).map(lambda pair: (pair[0] * pair[1])[:1800]),
    st.text(max_size=300),
)  # fmt: skip


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", [*KINDS, *REAL])
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(fragments, min_size=1, max_size=10).map("".join))
@example("")
@example(" " * 5000)
@example("a" * 5000)
@example("ab" * 1500 + " x " + "ba" * 1500)
@example("本" * 3000)
@example(PROSE[:700])
@example(PROSE[:701])
@example("e" + "\u0301" * 4000 + " x")
def test_blocks_give_the_tokens_of_one_call(kind: str, text: str) -> None:
    assert_as_whole(kind, text)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", [*KINDS, *REAL])
@pytest.mark.parametrize(
    "text",
    [PROSE[100_000:130_000], PROSE[:30_000].replace("\n", "\r\n"), HARD * 250],
    ids=["prose", "crlf", "mixed"],
)
def test_blocks_are_used_and_not_only_merged(kind: str, text: str) -> None:
    # 700 characters a block: some merge, most must not, or a long file would end up in one call.
    assert assert_as_whole(kind, text) >= len(text) / 700 / 2


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_the_real_size(kind: str) -> None:
    text = PROSE[:150_000] + "x" * 70_000 + PROSE[150_000:200_000]
    assert assert_as_whole(kind, text) >= 2


def test_a_splice_in_the_wrong_place_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    # The checks above must fail for blocks that are joined without looking.
    monkeypatch.setattr(module, "_BLOCK", 701)
    monkeypatch.setattr(module, "_OVERLAP", 256)

    def blind(left: Any, first: int, right: Any) -> tuple[int, int]:
        j = next(j for j, (begin, _) in enumerate(right.offsets) if right.start + begin >= left.end)
        return len(left.ids), j

    monkeypatch.setattr(module, "_splice", blind)
    with pytest.raises(AssertionError):
        assert_as_whole("gpt2", PROSE[:20_000])


# ---- windows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, *REAL])
@pytest.mark.parametrize("context", [4, 7, 256])
def test_windows_cut_the_whole(kind: str, context: int, tmp_path: Path) -> None:
    text = "\r\n " + HARD + PROSE[:3000].replace("\n", "\r\n") + HARD + " \n"
    file = written(tmp_path, text)
    found = list(windows(file, tokenizer(kind), context=context, prefix=[900, 901], suffix=[902]))
    expected = whole(kind, text).ids
    room = context - 3
    assert [w.ids.tolist() for w in found] == [
        [900, 901, *expected[i : i + room], 902] for i in range(0, len(expected), room)
    ]
    assert [w.chunk for w in found] == list(range(len(found)))
    assert {w.source for w in found} == {file.name}
    assert all(w.ids.dtype == np.int32 for w in found)
    assert "".join(w.text for w in found) == text


def test_a_windows_text_starts_with_its_first_token(tmp_path: Path) -> None:
    text = PROSE[:4000]
    expected = whole("gpt2", text)
    found = list(windows(written(tmp_path, text), tokenizer("gpt2"), context=10))
    starts = [0, *(begin for begin, _ in expected.offsets[10::10]), len(text)]
    assert [w.text for w in found] == [text[a:b] for a, b in pairwise(starts)]


@pytest.mark.usefixtures("small_blocks")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.lists(fragments, min_size=1, max_size=6).map(lambda each: "".join(each).replace("\0", "")),
    context=st.integers(1, 80),
    start=st.integers(0, 60),
)
def test_windows_of_blocks(tmp_path: Path, text: str, context: int, start: int) -> None:
    text = text.removeprefix("\ufeff") or "a"
    file = written(tmp_path, text)
    found = list(windows(file, tokenizer("gpt2"), context=context))
    ids = whole("gpt2", text).ids
    assert [w.ids.tolist() for w in found] == [ids[i : i + context] for i in range(0, len(ids), context)]
    assert "".join(w.text for w in found) == text
    rest = list(windows(file, tokenizer("gpt2"), context=context, start_window=start))
    assert [(w.chunk, w.text, w.ids.tolist()) for w in rest] == [
        (w.chunk, w.text, w.ids.tolist()) for w in found[start:]
    ]


def test_a_character_of_several_tokens_across_windows(tmp_path: Path) -> None:
    # Four bytes without a merge are four tokens over one character: it belongs to the window after.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found = list(windows(written(tmp_path, "ab👩c"), backend, context=3))
    assert [(len(w.ids), w.text) for w in found] == [(3, "ab"), (3, "👩"), (1, "c")]


def test_special_tokens_in_the_text_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    backend = Tokenizer.from_str(tokenizer("gpt2").backend_tokenizer.to_str())
    backend.add_special_tokens([AddedToken("<end>", special=True)])
    wrapped = Wrapped(backend)
    (window,) = windows(written(tmp_path, "a<end>b"), wrapped, context=9)
    assert window.ids.tolist() == [backend.token_to_id(token) for token in ("a", "<end>", "b")]


def test_truncation_and_padding_are_off_and_stay_as_they_were(tmp_path: Path) -> None:
    backend = Tokenizer.from_str(tokenizer("gpt2").backend_tokenizer.to_str())
    backend.enable_truncation(max_length=8)
    backend.enable_padding(length=8)
    file = written(tmp_path, PROSE[:2000])
    (window,) = windows(file, Wrapped(backend), context=10_000)
    assert window.ids.tolist() == whole("gpt2", PROSE[:2000]).ids
    assert backend.truncation is not None
    assert backend.truncation["max_length"] == 8
    assert backend.padding is not None


def test_a_token_added_later_is_seen(tmp_path: Path) -> None:
    wrapped = Wrapped(Tokenizer.from_str(tokenizer("gpt2").backend_tokenizer.to_str()))
    file = written(tmp_path, "a zyzzyva b")
    before = joined(list(windows(file, wrapped, context=50)))
    wrapped.backend_tokenizer.add_tokens(["zyzzyva"])
    after = joined(list(windows(file, wrapped, context=50)))
    assert len(after) < len(before)


def test_a_slow_tokenizer_gives_decoded_texts(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    slow = transformers.ByT5Tokenizer()
    file = written(tmp_path, "héllo wörld")
    found = list(windows(file, slow, context=6, suffix=[1]))
    # ByT5: byte + 3; 13 bytes in windows of 5.
    assert joined([*found]) == [
        i for k in (0, 5, 10) for i in [*(b + 3 for b in "héllo wörld".encode()[k : k + 5]), 1]
    ]
    assert [w.text for w in found] == ["héll", "o wö", "rld"]


def test_a_source_without_a_token_gives_no_window(tmp_path: Path) -> None:
    assert list(windows(written(tmp_path, " \n\t"), tokenizer("bert"), context=8)) == []
    assert count(written(tmp_path, " \n\t"), tokenizer("bert"), 8) == Counts(0, 0, 0)


def test_line_ends_stay_and_a_byte_order_mark_goes(tmp_path: Path) -> None:
    file = written(tmp_path, b"\xef\xbb\xbfa\r\nb\rc\n\xef\xbb\xbfd")
    (window,) = windows(file, tokenizer("gpt2"), context=99)
    assert window.text == "a\r\nb\rc\n\ufeffd"


@pytest.mark.parametrize(("context", "special"), [(0, 0), (1, 1), (2, 2), (-1, 0)])
def test_a_context_without_room(tmp_path: Path, context: int, special: int) -> None:
    with pytest.raises(InvalidInput, match=f"use --context {special + 1} or more"):
        windows(written(tmp_path, "a"), tokenizer("gpt2"), context=context, prefix=range(special))


def test_a_negative_start(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="count from 0"):
        windows(written(tmp_path, "a"), tokenizer("gpt2"), context=8, start_window=-1)


@pytest.mark.parametrize(("limit", "n"), [(None, 8), (1, 1), (10, 1), (11, 2), (20, 2), (75, 8), (10**9, 8)])
def test_take_and_count_stop_alike(tmp_path: Path, limit: int | None, n: int) -> None:
    # 8 windows: 7 of 10 tokens and one of 5, two of them special in each.
    text = whole("gpt2", PROSE)
    end = text.offsets[7 * 8 + 3][0]
    file = written(tmp_path, PROSE[:end])
    assert len(whole("gpt2", PROSE[:end]).ids) == 59
    how: dict[str, Any] = {"context": 10, "prefix": [1], "suffix": [2]}
    found = list(take(windows(file, tokenizer("gpt2"), **how), limit))
    assert len(found) == n
    assert count(file, tokenizer("gpt2"), 10, [1], [2], limit_tokens=limit) == Counts(
        n, sum(len(w.ids) for w in found), sum(len(w.text.encode()) for w in found)
    )


def test_take_refuses_nothing() -> None:
    with pytest.raises(InvalidInput, match="max-tokens 1"):
        take(iter([]), 0)


def test_count_reports_and_counts_bytes(tmp_path: Path) -> None:
    text = "é " * 600
    seen: list[Counts] = []
    counts = count(written(tmp_path, text), tokenizer("gpt2"), 1, progress=seen.append)
    assert counts.text_bytes == 1800
    assert [each.n_windows for each in seen] == list(range(256, counts.n_windows + 1, 256))
    assert len(seen) >= 2


# ---- records ------------------------------------------------------------------------------------


def test_jsonl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GROUP", 2)
    texts = ["one two", "", "three\r\nfour\u2028é", PROSE[:80_000], "five"]
    lines = [json.dumps({"text": each, "n": 1}, ensure_ascii=i % 2 == 0) for i, each in enumerate(texts)]
    file = written(tmp_path, "\ufeff" + "\n\r\n".join(lines), "b.jsonl")
    found = list(windows(file, tokenizer("gpt2"), context=300))
    for line, text in zip((1, 3, 5, 7, 9), texts, strict=True):
        of_line = [w for w in found if w.source == f"{file.name}:{line}"]
        assert joined(of_line) == whole("gpt2", text).ids
        assert "".join(w.text for w in of_line) == text
        assert [w.chunk for w in of_line] == list(range(len(of_line)))
    order = [int(w.source.rpartition(":")[2]) for w in found]
    assert order == sorted(order)
    assert set(order) == {1, 5, 7, 9}
    assert [(w.source, w.chunk) for w in windows(file, tokenizer("gpt2"), context=300, start_window=4)] == [
        (w.source, w.chunk) for w in found[4:]
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", "is not JSON"),
        (b'{"text": NaN', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'["text"]', "is not a JSON object"),
        (b'{"body": "x"}', "has no field 'text'"),
        (b'{"text": null}', "is not a string"),
        (b'{"text": 3}', "is not a string"),
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
    with pytest.raises(TextError, match=r"no column 'text' \(its columns: body, n\)"):
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
    with pytest.raises(InvalidInput, match="--text"):
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
        find_texts([tmp_path])


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
    monkeypatch.setattr(module, "_READ", 1)
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


def test_a_tokenizer_that_cannot_be_copied(tmp_path: Path) -> None:
    class Custom:
        def split(self, i: int, part: Any) -> list[Any]:
            return [part]

        def pre_tokenize(self, text: Any) -> None:
            text.split(self.split)

    backend = Tokenizer.from_str(tokenizer("gpt2").backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(Custom())
    with pytest.raises(InvalidInput, match="cannot be copied"):
        windows(written(tmp_path, "a"), Wrapped(backend), context=9)


# ---- size ---------------------------------------------------------------------------------------


def test_reading_is_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first window comes before the file is read to its end, and what is held does not grow."""
    file = written(tmp_path, PROSE * 6)
    read = 0
    pieces = module._pieces

    def counted(stream: Any, name: str) -> Iterator[bytes]:
        nonlocal read
        for piece in pieces(stream, name):
            read += len(piece)
            yield piece

    monkeypatch.setattr(module, "_pieces", counted)
    given_away = most = 0
    for window in windows(file, tokenizer("bert"), context=256):
        given_away += len(window.text.encode())
        most = max(most, read - given_away)
    assert read == file.size > 2_500_000
    assert most < (module._AT_ONCE + 1) * module._BLOCK + 2 * module._READ


@pytest.mark.real
def test_as_transformers_tokenizes(tmp_path: Path) -> None:
    file = written(tmp_path, PROSE)
    for kind in ("smollm2", "minilm"):
        own = tokenizer(kind)
        expected = own(
            PROSE, add_special_tokens=False, truncation=False, padding=False, verbose=False
        ).input_ids
        assert joined(list(windows(file, own, context=256))) == expected
