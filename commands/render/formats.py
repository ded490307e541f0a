"""Rows in the formats of every command that lists, to a stream or a file: one renderer for whole tables and for streams."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from ...catalog.errors import InvalidInput
from ...catalog.files import replacing
from ...catalog.text import visible
from . import TABLE_ROWS
from .tables import table_lines
from .values import json_string, json_text, plain, python_values

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("table", "csv", "json", "ndjson", "parquet")

Row: TypeAlias = Sequence[Any]
Write: TypeAlias = Callable[[bytes], object]


def unique_names(names: Sequence[str]) -> list[str]:
    """Column names with repeats numbered `a, a_1, a_2`, as DuckDB does in a subquery."""
    taken = set(names)
    seen: set[str] = set()
    out = []
    for name in names:
        chosen, n = name, 0
        while chosen in seen or (n and chosen in taken):
            n += 1
            chosen = f"{name}_{n}"
        seen.add(chosen)
        out.append(chosen)
    return out


# ---- streams of rows ----------------------------------------------------------------------------


def write_rows(
    names: Sequence[str],
    batches: Iterable[Sequence[Row]],
    format: str,
    write: Write,
    *,
    width: int | None = None,
    color: bool = False,
    terminal: bool = False,
    max_rows: int = TABLE_ROWS,
) -> int:
    """Writes batches of rows as UTF-8 text and returns how many rows were written.

    `csv`, `json` and `ndjson` stream: memory does not grow with the rows. `table` takes the first `max_rows`
    and stops drawing batches. With `terminal`, control characters of a CSV field are made visible too; else a
    CSV holds the exact text. Raises InvalidInput for a format that is no text format.
    """
    if format == "csv":
        return _write_csv(names, batches, write, terminal)
    if format in ("json", "ndjson"):
        return _write_json(names, batches, write, lines=format == "ndjson")
    if format == "table":
        lines, shown = table_lines(names, batches, width, color, max_rows)
        for line in lines:
            write(_utf8(line + "\n"))
        return shown
    raise InvalidInput(f"format {format!r} is not known here", f"use one of {', '.join(FORMATS[:-1])}")


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _write_csv(names: Sequence[str], batches: Iterable[Sequence[Row]], write: Write, terminal: bool) -> int:
    lines: list[str] = []

    class Sink:
        # csv quotes a lone \r only where the line end holds one; each row arrives in one call.
        def write(self, line: str) -> None:
            lines.append(line[:-2] + "\n")

    def field(value: Any) -> str:
        text = plain(value)
        return visible(text, keep_lines=True) if terminal else text

    writer = csv.writer(Sink(), lineterminator="\r\n")
    writer.writerow([field(name) for name in names])
    n = 0
    for rows in batches:
        writer.writerows([[field(value) for value in row] for row in rows])
        n += len(rows)
        write(_utf8("".join(lines)))
        lines.clear()
    if lines:
        write(_utf8("".join(lines)))
    return n


def _write_json(names: Sequence[str], batches: Iterable[Sequence[Row]], write: Write, *, lines: bool) -> int:
    keys = [f"{json_string(name)}: " for name in unique_names(names)]
    before, between, after = ("", "\n", "\n") if lines else ("[\n", ",\n", "\n]\n")
    n = 0
    for rows in batches:
        if not rows:
            continue
        texts = [
            "{" + ", ".join(k + json_text(v) for k, v in zip(keys, row, strict=True)) + "}" for row in rows
        ]
        write(_utf8((between if n else before) + between.join(texts)))
        n += len(rows)
    write(_utf8(after if n else ("" if lines else "[]\n")))
    return n


# ---- Arrow ----------------------------------------------------------------------------------------


def render(
    table: pa.Table, format: str, out: BinaryIO, *, width: int | None = None, color: bool = False
) -> int:
    """Writes an Arrow table to a binary stream in one of FORMATS and returns the number of rows written.

    `width` is the terminal's width in cells (None: no terminal); `color` styles the heading of a table.
    Raises InvalidInput for an unknown format and for parquet onto a terminal.
    """
    size = 1024 if format != "parquet" else None
    return render_batches(table.schema, table.to_batches(size), format, out, width=width, color=color)


def render_batches(
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    format: str,
    out: BinaryIO,
    *,
    width: int | None = None,
    color: bool = False,
) -> int:
    """As `render`, of batches as they arrive: `table` stops drawing them after its last row."""
    terminal = is_terminal(out)
    if format == "parquet":
        if terminal:
            raise InvalidInput("parquet is binary", "pass --output FILE")
        return _write_parquet(schema, batches, out)

    def write(data: bytes) -> None:
        out.write(data)
        if terminal:
            out.flush()

    rows = (list(zip(*map(python_values, batch.columns), strict=True)) for batch in batches)
    return write_rows(schema.names, rows, format, write, width=width, color=color, terminal=terminal)


def _write_parquet(schema: pa.Schema, batches: Iterable[pa.RecordBatch], out: BinaryIO) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = unique_names(schema.names)
    schema = pa.schema(
        [pa.field(name, _parquet_type(field)) for field, name in zip(schema, names, strict=True)]
    )
    rows = 0
    try:
        writer = pq.ParquetWriter(out, schema)
    except pa.ArrowException as error:
        raise InvalidInput(f"Parquet lacks a type of the result ({error})", "cast that column") from None
    with writer:
        for batch in batches:
            columns = [
                column if column.type == field.type else _for_parquet(column, field)
                for column, field in zip(batch.columns, schema, strict=True)
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
            rows += batch.num_rows
    return rows


def _parquet_type(field: pa.Field) -> pa.DataType:
    """The type of Parquet that holds every value of a column.

    Raises:
        InvalidInput: if none does.
    """
    import pyarrow as pa

    if isinstance(field.type, pa.OpaqueType):
        found = {"bit": pa.string(), "hugeint": pa.decimal128(38), "uhugeint": pa.decimal128(38)}
        if field.type.type_name in found:
            return found[field.type.type_name]
    elif isinstance(field.type, (pa.UuidType, pa.JsonType)):
        return pa.string()
    if "arrow.opaque" in str(field.type):
        kind = getattr(field.type, "type_name", str(field.type))
        raise InvalidInput(f"Parquet lacks the type of {field.name!r} ({kind})", "cast that column")
    return field.type


def _for_parquet(column: pa.Array, field: pa.Field) -> pa.Array:
    import pyarrow as pa

    values = python_values(column)
    if pa.types.is_string(field.type):
        return pa.array([None if one is None else str(one) for one in values], pa.string())
    if any(one is not None and abs(one) >= 10**38 for one in values):
        raise InvalidInput(
            f"Parquet has numbers of 38 digits, and {field.name!r} has longer ones",
            "cast that column to VARCHAR",
        )
    return pa.array([None if one is None else Decimal(one) for one in values], field.type)


def is_terminal(out: Any) -> bool:
    """Whether a stream ends at a terminal; streams that cannot tell do not."""
    isatty = getattr(out, "isatty", None)
    return bool(isatty and isatty())


@contextmanager
def atomic_output(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` only when the block ends well; else nothing is left."""
    path = Path(path)
    if path.is_dir():
        raise InvalidInput(f"{path} is a folder", "name a file for --output")
    if path.exists() and not path.is_file():  # /dev/stdout, a named pipe: must not be replaced
        with path.open("wb") as stream:
            yield stream
        return
    path = path.resolve()  # the file behind a link, and not the link
    with ExitStack() as stack:
        try:
            file = stack.enter_context(stack.enter_context(replacing(path, sync=False)).open("wb"))
        except OSError as error:
            raise InvalidInput(
                f"cannot write {path} ({error.strerror})", "name another file for --output"
            ) from error
        yield file


def rendered(table: pa.Table, format: str = "table", *, width: int | None = None, color: bool = False) -> str:
    """The text of an Arrow table in one of the text formats."""
    buffer = io.BytesIO()
    render(table, format, buffer, width=width, color=color)
    return buffer.getvalue().decode("utf-8")
