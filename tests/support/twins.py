"""Two models whose states are each other's but for a rotation that is known, and a third of another width."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import small
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from signarium.catalog import bulk, schema, store
from signarium.catalog.bulk import Figure
from signarium.catalog.carry import Rotation
from signarium.catalog.codes import pack
from signarium.catalog.ids import PLACE_BITS, neuron_item

WIDTH = 60
"""No multiple of 8."""
N = 400
N_TYPES = 50
BASE = 5 << PLACE_BITS
WHEN = datetime(2026, 1, 2, 3, 4, 5)
ALPHA, BETA, GAMMA = "alpha", "beta", "gamma"
SITES = ("resid_post.0", "resid_post.1", "resid_post.2", "resid_post.3")
"""The rotation at 0 is of alpha to beta, worthless and not determined; at 1 of alpha to beta, twice; at 2 of beta to alpha
alone; at 3 beta has nothing."""
FEATURE, CARRIED, DIRECTED = 1000, 2000, 1001
SAE = 7 << PLACE_BITS
N_SAE = 40


@dataclass(frozen=True)
class Twins:
    """Where they are, and what is in them: floats of states (n, width) by model and site, and the rotations from alpha."""

    path: Path
    states: dict[tuple[str, str], NDArray[np.float64]]
    types: dict[tuple[str, str], NDArray[np.float64]]
    rotations: dict[str, Rotation]
    neurons: NDArray[np.float64]
    dictionary: NDArray[np.float64]
    mask: NDArray[np.uint8]
    polarity: NDArray[np.uint8]


def haar(width: int, seed: int) -> NDArray[np.float64]:
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))
    return q * np.sign(np.diagonal(r))


def exact(a: NDArray[np.float64], turn: NDArray[np.float64], mean_b: NDArray[np.float64]) -> Rotation:
    """The rotation that carries rows `a` to (a - mean) turn + mean_b, rounded as it is stored."""
    mean_a, std_a = a.mean(0), a.std(0)
    b = (a - mean_a) @ turn + mean_b
    parts = (turn, mean_a, b.mean(0), std_a, b.std(0))
    return Rotation(*(one.astype(np.float32) for one in parts))


def make(path: Path) -> Twins:
    small.empty(path)
    rng = np.random.default_rng(3)
    states: dict[tuple[str, str], NDArray[np.float64]] = {}
    types: dict[tuple[str, str], NDArray[np.float64]] = {}
    rotations: dict[str, Rotation] = {}
    for i, site in enumerate(SITES):
        spread = np.exp(rng.normal(0, 0.5, WIDTH))
        a = rng.standard_normal((N, WIDTH)) * spread + rng.normal(0, 0.4, WIDTH)
        turn = haar(WIDTH, 10 + i)
        rotations[site] = exact(a, turn, rng.normal(0, 0.4, WIDTH))
        states[ALPHA, site] = a
        types[ALPHA, site] = rng.standard_normal((N_TYPES, WIDTH)) * spread + 0.5
        if i < 3:
            for kept in (states, types):
                kept[BETA, site] = (kept[ALPHA, site] - rotations[site].mean_a) @ rotations[
                    site
                ].matrix.astype(np.float64) + rotations[site].mean_b
    neurons = rng.standard_normal((30, WIDTH))
    dictionary = rng.standard_normal((N_SAE, WIDTH))
    mask = np.zeros(WIDTH, np.uint8)
    mask[rng.choice(WIDTH, 12, replace=False)] = 1
    polarity = rng.integers(0, 2, WIDTH).astype(np.uint8) * mask
    made = Twins(path, states, types, rotations, neurons, dictionary, mask, polarity)
    with store.writing(path) as session:
        for name in (ALPHA, BETA, GAMMA):
            session.add(_model(name, WIDTH if name != GAMMA else 16))
            session.add_all(_site(name, one) for one in (*SITES, "residual", "final_norm"))
        _texts(session)
        _codes(session, made)
        _rotations(session, made)
        _features(session, made)
    return made


def _model(name: str, width: int) -> schema.Model:
    return schema.Model(
        model_id=name, name=name, source="here", revision=None, architecture="llama", width=width, n_layers=4, d_ffn=99,
        vocab_size=N_TYPES, dtype="float32", weights_sha256=name, tokenizer_sha256="t", random_init_seed=None, added_at=WHEN,
    )  # fmt: skip


def _site(model: str, name: str) -> schema.Site:
    point, _, layer = name.partition(".")
    return schema.Site(
        site_id=f"{model}/{name}", model_id=model, name=name, point=point, layer=int(layer) if layer else None,
        width=WIDTH if model != GAMMA else 16,
    )  # fmt: skip


def add_run(
    session: Session, run_id: str, job: str, model: str, hours: int = 0, n: int = 1, **params: Any
) -> None:
    when = WHEN + timedelta(hours=hours)
    session.add(
        schema.Run(
            run_id=run_id, job=job, model_id=model, params=json.dumps(params), versions="{}", device="cpu", complete=True,
            failure=None, started_at=when, finished_at=when,
        )
    )  # fmt: skip
    session.add(small.shard(run_id, n))


_ids = iter(range(1, 10_000))


def _set(
    session: Session,
    run_id: str,
    model: str,
    site: str,
    subject: str,
    centre: str,
    items: NDArray[np.int64],
    x: NDArray[np.float64],
) -> None:
    ident = next(_ids)
    session.add(
        schema.CodeSet(
            code_set_id=ident, run_id=run_id, site_id=f"{model}/{site}", subject=subject, centre=centre, basis="standard",
            width=x.shape[1],
        )
    )  # fmt: skip
    norms = np.linalg.norm(x, axis=1).astype(np.float32)
    bulk.insert_codes(session, [bulk.code_columns(ident, items.astype(np.int64), norms, pack(x))])


def _texts(session: Session) -> None:
    session.add(
        schema.TextFile(
            text_id=BASE, name="a.txt", sha256="x", size=9, kind="text", tokenizer_sha256="t", context=N, added_at=WHEN
        )
    )  # fmt: skip
    bulk.insert(
        session,
        schema.document_row,
        {"document_id": [BASE], "source": ["a.txt"], "chunk": [0], "sha256": ["x"], "n_tokens": [N], "text": ["words"]},
    )  # fmt: skip
    tokens = np.random.default_rng(8).integers(0, N_TYPES, N).astype(np.int32)
    bulk.insert(
        session,
        schema.state_row,
        {
            "state_id": BASE + np.arange(N), "document_id": [BASE] * N, "position": np.arange(N, dtype=np.int32),
            "token_id": tokens,
        },
    )  # fmt: skip
    bulk.insert(
        session,
        schema.token_row,
        {
            "tokenizer": ["t"] * N_TYPES, "token_id": np.arange(N_TYPES, dtype=np.int32),
            "token": [f" t{i}" for i in range(N_TYPES)],
        },
    )  # fmt: skip


def _codes(session: Session, made: Twins) -> None:
    for model in (ALPHA, BETA):
        add_run(session, f"states-{model}", "states", model, n=N)
        add_run(session, f"types-{model}", "types", model, n=N_TYPES)
        for site in SITES:
            if (model, site) not in made.states:
                continue
            x, t = made.states[model, site], made.types[model, site]
            mean, std = t.mean(0), t.std(0)
            for centre, away in (("zero", 0.0), ("mean", mean)):
                _set(session, f"states-{model}", model, site, "state", centre, BASE + np.arange(N), x - away)
                _set(session, f"types-{model}", model, site, "type", centre, np.arange(N_TYPES), t - away)
            flat = np.zeros(WIDTH)
            columns = dict.fromkeys(("p_positive", "entropy", "argmax_share", "argmin_share"), flat)
            bulk.insert(
                session,
                schema.dimension_row,
                {
                    "run_id": [f"types-{model}"] * WIDTH, "site_id": [f"{model}/{site}"] * WIDTH, "subject": ["type"] * WIDTH,
                    "dim": np.arange(WIDTH, dtype=np.int32), "mean": mean, "std": std, **columns,
                },
            )  # fmt: skip
        add_run(session, f"neurons-{model}", "neurons", model, n=30)
        items = np.array([neuron_item(i // 10, i % 10) for i in range(30)])
        _set(session, f"neurons-{model}", model, "residual", "neuron", "zero", items, made.neurons)
        add_run(session, f"unembedding-{model}", "unembedding", model, n=N_TYPES)
        rows = np.random.default_rng(4).standard_normal((N_TYPES, WIDTH))
        _set(
            session,
            f"unembedding-{model}",
            model,
            "final_norm",
            "unembedding",
            "zero",
            np.arange(N_TYPES),
            rows,
        )
        # Two dictionaries of one site, of which beta's are alpha's, carried.
        for k in range(2):
            run_id, site = f"sae-{model}-{k}", SITES[1]
            add_run(session, run_id, "sae", model, n=N_SAE)
            w = made.dictionary + k
            if model == BETA:
                w = w @ made.rotations[site].matrix.astype(np.float64)
            items = (SAE + (k << PLACE_BITS)) + np.arange(N_SAE)
            items = items if model == ALPHA else items + (100 << PLACE_BITS)
            _set(session, run_id, model, site, "direction", "zero", items, w)
            session.add(
                schema.Sae(
                    sae_id=run_id, model_id=model, site_id=f"{model}/{site}", run_id=run_id, name=f"{model} sae {k}",
                    source="/somewhere/a.safetensors", sha256="f", n_features=N_SAE, seed=k, params="{}", added_at=WHEN,
                )
            )  # fmt: skip


def add_rotation(
    session: Session, ident: int, run_id: str, a: str, b: str, site: str, rotation: Rotation, **figures: Any
) -> None:
    row: dict[str, Any] = {
        "rotation_id": ident, "run_id": run_id, "site_a_id": f"{a}/{site}", "site_b_id": f"{b}/{site}", "width": WIDTH,
        "n_fit": 40_000, "n_validation": 5_000, "n_test": 20_000, "ev_identity": -0.9, "ev_mean_shift": 0.02,
        "ev_rotation": 0.75, "ev_scaled": 0.76, "ev_affine": 0.9, "ev_permutation": 0.05, "ev_shuffled": -0.8,
        "ev_exchanged": 0.1, "ev_exchanged_error": 0.05, "ev_shuffled_error": 0.02,
        "ev_unseen": 0.7, "ev_token_mean": 0.4, "scale": 0.9, "ridge": 0.01, "effective_rank_a": 50.0,
        "effective_rank_b": 49.0, "halves_agreement": 0.97, "frobenius_from_identity": 10.9, "rank_warning": None,
    } | figures  # fmt: skip
    for name in ("matrix", "mean_a", "mean_b", "std_a", "std_b"):
        row[name] = getattr(rotation, name).astype("<f4").tobytes()
    kinds = {
        "rank_warning": pa.string(),
        **dict.fromkeys(("ev_permutation", "ev_unseen", "ev_exchanged", "ev_exchanged_error"), pa.float64()),
    }
    bulk.insert(session, schema.rotation_row, {k: pa.array([v], kinds.get(k)) for k, v in row.items()})


def _rotations(session: Session, made: Twins) -> None:
    worthless = {
        "ev_rotation": -0.9,
        "ev_shuffled": -0.8,
        "ev_exchanged": None,
        "ev_exchanged_error": None,
        "rank_warning": "3 of 60 dimensions vary",
        "ev_permutation": None,
    }
    for hours, run_id in enumerate(("align-old", "align-new", "align-back"), 1):
        add_run(session, run_id, "align", ALPHA if run_id == "align-back" else BETA, hours)
    wrong = exact(made.states[ALPHA, SITES[1]], haar(WIDTH, 99), np.zeros(WIDTH))
    add_rotation(session, 1, "align-old", ALPHA, BETA, SITES[1], wrong)
    add_rotation(session, 2, "align-new", ALPHA, BETA, SITES[1], made.rotations[SITES[1]])
    add_rotation(session, 3, "align-new", ALPHA, BETA, SITES[0], made.rotations[SITES[0]], **worthless)
    add_rotation(session, 4, "align-back", BETA, ALPHA, SITES[2], made.rotations[SITES[2]].inverse)
    # Older than the one of this way, yet turned the other: it must not be taken for it.
    add_rotation(session, 5, "align-back", BETA, ALPHA, SITES[1], wrong.inverse)
    add_rotation(session, 6, "align-new", ALPHA, BETA, SITES[3], made.rotations[SITES[3]])
    n = WIDTH
    shares = 0.9 ** np.arange(n)
    bulk.insert(
        session,
        schema.rotation_component_row,
        {
            "rotation_id": [2] * n, "component": np.arange(1, n + 1, dtype=np.int32), "variance_share": shares / shares.sum(),
            "ev_rotation": np.linspace(0.95, -3, n), "ev_affine": np.linspace(0.97, 0.1, n),
            "ev_shuffled": np.full(n, -0.9),
        },
    )  # fmt: skip
    site = f"{BETA}/{SITES[1]}"

    def figure(metric: str, control: str, value: float, error: float | None = None) -> Figure:
        return Figure(site, "rotation", ALPHA, metric, control, "held_out", value, 1000, 0, error)

    figures = [
        figure(metric, control, 0.5 + i / 10)
        for metric in (
            "ks_distance",
            "trace_1",
            "frobenius_from_identity",
            "signed_permutation_distance",
            "trace_2",
            "trace_3",
        )
        for i, control in enumerate(
            ("none", "p_value", "unrelated", "p_value_unrelated", "cyclic_shift", "p_value_cyclic_shift")
        )
    ]
    arms = ("none", "as_is", "mean_shift", "affine", "signs_alone", "shuffled", "haar:1", "haar:2")
    for metric in (
        "code_agreement",
        "code_agreement_zero",
        "retrieval_top1",
        "prototype_auc",
        "feature_auc_zero",
    ):
        figures += [figure(metric, one, 0.9 - i / 20, 0.01) for i, one in enumerate(arms)]
    for metric in ("sae_ev", "firing_correlation", "sae_ev_scalar", "l0", "dead_share"):
        figures += [
            figure(metric, one, 0.9 - i / 20, 0.01) for i, one in enumerate(("none", "as_is", "gaussian"))
        ]
    figures += [figure("decoder_cosine", one, 0.5, 0.01) for one in ("none", "independent_seed", "random")]
    figures += [figure("rotation_ev", one, 0.5, 0.01) for one in ("none", "affine", "shuffled")]
    figures += [figure("rotation_ev_unseen", one, 0.5, 0.01) for one in ("none", "affine")]
    figures += [figure("steering_target", one, 0.5, 0.01) for one in ("none", "random")]
    figures += [figure("a_new_one", one, 12.5) for one in ("none", "haar:1")]
    bulk.insert_figures(session, "align-new", figures)
    rows: list[dict[str, Any]] = []
    for direction, target in (("words: calendar", "calendar tokens"), ("depth 5 less 4", "the label 5")):
        for i, arm in enumerate(("source", "as_is", "rotated", "random", "own")):
            for dose in (0.5, 1.0, 2.0, 4.0):
                rows.append(
                    {
                        "rotation_id": 2, "direction": direction, "arm": arm, "dose": dose, "norm": 3.0 * dose, "target": target,
                        "target_change": (i - 1) * dose / 4, "other_change": -0.01 * dose, "kl": 0.1 * dose, "n": 800,
                        "target_std_error": 0.01, "other_std_error": None if direction.startswith("w") else 0.01,
                        "kl_std_error": 0.001,
                    }
                )  # fmt: skip
    floats = {name: pa.float64() for name in ("target_std_error", "other_std_error", "kl_std_error")}
    columns = {name: pa.array([row[name] for row in rows], floats.get(name)) for name in rows[0]}
    bulk.insert(session, schema.steering_row, columns)


def _features(session: Session, made: Twins) -> None:
    for model in (ALPHA, BETA):
        add_run(session, f"features-{model}", "categories", model)
    row: dict[str, object] = {
        "kind": "category", "name": "animal", "basis": "standard", "n_dims": 12, "threshold": 0.75, "n_members": 3,
        "seed_token": None, "repeats": 0, "best_dim": 1, "best_dim_auc": 0.8, "auc_in_sample": 0.9, "auc_held_out": 0.85,
        "auc_rotated": 0.7, "null_p95": 0.65, "p_value": 0.001, "fire_rate": 0.1, "agreement_mean": 0.5,
        "agreement_std": 0.1,
    }  # fmt: skip
    blobs = {"mask": np.packbits(made.mask).tobytes(), "polarity": np.packbits(made.polarity).tobytes()}
    none = dict.fromkeys(("threshold", "best_dim", "best_dim_auc", "auc_in_sample", "null_p95"))
    for ident, model, centre, other in (
        (FEATURE, ALPHA, "mean", {}),
        (DIRECTED, ALPHA, "zero", {"name": "colour"}),
        (CARRIED, BETA, "mean", {"kind": "direction", **none}),
    ):
        place = {
            "feature_id": ident,
            "run_id": f"features-{model}",
            "site_id": f"{model}/{SITES[1]}",
            "centre": centre,
        }
        bulk.insert(
            session, schema.feature_row, {k: pa.array([v]) for k, v in (row | blobs | place | other).items()}
        )
    member = {"feature_id": [CARRIED] * 3, "token_id": [3, 4, 5], "part": ["score"] * 3}
    bulk.insert(session, schema.feature_member, member)
    carried = {"feature_id": [CARRIED], "rotation_id": [2], "source_feature_id": [FEATURE]}
    bulk.insert(session, schema.carried_row, carried)
    add_run(session, "flip", "flip", ALPHA)
    difference = np.where(made.mask, 2.0 * made.polarity - 1, 0.5)
    _set(session, "flip", ALPHA, SITES[1], "direction", "zero", np.array([DIRECTED]), difference[None])
