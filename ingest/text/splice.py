"""Tokenizing a long text as if in one call, while memory stays that of a few blocks.

The text is tokenized in overlapping blocks that are joined only where both blocks agree token by token, so
that the ids are those of one call over the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ...catalog.errors import TextError

BLOCK = 1 << 16
"""Characters that each block adds."""
AT_ONCE = 8
"""Blocks handed to the tokenizer's threads together."""
_OVERLAP = 1 << 11  # characters that a block shares with the one before


@dataclass(frozen=True)
class Part:
    """Consecutive tokens of a source and the text they come from."""

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]
    first: int
    shift: int

    def start(self, index: int) -> int:
        """Where token `index` starts in `text`. Few are asked for, so no list of them is made."""
        return self.offsets[self.first + index][0] + self.shift


class Block:
    """A tokenized stretch of a source, from character `start` on."""

    def __init__(self, start: int, text: str, encoding: Any) -> None:
        self.start, self.text, self.encoding = start, text, encoding
        self.ids: list[int] = encoding.ids
        self.offsets: list[tuple[int, int]] = encoding.offsets

    @property
    def end(self) -> int:
        return self.start + len(self.text)

    def token(self, index: int) -> tuple[int, int, int]:
        begin, end = self.offsets[index]
        return self.start + begin, self.start + end, self.ids[index]

    def clean(self, index: int) -> bool:
        """Whether a token starts here where no other ends later: not inside a character of several tokens."""
        return self.offsets[index][0] >= self.offsets[index - 1][1]

    def word(self, index: int) -> bool:
        """Whether a word of the pre-tokenizer starts here, at white space."""
        encoding, at = self.encoding, self.offsets[index][0]
        return encoding.token_to_word(index) != encoding.token_to_word(index - 1) and (
            self.text[at : at + 1].isspace() or self.text[at - 1 : at].isspace()
        )

    def part(self, first: int, cut: int, last: int, end: int) -> Part:
        """Tokens `first` to `last`, over the characters from `cut` to `end` of the source."""
        text = self.text[cut - self.start : end - self.start]
        return Part(text, self.ids[first:last], self.offsets, first, self.start - cut)


def _splice(left: Block, first: int, right: Block) -> tuple[int, int] | None:
    """Where `right` can take over from `left`: an index into the tokens of each, or None.

    A tokenizer looks at both sides of a place; `left` lacks what is right of its end and `right` what is left
    of its start. So both must agree for a while on both sides: 16 tokens where a word starts at white space,
    128 elsewhere, more than the 100 characters at which a WordPiece word turns into one unknown token.
    One thing can differ from a single call: a Unigram model settles ties between equally likely readings of a
    repeated character by the rounding of its running sum, which starts anew with a block.
    """
    low = (
        next(
            (i for i in range(len(left.ids) - 1, first - 1, -1) if left.token(i)[0] < right.start), first - 1
        )
        + 1
    )
    places: dict[tuple[int, int, int], int] = {}
    for j in range(len(right.ids)):
        token = right.token(j)
        if token[0] >= left.end:
            break
        places.setdefault(token, j)
    while low < len(left.ids):
        j = places.get(left.token(low), -1)
        if j < 0:
            low += 1
            continue
        length = 1
        while (
            low + length < len(left.ids)
            and j + length < len(right.ids)
            and left.token(low + length) == right.token(j + length)
        ):
            length += 1
        middle = length // 2
        for k in sorted(range(16, length - 15), key=lambda k: abs(k - middle)):
            if not left.clean(low + k):
                continue
            if 128 <= k <= length - 128 or (left.word(low + k) and right.word(j + k)):
                return low + k, j + k
        low += length
    return None


def parts(pieces: Iterator[str], encode: Callable[[list[str]], list[Any]], name: str) -> Iterator[Part]:
    """Tokenize one source as if in one call. The parts' texts joined are the source."""
    base, held = 0, ""  # the characters from `base` on that may still be needed
    last: Block | None = None
    first = cut = 0  # the first token and character of `last` that no earlier part holds
    over = False

    def fill(end: int) -> int:
        """Read up to character `end` of the source; where it stopped."""
        nonlocal held, over
        parts, have = [held], base + len(held)
        while have < end and not over:
            piece = next(pieces, None)
            if piece is None:
                over = True
            else:
                parts.append(piece)
                have += len(piece)
        held = "".join(parts)
        return min(end, have)

    def block(start: int, end: int) -> str:
        return held[start - base : end - base]

    def begin(end: int, overlap: int) -> int:
        """Where the block that follows character `end` starts: at white space, to be in step sooner."""
        start = end - overlap
        return next((i for i in range(start, start + overlap // 4) if held[i - base].isspace()), start)

    while True:
        at = last.end if last else 0
        ends = [at]
        for k in range(1, AT_ONCE + 1):
            ends.append(fill(at + k * BLOCK))
            if ends[-1] == ends[-2]:
                ends.pop()
                break
        if len(ends) == 1:
            break
        starts = [begin(end, _OVERLAP) if end else 0 for end in ends[:-1]]
        texts = [block(start, end) for start, end in zip(starts, ends[1:], strict=True)]
        for start, text, encoding in zip(starts, texts, encode(texts), strict=True):
            following = Block(start, text, encoding)
            if last is None:
                last = following
                continue
            place = _splice(last, first, following)
            overlap = _OVERLAP
            while place is None and (overlap := overlap * 4) < len(last.text):
                start = begin(last.end, overlap)
                text = block(start, following.end)
                following = Block(start, text, encode([text])[0])
                place = _splice(last, first, following)
            if place is not None:
                end = following.token(place[1])[0]
                yield last.part(first, cut, place[0], end)
                last, first, cut = following, place[1], end
                continue
            # No overlap will do: both become one. Doubling keeps a long stretch from costing its square.
            text = block(last.start, fill(last.end + max(BLOCK, len(last.text))))
            whole = Block(last.start, text, encode([text])[0])
            # Earlier parts are given away, so the tokens around their end must have stayed as they were.
            same = slice(max(0, first - 16), first + 16)
            if first and (whole.ids[same], whole.offsets[same]) != (last.ids[same], last.offsets[same]):
                raise TextError(f"{name} is too long to be tokenized in one piece", "split it at line ends")
            last = whole
            break
        assert last is not None
        held, base = held[last.start - base :], last.start
    if last is not None:
        yield last.part(first, cut, len(last.ids), last.end)
