"""Training seeds of the family: what is kept, what is shared, and a run that is killed on its way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from digest import first_on_the_path
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from dyck import __main__ as door
from dyck import task, train
from dyck.model import DyckConfig, DyckForStructure
from dyck.train import Recipe, Scores, train_seed
from signarium.catalog.errors import InvalidInput, ModelError

EXAMPLES = Path(train.__file__).parent.parent
TINY = Recipe(steps=12, batch=4, warm_up=3, every=4, held_out=8, rounds=0)
ALONG = (3, 6)
IN_AND_OUT = {"model.embed.weight", "token_head.weight", "depth_head.weight", "valid_head.weight"}


class Killed(Exception):
    """Ends a run where it stands."""


def at(step: int) -> Callable[[str, int, int, Scores], None]:
    def progress(name: str, done: int, most: int, scores: Scores) -> None:
        if done == step:
            raise Killed

    return progress


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(folder / "model.safetensors")
    return found


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("family")
    train_seed(path, "shared", 0, TINY, checkpoints=ALONG)
    train_seed(path, "shared", 1, TINY)
    train_seed(path, "apart", 0, TINY)
    return path


# ---- steps --------------------------------------------------------------------------------------


def test_the_rate_warms_up_and_falls_as_a_cosine() -> None:
    recipe = Recipe(steps=1000, warm_up=100, peak_rate=0.01, last_share=0.02)
    rates = [recipe.rate(step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.0001)
    assert rates[99] == rates[100] == max(rates) == 0.01
    assert rates[550] == pytest.approx(0.01 * 0.51)
    assert rates[999] == pytest.approx(0.0002, rel=1e-3)
    assert all(a >= b for a, b in pairwise(rates[100:1000]))


@settings(max_examples=examples(5))
@given(st.integers(0, 10**6), st.integers(4, 24))
def test_chunks_change_neither_gradients_nor_scores(seed: int, n: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DyckForStructure(DyckConfig())
    rows = task.batch_rows(seed, 0, n)
    found = task.labels(rows)
    mask, x = torch.from_numpy(found.mask), torch.from_numpy(rows)
    out = model(x)
    wanted = (x, torch.from_numpy(found.depth), torch.from_numpy(found.valid))
    logits = [head[mask] for head in (out.token, out.depth, out.valid)]
    losses = [F.cross_entropy(a, y[mask]) for a, y in zip(logits, wanted, strict=True)]
    sum(losses).backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    train._backward(model, rows)
    for a, p in zip(plain, model.parameters(), strict=True):
        assert torch.allclose(a, p.grad, rtol=1e-3, atol=1e-6)
    scores = train.evaluate(model, rows)
    shares = [float((a.argmax(-1) == y[mask]).float().mean()) for a, y in zip(logits, wanted, strict=True)]
    assert [scores.token, scores.depth, scores.valid] == pytest.approx(shares, abs=1e-6)
    assert scores.lowest == min(scores.token, scores.depth, scores.valid)
    assert scores.loss == pytest.approx(sum(losses).item(), rel=1e-4)


def test_a_short_run_learns_the_token(tmp_path: Path) -> None:
    recipe = Recipe(steps=60, batch=8, warm_up=10, peak_rate=1e-2, every=20, held_out=16, rounds=0)
    seen: list[tuple[str, int, int, Scores]] = []
    folder = train_seed(tmp_path, "apart", 2, recipe, progress=lambda *one: seen.append(one))
    assert [(name, done, most) for name, done, most, _ in seen] == [
        ("apart-102", s, 60) for s in (20, 40, 60)
    ]
    assert seen[-1][3].token > 0.7
    assert seen[-1][3].loss < seen[0][3].loss
    training = json.loads((folder / "training.json").read_text())
    best = max((s.lowest, -s.loss, done) for _, done, _, s in seen)
    assert training["step"] == best[2]
    assert (training["cohort"], training["seed"], training["last_step"]) == ("apart", 102, 60)
    held = train.evaluate(DyckForStructure.from_pretrained(folder), task.held_out_rows("held_out", 16))
    assert training["scores"]["held_out"]["loss"] == pytest.approx(held.loss, rel=1e-6)


def test_a_run_ends_some_steps_after_it_is_good_enough(tmp_path: Path) -> None:
    folder = train_seed(tmp_path, "apart", 0, replace(TINY, enough=0.0, after=5))
    training = json.loads((folder / "training.json").read_text())
    assert training["last_step"] == 9
    assert [one["step"] for one in training["history"]] == [4, 8]


def test_a_run_that_is_not_good_enough_goes_on_from_lower_peaks(tmp_path: Path) -> None:
    recipe = replace(TINY, again=8, rounds=2, needed=2.0)
    assert recipe.most == 28
    rates = [recipe.rate(step) for step in range(28)]
    assert (rates[12], rates[20]) == (recipe.peak_rate / 2, recipe.peak_rate / 4)
    assert all(a > b for i in (3, 12, 20) for a, b in pairwise(rates[i : i + 8]))
    steps = {}
    for needed in (0.0, 2.0):
        folder = train_seed(tmp_path / str(needed), "apart", 0, replace(recipe, needed=needed))
        steps[needed] = json.loads((folder / "training.json").read_text())["last_step"]
    assert steps == {0.0: 12, 2.0: 28}


# ---- cohorts and checkpoints --------------------------------------------------------------------


def test_seeds_of_the_shared_cohort_have_equal_weights_in_and_out(family: Path) -> None:
    first, second = weights(family / "shared-0"), weights(family / "shared-1")
    assert {name for name in first if torch.equal(first[name], second[name])} == IN_AND_OUT
    apart = weights(family / "apart-100")
    assert not any(torch.equal(first[name], apart[name]) for name in first)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = DyckForStructure(DyckConfig()).state_dict()
    assert not any(torch.equal(first[name], fresh[name]) for name in IN_AND_OUT)


def test_checkpoints_are_the_weights_on_the_way(family: Path) -> None:
    names = ["apart-100", "shared-0", "shared-0-step-00003", "shared-0-step-00006", "shared-1"]
    assert sorted(p.name for p in family.iterdir()) == names
    steps = [json.loads((family / n / "training.json").read_text())["step"] for n in names[2:4]]
    assert steps == [3, 6]
    early, late = (weights(family / n)["model.embed.weight"] for n in names[2:4])
    assert not torch.equal(early, late)
    assert train.checkpoint_steps(Recipe(steps=8000), 4) == [500, 1000, 2000, 4000]
    assert train.checkpoint_steps(Recipe(steps=2), 4) == [1]


def test_the_shared_cohort_needs_its_first_seed(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="train seed 0 first"):
        train_seed(tmp_path, "shared", 1, TINY)
    for cohort, n in (("both", 0), ("shared", -1), ("shared", 100)):
        with pytest.raises(InvalidInput):
            train_seed(tmp_path, cohort, n, TINY)


# ---- runs that were cut off ---------------------------------------------------------------------


@pytest.mark.parametrize("stops", [(4,), (12,), (4, 8)])
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(
    family: Path, tmp_path: Path, stops: tuple[int, ...]
) -> None:
    for step in stops:
        with pytest.raises(Killed):
            train_seed(tmp_path, "shared", 0, TINY, checkpoints=ALONG, progress=at(step))
        assert not (tmp_path / "shared-0").exists()
    train_seed(tmp_path, "shared", 0, TINY, checkpoints=ALONG)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in family.glob("shared-0*"))
    for path in tmp_path.iterdir():
        assert contents(path) == contents(family / path.name)


KILLED = """
import os, signal
from pathlib import Path
from dyck.train import Recipe, train_seed

