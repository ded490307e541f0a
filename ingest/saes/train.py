"""A small trainer of sparse autoencoders, and training one on the states that a model of the catalogue has at a site."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...catalog import store
from ...catalog.errors import InvalidInput, NotFound, option
from ...catalog.ids import int_id, short_id
from ..encode import reload
from ..model.sites import Site
from ..passes import gather
from ..progress import Progress, Silent
from ..text.sources import TextFile, find_texts, identity, without_text
from .dictionary import APPLY, Dictionary, load, save
from .request import SaeTrainRequest, Settings, check_seed

if TYPE_CHECKING:
    from ..model.loaded import LoadedModel

RECIPE = "relu-l1-unit-decoder 1"
"""Written into `params`: two dictionaries of one seed start from the same weights only if both say this."""
BLOCK_BYTES = 64 << 20
"""Of the activations of a block of rows in float32."""
ASIDE = 0.2
"""Share of the tokens, in whole documents, that is kept for scoring."""
SPLIT_SEED = 0
"""Of which documents those are: not the training's, so that dictionaries of several seeds see the same tokens."""


# ---- the recipe -----------------------------------------------------------------------------------


def untrained(width: int, n_features: int, seed: int) -> Dictionary:
    """The weights that `train` starts from: W_enc ~ N(0, 1/width), W_dec random unit rows, no biases."""
    check_seed(seed)
    drawn = torch.Generator().manual_seed(int_id("sae decoder", seed))
    w_dec = torch.randn(n_features, width, generator=drawn)
    drawn = torch.Generator().manual_seed(int_id("sae encoder", seed))
    w_enc = torch.randn(width, n_features, generator=drawn) / math.sqrt(width)
    params = {"recipe": RECIPE, "steps": 0, APPLY: True}
    w_dec = w_dec / w_dec.norm(dim=1, keepdim=True)
    return Dictionary(w_enc, torch.zeros(n_features), w_dec, torch.zeros(width), seed, params)


def train(
    states: Tensor,
    settings: Settings,
    computed: Callable[[int], None] | None = None,
    device: torch.device | None = None,
) -> Dictionary:
    """A dictionary of `expansion` * width features for `states` [n, width], on the host, in float32.

    The recipe of "Polymorphism Is Rotation" (its code, `sae.py`; notes in arXiv 2605.24577, appendix): ReLU; loss =
    mean over entries of (x' - x)^2 + l1 * mean over rows of sum |f|; Adam; batches with replacement; of the gradient of
    a decoder row the component along it is removed, and rows are set to unit norm after each step, the norm folded
    into the encoder. No dead feature is revived. The seed decides weights and batches, so on one machine it decides the
    result. It runs on `device`, by default where the states are. `computed` is told of each step.

    Raises:
        InvalidInput: if there are no states, some are not finite, or training diverges.
    """
    if states.ndim != 2 or not states.numel():
        raise InvalidInput(f"states of shape {tuple(states.shape)} train no dictionary", "pass some tokens")
    for some in row_blocks(len(states), states.shape[1]):
        if not torch.isfinite(states[some]).all():
            raise InvalidInput("hidden states hold NaN or infinity", "a dictionary needs finite values")
    n, width = states.shape
    device = device or states.device
    start = untrained(width, settings.expansion * width, settings.seed).to(device)
    drawn = torch.Generator().manual_seed(int_id("sae batches", settings.seed))
    with torch.enable_grad():
        w_enc, b_enc, w_dec, b_dec = (
            one.clone().requires_grad_() for one in (start.w_enc, start.b_enc, start.w_dec, start.b_dec)
        )
        optimizer = torch.optim.Adam([w_enc, b_enc, w_dec, b_dec], lr=settings.lr)
        for _ in range(settings.steps):
            rows = torch.randint(n, (settings.batch,), generator=drawn).to(states.device)
            x = states[rows].to(device, torch.float32)
            f = torch.relu((x - b_dec) @ w_enc + b_enc)
            # f is never negative, so its sum is that of |f|.
            loss = (f @ w_dec + b_dec - x).square().mean() + settings.l1 * f.sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            with torch.no_grad():
                assert w_dec.grad is not None
                w_dec.grad -= (w_dec.grad * w_dec).sum(1, keepdim=True) * w_dec
                optimizer.step()
                norm = w_dec.norm(dim=1).clamp_min(1e-12)
                w_dec /= norm[:, None]
                w_enc *= norm
                b_enc *= norm
            if computed is not None:
                computed(1)
    weights = [one.detach().cpu() for one in (w_enc, b_enc, w_dec, b_dec)]
    if not all(torch.isfinite(one).all() for one in weights):
        raise InvalidInput("the training of the dictionary diverged", "pass a smaller lr")
    params = {
        "recipe": RECIPE, "expansion": settings.expansion, "steps": settings.steps, "l1": settings.l1,
        "batch": settings.batch, "lr": settings.lr, "tokens": n, "optimizer": "adam", APPLY: True,
    }  # fmt: skip
    return Dictionary(weights[0], weights[1], weights[2], weights[3], settings.seed, params)


