"""Pairs of exchanged types: consistent, and as good as unrelated models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from signarium.ingest.rotations.chance import chance, exchanged, with_types_exchanged
from signarium.ingest.rotations.explained import explained
from signarium.ingest.rotations.fit import fit
from signarium.ingest.stats.bases import haar
from signarium.ingest.stats.paired import Paired, n_rows

WIDTH, N = 24, 6000


def words(n_types: int, related: bool, seed: int = 0) -> Paired:
    """Each type has a vector of its own in either model, with noise around it; the most frequent ones are few."""
    rng = np.random.default_rng(seed)
    shares = 1 / np.arange(1, n_types + 1)
    ids = rng.choice(n_types, N, p=shares / shares.sum())
    first = rng.standard_normal((n_types, WIDTH))
    second = first @ haar(WIDTH, 11).double().numpy() if related else rng.standard_normal((n_types, WIDTH))
    noise = rng.standard_normal((N, WIDTH)) / 2
    a = first[ids] + noise
    b = second[ids] + (
        noise @ haar(WIDTH, 11).double().numpy() if related else rng.standard_normal((N, WIDTH)) / 2
    )
    return Paired(
        torch.from_numpy(a), torch.from_numpy(b), (slice(0, 1800), slice(1800, 3600)), slice(3600, 4200), slice(4200, N), ids,
        np.repeat(np.arange(60), N // 60), np.tile(np.arange(N // 60), 60),
    )  # fmt: skip


@given(st.lists(st.integers(0, 40), min_size=1, max_size=200), st.integers(0, 5))
def test_every_type_goes_to_another(ids: list[int], seed: int) -> None:
    there = exchanged(np.array(ids), np.random.default_rng(seed))
    types = set(ids)
    if len(types) < 2:
        assert there == {}
        return
    assert set(there) == set(there.values()) == types
    assert all(a != b for a, b in there.items())


def test_rows_meet_their_partner_in_their_own_part() -> None:
    paired = words(50, related=True)
    found = with_types_exchanged(paired, 0)
    assert found is not None
    assert found.rows is not None
    rows_a, rows_b = found.rows
    partner = {}
    for part, own in zip((*found.halves, found.validation, found.test),
                         (*paired.halves, paired.validation, paired.test), strict=True):  # fmt: skip
        for rows in (rows_a[part], rows_b[part]):
            assert ((rows >= own.start) & (rows < own.stop)).all()
        for a, b in zip(paired.token_ids[rows_a[part]], paired.token_ids[rows_b[part]], strict=True):
            assert partner.setdefault(a, b) == b != a
    for some, a, b in found.blocks(found.test):
        assert torch.equal(a, paired.a[torch.from_numpy(rows_a[some])])
        assert torch.equal(b, paired.b[torch.from_numpy(rows_b[some])])
    assert n_rows(found.fit) > 0.9 * n_rows(paired.fit)


@pytest.mark.parametrize("n_types", [10, 300])
def test_unrelated_models_are_at_chance(n_types: int) -> None:
    """Far above shuffled pairs where types are few, and no further than where types are exchanged."""
    unrelated = words(n_types, related=False)
    ev = explained(unrelated, fit(unrelated, 0))
    value, error, n = chance(unrelated, 0) or (np.nan, np.nan, 0)
    assert n > 1000
    assert error < 0.1
    assert ev.value["rotation"] == pytest.approx(value, abs=0.25)
    if n_types == 10:
        assert min(ev.value["rotation"], value) > ev.value["shuffled"] + 0.5


def test_related_models_are_not() -> None:
    paired = words(300, related=True)
    ev = explained(paired, fit(paired, 0))
    value, _, _ = chance(paired, 0) or (np.nan, 0, 0)
    assert ev.value["rotation"] > 0.999
    assert value < 0.2


def test_one_type_alone() -> None:
    paired = words(1, related=True)
    assert chance(paired, 0) is None


def test_the_error_is_a_jackknife_by_hand() -> None:
    """Leaving out one document at a time, mean and all."""
    paired = words(30, related=True)
    found = with_types_exchanged(paired, 3)
    value, error, _ = chance(paired, 3) or (0, 0, 0)
    assert found is not None
    _, a, b = next(found.blocks(found.fit))
    mean_a, mean_b = a.mean(0), b.mean(0)
    u, _, vh = torch.linalg.svd((a - mean_a).T @ (b - mean_b))
    _, x, y = next(found.blocks(found.test))
    missed = (y - mean_b - (x - mean_a) @ (u @ vh)).square().sum(1)
    documents = found.documents[found.test]

    def ev(kept: torch.Tensor) -> float:
        some = y[kept]
        return float(1 - missed[kept].sum() / (some - some.mean(0)).square().sum())

    assert value == pytest.approx(ev(torch.ones(len(y), dtype=torch.bool)))
    each = np.array([ev(torch.from_numpy(documents != one)) for one in np.unique(documents)])
    n = len(each)
    assert error == pytest.approx(np.sqrt((n - 1) / n * ((each - each.mean()) ** 2).sum()))
