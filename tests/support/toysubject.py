"""A subject that lives outside the package: things with a code at each site, searched and named by their number."""

from __future__ import annotations

from pathlib import Path

import duckdb

from signarium.queries.nearest.codesets import PLACE_COLUMNS, AtSites


class ToyThings(AtSites):
    """Things of the tests, which are in no view."""

    shown = ("toything_id", "norm")

    def columns(self) -> tuple[str, ...]:
        return (*PLACE_COLUMNS, self.item, "norm", "code")


TOYTHINGS = ToyThings("toythings", "toything", "toything_id", "toything")


def add(path: Path, model: str) -> None:
    """Thing i has the code of token i, at every site and centre of a model."""
    with duckdb.connect(str(path)) as connection:
        sets = connection.execute(
            "SELECT cs.code_set_id FROM code_set cs JOIN site s USING (site_id) JOIN model m USING (model_id) "
            "WHERE cs.subject = 'type' AND m.name = ? ORDER BY ALL",
            [model],
        ).fetchall()
        for new, (old,) in enumerate(sets, 1):
            connection.execute(
                f"INSERT INTO code_set SELECT * REPLACE ({new} AS code_set_id, 'toything' AS subject) FROM code_set "
                f"WHERE code_set_id = {old}"
            )
            connection.execute(
                f"INSERT INTO code_row SELECT * REPLACE ({new} AS code_set_id) FROM code_row WHERE code_set_id = {old}"
            )
