"""What a rotation carries of sign codes: bits, neighbours, and the prototypes of Bag of Dims.

Where the two papers meet: prototypes of A are made of A's axes, so on a model in another basis they should read
nothing, and all that they read at home once the states are rotated back. Beside that, the same prototypes in random
bases of A, which say whether A's own axes mattered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...catalog import engines
from ...catalog.bulk import Figure
from ...catalog.carry import Rotation, sides
from ..features.prototypes import prototypes
from ..passes.pack import pack_signs
from ..stats.bases import HAAR_SEEDS, haar
from ..stats.bits import Patterns, percentiles
from ..stats.draws import rng
from ..stats.figures import Scope, clustered_error
from ..stats.paired import Paired, n_rows
from .fit import Fitted
from .labels import Label

RETRIEVED = 1000
"""Test states that look for themselves among the test states of B."""
_FOUND_BYTES = 32 << 20
"""What their distances may take."""

Floats = NDArray[np.float64]
Arm = Callable[[Tensor, Tensor], Tensor]
"""From blocks of A's and B's states (n, width) to what is read, whose signs count."""


def from_signs(mean: Tensor, std: Tensor, about: Tensor) -> Callable[[Tensor], Tensor]:
    """From states (n, width) to what their signs about `about` say of them: see `catalog.carry.sides`. All are (width,)."""
    below, above = (
        torch.from_numpy(one).to(mean) for one in sides(*(x.cpu().numpy() for x in (mean, std, about)))
    )
    return lambda x: torch.where(x > about, above, below)


@dataclass(frozen=True, eq=False)
class Arms:
    """What is done to states before their signs are taken; `rotation` and `shuffled` of one fit, `draws` Haar matrices."""

    fitted: Fitted
    draws: tuple[Tensor, ...]

    @classmethod
    def of(cls, fitted: Fitted) -> Arms:
        """With the Haar matrices of the seeds that controls have everywhere."""
        matrix = fitted.rotation.matrix
        return cls(fitted, tuple(haar(len(matrix), seed).to(matrix) for seed in HAAR_SEEDS))

    def codes(self) -> dict[str, Arm]:
        """A's states in B, for comparison with B's own; all about B's mean."""
        r = self.fitted.rotation
        turn = {"rotated": r.matrix, "shuffled": self.fitted.shuffled}
        turn |= {f"haar:{seed}": draw for seed, draw in zip(HAAR_SEEDS, self.draws, strict=True)}
        said = from_signs(r.mean_a, r.std_a, r.mean_a)
        arms: dict[str, Arm] = {
            "as_is": lambda a, _: a - r.mean_b,
            "mean_shift": lambda a, _: a - r.mean_a,
            "affine": lambda a, _: (a - r.mean_a) @ self.fitted.affine,
            "signs_alone": lambda a, _: (said(a) - r.mean_a) @ r.matrix,
            "plus_minus_one": lambda a, _: torch.where(a > r.mean_a, 1.0, -1.0).to(a) @ r.matrix,
        }  # fmt: skip
        return arms | {name: _turned_from_a(r, matrix) for name, matrix in turn.items()}

    def readings(self) -> dict[str, Arm]:
        """B's states in A's basis, for A's prototypes, which are about A's mean."""
        r = self.fitted.rotation
        turn = {"rotated": r.matrix, "shuffled": self.fitted.shuffled}
        turn |= {f"haar:{seed}": draw for seed, draw in zip(HAAR_SEEDS, self.draws, strict=True)}
        said = from_signs(r.mean_b, r.std_b, r.mean_b)
        arms: dict[str, Arm] = {
            "source": lambda a, _: a - r.mean_a,
            "as_is": lambda _, b: b - r.mean_a,
            "mean_shift": lambda _, b: b - r.mean_b,
            "signs_alone": lambda _, b: (said(b) - r.mean_b) @ r.matrix.T,
        }
        return arms | {name: _turned_from_b(r, matrix) for name, matrix in turn.items()}


def _turned_from_a(rotation: Rotation[Tensor], matrix: Tensor) -> Arm:
    return lambda a, _: (a - rotation.mean_a) @ matrix


def _turned_from_b(rotation: Rotation[Tensor], matrix: Tensor) -> Arm:
    return lambda _, b: (b - rotation.mean_b) @ matrix.T


# ---- bits and neighbours ----------------------------------------------------------------------------


