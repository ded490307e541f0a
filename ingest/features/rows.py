"""What the jobs of this stage leave in the catalogue: features, what they are made of, their figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from ...catalog import bulk, schema
from ...catalog.bulk import Figure
from ...catalog.errors import InvalidInput
from ...catalog.ids import digest
from ..stats.bits import Patterns, Tops
from ..stats.figures import Scope

_PLACE_BITS = 16
"""A run's features at one site have ids base .. base + 2**16 - 1; with 31 bits of digest above, still exact in JSON."""
Floats = NDArray[np.float64]
BEST = ("best_dim_auc", "in_sample")


def feature_base(salt: int, run_id: str, site: str) -> int:
    """The first feature id of a run at a site; `salt` is 0 unless two bases of one catalogue collide."""
    return (int(digest(salt, "feature", run_id, site)[:8], 16) >> 1) << _PLACE_BITS


@dataclass
class Found:
    """Features of one kind at one site and centre. Arrays are (features,), `tops` and `patterns` as they say.

    `names`, and what `extra` holds: the columns of `feature_row` that are this kind's own. `members`: per feature, lists of
    (part, token ids). `figures`: (place, metric, control, split, value, n, seed).
    """

    kind: str
    centre: str
    names: Sequence[str]
    patterns: Patterns
    tops: Tops
    n_types: int
    extra: dict[str, Sequence[Any] | NDArray[Any]]
    members: list[list[tuple[str, NDArray[np.int64]]]]
    figures: list[tuple[int, str, str, str, float, int, int | None]] = field(default_factory=list)

    def by_metric(self) -> dict[tuple[str, str, str], Floats]:
        """The figures by (metric, control, split), each (features,)."""
        groups: dict[tuple[str, str, str], list[float]] = {}
        for _, metric, control, split, value, _, _ in self.figures:
            groups.setdefault((metric, control, split), []).append(value)
        return {key: np.array(values, np.float64) for key, values in groups.items()}

    def add(
        self, metric: str, control: str, split: str, values: Sequence[float] | Floats, n: Sequence[int] | int,
        seed: int | None = None,
    ) -> None:  # fmt: skip
        """A figure for every feature."""
        counts = [n] * len(values) if isinstance(n, int) else list(n)
        self.figures += [
            (i, metric, control, split, float(value), int(counts[i]), seed) for i, value in enumerate(values)
        ]


def summary(
    site_id: str, subject: str, subject_id: str, values: dict[tuple[str, str, str], Floats], seed: int
) -> list[Figure]:
    """Means over features of each (metric, control, split), p-values left out, and the shares that follow from them.

    All arrays are of the same features in the same order. The standard error of a control is that of its difference
    to the figure itself: both are of the same features, whose own spread would drown it.
    """
    best = {control: one for (metric, control, split), one in values.items() if (metric, split) == BEST}
    shares = {("discoverable_share", control, "in_sample"): one >= 0.75 for control, one in best.items()}
    for name, null in (("beats_null_share", "anchors"), ("beats_rank_null_share", "anchors_rank")):
        if "none" in best and null in best:
            shares[name, "none", "in_sample"] = best["none"] > best[null]
    every = {key: one for key, one in values.items() if not key[0].startswith("p_")}
    every |= {
        key: one.astype(float) for key, one in shares.items() if key[1] not in ("anchors", "anchors_rank")
    }
    scope = Scope(site_id, subject, subject_id, seed)
    figures = []
    for (metric, control, split), one in every.items():
        own = every.get((metric, "none", split))
        paired = own - one if own is not None and control != "none" else None
        figures.append(scope.mean(metric, control, split, one, paired))
    return figures


def insert(
    session: Session, run_id: str, site: str, site_id: str, parts: Sequence[Found]
) -> NDArray[np.int64]:
    """Insert the features of one site; their ids, which count up from the site's base in the order given."""
    base = _base(session, run_id, site)
    place = 0
    for part in parts:
        n = len(part.names)
        if place + n > 1 << _PLACE_BITS:
            raise InvalidInput(f"{place + n} features at one site", f"{1 << _PLACE_BITS} are the most")
        ids = base + place + np.arange(n)
        place += n
        if not n:
            continue
        masks, polarities = part.patterns.packed()
        columns = {
            "feature_id": ids,
            "run_id": [run_id] * n,
            "site_id": [site_id] * n,
            "kind": [part.kind] * n,
            "name": list(part.names),
            "centre": [part.centre] * n,
            "basis": ["standard"] * n,
            "n_dims": part.patterns.n_dims.astype(np.int32),
            "mask": bulk.binary_array(masks),
            "polarity": bulk.binary_array(polarities),
            "fire_rate": part.tops.fired / part.n_types,
            "agreement_mean": part.tops.mean,
            "agreement_std": part.tops.std,
            **{name: _nullable(name, values) for name, values in part.extra.items()},
        }
        bulk.insert(session, schema.feature_row, columns)
        _insert_tops(session, ids, part)
        _insert_members(session, ids, part)
        bulk.insert_figures(
            session,
            run_id,
            [
                Figure(site_id, "feature", str(ids[i]), metric, control, split, value, count, seed)
                for i, metric, control, split, value, count, seed in part.figures
            ],
        )
    return base + np.arange(place, dtype=np.int64)


def _nullable(name: str, values: Sequence[Any] | NDArray[Any]) -> pa.Array:
    """NaN and None as NULL."""
    whole = schema.feature_row.c[name].type.python_type is int
    known = [None if value is None or value != value else value for value in values]
    return pa.array(known, pa.int32() if whole else pa.float64())


def _base(session: Session, run_id: str, site: str) -> int:
    """The base of this run's features at a site, off the bases of others."""
    from sqlalchemy import func, select

    table = schema.feature_row
    salt = 0
    while True:
        base = feature_base(salt, run_id, site)
        taken = select(func.count()).where(table.c.feature_id.between(base, base + (1 << _PLACE_BITS) - 1))
        if not session.scalar(taken):
            return base
        salt += 1


def _insert_tops(session: Session, ids: NDArray[np.int64], part: Found) -> None:
    k = part.tops.ids.shape[1]
    bulk.insert(
        session,
        schema.feature_type_row,
        {
            "feature_id": np.repeat(ids, k),
            "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), len(ids)),
            "token_id": part.tops.ids.ravel().astype(np.int32),
            "agreement": (part.tops.counts / np.maximum(part.patterns.n_dims, 1)[:, None]).ravel(),
        },
    )


def _insert_members(session: Session, ids: NDArray[np.int64], part: Found) -> None:
    owners, tokens, parts = [], [], []
    for ident, members in zip(ids, part.members, strict=True):
        for name, token_ids in members:
            owners.append(np.full(len(token_ids), ident))
            tokens.append(token_ids)
            parts += [name] * len(token_ids)
    bulk.insert(
        session,
        schema.feature_member,
        {
            "feature_id": np.concatenate(owners),
            "token_id": np.concatenate(tokens).astype(np.int32),
            "part": parts,
        },
    )
