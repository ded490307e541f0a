"""Removing a run or a model, with all rows that depend on it.

What depends on a row is what refers to it: the references of `parts` say so, as they do for `verify`. Beside those, what
a model's codes were read for goes with a run that wrote codes. Texts and tokens are shared by runs and models, and go
with the last that has them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import digests, index, parts, store
from .errors import NotFound
from .ids import PLACE_BITS

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

_READ: dict[str, tuple[str, ...] | None] = {
    "types": None,
    "types_bos": (),
    "states": ("context", "feature_states"),
}
"""Jobs that write codes, and which later jobs of their model read those; None: all."""


def remove(path: Path, table: str, column: str, value: str, dry_run: bool = False) -> dict[str, int]:
    """Delete the row of `table` (`run` or `model`) whose `column` is `value`, and what depends on it, in one transaction.

    Index files of code sets that are gone go too. `dry_run` changes nothing.

    Returns:
        How many rows go, by what messages call them, of the tables that lose some.

    Raises:
        NotFound: if there is no such row.
        IngestRunning: if a job writes to the catalogue.
    """
    with store.job_lock(path):
        with store.writing(path) as session:
            removal = _Removal(session)
            removal.start(table, column, value)
            removal.spread()
            counts = removal.counts()
            if dry_run:
                session.rollback()
                return counts
            removal.delete()
        with store.reading(path) as connection:
            kept = connection.execute("SELECT code_set_id FROM code_set").fetchall()
        index.prune(path, [row[0] for row in kept])
    return counts


class _Removal:
    """The keys of the rows that go stand in a temporary table for each table that others refer to."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._execute: Any = session.connection().exec_driver_sql
        self._tables = parts.tables()
        self._keys = {"text_file": "text_id", "document_row": "document_id"}
        for table in self._tables.values():
            for column in table.columns:
                if column.reference is not None:
                    target, key = parts.target(column)
                    self._keys[target.name] = key
        for name, key in self._keys.items():
            self._execute(f"CREATE OR REPLACE TEMP TABLE {_gone(name)} AS SELECT {key} FROM {name} LIMIT 0")

    def start(self, table: str, column: str, value: str) -> None:
        """What is to be removed first."""
        there = self._execute(f"SELECT {column} FROM {table} ORDER BY {column}").fetchall()
        if value not in [row[0] for row in there]:
            raise NotFound(table, value, [row[0] for row in there])
        quoted = value.replace("'", "''")
        self._add(table, f"{column} = '{quoted}'")

    def spread(self) -> None:
        """All that depends on it."""
        grown = True
        while grown:
            grown = False
            for name in self._keys:
                for condition in self._conditions(name):
                    grown = self._add(name, condition) or grown

    def _conditions(self, name: str) -> list[str]:
        """Which rows of a table go, by what went of others."""
        found = []
        for column in self._tables[name].columns:
            if column.reference is not None:
                target, key = parts.target(column)
                found.append(f"{column.name} IN (SELECT {key} FROM {_gone(target.name)})")
        if name == "run":
            for job, readers in _READ.items():
                if readers == ():
                    continue
                reads = f"NOT IN {tuple(_READ)}" if readers is None else f"IN {readers}"
                found.append(
                    f"job {reads} AND EXISTS (SELECT 1 FROM run w JOIN {_gone('run')} USING (run_id) JOIN shard USING (run_id) "
                    f"WHERE w.job = '{job}' AND w.model_id = run.model_id AND w.started_at <= run.started_at)"
                )
        elif name == "text_file":
            found.append(
                f"text_id IN (SELECT text_id FROM run_text WHERE run_id IN (SELECT run_id FROM {_gone('run')})) "
                f"AND text_id NOT IN (SELECT text_id FROM run_text WHERE run_id NOT IN (SELECT run_id FROM {_gone('run')}))"
            )
        elif name == "document_row":
            found.append(
                f"document_id >> {PLACE_BITS} IN (SELECT text_id >> {PLACE_BITS} FROM {_gone('text_file')})"
            )
        return found

    def _add(self, name: str, condition: str) -> bool:
        key = self._keys[name]
        added = self._execute(
            f"INSERT INTO {_gone(name)} SELECT DISTINCT {key} FROM {name} "
            f"WHERE ({condition}) AND {key} NOT IN (SELECT {key} FROM {_gone(name)})"
        )
        return bool(added.fetchone()[0])

    def _where(self) -> dict[str, str]:
        """The rows that go, of every table."""
        found = {}
        for name in self._tables:
            if name in self._keys:
                found[name] = f"{self._keys[name]} IN (SELECT {self._keys[name]} FROM {_gone(name)})"
            elif conditions := self._conditions(name):
                found[name] = " OR ".join(conditions)
        return found

    def counts(self) -> dict[str, int]:
        """How many rows go."""
        found = {}
        for name, condition in self._where().items():
            (n,) = self._execute(f"SELECT count(*) FROM {name} WHERE {condition}").fetchone()
            if n:
                found[self._tables[name].rows] = int(n)
        return found

    def delete(self) -> None:
        """Delete them; tokens go with the last model that has their tokenizer."""
        for name, condition in self._where().items():
            digests.forget(self._session, name, condition, self._gone_groups(name))
        for name, condition in self._where().items():
            self._execute(f"DELETE FROM {name} WHERE {condition}")
        unused = "tokenizer NOT IN (SELECT tokenizer_sha256 FROM model)"
        digests.forget(
            self._session, "token_row", unused, "owner NOT IN (SELECT tokenizer_sha256 FROM model)"
        )
        self._execute(f"DELETE FROM token_row WHERE {unused}")

    def _gone_groups(self, name: str) -> str:
        """Which groups of a table have lost what they belong to; they may have lost rows before."""
        owner, block = digests.columns(self._tables[name])
        column = self._tables[name].column(owner or block)
        if column is None:
            return "false"
        if self._keys.get(name) == column.name:
            target, key = name, column.name
        elif column.reference is not None:
            table, key = parts.target(column)
            target = table.name
        else:
            return "false"
        if owner:
            return f"owner IN (SELECT {key}::VARCHAR FROM {_gone(target)})"
        return f"block IN (SELECT {key} >> {digests.BLOCK_BITS} FROM {_gone(target)})"


def _gone(name: str) -> str:
    return f"gone_{name}"
