"""One site of two models: the rotation between them and every simpler or freer map that it is compared with.

All figures come from Gram matrices that stream over blocks of rows, so what is held does not grow with the tokens: on a
CPU at most 9.3 float64 matrices of width x width (measured at width 2048; at 4096 each has 128 MiB), while the second
half or the shuffled pairs are decomposed: two cross-Gram matrices, the first half's rotation, and what the singular
value decomposition takes. Between decompositions it is four such matrices and five blocks of `paired.BLOCK_BYTES`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ...catalog.carry import Rotation
from ...catalog.errors import InvalidInput
from ..stats.paired import Paired, n_rows

MOST_ASSIGNED = 2048
"""Width up to which the best permutation is sought: its time grows with the cube, on one core."""
RIDGES = np.logspace(-8, 2, 41)
"""Strengths that are tried, as a share of A's mean variance: four to a factor of ten."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """What one site's fit rows (and, for the ridge's strength, validation rows) say; float64 on `paired.device`.

    Attributes:
        rotation: R = U V^T of A^T B = U S V^T, rows about their means (Schoenemann 1966), with means and deviations.
        scale: one factor for all dimensions, x_b ~ scale (x_a - mean_a) R + mean_b: trace(S) / |A|^2.
        affine: [width, width], x_b ~ (x_a - mean_a) W + mean_b with W = (A^T A + r I)^-1 A^T B.
        ridge: r as a share of A's mean sum of squares: the best of `RIDGES` on the validation rows.
        permutation: columns, int64 [width], and signs [width]: x_b ~ (x_a - mean_a)[:, columns] * signs + mean_b, the
            assignment with the largest sum of absolute correlations; None above width `MOST_ASSIGNED`.
        shuffled: [width, width], R fitted on pairs of a token of A and a token of B from another document.
        effective_rank_a: exp of the entropy of the normalised eigenvalues of A's covariance (Roy and Vetterli 2007).
        effective_rank_b: the same of B.
        halves_agreement: trace(R1^T R2) / width of rotations fitted on the two halves, each about its own means;
            None if a half has fewer than two tokens.
        halves_agreement_shuffled: its null, trace(R1^T R_shuffled) / width: the first half's rotation against the one
            of the shuffled pairs. Around 0 by about 1 / width.
        rank_warning: why R is not determined, in a line; None if it is.
        components: [width, width], eigenvectors of B's covariance as columns, the largest variance first.
    """

    rotation: Rotation[Tensor]
    scale: float
    affine: Tensor
    ridge: float
    permutation: tuple[Tensor, Tensor] | None
    shuffled: Tensor
    effective_rank_a: float
    effective_rank_b: float
    halves_agreement: float | None
    halves_agreement_shuffled: float | None
    rank_warning: str | None
    components: Tensor


def fit(paired: Paired, seed: int) -> Fitted:
    """Fit every map from A to B. `seed` decides how the pairs of the null are shuffled, and nothing else.

    Raises:
        InvalidInput: widths or lengths that differ, a part without rows, parts that share a document, states that are
            not finite or that never vary.
    """
    check(paired)
    n, first, second = n_rows(paired.fit), *paired.halves
    mean_a, mean_b = _means(paired)
    cross = _cross(paired, first, mean_a, mean_b)
    half_1 = agreement = agreement_shuffled = None
    both = min(n_rows(first), n_rows(second)) > 1
    if both:
        half_1, _ = procrustes(cross.about_own_means())
    part = _cross(paired, second, mean_a, mean_b)
    cross.add(part)
    _refuse_constant(cross, mean_a, mean_b)
    if half_1 is not None:
        # The uncentred one goes before the decomposition: memory peaks there.
        own = part.about_own_means()
        del part
        half_2, _ = procrustes(own)
        agreement = _agreement(half_1, half_2)
        del own, half_2

    partner = shuffled_rows(paired.clusters[paired.fit], seed) + paired.fit.start
    shuffled, _ = procrustes(_cross(paired, paired.fit, mean_a, mean_b, partner).matrix)
    if half_1 is not None:
        agreement_shuffled = _agreement(half_1, shuffled)
        del half_1

    matrix, values = procrustes(cross.matrix)
    std_a, std_b = (cross.squares_a / n).sqrt(), (cross.squares_b / n).sqrt()
    permutation = None
    if paired.width <= MOST_ASSIGNED:
        permutation = _permutation(cross.matrix / n, std_a, std_b)
    affine, ridge, rank_a = _ridge(paired, mean_a, mean_b, cross.matrix)
    scale = float(values.sum() / cross.squares_a.sum())
    del cross
    spectrum, components = _eigen(_gram(paired, mean_b, of_b=True))
    return Fitted(
        rotation=Rotation(matrix, mean_a, mean_b, std_a, std_b),
        scale=scale,
        affine=affine,
        ridge=ridge,
        permutation=permutation,
        shuffled=shuffled,
        effective_rank_a=rank_a,
        effective_rank_b=_effective_rank(spectrum),
        halves_agreement=agreement,
        halves_agreement_shuffled=agreement_shuffled,
        rank_warning=_rank_warning(values, n),
        components=components,
    )


def ridge_map(paired: Paired) -> tuple[Tensor, float]:
    """`Fitted.affine` and `Fitted.ridge` alone; of `paired.swapped()` they are the map from B to A. Raises as `fit`."""
    check(paired)
    mean_a, mean_b = _means(paired)
    cross = _cross(paired, paired.fit, mean_a, mean_b)
    _refuse_constant(cross, mean_a, mean_b)
    affine, ridge, _ = _ridge(paired, mean_a, mean_b, cross.matrix)
    return affine, ridge


def procrustes(cross: Tensor) -> tuple[Tensor, Tensor]:
    """The orthogonal R that minimises |A R - B| given `cross` = A^T B [width, width], and the singular values [width].

    R = U V^T of the singular value decomposition (Schoenemann 1966); its determinant may be -1.
    """
    u, values, vh = torch.linalg.svd(cross)
    return u @ vh, values


def shuffled_rows(documents: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """A random order of n rows in which each row meets one of another document, int64 (n,).

    Where one document has more than half of the rows that is impossible, and some of its rows meet its own.
    """
    generator = np.random.default_rng(seed)
    n = len(documents)
    order = generator.permutation(n)
    stuck: set[int] = set()
    for i in np.flatnonzero(documents == documents[order]):
        if documents[i] != documents[order[i]] or int(documents[i]) in stuck:
            continue
        free = (documents[order] != documents[i]) & (documents != documents[order[i]])
        if len(found := np.flatnonzero(free)):
            j = generator.choice(found)
            order[i], order[j] = order[j], order[i]
        else:
            stuck.add(int(documents[i]))
    return order


def check(paired: Paired) -> None:
    """Raises InvalidInput, as `fit` says, for all but the states' values."""
    a, b, n = paired.a, paired.b, len(paired.a)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise InvalidInput(
            f"the states have shapes {list(a.shape)} and {list(b.shape)}",
            "a rotation needs sites of the same width",
        )
    if not len(b) == len(paired.token_ids) == len(paired.documents) == n:
        raise InvalidInput("the two models have different tokens", "run both on the same token ids")
    parts = {"fit": paired.fit, "validation": paired.validation, "test": paired.test}
    for name, rows in parts.items():
        if n_rows(rows) < (2 if name == "fit" else 1):
            raise InvalidInput(f"the {name} part has {n_rows(rows)} tokens", "use more documents")
    ids = [np.unique(paired.clusters[rows]) for rows in (*paired.halves, paired.validation, paired.test)]
    if len(np.unique(np.concatenate(ids))) < sum(map(len, ids)):
        raise InvalidInput("a document is in two parts", "split the text by documents")


def _means(paired: Paired) -> tuple[Tensor, Tensor]:
    """Of the fit rows. Looks at every other row too, since one that is not finite would spoil a later figure."""
    sums = [torch.zeros(paired.width, dtype=torch.float64, device=paired.device) for _ in "ab"]
    for rows in (paired.fit, paired.validation, paired.test):
        for _, *both in paired.blocks(rows):
            for name, total, x in zip("AB", sums, both, strict=True):
                if not bool(x.isfinite().all()):
                    raise InvalidInput(
                        f"model {name} has states that are not finite",
                        "run it with a wider float type (--dtype)",
                    )
                if rows == paired.fit:
                    total += x.sum(0)
    return sums[0] / n_rows(paired.fit), sums[1] / n_rows(paired.fit)


@dataclass(eq=False)
class _Cross:
    """A^T B of `n` rows about given means [width, width], and sums and sums of squares of A and B about them [width]."""

    n: int
    matrix: Tensor
    sum_a: Tensor
    sum_b: Tensor
    squares_a: Tensor
    squares_b: Tensor

    def add(self, other: _Cross) -> None:
        """In place: what further rows give, about the same means."""
        self.n += other.n
        for name in ("matrix", "sum_a", "sum_b", "squares_a", "squares_b"):
            getattr(self, name).add_(getattr(other, name))

    def about_own_means(self) -> Tensor:
        """The matrix about the means of these rows."""
        return torch.addr(self.matrix, self.sum_a, self.sum_b, alpha=-1 / self.n)


def _cross(
    paired: Paired, rows: slice, mean_a: Tensor, mean_b: Tensor, partner: NDArray[np.int64] | None = None
) -> _Cross:
    """Of these rows; `partner` names the row of B that each of them is paired with."""
    vectors = [torch.zeros_like(mean_a) for _ in range(4)]
    found = _Cross(n_rows(rows), torch.zeros_like(mean_a).repeat(len(mean_a), 1), *vectors)
    for some, a, b in paired.blocks(rows):
        if partner is not None:
            others = torch.from_numpy(partner[some.start - rows.start : some.stop - rows.start])
            b = paired.b[others].to(b)
        a, b = a - mean_a, b - mean_b
        found.matrix.addmm_(a.T, b)
        found.sum_a += a.sum(0)
        found.sum_b += b.sum(0)
        found.squares_a += a.square().sum(0)
        found.squares_b += b.square().sum(0)
    return found


def _refuse_constant(cross: _Cross, mean_a: Tensor, mean_b: Tensor) -> None:
    for name, squares, mean in (("A", cross.squares_a, mean_a), ("B", cross.squares_b, mean_b)):
        # Below this is what rounding leaves of a constant.
        if not float(squares.sum()) > 1e-24 * cross.n * float(mean.square().sum()):
            raise InvalidInput(f"the states of model {name} never vary over the fit", "use more text")


def _gram(paired: Paired, mean: Tensor, of_b: bool) -> Tensor:
    """A^T A or B^T B of the fit rows about their mean [width, width]."""
    found = torch.zeros(paired.width, paired.width, dtype=torch.float64, device=paired.device)
    for _, a, b in paired.blocks(paired.fit):
        x = (b if of_b else a) - mean
        found.addmm_(x.T, x)
    return found


def _eigen(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, falling and not negative, and eigenvectors as columns."""
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(0).clamp_min(0), vectors.flip(1)


def _effective_rank(spectrum: Tensor) -> float:
    return float(torch.special.entr(spectrum / spectrum.sum()).sum().exp())


def _agreement(one: Tensor, other: Tensor) -> float:
    return float(torch.sum(one * other)) / len(one)


def _permutation(covariance: Tensor, std_a: Tensor, std_b: Tensor) -> tuple[Tensor, Tensor]:
    """The signed permutation with the largest sum of |correlation|; see `Fitted`."""
    scale = torch.outer(std_a, std_b)
    # A dimension that never moves goes with none.
    correlation = torch.where(scale > 0, covariance / scale, 0.0)
    of_b, of_a = linear_sum_assignment(correlation.T.abs().cpu().numpy(), maximize=True)
    columns = torch.from_numpy(of_a.astype(np.int64)).to(covariance.device)
    signs = correlation[columns, torch.from_numpy(of_b).to(covariance.device)].sign()
    return columns, torch.where(signs == 0, 1.0, signs)


def _ridge(paired: Paired, mean_a: Tensor, mean_b: Tensor, cross: Tensor) -> tuple[Tensor, float, float]:
    """The ridge map, its strength, and A's effective rank.

    With A^T A = Q L Q^T and P = Q^T A^T B the map is W(r) = Q D P, D = 1 / (L + r), so on the validation rows
    |Y - X W|^2 = |Y|^2 - 2 sum_i D_i (X Q)_i . (Y P^T)_i + sum_ij D_i D_j (Q^T X^T X Q)_ij (P P^T)_ij:
    two products with each row serve every strength.
    """
    spectrum, vectors = _eigen(_gram(paired, mean_a, of_b=False))
    turned = vectors.T @ cross
    gram, along = torch.zeros_like(turned), torch.zeros_like(mean_a)
    for _, a, b in paired.blocks(paired.validation):
        x = (a - mean_a) @ vectors
        gram.addmm_(x.T, x)
        along += (x * ((b - mean_b) @ turned.T)).sum(0)
    gram *= turned @ turned.T
    strengths = float(spectrum.mean()) * RIDGES
    errors = []
    for strength in strengths:
        weights = 1 / (spectrum + strength)
        errors.append(float(weights @ gram @ weights - 2 * weights @ along))
    del gram
    best = int(np.argmin(errors))
    turned /= (spectrum + strengths[best])[:, None]
    return vectors @ turned, float(RIDGES[best]), _effective_rank(spectrum)


def _rank_warning(values: Tensor, n_fit: int) -> str | None:
    """`values` are the singular values [width] of the cross-covariance."""
    width = len(values)
    # As numpy.linalg.matrix_rank, for a matrix that `n_fit` rows were summed into.
    tolerance = float(values.max()) * max(n_fit, width) * torch.finfo(values.dtype).eps
    rank = int((values > tolerance).sum())
    if n_fit > width and rank == width:
        return None
    few = f"{n_fit:,} tokens in the fit for {width:,} dimensions; " if n_fit <= width else ""
    return (
        f"the rotation is not determined: {few}the cross-covariance has rank {rank:,} of {width:,}, "
        f"and on the other {width - rank:,} dimensions any rotation fits as well"
    )
