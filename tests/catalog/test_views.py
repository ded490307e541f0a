"""The SQL surface: the columns that users were promised, and rows in each view."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import small

from signarium.catalog import bulk, parts, schema, store, surface

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
                "SELECT DISTINCT parameters FROM duckdb_functions() WHERE function_name = ? AND NOT internal",
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


def test_contexts(tmp_path: Path) -> None:
    """Eight tokens before and four behind, of the same window; an unknown token leaves a gap; equal rows count once."""
    path = small.filled(tmp_path / "c.duckdb").path
    n, start = 30, small.BASE + 1000
    states = np.arange(start, start + n, dtype=np.int64)
    places = {
        "state_id": states,
        "document_id": np.where(states < start + 20, 1, 2).astype(np.int64),
        "position": np.arange(n, dtype=np.int32),
        "token_id": np.where(states == start + 12, 10_000, np.arange(n)).astype(np.int32),
    }
    tops = [(run, start + i, 1 - i / 100) for run in ("states", "types") for i in (0, 10, 12, 19, 20)]
    tops.append(("types", start + 25, 0.9))
    runs, ids, agreements = zip(*tops, strict=True)
    with store.writing(path) as session:
        bulk.insert(session, schema.state_row, places)
        rows = {"run_id": runs, "feature_id": [17] * len(tops), "state_id": ids, "agreement": agreements}
        bulk.insert(session, schema.feature_state_row, {name: list(column) for name, column in rows.items()})
    with store.reading(path) as connection:
        found = connection.execute(
            "SELECT rank, state_id, token, context FROM feature_states WHERE state_id >= ? ORDER BY rank",
            [start],
        ).fetchall()

    def text(*tokens: int) -> str:
        return "".join(f" t{token}" for token in tokens)

    assert found == [
        (2, start, " t0", text(*range(5))),
        (3, start + 10, " t10", text(*range(2, 12), 13, 14)),
        (4, start + 25, " t25", text(*range(20, 30))),
        (5, start + 12, None, text(*range(4, 12), 13, 14, 15, 16)),
        (6, start + 19, " t19", text(11, *range(13, 20))),
        (7, start + 20, " t20", text(*range(20, 25))),
    ]


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many features as a model of thirty blocks has, the same for each, over a short text."""
    path = small.filled(tmp_path_factory.mktemp("grown") / "c.duckdb").path
    first = small.BASE + 1000
    with store.writing(path) as session:
        run = session.connection().exec_driver_sql

        def multiply(table: str, rows: int, **changed: str) -> None:
            """Each row once for each of 6,000 features, and that so many times."""
            new = ", ".join(f"{value} AS {column}" for column, value in changed.items())
            source = f"(SELECT * FROM {table}) x, range(1, 6001) r(i), range({rows}) t(j)"
            run(f"INSERT INTO {table} SELECT x.* REPLACE ({new}) FROM {source}")

        run(
            f"INSERT INTO state_row SELECT {first} + i, 9 + i // 250, i % 250, i % {small.N_TYPES} FROM range(20000) r(i)"
        )
        feature = "feature_id + i"
        multiply("feature_row", 1, feature_id=feature, name="name || i")
        state = f"{first} + (i * 37 + j * 911) % 20000"
        multiply("feature_state_row", 20, feature_id=feature, state_id=state, agreement="j / 20")
        multiply("feature_type_row", 10, feature_id=feature)
        multiply("projection_row", 10, item="item + i")
    return path


@pytest.mark.parametrize("name", PROMISED)
def test_every_view_answers_soon(grown: Path, name: str) -> None:
    """Its first rows, those of a feature, of a token, and of a feature by its name."""
    columns = parts.view(name).columns
    queries = [""]
    if "feature_id" in columns:
        queries += [
            "WHERE x.feature_id = 1017",
            "WHERE x.feature_id = (SELECT feature_id FROM features WHERE name = 'animal1000')",
            "JOIN features f USING (feature_id) WHERE f.name = 'animal1000'",
        ]
    if "subject_id" in columns:
        queries += [
            "WHERE x.subject_id = '1017'",
            "JOIN features f ON x.subject = 'feature' AND x.subject_id = f.feature_id::VARCHAR WHERE f.name = 'animal1000'",
        ]
    queries += ["WHERE x.token = ' t4'"] if "token" in columns else []
    queries += ["JOIN models m ON x.model = m.name WHERE m.name = 'tiny'"] if "model" in columns else []
    with store.reading(grown) as connection:
        for query in queries:
            # Of this process alone: a machine that is busy with others is no slow view.
            started = time.process_time()
            found = connection.execute(f"SELECT x.* FROM {name} x {query} LIMIT 3").fetchall()
            assert time.process_time() - started < 1, query
            grew = name in ("feature_states", "feature_types", "projections")
            assert len(found) == 3 if grew else query or len(found) >= min(3, ROWS[name])
