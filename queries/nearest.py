"""Nearest codes by Hamming distance: what to search, with which code, among which rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..catalog import codes, index, store
from ..catalog.errors import InvalidInput, NotFound
from ..catalog.index import CodeSetInfo
from .models import one_model

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

SUBJECTS = {
    "states": ("state", "state_id"),
    "types": ("type", "token_id"),
    "types_bos": ("type_bos", "token_id"),
}
"""What `--in` takes: the view, its subject, and the column that is the code set's item."""

CONTEXT_TOKENS = 8
"""Tokens shown on each side of a state."""
MARKS = ("«", "»")


@dataclass(frozen=True)
class StoredQuery:
    """A query that names something in the catalogue, or spells a code: `type:`, `state:`, `code:`."""

    kind: str
    value: str


@dataclass(frozen=True)
class Target:
    """The codes that a search goes through: one view at one model, site, centre and basis."""

    view: str
    model: str
    site: str
    centre: str
    basis: str
    width: int
    infos: tuple[CodeSetInfo, ...]

    @property
    def n(self) -> int:
        """Codes searched, before any filter."""
        return sum(one.n for one in self.infos)


@dataclass(frozen=True)
class Answer:
    """Rows ordered by (distance, item): rank, distance in bits, and the columns of the view searched."""

    target: Target
    table: pa.Table
    searched: int
    recall: float | None = None


def parse_query(text: str) -> StoredQuery | None:
    """What `type:" king"`, `state:123` or `code:HEX` names; None for free text.

    Raises:
        InvalidInput: if the part behind the colon cannot be right.
    """
    kind, colon, value = text.partition(":")
    if not colon or kind not in ("type", "state", "code"):
        return None
    if kind == "type" and len(value) >= 2 and value[0] == value[-1] == '"':
        value = value[1:-1]
    if kind != "type":
        value = value.strip()
    if not value:
        raise InvalidInput(
            f"{text!r} names nothing", f"write {kind}:{dict(type='TOKEN', state='ID', code='HEX')[kind]}"
        )
    if kind == "state" and not value.isdecimal():
        raise InvalidInput(f"{value!r} is not a state_id", "take one from the view states")
    return StoredQuery(kind, value)


def resolve(
    path: Path,
    *,
    within: str | None = None,
    model: str | None = None,
    site: str | None = None,
    centre: str | None = None,
    basis: str = "standard",
    prefer: str = "states",
) -> Target:
    """The codes to search. What is not given: the only model there is; `prefer` if it has codes; the middle
    one of the model's sites; the centre `mean` where there is one, else `zero`.

    Raises:
        NotFound: naming what there is, if the catalogue has no such codes.
    """
    if within is not None and within not in SUBJECTS:
        raise InvalidInput(f"--in {within} cannot be searched", f"there is {', '.join(SUBJECTS)}")
    with store.reading(path) as connection:
        model = one_model(connection, model)
        rows = connection.execute(
            "SELECT s.point, s.layer, c.site, c.subject, c.centre, c.basis, c.width FROM code_sets c "
            "JOIN sites s USING (model, site) WHERE c.model = ? AND c.n > 0 ORDER BY ALL",
            [model],
        ).fetchall()
        views = [name for name in (prefer, *SUBJECTS) if any(row[3] == SUBJECTS[name][0] for row in rows)]
        if within is None and not views:
            raise NotFound("codes", model, todo="run `signarium ingest`")
        view = within or views[0]
        rows = [row for row in rows if row[3] == SUBJECTS[view][0] and row[5] == basis]
        if not rows:
            raise NotFound(
                view,
                model,
                todo=f"run `signarium ingest` with {'--text' if view == 'states' else 'the stage types'}",
            )
        sites = list(
            dict.fromkeys(
                row[2] for row in sorted(rows, key=lambda row: (row[0] != "resid_post", row[0], row[1] or 0))
            )
        )
        if site is not None and site not in sites:
            raise NotFound(f"site with {view} of {model}", site, sites)
        usual = [one for one in sites if one.startswith("resid_post.")] or sites
        site = site or usual[len(usual) // 2]
        centres = [row[4] for row in rows if row[2] == site]
        if centre is not None and centre not in centres:
            raise NotFound(f"centre for {view} of {model} at {site}", centre, sorted(set(centres)))
        centre = centre or ("mean" if "mean" in centres else "zero")
        infos = index.describe(
            connection,
            "v.model = ? AND v.site = ? AND v.subject = ? AND v.centre = ? AND v.basis = ? AND v.n > 0",
            [model, site, SUBJECTS[view][0], centre, basis],
        )
        width = next(row[6] for row in rows if row[2] == site)
    return Target(view, model, site, centre, basis, width, tuple(infos))


def stored_code(path: Path, target: Target, query: StoredQuery) -> codes.Codes:
    """The code that `query` names, at the target's site, centre and basis; uint8 (bytes,).

    Raises:
        NotFound: if the catalogue has no such item there.
    """
    if query.kind == "code":
        return codes.from_hex(query.value, target.width)
    with store.reading(path) as connection:
        if query.kind == "type":
            subject, item = "type", _token_id(connection, target.model, query.value)
        else:
            subject, item = "state", int(query.value)
            if item >= 1 << 63:
                raise NotFound("state", query.value)
        sets = index.describe(
            connection,
            "v.model = ? AND v.site = ? AND v.subject = ? AND v.centre = ? AND v.basis = ?",
            [target.model, target.site, subject, target.centre, target.basis],
        )
        for one in sets:
            row = connection.execute(
                "SELECT code FROM code_row WHERE code_set_id = ? AND item = ?", [one.code_set_id, item]
            ).fetchone()
            if row:
                return np.frombuffer(row[0], dtype=np.uint8)
    raise NotFound(
        f"{query.kind} of {target.model} at {target.site}, centre {target.centre},",
        query.value,
        todo="ingest it there, or choose another --site or --centre",
    )


def _token_id(connection: duckdb.DuckDBPyConnection, model: str, text: str) -> int:
    def ids(token: str) -> list[int]:
        found = connection.execute(
            "SELECT t.token_id FROM token_row t JOIN model m ON m.tokenizer_sha256 = t.tokenizer "
            "WHERE m.name = ? AND t.token = ? AND t.token_id < m.vocab_size ORDER BY t.token_id",
            [model, token],
        ).fetchall()
        return [row[0] for row in found]

    if found := ids(text):
        return int(found[0])
    other = text[1:] if text.startswith(" ") else f" {text}"
    todo = (
        f'there is type:"{other}"'
        if ids(other)
        else "a type is one token of the vocabulary; search text as it is instead"
    )
    raise NotFound(f"token of {model}", text, todo=todo)


def search(
    path: Path,
    target: Target,
    code: codes.Codes,
    *,
    k: int = 10,
    where: str | None = None,
    approximate: bool = False,
) -> Answer:
    """The `k` codes of `target` nearest to `code`, uint8 (bytes,), among the rows for which `where` holds.

    Raises:
        InvalidInput: if `k` is not positive or `where` is no boolean expression over the view's columns.
    """
    if k < 1:
        raise InvalidInput(f"-k {k} is not positive")
    recall = None
    parts = []
    searched = 0
    with store.reading(path) as connection:
        for info in target.infos:
            one = index.get(path, info, connection)
            rows = None
            if where is not None:
                rows = one.rows_of(
                    _matching(path, target, info, " ".join(where.split()) and where, _Connection(connection))
                )
            searched += one.n if rows is None else len(rows)
            if approximate and rows is None:
                from ..catalog.approximate import approximate_index

                distances, items, recall = approximate_index(path, info, one).search(code, k)
                parts.append((distances, items))
            else:
                parts.append(one.search(code, k, rows))
        distances, items = index.merge(parts, k)
        table = _rows(connection, target, items[0], distances[0])
    return Answer(target, table, searched, recall)


class _Connection:
    """Keeps a connection out of the key of the cache below."""

    def __init__(self, value: duckdb.DuckDBPyConnection) -> None:
        self.value = value

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Connection)


@lru_cache(maxsize=8)
def _matching(
    path: Path, target: Target, info: CodeSetInfo, where: str, connection: _Connection
) -> NDArray[np.int64]:
    """Items of a code set for which `where` holds; remembered while the code set stays as it is."""
    import duckdb

    del path
    item = SUBJECTS[target.view][1]
    try:
        # Parsed by itself first: it must be one expression, not the end of ours and the start of another.
        statements = duckdb.extract_statements(f"SELECT ({where}\n)")
        alone = duckdb.extract_statements(f"SELECT {where}\n")
        if len(statements) != 1 or len(alone) != 1 or alone[0].type != duckdb.StatementType.SELECT:
            raise InvalidInput("--where is not one expression", "write a condition such as position > 0")
        found = connection.value.execute(
            f"SELECT {item} FROM {target.view} WHERE model = ? AND site = ? AND centre = ? AND basis = ? AND ({where}\n)",
            [target.model, target.site, target.centre, target.basis],
        ).to_arrow_table()
    except duckdb.Error as error:
        raise InvalidInput(f"--where {where!r} cannot be used", str(error).split("\n")[0]) from error
    return found.column(0).to_numpy()


def _rows(
    connection: duckdb.DuckDBPyConnection,
    target: Target,
    items: NDArray[np.int64],
    distances: NDArray[np.int32],
) -> pa.Table:
    import pyarrow as pa

    item = SUBJECTS[target.view][1]
    listed = ", ".join(str(int(one)) for one in items) or "NULL"
    table = connection.execute(
        f"SELECT * FROM {target.view} WHERE model = ? AND site = ? AND centre = ? AND basis = ? AND {item} IN ({listed})",
        [target.model, target.site, target.centre, target.basis],
    ).to_arrow_table()
    place = {one: i for i, one in enumerate(table.column(item).to_pylist())}
    table = table.take([place[int(one)] for one in items])
    table = table.add_column(0, "rank", pa.array(np.arange(1, len(items) + 1)))
    table = table.add_column(1, "distance", pa.array(distances))
    if target.view == "states":
        texts = contexts(connection, target.model, table.column("state_id").to_pylist())
        table = table.add_column(2, "context", pa.array(texts, pa.string()))
    return table


def contexts(connection: duckdb.DuckDBPyConnection, model: str, state_ids: Sequence[int]) -> list[str]:
    """Each state's surroundings in its document, the token itself between `MARKS`."""
    if not state_ids:
        return []
    rows = connection.execute(
        f"""SELECT w.state_id, v.state_id - w.state_id AS away, coalesce(t.token, '') AS token
        FROM state_row w
        JOIN state_row v ON v.state_id BETWEEN w.state_id - {CONTEXT_TOKENS} AND w.state_id + {CONTEXT_TOKENS}
          AND v.document_id = w.document_id
        LEFT JOIN token_row t ON t.token_id = v.token_id
          AND t.tokenizer = (SELECT tokenizer_sha256 FROM model WHERE name = ?)
        WHERE w.state_id IN ({", ".join(str(one) for one in state_ids)})
          AND ({" OR ".join(f"v.state_id BETWEEN {one - CONTEXT_TOKENS} AND {one + CONTEXT_TOKENS}" for one in state_ids)})
        ORDER BY w.state_id, away""",
        [model],
    ).fetchall()
    pieces = connection.execute(
        "SELECT count(*) = 0 FROM token_row t JOIN model m ON m.tokenizer_sha256 = t.tokenizer "
        "WHERE m.name = ? AND t.token LIKE ' %'",
        [model],
    ).fetchone()
    spaced = bool(pieces and pieces[0])
    found: dict[int, list[tuple[int, str]]] = {}
    for state_id, away, token in rows:
        found.setdefault(state_id, []).append((away, token))
    return [_marked(found.get(one, []), spaced) for one in state_ids]


def _marked(tokens: Sequence[tuple[int, str]], spaced: bool) -> str:
    """Tokens joined to text; `spaced` for vocabularies that mark what is joined (##ing) instead of spaces."""
    text = ""
    for away, token in tokens:
        space = token[: len(token) - len(token.lstrip(" "))]
        if spaced:
            space, token = ("", token[2:]) if token.startswith("##") else (" " if text else "", token)
        text += (
            f"{space}{MARKS[0]}{token.lstrip(' ')}{MARKS[1]}"
            if away == 0
            else space + token.removeprefix(space)
        )
    return text


def display_columns(answer: Answer) -> list[str]:
    """The columns worth a terminal's width: what is the same in every row, and the bits, are left out."""
    left_out = {"model", "site", "centre", "basis", "code"}
    return [name for name in answer.table.column_names if name not in left_out]


def summary(answer: Answer) -> str:
    """One line that says what was searched."""
    target = answer.target
    line = f"{target.view} of {target.model} at {target.site}, centre {target.centre}: {answer.searched:,} codes of {target.width} bits"
    if answer.recall is not None:
        line += f"; approximate, recall {answer.recall:.3f} measured on this code set"
    return line


def as_dict(answer: Answer) -> dict[str, Any]:
    """The answer's columns as Python lists."""
    return answer.table.to_pydict()
