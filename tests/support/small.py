"""A small catalogue at head, filled through the functions that ingest uses."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlalchemy import Table
from sqlalchemy.orm import Session

from signarium.catalog import bulk, schema, store
from signarium.catalog.codes import pack
from signarium.catalog.ids import PLACE_BITS, int_id
from signarium.migrations import manage

WIDTH = 76
"""No multiple of 8: the last byte has padding."""
N_TYPES = 60
WINDOWS = (5, 7, 4)
BASE = 3 << PLACE_BITS
WHEN = datetime(2026, 1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Small:
    """Where it lies and what is in it: code sets by (subject, centre), each with items and codes."""

    path: Path
    sets: dict[tuple[str, str], int]
    items: dict[int, NDArray[np.int64]]
    codes: dict[int, NDArray[np.uint8]]


def empty(path: Path) -> Path:
    """A catalogue at head without rows; made once, then copied."""
    path.write_bytes(_empty())
    return path


@cache
def _empty() -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "c.duckdb"
        with store.job_lock(path):
            assert manage.ensure(path)
        return path.read_bytes()


def add_codes(
    path: Path, code_set_id: int, codes: NDArray[np.uint8], width: int, items: NDArray[np.int64]
) -> None:
    """A run of its own with one code set, done in one shard."""
    run_id = f"run-{code_set_id}"
    with store.writing(path) as session:
        session.add(run(run_id))
        session.add(code_set(code_set_id, run_id, "type", "zero", width))
        session.add(shard(run_id, len(items)))
        norms = np.ones(len(items), np.float32)
        bulk.insert_codes(session, [bulk.code_columns(code_set_id, items, norms, codes)])


def add_feature(session: Session, feature_id: int = 17, **other: object) -> None:
    """A category of tokens 3, 4 and 5 over the first three dimensions, with a type and a state that agree."""
    mask, polarity = (pack(np.eye(1, WIDTH) * 0 + (np.arange(WIDTH) < n))[0].tobytes() for n in (3, 1))
    row: dict[str, object] = {
        "feature_id": feature_id, "run_id": "features", "site_id": "s0", "kind": "category", "name": "animal",
        "centre": "zero", "basis": "standard", "n_dims": 3, "mask": mask, "polarity": polarity, "threshold": 0.75,
        "n_members": 3, "seed_token": None, "repeats": 0, "best_dim": 1, "best_dim_auc": 0.8, "auc_in_sample": 0.9,
        "auc_held_out": 0.85, "auc_rotated": 0.7, "null_p95": 0.65, "p_value": 0.001, "fire_rate": 0.1,
        "agreement_mean": 0.5, "agreement_std": 0.25,
    } | other  # fmt: skip
    bulk.insert(session, schema.feature_row, {name: pa.array([value]) for name, value in row.items()})
    member = {"feature_id": [feature_id] * 3, "token_id": [3, 4, 5], "part": ["define", "define", "score"]}
    bulk.insert(session, schema.feature_member, member)
    top = {"feature_id": [feature_id], "rank": [1], "token_id": [4], "agreement": [1.0]}
    bulk.insert(session, schema.feature_type_row, top)
    state = {"run_id": ["states"], "feature_id": [feature_id], "state_id": [BASE + 2], "agreement": [1.0]}
    bulk.insert(session, schema.feature_state_row, state)


def add_causes(session: Session, feature_id: int = 17) -> None:
    """Of that feature two writers, coalitions of two sizes, a token up and one down, and two flips; a neuron in words."""
    one = [feature_id]
    writers = {
        "feature_id": one * 2,
        "layer": [0, 0],
        "neuron": [5, 2],
        "rank": [1, 2],
        "polarity": [1, -1],
        "agreement": [1.0, 2 / 3],
    }
    bulk.insert(session, schema.writer_row, writers)
    coalitions = {
        "feature_id": one * 2,
        "layer": [0, 0],
        "k": [1, 10],
        "agreement": [1.0, 0.8],
        "agreement_split_half": [0.6, 0.5],
        "agreement_random": [0.9, 0.95],
    }
    bulk.insert(session, schema.coalition_row, coalitions)
    for subject, item, source in (("feature", feature_id, "float"), ("neuron", 5, "sign")):
        words = {
            "run_id": ["features"] * 2,
            "site_id": ["s0"] * 2,
            "subject": [subject] * 2,
            "item": [item] * 2,
            "source": [source] * 2,
            "direction": ["up", "down"],
            "rank": [1, 1],
            "token_id": [3, 4],
            "logit": np.array([2.5, -1.5], np.float32),
        }
        bulk.insert(session, schema.projection_row, words)
    flips = {
        "run_id": ["features"] * 2,
        "feature_id": one * 2,
        "site_id": ["s0"] * 2,
        "arm": ["away", "random"],
        "dose": [1.0, 1.0],
        "at_norm": ["own", "away"],
        "norm": [3.0, 3.0],
        "own_logit_change": [-2.0, -0.5],
        "other_logit_change": [-0.25, -0.5],
        "kl": [0.5, 0.25],
        "n": [12, 12],
        "own_std_error": [0.1, 0.1],
        "other_std_error": [0.1, 0.1],
        "kl_std_error": pa.array([None, None], pa.float64()),
    }
    bulk.insert(session, schema.flip_row, flips)


def add_rotation(session: Session) -> None:
    """The rotation by nothing of the one model to itself, with a row in each table of rotations, and a dictionary."""
    eye = np.eye(WIDTH, dtype="<f4").tobytes()
    flat = np.zeros(WIDTH, "<f4").tobytes()
    fixed = {"rotation_id": 5, "run_id": "features", "site_a_id": "s0", "site_b_id": "s0", "width": WIDTH}
    blobs = {"matrix": eye} | dict.fromkeys(("mean_a", "mean_b", "std_a", "std_b"), flat)
    row: dict[str, object] = {}
    for column in schema.rotation_row.c:
        kind = str(column.type)
        row[column.key] = fixed.get(column.key, blobs.get(column.key, None if kind == "VARCHAR" else 1))
    bulk.insert(
        session,
        schema.rotation_row,
        {name: pa.array([value], pa.string()) if value is None else [value] for name, value in row.items()},
    )
    component = {
        "rotation_id": 5,
        "component": 1,
        "variance_share": 0.5,
        "ev_rotation": 1.0,
        "ev_affine": 1.0,
    }
    bulk.insert(
        session,
        schema.rotation_component_row,
        {k: [v] for k, v in (component | {"ev_shuffled": -1.0}).items()},
    )
    carried = {"feature_id": [17], "rotation_id": [5], "source_feature_id": [17]}
    bulk.insert(session, schema.carried_row, carried)
    texts = {"direction": "words", "arm": "own", "target": "tokens"}
    steering = {
        one.key: [texts.get(one.key, 5 if one.key == "rotation_id" else 1.0)] for one in schema.steering_row.c
    }
    bulk.insert(session, schema.steering_row, steering | {"n": [3]})
    session.add(
        schema.Sae(
            sae_id="d0", model_id="m0", site_id="s0", run_id="features", name="dictionary", source="here", sha256="f",
            n_features=2, seed=None, params="{}", added_at=WHEN,
        )
    )  # fmt: skip


def run(run_id: str, job: str = "types") -> schema.Run:
    return schema.Run(
        run_id=run_id,
        job=job,
        model_id="m0",
        params="{}",
        versions='{"signarium": "0"}',
        device="cpu",
        complete=True,
        failure=None,
        started_at=WHEN,
        finished_at=WHEN,
    )


def shard(run_id: str, n: int, start: int = 0) -> schema.Shard:
    return schema.Shard(
        run_id=run_id, start=start, n=n, tokens=n, forward_s=1.0, pack_s=0.5, write_s=0.25, wall_s=2.0
    )


def code_set(ident: int, run_id: str, subject: str, centre: str, width: int) -> schema.CodeSet:
    return schema.CodeSet(
        code_set_id=ident,
        run_id=run_id,
        site_id="s0",
        subject=subject,
        centre=centre,
        basis="standard",
        width=width,
    )


def model_and_site(width: int = WIDTH) -> list[schema.Base]:
    model = schema.Model(
        model_id="m0",
        name="tiny",
        source="here",
        revision=None,
        architecture="llama",
        width=width,
        n_layers=2,
        d_ffn=99,
        vocab_size=N_TYPES,
        dtype="float32",
        weights_sha256="w",
        tokenizer_sha256="t",
        random_init_seed=None,
        added_at=WHEN,
    )
    site = schema.Site(
        site_id="s0", model_id="m0", name="resid_post.1", point="resid_post", layer=1, width=width
    )
    return [model, site]


def filled(path: Path) -> Small:
    """Types and states of one model at one site, both centres; three documents; a row in every table but one."""
    data, made = _filled()
    path.write_bytes(data)
    return replace(made, path=path)


@cache
def _filled() -> tuple[bytes, Small]:
    with TemporaryDirectory() as folder:
        made = _fill(Path(folder) / "c.duckdb")
        return made.path.read_bytes(), made


def _fill(path: Path) -> Small:
    empty(path)
    rng = np.random.default_rng(0)
    sets: dict[tuple[str, str], int] = {}
    items: dict[int, NDArray[np.int64]] = {}
    codes: dict[int, NDArray[np.uint8]] = {}
    n_states = sum(WINDOWS)
    for subject, own in (
        ("type", np.arange(N_TYPES, dtype=np.int64)),
        ("state", BASE + np.arange(n_states, dtype=np.int64)),
    ):
        for centre in ("zero", "mean"):
            ident = int_id(subject, centre)
            sets[subject, centre] = ident
            items[ident] = own
            codes[ident] = pack(rng.standard_normal((len(own), WIDTH)))
    texts = [f"window {i} – naïve" for i in range(len(WINDOWS))]
    with store.writing(path) as session:
        session.add_all(model_and_site())
        for job, subject, n in (("types", "type", N_TYPES), ("states", "state", n_states)):
            session.add(run(job, job))
            session.add(shard(job, n))
            session.add_all(code_set(sets[subject, c], job, subject, c, WIDTH) for c in ("zero", "mean"))
        session.add(
            schema.TextFile(
                text_id=BASE,
                name="a.txt",
                sha256="x",
                size=9,
                kind="text",
                tokenizer_sha256="t",
                context=8,
                added_at=WHEN,
            )
        )
        figure = bulk.Figure("s0", "state", "", "bit_flip_rate_zero", "alone", "in_sample", 0.0, 1)
        bulk.insert_figures(session, "states", [figure])
        session.add(run("features", "categories"))
        add_feature(session)
        add_causes(session)
        add_rotation(session)
        parts = [
            bulk.code_columns(i, items[i], np.ones(len(items[i]), np.float32), codes[i])
            for i in sets.values()
        ]
        bulk.insert_codes(session, parts)
        documents = BASE + np.arange(len(WINDOWS), dtype=np.int64)
        rows: list[tuple[Table, dict[str, object]]] = [
            (schema.run_text, {"run_id": ["states"], "place": [0], "text_id": [BASE]}),
            (
                schema.document_row,
                {
                    "document_id": documents,
                    "source": ["a.txt"] * len(WINDOWS),
                    "chunk": np.arange(len(WINDOWS), dtype=np.int32),
                    "sha256": [hashlib.sha256(one.encode()).hexdigest() for one in texts],
                    "n_tokens": np.array(WINDOWS, np.int32),
                    "text": texts,
                },
            ),
            (
                schema.state_row,
                {
                    "state_id": BASE + np.arange(n_states, dtype=np.int64),
                    "document_id": np.repeat(documents, WINDOWS),
                    "position": np.concatenate([np.arange(n, dtype=np.int32) for n in WINDOWS]),
                    "token_id": rng.integers(0, N_TYPES, n_states).astype(np.int32),
                },
            ),
            (
                schema.token_row,
                {
                    "tokenizer": ["t"] * N_TYPES,
                    "token_id": np.arange(N_TYPES, dtype=np.int32),
                    "token": [f" t{i}" for i in range(N_TYPES)],
                },
            ),
            (
                schema.dimension_row,
                {
                    "run_id": ["types"] * WIDTH,
                    "site_id": ["s0"] * WIDTH,
                    "subject": ["type"] * WIDTH,
                    "dim": np.arange(WIDTH, dtype=np.int32),
                    **{
                        name: rng.random(WIDTH)
                        for name in ("p_positive", "entropy", "mean", "std", "argmax_share", "argmin_share")
                    },
                },
            ),
        ]
        for table, columns in rows:
            assert bulk.insert(session, table, columns) > 0
    return Small(path, sets, items, codes)


def python(code: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    """Another process of this interpreter that runs `code`; its output is piped."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )
