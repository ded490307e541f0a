"""What a search goes through: a name such as `types` becomes code sets at one place of one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...catalog import index, store
from ...catalog.errors import InvalidInput, NotFound
from ...catalog.index import CodeSetInfo
from ..models import one_model

if TYPE_CHECKING:
    import duckdb

SUBJECTS = {
    "states": ("state", "state_id"),
    "types": ("type", "token_id"),
    "types_bos": ("type_bos", "token_id"),
    "features": ("feature", "feature_id"),
    "neurons": ("neuron", "neuron"),
    "unembedding": ("unembedding", "token_id"),
    "directions": ("direction", "feature"),
}
"""What `--in` takes: the view, its subject, and the column that says which item it is (of neurons, with `layer`; of
directions, with `name`, the dictionary's). Features are no code set: they lie in a table of their own."""
AT_SITES = ("states", "types", "types_bos")
"""Code sets that there is one of at each site and centre."""
OF_WEIGHTS = ("neurons", "unembedding")
"""Code sets of which a model has one: directions of its weights, at no particular block."""


@dataclass(frozen=True)
class Place:
    """Where a code lies: its bits mean the same as those of every other code there."""

    model: str
    site: str
    centre: str
    basis: str
    width: int


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

    @property
    def place(self) -> Place:
        """Where they lie."""
        return Place(self.model, self.site, self.centre, self.basis, self.width)


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
    usual_site: str | None = None,
) -> Target:
    """`resolve` with a file that is open; `usual_site` goes before the middle one if it has such codes."""
    if within is not None and within not in SUBJECTS:
        raise InvalidInput(f"{within} cannot be searched", f"there is {', '.join(SUBJECTS)}")
    if within == "features":
        raise InvalidInput("features are no code set", "see `resolve_features` for where they are")
    model = one_model(connection, model)
    if within in OF_WEIGHTS:
        return resolve_weights(connection, within, model)
    if within == "directions":
        return resolve_directions(connection, model, site, usual_site)
    # From the tables: the view `code_sets` counts every shard first.
    rows = connection.execute(
        "SELECT s.point, s.layer, s.name, cs.subject, cs.centre, cs.basis, cs.width FROM code_set cs "
        "JOIN site s USING (site_id) JOIN model m USING (model_id) WHERE m.name = ? "
        "AND cs.run_id IN (SELECT run_id FROM shard WHERE tokens > 0) ORDER BY ALL",
        [model],
    ).fetchall()
    order = dict.fromkeys((prefer, *AT_SITES))
    there = [name for name in order if any(row[3] == SUBJECTS[name][0] for row in rows)]
    if not there:
        raise InvalidInput(f"the catalogue has no types or states of {model} yet", "run `signarium ingest`")
    view = within or there[0]
    rows = [row for row in rows if row[3] == SUBJECTS[view][0] and row[5] == basis]
    if not rows:
        how = {"states": "--text PATH", "types": "the stage types", "types_bos": "--bos"}[view]
        raise InvalidInput(
            f"the catalogue has no {view} of {model}",
            f"ingest it with {how}, or search --in {', '.join(there)}",
        )
    by_place = sorted(rows, key=lambda row: (row[0] != "resid_post", row[0], row[1] or 0))
    sites = list(dict.fromkeys(row[2] for row in by_place))
    if site is not None and site not in sites:
        raise NotFound(f"site with {view} of {model}", site, sites)
    site = site or (usual_site if usual_site is not None and usual_site in sites else middle(sites))
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


def middle(sites: Sequence[str]) -> str:
    """The middle one of the `resid_post` sites among `sites`, or of them all if there is none."""
    usual = [one for one in sites if one.startswith("resid_post.")] or sites
    return usual[len(usual) // 2]


def resolve_weights(connection: duckdb.DuckDBPyConnection, view: str, model: str) -> Target:
    """The one code set of a model's neurons, or of its unembedding.

    Raises:
        InvalidInput: if there is none; says how it is made.
    """
    rows = connection.execute(
        "SELECT s.name, cs.centre, cs.width, cs.code_set_id FROM code_set cs JOIN site s USING (site_id) "
        "JOIN model m USING (model_id) JOIN run r USING (run_id) WHERE m.name = ? AND cs.subject = ? AND cs.basis = 'standard' "
        "AND cs.run_id IN (SELECT run_id FROM shard WHERE tokens > 0) ORDER BY r.started_at DESC, r.run_id LIMIT 1",
        [model, SUBJECTS[view][0]],
    ).fetchall()
    if not rows:
        raise InvalidInput(
            f"the catalogue has no {'neurons' if view == 'neurons' else 'unembedding'} of {model} yet",
            f"run `signarium ingest MODEL --name {model} --stages neurons`",
        )
    ((site, centre, width, ident),) = rows
    infos = index.describe(connection, "v.code_set_id = ?", [ident])
    return Target(view, model, site, centre, "standard", width, tuple(infos))


def resolve_directions(
    connection: duckdb.DuckDBPyConnection, model: str, site: str | None, usual_site: str | None = None
) -> Target:
    """The directions of a model's dictionaries at one site: the given one, `usual_site` if it has some, else the middle one.

    Raises:
        InvalidInput, NotFound: naming what there is, or how they are made.
    """
    rows = connection.execute(
        "SELECT s.point, s.layer, s.name, cs.centre, cs.width, cs.code_set_id FROM code_set cs JOIN run r USING (run_id) "
        "JOIN site s USING (site_id) JOIN model m ON m.model_id = s.model_id WHERE m.name = ? AND cs.subject = 'direction' "
        "AND r.job = 'sae' AND cs.basis = 'standard' AND cs.run_id IN (SELECT run_id FROM shard WHERE tokens > 0) ORDER BY ALL",
        [model],
    ).fetchall()
    if not rows:
        raise InvalidInput(
            f"the catalogue has no dictionary of {model} yet",
            f"run `signarium sae add FILE --model {model} --site SITE`",
        )
    sites = list(dict.fromkeys(row[2] for row in rows))
    if site is not None and site not in sites:
        raise NotFound(f"site with a dictionary of {model}", site, sites)
    site = site or (usual_site if usual_site is not None and usual_site in sites else middle(sites))
    here = [row for row in rows if row[2] == site]
    infos = index.describe(
        connection, f"v.code_set_id IN ({', '.join(str(row[5]) for row in here)}) AND v.n > 0", []
    )
    return Target("directions", model, site, here[0][3], "standard", here[0][4], tuple(infos))


def item_name(target: Target) -> str:
    """The column that names an item of the view searched: `state_id`, `token_id`, `feature_id`, `neuron` or `feature`."""
    return SUBJECTS[target.view][1]
