from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_pairs import normal, orthogonal, paired

from signarium.catalog.errors import InvalidInput
from signarium.ingest.rotations import fit as fitting
from signarium.ingest.rotations.fit import fit, procrustes, ridge_map, shuffled_rows
from signarium.ingest.stats import paired as pairing

WIDTH = 16


def turned(n=4000, width=WIDTH, noise=0.0, scale=1.0, seed=0):
    """States of A about a mean far from 0, and B: A turned about its mean, moved and scaled, with noise."""
    a = normal(n, width, seed) + 3
    turn = orthogonal(width, seed + 1)
    b = scale * (a - 3) @ turn - 5 + noise * normal(n, width, seed + 2)
    return paired(a, b), turn


def tensors(fitted):
    r = fitted.rotation
    found = [
        r.matrix,
        r.mean_a,
        r.mean_b,
        r.std_a,
        r.std_b,
        fitted.affine,
        fitted.shuffled,
        fitted.components,
    ]
    return found + list(fitted.permutation or ())


def test_a_planted_rotation_is_found_exactly():
    pair, turn = turned()
    fitted = fit(pair, 0)
    r = fitted.rotation
    assert torch.linalg.norm(r.matrix - turn) < 1e-10
    rows = pair.fit
    assert torch.allclose(r.mean_a, pair.a[rows].mean(0)) and torch.allclose(r.mean_b, pair.b[rows].mean(0))
    assert torch.allclose(r.std_a, pair.a[rows].std(0, correction=0))
    assert torch.allclose(r.std_b, pair.b[rows].std(0, correction=0))
    assert torch.allclose(r.to_b(pair.a), pair.b) and torch.allclose(r.to_a(pair.b), pair.a)
    assert fitted.scale == pytest.approx(1) and fitted.rank_warning is None
    assert fitted.halves_agreement == pytest.approx(1)
    # Of random rotations the trace has variance 1, so this is 0 to within 1 / WIDTH; five of these here.
    assert abs(fitted.halves_agreement_shuffled) < 5 / WIDTH
    # Isotropic, and estimated from 2400 rows.
    assert WIDTH - 1 < fitted.effective_rank_a <= WIDTH
    assert fitted.effective_rank_b == pytest.approx(fitted.effective_rank_a)


def test_a_planted_rotation_is_found_in_noise_and_in_float32():
    """The polar factor's error is about noise sqrt(width / 2n) = 6e-4 of its size."""
    pair, turn = turned(noise=0.01)
    narrow = dataclasses.replace(pair, a=pair.a.float(), b=pair.b.float())
    for one in (pair, narrow):
        matrix = fit(one, 0).rotation.matrix
        assert matrix.dtype == torch.float64
        assert torch.linalg.norm(matrix - turn) / torch.linalg.norm(turn) < 1e-3
        assert torch.linalg.norm(matrix.T @ matrix - torch.eye(WIDTH)) < 1e-12


@pytest.mark.parametrize("scale", [0.01, 2.5])
def test_a_planted_scale(scale):
    pair, turn = turned(scale=scale)
    fitted = fit(pair, 0)
    assert fitted.scale == pytest.approx(scale)
    assert torch.linalg.norm(fitted.rotation.matrix - turn) < 1e-10
    assert torch.allclose(fitted.affine, scale * turn, atol=1e-6)


def test_a_planted_signed_permutation():
    generator = np.random.default_rng(0)
    columns = torch.from_numpy(generator.permutation(WIDTH))
    signs = torch.from_numpy(generator.choice([-1.0, 1.0], WIDTH))
    a = normal(1000, WIDTH, 0) * torch.arange(1, WIDTH + 1)
    b = a[:, columns] * signs + 0.3 * normal(1000, WIDTH, 1)
    found = fit(paired(a, b), 0).permutation
    assert torch.equal(found[0], columns) and torch.equal(found[1], signs)


def test_a_dead_dimension_has_a_place_in_the_permutation():
    a = normal(1000, 4, 0)
    a[:, 2] = 7
    columns, signs = fit(paired(a, a.clone()), 0).permutation
    assert columns.tolist() == [0, 1, 2, 3] and signs.tolist() == [1, 1, 1, 1]


def test_no_permutation_is_sought_where_it_takes_too_long(monkeypatch):
    monkeypatch.setattr(fitting, "MOST_ASSIGNED", WIDTH - 1)
    assert fit(turned(400)[0], 0).permutation is None


def test_procrustes_is_the_best_orthogonal_map():
    a, b = normal(100, 5, 0), normal(100, 5, 1)
    best, values = procrustes(a.T @ b)
    error = torch.linalg.norm(a @ best - b)
    others = [torch.linalg.norm(a @ orthogonal(5, seed) - b) for seed in range(2, 200)]
    assert error < min(others)
    near = [best @ torch.matrix_exp(0.01 * (k - k.T)) for k in (normal(5, 5, seed) for seed in range(50))]
    assert error < min(torch.linalg.norm(a @ one - b) for one in near)
    assert torch.allclose(error**2, a.square().sum() + b.square().sum() - 2 * values.sum())


