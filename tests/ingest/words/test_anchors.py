from __future__ import annotations

import csv
import io
import runpy
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders

from signarium.catalog.errors import InvalidInput
from signarium.ingest.words import anchors
from signarium.ingest.words.anchors import Anchors, Category, Vocabulary, read_categories, resolve

ROOT = Path(__file__).parents[3]


def file(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "mine.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# ---- files --------------------------------------------------------------------------------------


def test_categories_keep_the_order_of_the_file(tmp_path: Path) -> None:
    path = file(tmp_path, "category,word\nfruit,pear\nanimal,dog\nfruit,apple\nanimal,cat\n")
    assert read_categories(path) == (
        [Category("fruit", ("pear", "apple")), Category("animal", ("dog", "cat"))],
        [],
    )


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfcategory,word\r\nanimal,dog\r\n",
        b"note,word,rank,category\nbarks,dog,1,animal\n",
        b'category,word\n" animal ", dog\n\n',
        b"\ncategory,word\nanimal,dog\nanimal,\n,\nbird\n",
        b"category,word\nanimal,dog",
    ],
    ids=["mark and CRLF", "other columns", "blanks and quotes", "rows without a word", "no last line end"],
)
def test_how_a_file_may_be_written(tmp_path: Path, content: bytes) -> None:
    assert read_categories(file(tmp_path, content)) == ([Category("animal", ("dog",))], [])


def test_words_named_again_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = "a,dog\na,cat\na,dog\nb,dog\na,dog\nc,x\nc,y\nc,y\nc,x\n"
    found, notes = read_categories(file(tmp_path, "category,word\n" + rows))
    assert [each.words for each in found] == [("dog", "cat"), ("dog",), ("x", "y")]
    assert notes == ["mine.csv: a names 1 word twice", "mine.csv: c names 2 words twice"]


