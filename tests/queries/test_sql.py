"""`sql` against real DuckDB files: what it answers, what it refuses, and what it cannot be made to do."""

from __future__ import annotations

import hashlib
import io
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import duckdb
import pytest

from signarium.catalog.errors import (
    CatalogueBusy,
    CatalogueMissing,
    InvalidInput,
    NotACatalogue,
    QueryFailed,
    QueryLimit,
    QueryRefused,
)
from signarium.commands.render.formats import render_batches
from signarium.queries import sql as module
from signarium.queries.sql import Limits, one_line, parse_memory, sql, stream

pytestmark = pytest.mark.long

MEMORY = "300MB"
BIG_ID = 2**63 - 1


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sql") / "c.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("create table t as select range as i, 'n' || range as name from range(10)")
        connection.execute(f"insert into t values ({BIG_ID}, 'big')")
        connection.execute("create macro hamming(a, b) as bit_count(xor(a::BIT, b::BIT))")
        connection.execute("create view named as select name from t")
    return path


@pytest.fixture
def catalogue(made: Path) -> Iterator[Path]:
    """The file, whose bytes and neighbours no test may change."""
    before = hashlib.sha256(made.read_bytes()).hexdigest()
    beside = sorted(made.parent.iterdir())
    yield made
    assert hashlib.sha256(made.read_bytes()).hexdigest() == before
    assert sorted(made.parent.iterdir()) == beside


def write(path: Path, query: str, out: BinaryIO, **options: Any) -> int:
    """The result as CSV, as it arrives; the number of its rows."""
    with stream(path, query, Limits(**options), exact=True) as reader:
        return render_batches(reader.schema, reader, "csv", out)


def answer(path: Path, query: str, **options: object) -> str:
    """The result as CSV."""
    out = io.BytesIO()
    write(path, query, out, **options)
    return out.getvalue().decode()


# ---- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("select 1 as a", [{"a": 1}]),
        ("select count(*) as n from t;", [{"n": 11}]),
        ("from t where i = 3", [{"i": 3, "name": "n3"}]),
        ("with a as (select 7 as x) from a", [{"x": 7}]),
        ("values (1)", [{"col0": 1}]),
        ("/* ; drop table t */ select 'a;b' as s -- ; drop table t", [{"s": "a;b"}]),
        ("select hamming('\\xFF'::blob, '\\x0F'::blob) as d", [{"d": 4}]),
        ("select max(i) as i from t", [{"i": BIG_ID}]),
        ("show tables", [{"name": "named"}, {"name": "t"}]),
        ("select 1 as a where false", []),
        ("select '\\x00\\xAB'::blob as b", [{"b": b"\x00\xab"}]),
    ],
)
def test_answers(catalogue: Path, query: str, rows: list[dict[str, object]]) -> None:
    assert sql(catalogue, query).to_pylist() == rows


@pytest.mark.parametrize(
    "query",
    [
        "explain select * from t",
        "EXPLAIN (select 1)",
        "explain /**/ analyze select 1",
        "explain (format json) from t",
    ],
)
def test_explains(catalogue: Path, query: str) -> None:
    assert sql(catalogue, query).column_names == ["explain_key", "explain_value"]


def test_settings_hold(catalogue: Path) -> None:
    names = ("enable_external_access", "lock_configuration", "autoload_known_extensions", "temp_directory")
    found = sql(catalogue, f"select name, value from duckdb_settings() where name in {names}").to_pylist()
    assert {row["name"]: row["value"] for row in found} == {
        "enable_external_access": "false",
        "lock_configuration": "true",
        "autoload_known_extensions": "false",
        "temp_directory": "",
    }


# ---- refusals -----------------------------------------------------------------------------------

