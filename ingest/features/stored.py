"""Features in stored states: which states of a text agree with them most, and how well they read there.

First positions are left out: a few of their dimensions are so large that their signs say little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...catalog import bulk, store
from ...catalog.bulk import Figure
from ...catalog.codes import n_bytes, unpack
from ..stats.bits import Counts, Patterns, TypeBits, agreements, among, top_of
from ..stats.figures import Scope

TOP_STATES = 20
_CHUNK = 131_072
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class StoredFeature:
    """A feature as the catalogue holds it; `anchors` are a category's words, ascending."""

    feature_id: int
    mask: bytes
    polarity: bytes
    anchors: Ids


def stored_features(path: Path, run_id: str, site: str, centre: str) -> list[StoredFeature]:
    """The features of one run at a site and centre, in order of their ids."""
    with store.reading(path) as connection:
        rows = connection.execute(
            "SELECT f.feature_id, f.mask, f.polarity, list(x.token_id) FILTER (x.part IN ('define', 'score')) "
            "FROM feature_row f JOIN site s USING (site_id) LEFT JOIN feature_member x USING (feature_id) "
            "WHERE f.run_id = ? AND s.name = ? AND f.centre = ? GROUP BY ALL ORDER BY f.feature_id",
            [run_id, site, centre],
        ).fetchall()
    return [StoredFeature(row[0], row[1], row[2], np.sort(np.array(row[3] or [], np.int64))) for row in rows]


@dataclass
class Scored:
    """How features agree with the states of one text run; counts of dimensions.

    `n` states, first positions left out; `sums` and `squares` of the counts; the best `states` and `counts`; the
    counts of `positive` states (a category's words) and the histogram of all, per feature.
    """

    width: int
    n: int
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]
    states: list[Ids]
    counts: list[Ids]
    positive: list[list[Counts]]
    times: NDArray[np.int64]

    @classmethod
    def empty(cls, n_features: int, width: int) -> Scored:
        """Nothing seen yet."""
        none = [np.empty(0, np.int64)] * n_features
        return cls(
            width,
            0,
            np.zeros(n_features),
            np.zeros(n_features),
            list(none),
            list(none),
            [[] for _ in range(n_features)],
            np.zeros((n_features, width + 1), np.int64),
        )

    def add(
        self, states: Ids, tokens: Ids, types: TypeBits, patterns: Patterns, anchors: Sequence[Ids]
    ) -> None:
        """`types` holds the codes of `states`, whose tokens are `tokens`; both in ascending order of state."""
        values = np.arange(self.width + 1, dtype=np.float64)
        self.n += len(states)
        for i, row in agreements(types, patterns):
            times = np.bincount(row, minlength=self.width + 1)
            self.times[i] += times
            self.sums[i] += times @ values
            self.squares[i] += times @ values**2
            places, counts = top_of(row, times, TOP_STATES)
            ids = np.concatenate([self.states[i], states[places]])
            both = np.concatenate([self.counts[i], counts])
            order = np.lexsort((ids, -both))[:TOP_STATES]
            self.states[i], self.counts[i] = ids[order], both[order]
            if len(anchors[i]):
                self.positive[i].append(row[among(tokens, anchors[i])])

    def auc(self, i: int) -> tuple[float, int]:
        """Of feature `i`: occurrences of its words against all other states, and how many occurrences there were."""
        own = np.concatenate([*self.positive[i], np.empty(0, np.int16)])
        against = self.times[i] - np.bincount(own, minlength=self.width + 1)
        total = int(against.sum())
        if not len(own) or not total:
            return float("nan"), len(own)
        upto = against.cumsum()
        return float(((upto[own] - against[own] / 2) / total).mean()), len(own)


def score_states(
    path: Path,
    features: Sequence[StoredFeature],
    code_set_id: int,
    width: int,
    ranges: Sequence[tuple[int, int]],
) -> Scored:
    """How `features` agree with the states of a code set whose ids lie in `ranges` (first, last)."""
    masks, polarities = (
        unpack(np.frombuffer(b"".join(parts), np.uint8).reshape(len(features), -1), width).astype(np.bool_)
        for parts in ([one.mask for one in features], [one.polarity for one in features])
    )
    patterns = Patterns(masks, polarities)
    anchors = [one.anchors for one in features]
    scored = Scored.empty(len(features), width)
    for first, last in ranges:
        for a in range(first, last + 1, _CHUNK):
            b = min(a + _CHUNK - 1, last)
            with store.reading(path) as connection:
                states, codes = bulk.read_range(connection, code_set_id, n_bytes(width), a, b)
                rows = connection.execute(
                    "SELECT state_id, token_id, position FROM state_row WHERE state_id BETWEEN ? AND ? ORDER BY state_id",
                    [a, b],
                ).to_arrow_table()
            if len(states):
                ids = rows.column("state_id").to_numpy()
                kept = (rows.column("position").to_numpy() > 0)[np.searchsorted(ids, states)]
                tokens = rows.column("token_id").to_numpy()[np.searchsorted(ids, states)]
                scored.add(states[kept], tokens[kept], TypeBits(codes[kept], width), patterns, anchors)
    return scored


def scored_figures(
    features: Sequence[StoredFeature], scored: Scored, site_id: str, centre: str, seed: int
) -> tuple[list[Figure], dict[str, Any]]:
    """Figures of features in text, and the columns of `feature_state_row` beside its run."""
    figures: list[Figure] = []
    n = max(1, scored.n)
    n_dims = [int(np.bitwise_count(np.frombuffer(one.mask, np.uint8)).sum()) for one in features]
    aucs = []
    for i, one in enumerate(features):
        mean = scored.sums[i] / n
        std = float(np.sqrt(max(scored.squares[i] / n - mean**2, 0.0)))
        values = [("agreement_context_mean", mean / max(1, n_dims[i]), scored.n)]
        values.append(("agreement_context_std", std / max(1, n_dims[i]), scored.n))
        if len(one.anchors):
            # The words that define are the ones that are found: new contexts, not new words.
            auc, occurrences = scored.auc(i)
            values.append(("auc_context", auc, occurrences))
            aucs.append(auc)
        figures += [
            Figure(
                site_id,
                "feature",
                str(one.feature_id),
                metric,
                "none",
                "in_sample",
                float(value),
                count,
                seed,
            )
            for metric, value, count in values
        ]
    if aucs:
        # `context` measures the same on a sample, beside rotated bases.
        figures.append(
            Scope(site_id, "category", centre, seed).mean("auc_context_stored", "none", "in_sample", aucs)
        )
    lengths = [len(one) for one in scored.states]
    shares = [counts / max(1, dims) for counts, dims in zip(scored.counts, n_dims, strict=True)]
    empty = np.empty(0)
    rows = {
        "feature_id": np.repeat(np.array([one.feature_id for one in features], np.int64), lengths),
        "state_id": np.concatenate([*scored.states, empty.astype(np.int64)]),
        "agreement": np.concatenate([*shares, empty]),
    }
    return figures, rows
