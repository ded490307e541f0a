"""The renderer: exact values in csv and json, rows of one line that fit and cannot attack in tables."""

from __future__ import annotations

import csv
import io
import json
import math
import unicodedata
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from signarium.catalog.errors import InvalidInput
from signarium.catalog.text import visible
from signarium.commands.render.formats import (
    atomic_output,
    render,
    render_batches,
    rendered,
    unique_names,
    write_rows,
)
from signarium.commands.render.values import json_text, plain, python_values

BIG = 2**63 - 1


def text(names: list[str], rows: list[tuple[object, ...]], format: str, **options: object) -> str:
    parts: list[bytes] = []
    write_rows(names, [rows], format, parts.append, **options)  # type: ignore[arg-type]
    return b"".join(parts).decode()


VALUES: list[tuple[object, str, str]] = [
    # value, in csv, in json
    (None, "", "null"),
    (True, "true", "true"),
    (BIG, str(BIG), str(BIG)),
    (-(2**127), str(-(2**127)), str(-(2**127))),
    (0.1, "0.1", "0.1"),
    (math.nan, "nan", "null"),
    (-math.inf, "-inf", "null"),
    (Decimal("1.50"), "1.50", "1.50"),
    (Decimal("1E+3"), "1000", "1000"),
    (b"\x00\xab", "00ab", '"00ab"'),
    (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05+00:00", '"2026-01-02T03:04:05+00:00"'),
    (date(2026, 1, 2), "2026-01-02", '"2026-01-02"'),
    ("ü\x1b", "ü\x1b", '"ü\\u001b"'),
    ("\x9b", "\x9b", '"\\u009b"'),
    ([1, None, b"\x01"], '"[1, null, ""01""]"', '[1, null, "01"]'),
    ({"a": math.nan, "b": [BIG]}, f'"{{""a"": null, ""b"": [{BIG}]}}"', f'{{"a": null, "b": [{BIG}]}}'),
    ({1: "x"}, '"{""1"": ""x""}"', '{"1": "x"}'),
]


@pytest.mark.parametrize(("value", "in_csv", "in_json"), VALUES)
def test_values(value: object, in_csv: str, in_json: str) -> None:
    # A second column, as csv prints a lone empty field as "".
    assert text(["a", "b"], [(value, 1)], "csv") == f"a,b\n{in_csv},1\n"
    assert text(["a"], [(value,)], "ndjson") == f'{{"a": {in_json}}}\n'
    assert text(["a"], [(value,)], "json") == f'[\n{{"a": {in_json}}}\n]\n'
    json.loads(text(["a"], [(value,)], "json"))


@given(st.lists(st.tuples(st.text(max_size=20), st.integers()), max_size=5))
@settings(max_examples=examples(60))
def test_csv_and_json_read_back(rows: list[tuple[str, int]]) -> None:
    rows = [(s.encode("utf-8", "replace").decode().replace("\0", ""), n) for s, n in rows]
    back = list(csv.reader(io.StringIO(text(["s", "n"], rows, "csv"), newline="")))  # type: ignore[arg-type]
    assert back == [["s", "n"], *([s, str(n)] for s, n in rows)]
    loaded = json.loads(text(["s", "n"], rows, "json"))  # type: ignore[arg-type]
    assert loaded == [{"s": s, "n": n} for s, n in rows]


def test_nothing_to_list() -> None:
    assert text(["a"], [], "csv") == "a\n"
    assert text(["a"], [], "json") == "[]\n"
    assert text(["a"], [], "ndjson") == ""
    assert text(["a"], [], "table") == "a\n─\n(0 rows)\n"


def test_a_lone_carriage_return_is_quoted() -> None:
    assert text(["a"], [("x\ry",)], "csv") == 'a\n"x\ry"\n'


def test_repeated_names() -> None:
    assert unique_names(["a", "a", "a_1", "a"]) == ["a", "a_2", "a_1", "a_3"]
    assert json.loads(text(["a", "a"], [(1, 2)], "ndjson")) == {"a": 1, "a_1": 2}


def test_csv_streams() -> None:
    """Each batch is written before the next is drawn."""
    seen: list[int] = []
    written: list[bytes] = []

    def batches():  # type: ignore[no-untyped-def]
        for i in range(3):
            seen.append(len(written))
            yield [(i,)]

    assert write_rows(["a"], batches(), "csv", written.append) == 3
    assert seen == [0, 1, 2]


# ---- tables -------------------------------------------------------------------------------------


def test_a_table() -> None:
    rows = [(1, "a", 0.25, None), (12345, "bcd", 123456.789, b"\x01" * 72)]
    assert text(["id", "name", "x", "code"], rows, "table", width=80).splitlines() == [
        "   id  name          x  code",
        "─────  ────  ─────────  " + "─" * 17,
        "    1  a          0.25  NULL",
        "12345  bcd   123456.79  0101010101010101…",
        "(2 rows)",
    ]


WIDE = ["state_id", "document_id", "position", "token", "context", "agreement", "code"]


@pytest.mark.parametrize("width", [1, 7, 20, 40, 80, 120])
def test_rows_fit_on_one_line(width: int) -> None:
    rows = [
        (BIG, i, i, " tök\ten", "漢字かな" * 40 if i % 2 else "line\nbreak " * 50, 0.123456789, b"\xff" * 72)
        for i in range(5)
    ]
    lines = text(WIDE, rows, "table", width=width).splitlines()
    body = lines[:-1]  # the footer is a remark
    assert len(body) in (7, 8)
    assert all(cell_len(line) <= width for line in body)
    if width >= 80:
        assert str(BIG) in lines[2]  # numbers are never cut
        assert "…" in lines[2]


def test_widest_texts_shrink_first() -> None:
    lines = text(["a", "b"], [("x" * 10, "y" * 100)], "table", width=40).splitlines()
    assert lines[2] == "x" * 10 + "  " + "y" * 27 + "…"


def test_hidden_columns_are_named() -> None:
    names = [f"column{i}" for i in range(12)]
    lines = text(names, [tuple(range(12))], "table", width=80).splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[-2].startswith("column9, column10, column11 ") and "--format json" in lines[-2]
    assert lines[0].split() == names[:9]


def test_long_results_are_cut_and_no_more_is_drawn() -> None:
    drawn = []

    def batches():  # type: ignore[no-untyped-def]
        for i in range(100):
            drawn.append(i)
            yield [(i,)] * 600

    out: list[bytes] = []
    assert write_rows(["a"], batches(), "table", out.append) == 1000
    assert b"(first 1000 rows" in out[-1]
    assert drawn == [0, 1]


@given(st.text())
@settings(max_examples=examples(200))
def test_nothing_drives_the_terminal(stored: str) -> None:
    shown = text([stored], [(stored,), ([stored],), ({stored: stored},)], "table", width=80)
    assert len(shown.split("\n")) == 7
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in shown.replace("\n", ""))
    in_json = text([stored], [(stored,)], "ndjson")
    assert not any(unicodedata.category(c) == "Cc" for c in in_json[:-1])
    on_terminal = text([stored], [(stored,)], "csv", terminal=True)
    assert not any(unicodedata.category(c) == "Cc" for c in on_terminal.replace("\n", ""))