STATEMENTS = [
    "copy t to '{out}'",
    "attach '{out}' as o",
    "install httpfs",
    "load httpfs",
    "set threads = 1",
    "reset threads",
    "pragma version",
    "pragma table_info('t')",
    "drop table t",
    "create table x (i int)",
    "create temp macro hamming(a, b) as 0",
    "create temp table x as select 1",
    "insert into t values (1, 'x')",
    "update t set i = 0",
    "delete from t",
    "call enable_logging('QueryLog')",
    "checkpoint",
    "vacuum",
    "begin",
    "prepare p as select 1",
    "use memory",
    "export database '{out}'",
    "import database '{out}'",
    "detach c",
    "select 1; select 2",
    "select 1; drop table t",
    "select 1;;/**/ drop table t",
    "select 1 -- \n; drop table t",
    "; drop table t",
    "/* select 1 */ drop table t",
    "explain analyze copy t to '{out}'",
    "explain (analyze) copy t to '{out}'",
    "explain (analyze, format json) insert into t values (1, 'x')",
    "explain analyze create table x as select 1",
    "explain copy t to '{out}'",
    "explain pragma version",
    "explain select 1; drop table t",
    "explain",
    "",
    "  -- nothing",
    ";",
    "select 1\0; drop table t",
    "pivot t on name using sum(i)",
    "from enable_logging()",
    "select * from main.\"ENABLE_logging\"(storage = 'file', storage_config = {{'path': '{out}'}})",
    "with a as (select (select count(*) from checkpoint())) from a",
    "explain analyze from enable_logging()",
    "from disable_logging()",
    "from enable_profiling()",
    "select write_log('x')",
    "from query('from enable_' || 'logging()')",
    "from json_execute_serialized_sql(json_serialize_sql('from enable_logging()'))",
    "from pandas_scan(1)",
    "from read_csv('/etc/passwd')",
    "from read_text('/etc/passwd')",
    "from read_blob('/etc/passwd')",
    "from read_duckdb('{out}')",
    "from sniff_csv('/etc/passwd')",
    "from parquet_metadata('/etc/passwd')",
    "from glob('/*')",
    "from read_csv('http://127.0.0.1:9/x.csv')",
    "explain analyze from read_text('/etc/passwd')",
]


# One test for many queries keeps the suite short: each costs a process.
@pytest.mark.parametrize("part", range(4))
def test_refuses(catalogue: Path, tmp_path: Path, part: int) -> None:
    out = tmp_path / "out"
    for query in STATEMENTS[part::4]:
        with pytest.raises(QueryRefused) as caught:
            answer(catalogue, query.format(out=out))
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == [], query


@pytest.mark.parametrize(
    "query", ["copy t to '{out}'", "explain analyze copy t to '{out}'", "attach '{out}'"]
)
def test_refuses_writing_even_with_files(catalogue: Path, tmp_path: Path, query: str) -> None:
    with pytest.raises(QueryRefused):
        answer(catalogue, query.format(out=tmp_path / "out"), allow_files=True)
    assert list(tmp_path.iterdir()) == []


def test_files_when_allowed(catalogue: Path, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    found = sql(catalogue, f"from read_csv('{tmp_path}/x.csv')", Limits(allow_files=True))
    assert found.to_pylist() == [{"a": 1, "b": 2}]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("select nam from t", 'Candidate bindings: "name"'),
        ("from named2", 'Did you mean "named"?'),
        ("select 1 +", "syntax error"),
        ("from '/etc/passwd'", "does not exist"),
        ("select getenv('HOME')", "does not exist"),
        ("from query_table('/etc/passwd')", "does not exist"),
        ("select ?", "Values were not provided"),
        ("select sqrt(-1 - i) from t", "square root of a negative number"),
        ("select error('a' || chr(27) || '[2J')", "a␛[2J"),
        ("select" + " (" * 20_000 + "1" + ")" * 20_000, "Parser Error"),
        ("select " + "- " * 50_000 + "1", "Parser Error"),
        ("select " + "+".join(["1"] * 20_000), "depth"),
    ],
)
def test_fails_in_one_line(catalogue: Path, query: str, said: str) -> None:
    with pytest.raises(QueryFailed) as caught:
        answer(catalogue, query)
    message = str(caught.value)
    assert said in message
    assert not any(sign in message for sign in ("\n", "\x1b", "LINE", "^", "Traceback", "Stack"))
    assert len(message) < 700


