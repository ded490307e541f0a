"""Integrity: the references that the schema does not enforce, the bytes of the codes, and the index files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import index, store
from .codes import n_bytes
from .engines.flat import faiss
from .errors import InvalidInput, SignariumError

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, how many things, how many of them are wrong."""

    check: str
    looked_at: int
    wrong: int

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return self.wrong == 0


_REFERENCES = (
    ("runs without their model", "run", "model_id NOT IN (SELECT model_id FROM model)"),
    ("sites without their model", "site", "model_id NOT IN (SELECT model_id FROM model)"),
    ("shards without their run", "shard", "run_id NOT IN (SELECT run_id FROM run)"),
    ("code sets without their run", "code_set", "run_id NOT IN (SELECT run_id FROM run)"),
    ("code sets without their site", "code_set", "site_id NOT IN (SELECT site_id FROM site)"),
    ("codes without their code set", "code_row", "code_set_id NOT IN (SELECT code_set_id FROM code_set)"),
    (
        "states without their document",
        "state_row",
        "document_id NOT IN (SELECT document_id FROM document_row)",
    ),
    ("texts of runs that are not there", "run_text", "text_id NOT IN (SELECT text_id FROM text_file)"),
    ("statistics without their site", "dimension_row", "site_id NOT IN (SELECT site_id FROM site)"),
    ("texts without their run", "run_text", "run_id NOT IN (SELECT run_id FROM run)"),
    ("statistics without their run", "dimension_row", "run_id NOT IN (SELECT run_id FROM run)"),
    ("measurements without their run", "measurement_row", "run_id NOT IN (SELECT run_id FROM run)"),
    ("measurements without their site", "measurement_row", "site_id NOT IN (SELECT site_id FROM site)"),
    ("features without their run", "feature_row", "run_id NOT IN (SELECT run_id FROM run)"),
    ("features without their site", "feature_row", "site_id NOT IN (SELECT site_id FROM site)"),
    (
        "members without their feature",
        "feature_member",
        "feature_id NOT IN (SELECT feature_id FROM feature_row)",
    ),
    (
        "types without their feature",
        "feature_type_row",
        "feature_id NOT IN (SELECT feature_id FROM feature_row)",
    ),
    (
        "states without their feature",
        "feature_state_row",
        "feature_id NOT IN (SELECT feature_id FROM feature_row)",
    ),
    ("states of features without their run", "feature_state_row", "run_id NOT IN (SELECT run_id FROM run)"),
    (
        "states of features that are not there",
        "feature_state_row",
        "state_id NOT IN (SELECT state_id FROM state_row)",
    ),
    ("writers without their feature", "writer_row", "feature_id NOT IN (SELECT feature_id FROM feature_row)"),
    (
        "coalitions without their feature",
        "coalition_row",
        "feature_id NOT IN (SELECT feature_id FROM feature_row)",
    ),
    ("projections without their run", "projection_row", "run_id NOT IN (SELECT run_id FROM run)"),
    ("projections without their site", "projection_row", "site_id NOT IN (SELECT site_id FROM site)"),
    ("flips without their run", "flip_row", "run_id NOT IN (SELECT run_id FROM run)"),
    ("flips without their feature", "flip_row", "feature_id NOT IN (SELECT feature_id FROM feature_row)"),
    ("flips without their site", "flip_row", "site_id NOT IN (SELECT site_id FROM site)"),
    ("rotations without their run", "rotation_row", "run_id NOT IN (SELECT run_id FROM run)"),
    ("rotations without their site in A", "rotation_row", "site_a_id NOT IN (SELECT site_id FROM site)"),
    ("rotations without their site in B", "rotation_row", "site_b_id NOT IN (SELECT site_id FROM site)"),
    *(
        (f"{what} without their rotation", table, "rotation_id NOT IN (SELECT rotation_id FROM rotation_row)")
        for what, table in (
            ("components", "rotation_component_row"),
            ("carried features", "carried_row"),
            ("steering directions", "steering_row"),
        )
    ),
    (
        "carried features that are not there",
        "carried_row",
        "feature_id NOT IN (SELECT feature_id FROM feature_row)",
    ),
    ("dictionaries without their run", "sae", "run_id NOT IN (SELECT run_id FROM run)"),
    ("dictionaries without their site", "sae", "site_id NOT IN (SELECT site_id FROM site)"),
    (
        "index records without their code set",
        "index_part",
        "code_set_id NOT IN (SELECT code_set_id FROM code_set)",
    ),
)

_ONCE = (
    ("documents", "document_row", "document_id"),
    ("tokens", "token_row", "tokenizer, token_id"),
    ("statistics", "dimension_row", "run_id, site_id, subject, dim"),
    ("texts of runs", "run_text", "run_id, place"),
    (
        "measurements",
        "measurement_row",
        "run_id, site_id, subject, subject_id, metric, control, split",
    ),
    ("features", "feature_row", "feature_id"),
    ("members of features", "feature_member", "feature_id, token_id"),
    ("types of features", "feature_type_row", "feature_id, token_id"),
    ("states of features", "feature_state_row", "run_id, feature_id, state_id"),
    ("writers", "writer_row", "feature_id, neuron"),
    ("coalitions", "coalition_row", "feature_id, k"),
    ("projections", "projection_row", "run_id, site_id, subject, item, source, direction, rank"),
    ("flips", "flip_row", "run_id, site_id, arm, dose, at_norm"),
    ("rotations", "rotation_row", "rotation_id"),
    ("components", "rotation_component_row", "rotation_id, component"),
    ("carried features", "carried_row", "feature_id"),
    ("steering", "steering_row", "rotation_id, direction, arm, dose"),
)
"""Bulk tables have no keys, and a doubled row would double rows of a view. Codes and states are counted below."""


def verify(path: Path) -> list[Finding]:
    """Check the whole catalogue at `path`; one finding a check, in a fixed order. Nothing is changed.

    Raises:
        SignariumError: if the file cannot be opened or read at all.
    """
    import duckdb

    findings = []
    with store.reading(path) as connection:
        try:
            for what, table, condition in _REFERENCES:
                findings.append(_count(connection, what, table, condition))
            for what, table, key in _ONCE:
                query = f"SELECT count(*), count(*) - count(DISTINCT ({key})) FROM {table}"
                findings.append(Finding(f"{what} stored twice", *_row(connection, query)))
            findings += _codes(connection)
            findings.append(_patterns(connection))
            findings.append(_documents(connection))
            findings.append(_indexes(path, connection))
        except duckdb.Error as error:
            raise SignariumError(
                f"{path} cannot be read to its end ({str(error).splitlines()[0][:160]})",
                "restore it from a copy",
            ) from error
    return findings


def _count(connection: duckdb.DuckDBPyConnection, what: str, table: str, condition: str) -> Finding:
    return Finding(what, *_row(connection, f"SELECT count(*), count(*) FILTER ({condition}) FROM {table}"))


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
        wrong += not same
    return Finding(check, looked, wrong)
