"""A rotation's card as text for a terminal: what it explains beside its controls, what it carries, and what that steers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from ...catalog import parts
from ...catalog.text import quoted_name, visible
from ...queries.rotations.card import RotationCard
from ..render.chart import Panel, bars, scale_of
from ..render.lines import PLAIN_WIDTH, aligned, sentence, text_of
from ..render.tables import cell_width
from ..render.values import unknown
from .lists import rotations_by_site, sites_of, warnings
from .rotation_tables import (
    CODES,
    DECODERS,
    DICTIONARIES,
    HAAR,
    KL_RATIO,
    UNSEEN,
    carried,
    figure,
    haar,
)
from .steering import steering

ARMS = {name: word for name, word in parts.words("rotations").items() if name.startswith("ev_")}
"""Explained variances, in the order in which they are shown."""
_ELSEWHERE = (
    "rotation_ev",
    "rotation_halves",
    "steering_target",
    "decoder_cosine_rotated",
    "distance_from_identity",
)
"""Figures that the page has in other places."""


def page(card: RotationCard, width: int | None = None, color: bool = False) -> str:
    """The whole card as lines of at most `width` cells, with a line break at the end."""
    wide = width or PLAIN_WIDTH
    rows = card.measurements.to_pylist()
    (row,) = card.rotation.to_pylist()
    known = {*HAAR, *CODES, *DICTIONARIES, *DECODERS, *UNSEEN, *KL_RATIO, *_ELSEWHERE}
    blocks = {
        "": _header(card, wide),
        "explained variance of B's states, on held-out documents": _arms(row, rows, wide, color),
        "the same on types that the fit never saw": carried(rows, UNSEEN, wide),
        "by principal component of B": _components(card, wide, color),
        "other sites of this run": _others(card, wide),
        "beside Haar-random rotations": haar(rows, row, wide),
        "what it carries of sign codes": carried(rows, CODES, wide),
        "what it carries of A's dictionaries": carried(rows, DICTIONARIES, wide),
        "decoders of A's dictionaries beside B's": carried(rows, DECODERS, wide, "shared seed"),
        "A's decoder rotated, beside B's of another seed": carried(
            rows, ("decoder_cosine_rotated",), wide, "rotated"
        ),
        "carried features": _features(card, wide),
        "steering": chain(
            steering(card.steering, wide, color),
            carried(rows, ("steering_target",), wide),
            carried(rows, KL_RATIO, wide, "as it is"),
        ),
        "other figures": _rest([one for one in rows if one["metric"] not in known], wide),
    }
    return text_of(blocks, color)


def _header(card: RotationCard, width: int) -> Iterator[str]:
    (row,) = card.rotation.to_pylist()
    yield visible(f"rotation from {row['model_a']} to {row['model_b']} at {sites_of(row)}")
    halves = "" if unknown(row["halves_agreement"]) else (
        f"; fitted on disjoint halves of the text, two of them agree to {row['halves_agreement']:.3f}, where 1 is the same"
    )  # fmt: skip
    yield from sentence(
        f"{row['width']:,} dimensions, fitted on {row['n_fit']:,} tokens and scored on {row['n_test']:,} of other documents; "
        f"effective rank {row['effective_rank_a']:.1f} in A and {row['effective_rank_b']:.1f} in B{halves}"
        + (f"; the latest of {card.earlier + 1}" if card.earlier else ""),
        width,
    )
    said = warnings(card.rotation)
    for line in said:
        yield from sentence(visible(f"beware: {line.partition(': ')[2]}"), width)
    if not said:
        yield from sentence(
            f"it explains {row['ev_rotation']:.3f} of B's variance, above its nulls: shuffled pairs {row['ev_shuffled']:.3f}"
            + ("" if unknown(row["ev_exchanged"]) else f", types exchanged {row['ev_exchanged']:.3f}"),
            width,
        )


# ---- explained variance ---------------------------------------------------------------------------

_NAME, _VALUE = 18, 7


def _arms(row: dict[str, Any], figures: Sequence[dict[str, Any]], width: int, color: bool) -> Iterator[str]:
    """A bar for each arm from 0 to 1; what is below zero has none, and stands behind a mark."""
    measured = [one for one in figures if one["metric"] == "rotation_ev" and not unknown(one["std_error"])]
    errors = {
        "ev_rotation" if one["control"] == "none" else f"ev_{one['control'].removeprefix('types_')}": one[
            "std_error"
        ]
        for one in measured
    }
    size = _NAME + _VALUE + (8 if errors else 0)
    room = max(10, min(60, width - size - 4))
    there = [name for name in ARMS if not unknown(row.get(name))]
    for name in there:
        value = row[name]
        cells = round(2 * min(max(value, 0.0), 1.0) * room)
        bar = "█" * (cells // 2) + "▌" * (cells % 2)
        if color and bar and name == "ev_rotation":
            bar = f"\x1b[33m{bar}\x1b[0m"
        error = f"± {errors[name]:.3f}" if name in errors else ""
        head = f"{ARMS[name].name:<{_NAME}}{value:>{_VALUE}.3f} {error}"
        yield f"{head:<{size + 2}}{'◂' if value < 0 else '│'}{bar}"
    yield " " * (size + 2) + "0" + "1".rjust(room)
    texts = [f"{ARMS[name].name}: {ARMS[name].about}" for name in there if ARMS[name].about]
    if errors:
        texts.append("± is the standard error, of the others that of the difference to the rotation")
    yield from sentence("; ".join(texts), width)


def _components(card: RotationCard, width: int, color: bool) -> Iterator[str]:
    rows = card.components.to_pylist()
    if not rows:
        return
    arms = ("ev_rotation", "ev_affine", "ev_shuffled")
    binned: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        # 1, 2, 3-4, 5-8, ...
        binned.setdefault(math.ceil(math.log2(row["component"])), []).append(row)
    x = [float(some[0]["component"]) for some in binned.values()]
    shares = [sum(one["variance_share"] for one in some) for some in binned.values()]
    panels = []
    low = 0.0
    for name in arms:
        values = {}
        for at, share, some in zip(x, shares, binned.values(), strict=True):
            if share > 0:
                value = sum(one["variance_share"] * one[name] for one in some) / share
                low = min(low, value)
                values[at] = max(-1.0, value)
        panels.append(Panel(ARMS[name].name, values))
    scale = scale_of([value for one in panels for value in one.values.values()])
    yield from bars(panels, x, scale, width, color)
    first = next((i for i, total in enumerate(_running(rows)) if total >= 0.9), len(rows) - 1) + 1
    yield from sentence(
        f"components from the largest variance to the smallest, in bins of twice as many each; the first {first:,} hold 90% of it"
        + ("; what is below -1 is drawn as -1" if low < -1 else ""),
        width,
    )


def _running(rows: Sequence[dict[str, Any]]) -> Iterator[float]:
    total, everything = 0.0, sum(one["variance_share"] for one in rows) or 1.0
    for one in rows:
        total += one["variance_share"]
        yield total / everything


def _others(card: RotationCard, width: int) -> Iterator[str]:
    from ..render.formats import rendered

    if card.others.num_rows:
        yield from rendered(rotations_by_site(card.others), width=width).splitlines()[:-1]


# ---- features, and the rest -----------------------------------------------------------------------


def _features(card: RotationCard, width: int, most: int = 10) -> Iterator[str]:
    rows = card.features.to_pylist()
    if not rows:
        return
    cells = [["feature_id", "from", "dims", "in A", "carried", "p"]]
    for row in rows[:most]:
        figures = [figure(row[name]) for name in ("source_auc_held_out", "auc_held_out", "p_value")]
        cells.append([str(row["feature_id"]), str(row["source_feature_id"]), f"{row['n_dims']:,}", *figures])
    names = ["name", *(visible(quoted_name(row["name"])) for row in rows[:most])]
    lines = aligned(cells, left=0)
    if cell_width(lines[0]) + 12 > width:
        cells = [line[:1] + line[2:] for line in cells]
        lines = aligned(cells, left=0)
    from .causes import cut

    for line, name in zip(lines, names, strict=True):
        yield f"{line}  {cut(name, width - cell_width(lines[0]) - 2)}"
    more = f"the first {most} of {len(rows):,}; " if len(rows) > most else ""
    yield from sentence(
        f"{more}in A and carried: held-out AUC of the feature and of what it is in B; `signarium features list --kind "
        "direction` has all",
        width,
    )


def _rest(rows: Sequence[dict[str, Any]], width: int) -> Iterator[str]:
    for metric in dict.fromkeys(row["metric"] for row in rows):
        yield from carried([row for row in rows if row["metric"] == metric], (metric,), width)
