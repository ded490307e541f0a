"""Figures of a rotation in tables, each beside what could explain it away."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ...catalog import parts
from ...catalog.text import visible
from ..render.lines import aligned, sentence
from ..render.tables import cell_width
from ..render.values import unknown

_WORDS = {**parts.words("saes"), **parts.words("rotations")}
HAAR = (
    "frobenius_from_identity",
    "signed_permutation_distance",
    "ks_distance",
    "trace_1",
    "trace_2",
    "trace_3",
)
"""Statistics that a Haar-random rotation has a distribution of."""
_HAAR_CONTROLS = (
    "none",
    "p_value",
    "unrelated",
    "p_value_unrelated",
    "cyclic_shift",
    "p_value_cyclic_shift",
)
UNSEEN = ("rotation_ev_unseen",)
CODES = (
    "code_agreement",
    "code_agreement_zero",
    "retrieval_top1",
    "prototype_auc",
    "feature_auc_zero",
    "feature_auc_mean",
    "prototype_basis",
)
DICTIONARIES = ("sae_ev", "firing_correlation", "sae_ev_scalar", "l0", "dead_share", "live_share")
DECODERS = ("decoder_cosine", "decoder_cosine_live", "decoder_match_0.5")
KL_RATIO = ("steering_kl_ratio",)


def _metric(name: str) -> str:
    """A metric in words; under its own name where there is no word for it."""
    return _WORDS[name].name if name in _WORDS else visible(name)


def _control(name: str) -> str:
    """A control in words; spelled with spaces where there is no word for it."""
    return _WORDS[name].name if name in _WORDS else visible(name.replace("_", " "))


def _legend(terms: Iterable[str]) -> list[str]:
    words = [_WORDS[term] for term in terms if term in _WORDS]
    return [f"{word.name}: {word.about}" for word in words if word.about]


def haar(rows: Sequence[dict[str, Any]], rotation: dict[str, Any], width: int) -> Iterator[str]:
    """Statistics of the rotation beside what Haar-random ones have, and two that share nothing with it."""
    found: dict[str, dict[str, float]] = {}
    for one in rows:
        if one["metric"] in HAAR:
            found.setdefault(one["metric"], {})[one["control"]] = one["value"]
    if not found:
        return
    others = sorted({control for one in found.values() for control in one} - set(_HAAR_CONTROLS))
    controls = [one for one in (*_HAAR_CONTROLS, *others) if any(one in each for each in found.values())]
    cells = [["statistic", *map(_control, controls)]]
    for metric in (one for one in HAAR if one in found):
        cells.append([_metric(metric), *(figure(found[metric].get(one)) for one in controls)])
    yield from _fitting(cells, width)
    yield from sentence(
        f"{'; '.join(_legend(controls))}. Where unrelated maps look alike, the statistic says nothing of a shared function; "
        f"|R - I| is near {math.sqrt(2 * rotation['width']):.1f} for any rotation",
        width,
    )


def carried(
    rows: Sequence[dict[str, Any]],
    metrics: Sequence[str],
    width: int,
    itself: str = "rotated",
) -> Iterator[str]:
    """A row an arm and a column a metric; several draws of one control as their mean."""
    found: dict[str, dict[str, list[tuple[float, float | None]]]] = {}
    for one in rows:
        if one["metric"] in metrics:
            control = one["control"].partition(":")[0]
            found.setdefault(control, {}).setdefault(one["metric"], []).append(
                (one["value"], one["std_error"])
            )
    if not found:
        return
    shown = [one for one in metrics if any(one in each for each in found.values())]
    order = ["none"] * ("none" in found) + [one for one in _WORDS if one in found and one != "none"]
    order += sorted(set(found) - set(_WORDS))
    cells = [["", *map(_metric, shown)]]
    for control in order:
        name = itself if control == "none" else _control(control)
        cells.append([name, *(_with_error(found[control].get(one)) for one in shown)])
    lines = list(_fitting(cells, width))
    yield from lines
    errors = any("±" in line for line in lines)
    texts = _legend(shown)
    if errors:
        texts.append("± is the standard error, of a control that of its difference to the first row")
    yield from sentence("; ".join(texts), width)


def _fitting(cells: list[list[str]], width: int) -> Iterator[str]:
    """Aligned, and where that is too wide without errors, and then in several tables."""
    if cell_width(aligned(cells)[0]) <= width and max(map(cell_width, aligned(cells))) <= width:
        yield from aligned(cells)
        return
    cells = [[one.split(" ±")[0] for one in line] for line in cells]
    n = len(cells[0])
    while n > 2 and max(map(cell_width, aligned([line[:n] for line in cells]))) > width:
        n -= 1
    yield from aligned([line[:n] for line in cells])
    if n < len(cells[0]):
        yield from _fitting([line[:1] + line[n:] for line in cells], width)


def _with_error(values: Sequence[tuple[float, float | None]] | None) -> str:
    if not values:
        return "–"
    value = sum(one for one, _ in values) / len(values)
    error = values[0][1] if len(values) == 1 else None
    return figure(value) if unknown(error) else f"{figure(value)} ± {error:.3f}"


def figure(value: float | None) -> str:
    """A figure to three digits."""
    if value is None or value != value:
        return "–"
    if abs(value) >= 10:
        return f"{value:,.2f}"
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.001 else f"{value:.0e}"
