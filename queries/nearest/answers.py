"""The rows of an answer, each state in its context, and what of them fits a terminal.

Rows are read from the base tables by code set: the views `states` and `types` join every row of a catalogue
before they filter. What comes out has the views' columns; a test holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...catalog.errors import SignariumError
from ...catalog.ids import NEURON_BITS, PLACE_BITS
from ..rotations.stored import Found
from .target import OF_WEIGHTS, Place, Target, item_name
from .where import DIRECTIONS, quoted

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

CONTEXT_TOKENS = 8
"""Tokens shown on each side of a state."""
MARKS = ("«", "»")


@dataclass(frozen=True)
class Carried:
    """The rotation that a query of another model was carried through; `signs_alone`: from its code, without its floats."""

    rotation: Found
    signs_alone: bool
    first: bool = False
    """Whether it stands at a first position, which no rotation is fitted on."""


@dataclass(frozen=True)
class Answer:
    """Rows ordered by (distance, item): rank, distance in bits, and the columns of the view searched.

    Features are ordered by agreement instead, a column of its own: each registers another number of dimensions. Where a
    neuron is on either side, `polarity` follows the distance: -1 where it is the opposite of the neuron that is so near (the
    signs that a feature expects are then `feature_polarity`).
    """

    target: Target
    table: pa.Table
    searched: int
    recall: float | None = None
    query: str | None = None
    """Of a free text, the token that was searched; of what has its own place, what it is."""
    place: Place | None = None
    """Where the query was looked up, if that is not where the codes searched lie."""
    across: Carried | None = None
    """How the query came from another model."""
    raises: tuple[str, ...] = ()
    """Of the first neurons in the answer, the tokens that each raises most in its polarity."""

    @property
    def turned(self) -> bool:
        """Whether either polarity counted. A feature's expected signs, where it did not, are called `polarity` too."""
        names = self.table.column_names
        return "polarity" in names and (self.target.view != "features" or "feature_polarity" in names)


def answer_rows(
    connection: duckdb.DuckDBPyConnection,
    target: Target,
    items: NDArray[np.int64],
    distances: NDArray[np.int32],
) -> pa.Table:
    """The answer's rows in order: rank, distance, a state's context, and the columns of the view."""
    import pyarrow as pa

    wanted = items.tolist()
    n = len(wanted)
    sets = ", ".join(str(one.code_set_id) for one in target.infos)
    # By rowid: with the condition on the item itself, DuckDB reads the column of codes from end to end.
    ids = f"SELECT rowid FROM code_row WHERE code_set_id IN ({sets}) AND item"
    stored = {
        row[0]: row
        for row in _fetch(
            connection,
            "SELECT item, norm, code, code_set_id FROM code_row WHERE rowid IN (" + ids,
            wanted,
            ")",
        )
    }
    columns: dict[str, Any] = {
        "rank": pa.array(np.arange(1, n + 1)),
        "distance": pa.array(distances),
    }
    try:
        if target.view == "states":
            places = _places(connection, _around(wanted))
            tokens = _tokens(connection, target.model, {place[2] for place in places.values()})
            columns["context"] = pa.array(
                _contexts(connection, target.model, wanted, places, tokens), pa.string()
            )
            token_ids = [places[one][2] for one in wanted]
        else:
            token_ids = wanted
            tokens = (
                {}
                if target.view in ("neurons", "directions")
                else _tokens(connection, target.model, set(wanted))
            )
        for name in ("model",) if target.view in OF_WEIGHTS else DIRECTIONS[:4]:
            columns[name] = pa.array([getattr(target, name)] * n, pa.string())
        if target.view == "states":
            columns["state_id"] = pa.array(wanted, pa.int64())
            columns["document_id"] = pa.array([places[one][0] for one in wanted], pa.int64())
            columns["position"] = pa.array([places[one][1] for one in wanted], pa.int32())
        if target.view == "neurons":
            columns["layer"] = pa.array((items >> NEURON_BITS).astype(np.int32))
            columns["neuron"] = pa.array((items & ((1 << NEURON_BITS) - 1)).astype(np.int32))
        elif target.view == "directions":
            names = _dictionaries(connection, sets)
            columns["name"] = pa.array([names[stored[one][3]] for one in wanted], pa.string())
            columns["feature"] = pa.array((items & ((1 << PLACE_BITS) - 1)).astype(np.int32))
        else:
            columns["token_id"] = pa.array(token_ids, pa.int32() if target.view == "states" else pa.int64())
            columns["token"] = pa.array([tokens.get(one) for one in token_ids], pa.string())
        if target.view == "states":
            columns["is_first"] = pa.array([places[one][1] == 0 for one in wanted], pa.bool_())
        columns["norm"] = pa.array([stored[one][1] for one in wanted], pa.float32())
        columns["code"] = pa.array([stored[one][2] for one in wanted], pa.binary())
    except KeyError as error:
        raise SignariumError(
            f"the catalogue has no row of {item_name(target)} {error.args[0]}", "run `signarium db verify`"
        ) from error
    return pa.table(columns)


