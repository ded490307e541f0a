"""The trainer: its recipe, its seeds, and training on the states of a model in the catalogue."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import wordy

import signarium
from signarium.catalog.errors import InvalidInput, NotFound, SiteError, TextError
from signarium.ingest.progress import Silent
from signarium.ingest.saes import train as trainer
from signarium.ingest.saes.dictionary import Dictionary, load, save
from signarium.ingest.saes.request import SaeTrainRequest, Settings
from signarium.ingest.saes.train import RECIPE, TrainReport, quality, untrained


def train(x: torch.Tensor, computed: Callable[[int], None] | None = None, **settings: Any) -> Dictionary:
    return trainer.train(x, Settings(**settings), computed)


def train_sae(path: Path, progress: Silent | None = None, **options: Any) -> TrainReport:
    settings = Settings(
        **{key: options.pop(key) for key in ("expansion", "steps", "l1", "seed") if key in options}
    )
    return trainer.train_sae(path, SaeTrainRequest(settings=settings, **options), progress)


SMALL: dict[str, Any] = {"expansion": 2, "steps": 20, "batch": 64}


def states(n: int = 500, width: int = 12) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(0)) + 1


# ---- the recipe -----------------------------------------------------------------------------------


def test_what_training_starts_from() -> None:
    one = untrained(64, 512, 5)
    assert one.w_enc.std().item() == pytest.approx(1 / 8, rel=0.02)
    assert torch.allclose(one.w_dec.norm(dim=1), torch.ones(512))
    assert not one.b_enc.any() and not one.b_dec.any()
    assert torch.equal(one.w_dec, untrained(64, 512, 5).w_dec)
    assert not torch.equal(one.w_dec, untrained(64, 512, 6).w_dec)
    # Two random decoders: the chance level of 512 rows in 64 dimensions, 0.37.
    cosines = (one.w_dec @ untrained(64, 512, 6).w_dec.T).amax(1)
    assert cosines.mean().item() == pytest.approx(0.37, abs=0.01)


def test_one_step_by_hand() -> None:
    x = states(1)
    start = untrained(12, 24, 3)
    one = train(x, expansion=2, steps=1, batch=8, lr=1e-3, l1=0.1, seed=3)
    w_enc, b_enc, w_dec, b_dec = (
        t.clone().requires_grad_() for t in (start.w_enc, start.b_enc, start.w_dec, start.b_dec)
    )
    f = torch.relu((x - b_dec) @ w_enc + b_enc)
    ((f @ w_dec + b_dec - x).square().mean() + 0.1 * f.abs().sum(1).mean()).backward()
    grad = w_dec.grad - (w_dec.grad * w_dec).sum(1, keepdim=True) * w_dec  # type: ignore[operator]
    # The first step of Adam is lr * grad / (|grad| + eps).
    stepped = [
        (w - 1e-3 * g / (g.abs() + 1e-8)).detach()
        for w, g in ((w_enc, w_enc.grad), (b_enc, b_enc.grad), (w_dec, grad), (b_dec, b_dec.grad))
    ]
    norm = stepped[2].norm(dim=1)
    assert torch.allclose(one.w_dec, stepped[2] / norm[:, None], atol=1e-6)
    assert torch.allclose(one.w_enc, stepped[0] * norm, atol=1e-6)
    assert torch.allclose(one.b_enc, stepped[1] * norm, atol=1e-6)
    assert torch.allclose(one.b_dec, stepped[3], atol=1e-6)


def test_a_seed_decides_everything() -> None:
    x = states()
    heard = list[int]()
    a, b = train(x, seed=1, computed=heard.append, **SMALL), train(x, seed=1, **SMALL)
    assert torch.equal(a.w_dec, b.w_dec) and torch.equal(a.w_enc, b.w_enc) and sum(heard) == 20
    assert not torch.equal(a.w_dec, train(x, seed=2, **SMALL).w_dec)
    assert a.seed == 1 and a.params["tokens"] == 500 and a.params["recipe"] == RECIPE
    assert {"expansion", "steps", "l1", "batch", "lr", "optimizer"} <= set(a.params)
    with torch.no_grad():
        assert torch.equal(train(x, seed=1, **SMALL).w_dec, a.w_dec)


def test_it_learns() -> None:
    x = states(2000)
    before = quality(untrained(12, 48, 0), x)
    one = train(x, expansion=4, steps=800, batch=128)
    after = quality(one, x)
    assert before.ev < 0 < 0.8 < after.ev < 1
    assert torch.allclose(one.w_dec.norm(dim=1), torch.ones(48), atol=1e-5)
    assert 0 < after.l0 < 48 and after.n == 2000
    sparse = quality(train(x, expansion=4, steps=400, batch=128, l1=0.1), x)
    assert sparse.l0 < after.l0


def test_quality_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    x, one = states(), train(states(), **SMALL)
    f = one.encode(x)
    error = (one.decode(f) - x).square().sum()
    ev = float(1 - error / (x - x.mean(0)).square().sum())
    whole = quality(one, x)
    monkeypatch.setattr(trainer, "BLOCK_BYTES", 4 * 24 * 77)
    for found in (whole, quality(one, x)):
        assert found.ev == pytest.approx(ev, abs=1e-5)
        assert found.l0 == pytest.approx(float((f > 0).sum()) / 500)
        assert found.dead_share == pytest.approx(float((~(f > 0).any(0)).float().mean()))
    assert math.isnan(quality(one, torch.ones(3, 12)).ev)


@pytest.mark.parametrize(
    "bad",
    [{"expansion": 0}, {"steps": 0}, {"batch": 0}, {"l1": -1.0}, {"l1": math.nan}, {"lr": 0.0}, {"seed": -1},
     {"expansion": 10**9}, {"seed": 1 << 63}],
)  # fmt: skip
def test_settings_out_of_range(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(bad))):
        train(states(), **(SMALL | bad))


def test_states_that_cannot_be_trained_on() -> None:
    x = states()
    x[-1, -1] = math.inf
    for bad in (x, torch.zeros(0, 12), torch.zeros(5)):
        with pytest.raises(InvalidInput):
            train(bad, **SMALL)
    with pytest.raises(InvalidInput, match="diverged"):
        train(states() * 1e30, **SMALL)
    assert train(states().to(torch.bfloat16), **SMALL).w_dec.dtype == torch.float32


# ---- on a model's states --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("train")
    wordy.folder(made)
    (made / "a.txt").write_text(wordy.text() * 3)
    signarium.ingest(
        made / "c.duckdb", str(made / "wordy-0"), sites="resid_post.1", stages=["types"], device="cpu"
    )
    return made


def options(home: Path, **other: Any) -> dict[str, Any]:
    return {
        "path": home / "c.duckdb", "model": "wordy-0", "site": "resid_post.1", "text": home / "a.txt",
        "expansion": 2, "steps": 6, "context": 24, "device": "cpu",
    } | other  # fmt: skip


def test_on_a_model(home: Path) -> None:
    file = home / "a.safetensors"
    report = train_sae(**options(home, output=file, seed=4))
    one = load(file)
    assert one.seed == 4 and one.params["tokens"] == report.n_train
    assert (report.n_features, one.n_features, one.width) == (96, 96, 48)
    assert 0.15 < report.n_test / (report.n_train + report.n_test) < 0.25
    assert not report.already and report.ev < 1 and 0 < report.l0 <= 96 and 0 <= report.dead_share <= 1
    assert one.params["site"] == "resid_post.1" and one.params["model"] == "wordy-0"
    before = file.read_bytes()
    again = train_sae(**options(home, output=file, seed=4))
    assert again.already and again.ev == report.ev and again.n_test == report.n_test
    train_sae(**options(home, output=home / "b.safetensors", seed=4))
    assert (home / "b.safetensors").read_bytes() == before
    other = train_sae(**options(home, output=home / "c.safetensors", seed=5))
    # Another seed sees the same tokens.
    assert (other.n_train, other.n_test) == (report.n_train, report.n_test)
    assert str(home) not in json.dumps(one.params)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"steps": 7}, {"context": 20}, {"max_tokens": 500}, {"l1": 0.5}]
)
def test_another_training_is_not_overwritten(home: Path, change: dict[str, Any]) -> None:
    file = home / "kept.safetensors"
    train_sae(**options(home, output=file))
    before = file.read_bytes()
    with pytest.raises(InvalidInput, match="another training"):
        train_sae(**options(home, output=file, **change))
    assert file.read_bytes() == before


def test_other_files_are_not_overwritten(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    for content in (b"", b"precious"):
        file.write_bytes(content)
        with pytest.raises(InvalidInput, match="something else"):
            train_sae(**options(home, output=file))
        assert file.read_bytes() == content
    save(file, train(states(), **SMALL))
    with pytest.raises(InvalidInput, match="another training"):
        train_sae(**options(home, output=file))
    with pytest.raises(InvalidInput):
        train_sae(**options(home, output=tmp_path))
    with pytest.raises(InvalidInput, match="no folder"):
        train_sae(**options(home, output=tmp_path / "no" / "a.safetensors"))
    with pytest.raises(InvalidInput, match="ending"):
        train_sae(**options(home, output=tmp_path / "a.pt"))


def test_what_cannot_be_trained(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    for error, change in (
        (NotFound, {"model": "nobody"}),
        (SiteError, {"site": "resid_post.99"}),
        (SiteError, {"site": "somewhere"}),
        (TextError, {"text": tmp_path / "none.txt"}),
        (InvalidInput, {"text": []}),
        (InvalidInput, {"context": 100_000}),
        (InvalidInput, {"context": 1}),
        (InvalidInput, {"max_tokens": 0}),
        (InvalidInput, {"max_tokens": 2}),
        (InvalidInput, {"seed": -1}),
        (InvalidInput, {"expansion": 0}),
    ):
        with pytest.raises(error):
            train_sae(**options(home, output=file, **change))
    assert not list(tmp_path.iterdir())


def test_stopped_in_the_middle(home: Path, tmp_path: Path) -> None:
    class Stops(Silent):
        unit = ""

        def started(self, job: str, total: int, done: int, unit: str = "tokens") -> None:
            self.unit = unit

        def computed(self, units: int) -> None:
            if self.unit == "steps":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sae(**options(home, output=tmp_path / "a.safetensors", progress=Stops()))
    assert not list(tmp_path.iterdir())
