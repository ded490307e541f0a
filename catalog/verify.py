"""Integrity: the references that the schema does not enforce, the bytes of the codes, and the index files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import digests, index, parts, store
from .approximate import is_damaged
from .codes import n_bytes
from .engines.flat import faiss
from .errors import InvalidInput, SignariumError
from .ids import PLACE_BITS
from .part import Table

if TYPE_CHECKING:
    import duckdb

_NAMED = 3
"""So many wrong groups of a table are named."""


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, how many things, how many of them are wrong; and where, if more is known of that."""

    check: str
    looked_at: int
    wrong: int
    where: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return self.wrong == 0


def verify(path: Path) -> list[Finding]:
    """Check the whole catalogue at `path`; one finding a check, in a fixed order. Nothing is changed.

    Raises:
        SignariumError: if the file cannot be opened or read at all.
    """
    import duckdb

    findings: list[Finding] = []
    with store.reading(path) as connection:
        try:
            findings += _references(connection)
            findings += _doubled(connection)
            findings += _codes(connection)
            findings.append(_patterns(connection))
            findings.append(_documents(connection))
            findings += _digests(connection)
            findings.append(_indexes(path, connection))
        except duckdb.Error as error:
            raise SignariumError(
                f"{path} cannot be read to its end ({str(error).splitlines()[0][:160]})",
                "restore it from a copy",
            ) from error
    return findings


def _references(connection: duckdb.DuckDBPyConnection) -> Iterator[Finding]:
    """Whether every row has what its references name; the schema itself has no foreign keys."""
    for table in parts.tables().values():
        for column in table.columns:
            if column.reference is None:
                continue
            other, key = parts.target(column)
            check = column.reference.check or f"{table.rows} without their {other.row}"
            lost = f"count(*) FILTER ({column.name} NOT IN (SELECT {key} FROM {other.name}))"
            yield Finding(check, *_row(connection, f"SELECT count(*), {lost} FROM {table.name}"))


def _doubled(connection: duckdb.DuckDBPyConnection) -> Iterator[Finding]:
    """Whether a key names one row: bulk tables have none to maintain, and a doubled row would double rows of a view.

    Codes and states are counted with what they belong to.
    """
    for table in parts.tables().values():
        if table.key:
            doubled = f"count(*) - count(DISTINCT ({', '.join(table.key)}))"
            yield Finding(
                f"{table.rows} stored twice",
                *_row(connection, f"SELECT count(*), {doubled} FROM {table.name}"),
            )


