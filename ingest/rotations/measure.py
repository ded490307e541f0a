"""All that is measured of one rotation: the row that keeps it, and the figures beside their controls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...catalog import store
from ...catalog.bulk import Figure
from ...catalog.carry import PARTS, Rotation
from ...catalog.errors import NotFound
from ..model.sites import Site
from ..saes.add import read_saes
from ..saes.transfer import TransferFigure, transfer
from ..stats.figures import Scope
from ..stats.paired import Paired, n_rows
from . import haar
from .carry import code_figures, prototype_figures
from .chance import chance, n_draws
from .explained import Explained, explained
from .features import Carried, carry_features, insert_carried
from .fit import Fitted, fit, ridge_map
from .labels import Label

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

_OWN = {"sae_ev": "rotated", "firing_correlation": "rotated", "sae_ev_scalar": "rotated", "decoder_cosine": "shared_seed",
        "decoder_match_0.5": "shared_seed", "decoder_cosine_rotated": "rotated"}  # fmt: skip
"""Of the figures about dictionaries, what the published claim is about: stored as the figure itself."""


@dataclass(frozen=True, eq=False)
class Measured:
    """One site: columns of its `rotation_row` but for ids, columns of `rotation_component_row`, features and figures."""

    row: dict[str, Any]
    components: dict[str, NDArray[np.float64]]
    carried: list[Carried]
    figures: list[Figure]
    notes: list[str] = field(default_factory=list)

    def insert_features(
        self, session: Session, run_id: str, rotation_id: int, site: str, site_id: str
    ) -> None:
        """Insert the features that were carried, and their figures."""
        insert_carried(session, run_id, rotation_id, site, site_id, self.carried)


@dataclass(frozen=True)
class Between:
    """Two models, named `a` and `b`, at one site of theirs; `texts` is what they read (SHA-256 and kind of each)."""

    path: Path
    a: str
    b: str
    site: Site
    site_a_id: str
    site_b_id: str
    texts: Sequence[Any]
    seed: int

    @property
    def scope(self) -> Scope:
        """What the figures are about: the rotation from A, at B's site."""
        return Scope(self.site_b_id, "rotation", self.a, self.seed)


def measure(between: Between, paired: Paired, marked: Sequence[Label]) -> Measured:
    """Fit the rotation between the states in `paired` and measure it; `marked` are labels of their rows."""
    seed, scope = between.seed, between.scope
    fitted = fit(paired, seed)
    found = explained(paired, fitted)
    # One draw after another: what a seed gives does not depend on how many there are.
    draws = [chance(paired, seed + k) for k in range(n_draws(paired.width))]
    unrelated = [one for one in draws if one is not None]
    figures = _explained_figures(found, fitted, n_rows(paired.fit), scope)
    own_error = _known(found.std_error["rotation"]) or 0.0
    for k, (value, error, n) in enumerate(unrelated):
        # Of the difference: the two are of other pairs. The spread of the draws is `evidence`'s to add.
        drawn = replace(scope, seed=seed + k)
        figures.append(
            drawn.figure(
                "rotation_ev", f"types_exchanged:{k + 1}", "held_out", value, n, math.hypot(error, own_error)
            )
        )
    figures += _haar_figures(fitted, n_rows(paired.fit), scope)
    figures += code_figures(paired, fitted, scope)
    figures += prototype_figures(paired, fitted, marked, scope)
    more, notes = _dictionary_figures(between, paired, fitted)
    carried = carry_features(between.path, fitted.rotation, between.site_a_id, scope)
    components = {
        "variance_share": found.component_share,
        "ev_rotation": found.component_rotation,
        "ev_affine": found.component_affine,
        "ev_shuffled": found.component_shuffled,
    }
    row = _row(paired, fitted, found) | _nulls(found, unrelated, own_error)
    return Measured(row, components, carried, figures + more, notes)


def _nulls(
    found: Explained, unrelated: Sequence[tuple[float, float, int]], own_error: float
) -> dict[str, float | None]:
    """The mean of the draws with types exchanged, and standard errors of how far the rotation is above either null."""
    row: dict[str, float | None] = {
        "ev_exchanged": None,
        "ev_exchanged_error": None,
        "ev_shuffled_error": _known(found.difference_error.get("shuffled")),
    }
    if unrelated:
        values = np.array([value for value, _, _ in unrelated])
        spread = float(values.std(ddof=1)) * math.sqrt(1 + 1 / len(values)) if len(values) > 1 else 0.0
        error = float(np.mean([one for _, one, _ in unrelated]))
        row["ev_exchanged"] = float(values.mean())
        row["ev_exchanged_error"] = math.hypot(error, own_error, spread)
    return row


def _row(paired: Paired, fitted: Fitted, found: Explained) -> dict[str, Any]:
    r = fitted.rotation
    arms = ("identity", "mean_shift", "rotation", "scaled", "affine", "permutation", "shuffled", "token_mean")
    eye = torch.eye(paired.width).to(r.matrix)
    return {
        "width": paired.width,
        "n_fit": n_rows(paired.fit),
        "n_validation": n_rows(paired.validation),
        "n_test": n_rows(paired.test),
        **{f"ev_{arm}": found.value.get(arm) for arm in arms},
        "ev_unseen": found.unseen.get("rotation"),
        "scale": fitted.scale,
        "ridge": fitted.ridge,
        "effective_rank_a": fitted.effective_rank_a,
        "effective_rank_b": fitted.effective_rank_b,
        "halves_agreement": fitted.halves_agreement,
        "frobenius_from_identity": float((r.matrix - eye).norm()),
        "rank_warning": fitted.rank_warning,
        **{name: _blob(getattr(r, name)) for name in PARTS},
    }


