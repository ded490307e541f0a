"""A's dictionary on B's states: what it reconstructs, which features fire, and whether decoders look alike.

After "Polymorphism Is Rotation" (arXiv 2605.24577, the parts on dictionaries and on firing patterns), with the controls
that it lacks: the mean alone moved, a random rotation, noise with the same second moments, an affine map, shuffled rows,
independent seeds, and weights before any training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...catalog.carry import Rotation
from ...catalog.errors import InvalidInput
from ...catalog.ids import int_id
from ..stats.bases import haar
from ..stats.figures import standard_error
from ..stats.paired import Paired, n_rows
from .dictionary import Dictionary
from .train import RECIPE, row_blocks, untrained

GROUPS = 100
"""Of whole documents, at most, that the jackknife leaves out in turn."""
LIVE_TOKENS, LIVE_SHARE = 10, 0.001
MATCH = 0.5
"""Cosine above which the paper takes two decoder rows for one feature."""
_SCALAR = ("self", "as_is", "rotated")
_FIRING = ("as_is", "mean_shift", "rotated", "affine", "random_rotation", "shuffled")

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class TransferFigure:
    """One figure; `control` says what was done to the states or which decoders were compared. `seed` is that of what is
    random in it. Metrics, controls and errors are listed at `transfer`."""

    metric: str
    control: str
    split: str
    value: float
    n: int
    std_error: float | None = None
    seed: int | None = None


def transfer(
    paired: Paired,
    rotation: Rotation[Tensor],
    own: Dictionary,
    others: Sequence[Dictionary],
    *,
    affine_to_a: Tensor | None,
    seed: int,
) -> list[TransferFigure]:
    """Figures of A's dictionary `own` on B's states, and of its decoder beside those of `others`, dictionaries of B.

    `affine_to_a` [width, width] is a ridge map: x_a ~ (x_b - mean_b) affine_to_a + mean_a. All rows scored are of
    `paired.test`; that `own` was not trained on that text is for the caller to see to.

    `sae_ev` is 1 - squared error / squares about the mean per dimension, both of what the dictionary was given:
    A's states (`self`), B's `as_is`, with A's mean (`mean_shift`), `rotated` or carried by the map (`affine`) to A,
    carried by a Haar matrix (`random_rotation`), Gaussian noise with the mean and covariance of A's fit rows
    (`gaussian`), and noise with B's carried by the rotation (`gaussian_b`): no row of it pairs with anything.
    `sae_ev_scalar` is the paper's own, about one mean of all entries. `l0` and `dead_share`, the features that fire at a
    token and the share that never does, are given for the same.

    `firing_correlation` is the mean Pearson r of a feature's activations on A's states and on B's, over features that
    are live, that is fire on max(10, 0.1%) of A's fit rows or more and not on all, and that vary in both over the test
    rows (`n` of them: fewer than are live where B leaves some silent). `shuffled` permutes B's rotated rows.
    `live_share` is of all features.

    `decoder_cosine` is the mean over own's decoder rows of the largest cosine to a row of the other dictionary, and
    `decoder_match_0.5` the share of rows where that is above 0.5; `decoder_cosine_live` is over live features alone, since
    dead ones keep the rows that they were drawn with. Controls are `shared_seed`, `independent_seed` and
    `unknown_seed` (no seed known, or one seed of two recipes), each a mean over the dictionaries of that kind, and the
    same with `_rotated` after carrying own's rows to B. `untrained_shared` and `untrained_independent` are the weights
    that those trainings started from, where the recipe is this package's; `random` has random rows for own's. No
    tokens are scored, so their split is `in_sample`.

    Standard errors: of `rotated` its own, of a control of `sae_ev` or `firing_correlation` that of rotated - control,
    which is paired: by a jackknife over test documents (in up to 100 groups) for `sae_ev`, over the features that
    have a figure in both for `firing_correlation`. Of decoders, over features: of `shared_seed` its own, of a control
    that of shared_seed - control, or its own where no dictionary shares own's seed.

    Raises:
        InvalidInput: if widths differ, or there are no rows to fit or to score on.
    """
    width = paired.width
    for one in (own, *others):
        if one.width != width:
            raise InvalidInput(f"a dictionary of width {one.width} cannot read states of width {width}")
    if affine_to_a is not None and affine_to_a.shape != (width, width):
        raise InvalidInput(f"an affine map of shape {tuple(affine_to_a.shape)} for width {width}")
    if not n_rows(paired.fit) or not n_rows(paired.test):
        raise InvalidInput("there are no tokens to fit or to score on", "pass a longer text")
    there = _Transfer(paired, rotation, own, affine_to_a, seed)
    return [*there.figures(), *_decoders(own, others, rotation, there.live, seed)]


# ---- states ---------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Sums:
    """What one arm adds up over the test rows: by group of documents, and by feature."""

    shift: Tensor  # [width], so that squares of a large mean do not eat the digits
    error: Tensor  # [groups]
    first: Tensor  # [groups, width], about the shift
    second: Tensor  # [groups]
    rows: Tensor  # [groups]
    f: Tensor  # [n_features], as the next three
    ff: Tensor
    fa: Tensor
    fired: Tensor

    @classmethod
    def of(cls, groups: int, shift: Tensor, n_features: int) -> _Sums:
        """Zeros, about `shift` [width]."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=shift.device)

        n = n_features
        return cls(
            shift, zeros(groups), zeros(groups, len(shift)), zeros(groups), zeros(groups), zeros(n), zeros(n), zeros(n),
            zeros(n),
        )  # fmt: skip

    def squares(self) -> tuple[Tensor, Tensor]:
        """Squares about the mean per dimension: of all rows, and (groups,) of all rows but each group's."""

        def about(first: Tensor, second: Tensor, rows: Tensor) -> Tensor:
            return second - first.square().sum(-1) / rows.clamp_min(1)

        first, second, rows = self.first.sum(0), self.second.sum(), self.rows.sum()
        return about(first, second, rows), about(first - self.first, second - self.second, rows - self.rows)

    def ev(self) -> tuple[float, Floats]:
        """Explained variance, and that without each group; NaN where the states do not vary."""
        total, without = self.squares()
        left = 1 - (self.error.sum() - self.error) / without.where(without > 0, torch.nan)
        whole = 1 - self.error.sum() / total if total > 0 else torch.tensor(torch.nan)
        return float(whole), left.cpu().numpy()

    def ev_scalar(self) -> float:
        """About one mean over all entries: the squares per dimension, and those of the means about theirs."""
        n = self.rows.sum()
        mean = self.first.sum(0) / n + self.shift
        total = self.squares()[0] + n * (mean - mean.mean()).square().sum()
        return float(1 - self.error.sum() / total) if total > 0 else float("nan")


