"""Categories of A carried to B: each becomes a feature of B, scored on B's own types, which had no part in making it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...catalog import bulk, schema, store
from ...catalog.bulk import Figure
from ...catalog.carry import Rotation, carry_patterns
from ...catalog.codes import n_bytes, unpack
from ..features import rows
from ..features.prototypes import define, score, upper_tail
from ..stats.bases import HAAR_SEEDS, haar
from ..stats.bits import Patterns, TypeBits, agreements, tops
from ..stats.figures import Scope

if TYPE_CHECKING:
    import duckdb
    from sqlalchemy.orm import Session

TOP = 50
"""Types that are listed of a feature."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Features:
    """Categories at one site and centre, in the order of their ids: patterns over `width`, and the tokens of each.

    `define` and `score` are the halves of `tokens` that their held-out figures are of.
    """

    ids: list[int]
    names: list[str]
    patterns: Patterns
    tokens: list[NDArray[np.int64]]
    define: list[NDArray[np.int64]]
    score: list[NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class Carried:
    """Features of B at one centre, where they come from, and figures about all of them."""

    found: rows.Found
    sources: list[int]
    figures: list[Figure]


def carry_features(
    path: Path, rotation: Rotation[torch.Tensor], site_a_id: str, scope: Scope
) -> list[Carried]:
    """The categories of A at a site as features of B, for each centre that both have; nothing where they have none.

    A category is the direction (mask times polarity) times the standard deviation of A's types in each dimension; it is
    carried by the rotation, and B registers as many dimensions, those where the direction is largest beside the
    standard deviation of B's types. The feature is that of all its tokens; its AUC is of a pattern that A's types of one
    half of them define, carried likewise, and of the agreement of B's types of the other half with it, among all types
    that are none of either. Beside it: Haar matrices in R's place, the pattern as it is, and B's own category of that
    name, defined and scored on the same halves.
    """
    found = []
    with store.reading(path) as connection:
        std_a, std_b = (_stds(connection, site) for site in (site_a_id, scope.site_id))
        if std_a is None or std_b is None:
            return []
        for centre in ("zero", "mean"):
            theirs = _features(connection, site_a_id, centre)
            width = rotation.matrix.shape[0]
            types, home = (_types(connection, site, centre, width) for site in (scope.site_id, site_a_id))
            if theirs is None or types is None or home is None:
                continue
            own = _own(connection, scope.site_id, centre)
            carrier = _Carrier(rotation.matrix.cpu(), std_a, std_b, home, types)
            found.append(carrier.carry(theirs, own, centre, scope))
    return found


@dataclass(frozen=True, eq=False)
class _Carrier:
    """The way from A to B at one centre: a matrix [width, width], deviations (width,), the types of A and those of B."""

    matrix: torch.Tensor
    std_a: Floats
    std_b: Floats
    home: TypeBits
    types: TypeBits

    def turned(self, patterns: Patterns, matrix: torch.Tensor | None = None) -> Patterns:
        """`patterns` in B's basis, by another matrix if one is given."""
        return turn(patterns, self.matrix if matrix is None else matrix, self.std_a, self.std_b)

    def carry(self, theirs: Features, own: dict[str, float], centre: str, scope: Scope) -> Carried:
        """A's categories as features of B; `own` are the AUCs of B's own categories."""
        types = self.types
        half = define(self.home, theirs.tokens, theirs.define).patterns
        auc = {"none": _auc(types, self.turned(half), theirs), "as_is": _auc(types, half, theirs)}
        for seed in HAAR_SEEDS:
            drawn = haar(len(self.matrix), seed).to(self.matrix)
            auc[f"haar:{seed}"] = _auc(types, self.turned(half, drawn), theirs)
        auc["own"] = np.array([own.get(name, np.nan) for name in theirs.names])
        figures = [
            scope.mean(
                f"feature_auc_{centre}",
                name,
                "held_out",
                values,
                None if name == "none" else auc["none"] - values,
            )
            for name, values in auc.items()
        ]
        found = _found(theirs, self.turned(theirs.patterns), types, auc, centre)
        for name, values in auc.items():
            found.add(
                "auc_agreement", name, "held_out", values, [len(one) for one in theirs.score], scope.seed
            )
        return Carried(found, theirs.ids, [one for one in figures if math.isfinite(one.value)])


def _found(
    theirs: Features, turned: Patterns, types: TypeBits, auc: dict[str, Floats], centre: str
) -> rows.Found:
    """The rows of the features that `turned` makes of A's categories, with their AUCs on B's `types`."""
    haars = np.mean([auc[f"haar:{seed_of}"] for seed_of in HAAR_SEEDS], axis=0)
    n = len(theirs.ids)
    best = tops(agreements(types, turned), turned, min(TOP, types.n))
    p_values = [
        _p_value(value, control, len(tokens), types.n)
        for value, control, tokens in zip(auc["none"], haars, theirs.score, strict=True)
    ]
    empty: list[Any] = [None] * n
    extra: dict[str, Any] = {
        "threshold": empty,
        "n_members": np.array([len(one) for one in theirs.tokens]),
        "seed_token": empty,
        "repeats": np.zeros(n, np.int32),
        "best_dim": empty,
        "best_dim_auc": empty,
        "auc_in_sample": empty,
        "auc_held_out": auc["none"],
        "auc_rotated": haars,
        "null_p95": empty,
        "p_value": p_values,
    }
    members = [
        [("define", first), ("score", second)]
        for first, second in zip(theirs.define, theirs.score, strict=True)
    ]
    return rows.Found("direction", centre, theirs.names, turned, best, types.n, extra, members)


def turn(patterns: Patterns, matrix: torch.Tensor, std_a: Floats, std_b: Floats) -> Patterns:
    """Patterns of A in B's basis; see `carry_features`. `matrix` is [width, width], the others (width,)."""
    return Patterns(*carry_patterns(patterns.mask, patterns.polarity, matrix.numpy(), std_a, std_b))


def _auc(types: TypeBits, patterns: Patterns, of: Features) -> Floats:
    """AUC of the scored half of each category among all types that are none of its tokens."""
    return np.array(
        [
            float(score(row, scored, tokens, [None])[0].mean())
            for (_, row), scored, tokens in zip(agreements(types, patterns), of.score, of.tokens, strict=True)
        ]
    )


def _p_value(auc: float, rotated: float, n: int, n_types: int) -> float:
    """The larger of two one-sided p-values: above one half, and above a Haar matrix in R's place.

    The standard error is that of the Mann-Whitney statistic if nothing is there, sqrt((n + m + 1) / 12 n m).
    """
    m = max(1, n_types - n)
    error = math.sqrt((n + m + 1) / (12 * n * m))
    return max(
        upper_tail(auc - 0.5, error),
        upper_tail(auc - rotated, error * math.sqrt(1 + 1 / len(HAAR_SEEDS))),
    )


def insert_carried(
    session: Session, run_id: str, rotation_id: int, site: str, site_id: str, carried: list[Carried]
) -> None:
    """Insert the features of one site, whence they come, and the figures about all of them."""
    if not carried:
        return
    ids = rows.insert(session, run_id, site, site_id, [one.found for one in carried])
    sources = [source for one in carried for source in one.sources]
    bulk.insert(
        session,
        schema.carried_row,
        {
            "feature_id": ids,
            "rotation_id": np.full(len(ids), rotation_id),
            "source_feature_id": np.array(sources, np.int64),
        },
    )
    bulk.insert_figures(session, run_id, [figure for one in carried for figure in one.figures])


# ---- reading ----------------------------------------------------------------------------------------


def _stds(connection: duckdb.DuckDBPyConnection, site_id: str) -> Floats | None:
    """Standard deviation of the types in each dimension, (width,); None if the stage types has not run there."""
    found = connection.execute(
        "SELECT d.std FROM dimension_row d JOIN run r USING (run_id) WHERE d.site_id = ? AND d.subject = 'type' "
        "AND r.finished_at IS NOT NULL QUALIFY d.run_id = first(d.run_id) OVER (ORDER BY r.started_at, d.run_id) ORDER BY d.dim",
        [site_id],
    ).fetchall()
    return np.array([row[0] for row in found]) if found else None


def _types(connection: duckdb.DuckDBPyConnection, site_id: str, centre: str, width: int) -> TypeBits | None:
    found = connection.execute(
        "SELECT cs.code_set_id FROM code_set cs JOIN run r USING (run_id) WHERE cs.site_id = ? AND cs.subject = 'type' "
        "AND cs.centre = ? AND cs.basis = 'standard' AND r.finished_at IS NOT NULL ORDER BY r.started_at, r.run_id LIMIT 1",
        [site_id, centre],
    ).fetchone()
    if found is None:
        return None
    _, codes = bulk.read_codes(connection, found[0], n_bytes(width))
    return TypeBits(codes, width)


def _features(connection: duckdb.DuckDBPyConnection, site_id: str, centre: str) -> Features | None:
    found = connection.execute(
        "SELECT f.feature_id, f.name, f.mask, f.polarity, s.width, list(x.token_id ORDER BY x.token_id), "
        "list(x.token_id ORDER BY x.token_id) FILTER (x.part = 'define'), list(x.token_id ORDER BY x.token_id) FILTER "
        "(x.part = 'score') FROM feature_row f "
        "JOIN site s USING (site_id) JOIN feature_member x USING (feature_id) WHERE f.site_id = ? AND f.kind = 'category' "
        "AND f.centre = ? AND f.basis = 'standard' GROUP BY ALL HAVING count(DISTINCT x.part) = 2 ORDER BY f.feature_id",
        [site_id, centre],
    ).fetchall()
    if not found:
        return None
    codes = np.array([np.frombuffer(mask + polarity, np.uint8) for _, _, mask, polarity, *_ in found])
    bits = unpack(codes.reshape(len(found), 2, -1), found[0][4]).astype(np.bool_)
    return Features(
        [row[0] for row in found],
        [row[1] for row in found],
        Patterns(bits[:, 0], bits[:, 1]),
        *([np.array(row[k], np.int64) for row in found] for k in (5, 6, 7)),
    )


def _own(connection: duckdb.DuckDBPyConnection, site_id: str, centre: str) -> dict[str, float]:
    """Held-out AUC of B's own categories by name."""
    found = connection.execute(
        "SELECT name, avg(auc_held_out) FROM feature_row WHERE site_id = ? AND kind = 'category' AND centre = ? "
        "AND basis = 'standard' AND auc_held_out IS NOT NULL GROUP BY name",
        [site_id, centre],
    ).fetchall()
    return dict(found)
