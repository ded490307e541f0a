"""A neuron's card as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...catalog.text import quoted_name, spelled, visible
from ...queries.neurons.lists import NeuronCard
from ..render.lines import PLAIN_WIDTH, aligned, sentence, text_of
from . import causes

if TYPE_CHECKING:
    import pyarrow as pa

_TOP = 15


def page(card: NeuronCard, width: int | None = None, color: bool = False) -> str:
    """The whole card as lines of at most `width` cells, with a line break at the end."""
    wide = width or PLAIN_WIDTH
    blocks = {
        "": _header(card, wide),
        "in words": _words(card, wide),
        "features that it writes": _features(card, wide),
        "nearest rows of the unembedding": _unembedding(card.unembedding, wide),
    }
    return text_of(blocks, color)


def _header(card: NeuronCard, width: int) -> Iterator[str]:
    (row,) = card.neuron.to_pylist()
    yield visible(f"neuron {row['layer']}/{row['neuron']} of {row['model']}")
    yield from sentence(
        f"norm {row['norm']:.4g}, rank {row['norm_rank']:,} of the {row['block_size']:,} of its block", width
    )


def _words(card: NeuronCard, width: int) -> Iterator[str]:
    if card.projections.num_rows:
        yield from causes.words(card.projections, width, 20)
        yield from sentence("a negative activation turns it: it then lowers what is raised here", width)


def _features(card: NeuronCard, width: int) -> Iterator[str]:
    (neuron,) = card.neuron.to_pylist()
    if not neuron["features_by_chance"]:
        return
    rows = card.features.to_pylist()
    more = f", the first {_TOP} by surprise" if len(rows) > _TOP else ""
    yield from sentence(
        f"it is among the 50 writers of {len(rows):,} features{more}; writers drawn at random would make it "
        f"{neuron['features_by_chance']:.1f}",
        width,
    )
    if rows:
        cells = [["polarity", "agreement", "surprise", "rank", "dims", "feature_id", "centre"]]
        for row in rows[:_TOP]:
            cells.append(
                [
                    *(f"{row['polarity']:+d}", f"{row['agreement']:.3f}", f"{row['surprise']:.2f}"),
                    *(str(row["rank"]), f"{row['n_dims']:,}", str(row["feature_id"]), row["centre"]),
                ]
            )
        lines = aligned(cells, left=0)
        room = width - len(lines[0]) - 2
        names = ["feature", *(visible(quoted_name(row["name"])) for row in rows[:_TOP])]
        for line, name in zip(lines, names, strict=True):
            yield f"{line}  {causes.cut(name, room)}"
        yield from sentence(
            "surprise: the agreement in standard deviations of as many fair coins above 0.5", width
        )
    yield from causes.chance(card.chance, width)


def _unembedding(table: pa.Table, width: int) -> Iterator[str]:
    rows = table.to_pylist()
    if not rows:
        return
    cells = [["distance", "polarity", "token_id"]]
    cells += [[str(row["distance"]), f"{row['polarity']:+d}", str(row["token_id"])] for row in rows]
    lines = aligned(cells, left=0)
    tokens = ["token", *(spelled(row["token"], row["token_id"]) for row in rows)]
    for line, token in zip(lines, tokens, strict=True):
        yield f"{line}  {token}"
    yield from sentence(
        f"fair coins instead of them would come as near as {rows[0]['nearest_by_chance']:,} bits, in the median",
        width,
    )
