"""Figures of a rotation in tables, each beside what could explain it away."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ...catalog.text import visible
from ..render.formats import cell_width, unknown
from ..render.lines import aligned, sentence

HAAR = {
    "frobenius_from_identity": "|R - I|",
    "signed_permutation_distance": "|R - signed perm.|",
    "ks_distance": "KS of its angles",
    "trace_1": "trace of R",
    "trace_2": "trace of R²",
    "trace_3": "trace of R³",
}
"""Statistics that a Haar-random rotation has a distribution of, and what a page calls them."""
_HAAR_CONTROLS = {
    "none": "here",
    "p_value": "p",
    "unrelated": "unrelated",
    "p_value_unrelated": "its p",
    "cyclic_shift": "cyclic shift",
    "p_value_cyclic_shift": "its p",
}
UNSEEN = {"rotation_ev_unseen": "explained"}
CODES = {
    "code_agreement": "bits",
    "code_agreement_zero": "about zero",
    "retrieval_top1": "found first",
    "prototype_auc": "prototypes",
    "feature_auc_zero": "feat. zero",
    "feature_auc_mean": "feat. mean",
    "prototype_basis": "A in A",
}
CODE_LEGEND = {
    "code_agreement": "bits: share of B's bits, about its mean, that A's carried state has",
    "code_agreement_zero": "about zero: the same of B's bits about zero, as states are stored",
    "retrieval_top1": "found first: share of A's states whose nearest among B's is the same token in the text",
    "prototype_auc": "prototypes: AUC of A's sign prototypes on B's states, mean over labels",
    "feature_auc_zero": "feat. zero, feat. mean: AUC of A's categories on B's types, about either centre, mean over categories",
    "prototype_basis": "A in A: AUC of A's sign prototypes on A's own states",
}
DICTIONARIES = {
    "sae_ev": "explained",
    "firing_correlation": "firing",
    "sae_ev_scalar": "paper's EV",
    "l0": "fire at once",
    "dead_share": "dead",
    "live_share": "live",
}
DICTIONARY_LEGEND = {
    "sae_ev": "explained: variance of the states that A's dictionary reconstructs, about each dimension's mean",
    "firing_correlation": "firing: correlation of a live feature's firing on B's states with that on A's",
    "sae_ev_scalar": "paper's EV: the same about one mean of all dimensions",
}
DECODERS = {
    "decoder_cosine": "cosine",
    "decoder_cosine_live": "live alone",
    "decoder_match_0.5": "above 0.5",
}
DECODER_LEGEND = {
    "decoder_cosine": "cosine: of each direction of A's dictionary to the nearest one of B's, mean; dictionaries that started "
    "from one seed are alike before they are trained, so those of independent seeds count",
}
KL_RATIO = {"steering_kl_ratio": "divergence in B by that in A, dose 2"}
KL_LEGEND = {
    "steering_kl_ratio": "above 1, A's direction moves B more than A, as was published of directions that are not rotated"
}
_CONTROLS = {
    "none": "",
    "source": "in A itself",
    "self": "A's own states",
    "own": "B's own",
    "as_is": "as it is",
    "mean_shift": "mean shift",
    "mean_only": "B's mean alone",
    "affine": "any linear map",
    "signs_alone": "signs alone",
    "plus_minus_one": "signs ±1 alone",
    "shuffled": "shuffled pairs",
    "token_identity": "knowing the token",
    "haar": "random rotations",
    "random_rotation": "random rotation",
    "scaled": "of one variance",
    "gaussian": "noise like A's",
    "gaussian_b": "noise like B's",
}
"""What a page calls the arms of what is carried, in its order; others come last, under their own names."""


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
    cells = [["statistic", *(_HAAR_CONTROLS.get(one, one.replace("_", " ")) for one in controls)]]
    for metric in (one for one in HAAR if one in found):
        cells.append([HAAR[metric], *(figure(found[metric].get(one)) for one in controls)])
    yield from _fitting(cells, width)
    yield from sentence(
        "p: share of Haar-random rotations that are as far out; unrelated: the rotation fitted on shuffled pairs; cyclic "
        "shift: dimensions moved on by one. Where those look alike, the statistic says nothing of a shared function; |R - I| is "
        f"near {math.sqrt(2 * rotation['width']):.1f} for any rotation",
        width,
    )


def carried(
    rows: Sequence[dict[str, Any]],
    metrics: dict[str, str],
    legend: dict[str, str],
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
    order = [one for one in _CONTROLS if one in found] + sorted(set(found) - set(_CONTROLS))
    cells = [["", *(metrics[one] for one in shown)]]
    for control in order:
        name = itself if control == "none" else _CONTROLS.get(control, visible(control.replace("_", " ")))
        cells.append([name, *(_with_error(found[control].get(one)) for one in shown)])
    lines = list(_fitting(cells, width))
    yield from lines
    errors = any("±" in line for line in lines)
    texts = [legend[one] for one in shown if one in legend]
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
