from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from signarium.ingest.features.controls import (
    CENTRES,
    HAAR_SEEDS,
    ControlCodes,
    Rotations,
    bases,
    clear,
    folder,
    haar,
)
from signarium.ingest.sites import Site

NAMES = ("haar:1", "haar:2", "haar:3")


def normal(n: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32))


# ---- bases ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 44, 130])
def test_a_haar_matrix_is_orthogonal_and_seeded(width: int) -> None:
    q = haar(width, 1)
    assert q.dtype == torch.float32 and q.shape == (width, width)
    assert torch.allclose(q @ q.T, torch.eye(width), atol=1e-5)
    assert torch.equal(q, haar(width, 1))
    # The one factor of its Gaussian matrix that leaves a positive diagonal.
    gaussian = np.random.default_rng([1, width]).standard_normal((width, width))
    r = q.double().T @ torch.from_numpy(gaussian)
    assert r.tril(-1).abs().max() < 1e-4 and (r.diagonal() > 0).all()
    if width > 1:
        assert not torch.allclose(q, haar(width, 2))


def test_haar_matrices_are_spread_as_they_should() -> None:
    n = 400
    q = torch.stack([haar(3, seed) for seed in range(n)]).double()
    # Over O(3): E tr = 0, E tr^2 = 1, E tr^4 = 3, E det = 0. Five standard errors each. Without the signs of R's
    # diagonal the first and the last fail, by far.
    traces = q.diagonal(dim1=1, dim2=2).sum(1)
    assert abs(traces.mean()) < 5 * math.sqrt(1 / n)
    assert abs((traces**2).mean() - 1) < 5 * math.sqrt(2 / n)
    assert abs(torch.linalg.det(q).mean()) < 5 * math.sqrt(1 / n)
    # Every entry: mean 0, and mean square 1/3 with variance 1/5 - 1/9.
    assert q.mean(0).abs().max() < 5 * math.sqrt(1 / 3 / n)
    assert ((q**2).mean(0) - 1 / 3).abs().max() < 5 * math.sqrt((1 / 5 - 1 / 9) / n)
    # Archimedes: an entry is uniform on (-1, 1). Kolmogorov and Smirnov's distance at a level of 10^-4.
    for entry in (q[:, 0, 0], q[:, 2, 2], q[:, 0, 2]):
        cdf = (torch.sort(entry).values + 1) / 2
        steps = torch.arange(n + 1) / n
        assert max((cdf - steps[:-1]).max(), (steps[1:] - cdf).max()) < 2.23 / math.sqrt(n)


