"""What writes a feature, what it is in words, and what flipping it does: blocks of a page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ...catalog import parts
from ...catalog.text import spelled, visible
from ..render.chart import Panel, bar_size, bars, scale_of
from ..render.lines import aligned, sentence, wrapped
from ..render.tables import cell_width
from ..render.values import unknown

if TYPE_CHECKING:
    import pyarrow as pa

    from ...queries.features.card import FeatureCard

TOP = 10
"""Writers, and tokens of a list, on a feature's page."""
FLIP_METRICS = ("own_logit_change", "other_logit_change", "flip_kl", "own_less_other")
"""Measurements of a flip, which stand in a table of their own."""
ARMS = {name: word for name, word in parts.words("flips").items() if name not in FLIP_METRICS}
"""The arms of a flip in the order in which they are shown."""
_CHANCE = parts.words("writers")


# ---- writers --------------------------------------------------------------------------------------


def writers(table: pa.Table, by_chance: pa.Table, width: int) -> Iterator[str]:
    """The first neurons that write a feature, the tokens that each raises so turned, and what chance gives."""
    rows = table.slice(0, TOP).to_pylist()
    if not rows:
        return
    cells = [["neuron", "polarity", "agreement"]]
    cells += [
        [f"{row['layer']}/{row['neuron']}", f"{row['polarity']:+d}", f"{row['agreement']:.3f}"]
        for row in rows
    ]
    lines = aligned(cells)
    worded = any(row["raises"] for row in rows)
    for line, raises in zip(lines, ["raises", *(row["raises"] for row in rows)], strict=True):
        yield f"{line}  {cut(raises, width - cell_width(lines[0]) - 2)}" if worded else line
    yield from chance(by_chance, width)


def chance(table: pa.Table, width: int) -> Iterator[str]:
    """What the best neuron reaches with such features, and what it reaches under each control."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        groups.setdefault((row["kind"], row["centre"]), []).append(row)
    for (kind, centre), rows in groups.items():
        draws: dict[str, list[float]] = {}
        for row in rows:
            draws.setdefault(row["control"].partition(":")[0], []).append(row["value"])
        found = {control: sum(values) / len(values) for control, values in draws.items()}
        order = [*(one for one in _CHANCE if one in found), *sorted(set(found) - set(_CHANCE))]
        figures = "; ".join(f"{found[one]:.3f} {_word(one)}" for one in order)
        turned = "either polarity, " if rows[0]["metric"].endswith("_either") else ""
        yield from sentence(
            f"the best neuron of a block, {turned}mean over its {rows[0]['n']:,} {kind} features, centre {centre}: {figures}",
            width,
        )


def _word(control: str) -> str:
    return _CHANCE[control].name if control in _CHANCE else control.replace("_", " ")


def coalitions(table: pa.Table, width: int) -> Iterator[str]:
    """Majority votes by size, the paper's figure beside fair coins and beside what is chosen on other dimensions."""
    rows = table.to_pylist()
    if not rows:
        return
    halved = any(not unknown(row["agreement_split_half"]) for row in rows)
    cells = [["neurons", "paper's", "fair coins", "difference", *["split half", "above 0.5"] * halved]]
    for row in rows:
        line = [f"{row['k']:,}", f"{row['agreement']:.3f}", f"{row['agreement_random']:.3f}"]
        line.append(f"{row['agreement'] - row['agreement_random']:+.3f}")
        if halved:
            half = row["agreement_split_half"]
            line += ["–", "–"] if unknown(half) else [f"{half:.3f}", f"{half - 0.5:+.3f}"]
        cells.append(line)
    yield from aligned(cells, left=0)
    yield from sentence(
        "the paper's procedure chooses the neurons and scores their vote on the same dimensions, so read it against fair "
        "coins put through the same, not against 0.5"
        + (
            "; split half scores on dimensions that chose nothing, and is the figure that counts"
            if halved
            else ""
        ),
        width,
    )


# ---- in words -------------------------------------------------------------------------------------


def words(table: pa.Table, width: int, most: int = TOP) -> Iterator[str]:
    """The tokens that directions raise and lower most, of floats and of signs, and how many the two share."""
    subjects: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        subjects.setdefault(row.get("subject", ""), []).append(row)
    titles = {
        "feature": "its signs, each with its dimension's spread over the types",
        "direction": "its words' difference of means in a text",
    }
    for subject, rows in subjects.items():
        if len(subjects) > 1:
            yield f"{titles.get(subject, subject)}:"
        for direction, verb in (("up", "raises"), ("down", "lowers")):
            lists = {
                source: [row for row in rows if row["source"] == source and row["direction"] == direction]
                for source in ("float", "sign")
            }
            head = verb
            for source, some in lists.items():
                if some:
                    tokens = [spelled(row["token"], row["token_id"]) for row in some[:most]]
                    yield from wrapped(f"{head:<8}{source:<7}", tokens, width, " ")
                    head = ""
            if all(lists.values()):
                ids = [{row["token_id"] for row in some} for some in lists.values()]
                yield f"{'':<8}shared {len(ids[0] & ids[1])} of {max(map(len, ids))}"


def cut(text: str, room: int) -> str:
    """`text` in at most `room` cells, its end cut."""
    if cell_width(text) <= room:
        return text
    while text and cell_width(text) > room - 1:
        text = text[:-1]
    return text.rstrip() + "…" if room > 0 else ""


# ---- flips ----------------------------------------------------------------------------------------


