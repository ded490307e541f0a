"""What adding a direction to the residual stream does, in the model that it comes from and, carried over, in another.

The cited paper (rotations of representations, steering) adds the direction of one model to another as it is, and measures
accuracy on the toy and divergence on the language model. Here it is carried by the rotation too, beside a random one and
the other model's own, and what is measured is the logits that the direction is about.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...catalog.carry import Rotation
from ...catalog.errors import InvalidInput, SiteError
from ..model.probe import as_positions, first_tensor, hooks
from ..model.sites import Site
from ..passes import inject
from ..passes.forward import batches, default_batch_tokens
from ..stats.draws import rng
from ..stats.figures import standard_error
from ..stats.outcome import POSITIONS, Outcome
from ..stats.paired import Paired
from .contrasts import Contrast, differences, head, places_of

if TYPE_CHECKING:
    from ..model.loaded import LoadedModel

DOSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""What a direction is multiplied by: the paper's four, and one more where it says that four times the dose is needed."""
HEADLINE = 2.0
"""The dose of the figures, fixed beforehand: that of the paper's clean transfer. A dose chosen here, where A's own effect is
largest, would favour the arm that it was chosen by."""
ARMS = ("source", "as_is", "rotated", "random", "own")
CUT = 64
"""Tokens of a window that are run: on a CPU a language model takes a second for a few hundred."""
WINDOWS = (16, 256)
"""Windows of a direction: the first number of a large model, up to the second of a small one."""
_WORK = 1 << 37
"""Parameters times tokens of a pass, about: 16 windows of a model of 135 million parameters, two seconds on a CPU."""
METRIC = "steering_target"

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Steered:
    """One direction, arm and dose; columns of the view `steering`.

    `target_change` is that of the mean logit of the targets less that of the others, `other_change` that of the others;
    `kl` is KL(before || after) over the head in nats. All are means over `n` positions. `norm` is the Euclidean norm of
    what is added. Errors are over windows, None with one window. `by_window` are the means of `target_change` by window,
    which `windows` names: the same ones in every arm of a direction.
    """

    direction: str
    arm: str
    dose: float
    norm: float
    target: str
    target_change: float
    other_change: float
    kl: float
    n: int
    target_std_error: float | None
    other_std_error: float | None
    kl_std_error: float | None
    by_window: Floats = field(repr=False)
    windows: Ids = field(repr=False)


def steer(
    streams: tuple[Stream, Stream],
    rotation: Rotation[Tensor],
    paired: Paired,
    windows: Sequence[Ids],
    contrasts: Sequence[Contrast],
    *,
    seed: int,
    max_windows: int | None = None,
) -> tuple[list[Steered], list[str]]:
    """Every arm at every dose of every contrast; and notes. `streams` are those of A and B at the site whose states
    `paired` holds.

    `windows[paired.documents[r]][paired.positions[r]]` is the token of row r. Directions are fitted on the rows that fit.
    Effects are read in the first `CUT` tokens of up to `max_windows` windows that hold rows to measure at, evenly spaced,
    at up to `POSITIONS` such rows each; by default in as many as `WINDOWS` allows models of their size.

    `source` is A's direction in A itself; in B there are A's direction `as_is`, `rotated` as the rotation carries it, a
    `random` one of that norm, another in each window so that the error over windows has the draw in it, and B's `own`
    difference of means, at its own norm. What is added is added at all positions but the first: the states there are
    of another kind, up to a hundred times as long, the means were taken without them, and every later position attends
    to them. (The paper adds at every position.)

    Raises:
        SiteError: if later blocks read more than the residual stream.
        InvalidInput: if `paired` or `rotation` is not of the models' width.
        ModelError: if a model lacks a head.
    """
    models = [stream.model for stream in streams]
    for model in models:
        if not model.width == paired.width == rotation.width:
            what = f"states of width {paired.width} and a rotation of {rotation.width}"
            raise InvalidInput(f"{what} are not of {model.name}, which is {model.width} wide")
    found, notes = list[Steered](), list[str]()
    most = max_windows or _most_windows(*models)
    for contrast, (in_a, in_b) in zip(contrasts, differences(paired, contrasts), strict=True):
        places = places_of(contrast, paired, CUT, most, POSITIONS)
        if problem := _problem(places, in_a, in_b):
            notes.append(f"no steering by {contrast.name}: {problem}")
            continue
        readers = [Reader(stream, contrast, windows, places) for stream in streams]
        carried = rotation.direction_to_b(in_a.to(rotation.matrix)).to(in_a)
        random = rng(seed, "steer", contrast.name).standard_normal((len(places), paired.width))
        random *= float(in_a.norm()) / np.linalg.norm(random, axis=1, keepdims=True)
        arms = {
            "source": (readers[0], in_a),
            "as_is": (readers[1], in_a),
            "rotated": (readers[1], carried),
            "random": (readers[1], torch.from_numpy(random)),
            "own": (readers[1], in_b),
        }
        known: dict[tuple[LoadedModel, bytes], Outcome] = {}
        for arm, (reader, vector) in arms.items():
            for dose in DOSES:
                delta = contrast.sign * dose * vector
                # Arms that add the same to the same model, as a model beside itself, are one pass.
                key = (reader.stream.model, delta.numpy().tobytes())
                if key not in known:
                    known[key] = reader.read(delta)
                found.append(_steered(contrast, arm, dose, known[key], np.array(list(places), np.int64)))
    return found, notes


