"""A text token by token, each with the features that it has most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...catalog import store
from ...catalog.codes import Codes
from ...catalog.errors import InvalidInput, TextError, option
from ..nearest.masked import differing_each
from ..nearest.subject import Choice, Target
from ..usual import one_model
from .lists import LEAST
from .resolve import FeatureArrays, features_at, none_yet
from .subject import FEATURES

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

_BLOCK_CELLS = 4_000_000
"""Tokens times features that are compared at once."""
_UNKNOWN = -1e30
"""Behind every surprise that is known."""
LEAST_DIMS = 5
"""Features with fewer registered dimensions agree with half of all tokens by chance, and crowd out what a line has room for."""
_USUAL = f"n_dims >= {LEAST_DIMS} AND CASE WHEN kind = 'category' THEN coalesce(beats_null, true) ELSE survives END"
"""Which features are shown, over the view `features`. Discovered and carried ones have no anchors, so no null to beat."""


class TokenCodes(Protocol):
    """The tokens of a text, cut into windows, n in all, with their codes.

    `chunks` numbers the windows, `positions` the tokens in each, both (n,); `codes` are uint8 (n, bytes) by site and centre.
    """

    @property
    def tokens(self) -> Sequence[str]: ...
    @property
    def token_ids(self) -> NDArray[np.int32]: ...
    @property
    def chunks(self) -> NDArray[np.int32]: ...
    @property
    def positions(self) -> NDArray[np.int32]: ...
    @property
    def codes(self) -> Mapping[tuple[str, str], Codes]: ...


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Where a text is read, and which features of each token are shown.

    Attributes:
        top: features of a token, at most.
        least: agreements below it are left out.
        first: whether a window's first token has any, which is atypical.
        every: whether there are also categories known not to beat their null, discovered and carried features that do not
            survive, and features with fewer than `LEAST_DIMS` dimensions.

    Raises:
        InvalidInput: if `top` is not positive.
    """

    model: str | None = None
    site: str | None = None
    centre: str | None = None
    top: int = 3
    least: float = LEAST
    first: bool = False
    every: bool = False

    def __post_init__(self) -> None:
        if self.top < 1:
            raise InvalidInput(f"{option('top', self.top)} is not positive")


def place(path: Path, model: str | None, site: str | None, centre: str | None) -> Target:
    """Where a text is read. What is not given: among the `resid_post` sites with the centre zero, then those with the
    centre mean, the site with the most category features that are shown, the lower layer of equal ones; at a site that is
    given the centre zero if any is shown there. Where none is shown anywhere, as `nearest` chooses, with the centre zero.

    Raises:
        InvalidInput, NotFound: naming what there is.
    """
    with store.reading(path) as connection:
        model = one_model(connection, model)
        site, centre = _best_place(connection, model, site, centre) or (site, centre)
        return FEATURES.target(connection, Choice(model, site, centre, prefer="states"))


def _best_place(
    connection: duckdb.DuckDBPyConnection, model: str, site: str | None, centre: str | None
) -> tuple[str, str] | None:
    # The centre mean is that of types alone, far from the states of a text, whose bits then hardly vary (`usual_centre`):
    # however many features there are with it, they say little of a text.
    return connection.execute(
        "SELECT site, centre FROM features JOIN sites s USING (model, site) "
        f"WHERE model = $model AND kind = 'category' AND basis = 'standard' AND {_USUAL} "
        "AND CASE WHEN $site IS NULL THEN s.point = 'resid_post' ELSE site = $site END "
        "AND ($centre IS NULL OR centre = $centre) "
        "GROUP BY site, centre, s.layer ORDER BY centre = 'zero' DESC, count(*) DESC, s.layer LIMIT 1",
        {"model": model, "site": site, "centre": centre},
    ).fetchone()


def text_of(text: str | None, file: str | Path | None) -> str:
    """The text itself, or what a file holds; line ends stay as they are.

    Raises:
        InvalidInput: unless exactly one of the two is given, and is Unicode.
        TextError: if the file cannot be read as UTF-8.
    """
    if (text is None) == (file is None):
        raise InvalidInput(f"give a text or {option('file', 'PATH')}", "one of the two")
    if file is not None:
        try:
            return Path(file).read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise TextError(f"{file} is not UTF-8 (byte {error.start})", "convert it first") from None
        except OSError as error:
            raise TextError(f"{file} cannot be read ({(error.strerror or str(error)).lower()})") from error
    assert text is not None
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput("the text is no valid Unicode", "write it as UTF-8") from None
    return text


