"""What the weights write, as something to search and to name: the neurons' directions (`neuron:12/305`) and the unembedding."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...catalog.codes import Codes
from ...catalog.errors import InvalidInput, NotFound
from ...catalog.ids import NEURON_BITS, neuron_item
from ..nearest.codesets import OfStream, code_of, place_columns, set_list
from ..nearest.subject import Choice, Place, Start, Subject, Target
from ..types.subject import OfTokens
from ..usual import one_model
from ..words import raised

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from ..nearest.asked import Asked

_NEURON = re.compile(r"([0-9]+)/([0-9]+)", re.ASCII)
_SPELLED = 1000
"""Rows of an answer that have the tokens that they raise: as many as a terminal shows at most."""


class _Neurons(OfStream):
    """What a neuron writes is a direction, which a negative activation turns round."""

    prefix = "neuron"
    example = "BLOCK/NEURON"
    both_polarities = True
    shown = ("neuron", "norm")

    def parse(self, value: str) -> str:
        if value.strip():
            parse_neuron(value, "neuron:")
        return value.strip()

    def find(
        self, connection: duckdb.DuckDBPyConnection, asked: Asked, value: str, place: Place | None
    ) -> Start:
        model = one_model(connection, asked.model)
        neurons = self.target(connection, Choice(model))
        block, number = parse_neuron(value)
        code = neuron_code(connection, neurons, block, number)
        words = f"neuron {block}/{number}"
        site = asked.site or _behind(connection, model, block)
        choice = Choice(model, asked.site, asked.centre, prefer="types", usual_site=site, exact=True)
        within = "features" if _has_features(connection, model, site) else None
        return Start(neurons.place, code, words, words, "direction", choice, within, block)

    def special_columns(
        self,
        connection: duckdb.DuckDBPyConnection,
        target: Target,
        items: NDArray[np.int64],
        sets: dict[int, int],
    ) -> dict[str, Any]:
        import pyarrow as pa

        numbers = (items & ((1 << NEURON_BITS) - 1)).astype(np.int32)
        return {"layer": pa.array((items >> NEURON_BITS).astype(np.int32)), "neuron": pa.array(numbers)}

    def source(self, target: Target, names: frozenset[str]) -> tuple[str, str]:
        return (
            f"SELECT {place_columns(target, self.same)}, (item >> {NEURON_BITS})::INTEGER AS layer, "
            f"(item & {(1 << NEURON_BITS) - 1})::INTEGER AS neuron, norm, code FROM code_row "
            f"WHERE code_set_id IN ({set_list(target)})",
            f"(layer::BIGINT << {NEURON_BITS}) | neuron",
        )

    def raises(
        self, connection: duckdb.DuckDBPyConnection, target: Target, table: pa.Table, polarities: Any
    ) -> tuple[str, ...]:
        """The tokens that each of the first neurons raises most in its polarity."""
        places = zip(*(table.column(name).to_pylist() for name in ("layer", "neuron")), strict=True)
        # What nobody reads is not worth the look-up.
        items = [neuron_item(*place) for place in places][:_SPELLED]
        return tuple(raised(connection, target.model, items, polarities[:_SPELLED].tolist()))


@dataclass(frozen=True)
class _Unembedding(OfTokens, OfStream):
    """The rows of the unembedding, a direction for each token."""


NEURONS: Subject = _Neurons("neurons", "neuron", "neuron")
UNEMBEDDING: Subject = _Unembedding("unembedding", "unembedding", "token_id", such="the unembedding is")


def parse_neuron(text: str, prefix: str = "") -> tuple[int, int]:
    """Block and neuron of `12/305`.

    Raises:
        InvalidInput: if it is written otherwise; the example in it has `prefix` in front.
    """
    match = _NEURON.fullmatch(text.strip())
    # A longer number is no place of any model, and Python refuses to read very long ones.
    if match is None or max(map(len, match.groups())) > 18:
        raise InvalidInput(
            f"{text.strip()!r} is no neuron", f"write block and neuron, both from 0, such as {prefix}12/305"
        )
    return int(match[1]), int(match[2])


def neuron_code(connection: duckdb.DuckDBPyConnection, neurons: Target, layer: int, neuron: int) -> Codes:
    """The code of what a neuron writes, uint8 (bytes,); `neurons` is where all of its model lie.

    Raises:
        NotFound: if there is no such neuron; says how many there are.
    """
    ident = neurons.infos[0].code_set_id
    # More neurons than an item has room for would name a neuron of another block.
    if neuron < 1 << NEURON_BITS and layer < 1 << (63 - NEURON_BITS):
        code = code_of(connection, ident, neuron_item(layer, neuron))
        if code is not None:
            return code
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


def _behind(connection: duckdb.DuckDBPyConnection, model: str, layer: int) -> str:
    """The first `resid_post` site behind a block that holds anything: an earlier one knows nothing of its neurons."""
    row = connection.execute(
        "SELECT s.name FROM site s JOIN model m USING (model_id) WHERE m.name = ? AND s.point = 'resid_post' AND s.layer >= ? "
        "AND s.site_id IN (SELECT site_id FROM code_set WHERE subject = 'type' UNION ALL SELECT site_id FROM feature_row) "
        "ORDER BY s.layer LIMIT 1",
        [model, layer],
    ).fetchone()
    return str(row[0]) if row is not None else f"resid_post.{layer}"


def _has_features(connection: duckdb.DuckDBPyConnection, model: str, site: str) -> bool:
    row = connection.execute(
        "SELECT 1 FROM feature_row f JOIN site s USING (site_id) JOIN model m USING (model_id) "
        "WHERE m.name = ? AND s.name = ? AND f.basis = 'standard' LIMIT 1",
        [model, site],
    ).fetchone()
    return row is not None
