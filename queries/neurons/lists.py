"""Neurons: the list, and all about one. What a neuron writes is a direction, which a negative activation turns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...catalog import store
from ...catalog.errors import InvalidInput, NotFound, option
from ...catalog.ids import NEURON_BITS, neuron_item
from ..nearest.subject import Choice, Search, Target
from ..usual import one_model
from ..words import table_of
from ..writers.chance import chance
from .subject import NEURONS, UNEMBEDDING, neuron_code, parse_neuron

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

SORTS = {
    "surprise": "surprise DESC NULLS LAST",
    "agreement": "best_agreement DESC NULLS LAST, best_n_dims DESC",
    "features": "features DESC",
    "norm": "norm DESC",
}
"""What a list can be sorted by, the strongest first."""
NEAR = 10
"""Rows of the unembedding on a neuron's page."""
_MASK = (1 << NEURON_BITS) - 1
_SURPRISE = "(2 * w.agreement - 1) * sqrt(f.n_dims)"
"""How far an agreement is above one half, in standard deviations of as many fair coins: few dimensions agree easily."""


def list_neurons(
    path: Path,
    *,
    model: str | None = None,
    layer: int | None = None,
    sort: str = "surprise",
    limit: int | None = 20,
) -> pa.Table:
    """A row a neuron, in order of `sort`, unknown figures last, then of (layer, neuron); `limit` 0 or None gives all.

    Columns: model, layer, neuron, norm; features, among whose 50 writers it is; best_agreement, best_feature_id,
    best_feature, best_n_dims and polarity of the one that it agrees with least by chance; surprise, that agreement in
    standard deviations of fair coins above one half.

    Raises:
        InvalidInput, NotFound: naming what there is, or how neurons are made.
    """
    if sort not in SORTS:
        raise InvalidInput(f"neurons cannot be sorted by {sort!r}", f"there is {', '.join(SORTS)}")
    if limit is not None and limit < 0:
        raise InvalidInput(f"{option('limit', limit)} is negative", "pass 0 for all")
    with store.reading(path) as connection:
        model = one_model(connection, model)
        target = NEURONS.target(connection, Choice(model))
        (ident,) = (info.code_set_id for info in target.infos)
        if layer is not None:
            _check_layer(connection, target, layer)
        # From the tables: the views join every row with its names before anything is chosen.
        return connection.execute(
            f"""WITH written AS (SELECT item, norm FROM code_row
  WHERE code_set_id = $ident AND ($layer IS NULL OR item >> {NEURON_BITS} = $layer)),
placed AS (SELECT f.feature_id, f.name, f.n_dims FROM feature_row f JOIN site s USING (site_id) JOIN model m USING (model_id)
  WHERE m.name = $model),
best AS (SELECT w.layer, w.neuron, count(*) AS features,
    arg_min(struct_pack(agreement := w.agreement, id := w.feature_id, name := f.name, n_dims := f.n_dims, polarity := w.polarity,
      surprise := {_SURPRISE}), struct_pack(a := -{_SURPRISE}, b := w.feature_id)) AS top
  FROM writer_row w JOIN placed f USING (feature_id) WHERE $layer IS NULL OR w.layer = $layer GROUP BY ALL)
SELECT $model AS model, (o.item >> {NEURON_BITS})::INTEGER AS layer, (o.item & {_MASK})::INTEGER AS neuron, o.norm,
  coalesce(b.features, 0) AS features, b.top.agreement AS best_agreement, b.top.id AS best_feature_id,
  b.top.name AS best_feature, b.top.n_dims AS best_n_dims, b.top.polarity AS polarity, b.top.surprise AS surprise
FROM written o LEFT JOIN best b ON o.item = (b.layer::BIGINT << {NEURON_BITS}) | b.neuron
ORDER BY {SORTS[sort]}, 2, 3{f" LIMIT {limit}" if limit else ""}""",
            {"ident": ident, "layer": layer, "model": model},
        ).to_arrow_table()


def _check_layer(connection: duckdb.DuckDBPyConnection, target: Target, layer: int) -> None:
    (ident,) = (info.code_set_id for info in target.infos)
    rows = connection.execute(
        f"SELECT DISTINCT item >> {NEURON_BITS} FROM code_row WHERE code_set_id = ? ORDER BY 1", [ident]
    ).fetchall()
    known = [row[0] for row in rows]
    if layer not in known:
        raise NotFound(
            f"block of {target.model} with neurons",
            str(layer),
            todo=f"there is {known[0]} to {known[-1]}" if len(known) == known[-1] - known[0] + 1 else "",
            known=[str(block) for block in known],
        )