def test_deep_but_legal_nesting(catalogue: Path) -> None:
    query = "select " + "[" * 60 + "1" + "]" * 60 + " as x"
    assert answer(catalogue, query) == "x\n" + "[" * 60 + "1" + "]" * 60 + "\n"
    with pytest.raises(QueryFailed):  # Arrow's streams nest 64 deep
        sql(catalogue, query.replace("[", "[[").replace("]", "]]"))


# ---- limits -------------------------------------------------------------------------------------

BOMBS = [
    "select list(range) from range(1000000000)",
    "select repeat(repeat('x', 1000000), 500)",
    "select a.range, b.range from range(100000) a, range(100000) b order by hash(a.range, b.range)",
    "select string_agg(range::varchar, ',') from range(1000000000)",
    "select i from (select unnest(range(1000000000)) i)",
]


def test_memory_bombs(catalogue: Path) -> None:
    """In a process of its own, so that the peak of all children is that of these."""
    code = """
import resource, sys
from pathlib import Path
from signarium.catalog.errors import QueryLimit
from signarium.commands.render.formats import render_batches
from signarium.queries.sql import Limits, stream
for query in sys.argv[2:]:
    try:
        with open("/dev/null", "wb") as out:
            with stream(sys.argv[1], query, Limits(memory="300MB", timeout=20), exact=True) as reader:
                render_batches(reader.schema, reader, "csv", out)
        print("answered", query)
    except QueryLimit as error:
        assert "memory" in str(error) and "\\n" not in str(error), error
# ru_maxrss of a process itself counts what it was before exec.
own = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, own)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(catalogue), *BOMBS],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    last = done.stdout.split()
    assert len(last) == 2, done.stdout
    children, parent = (int(word) * 1024 for word in last)  # kilobytes on Linux
    assert children < 300e6 + 200e6  # the limit, the loaded libraries and the threads' stacks
    assert parent < 100e6


@pytest.mark.parametrize(
    "query",
    [
        "with recursive r as (select 1 i union all select i + 1 from r) select max(i) from r",
        "select count(*) from range(10000000000) a, range(1000000) b where hash(a.range) = hash(b.range + 1)",
        "select max(regexp_matches(repeat('a', 30000) || range, '(a*)*(a*)*b')) from range(1000000)",
        "select sleep_ms(100000)",
    ],
)
def test_time_bombs(catalogue: Path, query: str) -> None:
    start = time.monotonic()
    with pytest.raises(QueryLimit, match=r"0.7 s"):
        answer(catalogue, query, timeout=0.7, memory=MEMORY)
    assert time.monotonic() - start < 5


def test_result_is_bounded(catalogue: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(QueryLimit, match="add LIMIT"):
        sql(catalogue, "from range(1000000000000)", Limits(max_bytes=20_000_000))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # kilobytes


def test_streams_stay_flat_and_time_of_the_reader_does_not_count(catalogue: Path) -> None:
    class Slow:
        size = 0

        def write(self, data: bytes) -> int:
            if not self.size:
                time.sleep(2.2)
            self.size += len(data)
            return len(data)

        def flush(self) -> None:
            return None

    out = Slow()
    rows = write(catalogue, "select range, 'xxxxxxxxxx' from range(200000)", out, timeout=2)  # type: ignore[arg-type]
    assert rows == 200_000
    assert out.size > 3_000_000


# ---- a child that does not answer ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        ("", QueryFailed, "no answer"),
        ("print('hello there')", QueryFailed, "unreadable"),
        ("import sys; sys.exit('no module named x')", QueryFailed, "no module named x"),
        ("import os; os.kill(os.getpid(), 9)", QueryLimit, "SIGKILL"),
        ("import os; os.abort()", QueryLimit, "SIGABRT"),
        ("import os; os.kill(os.getpid(), 11)", QueryLimit, "SIGSEGV"),
        ("import os; os.write(1, b'Z' + b'\\3\\0\\0\\0' + b'}{x')", QueryFailed, "unreadable"),
        ("import os; os.write(1, b'Z' + b'\\7\\0\\0\\0' + b'{')", QueryFailed, "no answer"),
        ("import os; os.write(1, b'D' + b'\\xff\\xff\\xff\\xff')", QueryFailed, "unreadable"),
        ("import os, time; os.close(1); time.sleep(60)", QueryFailed, "closed its pipe"),
        ("import os, time; os.write(1, b'O' + bytes(4)); time.sleep(60)", QueryLimit, "0.5 s"),
        (
            "import os\nwhile True: os.write(2, b'x' * 9999), os.write(1, b'O' + bytes(4))",
            QueryFailed,
            "unreadable",
        ),
        (
            "import os\nos.write(1, b'O' + bytes(4))\nwhile True: os.write(1, b'D' + bytes(4))",
            QueryLimit,
            "0.5 s",
        ),
    ],
)
def test_a_child_gone_wrong(
    catalogue: Path, monkeypatch: pytest.MonkeyPatch, code: str, error: type[Exception], said: str
) -> None:
    monkeypatch.setattr(module, "_command", lambda: [sys.executable, "-I", "-S", "-c", code])
    start = time.monotonic()
    with pytest.raises(error, match=said):
        sql(catalogue, "select " + " " * 300_000 + "1", Limits(timeout=0.5))
    assert time.monotonic() - start < 8


def test_a_child_that_never_opens(catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module, "_command", lambda: [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"]
    )
    monkeypatch.setattr(module, "_START_S", 0.3)
    monkeypatch.setenv("SIGNARIUM_WAIT", "0")
    with pytest.raises(QueryLimit, match="did not start"):
        sql(catalogue, "select 1")


def test_the_child_dies_with_its_parent(catalogue: Path) -> None:
    code = "import sys\nfrom signarium.queries.sql import sql\nsql(sys.argv[1], 'select sleep_ms(60000)')"
    parent = subprocess.Popen([sys.executable, "-c", code, str(catalogue)])
    children: list[int] = []
    deadline = time.monotonic() + 10
    listing = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    if not listing.exists():
        parent.kill()
        pytest.skip("needs /proc")
    while not children and time.monotonic() < deadline:
        children = [int(word) for word in listing.read_text().split()]
        time.sleep(0.02)
    assert children
    time.sleep(0.5)  # far enough to be in the query
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 3
    alive = True
    while alive and time.monotonic() < deadline:
        stat = Path(f"/proc/{children[0]}/stat")
        alive = stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
        time.sleep(0.02)
    assert not alive


def test_the_environment_does_not_reach_the_child(catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "hidden-away")
    code = "import os, sys; sys.exit(' '.join(sorted(os.environ)))"
    monkeypatch.setattr(module, "_command", lambda: [sys.executable, "-I", "-S", "-c", code])
    with pytest.raises(QueryFailed, match="MALLOC_ARENA_MAX") as caught:
        sql(catalogue, "select 1")
    assert "SOME_TOKEN" not in str(caught.value)


# ---- the file -----------------------------------------------------------------------------------

HOLD = """
import duckdb, sys, time
connection = duckdb.connect(sys.argv[1])
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