def code_figures(paired: Paired, fitted: Fitted, scope: Scope) -> list[Figure]:
    """Shares of bits of A's carried codes that are B's own, on test rows, and how often a carried code finds its state.

    `code_agreement` is about B's mean, where chance is one half; `code_agreement_zero` about zero, as `states` are
    stored, where the mean alone (`mean_only`) is often right. `retrieval_top1`: share of `RETRIEVED` states whose
    nearest code among all test states of B is of the same place in the text, ties by halves; `token_identity` is what
    knowing the token alone would give. Standard errors are over documents; of a control, of the difference.
    """
    arms = Arms.of(fitted).codes()
    r = fitted.rotation
    test = paired.test
    n = n_rows(test)
    agreement = {name: np.zeros(n) for name in arms}
    # A's stored codes are about zero, so that is where its signs are taken for B's codes about zero.
    said = from_signs(r.mean_a, r.std_a, torch.zeros_like(r.mean_a))
    zero = arms | {"signs_alone": lambda a, _: (said(a) - r.mean_a) @ r.matrix}
    zero.pop("plus_minus_one")
    about_zero = {name: np.zeros(n) for name in (*zero, "mean_only")}
    chosen = np.sort(rng(scope.seed, "retrieval").choice(n, min(RETRIEVED, n), replace=False))
    kept = {name: list[NDArray[np.uint8]]() for name in arms}
    own_codes = list[NDArray[np.uint8]]()
    for rows, a, b in paired.blocks(test):
        at = slice(rows.start - test.start, rows.stop - test.start)
        own, own_zero = b > r.mean_b, b > 0
        own_codes.append(np.packbits(own.cpu().numpy(), axis=1))
        about_zero["mean_only"][at] = _share((r.mean_b > 0).expand_as(own), own_zero)
        inside = chosen[(chosen >= at.start) & (chosen < at.stop)] - at.start
        for name, arm in arms.items():
            carried = arm(a, b)
            agreement[name][at] = _share(carried > 0, own)
            some = (carried[torch.from_numpy(inside).to(carried.device)] > 0).cpu().numpy()
            kept[name].append(np.packbits(some, axis=1))
        for name, arm in zero.items():
            about_zero[name][at] = _share(arm(a, b) + r.mean_b > 0, own_zero)
    documents = paired.clusters[test]
    figures = []
    for metric, found in (("code_agreement", agreement), ("code_agreement_zero", about_zero)):
        figures += _of_rows(metric, found, documents, scope)
    every = np.concatenate(own_codes)
    found = {name: _found(np.concatenate(parts), every, chosen) for name, parts in kept.items()}
    same = np.bincount(paired.token_ids[test])[paired.token_ids[test][chosen]]
    found["token_identity"] = 1 / same
    figures += _of_rows("retrieval_top1", found, documents[chosen], scope)
    return figures


def _share(a: Tensor, b: Tensor) -> Floats:
    shares: Floats = (a == b).double().mean(1).cpu().numpy()
    return shares