# ---- one ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NeuronCard:
    """All about one neuron, as tables.

    `neuron` is its row of the view `neurons` with `norm_rank` in its block of `block_size` neurons, and
    `features_by_chance`: among the writers of how many features of its block it would be if they were drawn at random.
    `projections` are its rows of that view; `features` those that it is a writer of, with `rank` among their writers and
    `surprise`; `chance` the figures `writer_best` of its block's features with their controls; `unembedding` the
    nearest rows of that, in either polarity. Each is empty where nothing is stored.
    """

    neuron: pa.Table
    projections: pa.Table
    features: pa.Table
    chance: pa.Table
    unembedding: pa.Table

    def parts(self) -> dict[str, Any]:
        """The same as plain values: the row, and lists of rows."""
        (row,) = self.neuron.to_pylist()
        names = ("projections", "features", "chance", "unembedding")
        return {"neuron": row, **{name: getattr(self, name).to_pylist() for name in names}}


def show(path: Path, neuron: str, *, model: str | None = None) -> NeuronCard:
    """The card of the neuron that `12/305` names: block and neuron, both from 0.

    Raises:
        InvalidInput, NotFound: if there is none; says how many there are, or how neurons are made.
    """
    layer, number = parse_neuron(neuron)
    with store.reading(path) as connection:
        model = one_model(connection, model)
        target = NEURONS.target(connection, Choice(model))
        code = neuron_code(connection, target, layer, number)
        words = table_of(connection, model, "neuron", [neuron_item(layer, number)])
        return NeuronCard(
            _row(connection, target, layer, number),
            words.drop_columns(["item"]),
            _features(connection, model, layer, number),
            chance(connection, model, layer),
            _unembedding(path, connection, model, code),
        )


def _row(connection: duckdb.DuckDBPyConnection, target: Target, layer: int, neuron: int) -> pa.Table:
    (ident,) = (info.code_set_id for info in target.infos)
    return connection.execute(
        f"""WITH block AS (SELECT item, norm, code, rank() OVER (ORDER BY norm DESC) AS norm_rank, count(*) OVER () AS block_size
  FROM code_row WHERE code_set_id = $ident AND item >> {NEURON_BITS} = $layer)
SELECT $model AS model, $layer::INTEGER AS layer, $neuron::INTEGER AS neuron, norm, norm_rank, block_size,
  (SELECT count(*) FROM writer_row w JOIN feature_row f USING (feature_id) JOIN site s USING (site_id) JOIN model m USING (model_id)
    WHERE m.name = $model AND w.layer = $layer) / block_size AS features_by_chance, code
FROM block WHERE item = $item""",
        {
            "ident": ident,
            "layer": layer,
            "neuron": neuron,
            "item": neuron_item(layer, neuron),
            "model": target.model,
        },
    ).to_arrow_table()


def _features(connection: duckdb.DuckDBPyConnection, model: str, layer: int, neuron: int) -> pa.Table:
    return connection.execute(
        f"""SELECT w.feature_id, f.name, f.kind, s.name AS site, f.centre, f.n_dims, w.rank, w.polarity, w.agreement,
  {_SURPRISE} AS surprise
FROM writer_row w JOIN feature_row f USING (feature_id) JOIN site s USING (site_id) JOIN model m USING (model_id)
WHERE m.name = ? AND w.layer = ? AND w.neuron = ? ORDER BY surprise DESC, w.feature_id""",
        [model, layer, neuron],
    ).to_arrow_table()


def _unembedding(path: Path, connection: duckdb.DuckDBPyConnection, model: str, code: Any) -> pa.Table:
    import pyarrow as pa

    try:
        target = UNEMBEDDING.target(connection, Choice(model))
    except InvalidInput:
        return pa.table({})
    table = UNEMBEDDING.search(Search(path, connection, target, code, NEAR, both=True)).table
    names = ("rank", "distance", "polarity", "token_id", "token", "norm")
    by_chance = nearest_by_chance(target.width, target.n)
    return table.select(names).append_column(
        "nearest_by_chance", pa.array([by_chance] * table.num_rows, pa.int64())
    )


def nearest_by_chance(width: int, n: int) -> int:
    """The median distance of the nearest among `n` codes of `width` fair coins, in either polarity.

    The smallest d with (1 - 2 P(Binomial(width, 1/2) <= d))^n <= 1/2.
    """
    wanted = math.log(0.5) / max(1, n)
    total, d = 0.0, 0
    while True:
        total += math.exp(
            math.lgamma(width + 1) - math.lgamma(d + 1) - math.lgamma(width - d + 1) - width * math.log(2)
        )
        if 2 * total >= 1 or math.log1p(-2 * total) <= wanted or d >= width // 2:
            return d
        d += 1
