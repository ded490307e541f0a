"""What a search starts from: the query as it was written, and the code or pattern that it names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from ...catalog import codes
from ...catalog.errors import InvalidInput, NotFound
from ...catalog.ids import NEURON_BITS, PLACE_BITS, neuron_item
from .target import Place, Target

if TYPE_CHECKING:
    import duckdb

_EXAMPLES = {
    "type": "TOKEN",
    "state": "ID",
    "feature": "ID",
    "neuron": "BLOCK/NEURON",
    "direction": "FEATURE_ID|NAME/17",
    "code": "HEX",
}
KINDS = ", ".join(f"{kind}:{value}" for kind, value in _EXAMPLES.items())
"""The stored items that a query may name, as messages list them."""
_NEURON = re.compile(r"([0-9]+)/([0-9]+)", re.ASCII)
_OF_DICTIONARY = re.compile(r"(.+)/([0-9]{1,9})", re.ASCII | re.DOTALL)


@dataclass(frozen=True)
class StoredQuery:
    """A query that names something in the catalogue, or spells a code: `type:`, `state:`, `feature:`, `neuron:`,
    `direction:`, `code:`."""

    kind: str
    value: str


def parse_query(text: str) -> StoredQuery | None:
    """What `type:" king"`, `state:123`, `feature:17`, `neuron:12/305`, `direction:17` or `code:HEX` names; None for free
    text.

    Raises:
        InvalidInput: if the part behind the colon cannot be right.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput("the query is no valid Unicode text", "write it as UTF-8") from None
    if not text.strip():
        raise InvalidInput("the query is empty", f"give a text, or one of {KINDS}")
    kind, colon, value = text.partition(":")
    if not colon or kind not in _EXAMPLES:
        return None
    if kind == "type":
        value = unquoted(value)
    elif kind not in ("feature", "direction"):
        value = value.strip()
    if not value:
        raise InvalidInput(f"{text!r} names nothing", f"write {kind}:{_EXAMPLES[kind]}")
    if kind == "state" and not (value.isascii() and value.isdecimal()):
        raise InvalidInput(f"{value!r} is not a state_id", "take one from the view states")
    if kind == "neuron":
        parse_neuron(value, "neuron:")
    return StoredQuery(kind, value)


def unquoted(text: str) -> str:
    """`text` without the double quotes around it that show where it ends."""
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] == '"' else text


def parse_neuron(text: str, prefix: str = "") -> tuple[int, int]:
    """Block and neuron of `12/305`.

    Raises:
        InvalidInput: if it is written otherwise; the example in it has `prefix` in front.
    """
    found = _NEURON.fullmatch(text.strip())
    # A longer number is no place of any model, and Python refuses to read very long ones.
    if found is None or max(map(len, found.groups())) > 18:
        raise InvalidInput(
            f"{text!r} is no neuron", f"write block and neuron, both from 0, such as {prefix}12/305"
        )
    return int(found[1]), int(found[2])


# ---- the code that a query names ------------------------------------------------------------------


def stored_code_in(connection: duckdb.DuckDBPyConnection, place: Place, query: StoredQuery) -> codes.Codes:
    """The code that a `type:`, a `state:` or a `code:` names, at a place; uint8 (bytes,).

    Raises:
        NotFound: if the catalogue has no such item there.
        InvalidInput: if `code:` has digits that are no code of the place's width.
    """
    if query.kind == "code":
        return codes.from_hex(query.value, place.width)
    subject = query.kind
    item = token_id(connection, place.model, query.value) if subject == "type" else int(query.value)
    sets = connection.execute(
        "SELECT cs.code_set_id FROM code_set cs JOIN site s USING (site_id) JOIN model m USING (model_id) "
        "WHERE m.name = ? AND s.name = ? AND cs.subject = ? AND cs.centre = ? AND cs.basis = ? ORDER BY ALL",
        [place.model, place.site, subject, place.centre, place.basis],
    ).fetchall()
    for (code_set_id,) in sets if item < 1 << 63 else []:
        row = connection.execute(
            "SELECT code FROM code_row WHERE code_set_id = ? AND item = ?", [code_set_id, item]
        ).fetchone()
        if row:
            return np.frombuffer(row[0], dtype=np.uint8)
    if sets and subject == "state":
        raise NotFound(
            f"state of {place.model}",
            query.value,
            todo="take a state_id from the view states or its answers",
        )
    elsewhere = connection.execute(
        "SELECT DISTINCT site || ' ' || centre FROM code_sets WHERE model = ? AND subject = ? AND n > 0 ORDER BY ALL",
        [place.model, subject],
    ).fetchall()
    raise NotFound(
        f"{subject} at {place.site}, centre {place.centre}, of {place.model}",
        query.value,
        [row[0] for row in elsewhere],
        todo="" if elsewhere else f"no {subject}s of it were ingested",
    )


