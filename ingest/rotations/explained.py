"""How much of B's held-out variance each map explains, with errors over documents, and beside it no map at all.

Explained variance is 1 - sum |b - b_hat|^2 / sum |b - mean of b|^2 over the test rows, that mean being each
dimension's own over those rows; means and maps come from the fit rows alone. With maps that keep the variance it is
2 c - 1, c being the share of it that lies along the map (Procrustes shape distance: Williams 2021).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...catalog.errors import InvalidInput
from ..stats import paired as pairing
from ..stats.paired import Paired, n_rows
from .fit import Fitted, check

ARMS = ("identity", "mean_shift", "rotation", "scaled", "affine", "permutation", "shuffled", "token_mean")
UNSEEN_ARMS = ("mean_shift", "rotation", "affine", "shuffled")
FEWEST_UNSEEN = 30
"""Test rows of unseen token ids below which nothing is said about them."""


@dataclass(frozen=True, eq=False)
class Explained:
    """Explained variance on the test rows.

    Attributes:
        value: by arm: `identity` (nothing done), `mean_shift`, `rotation`, `scaled` (rotation and one factor),
            `affine`, `permutation` (absent where there is none), `shuffled` (rotation fitted on shuffled pairs, scored
            on true ones), `token_mean` (the mean of B's states at the same token in the fit, B's mean where the fit
            has no such token: no model A at all).
        std_error: by arm, jackknife over test documents (Efron 1982); NaN with fewer than two.
        difference_error: that of value["rotation"] - value[arm], for every other arm.
        unseen: by `UNSEEN_ARMS`, on the test rows whose token id no fit row has, about these rows' own mean; empty
            with fewer than `FEWEST_UNSEEN`.
        unseen_error: their jackknife errors; of the others, that of their difference to the rotation.
        n_unseen: such rows. n_test: all test rows. n_documents: test documents.
        component_share: (width,), of B's test variance, by `fitted.components`; 0 where a component has none.
        component_rotation: (width,), explained variance of each component; 0 where it has no variance.
        component_affine, component_shuffled: the same with those maps.
    """

    value: dict[str, float]
    std_error: dict[str, float]
    difference_error: dict[str, float]
    unseen: dict[str, float]
    unseen_error: dict[str, float]
    n_unseen: int
    n_test: int
    n_documents: int
    component_share: NDArray[np.float64]
    component_rotation: NDArray[np.float64]
    component_affine: NDArray[np.float64]
    component_shuffled: NDArray[np.float64]


def explained(paired: Paired, fitted: Fitted) -> Explained:
    """Score every map on the test rows.

    Streams: beside `fitted` it holds at most four float64 matrices of width x width, or three, some blocks and a few
    figures a test row.

    Raises:
        InvalidInput: as `fit` for shapes and parts, or if B never varies over the test rows.
    """
    check(paired)
    labels = np.unique(paired.clusters[paired.test], return_inverse=True)[1]
    known = np.isin(paired.token_ids[paired.test], paired.token_ids[paired.fit])
    errors, parts = _errors(paired, fitted)
    errors["token_mean"] = _token_mean_errors(paired, fitted.rotation.mean_b)
    errors = {arm: errors[arm] for arm in ARMS if arm in errors}
    spread = _Spread.of(paired, fitted.rotation.mean_b, labels, np.ones(len(labels), bool))
    if not spread.whole > 0:
        raise InvalidInput("the states of model B never vary over the test part", "use more text")
    value, std_error = {}, {}
    for arm, error in errors.items():
        value[arm], std_error[arm] = spread.explained(error)
    # The difference's error is that of EV with the difference of the squared errors in place of one of them.
    difference_error = {
        arm: spread.explained(error - errors["rotation"])[1]
        for arm, error in errors.items()
        if arm != "rotation"
    }
    unseen, unseen_error = {}, {}
    n_unseen = int((~known).sum())
    if n_unseen >= FEWEST_UNSEEN:
        others = _Spread.of(paired, fitted.rotation.mean_b, labels, ~known)
        if others.whole > 0:
            for arm in UNSEEN_ARMS:
                unseen[arm], own = others.explained(errors[arm])
                between = others.explained(errors[arm] - errors["rotation"])[1]
                unseen_error[arm] = own if arm == "rotation" else between
    share, by_arm = _components(parts, n_rows(paired.test))
    return Explained(
        value, std_error, difference_error, unseen, unseen_error, n_unseen, len(labels), int(labels.max()) + 1,
        share, by_arm["rotation"], by_arm["affine"], by_arm["shuffled"],
    )  # fmt: skip


def _errors(paired: Paired, fitted: Fitted) -> tuple[dict[str, NDArray[np.float64]], dict[str, Tensor]]:
    """Squared error of each test row by arm, and sums over the rows by component of B: `sum` and `squares` of B about
    the fit's mean, and squared errors by arm, each [width]."""
    rotation, columns = fitted.rotation, fitted.components
    # In the basis of B's components: the same squared errors, and the sums by component for nothing.
    maps = {
        "rotation": rotation.matrix @ columns,
        "affine": fitted.affine @ columns,
        "shuffled": fitted.shuffled @ columns,
    }
    parts = {name: torch.zeros_like(rotation.mean_b) for name in ("sum", "squares", *maps)}
    rows: dict[str, list[Tensor]] = {}

    def put(arm: str, error: Tensor) -> None:
        rows.setdefault(arm, []).append(error.square().sum(1).cpu())

    for _, a, b in paired.blocks(paired.test):
        put("identity", b - a)
        a, b = a - rotation.mean_a, b - rotation.mean_b
        put("mean_shift", b - a)
        if fitted.permutation is not None:
            order, signs = fitted.permutation
            put("permutation", b - a[:, order] * signs)
        b = b @ columns
        parts["sum"] += b.sum(0)
        parts["squares"] += b.square().sum(0)
        for arm, matrix in maps.items():
            carried = a @ matrix
            if arm == "rotation":
                put("scaled", b - fitted.scale * carried)
            error = b - carried
            put(arm, error)
            parts[arm] += error.square().sum(0)
    return {arm: torch.cat(found).numpy() for arm, found in rows.items()}, parts


