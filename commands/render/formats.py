"""Rows to text: the one renderer behind every command that lists.

The core works on column names and batches of row tuples of plain Python values: the process that runs
a stranger's SQL uses it without loading pyarrow. `render` takes an Arrow table and feeds the same core.

Values: a BLOB is lowercase hex, a timestamp ISO 8601, NaN and infinity are null in JSON, integers and
decimals are exact. In CSV a NULL is an empty field, as is an empty string.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from json.encoder import encode_basestring
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from ...catalog.errors import InvalidInput
from ...catalog.files import replacing
from ...catalog.text import visible

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("table", "csv", "json", "ndjson", "parquet")
TABLE_ROWS = 1000  # what `table` shows at most: beyond it nobody reads, and its columns must be held to align

Row: TypeAlias = Sequence[Any]
Write: TypeAlias = Callable[[bytes], object]

_HEX_DIGITS = 16
_MIN_TEXT = 8  # cells below which a column of text says nothing
_MAX_CELL = 200  # without a terminal there is no width to fit, yet one document must not pad every row
_CUT_BEFORE_ESCAPING = 4096


# What JSON leaves as it is although a terminal may act on it.
_JSON_RAW = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


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


# ---- one value ----------------------------------------------------------------------------------


def json_text(value: Any) -> str:
    """One value as JSON; integers and decimals keep every digit, NaN and infinity are null."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return _json_string(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value) if math.isfinite(value) else "null"
    if isinstance(value, Decimal):
        return f"{value:f}" if value.is_finite() else "null"
    if isinstance(value, dict):
        inner = (
            f"{_json_string(k if isinstance(k, str) else plain(k))}: {json_text(v)}" for k, v in value.items()
        )
        return "{" + ", ".join(inner) + "}"
    if type(value) in (list, tuple):
        return "[" + ", ".join(json_text(v) for v in value) + "]"
    return _json_string(plain(value))