def hold(path: Path, seconds: float) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    return holder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("create table t as select 5 as i")
    return path


def test_waits_for_the_lock_outside_the_deadline(own: Path) -> None:
    with hold(own, 1.0):
        start = time.monotonic()
        assert sql(own, "from t", Limits(timeout=0.8)).to_pylist() == [{"i": 5}]
        assert time.monotonic() - start > 0.5


def test_names_the_holder(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNARIUM_WAIT", "0.5")
    holder = hold(own, 60)
    try:
        start = time.monotonic()
        with pytest.raises(CatalogueBusy, match=f"PID {holder.pid}"):
            sql(own, "from t")
        assert 0.5 <= time.monotonic() - start < 4
    finally:
        holder.kill()
        holder.wait()
    assert holder.stdout is not None
    holder.stdout.close()


def test_reads_what_a_killed_writer_had_committed(own: Path) -> None:
    code = (
        "import duckdb, os, sys; connection = duckdb.connect(sys.argv[1]); "
        "connection.execute('insert into t values (6)'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(own)]).returncode == -9
    wal = own.with_name(own.name + ".wal")
    before = (own.read_bytes(), wal.read_bytes())
    assert sql(own, "from t order by i").to_pylist() == [{"i": 5}, {"i": 6}]
    assert (own.read_bytes(), wal.read_bytes()) == before


def test_two_readers_at_once(own: Path) -> None:
    with duckdb.connect(str(own), read_only=True):
        assert sql(own, "from t").num_rows == 1


@pytest.mark.parametrize(
    ("content", "error"), [(None, CatalogueMissing), (b"", NotACatalogue), (b"hello" * 5000, NotACatalogue)]
)
def test_files_that_are_no_catalogue(tmp_path: Path, content: bytes | None, error: type[Exception]) -> None:
    path = tmp_path / "x.duckdb"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error):
        sql(path, "select 1")
    assert path.exists() == (content is not None)
    with pytest.raises(NotACatalogue):
        sql(tmp_path, "select 1")


def test_a_truncated_file(own: Path) -> None:
    own.write_bytes(own.read_bytes()[:5000])
    with pytest.raises(NotACatalogue):
        sql(own, "select 1")


# ---- usage ---------------------------------------------------------------------------------------


def test_wrong_usage(catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match="timeout"):
        sql(catalogue, "select 1", Limits(timeout=0))
    with pytest.raises(InvalidInput, match="memory"):
        sql(catalogue, "select 1", Limits(memory="lots"))
    monkeypatch.setenv("SIGNARIUM_WAIT", "soon")
    with pytest.raises(InvalidInput, match="SIGNARIUM_WAIT"):
        sql(catalogue, "select 1")


def test_memory_sizes() -> None:
    assert parse_memory("2GB") == 2_000_000_000
    assert parse_memory("1.5GiB") == 1_610_612_736
    assert parse_memory("512m") == 512_000_000
    assert parse_memory(64_000_000) == 64_000_000
    for bad in ("0", "-1GB", "1EB", "31MB", ""):
        with pytest.raises(InvalidInput):
            parse_memory(bad)


def test_messages_on_one_line() -> None:
    message = 'Binder Error: x!\nDid you mean "y"?\n\nLINE 2:  foo(3)) from t\n         ^'
    assert one_line(message) == 'Binder Error: x! Did you mean "y"? (line 2)'
    assert one_line("INTERNAL Error: a\n\nStack Trace:\n0 x") == "INTERNAL Error: a"


def test_the_parent_loads_no_database(catalogue: Path) -> None:
    code = (
        "import sys\nfrom signarium.queries.sql import stream\n"
        "with stream(sys.argv[1], 'select 1') as reader: reader.read_all()\n"
        "print(sorted({'duckdb', 'rich', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(catalogue)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_the_first_rows_alone_are_computed(catalogue: Path) -> None:
    found = sql(catalogue, "select range as i from range(1000000000000)", Limits(rows=3))
    assert found.column("i").to_pylist() == [0, 1, 2]


def test_batches_are_small(catalogue: Path) -> None:
    query = "select repeat('x', 100000) as x from range(500)"
    with stream(catalogue, query) as reader:
        sizes = [batch.nbytes for batch in reader]
    assert len(sizes) > 10 and max(sizes) < 5e6


def test_a_message_of_any_length_is_cut(catalogue: Path) -> None:
    with pytest.raises(QueryFailed, match="Could not convert string") as caught:
        sql(catalogue, "SELECT repeat('a', 3000000)::INT")
    assert len(str(caught.value)) < 700


def test_a_type_that_arrow_lacks_is_named(catalogue: Path) -> None:
    with pytest.raises(QueryFailed, match=r"the type VARIANT.*cast that column"):
        sql(catalogue, "SELECT 42::VARIANT AS x")
