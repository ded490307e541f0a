"""What a flip is about: the feature, its tokens and those that they are compared with, and the windows of the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...catalog import store
from ...catalog.codes import unpack
from ...catalog.errors import InvalidInput, NotFound
from ..model.sites import Site
from ..stats.draws import spaced
from ..text import windows as texts

if TYPE_CHECKING:
    from ..model.loaded import LoadedModel

READ = 65_536
"""Windows of the text that are looked at, from its start."""
_LEAST = 4
"""Windows with the feature's tokens from which some can be spared for fitting alone."""
_REPORT = 256

Ids = NDArray[np.int64]
Bools = NDArray[np.bool_]


# ---- the feature ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Feature:
    """A feature as the catalogue holds it: mask and polarity (width,), the tokens that it was made from, ascending.

    `seed` is the token that a discovered one was found from.
    """

    feature_id: int
    model: str
    model_id: str
    site: Site
    site_id: str
    kind: str
    name: str
    centre: str
    mask: Bools
    polarity: Bools
    tokens: Ids
    seed: int | None

    @property
    def n_dims(self) -> int:
        """Registered dimensions."""
        return int(self.mask.sum())


_QUERY = """SELECT f.feature_id, m.name AS model, m.model_id, s.name AS site, s.site_id, f.kind, f.name, f.centre, f.basis,
  f.mask, f.polarity, s.width, f.seed_token, list(x.token_id ORDER BY x.token_id) FILTER (x.token_id IS NOT NULL) AS tokens
FROM feature_row f JOIN site s USING (site_id) JOIN model m USING (model_id) LEFT JOIN feature_member x USING (feature_id)
WHERE {} GROUP BY ALL ORDER BY f.feature_id"""


def read_feature(path: Path, feature_id: int) -> Feature:
    """The feature with that id, if it can be flipped.

    Raises:
        NotFound: if there is none.
        InvalidInput: if no block writes to its site, if it was made in a rotated basis, or of no tokens.
    """
    with store.reading(path) as connection:
        row = connection.execute(_QUERY.format("f.feature_id = ?"), [feature_id]).fetchone()
    if row is None:
        raise NotFound("feature", str(feature_id), todo="see `signarium features list`")
    site, basis = row[3], row[8]
    if not site.startswith("resid_post."):
        raise InvalidInput(
            f"feature {feature_id} is at {site}, which is not what a block gives out",
            "flip one at a resid_post site",
        )
    if basis != "standard":
        raise InvalidInput(f"feature {feature_id} is in the basis {basis}", "flip one in the standard basis")
    found = _feature(row)
    if not len(found.tokens):
        raise InvalidInput(
            f"feature {feature_id} has no tokens of its own", "flip one that was made from some"
        )
    return found


def _feature(row: Sequence[Any]) -> Feature:
    ident, model, model_id, site, site_id, kind, name, centre, _, mask, polarity, width, seed, tokens = row
    codes = np.frombuffer(mask + polarity, np.uint8).reshape(2, -1)
    mask, polarity = unpack(codes, width).astype(np.bool_)
    return Feature(
        feature_id=ident,
        model=model,
        model_id=model_id,
        site=Site.from_name(site),
        site_id=site_id,
        kind=kind,
        name=name,
        centre=centre,
        mask=mask,
        polarity=polarity,
        tokens=np.array(tokens or [], np.int64),
        seed=seed,
    )


def disjoint_from(path: Path, feature: Feature, known: int | None = None) -> tuple[Feature, Bools] | None:
    """Another feature of the same kind, site and centre that shares no token, and its dimensions outside the mask.

    Of all, the one that has left nearest to as many dimensions as the feature has, the lowest id of equals, or that
    which is `known`; None if none has any left.
    """
    query = _QUERY.format("f.site_id = ? AND f.kind = ? AND f.centre = ? AND f.basis = 'standard'")
    with store.reading(path) as connection:
        rows = connection.execute(query, [feature.site_id, feature.kind, feature.centre]).fetchall()
    best: tuple[int, Feature, Bools] | None = None
    for row in rows:
        other = _feature(row)
        left = other.mask & ~feature.mask
        if other.feature_id == feature.feature_id or not left.any():
            continue
        if np.isin(other.tokens, feature.tokens).any():
            continue
        distance = -1 if other.feature_id == known else abs(int(left.sum()) - feature.n_dims)
        if best is None or distance < best[0]:
            best = distance, other, left
    return best and best[1:]


# ---- the text -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ChosenWindows:
    """Windows of token ids: `scored` are measured on, `fit` are what the difference of means is taken from.

    `with_own` of the scored hold a token of the feature at a position > 0. `apart` says that no window is in both.
    """

    scored: list[Ids]
    fit: list[Ids]
    with_own: int
    apart: bool


def choose_windows(
    model: LoadedModel,
    files: Sequence[texts.TextFile],
    feature: Feature,
    n: int,
    context: int,
    counted: Callable[[str, int], None],
) -> ChosenWindows:
    """Cut the text as ingest does and choose up to `n` windows to measure on, and up to n // 2 to fit on.

    Windows that hold a token of the feature come first, evenly spaced over the text, and take turns in being fitted and
    measured on; others, evenly spaced, fill up those that are measured on.

    Raises:
        InvalidInput: if no window holds a token of the feature after its first position.
    """
    own, others = list[Ids](), list[Ids]()
    order: list[tuple[bool, int]] = []
    prefix, suffix = model.tokenizer_adds()
    for file in files:
        tokens = 0
        cut = texts.windows(file, model.tokenizer, context=context, prefix=prefix, suffix=suffix)
        for i, one in enumerate(cut):
            if len(order) == READ:
                break
            tokens += len(one.ids)
            if i % _REPORT == 0:
                counted(file.name, tokens)
            if len(one.ids) < 2:
                continue
            has = bool(np.isin(one.ids[1:], feature.tokens).any())
            part = own if has else others
            order.append((has, len(part)))
            part.append(one.ids.astype(np.int64))
    if not own:
        where = "the text has" if len(order) < READ else f"the first {READ:,} windows of the text have"
        n_tokens = len(feature.tokens)
        raise InvalidInput(
            f"{where} none of the {n_tokens} tokens of feature {feature.feature_id} ({feature.name})",
            "pass a text in which they occur",
        )
    n_fit = min(n // 2, len(own) // 2) if len(own) >= _LEAST else 0
    n_own = min(n, len(own) - n_fit)
    chosen = spaced(len(own), n_fit + n_own)
    fitted = set(spaced(len(chosen), n_fit))
    # In the order of the text, whatever they are for.
    fit = [own[k] for place, k in enumerate(chosen) if place in fitted]
    measured = {(True, k) for place, k in enumerate(chosen) if place not in fitted}
    measured |= {(False, k) for k in spaced(len(others), min(n - n_own, len(others)))}
    scored = [(own if has else others)[k] for has, k in order if (has, k) in measured]
    # One window may hold too little to fit on, all that are measured on are the best that is left.
    return ChosenWindows(scored, fit or [own[k] for k in chosen], n_own, bool(fit))