def _row(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[int, int]:
    row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def _codes(connection: duckdb.DuckDBPyConnection) -> list[Finding]:
    """Lengths, padding, norms, and one row for each item that the shards say is done."""
    rows = connection.execute(
        """SELECT count(c.item) AS n, count(DISTINCT c.item) AS items, cs.width,
          count(*) FILTER (octet_length(c.code) <> (cs.width + 7) // 8) AS short,
          count(*) FILTER (NOT isfinite(c.norm) OR c.norm < 0) AS norms,
          coalesce((SELECT sum(tokens) FROM shard h WHERE h.run_id = cs.run_id), 0) AS expected, cs.code_set_id
        FROM code_set cs LEFT JOIN code_row c USING (code_set_id) GROUP BY ALL ORDER BY cs.code_set_id"""
    ).fetchall()
    total = sum(row[0] for row in rows)
    padding = 0
    for _, _, width, short, _, _, ident in rows:
        if width % 8 and not short:
            found = connection.execute(
                "SELECT count(*) FROM code_row WHERE code_set_id = ? AND "
                f"bit_count(right(code::BIT::VARCHAR, {-width % 8})::BIT) > 0",
                [ident],
            ).fetchone()
            padding += found[0] if found else 0
    miscounted = sum(not n == items == expected for n, items, _, _, _, expected, _ in rows)
    return [
        Finding("codes of the wrong length", total, sum(row[3] for row in rows)),
        Finding("codes with bits past their width", total, padding),
        Finding("norms that are no lengths", total, sum(row[4] for row in rows)),
        Finding("code sets with missing, doubled or extra codes", len(rows), miscounted),
    ]


def _patterns(connection: duckdb.DuckDBPyConnection) -> Finding:
    """Whether mask and polarity of every feature have its site's width, and registered dimensions as it says."""
    rows = connection.execute(
        "SELECT f.mask, f.polarity, f.n_dims, s.width FROM feature_row f JOIN site s USING (site_id)"
    )
    looked, wrong = 0, 0
    while batch := rows.fetchmany(10_000):
        looked += len(batch)
        wrong += sum(not _is_pattern(*row) for row in batch)
    return Finding("features with a damaged mask", looked, wrong)


def _is_pattern(mask: bytes, polarity: bytes, n_dims: int, width: int) -> bool:
    size = n_bytes(width)
    if not len(mask) == len(polarity) == size:
        return False
    bits, signs = int.from_bytes(mask, "big"), int.from_bytes(polarity, "big")
    padding = (1 << 8 * size - width) - 1
    return bits.bit_count() == n_dims > 0 and not signs & ~bits and not bits & padding


def _documents(connection: duckdb.DuckDBPyConnection) -> Finding:
    """Whether every document has its tokens and the text that its hash says."""
    rows = connection.execute(
        """SELECT d.text, d.sha256, d.n_tokens, coalesce(s.n, 0) FROM document_row d
        LEFT JOIN (SELECT document_id, count(*) AS n FROM state_row GROUP BY document_id) s USING (document_id)"""
    )
    looked, wrong = 0, 0
    while batch := rows.fetchmany(10_000):
        looked += len(batch)
        wrong += sum(
            n != found or hashlib.sha256(text.encode()).hexdigest() != sha256
            for text, sha256, n, found in batch
        )
    return Finding("documents whose text or tokens changed", looked, wrong)


def _digests(connection: duckdb.DuckDBPyConnection) -> Iterator[Finding]:
    """Whether the rows of each table are those that were written; wrong are groups of them, as `digests` divides them."""
    older = 0
    for table in digests.tables():
        looked, wrong = digests.changed(connection, table)
        if wrong is None:
            older += looked
            continue
        places = list(dict.fromkeys(_place(connection, table, *group) for group in wrong[:_NAMED]))
        if len(wrong) > _NAMED:
            places.append(f"and {len(wrong) - _NAMED} more")
        yield Finding(
            f"{table.rows} that are not as they were written", looked, len(wrong), "; ".join(places)
        )
    if older:
        yield Finding("rows from before digests were kept, not covered", older, 0)


def _place(connection: duckdb.DuckDBPyConnection, table: Table, owner: str, block: int) -> str:
    """A group of rows in words: of which run and model, and which ids."""
    owners, ids = digests.columns(table)
    first = block << digests.BLOCK_BITS
    some = f"{ids} {first} to {first + (1 << digests.BLOCK_BITS) - 1}"

    def named(query: str, value: object, otherwise: str) -> str:
        found = connection.execute(f"{query} ORDER BY ALL", [value]).fetchall()
        return ", ".join(row[0] for row in found) or otherwise

    run = (
        "SELECT 'run ' || r.run_id || ' (' || r.job || ') of ' || coalesce(m.name, r.model_id) "
        "FROM run r LEFT JOIN model m USING (model_id) "
    )
    if owners == "run_id":
        return named(f"{run} WHERE r.run_id = ?", owner, f"run {owner}")
    if owners == "code_set_id":
        told = named(
            "SELECT 'run ' || run_id || ' of ' || model || ': ' || subject || ' at ' || site || ', centre ' || centre "
            "FROM code_sets WHERE code_set_id = ?",
            int(owner),
            f"code set {owner}",
        )
        return f"{told}, {some}"
    if owners == "tokenizer":
        return f"{named('SELECT name FROM model WHERE tokenizer_sha256 = ?', owner, f'tokenizer {owner}')}, {some}"
    if owners:
        return owner
    column = table.column(ids)
    target = table if column is None or column.reference is None else parts.target(column)[0]
    if target.column("run_id") is not None:
        key = target.key[0]
        made = f"{run} WHERE r.run_id IN (SELECT run_id FROM {target.name} WHERE {key} >> {digests.BLOCK_BITS} = ?)"
        return named(made, block, some)
    return f"{named('SELECT name FROM text_file WHERE text_id >> 32 = ?', first >> PLACE_BITS, 'a text')}, {some}"


def _indexes(path: Path, connection: duckdb.DuckDBPyConnection) -> Finding:
    """Whether the index files of this state of the catalogue hold its codes, byte for byte.

    Missing and stale ones are made anew when they are wanted; without FAISS there is nothing to use them.
    """
    check = "index files that differ from the catalogue"
    try:
        faiss()
    except SignariumError:
        return Finding(check, 0, 0)
    looked, wrong = 0, 0
    for info in index.describe(connection, "true", []):
        if index.read_manifest(path, info) is None:
            continue
        looked += 1
        one = index.open_index(path, info)
        try:
            same = one is not None and index.agrees(one, info, connection)
        except InvalidInput:
            # A code of another length, which has a finding of its own.
            same = False
        wrong += not same or bool(is_damaged(path, info))
    return Finding(check, looked, wrong)
