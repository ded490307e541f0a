"""Training the toy family: one seed, or all of them, each saved as a folder that `ingest` reads.

A run draws every batch from its seed and the number of its step, so what is kept of a run that was cut off is
its weights, its optimizer and its best scores; it ends with the bytes of a run that never stopped. The two
cohorts and the optimizer are those of McCann (arXiv 2605.24577); batches are smaller, and runs shorter.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from signarium.catalog.errors import InvalidInput, ModelError
from signarium.catalog.files import replacing
from signarium.ingest.model.weights import read_json

from . import task
from .model import WEIGHTS, DyckConfig, DyckForStructure, Scores, chunks, evaluate, head_logits, save_folder

COHORTS = ("shared", "apart")
APART = 100
"""Seed n of the cohort that shares nothing is called 100 + n, and is drawn from that number."""
_CHUNK = 32  # rows of similar length that are run together
_SHARED = ("model.embed.weight", "token_head.weight", "depth_head.weight", "valid_head.weight")


@dataclass(frozen=True)
class Recipe:
    """How a seed is trained. AdamW with linear warm-up to `peak_rate`, then a cosine to `last_share` of it.

    Every `every` steps the model is scored on `held_out` rows. Training ends `after` steps from where the
    lowest of its three accuracies first reaches `enough`. A run that gets to `steps` ends there if it once
    had `needed`; if not, it goes on for up to `rounds` further cosines of `again` steps, each from half the
    peak of the one before (Loshchilov and Hutter 2017, section 3).
    """

    steps: int = 8_000
    batch: int = 128
    peak_rate: float = 3e-3
    warm_up: int = 200
    last_share: float = 0.02
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    every: int = 100
    held_out: int = 2048
    enough: float = 0.9995
    after: int = 500
    needed: float = 0.9992
    again: int = 4_000
    rounds: int = 2

    @property
    def most(self) -> int:
        """The steps after which any run ends."""
        return self.steps + self.rounds * self.again

    def rate(self, step: int) -> float:
        """The learning rate of `step`, counted from 0."""
        if step < self.warm_up:
            return self.peak_rate * (step + 1) / self.warm_up
        peak, part = self.peak_rate, (step - self.warm_up) / max(1, self.steps - self.warm_up)
        if step >= self.steps and self.rounds:
            done, inside = divmod(step - self.steps, self.again)
            peak, part = peak / 2 ** (done + 1), inside / self.again
        return peak * (self.last_share + (1 - self.last_share) * (1 + math.cos(math.pi * part)) / 2)


RECIPE = Recipe()
"""What the family that ships was trained by."""


# ---- one step -----------------------------------------------------------------------------------


def _backward(model: DyckForStructure, ids: task.Ids) -> None:
    n = float((ids != task.PAD).sum())
    for x, depth, valid, mask in chunks(ids, max(1, len(ids) // _CHUNK)):
        wanted = (x[mask], depth[mask], valid[mask])
        pairs = zip(head_logits(model, x, mask), wanted, strict=True)
        losses = [F.cross_entropy(logits, y, reduction="sum") for logits, y in pairs]
        ((losses[0] + losses[1] + losses[2]) / n).backward()


# ---- one seed -----------------------------------------------------------------------------------

Progress = Callable[[str, int, int, Scores], None]
"""Called with a run's name, the steps done, the most there may be, and the scores at that step."""


def run_name(cohort: str, n: int) -> str:
    """The folder of seed `n` of a cohort: "shared-0", "apart-100".

    Raises:
        InvalidInput: if there is no such cohort or seed.
    """
    if cohort not in COHORTS:
        raise InvalidInput(f"no cohort {cohort!r}", f"there is {', '.join(COHORTS)}")
    if n < 0 or (n >= APART and cohort == "shared"):
        raise InvalidInput(f"no seed {n}", f"seeds are 0 to {APART - 1}")
    return f"{cohort}-{_number(cohort, n)}"


def _number(cohort: str, n: int) -> int:
    return n + APART * (cohort == "apart")