def neuron_code(
    connection: duckdb.DuckDBPyConnection, neurons: Target, layer: int, neuron: int
) -> codes.Codes:
    """The code of what a neuron writes, uint8 (bytes,); `neurons` is where all of its model lie.

    Raises:
        NotFound: if there is no such neuron; says how many there are.
    """
    (ident,) = (one.code_set_id for one in neurons.infos)
    # More neurons than an item has room for would name one of another block.
    if neuron < 1 << NEURON_BITS and layer < 1 << (63 - NEURON_BITS):
        # By rowid: with the condition on the item itself, DuckDB reads the column of codes from end to end.
        row = connection.execute(
            "SELECT code FROM code_row WHERE rowid IN (SELECT rowid FROM code_row WHERE code_set_id = ? AND item = ?)",
            [ident, neuron_item(layer, neuron)],
        ).fetchone()
        if row:
            return np.frombuffer(row[0], dtype=np.uint8)
    least, most, blocks, last = connection.execute(
        "SELECT min(n), max(n), count(*), max(layer) FROM (SELECT item >> ? AS layer, count(*) AS n FROM code_row "
        "WHERE code_set_id = ? GROUP BY layer)",
        [NEURON_BITS, ident],
    ).fetchone() or (0, 0, 0, 0)
    each = f"{most:,}" if least == most else f"{least:,} to {most:,}"
    # An ingest that was cut short has written some blocks only.
    so_far = "" if last == blocks - 1 else " so far"
    raise NotFound(
        f"neuron of {neurons.model}",
        f"{layer}/{neuron}",
        todo=f"there are {blocks} blocks{so_far} of {each} neurons each, counted from 0",
    )


def direction_code(connection: duckdb.DuckDBPyConnection, feature_id: int) -> tuple[codes.Codes, Place]:
    """The code of a feature's difference of means in a text, uint8 (bytes,), and where it lies; of several the latest.

    Raises:
        InvalidInput: if there is none; says how it is made.
    """
    row = connection.execute(
        "SELECT c.code, m.name, s.name, cs.centre, cs.basis, cs.width FROM code_set cs JOIN code_row c USING (code_set_id) "
        "JOIN run r USING (run_id) JOIN site s USING (site_id) JOIN model m ON m.model_id = s.model_id "
        "WHERE cs.subject = 'direction' AND r.job <> 'sae' AND c.item = ? ORDER BY r.started_at DESC, r.run_id LIMIT 1",
        [feature_id],
    ).fetchone()
    if row is None:
        raise InvalidInput(
            f"no direction of feature {feature_id} is stored",
            f"run `signarium flip {feature_id} --text PATH`",
        )
    return np.frombuffer(row[0], dtype=np.uint8), Place(*row[1:])


@dataclass(frozen=True)
class Direction:
    """One direction of a dictionary: its code, uint8 (bytes,), and where it lies."""

    name: str
    number: int
    code: codes.Codes
    place: Place


def dictionary_direction(
    connection: duckdb.DuckDBPyConnection, text: str, model: str | None = None, site: str | None = None
) -> Direction | None:
    """The direction that `NAME/17` names: of the dictionary NAME, counted from 0. None if no dictionary is called so.

    `model` and `site` choose among several dictionaries of one name.

    Raises:
        NotFound: if it has no such direction; says how many there are.
        InvalidInput: if several dictionaries are meant.
    """
    found = _OF_DICTIONARY.fullmatch(text.strip())
    if found is None:
        named = text.strip().rpartition("/")[0] or text.strip()
        known = connection.execute("SELECT max(n_features) FROM sae WHERE name = ?", [named]).fetchone()
        if known and known[0] is not None:
            raise InvalidInput(
                f"{text!r} is no direction",
                f"write direction:{named}/17; there are {known[0]:,}, counted from 0",
            )
        if "/" in text:
            _no_dictionary(connection, named)
        return None
    name, number = found[1], int(found[2])
    rows = connection.execute(
        "SELECT m.name, s.name, cs.centre, cs.basis, cs.width, cs.code_set_id, x.n_features FROM sae x "
        "JOIN site s USING (site_id) JOIN model m ON m.model_id = s.model_id JOIN code_set cs ON cs.run_id = x.run_id "
        "AND cs.site_id = x.site_id AND cs.subject = 'direction' WHERE x.name = ? ORDER BY m.name, s.point, s.layer, x.sae_id",
        [name],
    ).fetchall()
    rows = [row for row in rows if model in (None, row[0])]
    if len(rows) > 1:
        rows = [row for row in rows if site == row[1]] or rows
    if not rows:
        _no_dictionary(connection, name)
    if len(rows) > 1:
        listed = ", ".join(f"{row[0]} {row[1]}" for row in rows)
        raise InvalidInput(
            f"{len(rows)} dictionaries are called {name!r}", f"pass --model and --site: {listed}"
        )
    *place, ident, n = rows[0]
    # The bits above say which dictionary; a code set holds one.
    row = connection.execute(
        "SELECT code FROM code_row WHERE rowid IN (SELECT rowid FROM code_row WHERE code_set_id = ? AND item & ? = ?)",
        [ident, (1 << PLACE_BITS) - 1, number],
    ).fetchone()
    if row is None:
        raise NotFound(
            f"direction of {name}", str(number), todo=f"there are {n:,} directions, counted from 0"
        )
    return Direction(name, number, np.frombuffer(row[0], dtype=np.uint8), Place(*place))


def _no_dictionary(connection: duckdb.DuckDBPyConnection, name: str) -> NoReturn:
    names = [row[0] for row in connection.execute("SELECT DISTINCT name FROM sae ORDER BY name").fetchall()]
    raise NotFound("dictionary", name, names, todo="" if names else "bring one in with `signarium sae add`")


def token_id(
    connection: duckdb.DuckDBPyConnection,
    model: str,
    text: str,
    prefix: str = "type:",
    otherwise: str = "a type is one token of the vocabulary; search text as it is instead",
) -> int:
    """The id of the token whose text is `text`, leading space included; the lowest of several.

    Raises:
        NotFound: if there is none; names the one with or without a space if there is that, behind `prefix`.
    """

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
    raise NotFound(f"token of {model}", text, todo=f'there is {prefix}"{other}"' if ids(other) else otherwise)