def _steered(contrast: Contrast, arm: str, dose: float, outcome: Outcome, windows: Ids) -> Steered:
    _, other, kl, target = outcome.mean.tolist()
    _, other_error, kl_error, target_error = outcome.errors
    return Steered(
        contrast.name, arm, dose, outcome.norm, contrast.target, target, other, kl, outcome.n, target_error, other_error,
        kl_error, outcome.by_window[3], windows,
    )  # fmt: skip


def _most_windows(*models: LoadedModel) -> int:
    size = max(sum(one.numel() for one in model.module.parameters()) for model in models)
    return min(max(WINDOWS[0], _WORK // (CUT * max(1, size))), WINDOWS[1])


def _problem(places: Mapping[int, Sequence[int]], *directions: Tensor) -> str:
    if not places:
        return f"no window has a token to measure at among its first {CUT}"
    if not all(bool(one.isfinite().all()) and float(one.norm()) > 0 for one in directions):
        return "there is no difference of means"
    return ""


# ---- one model ------------------------------------------------------------------------------------


class Stream:
    """The residual stream of a model at one site, to be added to.

    At `resid_post` the state is put in its block's place. A `resid_mid` is no module's output, but in a block that adds its
    sublayers one after the other it is what goes into the block plus `attn_out`: adding to that is the same.

    Raises:
        SiteError: if neither can be done at `site`.
    """

    def __init__(self, model: LoadedModel, site: Site) -> None:
        model.require_site(site)
        self.model, self.site, self._checked = model, site, False
        # Most contrasts are measured on the same windows.
        self._known: tuple[tuple[bytes, ...], list[tuple[list[int], inject.Recorded]]] | None = None
        self._heads: dict[str, tuple[Tensor, Tensor | None]] = {}
        self._module: nn.Module | None = None
        layer = site.layer
        if site.point == "resid_mid" and layer is not None:
            tap = model.layout.taps.get(Site("attn_out", layer))
            if model.layout.styles[layer] == "sequential" and tap is not None and tap.side == "out":
                self._module = tap.module
        if site.point != "resid_post" and self._module is None:
            can = "resid_post" if model.residual != "sequential" else "resid_post or resid_mid"
            raise SiteError(
                f"{site} of {model.name} cannot be steered ({model.residual} blocks)",
                f"steer at a {can} site",
            )
        # What the blocks before it give out is known from the pass of the model as it is.
        before = layer if self._module is None else (layer or 0) - 1
        self._start = Site("resid_post", before) if before is not None and before >= 0 else None

    def batches(self, windows: Sequence[Ids]) -> list[tuple[list[int], inject.Recorded]]:
        """The model as it is on `windows`, the indices of some and their pass at a time.

        Raises:
            SiteError: if adding nothing changes what comes out; this is looked at once.
        """
        key = tuple(one.tobytes() for one in windows)
        if self._known is None or self._known[0] != key:
            self._known = key, list(self._run(windows))
        return self._known[1]

    def _run(self, windows: Sequence[Ids]) -> Iterator[tuple[list[int], inject.Recorded]]:
        lengths = [len(one) for one in windows]
        for batch in batches(lengths, default_batch_tokens(self.model.device)):
            ids = torch.zeros((len(batch), max(lengths[i] for i in batch)), dtype=torch.int64)
            for row, i in enumerate(batch):
                ids[row, : lengths[i]] = torch.from_numpy(windows[i])
            sites = [self._start] if self._start else []
            recorded = inject.record(self.model, ids.to(self.model.device), sites)
            if not self._checked:
                self._check(recorded)
                self._checked = True
            yield batch, recorded

    def head(self, readout: str) -> tuple[Tensor, Tensor | None]:
        """`contrasts.head`, read once, its rows in float32: a large one takes a while."""
        if readout not in self._heads:
            rows, bias = head(self.model, readout)
            self._heads[readout] = rows.float(), bias
        return self._heads[readout]

    def _check(self, recorded: inject.Recorded) -> None:
        zero = torch.zeros(len(recorded.ids), self.model.width, dtype=torch.float64)
        try:
            last, clean = self.add(recorded, zero).float(), recorded.last.float()
            # An accelerator may add in another order.
            slack = 0.0 if clean.device.type == "cpu" else 1e-3 * float(clean.abs().max())
            same = bool((last - clean).abs().max() <= slack)
        except (KeyError, AttributeError, TypeError, IndexError, ValueError, RuntimeError):
            same = False
        if not same:
            raise SiteError(
                f"what {self.model.name} ({self.model.architecture}) computes after {self.site} needs more than its "
                "residual stream",
                "steer another model",
            )

    @torch.inference_mode()
    def add(self, recorded: inject.Recorded, vectors: Tensor) -> Tensor:
        """The state that the head reads, [batch, position, width], with `vectors`, [batch, width], added at positions > 0."""
        delta = vectors.to(recorded.last.device, torch.float32)[:, None].repeat(1, recorded.ids.shape[1], 1)
        delta[:, 0] = 0
        if self._module is None:
            assert self._start is not None
            h = recorded.states[self._start]
            return inject.rest(self.model, recorded, self._start, (h.float() + delta).to(h.dtype))
        with _added(self._module, delta):
            if self._start is None:
                return inject.record(self.model, recorded.ids, []).last
            return inject.rest(self.model, recorded, self._start, recorded.states[self._start])


@contextmanager
def _added(module: nn.Module, delta: Tensor) -> Iterator[None]:
    """`module` gives out `delta`, float32 [batch, position, width], more."""

    def more(_: nn.Module, __: Any, output: Any) -> Any:
        x = first_tensor(output)
        shaped = as_positions(x, *delta.shape[:2])
        if x is None or shaped is None:
            raise SiteError(f"{type(module).__name__} gives out nothing that can be added to")
        return inject.Shell(output, x.shape).holding((shaped.float() + delta).to(x.dtype))

    with hooks() as handles:
        handles.append(module.register_forward_hook(more))
        yield


class Reader:
    """The head of a contrast in one model, at the measured positions of some windows: `places`, by window."""

    def __init__(
        self,
        stream: Stream,
        contrast: Contrast,
        windows: Sequence[Ids],
        places: Mapping[int, Sequence[int]],
    ) -> None:
        self.stream, self._n = stream, len(places)
        positions = list(places.values())
        self._batches: list[tuple[list[int], inject.Recorded, tuple[Tensor, Tensor]]] = []
        owners: list[int] = []
        for batch, recorded in stream.batches([windows[one][:CUT] for one in places]):
            at = [(row, p) for row, i in enumerate(batch) for p in positions[i]]
            owners += [batch[row] for row, _ in at]
            rows, columns = torch.tensor(at, device=recorded.ids.device).T
            self._batches.append((batch, recorded, (rows, columns)))
        self._owners = np.array(owners, np.int64)
        clean = torch.cat([recorded.last[at] for _, recorded, at in self._batches])
        targets, others = (torch.tensor(some) for some in (contrast.targets, contrast.others))
        self._readout = inject.Readout(*stream.head(contrast.readout), targets, others, clean)

    def read(self, vectors: Tensor) -> Outcome:
        """What adding `vectors`, (width,) or one a window, (windows, width), does."""
        each = vectors if vectors.dim() == 2 else vectors.expand(self._n, -1)
        lasts = [self.stream.add(recorded, each[batch])[at] for batch, recorded, at in self._batches]
        effect = self._readout(torch.cat(lasts))
        values = torch.stack([effect.own, effect.other, effect.kl]).cpu().numpy()
        return Outcome.of(float(each.norm(dim=1).mean()), values, self._owners)


# ---- figures --------------------------------------------------------------------------------------


def figures(steered: Sequence[Steered]) -> list[tuple[str, str, float, int, float | None]]:
    """(metric, control, value, n, standard error) at the dose `HEADLINE`: means of `target_change` over directions.

    Control `none` is the arm `rotated`; the error of a control is that of its difference to it, over the same windows.
    Two directions that share windows are not independent, so all that happens in a window counts as one draw. None
    with one window. `n` counts positions of all directions. Without rows of that dose there are no figures.
    """
    rows = {(one.direction, one.arm): one for one in steered if one.dose == HEADLINE}
    directions = list(dict.fromkeys(direction for direction, _ in rows))
    found = list[tuple[str, str, float, int, float | None]]()
    if not directions:
        return found
    for arm in ("rotated", *(one for one in ARMS if one != "rotated")):
        some = [rows[one, arm] for one in directions]
        paired = []
        for one in some:
            base = rows[one.direction, "rotated"].by_window
            paired.append((one.by_window if arm == "rotated" else one.by_window - base, one.windows))
        value = float(np.mean([one.target_change for one in some]))
        control = "none" if arm == "rotated" else arm
        found.append((METRIC, control, value, sum(one.n for one in some), _clustered(paired)))
    return found + _divergences(rows, directions)


def _divergences(
    rows: Mapping[tuple[str, str], Steered], directions: Sequence[str]
) -> list[tuple[str, str, float, int, float | None]]:
    """`steering_kl_ratio`: the divergence that A's direction causes in B as it is by that which it causes in A, mean over
    directions; the cited paper's measure of transfer. Beside it the same with a random direction, and rotated. Errors
    are over directions; None with one."""
    ratios = {
        arm: np.array(
            [rows[one, arm].kl / rows[one, "source"].kl for one in directions if rows[one, "source"].kl > 0]
        )
        for arm in ("as_is", "random", "rotated")
    }
    found = list[tuple[str, str, float, int, float | None]]()
    for arm, values in ratios.items():
        if not len(values):
            continue
        of = values if arm == "as_is" else ratios["as_is"] - values
        control = "none" if arm == "as_is" else arm
        found.append(("steering_kl_ratio", control, float(values.mean()), len(values), standard_error(of)))
    return found


def _clustered(parts: Sequence[tuple[Floats, Ids]]) -> float | None:
    """Standard error of the mean over `parts` of the mean of each, whose values belong to the windows beside them.

    Residuals of one window are added up before they are squared (Liang and Zeger 1986); with one part it is the standard
    error of a mean.
    """
    names = np.unique(np.concatenate([windows for _, windows in parts]))
    if len(names) < 2:
        return None
    sums = np.zeros(len(names))
    for values, windows in parts:
        np.add.at(sums, np.searchsorted(names, windows), (values - values.mean()) / len(values) / len(parts))
    return float(np.sqrt(np.square(sums).sum() * len(names) / (len(names) - 1)))