@given(seed=st.integers(0, 999), width=st.integers(1, 12), n=st.integers(30, 300), noise=st.floats(0, 3))
@settings(max_examples=examples(25))
def test_properties_of_the_fit(seed, width, n, noise):
    a = normal(n, width, seed)
    b = a @ orthogonal(width, seed + 1) + noise * normal(n, width, seed + 2)
    pair = paired(a, b, per_document=3)
    fitted = fit(pair, seed)
    matrix = fitted.rotation.matrix
    eye = torch.eye(width, dtype=torch.float64)
    for one in (matrix, fitted.shuffled, fitted.components):
        assert torch.allclose(one.T @ one, eye, atol=1e-10)
    assert torch.allclose(fit(pair.swapped(), seed).rotation.matrix, matrix.T, atol=1e-8)
    assert sorted(fitted.permutation[0].tolist()) == list(range(width))
    assert 1 - 1e-9 <= fitted.effective_rank_a <= width + 1e-9
    assert -1 - 1e-9 <= fitted.halves_agreement <= 1 + 1e-9
    variances = ((pair.b[pair.fit] - fitted.rotation.mean_b) @ fitted.components).square().sum(0)
    assert torch.all(variances.diff() <= 1e-9 * variances[0])


def test_ridge_is_the_textbook_solution_and_the_best_of_the_grid_on_the_validation_rows():
    pair, _ = turned(400, noise=2.0)
    fitted = fit(pair, 0)
    a, b = pair.a - fitted.rotation.mean_a, pair.b - fitted.rotation.mean_b
    rows, held_out = pair.fit, pair.validation
    gram = a[rows].T @ a[rows]
    errors, maps = [], []
    for share in fitting.RIDGES:
        strength = share * torch.diagonal(gram).mean()
        maps.append(torch.linalg.solve(gram + strength * torch.eye(WIDTH), a[rows].T @ b[rows]))
        errors.append(float((b[held_out] - a[held_out] @ maps[-1]).square().sum()))
    best = int(np.argmin(errors))
    # Noise of twice the signal wants some strength, and not the most.
    assert 0 < best < len(errors) - 1
    assert fitted.ridge == fitting.RIDGES[best]
    assert torch.allclose(fitted.affine, maps[best])
    alone, ridge = ridge_map(pair)
    # `fit` sums its halves apart, so the last digits differ.
    assert torch.allclose(alone, fitted.affine) and ridge == fitted.ridge


def test_ridge_map_backwards():
    pair, _ = turned(noise=0.01)
    forth, back = ridge_map(pair)[0], ridge_map(pair.swapped())[0]
    assert torch.allclose(forth @ back, torch.eye(WIDTH, dtype=torch.float64), atol=1e-2)


def test_what_is_held_out_is_held_out():
    pair, _ = turned(400, noise=1.0)
    before = fit(pair, 0)
    other_test = dataclasses.replace(pair, a=pair.a.clone(), b=pair.b.clone())
    other_test.a[pair.test], other_test.b[pair.test] = 100 * normal(80, WIDTH, 8), normal(80, WIDTH, 9)
    after = fit(other_test, 0)
    assert all(torch.equal(one, other) for one, other in zip(tensors(before), tensors(after), strict=True))
    for field in ("scale", "ridge", "halves_agreement", "halves_agreement_shuffled", "effective_rank_b"):
        assert getattr(before, field) == getattr(after, field)

    other_choice = dataclasses.replace(pair, b=pair.b.clone())
    other_choice.b[pair.validation] = normal(80, WIDTH, 10)
    chosen = fit(other_choice, 0)
    assert chosen.ridge > before.ridge
    assert torch.equal(chosen.rotation.matrix, before.rotation.matrix)


def test_the_halves_are_fitted_apart():
    """B is A turned in another way in each half: the two rotations agree as much as these two do."""
    a = normal(4000, WIDTH, 0)
    one, other = orthogonal(WIDTH, 1), orthogonal(WIDTH, 2)
    b = a @ one
    pair = paired(a, b)
    b[pair.halves[1]] = a[pair.halves[1]] @ other + 50
    agreement = fit(pair, 0).halves_agreement
    assert agreement == pytest.approx(float((one * other).sum()) / WIDTH, abs=1e-9)


def test_halves_of_unrelated_states_do_not_agree():
    pair = paired(normal(4000, WIDTH, 0), normal(4000, WIDTH, 1))
    assert abs(fit(pair, 0).halves_agreement) < 5 / WIDTH


def test_a_half_of_one_token_says_nothing():
    a = normal(40, 3, 0)
    pair = dataclasses.replace(
        paired(a, a.clone(), per_document=1), halves=(slice(0, 1), slice(1, 20)), validation=slice(20, 30)
    )
    fitted = fit(pair, 0)
    assert fitted.halves_agreement is None and fitted.halves_agreement_shuffled is None


@pytest.mark.parametrize("per_document", [1, 20, 240])
def test_shuffled_pairs_are_of_two_documents(per_document):
    documents = np.arange(480) // per_document
    order = shuffled_rows(documents, 3)
    assert sorted(order) == list(range(480))
    assert not (documents[order] == documents).any()
    assert np.array_equal(order, shuffled_rows(documents, 3))
    assert not np.array_equal(order, shuffled_rows(documents, 4))