def test_control_characters_are_visible() -> None:
    assert visible("a\x1b[2J\n\x7f\x9b\u202e") == "a␛[2J␊␡\\x9b\\u202e"
    assert visible("a\nb\x1b", keep_lines=True) == "a\nb␛"


def test_colour_only_when_asked() -> None:
    assert "\x1b" not in text(["a"], [(None,)], "table")
    assert "\x1b[1m" in text(["a"], [(None,)], "table", color=True)


def test_a_plan_is_drawn_over_its_lines() -> None:
    shown = text(["explain_key", "explain_value"], [("physical_plan", "┌─┐\n└\x1b┘\n")], "table", width=80)
    assert shown == "┌─┐\n└␛┘\n"


# ---- Arrow and files ----------------------------------------------------------------------------


def test_arrow_tables(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": pa.array([1, BIG], pa.int64()),
            "code": pa.array([b"\xab", None], pa.binary()),
            "at": pa.array([0, 1], pa.timestamp("ns", tz="UTC")),
            "tags": pa.array([["a"], []], pa.list_(pa.string())),
        }
    )
    lines = rendered(table, "csv").splitlines()
    assert lines[0] == "id,code,at,tags"
    assert lines[2].startswith(f"{BIG},,1970-01-01") and lines[2].endswith("T00:00:00.000000001+00:00,[]")
    assert json.loads(rendered(table.drop_columns("at"), "json"))[0] == {"id": 1, "code": "ab", "tags": ["a"]}
    assert rendered(table).endswith("(2 rows)\n")
    with atomic_output(tmp_path / "x.parquet") as out:
        assert render(table, "parquet", out) == 2
    assert pq.read_table(tmp_path / "x.parquet").column("id").to_pylist() == [1, BIG]


def test_parquet_stays_off_a_terminal_and_unknown_formats_are_named() -> None:
    class Terminal(io.BytesIO):
        def isatty(self) -> bool:
            return True

    with pytest.raises(InvalidInput, match="--output"):
        render(pa.table({"a": [1]}), "parquet", Terminal())
    with pytest.raises(InvalidInput, match="csv"):
        rendered(pa.table({"a": [1]}), "xml")


