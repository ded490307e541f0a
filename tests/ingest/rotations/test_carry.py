"""What a rotation carries of sign codes, on states whose rotation is planted; labels and their prototypes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from signarium.ingest.rotations.carry import code_figures, from_signs, prototype_figures
from signarium.ingest.rotations.fit import fit
from signarium.ingest.rotations.labels import Label
from signarium.ingest.stats.bases import haar
from signarium.ingest.stats.figures import Scope, clustered_error
from signarium.ingest.stats.paired import Paired

WIDTH, N, DOCUMENTS = 64, 4000, 80
KINDS = 6


def planted(seed: int = 11, noise: float = 0.0, shape: str = "normal") -> tuple[Paired, list[Label]]:
    """States around one of `KINDS` centres each, and in B the same ones turned, with a mean of their own."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randint(KINDS, (N,), generator=generator)
    centres = torch.randn(KINDS, WIDTH, generator=generator, dtype=torch.float64)
    a = centres[kinds] + torch.randn(N, WIDTH, generator=generator, dtype=torch.float64)
    if shape == "normal":
        a = torch.randn(N, WIDTH, generator=generator, dtype=torch.float64)
    b = a @ haar(WIDTH, seed).double() + 0.5
    b = b + noise * torch.randn(N, WIDTH, generator=generator, dtype=torch.float64)
    documents = np.repeat(np.arange(DOCUMENTS), N // DOCUMENTS)
    paired = Paired(
        a, b, (slice(0, 1200), slice(1200, 2400)), slice(2400, 2800), slice(2800, N), kinds.numpy(), documents,
        np.tile(np.arange(N // DOCUMENTS), DOCUMENTS),
    )  # fmt: skip
    rows = np.arange(N)
    labels = [
        Label(str(k), (kinds.numpy() == k) & (rows < 2400), (kinds.numpy() == k) & (rows >= 2800), kinds.numpy() == k)
        for k in range(KINDS)
    ]  # fmt: skip
    return paired, labels


def values(figures: list[object], metric: str) -> dict[str, float]:
    return {one.control: one.value for one in figures if one.metric == metric}  # type: ignore[attr-defined]


def test_bits_of_normal_states() -> None:
    """Through a Haar matrix a sum of many signs is as good as normal: a bit is kept with probability
    1 - arccos(sqrt(2 / pi)) / pi."""
    paired, _ = planted()
    figures = code_figures(paired, fit(paired, 0), Scope("s", "rotation", "A", 0))
    codes = values(figures, "code_agreement")
    expected = 1 - math.acos(math.sqrt(2 / math.pi)) / math.pi
    assert codes["none"] == 1
    assert codes["signs_alone"] == pytest.approx(expected, abs=0.015)
    assert codes["plus_minus_one"] == pytest.approx(expected, abs=0.015)
    for control in ("as_is", "mean_shift", "shuffled", "haar:1", "haar:2"):
        assert codes[control] == pytest.approx(0.5, abs=0.03), control
    found = values(figures, "retrieval_top1")
    assert found["none"] == 1
    assert found["shuffled"] < 0.02
    own = np.bincount(paired.token_ids[paired.test])[paired.token_ids[paired.test]]
    assert found["token_identity"] == pytest.approx(float((1 / own).mean()), rel=0.05)
    zero = values(figures, "code_agreement_zero")
    assert zero["none"] == 1
    # B's mean is half a standard deviation: Phi(0.5).
    assert zero["mean_only"] == pytest.approx(0.691, abs=0.01)
    errors = {one.control: one.std_error for one in figures if one.metric == "code_agreement"}
    assert errors["none"] == 0
    assert 0 < errors["signs_alone"] < 0.01


def test_prototypes_read_nothing_before_the_rotation_and_all_after_it() -> None:
    paired, labels = planted(shape="centres")
    figures = prototype_figures(paired, fit(paired, 0), labels, Scope("s", "rotation", "A", 0))
    auc = values(figures, "prototype_auc")
    assert auc["source"] > 0.9
    assert auc["none"] == pytest.approx(auc["source"], abs=1e-12)
    assert "rotated" not in auc
    assert auc["own"] == pytest.approx(auc["source"], abs=0.05)
    assert auc["signs_alone"] > 0.8
    for control in ("mean_shift", "as_is", "shuffled", "haar:1", "haar:2", "haar:3"):
        assert abs(auc[control] - 0.5) < 0.25 < auc["none"] - 0.5, control
    # Normal noise has no axes of its own.
    basis = values(figures, "prototype_basis")
    assert basis["none"] == auc["source"]
    for control in ("haar:1", "haar:2", "haar:3"):
        assert basis[control] == pytest.approx(basis["none"], abs=0.05)


def test_axes_that_matter_are_seen() -> None:
    """Where kinds differ in single dimensions, a random basis spreads each over all of them."""
    generator = torch.Generator().manual_seed(1)
    paired, labels = planted(shape="centres")
    sparse = torch.zeros(KINDS, WIDTH, dtype=torch.float64)
    for k in range(KINDS):
        sparse[k, 3 * k : 3 * k + 3] = 3.0
    kinds = torch.from_numpy(paired.token_ids)
    a = sparse[kinds] + torch.randn(N, WIDTH, generator=generator, dtype=torch.float64)
    paired = Paired(
        a, a @ haar(WIDTH, 11).double(), paired.halves, paired.validation, paired.test, paired.token_ids,
        paired.documents, paired.positions,
    )  # fmt: skip
    basis = values(
        prototype_figures(paired, fit(paired, 0), labels, Scope("s", "rotation", "A", 0)), "prototype_basis"
    )
    assert basis["none"] > max(basis[f"haar:{k}"] for k in (1, 2, 3)) + 0.05


def test_no_labels_no_figures() -> None:
    paired, _ = planted()
    assert prototype_figures(paired, fit(paired, 0), [], Scope("s", "rotation", "A", 0)) == []


def test_a_sign_says_the_mean_of_its_side() -> None:
    mean, std, about = (torch.tensor(x, dtype=torch.float64) for x in ([0.0, 2.0], [1.0, 0.0], [0.0, 0.0]))
    found = from_signs(mean, std, about)(torch.tensor([[5.0, 2.0], [-5.0, 2.0]], dtype=torch.float64))
    half = math.sqrt(2 / math.pi)
    assert found.numpy() == pytest.approx(np.array([[half, 2.0], [-half, 2.0]]))


def test_errors_over_documents() -> None:
    """With one row a document they are the usual ones; rows that repeat in a document add nothing."""
    rng = np.random.default_rng(0)
    some = rng.standard_normal(50)
    alone = clustered_error(some, np.arange(50))
    assert alone == pytest.approx(some.std(ddof=1) / math.sqrt(50))
    assert clustered_error(np.repeat(some, 7), np.repeat(np.arange(50), 7)) == pytest.approx(alone)
    assert clustered_error(some, np.zeros(50)) is None
