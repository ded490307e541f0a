"""What a search goes through, and the code that it starts from: names become code sets and bits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..catalog import codes, index, store
from ..catalog.errors import InvalidInput, NotFound
from ..catalog.index import CodeSetInfo
from .models import one_model

if TYPE_CHECKING:
    import duckdb

SUBJECTS = {
    "states": ("state", "state_id"),
    "types": ("type", "token_id"),
    "types_bos": ("type_bos", "token_id"),
    "features": ("feature", "feature_id"),
}
"""What `--in` takes: the view, its subject, and the column that is the code set's item. Features are no code set:
they lie in a table of their own."""


@dataclass(frozen=True)
class StoredQuery:
    """A query that names something in the catalogue, or spells a code: `type:`, `state:`, `feature:`, `code:`."""

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


_EXAMPLES = {"type": "TOKEN", "state": "ID", "feature": "ID", "code": "HEX"}


_NOT_YET = ("neuron", "direction")


def parse_query(text: str) -> StoredQuery | None:
    """What `type:" king"`, `state:123`, `feature:17` or `code:HEX` names; None for free text.

    Raises:
        InvalidInput: if the part behind the colon cannot be right.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput("the query is no valid Unicode text", "write it as UTF-8") from None
    if not text.strip():
        raise InvalidInput(
            "the query is empty", "give a text, or type:TOKEN, state:ID, feature:ID or code:HEX"
        )
    kind, colon, value = text.partition(":")
    if colon and kind in _NOT_YET and value.strip().replace("/", "").isdecimal():
        raise InvalidInput(
            f"{text!r} names a {kind}, and this version stores none",
            "search a type:, state:, feature: or code:",
        )
    if not colon or kind not in _EXAMPLES:
        return None
    if kind == "type":
        value = unquoted(value)
    elif kind != "feature":
        value = value.strip()
    if not value:
        raise InvalidInput(f"{text!r} names nothing", f"write {kind}:{_EXAMPLES[kind]}")
    if kind == "state" and not (value.isascii() and value.isdecimal()):
        raise InvalidInput(f"{value!r} is not a state_id", "take one from the view states")
    return StoredQuery(kind, value)


def unquoted(text: str) -> str:
    """`text` without the double quotes around it that show where it ends."""
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] == '"' else text


def usual_centre(view: str) -> str:
    """The centre whose bits say most: `mean` for types, `zero` for states.

    At position 0, where every type stands, a few dimensions are so large that raw signs hardly vary; that mean is far
    from the states of a text. SmolLM2, block 17, entropy of a bit: types 0.06 raw and 1.00 centred, states 0.95 raw
    and 0.08 centred.
    """
    return "zero" if view == "states" else "mean"


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
    one of the model's `resid_post` sites; `usual_centre` of what is searched where there is one, else `zero`.

    Raises:
        NotFound, InvalidInput: naming what there is, if the catalogue has no such codes.
    """
    with store.reading(path) as connection:
        return resolve_in(connection, within, model, site, centre, basis, prefer)


def resolve_in(
    connection: duckdb.DuckDBPyConnection,
    within: str | None,
    model: str | None,
    site: str | None,
    centre: str | None,
    basis: str,
    prefer: str,
) -> Target:
    if within is not None and within not in SUBJECTS:
        raise InvalidInput(f"{within} cannot be searched", f"there is {', '.join(SUBJECTS)}")
    if within == "features":
        raise InvalidInput("features are no code set", "see `resolve_features` for where they are")
    model = one_model(connection, model)
    # From the tables: the view `code_sets` counts every shard first.
    rows = connection.execute(
        "SELECT s.point, s.layer, s.name, cs.subject, cs.centre, cs.basis, cs.width FROM code_set cs "
        "JOIN site s USING (site_id) JOIN model m USING (model_id) WHERE m.name = ? "
        "AND cs.run_id IN (SELECT run_id FROM shard WHERE tokens > 0) ORDER BY ALL",
        [model],
    ).fetchall()
    there = [name for name in (prefer, *SUBJECTS) if any(row[3] == SUBJECTS[name][0] for row in rows)]
    if not there:
        raise InvalidInput(f"the catalogue has no codes of {model} yet", "run `signarium ingest`")
    view = within or there[0]
    rows = [row for row in rows if row[3] == SUBJECTS[view][0] and row[5] == basis]
    if not rows:
        how = {"states": "--text PATH", "types": "the stage types", "types_bos": "--bos"}[view]
        raise InvalidInput(
            f"the catalogue has no {view} of {model}",
            f"ingest it with {how}, or search --in {', '.join(dict.fromkeys(there))}",
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
    centres = sorted({row[4] for row in rows if row[2] == site})
    if centre is not None and centre not in centres:
        raise NotFound(f"centre for {view} of {model} at {site}", centre, centres)
    centre = centre or (usual_centre(view) if usual_centre(view) in centres else centres[-1])
    infos = index.describe(
        connection,
        "v.model = ? AND v.site = ? AND v.subject = ? AND v.centre = ? AND v.basis = ? AND v.n > 0",
        [model, site, SUBJECTS[view][0], centre, basis],
    )
    width = next(row[6] for row in rows if row[2] == site)
    return Target(view, model, site, centre, basis, width, tuple(infos))


def stored_code_in(connection: duckdb.DuckDBPyConnection, target: Target, query: StoredQuery) -> codes.Codes:
    """The code that `query` names, at the target's site, centre and basis; uint8 (bytes,).

    Raises:
        NotFound: if the catalogue has no such item there.
        InvalidInput: if `code:` has digits that are no code of the target's width.
    """
    if query.kind == "code":
        return codes.from_hex(query.value, target.width)
    subject = query.kind
    item = token_id(connection, target.model, query.value) if subject == "type" else int(query.value)
    sets = connection.execute(
        "SELECT cs.code_set_id FROM code_set cs JOIN site s USING (site_id) JOIN model m USING (model_id) "
        "WHERE m.name = ? AND s.name = ? AND cs.subject = ? AND cs.centre = ? AND cs.basis = ? ORDER BY ALL",
        [target.model, target.site, subject, target.centre, target.basis],
    ).fetchall()
    for (code_set_id,) in sets if item < 1 << 63 else []:
        row = connection.execute(
            "SELECT code FROM code_row WHERE code_set_id = ? AND item = ?", [code_set_id, item]
        ).fetchone()
        if row:
            return np.frombuffer(row[0], dtype=np.uint8)
    if sets and subject == "state":
        raise NotFound(
            f"state of {target.model}",
            query.value,
            todo="take a state_id from the view states or its answers",
        )
    elsewhere = connection.execute(
        "SELECT DISTINCT site || ' ' || centre FROM code_sets WHERE model = ? AND subject = ? AND n > 0 ORDER BY ALL",
        [target.model, subject],
    ).fetchall()
    raise NotFound(
        f"{subject} at {target.site}, centre {target.centre}, of {target.model}",
        query.value,
        [row[0] for row in elsewhere],
        todo="" if elsewhere else f"no {subject}s of it were ingested",
    )


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


def item_name(target: Target) -> str:
    """The column that names an item of the view searched: `state_id`, `token_id` or `feature_id`."""
    return SUBJECTS[target.view][1]
