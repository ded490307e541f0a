"""A small trainer of sparse autoencoders, and training one on the states that a model of the catalogue has at a site."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...catalog import store
from ...catalog.errors import InvalidInput, NotFound
from ...catalog.ids import int_id, short_id
from ..encode import reload
from ..model.sites import Site
from ..passes import gather
from ..progress import Progress, Silent
from ..text import windows as texts
from .dictionary import APPLY, Dictionary, load, save

RECIPE = "relu-l1-unit-decoder 1"
"""Written into `params`: two dictionaries of one seed start from the same weights only if both say this."""
BATCH, LR = 4096, 5e-4
BLOCK_BYTES = 64 << 20
"""Of the activations of a block of rows in float32."""
ASIDE = 0.2
"""Share of the tokens, in whole documents, that is kept for scoring."""
SPLIT_SEED = 0
"""Of which documents those are: not the training's, so that dictionaries of several seeds see the same tokens."""


# ---- the recipe -----------------------------------------------------------------------------------


def untrained(width: int, n_features: int, seed: int) -> Dictionary:
    """The weights that `train` starts from: W_enc ~ N(0, 1/width), W_dec random unit rows, no biases."""
    _check_seed(seed)
    drawn = torch.Generator().manual_seed(int_id("sae decoder", seed))
    w_dec = torch.randn(n_features, width, generator=drawn)
    drawn = torch.Generator().manual_seed(int_id("sae encoder", seed))
    w_enc = torch.randn(width, n_features, generator=drawn) / math.sqrt(width)
    params = {"recipe": RECIPE, "steps": 0, APPLY: True}
    w_dec = w_dec / w_dec.norm(dim=1, keepdim=True)
    return Dictionary(w_enc, torch.zeros(n_features), w_dec, torch.zeros(width), seed, params)


def train(
    states: Tensor,
    *,
    expansion: int = 8,
    steps: int = 1500,
    l1: float = 1e-3,
    batch: int = BATCH,
    lr: float = LR,
    seed: int = 0,
    computed: Callable[[int], None] | None = None,
    device: torch.device | None = None,
) -> Dictionary:
    """A dictionary of `expansion` * width features for `states` [n, width], on the host, in float32.

    The recipe of "Polymorphism Is Rotation" (its code, `sae.py`; notes in arXiv 2605.24577, appendix): ReLU; loss =
    mean over entries of (x' - x)^2 + l1 * mean over rows of sum |f|; Adam; batches with replacement; of the gradient of
    a decoder row the component along it is removed, and rows are set to unit norm after each step, the norm folded
    into the encoder. No dead feature is revived. `seed` decides weights and batches, so on one machine it decides the
    result. It runs on `device`, by default where the states are. `computed` is told of each step.

    Raises:
        InvalidInput: if there are no states, some are not finite, a setting is out of range, or training diverges.
    """
    if states.ndim != 2 or not states.numel():
        raise InvalidInput(f"states of shape {tuple(states.shape)} train no dictionary", "pass some tokens")
    _check_settings(seed, expansion, steps, l1, batch, lr)
    for some in row_blocks(len(states), states.shape[1]):
        if not torch.isfinite(states[some]).all():
            raise InvalidInput("hidden states hold NaN or infinity", "a dictionary needs finite values")
    n, width = states.shape
    device = device or states.device
    start = untrained(width, expansion * width, seed).to(device)
    drawn = torch.Generator().manual_seed(int_id("sae batches", seed))
    with torch.enable_grad():
        w_enc, b_enc, w_dec, b_dec = (
            one.clone().requires_grad_() for one in (start.w_enc, start.b_enc, start.w_dec, start.b_dec)
        )
        optimizer = torch.optim.Adam([w_enc, b_enc, w_dec, b_dec], lr=lr)
        for _ in range(steps):
            rows = torch.randint(n, (batch,), generator=drawn).to(states.device)
            x = states[rows].to(device, torch.float32)
            f = torch.relu((x - b_dec) @ w_enc + b_enc)
            # f is never negative, so its sum is that of |f|.
            loss = (f @ w_dec + b_dec - x).square().mean() + l1 * f.sum(1).mean()
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
        "recipe": RECIPE, "expansion": expansion, "steps": steps, "l1": l1, "batch": batch, "lr": lr, "tokens": n,
        "optimizer": "adam", APPLY: True,
    }  # fmt: skip
    return Dictionary(weights[0], weights[1], weights[2], weights[3], seed, params)


def _check_settings(seed: int, expansion: int, steps: int, l1: float, batch: int, lr: float) -> None:
    _check_seed(seed)
    # The upper ends catch typos before they fill the memory.
    for name, value, most in (
        ("expansion", expansion, 1024),
        ("steps", steps, 1 << 31),
        ("batch", batch, 1 << 24),
    ):
        if not 1 <= value <= most:
            raise InvalidInput(f"{name} is {value}", f"it must be 1 to {most}")
    if not (math.isfinite(l1) and l1 >= 0):
        raise InvalidInput(f"l1 is {l1}", "it must be 0 or more")
    if not (math.isfinite(lr) and lr > 0):
        raise InvalidInput(f"lr is {lr}", "it must be more than 0")


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 1 << 63:
        raise InvalidInput(f"the seed is {seed}", "it must be 0 or more, and below 2^63")


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