def test_one_document_can_only_meet_itself():
    order = shuffled_rows(np.zeros(100, np.int64), 0)
    assert sorted(order) == list(range(100))


def test_the_seed_decides_the_shuffled_pairs_alone():
    pair, _ = turned(400, noise=0.5)
    one, again, other = fit(pair, 1), fit(pair, 1), fit(pair, 2)
    assert torch.equal(one.shuffled, again.shuffled) and not torch.equal(one.shuffled, other.shuffled)
    assert torch.equal(one.rotation.matrix, other.rotation.matrix)


def test_blocks_give_what_the_whole_gives(monkeypatch):
    pair, _ = turned(400, noise=1.0)
    whole = fit(pair, 0)
    monkeypatch.setattr(pairing, "BLOCK_BYTES", 8 * WIDTH * 7)
    assert len(list(pair.blocks(pair.fit))) > 30
    blocks = fit(pair, 0)
    for one, other in zip(tensors(whole)[:-3], tensors(blocks)[:-3], strict=True):
        assert torch.allclose(one.double(), other.double(), atol=1e-10)
    # An eigenvector has either sign.
    overlap = (whole.components.T @ blocks.components).abs()
    assert torch.allclose(overlap, torch.eye(WIDTH, dtype=torch.float64), atol=1e-8)
    assert torch.equal(whole.permutation[0], blocks.permutation[0])
    assert blocks.ridge == whole.ridge and blocks.scale == pytest.approx(whole.scale)
    assert blocks.halves_agreement == pytest.approx(whole.halves_agreement)


def test_the_states_are_left_alone():
    pair, _ = turned(100)
    a, b = pair.a.clone(), pair.b.clone()
    fit(pair, 0)
    assert torch.equal(pair.a, a) and torch.equal(pair.b, b)


def test_fewer_tokens_than_dimensions_are_warned_of():
    """Twelve centred rows have rank 11."""
    pair, _ = turned(20, noise=1.0)
    pair = paired(pair.a, pair.b, per_document=1)
    warning = fit(pair, 0).rank_warning
    assert warning == (
        "the rotation is not determined: 12 tokens in the fit for 16 dimensions; the cross-covariance has rank 11 of 16, "
        "and on the other 5 dimensions any rotation fits as well"
    )


def test_states_in_a_subspace_are_warned_of():
    a = normal(1000, 10, 0) @ normal(10, WIDTH, 1)
    fitted = fit(paired(a, a.clone()), 0)
    assert "rank 10 of 16, and on the other 6 dimensions" in fitted.rank_warning
    # Nor may the linear map blow up there.
    assert float(torch.linalg.norm(fitted.affine)) < 10
    assert fitted.effective_rank_a < 10 + 1e-6


def test_states_of_few_distinct_values_are_warned_of():
    """As at the embedding of a model with 12 tokens, in float32: every state is one of 12, so rank 11."""
    table = normal(12, WIDTH, 0).float()
    ids = np.random.default_rng(0).integers(0, 12, 1000)
    pair = paired(table[ids], (table @ orthogonal(WIDTH, 1).float())[ids], ids=ids)
    assert "rank 11 of 16, and on the other 5 dimensions" in fit(pair, 0).rank_warning


def test_effective_rank():
    """Two dimensions of equal variance among sixteen, the others 1e-6 of it: exp of the entropy is 2."""
    a = 1e-3 * normal(4000, WIDTH, 0)
    a[:, 3:5] *= 1e3
    fitted = fit(paired(a, normal(4000, WIDTH, 1)), 0)
    assert fitted.effective_rank_a == pytest.approx(2, abs=0.01)
    assert fitted.effective_rank_b == pytest.approx(WIDTH, abs=0.2)


def test_what_cannot_be_used_is_named():
    pair, _ = turned(100)
    bad = pair.b.clone()
    bad[90, 3] = math.nan
    cases = {
        "shapes": dataclasses.replace(pair, b=pair.b[:, :5]),
        "model B": dataclasses.replace(pair, b=bad),
        "model A": dataclasses.replace(pair, a=bad),
        "different tokens": dataclasses.replace(pair, b=pair.b[:50]),
        "test part has 0 tokens": dataclasses.replace(pair, test=slice(80, 80)),
        "validation part has 0": dataclasses.replace(pair, validation=slice(60, 60)),
        "fit part has 0": dataclasses.replace(pair, halves=(slice(0, 0), slice(0, 0))),
        "two parts": dataclasses.replace(pair, documents=np.zeros(100, np.int64)),
        "model B never vary": dataclasses.replace(pair, b=torch.full((100, WIDTH), 0.1)),
    }
    for says, case in cases.items():
        with pytest.raises(InvalidInput, match=says):
            fit(case, 0)
    with pytest.raises(InvalidInput, match="never vary"):
        ridge_map(dataclasses.replace(pair, a=torch.full((100, WIDTH), 0.1, dtype=torch.float64)))
