"""Where a command's answer goes: tables, pages and text, to the terminal, a pipe or a file."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeAlias

import click

from ..catalog.errors import InvalidInput
from ..catalog.text import visible

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("table", "csv", "json", "ndjson", "parquet")

Display: TypeAlias = "Callable[[pa.Table, int | None], pa.Table]"
"""Makes of a table what a person wants to see of it, in a terminal of so many cells, or without one."""


def say(text: str) -> None:
    """One line for the person at the terminal, on stderr, beside the answer; without one it is not said."""
    _echo(sys.stderr, text)


def tell(text: str) -> None:
    """One line on stdout of how a job goes or ended, which goes on if nobody reads that."""
    _echo(sys.stdout, text)


def _echo(stream: TextIO, text: str) -> None:
    try:
        click.echo(visible(text), stream)
    except OSError:
        discard(stream)


def discard(stream: TextIO) -> None:
    """Let what is still written to a stream go nowhere: Python must not complain when it closes it."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def width() -> int | None:
    """Columns of the terminal; None where stdout is no terminal, and nothing is to be cut."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def color() -> bool:
    """Whether stdout shows colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


@dataclass(frozen=True)
class Output:
    """What `--format` and `--output` ask for.

    Raises:
        InvalidInput: at once, before any work is done, if the file has no folder, or parquet no file.
    """

    format: str
    file: Path | None = None

    def __post_init__(self) -> None:
        if self.file is not None and not self.file.absolute().parent.is_dir():
            folder = self.file.absolute().parent
            raise InvalidInput(f"there is no folder {folder}", "name another file for --output")
        if self.format == "parquet" and self.file is None:
            raise InvalidInput("parquet is binary", "pass --output FILE")

    @property
    def width(self) -> int | None:
        """Cells that a line may take; None where nothing is to be cut."""
        return width() if self.file is None else None

    @property
    def color(self) -> bool:
        """Whether headings are coloured."""
        return self.file is None and color()

    def table(self, table: pa.Table, display: Display | None = None) -> None:
        """Every column to a file and for programs; as a table on stdout, what `display` makes of it."""
        from .render import formats

        if self.file is not None:
            with formats.atomic_output(self.file) as out:
                formats.render(table, self.format, out)
            return
        if self.format == "table" and display is not None:
            table = display(table, self.width)
        formats.render(table, self.format, sys.stdout.buffer, width=self.width, color=self.color)

    def batches(self, reader: pa.RecordBatchReader) -> None:
        """As `table`, of what arrives batch by batch."""
        from .render import formats

        with ExitStack() as stack:
            out = (
                sys.stdout.buffer
                if self.file is None
                else stack.enter_context(formats.atomic_output(self.file))
            )
            formats.render_batches(
                reader.schema, reader, self.format, out, width=self.width, color=self.color
            )
            out.flush()

    def page(self, objects: Sequence[Any], page: Callable[[int | None, bool], str]) -> None:
        """A page for a person, cut to the terminal if it goes there, or `objects` as a JSON list."""
        if self.format == "json":
            self.objects(objects)
        else:
            self.text(page(self.width, self.color))

    def objects(self, objects: Iterable[Any]) -> None:
        """A JSON list, one object on a line."""
        from .render.values import json_text

        listed = ",\n".join(map(json_text, objects))
        self.text(f"[\n{listed}\n]\n" if listed else "[]\n")

    def text(self, text: str) -> None:
        """Text as it is, UTF-8."""
        from .render.formats import atomic_output

        data = text.encode("utf-8", "backslashreplace")
        if self.file is None:
            sys.stdout.buffer.write(data)
            return
        with atomic_output(self.file) as out:
            out.write(data)
