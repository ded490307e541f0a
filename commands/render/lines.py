"""Lines of a page that a person reads: wrapped, under headings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from .tables import cell_width

NARROW = 110
PLAIN_WIDTH = 100
"""Where there is no terminal, lines are wrapped all the same."""


def text_of(blocks: Mapping[str, Iterable[str]], color: bool) -> str:
    """Blocks of lines under their headings, which go where a block is empty; with a line break at the end."""
    lines: list[str] = []
    for title, block in blocks.items():
        found = list(block)
        if title and found:
            lines += ["", f"\x1b[1m{title}\x1b[0m" if color else title]
        lines += found
    return "\n".join(line.rstrip() for line in lines) + "\n"


def sentence(text: str, width: int) -> Iterator[str]:
    """A text in lines of at most `width` cells."""
    yield from wrapped("", text.split(" "), width, " ")


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Rows of cells, a heading first, in columns: the first `left` flush left, the others flush right."""
    sizes = [max(cell_width(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        blanks = [" " * (size - cell_width(one)) for one, size in zip(row, sizes, strict=True)]
        cells = [
            one + blank if i < left else blank + one
            for i, (one, blank) in enumerate(zip(row, blanks, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def wrapped(head: str, words: Sequence[str], width: int, between: str = "  ") -> Iterator[str]:
    """`words` in lines of at most `width` cells behind `head`, which the next lines leave blank."""
    line, used = head, cell_width(head)
    fresh = True
    for word in words:
        size = cell_width(word)
        if not fresh and used + len(between) + size > width:
            yield line
            line, used, fresh = " " * cell_width(head), cell_width(head), True
        line += word.lstrip(" ") if fresh else between + word
        used += size + (0 if fresh else len(between))
        fresh = False
    yield line