def flips(card: FeatureCard, width: int, color: bool = False) -> Iterator[str]:
    """What flipping a feature does to the logits of a text: against the dose, and at the full one beside the controls."""
    rows = card.flips.to_pylist()
    if not rows:
        return
    (feature,) = card.feature.to_pylist()
    run, *earlier = card.flip_runs.to_pylist()
    yield from sentence(_flip_header(feature, rows, run, len(earlier)), width)
    own = [row for row in rows if row["site"] == feature["site"]]
    doses = sorted({row["dose"] for row in own})
    if own:
        yield ""
        yield from _charts(own, doses, width, color)
        yield ""
        yield f"at dose {doses[-1]:g}, at {feature['site']}"
        yield from _flip_table([row for row in own if row["dose"] == doses[-1]], width)
    for site in dict.fromkeys(row["site"] for row in rows if row["site"] != feature["site"]):
        later = [row for row in rows if row["site"] == site]
        full = max(row["dose"] for row in later)
        yield ""
        yield f"the same pattern at {site}, dose {full:g}"
        yield from _flip_table([row for row in later if row["dose"] == full], width)
    yield ""
    there = [one for one in ARMS if any(row["arm"] == one for row in rows)]
    yield from sentence("; ".join(f"{ARMS[one].name}: {ARMS[one].about}" for one in there), width)


def _flip_header(
    feature: dict[str, Any], rows: Sequence[dict[str, Any]], run: dict[str, Any], earlier: int
) -> str:
    params = json.loads(run["params"] or "{}")
    windows = params.get("scored_windows", params.get("windows"))
    about = ", signs taken about the mean of the text's states" if params.get("about") == "text mean" else ""
    dims = f"{feature['n_dims']:,} dimension{'' if feature['n_dims'] == 1 else 's'}"
    sizes = [row["n"] for row in rows]
    where = f"{max(sizes):,} positions" + (f" of {windows} window{'s' * (windows != 1)}" if windows else "")
    if min(sizes) < max(sizes):
        where += f" (below dose 1: {min(sizes):,} positions of every second one)"
    tokens = f"its {params['own_tokens']} own tokens" if params.get("own_tokens") else "its own tokens"
    others = f"{params['other_tokens']} others" if params.get("other_tokens") else "others"
    text = (
        f"its {dims} changed at every position of a text{about}; changes of logits are means over "
        f"{where} and over {tokens}, or {others} that are as frequent; ± is the standard error over windows"
    )
    if earlier:
        text += f"; the latest of {earlier + 1} runs"
    if run["finished_at"] is None:
        text += "; not finished: run `signarium flip` with the same arguments again"
    return text


def _charts(rows: Sequence[dict[str, Any]], doses: Sequence[float], width: int, color: bool) -> Iterator[str]:
    # A shift of all logits alike says nothing of the feature.
    own = {id(row): row["own_logit_change"] - row["other_logit_change"] for row in rows}
    scale = scale_of(list(own.values()))
    titles = {
        "own": "each arm at its own norm",
        "away": "each arm moved as far as away moves that position",
    }
    charts: dict[str, list[Panel]] = {}
    for norm in titles:
        panels = []
        for arm, word in ARMS.items():
            # Away is the measure of the others at its norm.
            counted = norm if arm != "away" else "own"
            some = [row for row in rows if row["arm"] == arm and row["at_norm"] == counted]
            if some:
                panels.append(Panel(word.name, {row["dose"]: own[id(row)] for row in some}))
        # Alone it is not drawn twice.
        if len(panels) > 1 or (panels and norm == "own" and all(row["at_norm"] == "own" for row in rows)):
            charts[norm] = panels
    cells = min((bar_size(panels, len(doses), width) for panels in charts.values()), default=(1, 1))
    before = "change of the own tokens' logits, less that of the others, against the dose"
    for norm, panels in charts.items():
        if before == "the same":
            yield ""
        yield from sentence(f"{before}, {titles[norm]}", width)
        yield from bars(panels, doses, scale, width, color, cells)
        before = "the same"


def _flip_table(rows: Sequence[dict[str, Any]], width: int) -> Iterator[str]:
    order = list(ARMS)
    cells = [["arm", "norm of", "norm", "own tokens", "others", "own-others", "KL (nats)"]]

    def key(row: dict[str, Any]) -> tuple[bool, bool, int, str]:
        arm = row["arm"]
        known = order.index(arm) if arm in order else len(order)
        return arm != "away", row["at_norm"] != "away", known, arm

    figures = {"own_logit_change": "own", "other_logit_change": "other", "kl": "kl"}
    # To the hundredth, but for a column of less than a tenth.
    digits = {name: 2 if max(abs(row[name]) for row in rows) >= 0.1 else 3 for name in figures}
    for row in sorted(rows, key=key):

        def shown(name: str, row: dict[str, Any] = row) -> str:
            error = row[f"{figures[name]}_std_error"]
            return _with_error(row[name], error, digits[name], "" if name == "kl" else "+")

        cells.append(
            [
                ARMS[row["arm"]].name if row["arm"] in ARMS else visible(row["arm"]),
                "away" if row["at_norm"] == "away" or row["arm"] == "away" else "its own",
                f"{row['norm']:.3g}",
                *(shown(name) for name in ("own_logit_change", "other_logit_change")),
                f"{row['own_logit_change'] - row['other_logit_change']:+.{digits['own_logit_change']}f}",
                shown("kl"),
            ]
        )
    lines = aligned(cells, left=2)
    if cell_width(lines[0]) > width:
        # Narrower than any terminal that a table is read on: the errors go.
        cells = [[one.split(" ±")[0] for one in line] for line in cells]
        lines = aligned(cells, left=2)
    yield from lines


def _with_error(value: float, error: float | None, digits: int, sign: str) -> str:
    text = f"{value:{sign}.{digits}f}"
    return text if unknown(error) else f"{text} ± {error:.{digits}f}"