def _blob(x: Tensor) -> bytes:
    return np.ascontiguousarray(x.cpu().numpy().astype("<f4")).tobytes()


def read_rotation(path: Path, rotation_id: int, device: torch.device) -> Rotation[Tensor]:
    """A stored rotation, in float64 on `device`; its last digits are those of float32.

    Raises:
        NotFound: if there is none.
    """
    with store.reading(path) as connection:
        row = connection.execute(
            f"SELECT width, {', '.join(PARTS)} FROM rotation_row WHERE rotation_id = ?",
            [rotation_id],
        ).fetchone()
    if row is None:
        raise NotFound("rotation", str(rotation_id))
    return stored_rotation(dict(zip(("width", *PARTS), row, strict=True)), device)


def stored_rotation(row: dict[str, Any], device: torch.device) -> Rotation[Tensor]:
    """The rotation in a `rotation_row`, as whoever reads it later will see it."""
    stored = Rotation.from_blobs(row["width"], *(row[name] for name in PARTS))
    return stored.each(lambda x: torch.from_numpy(x.astype(np.float64)).to(device))


# ---- figures ----------------------------------------------------------------------------------------


def _explained_figures(found: Explained, fitted: Fitted, n_fit: int, scope: Scope) -> list[Figure]:
    """`rotation_ev` and, on tokens that the fit never saw, `rotation_ev_unseen`; `rotation_halves`."""
    figures = []
    for arm, value in found.value.items():
        own = arm == "rotation"
        error = _known(found.std_error.get(arm) if own else found.difference_error.get(arm))
        control = "none" if own else arm
        figures.append(scope.figure("rotation_ev", control, "held_out", value, found.n_test, error))
    for arm, value in found.unseen.items():
        control, error = "none" if arm == "rotation" else arm, _known(found.unseen_error.get(arm))
        figures.append(scope.figure("rotation_ev_unseen", control, "held_out", value, found.n_unseen, error))
    halves = {"none": fitted.halves_agreement, "shuffled": fitted.halves_agreement_shuffled}
    # trace(R) / width of a Haar matrix has this standard deviation (Diaconis and Shahshahani 1994).
    spread = 1 / fitted.rotation.width
    return figures + [
        scope.figure(
            "rotation_halves", control, "in_sample", value, n_fit, None if control == "none" else spread
        )
        for control, value in halves.items()
        if value is not None
    ]


def _known(error: float | None) -> float | None:
    """None for NaN, which stands for an error over one document."""
    return None if error is None or error != error else error


def _haar_figures(fitted: Fitted, n: int, scope: Scope) -> list[Figure]:
    """Statistics of the rotation as of a Haar matrix, of the one fitted on unrelated pairs, and of a cyclic shift."""
    width = fitted.rotation.width
    reference = haar.Reference(width, scope.seed)
    matrices = {
        "none": fitted.rotation.matrix,
        "unrelated": fitted.shuffled,
        "cyclic_shift": haar.cyclic_shift(width),
    }
    figures = []
    for control, matrix in matrices.items():
        statistics = haar.statistics(matrix)
        p_values = reference.p_values(statistics)
        # A share, so that models of different widths compare; 1 for a rotation without a trace.
        share = statistics["frobenius_from_identity"] / math.sqrt(2 * width)
        spread = float(reference.draws["frobenius_from_identity"].std(ddof=1)) / math.sqrt(2 * width)
        figures.append(
            scope.figure(
                "distance_from_identity",
                control,
                "in_sample",
                share,
                n,
                None if control == "none" else spread,
            )
        )
        p_control = "p_value" if control == "none" else f"p_value_{control}"
        for metric, value in statistics.items():
            # What another rotation would have given by chance: the control is one of many.
            spread = float(reference.draws[metric].std(ddof=1))
            error = None if control == "none" else spread
            figures += [
                scope.figure(metric, control, "in_sample", value, n, error),
                scope.figure(metric, p_control, "in_sample", p_values[metric], haar.n_draws(width)),
            ]
    return figures


def _dictionary_figures(between: Between, paired: Paired, fitted: Fitted) -> tuple[list[Figure], list[str]]:
    """A's dictionaries on B, the mean over several of them; nothing where A has none."""
    own, notes = read_saes(between.path, between.a, between.site.name)
    others, more = read_saes(between.path, between.b, between.site.name)
    notes = [*notes, *more]
    if not own:
        return [], notes
    texts = between.texts
    seen = [row.name for row, one in own if any(text in texts for text in one.params.get("texts") or ())]
    if seen:
        notes.append(
            f"{', '.join(seen)}: trained on this text, so what is read with them is no held-out figure; align with another text"
        )
    affine, _ = ridge_map(paired.swapped())
    theirs = [other for _, other in others]
    groups: dict[tuple[str, str, str], list[TransferFigure]] = {}
    for _, dictionary in own:
        for figure in transfer(
            paired, fitted.rotation, dictionary, theirs, affine_to_a=affine, seed=between.seed
        ):
            groups.setdefault((figure.metric, figure.control, figure.split), []).append(figure)
    figures = []
    for (metric, control, split), some in groups.items():
        value = float(np.mean([one.value for one in some]))
        # Of one dictionary over its features or documents; of several, which share both, no smaller than each.
        errors = [one.std_error for one in some if one.std_error is not None]
        error = float(np.mean(errors)) if errors else None
        name = "none" if control == _OWN.get(metric) else control
        split = "in_sample" if seen or metric.startswith("decoder") else split
        mean = between.scope.figure(metric, name, split, value, some[0].n, error)
        figures.append(replace(mean, seed=some[0].seed))
    return figures, notes
