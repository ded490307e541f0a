"""The SQL surface: the columns that users were promised, and rows in each view."""

from __future__ import annotations

from pathlib import Path

import pytest
import small

from signarium.catalog import parts, store, surface

PROMISED = {
    "models": "model_id, name, source, revision, architecture, width, n_layers, d_ffn, vocab_size, dtype, "
    "weights_sha256, tokenizer_sha256, random_init_seed, added_at",
    "runs": "run_id, job, model, status, params, versions, device, tokens, tokens_per_s, forward_s, pack_s, "
    "write_s, started_at, finished_at",
    "sites": "site_id, model, site, point, layer, width",
    "code_sets": "code_set_id, run_id, model, site, subject, centre, basis, width, n, indexed",
    "codes": "code_set_id, item, code",
    "documents": "document_id, source, chunk, sha256, n_tokens, text",
    "types": "model, site, centre, basis, token_id, token, norm, code",
    "states": "model, site, centre, basis, state_id, document_id, position, token_id, token, is_first, norm, code",
    "dimensions": "model, site, dim, p_positive, entropy, mean, std, argmax_share, argmin_share",
    "features": "feature_id, model, site, kind, name, centre, basis, n_dims, mask, polarity, best_dim_auc, auc_in_sample, "
    "auc_held_out, auc_rotated, null_p95, fire_rate, beats_null, survives",
    "feature_members": "feature_id, part, token_id, token",
    "feature_types": "feature_id, rank, token_id, token, agreement",
    "feature_states": "feature_id, rank, state_id, document_id, position, token, context, agreement",
    "neurons": "model, layer, neuron, norm, code",
    "unembedding": "model, token_id, token, norm, code",
    "directions": "sae_id, model, site, name, feature, norm, code",
    "writers": "feature_id, layer, neuron, rank, polarity, agreement",
    "coalitions": "feature_id, layer, k, agreement, agreement_split_half, agreement_random",
    "projections": "subject, subject_id, model, site, source, direction, rank, token_id, token, logit",
    "flips": "run_id, feature_id, site, arm, dose, at_norm, norm, own_logit_change, other_logit_change, kl, n",
    "rotations": "rotation_id, model_a, model_b, site_a, site_b, width, n_fit, n_test, ev_identity, ev_mean_shift, "
    "ev_rotation, ev_affine, ev_shuffled, frobenius_from_identity, matrix, mean_a, mean_b",
    "rotation_components": "rotation_id, component, variance_share, ev_rotation, ev_affine, ev_shuffled",
    "carried_features": "feature_id, rotation_id, source_feature_id",
    "steering": "rotation_id, direction, arm, dose, norm, target, target_change, other_change, kl, n",
    "saes": "sae_id, name, model, site, n_features, seed, source, sha256, params, run_id, added_at",
    "measurements": "run_id, model, site, subject, subject_id, metric, control, split, value, n, seed",
    "evidence": "claim_id, source, claim, metric, published, model, value, control, control_value, verdict",
}
PROMISED["types_bos"] = PROMISED["types"]
PROMISED["dimensions_bos"] = PROMISED["dimensions"]
N = sum(small.WINDOWS)
ROWS = {
    "models": 1,
    "runs": 3,
    "sites": 1,
    "code_sets": 4,
    "codes": 2 * (small.N_TYPES + N),
    "documents": 3,
    "types": 2 * small.N_TYPES,
    "types_bos": 0,
    "states": 2 * N,
    "dimensions": small.WIDTH,
    "dimensions_bos": 0,
    "features": 1,
    "feature_members": 3,
    "feature_types": 1,
    "feature_states": 1,
    "neurons": 0,
    "unembedding": 0,
    "directions": 0,
    "writers": 2,
    "coalitions": 2,
    "projections": 4,
    "flips": 2,
    "rotations": 1,
    "rotation_components": 1,
    "carried_features": 1,
    "steering": 1,
    "saes": 1,
    "measurements": 1,
    "evidence": sum(len(one.centres) * len(one.judged) for one in parts.claims()),
}
MORE = {
    "features": "p_value, threshold, n_members, repeats, best_dim, agreement_mean, agreement_std, run_id",
    "flips": "own_std_error, other_std_error, kl_std_error",
    "rotations": "n_validation, ev_scaled, ev_permutation, ev_exchanged, ev_exchanged_error, ev_shuffled_error, "
    "ev_unseen, ev_token_mean, scale, ridge, effective_rank_a, "
    "effective_rank_b, halves_agreement, rank_warning, std_a, std_b, run_id",
    "steering": "target_std_error, other_std_error, kl_std_error",
    "measurements": "std_error",
    "evidence": "site, centre, from_model",
}
"""Columns that came later; they stand behind the others."""


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> small.Small:
    return small.filled(tmp_path_factory.mktemp("views") / "c.duckdb")


