"""A feature's card as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ...catalog import parts
from ...catalog.text import quoted_name, spelled, visible
from ...queries.features.card import FeatureCard
from ..render.formats import rendered
from ..render.lines import NARROW, PLAIN_WIDTH, text_of, wrapped
from ..render.values import unknown
from . import causes
from .search import around_mark

if TYPE_CHECKING:
    import pyarrow as pa

_GROUPS = 8
_BARS = " ▁▂▃▄▅▆▇█"

_WORDS = parts.words("features")
COHERENCE = ("category_share", "same_word_share", "edit_similarity", "rank_distance")
"""Metrics over pairs of the top types, which have controls of their own and a table of their own."""


def page(card: FeatureCard, width: int | None = None, color: bool = False) -> str:
    """The whole card as lines of at most `width` cells, with a line break at the end."""
    wide = width or PLAIN_WIDTH
    blocks = {
        "": _header(card, wide),
        "evidence": _evidence(card, wide),
        "scores of all types": _scores(card, wide),
        "members": _members(card.members, wide),
        "types that agree most": _types(card.types, wide),
        "states that agree most": _states(card.states, wide),
        "writers": causes.writers(card.writers, card.chance, wide),
        "coalitions of writers": causes.coalitions(card.coalitions, wide),
        "in words": causes.words(card.projections, wide),
        "what flipping does": causes.flips(card, wide, color),
    }
    return text_of(blocks, color)


def flips(card: FeatureCard, width: int | None = None, color: bool = False) -> str:
    """What flipping a feature does, alone."""
    (row,) = card.feature.to_pylist()
    where = f"{row['model']} at {row['site']}, centre {row['centre']}"
    title = visible(f"{quoted_name(row['name'])}, feature {row['feature_id']} of {where}")
    return text_of(
        {"": [title], "what flipping does": causes.flips(card, width or PLAIN_WIDTH, color)}, color
    )


def _header(card: FeatureCard, width: int) -> Iterator[str]:
    (row,) = card.feature.to_pylist()
    yield visible(f"{quoted_name(row['name'])}, feature {row['feature_id']}")
    how = "the single best dimension" if row["n_dims"] == 1 else "agreed on by all members"
    if row["kind"] == "direction":
        how = "as many as the feature that it was"
    elif not unknown(row["threshold"]):
        how = f"AUC of each at least {row['threshold']:.2f}"
    elif row["kind"] == "category":
        how = "none reached the threshold: the single best dimension"
    seen = f", found {row['repeats']} times more" if row["repeats"] else ""
    facts = {
        "kind": f"{row['kind']}, {row['n_members']:,} members{seen}",
        "where": f"{row['model']} at {row['site']}, centre {row['centre']}, basis {row['basis']}",
        "dimensions": f"{row['n_dims']:,} registered; {how}",
        "fires on": f"{row['fire_rate']:.3%} of all types (agreement from 0.80)",
    }
    for source in card.carried.to_pylist():
        named = "" if source["source_name"] is None else f", {quoted_name(source['source_name'])}"
        facts["carried"] = (
            f"from feature {source['source_feature_id']}{named}, of {source['model_a']} at {source['site_a']}, by a rotation with "
            f"held-out explained variance {source['ev_rotation']:.3f}, fitted on shuffled pairs {source['ev_shuffled']:.3f}"
        )
        if source["rank_warning"] is not None:
            facts["beware"] = source["rank_warning"]
    for name, fact in facts.items():
        yield from wrapped(f"{name:<11}", visible(fact).split(" "), width, " ")


# ---- evidence -------------------------------------------------------------------------------------


def _evidence(card: FeatureCard, width: int) -> Iterator[str]:
    (row,) = card.feature.to_pylist()
    for line in (_verdict(row), _beside_null(row)):
        if line:
            yield from wrapped("", line.split(" "), width, " ")
    # What a flip does has a block of its own.
    stored = [one for one in card.measurements.to_pylist() if one["metric"] not in causes.FLIP_METRICS]
    if not stored:
        yield "no measurements of it are stored"
    for coherence in (False, True):
        some = [one for one in stored if (one["metric"] in COHERENCE) is coherence]
        if some:
            yield ""
            yield from _table(some, width)


def _table(rows: Sequence[dict[str, Any]], width: int) -> Iterator[str]:
    names, found = _pivot(rows, width >= NARROW)
    texts = [names, *([_figure(one) for one in line] for line in found)]
    sizes = [max(len(line[i]) for line in texts) for i in range(len(names))]
    between = "  " if sum(sizes) + 2 * (len(sizes) - 1) <= width else " "
    for line in texts:
        figures = [one.rjust(size) for one, size in zip(line[2:], sizes[2:], strict=True)]
        yield between.join([line[0].ljust(sizes[0]), line[1].ljust(sizes[1]), *figures])
    headings = {name.split(":")[0] for name in names}
    shown = [f"{word.name}: {word.about}" for word in _WORDS.values() if word.about and word.name in headings]
    if shown:
        yield from wrapped("", "; ".join(shown).split(" "), width, " ")


def _verdict(row: dict[str, Any]) -> str:
    if unknown(row["p_value"]):
        return "not tested: there is no p for it"
    verdict = "survives" if row["survives"] else "does not survive"
    return (
        f"{verdict}: p = {row['p_value']:.2g}, the largest over its controls, is {'' if row['survives'] else 'not '}"
        "within 5% false discoveries (Benjamini-Hochberg over its model)"
    )


def _beside_null(row: dict[str, Any]) -> str:
    if unknown(row["best_dim_auc"]) or unknown(row["null_p95"]):
        return ""
    words = "above" if row["beats_null"] else "not above"
    return (
        f"the paper's test: best dimension {row['best_dim_auc']:.3f}, {words} {row['null_p95']:.3f}, "
        "the 95th percentile of random members"
    )


def _pivot(rows: Sequence[dict[str, Any]], every_draw: bool) -> tuple[list[str], list[list[Any]]]:
    """Measurements with a row for each metric and split, and a column for each control.

    Draws of one control (`haar:1`, ...) stand side by side, or as their mean. Of several runs the one over most counts.
    """
    order, splits = list(_WORDS), ["in_sample", "held_out"]

    def column(control: str) -> tuple[int, str, str]:
        name, _, draw = control.partition(":")
        place = order.index(name) if name in order else len(order)
        heading = _name(name)
        return place, heading, f"{heading}:{draw}" if draw and every_draw else heading

    def line(one: dict[str, Any]) -> tuple[int, str, int, str]:
        metric, split = one["metric"], one["split"]
        return (
            order.index(metric) if metric in order else len(order),
            metric,
            splits.index(split) if split in splits else len(splits),
            split,
        )

    cells: dict[Any, dict[Any, dict[str, float]]] = {}
    for one in rows:
        cells.setdefault(line(one), {}).setdefault(column(one["control"]), {})[one["control"]] = one["value"]
    columns = sorted({one for found in cells.values() for one in found})
    names = ["figure", "split", *(one[2] for one in columns)]
    table: list[list[Any]] = []
    for (_, metric, _, split), found in sorted(cells.items()):
        means = [sum(v.values()) / len(v) if (v := found.get(one)) else None for one in columns]
        table.append([_name(metric), split.replace("_", " "), *means])
    return names, table


def _name(term: str) -> str:
    """A metric or control in words; under its own name where there is no word for it."""
    return _WORDS[term].name if term in _WORDS else term


def _figure(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return visible(value)
    if abs(value) >= 10:
        return f"{value:,.1f}".removesuffix(".0")
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.001 else f"{value:.0e}"


# ---- what agrees with it --------------------------------------------------------------------------


def _scores(card: FeatureCard, width: int) -> Iterator[str]:
    """A histogram of agreement as bars of one line: all types on a scale of their own, and the members."""
    rows = card.histogram.to_pylist()
    if not rows:
        return
    cell = 2 if width >= 2 * len(rows) + 30 else 1
    for name in ("types", "members"):
        counts = [row[name] for row in rows]
        top = max(counts)
        if top == 0:
            continue
        steps = len(_BARS) - 1
        # What is there at all shows, however few.
        bars = "".join(_BARS[-(-one * steps // top)] * cell for one in counts)
        yield f"{name:<11}{bars}  {sum(counts):,}, at most {top:,} a bar"
    half = len(rows) * cell // 2
    yield " " * 11 + "0".ljust(half - 1) + "0.5".ljust(half) + "1  agreement"


def _members(members: pa.Table, width: int) -> Iterator[str]:
    parts: dict[str, list[str]] = {}
    for row in members.to_pylist():
        parts.setdefault(row["part"], []).append(spelled(row["token"], row["token_id"]))
    for part, tokens in parts.items():
        yield from wrapped(f"{part:<11}", tokens, width)


def _types(types: pa.Table, width: int) -> Iterator[str]:
    """Tokens behind the agreement, to two digits, that they share: a line for each, or running where there are many."""
    groups: dict[str, list[str]] = {}
    for row in types.to_pylist():
        groups.setdefault(f"{row['agreement']:.2f}", []).append(spelled(row["token"], row["token_id"]))
    if len(groups) <= _GROUPS:
        for agreement, tokens in groups.items():
            yield from wrapped(f"{agreement:<11}", tokens, width)
        return
    running = [
        f"{'  ' if i else ''}{agreement} {tokens[0]}" for i, (agreement, tokens) in enumerate(groups.items())
    ]
    words = [
        word for first, tokens in zip(running, groups.values(), strict=True) for word in (first, *tokens[1:])
    ]
    yield from wrapped("", words, width, " ")


def _states(states: pa.Table, width: int) -> Iterator[str]:
    import pyarrow as pa

    if not states.num_rows:
        return
    rows = states.to_pylist()
    agreements = [f"{row['agreement']:.3f}" for row in rows]
    used = max(map(len, ["agreement", *agreements])) + max(len(str(row["state_id"])) for row in rows) + 4
    room = max(16, width - used)
    texts = [around_mark(visible(row["context"]), visible(row["token"] or ""), room) for row in rows]
    table = pa.table(
        {"agreement": agreements, "state_id": [str(row["state_id"]) for row in rows], "context": texts}
    )
    yield from rendered(table, width=width).splitlines()[:-1]