def test_atomic_output(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_bytes(b"before")
    with pytest.raises(ZeroDivisionError), atomic_output(target) as out:
        out.write(b"half")
        raise ZeroDivisionError
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]
    with atomic_output(target) as out:
        out.write(b"after")
    assert target.read_bytes() == b"after"
    for bad in (tmp_path, tmp_path / "no" / "x"):
        with pytest.raises(InvalidInput), atomic_output(bad):
            pass


def test_values_of_every_type_are_those_of_duckdb() -> None:
    """Through Arrow as DuckDB's own reader gives them."""
    made = [
        *("true", "1::UTINYINT", "1.5::FLOAT", "1.50::DECIMAL(5, 2)", "'x'", "'\\xAA'::BLOB", "NULL"),
        *("-5::HUGEINT", "340282366920938463463374607431768211455::UHUGEINT", "'10101010101'::BIT"),
        *("'-123456789012345678901234567890'::BIGNUM", "'a'::ENUM('a', 'b')", "json('[1]')"),
        *("DATE '2024-02-29'", "DATE '20000-01-01'", "DATE '0044-03-15 (BC)'"),
        *("TIMESTAMP '2024-01-02 03:04:05.5'", "TIMESTAMP '20000-01-01 00:00:00'"),
        *("TIMESTAMP_NS '2024-01-02 03:04:05.123456'", "TIMESTAMP_S '2024-01-02 03:04:05'"),
        *("TIMESTAMPTZ '2024-01-02 03:04:05+00'", "TIME '01:02:03.5'", "TIME '24:00:00'"),
        *("TIMETZ '01:02:03.25+05:30'", "[1, NULL]", "['101'::BIT]", "[1, 2]::INT[2]"),
        *("ROW(1, 2)", "MAP {'a': 1, 'b': NULL}", "MAP {[1]: 'x'}", "union_value(k := 2)"),
        "[{'a': 1::HUGEINT}, NULL]",
    ]
    query = "SELECT " + ", ".join(f"{one} AS c{i}" for i, one in enumerate(made))
    with duckdb.connect(config={"arrow_lossless_conversion": "true"}) as connection:
        expected = connection.execute(query).fetchone()
        (batch,) = connection.execute(query).to_arrow_reader(10)
    for one, column, value in zip(made, batch.columns, expected, strict=True):
        assert plain(python_values(column)[0]) == plain(value), one
        assert json_text(python_values(column)[0]) == json_text(value), one


def test_what_python_has_no_value_for_is_as_duckdb_writes_it() -> None:
    kinds = ("DATE", "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "TIMESTAMPTZ")
    spans = ("1 year", "-14 months", "2 days 3 hours", "1 month -5 us", "0 days", "-1 day -90061.25 seconds")
    made = [
        *(f"{kind} '{sign}infinity'" for kind in kinds for sign in ("", "-")),
        *(f"INTERVAL '{span}'" for span in spans),
        "TIME_NS '01:02:03.000000004'",
    ]
    query = "SELECT " + ", ".join(f"{one} AS c{i}" for i, one in enumerate(made))
    with duckdb.connect(config={"arrow_lossless_conversion": "true"}) as connection:
        expected = connection.execute(f"SELECT COLUMNS(*)::VARCHAR FROM ({query})").fetchone()
        (batch,) = connection.execute(query).to_arrow_reader(10)
        moments = (
            "SELECT x, [x] AS l FROM (VALUES (TIMESTAMP_NS '2024-01-02 03:04:05.123456789'), (NULL)) t(x)"
        )
        (exact,) = connection.execute(moments).to_arrow_reader(10)
    for one, column, text in zip(made, batch.columns, expected, strict=True):
        assert [plain(value) for value in python_values(column)] == [text], one
    moment = "2024-01-02T03:04:05.123456789"
    assert [python_values(column) for column in exact.columns] == [[moment, None], [[moment], [None]]]


def test_parquet_holds_the_values_or_names_the_column() -> None:
    def written(values: str) -> pa.Table:
        with duckdb.connect(config={"arrow_lossless_conversion": "true"}) as connection:
            reader = connection.execute(f"SELECT {values} AS x").to_arrow_reader(10)
            out = io.BytesIO()
            render_batches(reader.schema, reader, "parquet", out)
        return pq.read_table(out).column("x").to_pylist()[0]

    uuid = "00000000-0000-0000-0000-000000000001"
    assert written("'0101'::BIT") == "0101" and written(f"UUID '{uuid}'") == uuid
    assert written("-5::HUGEINT") == -5 and written("json('[1]')") == "[1]"
    for value in ("(1e38)::UHUGEINT * 3", "TIMETZ '01:02:03+05:30'", "1::BIGNUM", "[1::BIGNUM]"):
        with pytest.raises(InvalidInput, match=r"'x'.*: cast that column"):
            written(value)
    for value in ("INTERVAL 1 DAY", "union_value(k := 2)"):
        with pytest.raises(InvalidInput, match="Parquet lacks a type"):
            written(value)