class _Run:
    """A seed on its way: all that must be kept so that it can go on where it was cut off."""

    def __init__(self, recipe: Recipe, number: int, origin: Path | None) -> None:
        self.recipe, self.number = recipe, number
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            self.model = DyckForStructure(DyckConfig())
        if origin is not None:
            take_shared(self.model, origin)
        self.optimizer = torch.optim.AdamW(
            [p for p in self.model.parameters() if p.requires_grad],
            lr=recipe.peak_rate, betas=recipe.betas, weight_decay=recipe.weight_decay,
        )  # fmt: skip
        self.step, self.passed, self.best_step = 0, -1, 0
        self.best: dict[str, Tensor] = {}
        self.history: list[dict[str, float]] = []

    @property
    def over(self) -> bool:
        recipe, further = self.recipe, self.step - self.recipe.steps
        if self.step >= recipe.most or (self.passed >= 0 and self.step >= self.passed + recipe.after):
            return True
        between = further == 0 or (further > 0 and further % recipe.again == 0)
        return between and max(s.lowest for s in self._seen()) >= recipe.needed

    def _seen(self) -> list[Scores]:
        return [Scores(one["token"], one["depth"], one["valid"], one["loss"]) for one in self.history]

    def advance(self) -> None:
        """One step of training."""
        recipe, parameters = self.recipe, [p for p in self.model.parameters() if p.requires_grad]
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate(self.step)
        _backward(self.model, task.batch_rows(self.number, self.step, recipe.batch))
        nn.utils.clip_grad_norm_(parameters, recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1

    def score(self, rows: task.Ids) -> Scores:
        """Scores the model as it is, and keeps it if it is the best so far."""
        scores = evaluate(self.model, rows)
        if all((scores.lowest, -scores.loss) > (s.lowest, -s.loss) for s in self._seen()):
            self.best = copy.deepcopy(self.model.state_dict())
            self.best_step = self.step
        self.history.append({"step": self.step} | asdict(scores))
        if self.passed < 0 and scores.lowest >= self.recipe.enough:
            self.passed = self.step
        return scores

    def keep(self, path: Path) -> None:
        """Writes all of this to `path`, which holds either what it held or this."""
        state = {
            "recipe": json.dumps(asdict(self.recipe)), "number": self.number, "step": self.step,
            "passed": self.passed, "best_step": self.best_step, "history": json.dumps(self.history),
            "model": self.model.state_dict(), "best": self.best, "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip
        with replacing(path) as new:
            torch.save(state, new)

    def restore(self, path: Path) -> None:
        """Goes on from what `keep` wrote.

        Raises:
            InvalidInput: if that is of another recipe.
            ModelError: if it cannot be read.
        """
        try:
            state = torch.load(path, weights_only=True)
        except Exception as error:
            # A damaged file fails in torch wherever the damage is met.
            raise ModelError(f"{path} cannot be read", "remove it, and this seed starts anew") from error
        if state["recipe"] != json.dumps(asdict(self.recipe)) or state["number"] != self.number:
            what = f"{path} was left by a run with another recipe"
            raise InvalidInput(what, "run that one again, pass another --output, or remove the file")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.passed, self.best_step = state["step"], state["passed"], state["best_step"]
        self.best, self.history = state["best"], json.loads(state["history"])


def take_shared(model: DyckForStructure, origin: Path) -> None:
    """Puts the token embedding and the three heads of the model at `origin` into `model`, and freezes them.

    Raises:
        ModelError: if there is no such model.
    """
    try:
        weights = safetensors.torch.load_file(origin / WEIGHTS)
    except Exception as error:
        # A missing file is the system's error, a damaged one the library's own.
        raise ModelError(f"{origin} holds no trained model", "train seed 0 first") from error
    named = dict(model.named_parameters())
    for name in _SHARED:
        named[name].data.copy_(weights[name])
        named[name].requires_grad_(False)


def checkpoint_steps(recipe: Recipe, n: int) -> list[int]:
    """The steps of `n` checkpoints along a run, each at twice the steps of the one before, up to half of all."""
    return sorted({recipe.steps >> i for i in range(1, n + 1)} - {0})


def train_seed(
    output: Path,
    cohort: str,
    n: int,
    recipe: Recipe = RECIPE,
    *,
    checkpoints: Sequence[int] = (),
    progress: Progress | None = None,
) -> Path:
    """Trains seed `n` of a cohort into a folder under `output` and returns that; what is there already stays.

    Seeds of cohort "shared" but for seed 0 take its embedding and heads, frozen, from its folder. The weights
    saved are those with the highest lowest accuracy on held-out rows, ties going to the lower loss.
    `checkpoints` are steps at which the weights as they are get a folder of their own. A run that was cut off
    goes on from its last scores, with the same result.

    Raises:
        InvalidInput: if there is no such seed, or if what is there was made by another recipe.
        ModelError: if seed 0 is needed and not there.
    """
    name = run_name(cohort, n)
    folder, kept = output / name, output / f".{name}.state"
    if _made(folder, recipe, checkpoints):
        kept.unlink(missing_ok=True)
        return folder
    output.mkdir(parents=True, exist_ok=True)
    origin = output / run_name("shared", 0) if cohort == "shared" and n else None
    with _one_thread():
        run = _Run(recipe, _number(cohort, n), origin)
        if kept.is_file():
            run.restore(kept)
            if any(step <= run.step and not _checkpoint(folder, step).is_dir() for step in checkpoints):
                run = _Run(recipe, _number(cohort, n), origin)
        rows = task.held_out_rows("held_out", recipe.held_out)
        while not run.over:
            run.advance()
            if run.step in checkpoints:
                _save(run, run.step, _checkpoint(folder, run.step), cohort, checkpoints)
            if run.step % recipe.every == 0 or run.step in (recipe.steps, recipe.most):
                scores = run.score(rows)
                run.keep(kept)
                if progress is not None:
                    progress(name, run.step, recipe.most if run.step > recipe.steps else recipe.steps, scores)
        run.model.load_state_dict(run.best)
        _save(run, run.best_step, folder, cohort, checkpoints)
    kept.unlink(missing_ok=True)
    return folder


def _checkpoint(folder: Path, step: int) -> Path:
    return folder.with_name(f"{folder.name}-step-{step:05d}")


def _made(folder: Path, recipe: Recipe, checkpoints: Sequence[int]) -> bool:
    """Whether the run is at its end, with these checkpoints."""
    path = folder / "training.json"
    if not path.is_file():
        return False
    made = read_json(path)
    if made.get("recipe") != json.loads(json.dumps(asdict(recipe))):
        raise InvalidInput(f"{folder} was trained by another recipe", "pass another --output, or remove it")
    return all(step in made["checkpoints"] or step > made["last_step"] for step in checkpoints)


def _save(run: _Run, step: int, folder: Path, cohort: str, checkpoints: Sequence[int]) -> None:
    scores = {
        kind: asdict(evaluate(run.model, task.held_out_rows(kind, run.recipe.held_out)))
        for kind in task.KINDS
    }
    training = {
        "cohort": cohort, "seed": run.number, "step": step, "last_step": run.step, "scores": scores,
        "checkpoints": [s for s in checkpoints if s <= run.step],
        "recipe": asdict(run.recipe), "history": run.history,
    }  # fmt: skip
    save_folder(run.model, folder, training)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums are split by the number of threads, and their last bits with them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
