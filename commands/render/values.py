"""One value as text: for programs exactly, for a person in a cell of a table; and Arrow's values as Python's.

A BLOB is lowercase hex, a timestamp ISO 8601, NaN and infinity are null in JSON, integers and decimals are exact. In CSV a
NULL is an empty field, as is an empty string.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any

from ...catalog.text import visible

if TYPE_CHECKING:
    import pyarrow as pa

_HEX_DIGITS = 16
_CUT_BEFORE_ESCAPING = 4096
# What JSON leaves as it is although a terminal may act on it.
_JSON_RAW = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def json_text(value: Any) -> str:
    """One value as JSON; integers and decimals keep every digit, NaN and infinity are null."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return json_string(value)
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
            f"{json_string(k if isinstance(k, str) else plain(k))}: {json_text(v)}" for k, v in value.items()
        )
        return "{" + ", ".join(inner) + "}"
    if type(value) in (list, tuple):
        return "[" + ", ".join(json_text(v) for v in value) + "]"
    return json_string(plain(value))


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


def json_string(text: str) -> str:
    quoted: str = encode_basestring(text)
    if quoted.isascii() and "\x7f" not in quoted:
        return quoted
    return _JSON_RAW.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)


def cell(value: Any) -> str:
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


def unknown(value: float | None) -> bool:
    """Whether a figure is missing: NULL, or no number."""
    return value is None or value != value


# ---- Arrow's values -------------------------------------------------------------------------------

_EPOCH = datetime(1970, 1, 1)
_DAY_US = 86_400_000_000
_NO_OFFSET = 16 * 3600 - 1
"""What DuckDB's TIME WITH TIME ZONE stores for an offset of zero seconds; it counts down."""


def python_values(column: pa.Array) -> list[Any]:
    """The values of an Arrow array as Python has them, or as text where Python has none: a year beyond 9999, say.

    DuckDB's own types are those of the extension `arrow.opaque`. Infinite dates, intervals and nanoseconds are text, a map is
    a dict.
    """
    import pyarrow as pa

    kind = column.type
    if not _differs(kind):
        return list(column.to_pylist())
    if pa.types.is_date(kind):
        return _or_text(column, _date_text)
    if pa.types.is_timestamp(kind):
        if kind.unit == "ns":
            zone = "" if kind.tz is None else "+00:00"
            return [
                None if one is None else _nanoseconds(one, zone)
                for one in column.view(pa.int64()).to_pylist()
            ]
        return _or_text(column, _timestamp_text if kind.tz is None else _zoned_text)
    if pa.types.is_time64(kind):
        size = 1000 if kind.unit == "ns" else 1
        return [None if one is None else _clock(one, size) for one in column.view(pa.int64()).to_pylist()]
    if pa.types.is_interval(kind):
        return [None if one is None else _interval(one) for one in column.to_pylist()]
    if isinstance(kind, pa.OpaqueType):
        read = _OPAQUE.get(kind.type_name, bytes)
        return [None if one is None else read(one) for one in column.storage.to_pylist()]
    if pa.types.is_struct(kind):
        return _structs(column)
    if pa.types.is_union(kind):
        members = [python_values(column.field(i)) for i in range(kind.num_fields)]
        place = {code: i for i, code in enumerate(kind.type_codes)}
        return [members[place[code]][row] for row, code in enumerate(column.type_codes.to_pylist())]
    if pa.types.is_map(kind):
        return [_dict(scalar.values) if scalar.is_valid else None for scalar in column]
    return [python_values(scalar.values) if scalar.is_valid else None for scalar in column]


def _differs(kind: pa.DataType) -> bool:
    """Whether Arrow's own `to_pylist` gives something else for a type, or may fail."""
    import pyarrow as pa

    types = pa.types
    if types.is_struct(kind):
        return not kind.num_fields or not kind.field(0).name or any(_differs(one.type) for one in kind)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _differs(kind.value_type)
    return (
        types.is_date(kind)
        or types.is_timestamp(kind)
        or types.is_time64(kind)
        or types.is_interval(kind)
        or types.is_map(kind)
        or types.is_union(kind)
        or isinstance(kind, pa.OpaqueType)
    )


def _structs(column: pa.Array) -> list[Any]:
    names = [field.name for field in column.type]
    # Those of ROW(1, 2) have no names.
    rows = zip(*(python_values(column.field(i)) for i in range(len(names))), strict=True)
    make = (lambda row: dict(zip(names, row, strict=True))) if all(names) else tuple
    there = column.is_valid().to_pylist()
    return [make(row) if valid else None for row, valid in zip(rows, there, strict=True)]


def _dict(entries: pa.Array) -> dict[Any, Any]:
    keys, values = (python_values(entries.field(i)) for i in range(2))
    try:
        return dict(zip(keys, values, strict=True))
    except TypeError:  # a list is no key
        return {"key": keys, "value": values}


def _or_text(column: pa.Array, text: Callable[[Any], Any]) -> list[Any]:
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):
        import pyarrow as pa

        bits = 31 if pa.types.is_date32(column.type) else 63
        whole = column.view(pa.int32() if bits == 31 else pa.int64()).to_pylist()
        unit = 1 if pa.types.is_date(column.type) else {"s": 10**6, "ms": 10**3, "us": 1}[column.type.unit]
        return [None if one is None else _infinite(one, bits) or text(one * unit) for one in whole]


def _infinite(stored: int, bits: int) -> str:
    """What DuckDB's largest numbers of days, seconds ... stand for; "" for any other."""
    if abs(stored) != 2**bits - 1:
        return ""
    return "infinity" if stored > 0 else "-infinity"


def _nanoseconds(stored: int, zone: str) -> datetime | str:
    """A moment, as text where microseconds do not hold it."""
    if infinite := _infinite(stored, 63):
        return infinite
    micros, rest = divmod(stored, 1000)
    moment = _EPOCH + timedelta(microseconds=micros)
    if rest:
        return f"{moment.isoformat(timespec='microseconds')}{rest:03}{zone}"
    return moment.replace(tzinfo=UTC) if zone else moment


def _clock(stored: int, size: int) -> time | str:
    """A time of day, as text where Python has none: its end, and what microseconds do not hold."""
    micros, rest = divmod(stored, size)
    if micros == _DAY_US:
        return "24:00:00"
    clock = (_EPOCH + timedelta(microseconds=micros)).time()
    return f"{clock.isoformat(timespec='microseconds')}{rest:03}" if rest else clock


def _date_text(days: int) -> date | str:
    try:
        return _EPOCH.date() + timedelta(days=days)
    except OverflowError:
        return _calendar(days)


def _calendar(days: int) -> str:
    """A date of any year, days being counted from 1970, as DuckDB writes it."""
    # The calendar repeats after 400 years, which have 146,097 days.
    cycles, rest = divmod(days + (_EPOCH - datetime(1600, 1, 1)).days, 146_097)
    day = date(1600, 1, 1) + timedelta(days=rest)
    year = day.year + 400 * cycles
    return f"{year:04}{day:-%m-%d}" if year > 0 else f"{1 - year:04}{day:-%m-%d} (BC)"


def _timestamp_text(micros: int, zone: str = "") -> datetime | str:
    try:
        moment = _EPOCH + timedelta(microseconds=micros)
        return moment if not zone else moment.replace(tzinfo=UTC)
    except OverflowError:
        days, rest = divmod(micros, _DAY_US)
        clock = (
            (datetime.min + timedelta(microseconds=rest))
            .time()
            .isoformat()
            .rstrip("0" if rest % 10**6 else "")
        )
        day, _, era = _calendar(days).partition(" ")
        return f"{day}{' ' + era if era else ''} {clock}{zone}"


def _zoned_text(micros: int) -> datetime | str:
    return _timestamp_text(micros, "+00")


def _interval(interval: Any) -> str:
    """As DuckDB writes it: months and days have no length that seconds could tell."""
    years, months = (math.copysign(one, interval.months) for one in divmod(abs(interval.months), 12))
    counted = {"year": int(years), "month": int(months), "day": interval.days}
    words = [f"{n} {unit}{'' if abs(n) == 1 else 's'}" for unit, n in counted.items() if n]
    if interval.nanoseconds or not words:
        seconds, micros = divmod(abs(interval.nanoseconds) // 1000, 10**6)
        clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        part = f".{micros:06}".rstrip("0") if micros else ""
        words.append(("-" if interval.nanoseconds < 0 else "") + clock + part)
    return " ".join(words)


def _bits(stored: bytes) -> str:
    """A BIT: how many bits of the first byte are none, then the bytes."""
    return "".join(f"{byte:08b}" for byte in stored[1:])[stored[0] :]


def _zoned_time(stored: bytes) -> time:
    whole = int.from_bytes(stored, "little")
    clock = (_EPOCH + timedelta(microseconds=(whole >> 24) % _DAY_US)).time()
    return clock.replace(tzinfo=timezone(timedelta(seconds=_NO_OFFSET - (whole & 0xFFFFFF))))


def _big_number(stored: bytes) -> str:
    """A BIGNUM: three bytes of sign and length, then the digits in base 256, all inverted below zero."""
    if stored[0] & 0x80:
        return str(int.from_bytes(stored[3:], "big"))
    return str(-int.from_bytes(bytes(255 - byte for byte in stored[3:]), "big"))


_OPAQUE: dict[str, Callable[[bytes], Any]] = {
    "bit": _bits,
    "hugeint": lambda stored: int.from_bytes(stored, "little", signed=True),
    "uhugeint": lambda stored: int.from_bytes(stored, "little"),
    "time_tz": _zoned_time,
    "bignum": _big_number,
}
"""How DuckDB's types that Arrow lacks are stored."""