def plain(value: Any) -> str:
    """One value as CSV prints it. Nested values are JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return float.__repr__(value)
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return value.hex()
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return str(value)
    if isinstance(value, dict) or type(value) in (list, tuple):
        return json_text(value)
    return str(value)


def _json_string(text: str) -> str:
    quoted: str = encode_basestring(text)
    if quoted.isascii() and "\x7f" not in quoted:
        return quoted
    return _JSON_RAW.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    """One value as a table shows it: on one line, safe for a terminal, hex and floats shortened."""
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return _short_float(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        digits = bytes(value[: _HEX_DIGITS // 2]).hex()
        return digits + "…" if len(value) > _HEX_DIGITS // 2 else digits
    text = plain(value)
    if len(text) > _CUT_BEFORE_ESCAPING:
        text = text[:_CUT_BEFORE_ESCAPING] + "…"
    return visible(text)


def _short_float(value: float) -> str:
    if not math.isfinite(value):
        return {"nan": "NaN", "inf": "inf", "-inf": "-inf"}[repr(value)]
    size = abs(value)
    if size >= 1e15 or 0 < size < 1e-4:
        return f"{value:.6g}"
    if value == int(value):
        return f"{value:.1f}"
    return f"{value:.6g}" if size < 1e5 else f"{value:.2f}"


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
        return _write_table(names, batches, write, width, color, max_rows)
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
    keys = [f"{_json_string(name)}: " for name in unique_names(names)]
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


# ---- the table ----------------------------------------------------------------------------------


def _write_table(
    names: Sequence[str],
    batches: Iterable[Sequence[Row]],
    write: Write,
    width: int | None,
    color: bool,
    max_rows: int,
) -> int:
    rows: list[Row] = []
    more = False
    for batch in batches:
        room = max_rows - len(rows)
        rows.extend(batch[:room])
        if len(batch) > room:
            more = True
            break
    if list(names) == ["explain_key", "explain_value"]:
        # A plan is a drawing of many lines; cut to one line it says nothing.
        write(_utf8("".join(visible(plain(row[1]), keep_lines=True).rstrip("\n") + "\n" for row in rows)))
        return len(rows)
    for line in _table_lines(names, rows, width, color):
        write(_utf8(line + "\n"))
    footer = "(1 row)" if len(rows) == 1 else f"({len(rows)} rows)"
    if more:
        footer = f"(first {len(rows)} rows; use --format csv to see all)"
    write(_utf8(footer + "\n"))
    return len(rows)


def _table_lines(names: Sequence[str], rows: Sequence[Row], width: int | None, color: bool) -> Iterator[str]:
    heads = [visible(name) for name in names]
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = []
    widths = []
    for i, head in enumerate(heads):
        values = [row[i] for row in rows if row[i] is not None]
        numeric.append(bool(values) and all(_is_number(value) for value in values))
        natural = max([cell_width(head), *(cell_width(row[i]) for row in cells)])
        widths.append(min(natural, _MAX_CELL) if width is None else natural)
    shown, widths = _fit(widths, numeric, width)
    heads, hidden = heads[:shown], heads[shown:]

    def line(texts: Sequence[str], styles: Sequence[str]) -> str:
        parts = []
        for i in range(shown):
            fitted = _pad(texts[i], widths[i], right=numeric[i])
            if styles[i] and color:
                fitted = f"\x1b[{styles[i]}m{fitted}\x1b[0m"
            parts.append(fitted)
        joined = "  ".join(parts)
        return joined if color else joined.rstrip(" ")

    yield line(heads, ["1"] * shown)
    yield "  ".join("─" * w for w in widths)
    for row, texts in zip(rows, cells, strict=True):
        yield line(texts, ["2" if value is None else "" for value in row])
    if hidden:
        yield _hidden_note(hidden, width)


def _fit(widths: list[int], numeric: list[bool], width: int | None) -> tuple[int, list[int]]:
    """How many leading columns fit into `width` cells, and how wide each is: widest texts shrink first."""
    if width is None or sum(widths) + 2 * (len(widths) - 1) <= width:
        return len(widths), widths
    least = [w if number else min(w, _MIN_TEXT) for w, number in zip(widths, numeric, strict=True)]
    shown, used = 0, -2
    while shown < len(least) and used + 2 + least[shown] <= width:
        used += 2 + least[shown]
        shown += 1
    if shown == 0:
        return 1, [max(1, width)]
    room = width - 2 * (shown - 1)
    kept = widths[:shown]
    cap = max(kept)
    while cap > _MIN_TEXT:
        fitted = [w if number else min(w, cap) for w, number in zip(kept, numeric[:shown], strict=True)]
        if sum(fitted) <= room:
            break
        cap -= 1
    fitted = [w if number else min(w, cap) for w, number in zip(kept, numeric[:shown], strict=True)]
    spare = room - sum(fitted)
    for i, w in enumerate(kept):
        if spare > 0 and fitted[i] < w:
            grown = min(w, fitted[i] + spare)
            spare -= grown - fitted[i]
            fitted[i] = grown
    return shown, fitted


def _hidden_note(hidden: Sequence[str], width: int | None) -> str:
    hint = " hidden: see them with --format json"
    listed = ", ".join(hidden)
    if width is None or cell_width(listed) + len(hint) <= width:
        return listed + hint
    named = 1
    while named < len(hidden):
        tail = f", +{len(hidden) - named - 1} more" if named + 1 < len(hidden) else ""
        if cell_width(", ".join(hidden[: named + 1]) + tail) + len(hint) > width:
            break
        named += 1
    tail = f", +{len(hidden) - named} more" if named < len(hidden) else ""
    return _cut(", ".join(hidden[:named]) + tail + hint, width)


def cell_width(text: str) -> int:
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _cut(text: str, width: int) -> str:
    if cell_width(text) <= width:
        return text
    if text.isascii():
        return text[: width - 1] + "…"
    from rich.cells import set_cell_size

    return set_cell_size(text, width - 1) + "…"


def _pad(text: str, width: int, *, right: bool) -> str:
    text = _cut(text, width)
    blank = " " * (width - cell_width(text))
    return blank + text if right else text + blank


# ---- Arrow tables -------------------------------------------------------------------------------


def render(
    table: pa.Table, format: str, out: BinaryIO, *, width: int | None = None, color: bool = False
) -> int:
    """Writes an Arrow table to a binary stream in one of FORMATS and returns the number of rows written.

    `width` is the terminal's width in cells (None: no terminal); `color` styles the heading of a table.
    Raises InvalidInput for an unknown format and for parquet onto a terminal.
    """
    terminal = is_terminal(out)
    if format == "parquet":
        if terminal:
            raise InvalidInput("parquet is binary", "pass --output FILE")
        import pyarrow.parquet as pq

        pq.write_table(table.rename_columns(unique_names(table.column_names)), out)
        return int(table.num_rows)
    names = list(table.column_names)
    return write_rows(
        names, _arrow_rows(table), format, out.write, width=width, color=color, terminal=terminal
    )


def _arrow_rows(table: pa.Table) -> Iterator[list[Row]]:
    for batch in table.to_batches(max_chunksize=1024):
        yield list(zip(*(_arrow_values(column) for column in batch.columns), strict=True))


def _arrow_values(column: pa.Array) -> list[Any]:
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):
        # Nanoseconds, and years beyond 9999, have no Python value; Arrow prints them.
        import pyarrow as pa

        return column.cast(pa.string()).to_pylist()


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
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with ExitStack() as stack:
        try:
            file = stack.enter_context(stack.enter_context(replacing(path, part, sync=False)).open("wb"))
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


def unknown(value: float | None) -> bool:
    """Whether a figure is missing: NULL, or no number."""
    return value is None or value != value