def row_blocks(n: int, columns: int) -> Iterator[slice]:
    """Consecutive rows whose float32 values of `columns` columns fill at most `BLOCK_BYTES`."""
    size = max(1, BLOCK_BYTES // (4 * columns))
    for start in range(0, n, size):
        yield slice(start, min(n, start + size))


@dataclass(frozen=True)
class Quality:
    """How a dictionary does on some states.

    `ev` is 1 - squared error / squares about the states' own mean per dimension; `l0` how many features fire at a
    token, on average; `dead_share` the share of features that never do.
    """

    ev: float
    l0: float
    dead_share: float
    n: int


def quality(dictionary: Dictionary, states: Tensor) -> Quality:
    """`Quality` on `states` [n, width], in blocks."""
    n = len(states)
    mean = torch.zeros(dictionary.width, dtype=torch.float64)
    for some in row_blocks(n, dictionary.n_features):
        mean += states[some].double().sum(0).cpu() / n
    error = total = fired = 0.0
    alive = torch.zeros(dictionary.n_features, dtype=torch.bool)
    for some in row_blocks(n, dictionary.n_features):
        x = states[some].cpu()
        f = dictionary.encode(x)
        fires = f > 0
        error += float((dictionary.decode(f).double() - x.double()).square().sum())
        total += float((x.double() - mean).square().sum())
        fired += float(fires.sum())
        alive |= fires.any(0)
    ev = 1 - error / total if total else math.nan
    return Quality(ev, fired / n, 1 - float(alive.double().mean()), n)


# ---- on a model's states --------------------------------------------------------------------------


@dataclass
class TrainReport:
    """What a training left in `output`. `already` says that this very training was there before.

    The figures are of `n_test` tokens of documents that were not trained on: see `Quality`.
    """

    output: Path
    model: str
    site: str
    n_features: int = 0
    n_train: int = 0
    n_test: int = 0
    ev: float = math.nan
    l0: float = math.nan
    dead_share: float = math.nan
    seconds: float = 0.0
    already: bool = False
    notes: list[str] = field(default_factory=list)


def train_sae(path: Path, request: SaeTrainRequest, progress: Progress | None = None) -> TrainReport:
    """Train a dictionary on what a model has at a site over a text, and write it to a file.

    First positions are left out. A fifth of the documents is kept aside and scored on; which ones does not depend on
    the seed. The file is written at the end, all of it or nothing. A file that holds this very training is left as it is,
    and its figures are returned; any other file at `output` is refused.

    Raises:
        NotFound: if there is no such model.
        InvalidInput: if `output` cannot be written or holds something else.
        SiteError, ModelError, TextError: if the model lacks the site or is not at hand, or the text cannot be read.
    """
    begun = time.perf_counter()
    path, output, progress = Path(path), Path(request.output), progress or Silent()
    settings, site = request.settings, Site.from_name(request.site)
    with store.reading(path) as connection:
        known = dict(connection.execute("SELECT name, model_id FROM model ORDER BY name").fetchall())
    if request.model not in known:
        raise NotFound("model", request.model, list(known))
    files = find_texts(request.text, request.column)
    read_from = {
        "model_id": known[request.model], "site": site.name, "texts": identity(files), "context": request.context,
        "max_tokens": request.max_tokens,
    }  # fmt: skip
    training = short_id("sae training", read_from | asdict(settings) | {"recipe": RECIPE})
    report = TrainReport(output, request.model, site.name)
    if (there := _same(output, training)) is not None:
        report.already = True
        return _filled(report, there, begun)

    progress.loading(f"loading {request.model}")
    model = reload(path, request.model, request.device)
    model.require_site(site)
    model.check_window(request.context)
    states, n = _gathered(model, site, files, request, progress)
    report.notes += without_text(files)
    progress.started("sae", settings.steps, 0, "steps")
    made = train(states[:n], settings, progress.computed, model.device)
    progress.ended()
    scored = quality(made, states[n:])
    made.params.update(
        read_from,
        training=training,
        model=request.model,
        held_out={
            "ev": scored.ev if math.isfinite(scored.ev) else None, "l0": scored.l0, "dead_share": scored.dead_share,
            "tokens": scored.n,
        },
    )  # fmt: skip
    # Another process may have been quicker.
    if _same(output, training) is None:
        save(output, made)
    return _filled(report, made, begun)


def _gathered(
    model: LoadedModel, site: Site, files: Sequence[TextFile], request: SaeTrainRequest, progress: Progress
) -> tuple[Tensor, int]:
    """States of the text at a site [n, width], and how many of them, from the first on, are to be trained on."""
    progress.loading("reading the text")
    windows = gather.cut(model, files, request.context, request.max_tokens, progress.counted)
    kept, aside = gather.split(windows, SPLIT_SEED, (1 - ASIDE, ASIDE))
    ordered = [windows[i] for i in (*kept, *aside)]
    starts = gather.row_starts(ordered)
    states = torch.empty((starts[-1], model.width_of(site)), dtype=getattr(torch, model.dtype))
    progress.started("states", gather.sum_of(ordered), 0)
    gather.record(model, ordered, [site], {site: states}, starts, progress.computed)
    progress.ended()
    return states, starts[len(kept)]


def _same(output: Path, training: str) -> Dictionary | None:
    """What is in `output` if it came from this training; None if nothing is there.

    Raises:
        InvalidInput: if something else is there, or nothing can be written there.
    """
    other = f"pass another {option('output')}"
    folder = output.parent
    if not folder.is_dir():
        raise InvalidInput(f"there is no folder {folder}", f"make it first, or {other}")
    if not os.path.lexists(output):
        if output.suffix != ".safetensors":
            raise InvalidInput(f"{output} does not end in .safetensors", "give it that ending")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InvalidInput(f"{folder} may not be written to", other)
        return None
    try:
        there = load(output)
    except InvalidInput as error:
        raise InvalidInput(f"{output} is there and holds something else", other) from error
    if there.params.get("training") != training:
        raise InvalidInput(f"{output} is there and came from another training", other)
    return there


def _filled(report: TrainReport, made: Dictionary, begun: float) -> TrainReport:
    said = made.params["held_out"]
    report.n_features, report.n_train, report.n_test = made.n_features, made.params["tokens"], said["tokens"]
    report.ev = math.nan if said["ev"] is None else said["ev"]
    report.l0, report.dead_share = said["l0"], said["dead_share"]
    report.seconds = time.perf_counter() - begun
    return report