@pytest.mark.parametrize("width", [7, 44, 64])
def test_rotated_codes(width: int) -> None:
    x = normal(400, width)
    # First positions of real models: some dimensions with a mean a hundred times the spread.
    x[:, ::10] += 100.0
    mean = x.double().mean(0).float()
    rotations = Rotations(width)
    found = rotations.codes(x, mean)
    assert set(found) == {(name, centre) for name in NAMES for centre in CENTRES}
    alone = rotations.codes(x, None)
    assert set(alone) == {(name, "zero") for name in NAMES}
    for (basis, centre), codes in [*found.items(), *alone.items()]:
        q = haar(width, int(basis.removeprefix("haar:"))).double().numpy()
        shifted = x.double().numpy() - (mean.double().numpy() if centre == "mean" else 0.0)
        exact = shifted @ q
        bits = np.unpackbits(codes, axis=1, count=width)
        # Of float32's 24 bits, rounding may take a few: 2^-19 of a row's length.
        sure = np.abs(exact) > 2e-6 * np.linalg.norm(x.double().numpy(), axis=1, keepdims=True)
        assert sure.mean() > 0.99
        assert np.array_equal(bits[sure], (exact > 0)[sure])
        assert codes.shape == (400, -(-width // 8))
        if width % 8:
            assert not (codes[:, -1] & ((1 << (8 - width % 8)) - 1)).any()


def test_half_types_are_rotated_in_float32() -> None:
    x, mean = normal(50, 44).bfloat16(), normal(1, 44, 1)[0]
    rotations = Rotations(44)
    whole = rotations.codes(x.float(), mean)
    for key, codes in rotations.codes(x, mean).items():
        assert np.array_equal(codes, whole[key])


def test_the_control_bases_have_names() -> None:
    assert tuple(bases()) == NAMES == tuple(f"haar:{seed}" for seed in HAAR_SEEDS)


# ---- scratch files --------------------------------------------------------------------------------

WIDTHS = {"resid_post.1": 44, "resid_post.10": 44, "k.0": 16}
N = 100


def controls(tmp_path: Path, model_id: str = "m0", n: int = N) -> ControlCodes:
    return ControlCodes(tmp_path / "c.duckdb", model_id, WIDTHS, n)


def test_codes_are_put_in_any_order(tmp_path: Path) -> None:
    mean = np.random.default_rng(1).normal(size=44)
    x = normal(N, 44)
    one = controls(tmp_path)
    site = "resid_post.10"
    assert one.missing(site) == [(0, N)]
    put: list[range] = []
    for start, stop in ((70, 80), (10, 30), (30, 31), (90, 100), (0, 4)):
        one.put(site, start, x[start:stop], mean)
        put.append(range(start, stop))
        left = [t for t in range(N) if not any(t in part for part in put)]
        gaps = one.missing(site)
        assert [t for gap in gaps for t in range(*gap)] == left
        assert all(a[1] < b[0] for a, b in pairwise(gaps))
    assert one.missing(site) == [(4, 10), (31, 70), (80, 90)]
    # A site whose name is the beginning of this one's has nothing yet.
    assert one.missing("resid_post.1") == one.missing("k.0") == [(0, N)]
    # The other two go through the model together.
    assert one.to_compute == 6 + 39 + 10 + N
    # Another process goes on, and gives some of it again.
    again = controls(tmp_path)
    for start, stop in ((80, 100), (0, 10), (25, 75)):
        again.put(site, start, x[start:stop], mean)
    assert again.missing(site) == []
    whole = Rotations(44).codes(x, torch.from_numpy(mean.astype(np.float32)))
    for basis in NAMES:
        for centre in CENTRES:
            types = one.types(site, basis, centre)
            assert (types.n, types.width) == (N, 44)
            # Products of other shapes may round otherwise: a bit of a value next to 0, here and there.
            wrong = types.bits(np.arange(N)) != np.unpackbits(whole[basis, centre], axis=1, count=44)
            assert wrong.mean() < 0.001


def test_sites_of_several_widths(tmp_path: Path) -> None:
    one = controls(tmp_path)
    parts = {site: normal(N, width, width) for site, width in WIDTHS.items()}
    for site, width in WIDTHS.items():
        one.put(site, 0, parts[site], np.zeros(width))
    assert one.to_compute == 0
    for site, width in WIDTHS.items():
        whole = Rotations(width).codes(parts[site], None)
        for basis in NAMES:
            assert np.array_equal(one.types(site, basis, "zero").codes, whole[basis, "zero"])
    files = [file for file in folder(tmp_path / "c.duckdb", "m0").iterdir() if file.stat().st_size]
    assert sum(file.stat().st_size for file in files) == one.nbytes
    assert len(files) == len(WIDTHS) * len(NAMES) * len(CENTRES)


def test_clearing_leaves_other_models_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.duckdb"
    clear(path, "m0")
    for model_id in ("m0", "m1"):
        controls(tmp_path, model_id).put("k.0", 0, normal(N, 16), np.zeros(16))
    clear(path, "m0")
    assert not folder(path, "m0").exists()
    assert controls(tmp_path).missing("k.0") == [(0, N)]
    assert controls(tmp_path, "m1").missing("k.0") == []
    assert not path.exists()


def test_what_is_missing_is_filled_by_the_model(tmp_path: Path) -> None:
    model = tiny.loaded()
    sites = [Site("embed"), Site("resid_post", 1)]
    n = tiny.VOCAB_SIZE
    one = ControlCodes(tmp_path / "c.duckdb", "m0", {site.name: 48 for site in sites}, n)
    states = tiny.capture(model, np.arange(n)[:, None].tolist(), sites)
    rows = {site.name: states[site].reshape(n, -1).float() for site in sites}
    means = {name: x.double().mean(0).numpy() for name, x in rows.items()}
    one.put("embed", 0, rows["embed"][:200], means["embed"])
    one.put("resid_post.1", 50, rows["resid_post.1"][50:120], means["resid_post.1"])
    todo, seen = one.to_compute, list[int]()
    one.fill(model, means, 64, seen.append)
    assert sum(seen) == todo and max(seen) <= 64
    assert one.to_compute == 0
    for name, x in rows.items():
        whole = Rotations(48).codes(x, torch.from_numpy(means[name].astype(np.float32)))
        for (basis, centre), codes in whole.items():
            found = one.types(name, basis, centre).bits(np.arange(n))
            assert (found != np.unpackbits(codes, axis=1, count=48)).mean() < 0.001