class _Transfer:
    """One pass over the fit rows and one over the test rows."""

    def __init__(
        self, paired: Paired, rotation: Rotation[Tensor], own: Dictionary, affine: Tensor | None, seed: int
    ) -> None:
        self.paired, self.seed, self.device = paired, seed, paired.device
        self.own = own.to(self.device)
        self.rotation = rotation.each(lambda x: x.to(self.device, torch.float64))
        self.affine = None if affine is None else affine.to(self.device, torch.float64)
        self._noise = {
            name: torch.Generator().manual_seed(int_id("transfer", name, seed)) for name in ("a", "b")
        }
        self.haar = haar(paired.width, int_id("transfer", "haar", seed)).to(self.device, torch.float64)
        order = np.random.default_rng(int_id("transfer", "shuffled", seed)).permutation(n_rows(paired.test))
        self.order = torch.from_numpy(order)
        fired = self._fit()
        n_fit = n_rows(paired.fit)
        alive = (fired >= max(LIVE_TOKENS, LIVE_SHARE * n_fit)) & (fired < n_fit)
        self.live: Bools = alive.cpu().numpy()
        self.sums = self._test()

    def _blocks(self, rows: slice) -> list[slice]:
        found = row_blocks(n_rows(rows), max(self.own.n_features, 2 * self.paired.width))
        return [slice(rows.start + one.start, rows.start + one.stop) for one in found]

    def _states(self, x: Tensor, rows: slice | Tensor) -> Tensor:
        return x[rows].to(self.device, torch.float64)

    def _fit(self) -> Tensor:
        """How often each feature fires on A's fit rows. Keeps mean and a root of the covariance of both models."""
        fired = torch.zeros(self.own.n_features, dtype=torch.float64, device=self.device)
        first = torch.zeros(2, self.paired.width, dtype=torch.float64, device=self.device)
        second = torch.zeros(2, self.paired.width, self.paired.width, dtype=torch.float64, device=self.device)
        about = torch.stack([self.rotation.mean_a, self.rotation.mean_b])
        n = n_rows(self.paired.fit)
        for some in self._blocks(self.paired.fit):
            for i, states in enumerate((self.paired.a, self.paired.b)):
                x = self._states(states, some)
                if i == 0:
                    fired += (self.own.encode(x) > 0).sum(0)
                first[i] += (x - about[i]).sum(0)
                second[i] += (x - about[i]).T @ (x - about[i])
        offset = first / n
        covariance = second / n - offset[:, :, None] * offset[:, None, :]
        values, vectors = torch.linalg.eigh(covariance)
        # Of fewer rows than dimensions some are 0, up to rounding below it.
        self.roots = vectors * values.clamp_min(0).sqrt()[:, None, :]
        self.means = about + offset
        return fired

    def _gaussian(self, model: int, n: int) -> Tensor:
        drawn = torch.randn(n, self.paired.width, dtype=torch.float64, generator=self._noise["ab"[model]])
        return drawn.to(self.device) @ self.roots[model].T + self.means[model]

    def _inputs(self, rows: slice, a: Tensor, b: Tensor) -> Iterator[tuple[str, Tensor]]:
        """What is encoded under each name, one at a time, for A's and B's states at some of the test rows."""
        rotation = self.rotation
        centred = b - rotation.mean_b
        yield "self", a
        yield "as_is", b
        yield "mean_shift", centred + rotation.mean_a
        yield "rotated", rotation.to_a(b)
        yield "random_rotation", centred @ self.haar + rotation.mean_a
        yield "gaussian", self._gaussian(0, len(a))
        yield "gaussian_b", rotation.to_a(self._gaussian(1, len(b)))
        start = self.paired.test.start
        others = start + self.order[rows.start - start : rows.stop - start]
        yield "shuffled", rotation.to_a(self._states(self.paired.b, others))
        if self.affine is not None:
            yield "affine", centred @ self.affine + rotation.mean_a

    def _test(self) -> dict[str, _Sums]:
        paired, sums = self.paired, dict[str, _Sums]()
        _, document = np.unique(paired.clusters[paired.test], return_inverse=True)
        groups = torch.from_numpy(document % GROUPS).to(self.device)
        n_groups = int(groups.max()) + 1
        for some in self._blocks(paired.test):
            a, b = self._states(paired.a, some), self._states(paired.b, some)
            group = groups[some.start - paired.test.start : some.stop - paired.test.start]
            at_home = self.own.encode(a).double()
            for name, x in self._inputs(some, a, b):
                if name not in sums:
                    sums[name] = _Sums.of(n_groups, x.mean(0), self.own.n_features)
                f = self._add(sums[name], x, group)
                if name in ("self", *_FIRING):
                    f = f.double()
                    sums[name].f += f.sum(0)
                    sums[name].ff += f.square().sum(0)
                    sums[name].fa += (f * at_home).sum(0)
        return sums

    def _add(self, sums: _Sums, x: Tensor, group: Tensor) -> Tensor:
        """Adds what explained variance and L0 need; the activations."""
        f = self.own.encode(x)
        centred = x - sums.shift
        sums.error.index_add_(0, group, (self.own.decode(f).double() - x).square().sum(1))
        sums.first.index_add_(0, group, centred)
        sums.second.index_add_(0, group, centred.square().sum(1))
        sums.rows.index_add_(0, group, torch.ones_like(centred[:, 0]))
        sums.fired += (f > 0).sum(0)
        return f

    # ---- figures ----

    def figures(self) -> list[TransferFigure]:
        n, found = n_rows(self.paired.test), list[TransferFigure]()
        drawn = {"random_rotation", "gaussian", "gaussian_b", "shuffled"}

        def add(
            metric: str,
            control: str,
            value: float,
            n: int,
            error: float | None = None,
            split: str = "held_out",
        ) -> None:
            if np.isfinite(value):
                seed = self.seed if control in drawn else None
                found.append(TransferFigure(metric, control, split, value, n, error, seed))

        evs = {name: sums.ev() for name, sums in self.sums.items() if name != "shuffled"}
        for name, (value, without) in evs.items():
            rotated = evs["rotated"][1]
            add("sae_ev", name, value, n, _jackknife(without if name == "rotated" else rotated - without))
            add("l0", name, float(self.sums[name].fired.sum()) / n, n)
            add("dead_share", name, float((self.sums[name].fired == 0).double().mean()), len(self.live))
        for name in _SCALAR:
            add("sae_ev_scalar", name, self.sums[name].ev_scalar(), n)
        r = {name: self._correlations(name) for name in _FIRING if name in self.sums}
        for name, one in r.items():
            known = one[np.isfinite(one)]
            apart = known if name == "rotated" else (r["rotated"] - one)[np.isfinite(r["rotated"] - one)]
            if len(known):
                add("firing_correlation", name, float(known.mean()), len(known), standard_error(apart))
        add("live_share", "self", float(self.live.mean()), len(self.live), split="in_sample")
        return found

    def _correlations(self, name: str) -> Floats:
        """(n_features,) Pearson r between activations at home and in an arm; NaN where there is none."""
        home, there, n = self.sums["self"], self.sums[name], n_rows(self.paired.test)
        product = there.fa - there.f * home.f / n
        squares = [one.ff - one.f.square() / n for one in (home, there)]
        varies = torch.from_numpy(self.live).to(self.device)
        for one, square in zip((home, there), squares, strict=True):
            # A constant's squares cancel up to rounding.
            varies = varies & (square > 1e-10 * one.ff)
        r = product / (squares[0] * squares[1]).where(varies, torch.nan).sqrt()
        return r.clamp(-1, 1).cpu().numpy()


