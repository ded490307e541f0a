from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from prose import HARD, KINDS, PROSE, REAL, Wrapped, fragments, joined, tokenizer, whole, written
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import ByT5Tokenizer

from signarium.catalog.errors import InvalidInput
from signarium.ingest.text import records, sources, splice
from signarium.ingest.text import windows as module
from signarium.ingest.text.windows import Counts, count, take, windows


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splice, "BLOCK", 700)
    monkeypatch.setattr(splice, "_OVERLAP", 256)
    monkeypatch.setattr(splice, "AT_ONCE", 3)


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
@settings(max_examples=examples(25))
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
    slow = ByT5Tokenizer()
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
    text = whole("gpt2", PROSE[:2000])
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


# ---- size ---------------------------------------------------------------------------------------


def test_reading_is_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first window comes before the file is read to its end, and what is held does not grow."""
    file = written(tmp_path, PROSE * 6)
    read = 0
    pieces = sources.pieces

    def counted(stream: Any, name: str) -> Iterator[bytes]:
        nonlocal read
        for piece in pieces(stream, name):
            read += len(piece)
            yield piece

    monkeypatch.setattr(records, "pieces", counted)
    given_away = most = 0
    for window in windows(file, tokenizer("bert"), context=256):
        given_away += len(window.text.encode())
        most = max(most, read - given_away)
    assert read == file.size > 2_500_000
    assert most < (splice.AT_ONCE + 1) * splice.BLOCK + 2 * sources._READ


@pytest.mark.real
def test_as_transformers_tokenizes(tmp_path: Path) -> None:
    file = written(tmp_path, PROSE)
    for kind in ("smollm2", "minilm"):
        own = tokenizer(kind)
        expected = own(
            PROSE, add_special_tokens=False, truncation=False, padding=False, verbose=False
        ).input_ids
        assert joined(list(windows(file, own, context=256))) == expected