def _found(queries: NDArray[np.uint8], codes: NDArray[np.uint8], own: NDArray[np.int64]) -> Floats:
    """(queries,): 1 / (how many are as near) if nothing is nearer than the query's own state, else 0."""
    hits = np.zeros(len(queries))
    step = max(1, _FOUND_BYTES // (4 * len(codes)))
    for first in range(0, len(queries), step):
        some = slice(first, first + step)
        apart = engines.differing(codes, queries[some], width=8 * codes.shape[1])
        for i, (row, place) in enumerate(zip(apart, own[some], strict=True), first):
            if row[place] == row.min():
                hits[i] = 1 / (row == row[place]).sum()
    return hits


def _of_rows(
    metric: str, found: dict[str, Floats], documents: NDArray[np.int64], scope: Scope
) -> list[Figure]:
    """Means over rows; errors over documents, whose rows are not independent."""
    figures = []
    for name, values in found.items():
        control = "none" if name == "rotated" else name
        of = values if control == "none" else found["rotated"] - values
        error = clustered_error(of, documents)
        figures.append(scope.figure(metric, control, "held_out", float(values.mean()), len(values), error))
    return figures


# ---- prototypes -------------------------------------------------------------------------------------


def prototype_figures(paired: Paired, fitted: Fitted, labels: Sequence[Label], scope: Scope) -> list[Figure]:
    """AUC of A's sign prototypes on B's states, mean over labels; nothing without labels.

    Prototypes are those of Bag of Dims, section 3, of bits about the mean of the fit: shares of positive bits among
    rows with the label and without, on the fit rows of A (`own`: of B). They are scored on test rows of B by their
    agreement: the figure itself after the rotation; `source` in A; `as_is` and `mean_shift` without it; `signs_alone`
    with B's bits alone; Haar matrices and a fit on shuffled pairs in R's place. `prototype_basis`: A's prototypes on A,
    beside those of random bases of A (`haar:k`) and, after giving every dimension one variance, `scaled`.
    """
    if not labels:
        return []
    r = fitted.rotation
    arms = Arms.of(fitted)
    a_mean, b_mean = r.mean_a, r.mean_b
    homes: dict[str, Arm] = {"source": lambda a, _: a - a_mean, "own": lambda _, b: b - b_mean}
    for seed_of, draw in zip(HAAR_SEEDS, arms.draws, strict=True):
        homes[f"haar:{seed_of}"] = _turned_from_a(r, draw)
    scaled = fitted.rotation.std_a.clamp_min(1e-30)
    homes[f"scaled:{HAAR_SEEDS[0]}"] = lambda a, _: ((a - a_mean) / scaled) @ arms.draws[0]
    made = dict(zip(homes, _define(paired, labels, list(homes.values())), strict=True))
    readings = arms.readings()
    on_b = [(name, made["source"], arm) for name, arm in readings.items()]
    on_b.append(("own", made["own"], homes["own"]))
    bases = [(name, made[name], homes[name]) for name in homes if name not in ("own", "source")]
    scores = _score(paired, labels, [*on_b, *bases])
    auc = {name: scores[i] for i, (name, _, _) in enumerate(on_b)}
    auc["none"] = auc.pop("rotated")
    figures = _of_labels("prototype_auc", auc, scope)
    in_a = {"none": auc["source"]} | {name: scores[len(on_b) + i] for i, (name, _, _) in enumerate(bases)}
    return figures + _of_labels("prototype_basis", in_a, scope)


def _of_labels(metric: str, found: dict[str, Floats], scope: Scope) -> list[Figure]:
    own = found["none"]
    return [
        scope.mean(metric, name, "held_out", values, None if name == "none" else own - values)
        for name, values in found.items()
    ]


def _define(paired: Paired, labels: Sequence[Label], homes: Sequence[Arm]) -> list[Patterns]:
    """Prototypes of the labels in each of `homes`, from the fit rows."""
    n = len(labels)
    width = paired.width
    device = paired.device
    plus = [torch.zeros(n, width, dtype=torch.float64, device=device) for _ in homes]
    minus = [torch.zeros(n, width, dtype=torch.float64, device=device) for _ in homes]
    define = torch.from_numpy(np.stack([one.define for one in labels])).to(device)
    outside = torch.from_numpy(np.stack([~one.inside for one in labels])).to(device)
    fit = paired.fit
    for rows, a, b in paired.blocks(fit):
        own, rest = define[:, rows].double(), outside[:, rows].double()
        for i, home in enumerate(homes):
            bits = (home(a, b) > 0).double()
            plus[i] += own @ bits
            minus[i] += rest @ bits
    n_own = define[:, fit].sum(1, keepdim=True).clamp_min(1)
    n_rest = outside[:, fit].sum(1, keepdim=True).clamp_min(1)
    return [
        prototypes((p / n_own).cpu().numpy(), (m / n_rest).cpu().numpy()).patterns
        for p, m in zip(plus, minus, strict=True)
    ]


def _score(
    paired: Paired, labels: Sequence[Label], readers: Sequence[tuple[str, Patterns, Arm]]
) -> list[Floats]:
    """AUC (labels,) of each reader on the test rows."""
    test = paired.test
    counts = [np.empty((len(labels), n_rows(test)), np.int32) for _ in readers]
    for rows, a, b in paired.blocks(test):
        at = slice(rows.start - test.start, rows.stop - test.start)
        for i, (_, patterns, arm) in enumerate(readers):
            counts[i][:, at] = patterns.counts(pack_signs(arm(a, b)).cpu().numpy())
    found = []
    for each in counts:
        values = [
            float(percentiles(row[one.score[test]], row[~one.inside[test]]).mean())
            for row, one in zip(each, labels, strict=True)
        ]
        found.append(np.array(values))
    return found
