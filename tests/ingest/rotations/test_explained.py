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
from signarium.ingest.rotations.explained import ARMS, UNSEEN_ARMS, explained
from signarium.ingest.rotations.fit import fit
from signarium.ingest.stats import paired as pairing

WIDTH = 16


def turned(n=4000, noise=0.0, seed=0, away=0.0, ids=None):
    a = normal(n, WIDTH, seed)
    b = a @ orthogonal(WIDTH, seed + 1) + away + noise * normal(n, WIDTH, seed + 2)
    return paired(a, b, ids=ids)


def scored(pair, seed=0):
    return explained(pair, fit(pair, seed))


def share_missed(pair, b_hat, rows=None):
    """Explained variance as its definition says it."""
    rows = pair.test if rows is None else rows
    b = pair.b[rows]
    return 1 - float((b - b_hat).square().sum() / (b - b.mean(0)).square().sum())


def test_a_planted_rotation_is_explained_and_nothing_simpler_is():
    """Noise of a hundredth: 1 - 1e-4. Of maps that keep the variance and say nothing: 1 - 2 = -1."""
    found = scored(turned(noise=0.01))
    assert tuple(found.value) == ARMS
    for arm in ("rotation", "scaled", "affine"):
        assert found.value[arm] == pytest.approx(1 - 1e-4, abs=2e-5)
    # 2 c - 1 with c = trace(Q) / WIDTH, which is 0 to within 1 / WIDTH for a random Q; four of these.
    for arm in ("identity", "mean_shift", "shuffled"):
        assert abs(found.value[arm] + 1) < 8 / WIDTH
    # Of 50 token ids that say nothing, each mean is of 48 rows: -1 / 48.
    assert found.value["token_mean"] == pytest.approx(-1 / 48, abs=0.01)
    assert found.n_test == 800 and found.n_documents == 40


def test_the_shuffled_null_is_minus_the_ratio_of_the_variances():
    """E |b - a R|^2 = var b + var a where R has nothing to do with the pairs: EV = -var a / var b, here -4 and -1/4."""
    for scale, expected in ((0.5, -4), (2, -0.25)):
        pair = turned()
        pair = dataclasses.replace(pair, b=pair.b * scale)
        assert scored(pair).value["shuffled"] == pytest.approx(expected, rel=8 / WIDTH)


def test_the_mean_counts_for_the_identity_alone():
    near, far = scored(turned(noise=0.1)), scored(turned(noise=0.1, away=100.0))
    # |100|^2 per dimension beside a variance of 1.
    assert far.value["identity"] < -5000
    for arm in ("mean_shift", "rotation", "scaled", "affine", "shuffled", "permutation", "token_mean"):
        assert far.value[arm] == pytest.approx(near.value[arm], abs=1e-9)


def test_every_arm_by_its_definition():
    pair = turned(400, noise=1.0, away=3.0)
    fitted = fit(pair, 0)
    found = explained(pair, fitted)
    r, a = fitted.rotation, pair.a[pair.test]
    columns, signs = fitted.permutation
    centred = a - r.mean_a
    expected = {
        "identity": a,
        "mean_shift": centred + r.mean_b,
        "rotation": r.to_b(a),
        "scaled": fitted.scale * centred @ r.matrix + r.mean_b,
        "affine": centred @ fitted.affine + r.mean_b,
        "permutation": centred[:, columns] * signs + r.mean_b,
        "shuffled": centred @ fitted.shuffled + r.mean_b,
    }
    for arm, b_hat in expected.items():
        assert found.value[arm] == pytest.approx(share_missed(pair, b_hat))


def test_a_map_that_is_no_rotation_is_the_affine_maps():
    a = normal(4000, WIDTH, 0)
    pair = paired(a, a @ normal(WIDTH, WIDTH, 1) + 0.01 * normal(4000, WIDTH, 2))
    value = scored(pair).value
    assert value["affine"] > 0.999
    assert value["affine"] > value["scaled"] > value["rotation"] > value["shuffled"]


def test_a_planted_scale_needs_the_scale():
    pair = turned()
    value = scored(dataclasses.replace(pair, b=3 * pair.b)).value
    assert value["scaled"] > 0.999
    # |3 - 1|^2 / 3^2 is missed, up to the means of fit and test, which differ.
    assert value["rotation"] == pytest.approx(1 - 4 / 9, abs=5e-3)


def test_a_planted_signed_permutation_needs_no_rotation():
    a = normal(4000, WIDTH, 0)
    columns = torch.from_numpy(np.random.default_rng(0).permutation(WIDTH))
    value = scored(paired(a, -a[:, columns])).value
    assert value["permutation"] == pytest.approx(1) and value["rotation"] == pytest.approx(1)
    assert value["identity"] < 0


def test_no_permutation_no_figure():
    pair = turned(400)
    found = explained(pair, dataclasses.replace(fit(pair, 0), permutation=None))
    for figures in (found.value, found.std_error):
        assert tuple(figures) == tuple(arm for arm in ARMS if arm != "permutation")
    assert set(found.difference_error) == set(found.value) - {"rotation"}


def test_token_mean_by_hand():
    """Fit rows: token 1 at 0 and 2, token 2 at 10; B's mean is 4. Test: token 1 at 3, token 2 at 6, unseen 9 at 9."""
    b = torch.tensor([[0.0], [2.0], [10.0], [5.0], [3.0], [6.0], [9.0]])
    ids = np.array([1, 1, 2, 7, 1, 2, 9])
    rows = np.arange(7)
    pair = pairing.Paired(
        b + 1, b, (slice(0, 1), slice(1, 3)), slice(3, 4), slice(4, 7), ids, rows, np.zeros(7, np.int64)
    )
    found = scored(pair)
    # Predicted 1, 10 and 4: (4 + 16 + 25) of 9 + 0 + 9 around the test's own mean 6.
    assert found.value["token_mean"] == pytest.approx(1 - 45 / 18)
    # B is A less 1.
    assert found.value["identity"] == pytest.approx(1 - 3 / 18)
    assert found.n_unseen == 1 and found.unseen == {} and found.unseen_error == {}


def test_states_that_are_their_tokens_need_no_other_model():
    """B's state is its token's row of a table: the token mean explains it all, and so does A turned."""
    ids = np.random.default_rng(0).integers(0, 30, 2000)
    table = normal(30, WIDTH, 0)
    pair = paired(table[ids], (table @ orthogonal(WIDTH, 1))[ids], ids=ids)
    value = scored(pair).value
    assert value["token_mean"] == pytest.approx(1) and value["rotation"] == pytest.approx(1)


def test_unseen_tokens():
    """Ids from 1000 on stand in the test alone; there B is A turned in quite another way."""
    ids = np.random.default_rng(0).integers(0, 50, 4000)
    pair = turned(noise=0.1, ids=ids)
    rows = pair.test.start + np.arange(0, 800, 4)
    ids[rows] = 1000 + np.arange(200)
    pair.b[rows] = -pair.b[rows]
    fitted = fit(pair, 0)
    found = explained(pair, fitted)
    assert found.n_unseen == 200 and tuple(found.unseen) == UNSEEN_ARMS == tuple(found.unseen_error)
    assert found.unseen["rotation"] == pytest.approx(
        share_missed(pair, fitted.rotation.to_b(pair.a[rows]), rows)
    )
    # |2 b|^2 is missed.
    assert found.unseen["rotation"] == pytest.approx(-3, abs=0.1)
    assert found.unseen["shuffled"] == pytest.approx(-1, abs=8 / WIDTH)
    assert all(0 < error < 0.5 for error in found.unseen_error.values())


@pytest.mark.parametrize(("n", "said"), [(29, False), (30, True)])
def test_few_unseen_tokens_say_nothing(n, said):
    ids = np.random.default_rng(0).integers(0, 50, 4000)
    ids[3200 : 3200 + n] = 1000
    found = scored(turned(noise=0.1, ids=ids))
    assert found.n_unseen == n and bool(found.unseen) == said


def jackknife(pair, b_hat, other=None):
    """Over documents, by the definition."""
    rows = np.arange(pair.test.start, pair.test.stop)
    values = []
    for document in np.unique(pair.documents[pair.test]):
        left = rows[pair.documents[rows] != document]
        value = share_missed(pair, b_hat[left], left)
        values.append(value - (0 if other is None else share_missed(pair, other[left], left)))
    n = len(values)
    return math.sqrt((n - 1) * np.var(values))


def uneven(n=2000, seed=0):
    """Documents that differ: each has a noise and a mean of its own."""
    pair = turned(n, seed=seed)
    generator = np.random.default_rng(seed)
    per_document = torch.from_numpy(generator.exponential(1, (pair.documents.max() + 1, 1)))
    place = torch.from_numpy(generator.standard_normal((pair.documents.max() + 1, WIDTH)))
    noise = normal(n, WIDTH, seed + 3) * per_document[pair.documents]
    return dataclasses.replace(pair, b=pair.b + noise + 0.3 * place[pair.documents])


def test_the_errors_are_the_jackknife():
    pair = uneven(600)
    fitted = fit(pair, 0)
    found = explained(pair, fitted)
    r = fitted.rotation
    rotated, moved = r.to_b(pair.a), pair.a - r.mean_a + r.mean_b
    assert found.std_error["rotation"] == pytest.approx(jackknife(pair, rotated))
    assert found.std_error["mean_shift"] == pytest.approx(jackknife(pair, moved))
    assert found.difference_error["mean_shift"] == pytest.approx(jackknife(pair, rotated, moved))


def test_the_jackknife_is_about_what_a_bootstrap_over_documents_says():
    pair = uneven(4000)
    fitted = fit(pair, 0)
    found = explained(pair, fitted)
    b_hat = fitted.rotation.to_b(pair.a)
    rows = np.arange(pair.test.start, pair.test.stop).reshape(-1, 20)
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(400):
        some = rows[generator.integers(0, len(rows), len(rows))].ravel()
        drawn.append(share_missed(pair, b_hat[some], some))
    assert found.std_error["rotation"] == pytest.approx(np.std(drawn), rel=0.25)


