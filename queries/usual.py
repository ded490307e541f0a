"""What is meant where nothing was named: the only model, the middle site."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..catalog.errors import InvalidInput, NotFound, option

if TYPE_CHECKING:
    import duckdb


def one_model(connection: duckdb.DuckDBPyConnection, name: str | None) -> str:
    """`name` if the catalogue has it, or the only model there is; random weights are a control, not a choice.

    Raises:
        NotFound: if it is not there.
        InvalidInput: if none was named and there is none or several.
    """
    rows = connection.execute("SELECT name, random_init_seed IS NULL FROM models ORDER BY name").fetchall()
    names = [row[0] for row in rows]
    if name is None:
        trained = [row[0] for row in rows if row[1]]
        if len(trained) == 1 or len(names) == 1:
            return str((trained or names)[0])
        if not names:
            raise InvalidInput("the catalogue has no model yet", "run `signarium ingest MODEL`")
        raise InvalidInput(
            f"the catalogue has {len(names)} models", f"choose one with {option('model')}: {', '.join(names)}"
        )
    if name not in names:
        raise NotFound("model", name, names)
    return name


def check_model(path: Path, name: str) -> None:
    """Refuse a model that the catalogue at `path` does not have.

    Raises:
        NotFound: naming those that it has.
    """
    from ..catalog import store

    with store.reading(path) as connection:
        one_model(connection, name)


def middle(sites: Sequence[str]) -> str:
    """The middle one of the `resid_post` sites among `sites`, or of them all if there is none."""
    usual = [site for site in sites if site.startswith("resid_post.")] or sites
    return usual[len(usual) // 2]
