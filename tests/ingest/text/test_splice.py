from __future__ import annotations

from typing import Any

import pytest
from effort import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prose import HARD, KINDS, PROSE, REAL, fragments, plain, whole

from signarium.ingest.text import splice


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splice, "BLOCK", 700)
    monkeypatch.setattr(splice, "_OVERLAP", 256)
    monkeypatch.setattr(splice, "AT_ONCE", 3)


def parts(kind: str, text: str, piece: int = 100) -> tuple[list[Any], list[tuple[int, int]]]:
    """The parts of a text and, per token, (place in the whole text, id)."""
    backend = plain(kind)
    pieces = (text[i : i + piece] for i in range(0, len(text), piece))
    found = list(splice.parts(pieces, lambda t: backend.encode_batch(t, add_special_tokens=False), "x"))
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


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", [*KINDS, *REAL])
@settings(max_examples=examples(30))
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
    monkeypatch.setattr(splice, "BLOCK", 701)
    monkeypatch.setattr(splice, "_OVERLAP", 256)

    def blind(left: Any, first: int, right: Any) -> tuple[int, int]:
        j = next(j for j, (begin, _) in enumerate(right.offsets) if right.start + begin >= left.end)
        return len(left.ids), j

    monkeypatch.setattr(splice, "_splice", blind)
    with pytest.raises(AssertionError):
        assert_as_whole("gpt2", PROSE[:20_000])