def _components(
    parts: dict[str, Tensor], n: int
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Variance share and explained variance by arm of each component; see `Explained`."""
    spread = (parts["squares"] - parts["sum"].square() / n).clamp_min(0).cpu().numpy()
    # Below this is what rounding leaves where there is nothing.
    alive = spread > spread.sum() * len(spread) * np.finfo(np.float64).eps
    share = np.where(alive, spread, 0.0) / spread.sum()
    found = {}
    for arm in ("rotation", "affine", "shuffled"):
        missed = np.divide(parts[arm].cpu().numpy(), spread, out=np.ones_like(spread), where=alive)
        found[arm] = 1 - missed
    return share, found


def _token_mean_errors(paired: Paired, mean_b: Tensor) -> NDArray[np.float64]:
    """Squared error of each test row, (n_test,), with the mean of B's fit rows of its token id in place of a map."""
    size = max(1, pairing.BLOCK_BYTES // (8 * paired.width))
    of_fit, of_test = paired.token_ids[paired.fit], paired.token_ids[paired.test]
    by_fit, by_test = np.argsort(of_fit, kind="stable"), np.argsort(of_test, kind="stable")
    sorted_fit, sorted_test = of_fit[by_fit], of_test[by_test]
    wanted = np.unique(of_test)
    errors = np.empty(len(of_test))

    def gathered(rows: NDArray[np.int64]) -> Tensor:
        return paired.b[torch.from_numpy(rows)].to(paired.device, torch.float64) - mean_b

    for start in range(0, len(wanted), size):
        ids = wanted[start : start + size]
        sums = torch.zeros(len(ids), paired.width, dtype=torch.float64, device=paired.device)
        counts = np.zeros(len(ids), np.int64)
        low, high = np.searchsorted(sorted_fit, ids[0]), np.searchsorted(sorted_fit, ids[-1], "right")
        here = by_fit[low:high][np.isin(sorted_fit[low:high], ids)]
        for i in range(0, len(here), size):
            some = here[i : i + size]
            into = np.searchsorted(ids, of_fit[some])
            sums.index_add_(0, torch.from_numpy(into).to(sums.device), gathered(some + paired.fit.start))
            counts += np.bincount(into, minlength=len(ids))
        # About B's mean, so that an unseen token is left at it.
        sums /= torch.from_numpy(np.maximum(counts, 1)).to(sums)[:, None]
        low, high = np.searchsorted(sorted_test, ids[0]), np.searchsorted(sorted_test, ids[-1], "right")
        for i in range(low, high, size):
            some = by_test[i : min(i + size, high)]
            places = torch.from_numpy(np.searchsorted(ids, of_test[some])).to(sums.device)
            missed = gathered(some + paired.test.start) - sums[places]
            errors[some] = missed.square().sum(1).cpu().numpy()
    return errors


@dataclass(frozen=True, eq=False)
class _Spread:
    """Squares of B about its mean over the chosen test rows: of all documents, and without each of them."""

    whole: float
    without: NDArray[np.float64]
    labels: NDArray[np.int64]
    chosen: NDArray[np.bool_]

    @classmethod
    def of(
        cls, paired: Paired, mean: Tensor, labels: NDArray[np.int64], chosen: NDArray[np.bool_]
    ) -> _Spread:
        """`labels` number each test row's document from 0; documents without a chosen row do not count.

        Without document k: sum of |b|^2 over the others less |T - t_k|^2 / (n - n_k), T and t_k being sums of b.
        """
        labels = np.where(chosen, labels, -1)
        labels[chosen] = np.unique(labels[chosen], return_inverse=True)[1]
        counts = np.bincount(labels[chosen])
        total, own = _document_sums(paired, mean, labels, len(counts))
        squares, along = np.zeros(len(labels)), np.zeros(len(labels))
        for some, _, b in paired.blocks(paired.test):
            b = b - mean
            at = slice(some.start - paired.test.start, some.stop - paired.test.start)
            squares[at], along[at] = b.square().sum(1).cpu().numpy(), (b @ total).cpu().numpy()
        size = float(total.square().sum())
        each = np.bincount(labels[chosen], squares[chosen])
        inner = np.bincount(labels[chosen], along[chosen])
        n = counts.sum()
        left = n - counts
        shifted = np.divide(size - 2 * inner + own, left, out=np.zeros(len(left)), where=left > 0)
        found = np.append(each.sum() - size / n, each.sum() - each - shifted)
        # Below this is what rounding leaves of a constant.
        found[found < 1e-12 * each.sum()] = 0
        return cls(float(found[0]), found[1:], labels, chosen)

    def explained(self, errors: NDArray[np.float64]) -> tuple[float, float]:
        """1 - error / spread from squared errors of all test rows, and its jackknife error over documents."""
        each = np.bincount(self.labels[self.chosen], errors[self.chosen])
        value, n = 1 - float(each.sum()) / self.whole, len(each)
        if n < 2 or not (self.without > 0).all():
            return value, float("nan")
        without = 1 - (each.sum() - each) / self.without
        return value, float(np.sqrt((n - 1) / n * np.square(without - without.mean()).sum()))


def _document_sums(
    paired: Paired, mean: Tensor, labels: NDArray[np.int64], n: int
) -> tuple[Tensor, NDArray[np.float64]]:
    """The sum of B about `mean` over the test rows with a label >= 0, [width], and |sum|^2 of each label, (n,)."""
    last = np.zeros(n, np.int64)
    np.maximum.at(last, labels[labels >= 0], np.flatnonzero(labels >= 0))
    total, squares = torch.zeros_like(mean), np.zeros(n)
    # Of documents that go on in the next block; one at most where the rows of a document follow each other.
    begun: dict[int, Tensor] = {}
    for some, _, b in paired.blocks(paired.test):
        at = slice(some.start - paired.test.start, some.stop - paired.test.start)
        here = labels[at]
        kept = np.flatnonzero(here >= 0)
        found, places = np.unique(here[kept], return_inverse=True)
        sums = torch.zeros(len(found), paired.width, dtype=mean.dtype, device=mean.device)
        chosen = (b - mean)[torch.from_numpy(kept).to(mean.device)]
        sums.index_add_(0, torch.from_numpy(places).to(mean.device), chosen)
        total += sums.sum(0)
        for i in np.flatnonzero(np.isin(found, list(begun))):
            sums[i] += begun.pop(int(found[i]))
        done = last[found] < at.stop
        squares[found[done]] = sums.square().sum(1).cpu().numpy()[done]
        for i in np.flatnonzero(~done):
            begun[int(found[i])] = sums[i].clone()
    return total, squares