def test_notes_on_words_named_again_are_few(tmp_path: Path) -> None:
    rows = "".join(f"c{i},dog\nc{i},dog\n" for i in range(30))
    found, notes = read_categories(file(tmp_path, "category,word\n" + rows))
    assert len(found) == 30
    assert len(notes) == 9
    assert notes[-1] == "mine.csv: 22 more categories name a word twice"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf \n", "is empty"),
        (b"category,word\n", "names no word"),
        (b"category,word\nanimal,\n", "names no word"),
        (b"animal,dog\nanimal,cat\n", "line 1 .* is no header"),
        (b"category;word\nanimal;dog\n", "line 1 .* is no header"),
        (b"category,word,word\nanimal,dog,cat\n", "line 1 .* is no header"),
        (b"category,word\nanimal,dog\n ,cat\n", "line 3 .* no category"),
        (b"category,word\nanimal,dog\nb\x1b[1m,cat\n", "line 3 .* control character"),
        (b'category,word\nanimal,dog\n"b\nc",cat\n', "line 4 .* control character"),
        (b"category,word\nanimal,dog\nanimal,na\xefve\n", "line 3 .* not UTF-8"),
        (b'category,word\nanimal,"dog\nanimal,cat\n', "is no CSV"),
        (b"\x1f\x8b\x08\x00", "is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, content: bytes, says: str) -> None:
    path = file(tmp_path, content)
    with pytest.raises(InvalidInput, match=says) as caught:
        read_categories(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    for path, says in [(tmp_path / "none.csv", "there is no file"), (tmp_path, "is a folder")]:
        with pytest.raises(InvalidInput, match=says):
            read_categories(path)


@given(st.lists(st.tuples(st.text("abé, \"'", min_size=1), st.text("xyz, \"'日")), min_size=1))
def test_what_a_csv_writer_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([("category", "word"), *rows])
    expected: dict[str, list[str]] = {}
    for name, word in rows:
        if word.strip():
            known = expected.setdefault(name.strip(), [])
            if word.strip() not in known:
                known.append(word.strip())
    path = file(tmp_path_factory.getbasetemp(), stream.getvalue())
    if not expected or "" in expected:
        with pytest.raises(InvalidInput):
            read_categories(path)
    else:
        found, _ = read_categories(path)
        assert {each.name: list(each.words) for each in found} == expected
        assert [each.name for each in found] == list(expected)


# ---- tokens -------------------------------------------------------------------------------------


def test_the_token_of_a_word() -> None:
    vocabulary = Vocabulary(["", "cat", " dog", "dog", " dog", "  cat", "Cat", " Dog", "<s>"])
    assert vocabulary.token_of("dog") == 2  # with the space first, and the lowest of two
    assert vocabulary.token_of("cat") == 1
    assert vocabulary.token_of("Dog") == 7
    assert [vocabulary.token_of(word) for word in ("bird", "", "DOG", "do")] == [None] * 4


def test_a_vocabulary_in_lower_case_is_asked_in_lower_case() -> None:
    pieces = ["[CLS]", "france", "##ing", "a", "naïve"]
    assert Vocabulary(pieces).token_of("France") == 1
    assert Vocabulary([*pieces, "Paris"]).token_of("France") is None


def test_whole_words() -> None:
    spaced = Vocabulary([" dog", "dog", " d", "  dog", " dog's", " 日本", " naïve", " 12", "", " dog "])
    assert spaced.n == 10
    np.testing.assert_array_equal(np.flatnonzero(spaced.words), [0, 5, 6])
    wordpiece = Vocabulary(["[CLS]", "dog", "##ing", "d", "12", "ing"])
    np.testing.assert_array_equal(np.flatnonzero(wordpiece.words), [1, 5])


def test_a_tenth_of_the_tokens_must_begin_with_a_space() -> None:
    words = [f"w{chr(97 + i)}" for i in range(9)]
    assert Vocabulary([" cat", *words, *[""] * 50]).words.sum() == 9  # exactly a tenth
    assert Vocabulary([" cat", *words[:-1], *[""] * 50]).words.sum() == 1


def test_an_empty_vocabulary() -> None:
    vocabulary = Vocabulary([])
    assert (vocabulary.n, vocabulary.words.shape, vocabulary.token_of("dog")) == (0, (0,), None)


# ---- anchors ------------------------------------------------------------------------------------


def test_two_words_that_are_one_token_count_once() -> None:
    vocabulary = Vocabulary(["the", "cat", "dog", "france"])
    (found,), notes = resolve(
        [Category("c", ("France", "dog", "france", "bird", "cat"))], vocabulary, least=3
    )
    assert (found.category, found.words, notes) == ("c", ("cat", "dog", "France"), [])
    assert found.token_ids.dtype == np.int64
    np.testing.assert_array_equal(found.token_ids, [1, 2, 3])


def test_categories_with_few_anchors_are_named() -> None:
    vocabulary = Vocabulary([" dog", " cat"])
    both, one = Category("both", ("cat", "dog")), Category("one", ("dog", "bird"))
    found, notes = resolve([one, both], vocabulary, least=2)
    assert [each.category for each in found] == ["both"]
    assert notes == ["1 category has fewer than 2 words that are one token here: one (1); it is left out"]
    found, notes = resolve([Category(f"c{i}", ("dog",)) for i in range(9)], vocabulary)
    named = ", ".join(f"c{i} (1)" for i in range(8))
    assert found == []
    assert notes == [
        f"9 categories have fewer than 20 words that are one token here: {named}, ...; they are left out"
    ]


def test_categories_with_the_same_anchors_stay() -> None:
    found, _ = resolve([Category("a", ("dog",)), Category("b", ("dog", "x"))], Vocabulary([" dog"]), least=1)
    assert [each.category for each in found] == ["a", "b"]


WORDS = st.text("abAB", min_size=1, max_size=3)


@given(
    st.lists(st.sampled_from(["", " ", "##"]).flatmap(lambda start: WORDS.map(lambda word: start + word))),
    st.lists(st.lists(WORDS, unique=True), max_size=5),
    st.integers(1, 5),
)
def test_anchors_are_tokens_of_their_words(strings: list[str], lists: list[list[str]], least: int) -> None:
    vocabulary = Vocabulary(strings)
    categories = [Category(f"c{i}", tuple(words)) for i, words in enumerate(lists)]
    found, notes = resolve(categories, vocabulary, least)
    by_name: dict[str, Anchors] = {each.category: each for each in found}
    for category in categories:
        reachable = {vocabulary.token_of(word) for word in category.words} - {None}
        assert (category.name in by_name) == (len(reachable) >= least)
        if category.name in by_name:
            one = by_name[category.name]
            assert one.token_ids.tolist() == sorted(reachable)
            assert len(one.words) == len(one.token_ids)
            for word, token_id in zip(one.words, one.token_ids, strict=True):
                assert strings[token_id].strip().lower() == word.lower()
                assert word in category.words
    assert bool(notes) == (len(found) < len(categories))


# ---- the pack -----------------------------------------------------------------------------------


def test_the_pack_is_well_formed() -> None:
    categories, notes = read_categories(anchors.DEFAULT)
    assert notes == []
    assert len(categories) >= 175
    for category in categories:
        assert category.name.replace("_", "").isalpha() and category.name.islower(), category.name
        assert 20 <= len(category.words) <= 150, category.name
        assert all(word.isascii() and word.isalpha() for word in category.words), category.name
        # Two spellings of a word in both halves would lift every held-out figure.
        assert len({word.lower() for word in category.words}) == len(category.words), category.name
    assert len({category.words for category in categories}) == len(categories)
    content = anchors.DEFAULT.read_bytes()
    assert b"\r" not in content and content.endswith(b"\n")


def test_the_pack_is_what_its_script_names() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "wordnet_categories.py"))
    words = {category.name: category.words for category in read_categories(anchors.DEFAULT)[0]}
    assert list(words) == sorted(script["CATEGORIES"])
    for name, dropped in script["DROPPED"].items():
        assert not set(dropped.split()) & set(words[name]), name


def tokens_of(model: Path) -> list[str]:
    """The tokens that a GGUF file lists: what `gguf` needs seconds for, and loading the model several."""
    with model.open("rb") as handle:

        def number(kind: str) -> Any:
            return struct.unpack(f"<{kind}", handle.read(struct.calcsize(f"<{kind}")))[0]

        def value(kind: int) -> Any:
            if kind == 8:
                return handle.read(number("Q")).decode()
            if kind == 9:
                inner, n = number("I"), number("Q")
                return [value(inner) for _ in range(n)]
            return number("BbHhIif?..Qqd"[kind])

        assert (handle.read(4), number("I")) == (b"GGUF", 3)
        _, n = number("Q"), number("Q")
        listed = {value(8): value(number("I")) for _ in range(n)}
    decoder = decoders.ByteLevel()
    return [decoder.decode([token]) for token in listed["tokenizer.ggml.tokens"]]


@pytest.mark.real
def test_smollm2_knows_the_pack() -> None:
    model = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not model.exists():
        pytest.fail(f"{model} is missing: run `make setup`")
    vocabulary = Vocabulary(tokens_of(model))
    assert vocabulary.n == 49_152
    found, _ = resolve(read_categories(anchors.DEFAULT)[0], vocabulary)
    assert len(found) >= 175
    assert 25_000 < vocabulary.words.sum() < 40_000
    months = next(each for each in found if each.category == "month")
    assert {"January", "May", "December"} <= set(months.words)
    assert [vocabulary.strings[i] for i in months.token_ids] == [f" {word}" for word in months.words]