def train_sae(
    path: Path,
    model: str,
    site: str,
    *,
    text: str | Path | Sequence[str | Path],
    output: Path,
    seed: int = 0,
    expansion: int = 8,
    steps: int = 1500,
    l1: float = 1e-3,
    max_tokens: int | None = 65_536,
    context: int = 256,
    device: str = "auto",
    progress: Progress | None = None,
) -> TrainReport:
    """Train a dictionary on what the model called `model` has at `site` over `text`, and write it to `output`.

    First positions are left out. A fifth of the documents is kept aside and scored on; which ones does not depend on
    `seed`. The file is written at the end, all of it or nothing. A file that holds this very training is left as it is,
    and its figures are returned; any other file at `output` is refused.

    Raises:
        NotFound: if there is no such model.
        InvalidInput: if `output` cannot be written or holds something else, or a setting is out of range.
        SiteError, ModelError, TextError: if the model lacks the site or is not at hand, or the text cannot be read.
    """
    begun = time.perf_counter()
    path, output, progress = Path(path), Path(output), progress or Silent()
    where = Site.from_name(site)
    _check_settings(seed, expansion, steps, l1, BATCH, LR)
    if max_tokens is not None and max_tokens < 1:
        raise InvalidInput(f"a limit of {max_tokens} tokens leaves no text", "use --max-tokens 1 or more")
    with store.reading(path) as connection:
        known = dict(connection.execute("SELECT name, model_id FROM model ORDER BY name").fetchall())
    if model not in known:
        raise NotFound("model", model, list(known))
    files = texts.find_texts([text] if isinstance(text, str | Path) else list(text))
    kinds = [one.path.suffix.lower() for one in files]
    read = [
        [one.sha256, kind if kind in (".jsonl", ".parquet") else "text"]
        for one, kind in zip(files, kinds, strict=True)
    ]
    asked: dict[str, Any] = {
        "model_id": known[model], "site": where.name, "texts": read, "context": context, "max_tokens": max_tokens,
        "seed": seed, "expansion": expansion, "steps": steps, "l1": l1, "batch": BATCH, "lr": LR, "recipe": RECIPE,
    }  # fmt: skip
    training = short_id("sae training", asked)
    report = TrainReport(output, model, where.name)
    if (there := _same(output, training)) is not None:
        report.already = True
        return _filled(report, there, begun)

    progress.loading(f"loading {model}")
    loaded = reload(path, model, device)
    loaded.require_site(where)
    if loaded.max_positions is not None and context > loaded.max_positions:
        raise InvalidInput(
            f"a context of {context} is more than the {loaded.max_positions} positions of {model}",
            f"pass --context {loaded.max_positions}",
        )
    progress.loading("reading the text")
    windows = gather.cut(loaded, files, context, max_tokens, progress.counted)
    kept, aside = gather.split(windows, SPLIT_SEED, (1 - ASIDE, ASIDE))
    ordered = [windows[i] for i in (*kept, *aside)]
    starts = gather.row_starts(ordered)
    kind = getattr(torch, loaded.dtype)
    states = torch.empty((starts[-1], loaded.width_of(where)), dtype=kind)
    progress.started("states", gather.sum_of(ordered), 0)
    gather.record(loaded, ordered, [where], {where: states}, starts, progress.computed)
    progress.ended()
    n = starts[len(kept)]
    progress.started("sae", steps, 0, "steps")
    made = train(
        states[:n], expansion=expansion, steps=steps, l1=l1, batch=BATCH, lr=LR, seed=seed,
        computed=progress.computed, device=loaded.device,
    )  # fmt: skip
    progress.ended()
    found = quality(made, states[n:])
    made.params.update(
        training=training, model=model, model_id=known[model], site=where.name, texts=read, context=context,
        max_tokens=max_tokens,
        held_out={"ev": found.ev, "l0": found.l0, "dead_share": found.dead_share, "tokens": found.n},
    )  # fmt: skip
    if not math.isfinite(found.ev):
        made.params["held_out"]["ev"] = None
    # Another process may have been quicker.
    if _same(output, training) is None:
        save(output, made)
    return _filled(report, made, begun)


def _same(output: Path, training: str) -> Dictionary | None:
    """What is in `output` if it came from this training; None if nothing is there.

    Raises:
        InvalidInput: if something else is there, or nothing can be written there.
    """
    other = "pass another --output"
    folder = output.parent
    if not folder.is_dir():
        raise InvalidInput(f"there is no folder {folder}", "make it first, or pass another --output")
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
