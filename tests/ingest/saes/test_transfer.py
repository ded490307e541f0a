"""A's dictionary on B's states, where B is A in another basis, so that every figure is known beforehand.

Written down first. With the true rotation: explained variance as at home, firing correlation 1; an affine map that is
that rotation the same; a random rotation, noise and the mean alone below it, noise not far below; shuffled rows 0.
Decoders: one seed leaves them alike, whatever the basis; of two seeds they are as alike as random ones are, and as
they were before training; carrying them to B makes those of one seed as unlike.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from signarium.catalog.carry import Rotation
from signarium.catalog.errors import InvalidInput
from signarium.ingest.saes import train as trainer
from signarium.ingest.saes.dictionary import Dictionary
from signarium.ingest.saes.request import Settings
from signarium.ingest.saes.train import train
from signarium.ingest.saes.transfer import TransferFigure, largest_cosines, transfer
from signarium.ingest.stats.bases import haar
from signarium.ingest.stats.paired import Paired

WIDTH, N = 24, 4000
Found = dict[tuple[str, str], TransferFigure]


def paired() -> tuple[Paired, Rotation]:
    drawn = torch.Generator().manual_seed(1)
    features = torch.nn.functional.normalize(torch.randn(80, WIDTH, generator=drawn), dim=1)
    fires = torch.rand(N, 80, generator=drawn) < 0.05
    a = (fires * torch.rand(N, 80, generator=drawn) * 3) @ features
    a += torch.randn(WIDTH, generator=drawn) * 0.3
    fit = slice(0, 2400)
    matrix = haar(WIDTH, 123).double()
    mean_a, mean_b = a[fit].double().mean(0), torch.randn(WIDTH, generator=drawn).double() * 0.3
    b = ((a.double() - mean_a) @ matrix + mean_b).float()
    mean_b = b[fit].double().mean(0)
    ids = np.zeros(N, np.int64)
    pair = Paired(
        a, b, (slice(0, 1200), slice(1200, 2400)), slice(2400, 2800), slice(2800, N), ids, np.arange(N) // 50, ids
    )  # fmt: skip
    return pair, Rotation(matrix, mean_a, mean_b, a[fit].double().std(0), b[fit].double().std(0))


@pytest.fixture(scope="module")
def trained() -> dict[str, Dictionary]:
    pair, _ = paired()
    options = {"expansion": 4, "steps": 800, "batch": 128, "l1": 1e-3}
    states = {"own": (pair.a, 0), "shared": (pair.b, 0), "independent": (pair.b, 1)}
    return {name: train(x[pair.fit], Settings(seed=seed, **options)) for name, (x, seed) in states.items()}  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def found(trained: dict[str, Dictionary]) -> Found:
    pair, rotation = paired()
    others = [trained["shared"], trained["independent"]]
    figures = transfer(pair, rotation, trained["own"], others, affine_to_a=rotation.matrix.T, seed=0)
    by_name = {(one.metric, one.control): one for one in figures}
    assert len(by_name) == len(figures)
    return by_name


def test_the_true_rotation_is_home(found: Found) -> None:
    for metric in ("sae_ev", "l0", "dead_share", "sae_ev_scalar"):
        assert found[metric, "rotated"].value == pytest.approx(found[metric, "self"].value, abs=1e-4)
    assert found["sae_ev", "affine"].value == pytest.approx(found["sae_ev", "self"].value, abs=1e-6)
    assert found["firing_correlation", "rotated"].value == pytest.approx(1, abs=1e-6)
    assert found["firing_correlation", "affine"].value == pytest.approx(1, abs=1e-6)
    # Paired, so what is the same has no error.
    assert found["sae_ev", "self"].std_error == pytest.approx(0, abs=1e-5)


def test_what_else_reconstructs(found: Found) -> None:
    ev = {control: one.value for (metric, control), one in found.items() if metric == "sae_ev"}
    assert set(ev) == {
        "self", "as_is", "mean_shift", "rotated", "affine", "random_rotation", "gaussian", "gaussian_b",
    }  # fmt: skip
    for control in ("as_is", "mean_shift", "random_rotation", "gaussian", "gaussian_b"):
        assert ev[control] < ev["rotated"]
    assert ev["as_is"] < ev["mean_shift"]
    # The finding that makes the control worth its place: second moments alone come close.
    assert ev["gaussian_b"] > 0.8 * ev["rotated"] > 0.5
    assert abs(ev["gaussian"] - ev["gaussian_b"]) < 0.05


def test_firing_needs_the_pairs(found: Found) -> None:
    for control in ("shuffled", "as_is", "mean_shift", "random_rotation"):
        one = found["firing_correlation", control]
        assert abs(one.value) < 0.2 and one.std_error is not None and one.std_error > 0
    shuffled = found["firing_correlation", "shuffled"]
    assert abs(shuffled.value) < 0.02 and shuffled.seed == 0
    assert shuffled.n <= round(found["live_share", "self"].value * 4 * WIDTH)


def test_decoders_say_more_of_seeds_than_of_models(found: Found) -> None:
    cosine = {control: one.value for (metric, control), one in found.items() if metric == "decoder_cosine"}
    chance = cosine["random"]
    assert cosine["untrained_shared"] == pytest.approx(1, abs=1e-6)
    assert cosine["shared_seed"] > 0.85
    for control in (
        "independent_seed",
        "untrained_independent",
        "shared_seed_rotated",
        "independent_seed_rotated",
    ):
        assert cosine[control] == pytest.approx(chance, abs=0.1)
    assert found["decoder_match_0.5", "shared_seed"].value > 0.95
    assert found["decoder_match_0.5", "random"].value < found["decoder_match_0.5", "shared_seed"].value - 0.1
    assert ("decoder_cosine", "unknown_seed") not in found
    assert found["decoder_cosine", "shared_seed"].n == 4 * WIDTH


def test_splits_and_counts(found: Found) -> None:
    for (metric, _), one in found.items():
        fitted = metric.startswith("decoder") or metric == "live_share"
        assert one.split == ("in_sample" if fitted else "held_out")
        assert np.isfinite(one.value) and one.n > 0
    assert found["sae_ev", "rotated"].n == 1200


def test_explained_variance_by_hand(trained: dict[str, Dictionary], found: Found) -> None:
    pair, rotation = paired()
    own = trained["own"]
    x = pair.b[pair.test].double() - rotation.mean_b + rotation.mean_a
    error = (own.decode(own.encode(x)) - x).square().sum()
    expected = 1 - error / (x - x.mean(0)).square().sum()
    assert found["sae_ev", "mean_shift"].value == pytest.approx(float(expected), abs=1e-6)
    x = pair.b[pair.test].double()
    error = (own.decode(own.encode(x)) - x).square().mean()
    assert found["sae_ev_scalar", "as_is"].value == pytest.approx(
        float(1 - error / x.var(correction=0)), abs=1e-6
    )
    f, g = (own.encode(one[pair.test]).numpy() for one in (pair.a, pair.b))
    home = (own.encode(pair.a[pair.fit]) > 0).sum(0).numpy()
    live = (home >= 10) & (home < 2400) & (f.std(0) > 0) & (g.std(0) > 0)
    r = [np.corrcoef(f[:, j], g[:, j])[0, 1] for j in np.flatnonzero(live)]
    as_is = found["firing_correlation", "as_is"]
    assert as_is.n == live.sum() and as_is.value == pytest.approx(np.mean(r), abs=1e-4)


def test_again_and_in_small_blocks(
    trained: dict[str, Dictionary], found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, rotation = paired()
    others = [trained["shared"], trained["independent"]]
    again = transfer(pair, rotation, trained["own"], others, affine_to_a=rotation.matrix.T, seed=0)
    assert again == list(found.values())
    monkeypatch.setattr(trainer, "BLOCK_BYTES", 4 * 4 * WIDTH * 500)
    blocks = transfer(pair, rotation, trained["own"], others, affine_to_a=rotation.matrix.T, seed=0)
    for one, whole in zip(blocks, again, strict=True):
        assert one.value == pytest.approx(whole.value, abs=0.01 if "gaussian" in one.control else 1e-5)


def test_seeds_that_nobody_knows(trained: dict[str, Dictionary]) -> None:
    pair, rotation = paired()
    foreign = replace(trained["shared"], params={})
    nameless = replace(trained["independent"], seed=None)
    figures = transfer(pair, rotation, trained["own"], [foreign, nameless], affine_to_a=None, seed=3)
    controls = {one.control for one in figures if one.metric == "decoder_cosine"}
    assert controls == {"unknown_seed", "unknown_seed_rotated", "random"}
    assert not any(one.control == "affine" for one in figures)
    assert not [
        one
        for one in transfer(pair, rotation, foreign, [], affine_to_a=None, seed=3)
        if "decoder" in one.metric
    ]


def test_dead_and_constant_features(trained: dict[str, Dictionary]) -> None:
    pair, rotation = paired()
    own = trained["own"]
    n = own.n_features
    b_enc, w_dec = own.b_enc.clone(), own.w_dec.clone()
    b_enc[:10], b_enc[10:15], w_dec[0] = -1e6, 1e3, 0
    changed = replace(own, b_enc=b_enc, w_dec=w_dec)
    figures = transfer(pair, rotation, changed, [own], affine_to_a=None, seed=0)
    by_name = {(one.metric, one.control): one for one in figures}
    assert by_name["live_share", "self"].value <= (n - 15) / n
    assert by_name["dead_share", "rotated"].value >= 10 / n
    assert by_name["firing_correlation", "rotated"].n <= n - 15
    # A row of zeros has no direction.
    assert by_name["decoder_cosine", "shared_seed"].n == n - 1
    assert by_name["decoder_cosine", "shared_seed"].value == pytest.approx(1, abs=1e-6)
    assert by_name["decoder_cosine_live", "shared_seed"].n == round(by_name["live_share", "self"].value * n)


def test_few_rows_and_constant_states(trained: dict[str, Dictionary]) -> None:
    pair, rotation = paired()
    short = replace(pair, halves=(slice(0, 2), slice(2, 5)), validation=slice(5, 6), test=slice(6, 7))
    figures = transfer(short, rotation, trained["own"], [], affine_to_a=None, seed=0)
    # One row has no variance, and five are too few for any feature to be live.
    assert {one.metric for one in figures} == {"l0", "dead_share", "sae_ev_scalar", "live_share"}
    with pytest.raises(InvalidInput, match="no tokens"):
        transfer(replace(pair, test=slice(7, 7)), rotation, trained["own"], [], affine_to_a=None, seed=0)
    with pytest.raises(InvalidInput, match="width"):
        transfer(pair, rotation, train(torch.randn(9, 5), Settings(steps=1)), [], affine_to_a=None, seed=0)
    with pytest.raises(InvalidInput, match="affine"):
        transfer(pair, rotation, trained["own"], [], affine_to_a=torch.zeros(3, 3), seed=0)


def test_largest_cosines() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-3.0, 0.0]])
    others = torch.tensor([[0.0, 0.0], [5.0, 5.0], [-1.0, 0.0]])
    found = largest_cosines(rows, others)
    assert found[0] == pytest.approx(0.5**0.5) and np.isnan(found[1]) and found[2] == pytest.approx(1)
