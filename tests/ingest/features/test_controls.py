from __future__ import annotations

import errno
import math
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray

from signarium.catalog.errors import DiskFull
from signarium.ingest.features.controls import CENTRES, ControlCodes, Moments, Rotations, clear, folder
from signarium.ingest.model.sites import Site
from signarium.ingest.stats.bases import HAAR_SEEDS, SCALED_SEED, bases, haar

HAAR = ("haar:1", "haar:2", "haar:3")
NAMES = (*HAAR, "scaled:1")


def normal(n: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32))


def moments_of(x: torch.Tensor) -> Moments:
    wide = x.double()
    return Moments(wide.mean(0).numpy(), wide.std(0, correction=0).numpy())


def plain(width: int) -> Moments:
    """Under which the mean is zero and nothing is scaled."""
    return Moments(np.zeros(width), np.ones(width))


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


def projections(x: torch.Tensor, moments: Moments, basis: str, centre: str) -> NDArray[np.float64]:
    """The definition, in float64: the values whose signs are the codes, and, as a last column, how long a row is."""
    kind, seed = basis.split(":")
    wide = x.double().numpy()
    with np.errstate(divide="ignore"):
        inverse = np.where(moments.std > 0, 1 / moments.std, 0.0)
    scale = inverse if kind == "scaled" else np.ones(len(inverse))
    shifted = wide - moments.mean if centre == "mean" else wide
    turned = (shifted * scale) @ haar(x.shape[1], int(seed)).double().numpy()
    return np.c_[turned, np.linalg.norm(wide * scale, axis=1)]