def read(path: Path, reading: Reading, encode: Callable[[Target], TokenCodes]) -> pa.Table:
    """The `top` features of each token of a text, by how far its agreement is above what is usual, then by agreement and id.

    Usual is the mean over the states of the texts that were ingested, in its standard deviations; over the types
    where no text was. `encode` gives the text's codes at a target's site and centre.

    Returns:
        Rows in the order of the text: model, site, centre, chunk, position, token_id, token, is_first, rank,
        feature_id, name, kind, agreement, surprise. A token without a feature has one row with NULLs from rank on.
    """
    import pyarrow as pa

    target = place(path, reading.model, reading.site, reading.centre)
    text = encode(target)
    tokens, token_ids, chunks, positions = text.tokens, text.token_ids, text.chunks, text.positions
    codes = text.codes[target.site, target.centre]
    with store.reading(path) as connection:
        features = features_at(connection, target, "true" if reading.every else _USUAL)
        features = _in_context(connection, target, features)
        names = {
            row[0]: row[1:]
            for row in connection.execute(
                "SELECT f.feature_id, f.name, f.kind FROM feature_row f JOIN site s USING (site_id) "
                "JOIN model m USING (model_id) WHERE m.name = ? AND s.name = ? AND f.centre = ?",
                [target.model, target.site, target.centre],
            ).fetchall()
        }
    if not names:
        raise none_yet(target.model)
    rows: list[tuple[Any, ...]] = []
    step = max(1, _BLOCK_CELLS // max(1, len(features.ids)))
    for start in range(0, len(codes), step):
        block = codes[start : start + step]
        agreement = 1.0 - differing_each(block, features.patterns, target.width) / features.n_dims
        surprise = features.surprise(agreement)
        kept = agreement >= reading.least
        if not reading.first:
            kept[positions[start : start + step] == 0] = False
        for i, best in enumerate(_best(kept, agreement, surprise, reading.top), start):
            token = (int(chunks[i]), int(positions[i]), int(token_ids[i]), tokens[i], bool(positions[i] == 0))
            for rank, j in enumerate(best.tolist(), 1):
                ident, known = int(features.ids[j]), float(surprise[i - start, j])
                figures = float(agreement[i - start, j]), None if np.isnan(known) else known
                rows.append((*token, rank, ident, *names[ident], *figures))
            if not len(best):
                rows.append((*token, *[None] * 6))
    kinds = {
        "chunk": pa.int32(), "position": pa.int32(), "token_id": pa.int32(), "token": pa.string(),
        "is_first": pa.bool_(), "rank": pa.int32(), "feature_id": pa.int64(), "name": pa.string(),
        "kind": pa.string(), "agreement": pa.float64(), "surprise": pa.float64(),
    }  # fmt: skip
    where = {
        name: pa.array([getattr(target, name)] * len(rows), pa.string())
        for name in ("model", "site", "centre")
    }
    parts = zip(*rows, strict=True) if rows else [[] for _ in kinds]
    return pa.table(
        {
            **where,
            **{name: pa.array(part, kind) for (name, kind), part in zip(kinds.items(), parts, strict=True)},
        }
    )


def _best(
    kept: NDArray[np.bool_], agreement: NDArray[np.float64], surprise: NDArray[np.float64], top: int
) -> list[NDArray[np.int64]]:
    """For each token the features, at most `top`, that are `kept`: by surprise, agreement, place. All are (n, f)."""
    keys = np.where(kept, np.where(np.isnan(surprise), _UNKNOWN, surprise), -np.inf)
    n = keys.shape[1]
    # Only what reaches the last place is sorted, ties with it included.
    bar = np.partition(keys, n - top, axis=1)[:, n - top] if top < n else np.full(len(keys), -np.inf)
    ranked = []
    for i, key in enumerate(keys):
        candidates = np.flatnonzero((key >= bar[i]) & kept[i])
        ranked.append(candidates[np.lexsort((candidates, -agreement[i, candidates], -key[candidates]))][:top])
    return ranked


def _in_context(
    connection: duckdb.DuckDBPyConnection, target: Target, features: FeatureArrays
) -> FeatureArrays:
    """Features whose usual agreement is that over the ingested states, where it was measured."""
    rows = connection.execute(
        "SELECT subject_id, metric, arg_max(value, (n, run_id)) FROM measurement_row JOIN site s USING (site_id) "
        "JOIN model m USING (model_id) WHERE m.name = ? AND s.name = ? AND subject = 'feature' AND control = 'none' "
        "AND metric IN ('agreement_context_mean', 'agreement_context_std') GROUP BY ALL",
        [target.model, target.site],
    ).fetchall()
    figures = {(ident, metric.rpartition("_")[2]): value for ident, metric, value in rows}
    mean, std = features.mean.copy(), features.std.copy()
    for i, ident in enumerate(features.ids.tolist()):
        # Both or neither: a mean over states and a spread over types do not go together.
        if (str(ident), "mean") in figures and (str(ident), "std") in figures:
            mean[i], std[i] = figures[str(ident), "mean"], figures[str(ident), "std"]
    return FeatureArrays(features.ids, features.patterns, features.n_dims, mean, std)
