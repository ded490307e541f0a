"""What is asked of `align`: the request, the two models that it names, and the sites that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...catalog import store
from ...catalog.errors import InvalidInput, NotFound, SiteError, option
from ..model.sites import Site

if TYPE_CHECKING:
    import duckdb

    from ..model.loaded import LoadedModel

LIMIT_TOKENS = 65_536


@dataclass(frozen=True)
class AlignRequest:
    """Fit the rotation from one model of the catalogue to another.

    Attributes:
        text: paths of files or folders.
        sites: such as `resid_post.8,16`; None for those where both have states, else a few evenly spaced ones.
        max_tokens: of the text.
        context: tokens of a window, at most.
        output: a `.npy` file for the matrix; with several sites, the site is put before its ending.
        steer: the site at which directions of A are tried on B; True for the middle one, False for none.
        seed: of all that is drawn.
        column: the field or column of a record that is its text.

    Raises:
        InvalidInput: if a number is out of range.
    """

    model_a: str
    model_b: str
    text: str | Path | Sequence[str | Path]
    sites: str | None = None
    max_tokens: int = LIMIT_TOKENS
    context: int = 256
    output: str | Path | None = None
    steer: bool | str = True
    device: str = "auto"
    seed: int = 0
    column: str = "text"

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.context < 2:
            raise InvalidInput(f"{option('max_tokens')} must be positive, and {option('context')} at least 2")
        if not 0 <= self.seed < 1 << 62:
            raise InvalidInput(f"{option('seed')} is {self.seed}", "it must be 0 or more, and below 2^62")


@dataclass(frozen=True)
class End:
    """One of the two models, as the catalogue knows it."""

    name: str
    model_id: str
    width: int
    tokenizer: str


def read_ends(path: Path, request: AlignRequest) -> tuple[End, End]:
    """The two models.

    Raises:
        NotFound: for a model that is not in the catalogue.
        InvalidInput: for one model twice, and for models of different widths or tokenizers.
    """
    with store.reading(path) as connection:
        a, b = (_end(connection, name) for name in (request.model_a, request.model_b))
    if a.model_id == b.model_id:
        raise InvalidInput(f"{a.name} is aligned with itself", "name two models")
    if a.width != b.width:
        raise InvalidInput(
            f"{a.name} is {a.width:,} wide and {b.name} {b.width:,}: no rotation leads from one to the other",
            "align models of one width",
        )
    if a.tokenizer != b.tokenizer:
        raise InvalidInput(
            f"{a.name} and {b.name} have different tokenizers: their states are not of the same tokens",
            "align models that share a tokenizer",
        )
    return a, b


def _end(connection: duckdb.DuckDBPyConnection, name: str) -> End:
    row = connection.execute(
        "SELECT name, model_id, width, tokenizer_sha256 FROM models WHERE name = ?", [name]
    ).fetchone()
    if row is None:
        names = [one for (one,) in connection.execute("SELECT name FROM models ORDER BY name").fetchall()]
        raise NotFound(
            "model", name, names, todo="" if names else "run `signarium ingest` on both models first"
        )
    return End(*row)


def shared_sites(path: Path, a: End, b: End) -> list[str]:
    """Sites at which both have states, in the model's order."""
    with store.reading(path) as connection:
        rows = connection.execute(
            "SELECT s.name FROM site s JOIN code_set cs USING (site_id) WHERE cs.subject = 'state' AND s.model_id IN (?, ?) "
            "AND s.point IN ('embed', 'resid_post', 'resid_mid', 'final_norm') GROUP BY s.name, s.point, s.layer "
            "HAVING count(DISTINCT s.model_id) = 2 ORDER BY s.layer NULLS FIRST, s.name",
            [a.model_id, b.model_id],
        ).fetchall()
    return [row[0] for row in rows]


def choose_sites(a: LoadedModel, b: LoadedModel, spec: str | None, usual: Sequence[str]) -> list[Site]:
    """The sites of `spec`, else `usual` ones, else a few evenly spaced ones.

    Raises:
        SiteError: for a site that one of the models lacks or that is of another width there, and if there is none.
    """
    if spec is not None:
        sites = a.parse_sites(spec)
    else:
        sites = [Site.from_name(name) for name in usual] or [
            site for site in a.default_sites() if site in b.sites
        ]
    if not sites:
        raise SiteError(f"{a.name} and {b.name} have no site in common", f"name some with {option('sites')}")
    for site in sites:
        b.require_site(site)
        if a.width_of(site) != b.width_of(site):
            raise SiteError(
                f"{site} is {a.width_of(site)} wide in {a.name} and {b.width_of(site)} in {b.name}"
            )
    return sites


def steered_site(sites: Sequence[Site], wanted: bool | str) -> Site | None:
    """Where directions are tried: the site that is `wanted`, or the middle one at which something can be added to the
    residual stream; None for nowhere.

    Raises:
        SiteError: if the site that is wanted is not aligned, or nothing can be added there.
    """
    if isinstance(wanted, str):
        named = next((site for site in sites if site.name == wanted), None)
        if named is None:
            raise SiteError(
                f"{wanted} is none of the sites that are aligned", f"name one of {', '.join(map(str, sites))}"
            )
        if named.point not in ("resid_post", "resid_mid"):
            raise SiteError(
                f"nothing can be added at {wanted}", "steer at a resid_post or resid_mid site, or not at all"
            )
        return named
    if not wanted:
        return None
    for point in ("resid_post", "resid_mid"):
        some = [site for site in sites if site.point == point]
        if some:
            return some[len(some) // 2] if len(some) > 2 else some[0]
    return None


def dictionaries(path: Path, a: End, b: End, sites: Sequence[Site]) -> list[str]:
    """The dictionaries that will be tried: one more makes it another run."""
    with store.reading(path) as connection:
        rows = connection.execute(
            "SELECT x.sae_id FROM sae x JOIN site s USING (site_id) WHERE x.model_id IN (?, ?) AND list_contains(?, s.name) "
            "ORDER BY x.sae_id",
            [a.model_id, b.model_id, [site.name for site in sites]],
        ).fetchall()
    return [row[0] for row in rows]


def jobs_read(path: Path, a: End, b: End) -> list[str]:
    """The jobs whose categories will be carried, and whose types they will be scored on: later ones make another run."""
    with store.reading(path) as connection:
        rows = connection.execute(
            "SELECT DISTINCT r.run_id FROM run r WHERE r.finished_at IS NOT NULL AND ((r.job = 'categories' AND r.model_id = ?) "
            "OR (r.job = 'types' AND r.model_id IN (?, ?))) ORDER BY ALL",
            [a.model_id, a.model_id, b.model_id],
        ).fetchall()
    return [row[0] for row in rows]