def test_which_views() -> None:
    assert set(parts.views()) == set(PROMISED)


@pytest.mark.parametrize("name", PROMISED)
def test_columns(catalogue: small.Small, name: str) -> None:
    promised = PROMISED[name].split(", ") + (MORE[name].split(", ") if name in MORE else [])
    assert list(parts.view(name).columns) == promised, "the reference"
    with store.reading(catalogue.path) as connection:
        found = connection.execute(f"SELECT * FROM {name}")
        assert [one[0] for one in found.description or []] == promised, "the file"
        assert len(found.fetchall()) == ROWS[name]


def test_an_unknown_view() -> None:
    with pytest.raises(KeyError):
        parts.view("nothing")


def test_values(catalogue: small.Small) -> None:
    ident = catalogue.sets["state", "mean"]
    with store.reading(catalogue.path) as connection:

        def one(query: str, *values: object) -> object:
            rows = connection.execute(query, list(values)).fetchall()
            assert len(rows) == 1
            return rows[0][0] if len(rows[0]) == 1 else rows[0]

        assert one("SELECT n, indexed FROM code_sets WHERE code_set_id = ?", ident) == (N, False)
        assert one("SELECT status, tokens, tokens_per_s FROM runs WHERE run_id = 'types'") == (
            "done",
            60,
            30.0,
        )
        state = small.BASE + small.WINDOWS[0] + 2
        row = one(
            "SELECT document_id, position, is_first, code, token = ' t' || token_id, model, site FROM states "
            "WHERE state_id = ? AND centre = 'mean'",
            state,
        )
        code = catalogue.codes[ident][small.WINDOWS[0] + 2].tobytes()
        assert row == (small.BASE + 1, 2, False, code, True, "tiny", "resid_post.1")
        assert one("SELECT count(*) FROM states WHERE is_first") == 2 * len(small.WINDOWS)
        assert one("SELECT versions->>'signarium' FROM runs WHERE run_id = 'states'") == "0"


def test_status_of_a_run(tmp_path: Path) -> None:
    path = small.empty(tmp_path / "c.duckdb")
    with store.writing(path) as session:
        session.add_all(small.model_and_site())
        for name, finished, failure in (("a", None, None), ("b", None, "why"), ("c", small.WHEN, None)):
            run = small.run(name)
            run.finished_at, run.failure = finished, failure
            session.add(run)
    with store.reading(path) as connection:
        rows = connection.execute("SELECT run_id, status, tokens FROM runs ORDER BY 1").fetchall()
    assert rows == [("a", "running", 0), ("b", "failed", 0), ("c", "done", 0)]


def test_macros_are_documented_as_they_are(catalogue: small.Small) -> None:
    assert {one.name for one in parts.macros()} == {"hamming", "agreement", "sign_bit", "bit"}
    with store.reading(catalogue.path) as connection:
        for macro in parts.macros():
            rows = connection.execute(
                "SELECT parameters FROM duckdb_functions() WHERE function_name = ? AND NOT internal",
                [macro.name],
            ).fetchall()
            assert rows == [(list(macro.arguments),)]
            assert all(name.isidentifier() for name in (macro.name, *macro.arguments))
            assert macro.about


def test_install_twice(catalogue: small.Small) -> None:
    with store.writing(catalogue.path) as session:
        surface.install(session.connection().exec_driver_sql)
    with store.reading(catalogue.path) as connection:
        assert connection.execute("SELECT count(*) FROM types").fetchone() == (2 * small.N_TYPES,)