@pytest.mark.parametrize("width", [7, 44, 64])
def test_rotated_codes(width: int) -> None:
    x = normal(400, width)
    # First positions of real models: some dimensions with a mean a hundred times the spread; and dimensions that
    # differ a thousandfold in size.
    x[:, ::10] += 100.0
    x *= torch.logspace(-1.5, 1.5, width)[torch.from_numpy(np.random.default_rng(1).permutation(width))]
    moments = moments_of(x)
    found = Rotations(width, moments).codes(x)
    assert set(found) == {(name, centre) for name in NAMES for centre in CENTRES}
    alone = Rotations(width, None).codes(x)
    assert set(alone) == {(name, "zero") for name in HAAR}
    for (basis, centre), codes in [*found.items(), *alone.items()]:
        told = projections(x, moments, basis, centre)
        exact, length = told[:, :-1], told[:, -1:]
        bits = np.unpackbits(codes, axis=1, count=width)
        # Of float32's 24 bits, rounding may take a few: 2^-19 of a row's length.
        sure = np.abs(exact) > 2e-6 * length
        assert sure.mean() > 0.99
        assert np.array_equal(bits[sure], (exact > 0)[sure])
        assert codes.shape == (400, -(-width // 8))
        if width % 8:
            assert not (codes[:, -1] & ((1 << (8 - width % 8)) - 1)).any()


def test_half_types_are_rotated_in_float32() -> None:
    x = normal(50, 44).bfloat16()
    rotations = Rotations(44, moments_of(x))
    whole = rotations.codes(x.float())
    for key, codes in rotations.codes(x).items():
        assert np.array_equal(codes, whole[key])


def test_the_size_of_a_dimension_does_not_count_in_the_scaled_basis() -> None:
    x = normal(300, 44) + normal(1, 44, 1)
    moments = moments_of(x)
    # Powers of two, so that nothing is rounded.
    factors = np.ldexp(1.0, np.random.default_rng(2).integers(-9, 10, 44))
    larger = Moments(moments.mean * factors, moments.std * factors)
    before = Rotations(44, moments).codes(x)
    after = Rotations(44, larger).codes(x * torch.from_numpy(factors).float())
    for (basis, centre), codes in before.items():
        same = np.array_equal(codes, after[basis, centre])
        assert same == basis.startswith("scaled")


def test_a_dimension_that_never_moves_says_nothing_in_the_scaled_basis() -> None:
    x = normal(300, 44)
    x[:, [3, 20]] = 7.0
    moments = moments_of(x)
    assert np.flatnonzero(moments.std == 0).tolist() == [3, 20]
    other = x.clone()
    other[:, 3], other[:, 20] = 1e6, -0.25
    before, after = (Rotations(44, moments_of(one)).codes(one) for one in (x, other))
    for centre in CENTRES:
        assert np.array_equal(before["scaled:1", centre], after["scaled:1", centre])
        # About half of the bits are 1: the other dimensions go on as before.
        assert 0.4 < np.unpackbits(before["scaled:1", centre], axis=1, count=44).mean() < 0.6
    # Not a dimension that moves: no bit, as of nothing.
    still = Rotations(9, Moments(np.full(9, 2.0), np.zeros(9))).codes(torch.full((5, 9), 2.0))
    assert not still["scaled:1", "zero"].any() and not still["scaled:1", "mean"].any()


def test_the_control_bases_have_names() -> None:
    assert tuple(bases()) == NAMES
    assert (*(f"haar:{seed}" for seed in HAAR_SEEDS), f"scaled:{SCALED_SEED}") == NAMES


# ---- scratch files --------------------------------------------------------------------------------

WIDTHS = {"resid_post.1": 44, "resid_post.10": 44, "k.0": 16}
N = 100


def controls(tmp_path: Path, model_id: str = "m0", n: int = N) -> ControlCodes:
    return ControlCodes(tmp_path / "c.duckdb", model_id, WIDTHS, n)


def test_codes_are_put_in_any_order(tmp_path: Path) -> None:
    x = normal(N, 44) + normal(1, 44, 1)
    moments = moments_of(x)
    one = controls(tmp_path)
    site = "resid_post.10"
    assert one.missing(site) == [(0, N)]
    put: list[range] = []
    for start, stop in ((70, 80), (10, 30), (30, 31), (90, 100), (0, 4)):
        one.put(site, start, x[start:stop], moments)
        put.append(range(start, stop))
        left = [t for t in range(N) if not any(t in part for part in put)]
        gaps = one.missing(site)
        assert [t for gap in gaps for t in range(*gap)] == left
        assert all(a[1] < b[0] for a, b in pairwise(gaps))
    assert one.missing(site) == [(4, 10), (31, 70), (80, 90)]
    # A site whose name is the beginning of this one's has nothing yet.
    assert one.missing("resid_post.1") == one.missing("k.0") == [(0, N)]
    # The other two go through the model together.
    assert one.to_compute(list(one.widths)) == 6 + 39 + 10 + N
    # Another process goes on, and gives some of it again.
    again = controls(tmp_path)
    for start, stop in ((80, 100), (0, 10), (25, 75)):
        again.put(site, start, x[start:stop], moments)
    assert again.missing(site) == []
    whole = Rotations(44, moments).codes(x)
    for basis in NAMES:
        for centre in CENTRES:
            types = one.types(site, basis, centre)
            assert (types.n, types.width) == (N, 44)
            # Products of other shapes may round otherwise: a bit of a value next to 0, here and there.
            wrong = types.bits(np.arange(N)) != np.unpackbits(whole[basis, centre], axis=1, count=44)
            assert wrong.mean() < 0.001


def test_sites_of_several_widths(tmp_path: Path) -> None:
    one = controls(tmp_path)
    # The first two are of one width, and far apart in mean and spread.
    parts = {site: (i + 1) * normal(N, width, i) + 3 * i for i, (site, width) in enumerate(WIDTHS.items())}
    moments = {site: moments_of(x) for site, x in parts.items()}
    for start in range(0, N, 50):
        for site, x in parts.items():
            one.put(site, start, x[start : start + 50], moments[site])
    assert one.to_compute(list(one.widths)) == 0
    for site, width in WIDTHS.items():
        rotations = Rotations(width, moments[site])
        halves = [rotations.codes(parts[site][start : start + 50]) for start in range(0, N, 50)]
        for basis in NAMES:
            for centre in CENTRES:
                whole = np.concatenate([codes[basis, centre] for codes in halves])
                assert np.array_equal(one.types(site, basis, centre).codes, whole)
    files = [file for file in folder(tmp_path / "c.duckdb", "m0").iterdir() if file.stat().st_size]
    assert sum(file.stat().st_size for file in files) == one.nbytes
    assert len(files) == len(WIDTHS) * len(NAMES) * len(CENTRES)


def test_clearing_leaves_other_models_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.duckdb"
    clear(path, "m0")
    for model_id in ("m0", "m1"):
        controls(tmp_path, model_id).put("k.0", 0, normal(N, 16), plain(16))
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
    moments = {name: moments_of(x) for name, x in rows.items()}
    one.put("embed", 0, rows["embed"][:200], moments["embed"])
    one.put("resid_post.1", 50, rows["resid_post.1"][50:120], moments["resid_post.1"])
    todo, seen = one.to_compute(list(one.widths)), list[int]()
    one.fill(model, moments, list(one.widths), 64, seen.append)
    assert sum(seen) == todo and max(seen) <= 64
    assert one.to_compute(list(one.widths)) == 0
    for name, x in rows.items():
        whole = Rotations(48, moments[name]).codes(x)
        assert len(whole) == len(NAMES) * len(CENTRES)
        for (basis, centre), codes in whole.items():
            found = one.types(name, basis, centre).bits(np.arange(n))
            assert (found != np.unpackbits(codes, axis=1, count=48)).mean() < 0.001


# ---- a disk that takes a part ---------------------------------------------------------------------


def test_writes_that_take_a_part_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(N, 44)
    moments, whole_write, calls = moments_of(x), os.pwrite, 0

    def half(handle: int, data: bytes, at: int) -> int:
        nonlocal calls
        calls += 1
        return whole_write(handle, data[: max(1, len(data) // 2)], at)

    undisturbed, short = controls(tmp_path, "m0"), controls(tmp_path, "m1")
    undisturbed.put("resid_post.1", 0, x, moments)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", half)
        for start in (60, 0):
            short.put("resid_post.1", start, x[start : start + 60], moments)
    assert calls > 2 * len(NAMES) * len(CENTRES)
    assert short.missing("resid_post.1") == []
    for start in (0, 60):
        again = Rotations(44, moments).codes(x[start : start + 60])
        for (basis, centre), codes in again.items():
            assert np.array_equal(
                short.types("resid_post.1", basis, centre).codes[start : start + len(codes)], codes
            )
    files = [{one.name: one.stat().st_size for one in each.folder.iterdir()} for each in (undisturbed, short)]
    assert all(size == files[1][name] for name, size in files[0].items() if size)


@pytest.mark.parametrize("room", [0, 1, 599, 600, 601, 4799])
def test_a_full_disk_is_told_and_what_did_not_fit_is_still_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """Eight files of 600 bytes, and room for less than that; like a kernel, it takes what fits, then refuses."""
    x = normal(N, 44)
    moments, whole_write, left = moments_of(x), os.pwrite, room

    def small(handle: int, data: bytes, at: int) -> int:
        nonlocal left
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = whole_write(handle, data[:left], at)
        left -= written
        return written

    one = controls(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", small)
        with pytest.raises(DiskFull, match="filled up"):
            one.put("resid_post.1", 0, x, moments)
    assert left == 0
    assert controls(tmp_path).missing("resid_post.1") == [(0, N)]
    # With room again, another process does it all.
    again = controls(tmp_path)
    again.put("resid_post.1", 0, x, moments)
    assert again.missing("resid_post.1") == []
    for (basis, centre), codes in Rotations(44, moments).codes(x).items():
        assert np.array_equal(again.types("resid_post.1", basis, centre).codes, codes)