def _jackknife(without: Floats) -> float | None:
    """Standard error of a figure from its values without each group in turn (Efron and Tibshirani 1993, chapter 11)."""
    n = len(without)
    if n < 2 or not np.isfinite(without).all():
        return None
    return float(np.sqrt((n - 1) / n * np.square(without - without.mean()).sum()))


# ---- decoders -------------------------------------------------------------------------------------


def largest_cosines(rows: Tensor, others: Tensor) -> Floats:
    """(n,) the largest cosine of each of `rows` [n, width] to one of `others` [m, width]; NaN for a row of zeros."""
    # A row of zeros is nobody's match.
    others = torch.nn.functional.normalize(others.float(), dim=1)
    found = []
    for some in row_blocks(len(rows), len(others)):
        unit = rows[some].float()
        unit = unit / unit.norm(dim=1, keepdim=True)
        found.append((unit @ others.T).amax(1))
    return torch.cat(found).double().cpu().numpy()


def _decoders(
    own: Dictionary, others: Sequence[Dictionary], rotation: Rotation[Tensor], live: Bools, seed: int
) -> list[TransferFigure]:
    rows = own.w_dec.cpu()
    turned = rotation.direction_to_b(rows.to(rotation.matrix)).cpu()
    drawn = torch.Generator().manual_seed(int_id("transfer", "decoder", seed))
    random = torch.randn(rows.shape, generator=drawn)
    found: dict[str, list[Floats]] = {}
    for other in others:
        kind, theirs = _seeds(own, other), other.w_dec.cpu()
        found.setdefault(f"{kind}_seed", []).append(largest_cosines(rows, theirs))
        found.setdefault(f"{kind}_seed_rotated", []).append(largest_cosines(turned, theirs))
        found.setdefault("random", []).append(largest_cosines(random, theirs))
        recipe = own.params.get("recipe")
        ours = recipe == RECIPE == other.params.get("recipe")
        if ours and own.seed is not None and other.seed is not None:
            before = [untrained(one.width, one.n_features, one.seed or 0).w_dec for one in (own, other)]
            found.setdefault(f"untrained_{kind}", []).append(largest_cosines(*before))
    figures = []
    cosines = {control: np.stack(several).mean(0) for control, several in found.items()}
    matches = {control: (np.stack(several) > MATCH).mean(0) for control, several in found.items()}
    for metric, values, counted in (
        ("decoder_cosine", cosines, np.ones_like(live)),
        (f"decoder_match_{MATCH}", matches, np.ones_like(live)),
        ("decoder_cosine_live", cosines, live),
    ):
        for control, some in values.items():
            chosen = counted & np.isfinite(cosines[control])
            if not chosen.any() or (control == "random" and metric == "decoder_cosine_live"):
                continue
            apart = (
                some
                if control == "shared_seed" or "shared_seed" not in values
                else values["shared_seed"] - some
            )
            error = standard_error(apart[chosen & np.isfinite(apart)])
            value, drawn_from = float(some[chosen].mean()), seed if control == "random" else None
            figures.append(
                TransferFigure(metric, control, "in_sample", value, int(chosen.sum()), error, drawn_from)
            )
    return figures + _rotated(cosines, seed)


def _rotated(cosines: dict[str, Floats], seed: int) -> list[TransferFigure]:
    """`decoder_cosine_rotated`: independent seeds, one of them rotated, which no shared start can explain. Errors of the
    controls are of the difference to it."""
    names = {
        "independent_seed_rotated": "rotated",
        "independent_seed": "as_is",
        "untrained_independent": "untrained_independent",
        "random": "random",
    }
    own = cosines.get("independent_seed_rotated")
    if own is None:
        return []
    figures = []
    for name, control in names.items():
        if (some := cosines.get(name)) is None:
            continue
        chosen = np.isfinite(some) & np.isfinite(own)
        error = standard_error((some if control == "rotated" else own - some)[chosen])
        figures.append(
            TransferFigure(
                "decoder_cosine_rotated", control, "in_sample", float(some[chosen].mean()), int(chosen.sum()), error,
                seed if control == "random" else None,
            )
        )  # fmt: skip
    return figures


def _seeds(own: Dictionary, other: Dictionary) -> str:
    """`shared`, `independent` or `unknown`."""
    if own.seed is None or other.seed is None:
        return "unknown"
    if own.seed != other.seed:
        return "independent"
    return "shared" if own.params.get("recipe") == other.params.get("recipe") else "unknown"
