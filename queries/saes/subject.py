"""Directions of dictionaries, as something to search and to name: `direction:NAME/17`; and those of features, to name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ...catalog import index
from ...catalog.codes import Codes
from ...catalog.errors import InvalidInput, NotFound, option
from ...catalog.ids import PLACE_BITS
from ...catalog.text import quoted_name
from ..features.resolve import find_one
from ..nearest.codesets import PLACE_COLUMNS, WITH_ROWS, CodeSets, place_columns, set_list
from ..nearest.subject import Choice, Place, PlaceKind, Start, Subject, Target, site_among
from ..usual import one_model

if TYPE_CHECKING:
    import duckdb

    from ..nearest.asked import Asked

_OF_DICTIONARY = re.compile(r"(.+)/([0-9]{1,9})", re.ASCII | re.DOTALL)
_NUMBER = (1 << PLACE_BITS) - 1
"""The bits of an item that count in its dictionary; those above say which dictionary."""


class _Directions(CodeSets):
    """Each direction of a dictionary lies at the site that the dictionary was trained at, about no centre."""

    view = "directions"
    name = "direction"
    item = "feature"
    prefix = "direction"
    example = "FEATURE_ID|NAME/17"
    place: PlaceKind = "own"
    shown = ("name", "feature", "norm")

    def parse(self, value: str) -> str:
        return value

    def find(
        self, connection: duckdb.DuckDBPyConnection, asked: Asked, value: str, place: Place | None
    ) -> Start:
        found = dictionary_direction(connection, value, asked.model, asked.site)
        site, centre = asked.site, asked.centre
        if found is not None:
            code, place, words = found
        else:
            # Site and centre say what is searched; of a name they also say which feature.
            numbered = value.isdecimal()
            which = (None, None) if numbered else (site, None if asked.across else centre)
            feature = find_one(connection, value, asked.model, *which)
            code, place = direction_code(connection, feature.feature_id)
            words = f"direction of feature {feature.feature_id}, {quoted_name(feature.name)}"
            if not numbered and asked.searched is not None and asked.searched.place == "stream":
                site = centre = None
        choice = Choice(place.model, site, centre, prefer="types", usual_site=place.site, exact=True)
        return Start(place, code, words, words, "direction", choice)

    def holds(self, connection: duckdb.DuckDBPyConnection, model: str, site: str | None = None) -> bool:
        return any(site in (None, row[2]) for row in _code_sets(connection, model))

    def advice(self, model: str, site: str) -> str:
        return f"run `signarium sae add FILE --model {model} --site {site}`"

    def target(self, connection: duckdb.DuckDBPyConnection, choice: Choice) -> Target:
        """The directions of a model's dictionaries at one site: the given one, `usual_site` if it has some, else the middle
        one."""
        if choice.exact and choice.centre is not None:
            raise InvalidInput("directions have no centre of choice", f"leave out {option('centre')}")
        model = one_model(connection, choice.model)
        rows = _code_sets(connection, model)
        if not rows:
            raise InvalidInput(f"the catalogue has no dictionary of {model} yet", self.advice(model, "SITE"))
        sites = list(dict.fromkeys(row[2] for row in rows))
        if choice.site is not None and choice.site not in sites:
            raise NotFound(f"site with a dictionary of {model}", choice.site, sites)
        site = site_among(choice, sites)
        here = [row for row in rows if row[2] == site]
        listed = ", ".join(str(row[5]) for row in here)
        infos = index.describe(connection, f"v.code_set_id IN ({listed}) AND v.n > 0", [])
        return Target("directions", model, site, here[0][3], "standard", here[0][4], tuple(infos))

    def special_columns(
        self,
        connection: duckdb.DuckDBPyConnection,
        target: Target,
        items: NDArray[np.int64],
        sets: dict[int, int],
    ) -> dict[str, Any]:
        import pyarrow as pa

        names = dict(
            connection.execute(
                "SELECT cs.code_set_id, x.name FROM code_set cs JOIN sae x ON x.run_id = cs.run_id "
                f"AND x.site_id = cs.site_id WHERE cs.code_set_id IN ({set_list(target)})"
            ).fetchall()
        )
        return {
            "name": pa.array([names[sets[item]] for item in items.tolist()], pa.string()),
            "feature": pa.array((items & _NUMBER).astype(np.int32)),
        }

    def columns(self) -> tuple[str, ...]:
        # The view `directions` has the features' as well, which are not searched.
        return (*PLACE_COLUMNS, "name", "feature", "norm", "code")

    def source(self, target: Target, names: frozenset[str]) -> tuple[str, str]:
        return (
            f"SELECT {place_columns(target)}, x.name, (c.item & {_NUMBER})::INTEGER AS feature, c.norm, c.code, c.item "
            "FROM code_row c JOIN code_set cs USING (code_set_id) JOIN sae x ON x.run_id = cs.run_id "
            f"AND x.site_id = cs.site_id WHERE c.code_set_id IN ({set_list(target)})",
            "item",
        )


DIRECTIONS: Subject = _Directions()


def _code_sets(connection: duckdb.DuckDBPyConnection, model: str) -> list[Any]:
    return connection.execute(
        "SELECT s.point, s.layer, s.name, cs.centre, cs.width, cs.code_set_id FROM code_set cs JOIN run r USING (run_id) "
        "JOIN site s USING (site_id) JOIN model m ON m.model_id = s.model_id WHERE m.name = ? AND cs.subject = 'direction' "
        f"AND r.job = 'sae' AND cs.basis = 'standard' AND {WITH_ROWS} ORDER BY ALL",
        [model],
    ).fetchall()


def direction_code(connection: duckdb.DuckDBPyConnection, feature_id: int) -> tuple[Codes, Place]:
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


def dictionary_direction(
    connection: duckdb.DuckDBPyConnection, text: str, model: str | None = None, site: str | None = None
) -> tuple[Codes, Place, str] | None:
    """The direction that `NAME/17` names, of the dictionary NAME, counted from 0: its code, uint8 (bytes,), where it lies,
    and what an answer calls it. None if no dictionary is called so.

    `model` and `site` choose among several dictionaries of one name.

    Raises:
        NotFound: if it has no such direction; says how many there are.
        InvalidInput: if several dictionaries are meant.
    """
    match = _OF_DICTIONARY.fullmatch(text.strip())
    if match is None:
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
    name, number = match[1], int(match[2])
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
            f"{len(rows)} dictionaries are called {name!r}",
            f"pass {option('model')} and {option('site')}: {listed}",
        )
    *place, ident, n = rows[0]
    row = connection.execute(
        "SELECT code FROM code_row WHERE rowid IN (SELECT rowid FROM code_row WHERE code_set_id = ? AND item & ? = ?)",
        [ident, _NUMBER, number],
    ).fetchone()
    if row is None:
        raise NotFound(
            f"direction of {name}", str(number), todo=f"there are {n:,} directions, counted from 0"
        )
    words = f"direction {number} of {quoted_name(name)}"
    return np.frombuffer(row[0], dtype=np.uint8), Place(*place), words


def _no_dictionary(connection: duckdb.DuckDBPyConnection, name: str) -> NoReturn:
    names = [row[0] for row in connection.execute("SELECT DISTINCT name FROM sae ORDER BY name").fetchall()]
    raise NotFound("dictionary", name, names, todo="" if names else "bring one in with `signarium sae add`")