_IN_LIST = 1000
"""Up to so many ids are written into the query: DuckDB then skips what cannot hold them."""


def _fetch(
    connection: duckdb.DuckDBPyConnection, query: str, ids: Sequence[int], rest: str = ""
) -> list[Any]:
    """Rows of a query that ends in the column which is to be one of `ids`, but for its `rest`."""
    if not ids:
        return []
    if len(ids) <= _IN_LIST:
        return connection.execute(f"{query} IN ({', '.join(map(str, ids))}){rest}").fetchall()
    return connection.execute(f"{query} IN (SELECT unnest(?::BIGINT[])){rest}", [list(ids)]).fetchall()


def _around(state_ids: Sequence[int]) -> list[int]:
    reach = range(-CONTEXT_TOKENS, CONTEXT_TOKENS + 1)
    return sorted({one + away for one in state_ids for away in reach})


def _places(connection: duckdb.DuckDBPyConnection, ids: Sequence[int]) -> dict[int, tuple[int, int, int]]:
    """document_id, position and token_id of those states that there are."""
    rows = _fetch(
        connection, "SELECT state_id, document_id, position, token_id FROM state_row WHERE state_id", ids
    )
    return {row[0]: row[1:] for row in rows}


def _tokens(connection: duckdb.DuckDBPyConnection, model: str, token_ids: set[int]) -> dict[int, str]:
    rows = _fetch(
        connection,
        "SELECT token_id, token FROM token_row WHERE tokenizer = "
        f"(SELECT tokenizer_sha256 FROM model WHERE name = {quoted(model)}) AND token_id",
        sorted(token_ids),
    )
    return dict(rows)


def _dictionaries(connection: duckdb.DuckDBPyConnection, sets: str) -> dict[int, str]:
    """The names of dictionaries by the code sets of their directions."""
    rows = connection.execute(
        "SELECT cs.code_set_id, x.name FROM code_set cs JOIN sae x ON x.run_id = cs.run_id AND x.site_id = cs.site_id "
        f"WHERE cs.code_set_id IN ({sets or 'NULL'})"
    ).fetchall()
    return dict(rows)


def contexts(connection: duckdb.DuckDBPyConnection, model: str, state_ids: Sequence[int]) -> list[str]:
    """Each state's surroundings in its document, the token itself between `MARKS`; "" for no such state."""
    places = _places(connection, _around(state_ids))
    tokens = _tokens(connection, model, {place[2] for place in places.values()})
    return _contexts(connection, model, state_ids, places, tokens)


def _contexts(
    connection: duckdb.DuckDBPyConnection,
    model: str,
    state_ids: Sequence[int],
    places: dict[int, tuple[int, int, int]],
    tokens: dict[int, str],
) -> list[str]:
    if not state_ids:
        return []
    marked_joins = connection.execute(
        "SELECT 1 FROM token_row t JOIN model m ON m.tokenizer_sha256 = t.tokenizer "
        "WHERE m.name = ? AND starts_with(t.token, ' ') AND t.token <> ' ' LIMIT 1",
        [model],
    ).fetchone()
    found = []
    for one in state_ids:
        document = places[one][0] if one in places else None
        near = [
            (away, tokens.get(places[one + away][2], ""))
            for away in range(-CONTEXT_TOKENS, CONTEXT_TOKENS + 1)
            if one + away in places and places[one + away][0] == document
        ]
        found.append(_marked(near, spaced=marked_joins is None))
    return found


def _marked(tokens: Sequence[tuple[int, str]], spaced: bool) -> str:
    """Tokens joined to text; `spaced` for vocabularies that mark what is joined (##ing) instead of spaces."""
    text = ""
    for away, token in tokens:
        if spaced:
            space, token = (
                ("", token[2:]) if token.startswith("##") and token != "##" else (" " if text else "", token)
            )
        else:
            # The space belongs to the token, but the mark reads better around the word; spaces alone stay in it.
            word = token.lstrip(" ") or token
            space, token = token[: len(token) - len(word)], word
        text += space + (f"{MARKS[0]}{token}{MARKS[1]}" if away == 0 else token)
    return text