def test_one_document_has_no_error():
    pair = turned(100)
    documents = pair.documents.copy()
    documents[pair.test] = documents[pair.test][0]
    found = scored(dataclasses.replace(pair, documents=documents))
    assert found.n_documents == 1
    assert all(math.isnan(error) for error in (*found.std_error.values(), *found.difference_error.values()))
    assert found.value["rotation"] == pytest.approx(1)


def test_components_by_their_definition():
    a = normal(2000, WIDTH, 0) * torch.arange(1, WIDTH + 1)
    pair = paired(a, a @ orthogonal(WIDTH, 1) + 2 * normal(2000, WIDTH, 2) + 7)
    fitted = fit(pair, 0)
    found = explained(pair, fitted)
    b = pair.b[pair.test]
    centred = (b - b.mean(0)) @ fitted.components
    spread = centred.square().sum(0)
    assert np.allclose(found.component_share, spread / spread.sum())
    assert np.all(np.diff(found.component_share) < 0.02) and found.component_share.sum() == pytest.approx(1)
    x = pair.a[pair.test] - fitted.rotation.mean_a
    for values, matrix, arm in (
        (found.component_rotation, fitted.rotation.matrix, "rotation"),
        (found.component_affine, fitted.affine, "affine"),
        (found.component_shuffled, fitted.shuffled, "shuffled"),
    ):
        missed = (b - x @ matrix - fitted.rotation.mean_b) @ fitted.components
        assert np.allclose(values, 1 - missed.square().sum(0) / spread)
        # The whole is the mean of the parts, weighed by their variance.
        assert (values * found.component_share).sum() == pytest.approx(found.value[arm])
    # Of the noise's variance 4 beside it: the largest component has 16^2.
    assert found.component_rotation[0] > 0.97 and found.component_rotation[-1] < 0.5


def test_components_without_variance_say_nothing():
    a = normal(1000, 10, 0) @ normal(10, WIDTH, 1)
    found = scored(paired(a, a.clone()))
    for values in (
        found.component_share, found.component_rotation, found.component_affine, found.component_shuffled,
    ):  # fmt: skip
        assert (values[10:] == 0).all() and np.isfinite(values).all()
    assert found.component_rotation[:10] == pytest.approx(1)


def figures(found):
    """All of it, as one list."""
    plain = dataclasses.asdict(found)
    values = [list(one.values()) if isinstance(one, dict) else one for one in plain.values()]
    return np.concatenate([np.ravel(np.asarray(one, float)) for one in values])


def test_blocks_give_what_the_whole_gives(monkeypatch):
    ids = np.random.default_rng(0).integers(0, 300, 2000)
    pair = dataclasses.replace(uneven(), token_ids=ids)
    fitted = fit(pair, 0)
    whole = explained(pair, fitted)
    monkeypatch.setattr(pairing, "BLOCK_BYTES", 8 * WIDTH * 7)
    assert np.allclose(figures(whole), figures(explained(pair, fitted)), atol=1e-10)


def test_the_order_of_the_test_rows_does_not_matter(monkeypatch):
    """Rows of a document need not follow each other, and blocks may cut them anywhere."""
    pair = uneven(600)
    fitted = fit(pair, 0)
    before = figures(explained(pair, fitted))
    order = np.arange(600)
    order[pair.test] = np.random.default_rng(0).permutation(order[pair.test])
    mixed = dataclasses.replace(
        pair, a=pair.a[order], b=pair.b[order], token_ids=pair.token_ids[order], documents=pair.documents[order]
    )  # fmt: skip
    monkeypatch.setattr(pairing, "BLOCK_BYTES", 8 * WIDTH * 11)
    assert np.allclose(before, figures(explained(mixed, fitted)), atol=1e-10)


@given(seed=st.integers(0, 999), noise=st.floats(0.1, 3), away=st.floats(-5, 5))
@settings(max_examples=examples(15))
def test_turning_b_changes_nothing_but_the_axes(seed, noise, away):
    pair = turned(300, noise=noise, seed=seed, away=away)
    other = dataclasses.replace(pair, b=pair.b @ orthogonal(WIDTH, seed + 9) - away)
    one, two = scored(pair), scored(other)
    for arm in ("rotation", "scaled", "affine", "shuffled", "token_mean"):
        assert one.value[arm] == pytest.approx(two.value[arm], abs=1e-7)
        assert one.std_error[arm] == pytest.approx(two.std_error[arm], abs=1e-7)
    assert np.allclose(one.component_share, two.component_share, atol=1e-7)
    assert max(one.value.values()) <= 1


def test_a_site_that_never_varies_in_the_test_is_refused():
    pair = turned(200)
    pair.b[pair.test] = 0.1
    with pytest.raises(InvalidInput, match="never vary over the test"):
        scored(pair)