def progress(name, step, steps, scores):
    if step == 8:
        os.kill(os.getpid(), signal.SIGKILL)

train_seed(Path({output!r}), "apart", 0, Recipe(**{recipe!r}), progress=progress)
"""


def test_a_process_that_was_killed_ends_as_one_that_was_not(family: Path, tmp_path: Path) -> None:
    script = KILLED.format(output=str(tmp_path), recipe=asdict(TINY))
    job = subprocess.run(
        [sys.executable, "-c", script],
        timeout=120,
        env=os.environ | {"PYTHONPATH": first_on_the_path(EXAMPLES)},
    )
    assert job.returncode == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir()] == [".apart-100.state"]
    seen: list[int] = []
    train_seed(tmp_path, "apart", 0, TINY, progress=lambda name, step, *_: seen.append(step))
    assert seen == [12]
    assert contents(tmp_path / "apart-100") == contents(family / "apart-100")


def test_asking_for_checkpoints_later_makes_them(family: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train_seed(tmp_path, "shared", 0, TINY, progress=at(8))
    train_seed(tmp_path, "shared", 0, TINY, checkpoints=ALONG[:1])
    train_seed(tmp_path, "shared", 0, TINY, checkpoints=ALONG)
    for path in family.glob("shared-0*"):
        assert contents(tmp_path / path.name) == contents(path)


def test_what_is_there_is_left_alone(family: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in family.rglob("*")}
    calls: list[int] = []
    train_seed(family, "shared", 0, TINY, checkpoints=ALONG, progress=lambda *_: calls.append(1))
    train_seed(family, "shared", 0, TINY)
    assert calls == []
    assert {p: p.stat().st_mtime_ns for p in family.rglob("*")} == before
    with pytest.raises(InvalidInput, match="another recipe"):
        train_seed(family, "shared", 0, replace(TINY, batch=9))


def test_a_state_of_another_recipe_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train_seed(tmp_path, "apart", 0, TINY, progress=at(4))
    with pytest.raises(InvalidInput, match="another recipe"):
        train_seed(tmp_path, "apart", 0, replace(TINY, batch=9))
    state = tmp_path / ".apart-100.state"
    state.write_bytes(state.read_bytes()[:5000])
    with pytest.raises(ModelError, match="remove it"):
        train_seed(tmp_path, "apart", 0, TINY)


def test_the_number_of_threads_is_given_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    with contextlib.suppress(Killed):
        train_seed(tmp_path, "apart", 0, TINY, progress=at(4))
    assert torch.get_num_threads() == before


# ---- the command --------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["dyck", *words])
    try:
        door.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_command_trains_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(door, "RECIPE", TINY)
    words = ("--seeds", "0-1", "--steps", "8", "--checkpoints", "2", "--output", str(tmp_path))
    assert run(monkeypatch, *words) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "to do: 4 seeds, each at most 8 steps of 4 sequences, on one core"
    assert out[1].startswith("disk: 10.7 MB, of ")
    made = ["shared-0", "shared-1", "apart-100", "apart-101"]
    assert [line.partition(":")[0] for line in out[-4:]] == [str(tmp_path / name) for name in made]
    assert "worst head: held_out" in out[-1]
    along = ["shared-0-step-00002", "shared-0-step-00004"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(made + along)


@pytest.mark.parametrize(
    "words",
    [
        ("--seeds", "4-1"),
        ("--seeds", "a"),
        ("--seeds", "99-100"),
        ("--seeds", ""),
        ("--cohort", "all"),
        ("--steps", "0"),
        ("--checkpoints", "-1"),
        ("--steps", "many"),
        ("--seeds", "1", "--cohort", "shared"),
        ("--text", "0"),
        ("--text", "5", "--kind", "short"),
        ("--text", "5", "--output", "no/such/folder/text.jsonl"),
        ("--such",),
    ],
)
def test_bad_input_is_one_line(
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "--output", "made", *words) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_seeds_are_read() -> None:
    assert door.parse_seeds("0-4") == [0, 1, 2, 3, 4]
    assert door.parse_seeds("7, 2-3,2") == [2, 3, 7]


def test_text_for_ingest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text.jsonl"
    for kind in task.KINDS:
        assert run(monkeypatch, "--text", "30", "--kind", kind, "--output", str(path)) == 0
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [list(line) for line in lines] == [["text"]] * 30
        assert all(set(line["text"]) <= set(task.BRACKETS) for line in lines)
    words = [line["text"] for line in lines]
    assert words == task.text(task.held_out_rows("compositional", 30, door._TEXT_SEED))
    ids = [task.tokenizer()(word)["input_ids"] for word in words]
    assert all(task.labels(np.array([row])).valid.all() for row in ids)
