"""Features over the real codes of a catalogue, for the tests of what reads them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from made import Made, copied
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from signarium.catalog import bulk, schema, store

_WHEN = datetime(2126, 1, 2, 3, 4, 5)
"""After the codes that the features are of."""
RUN = "features-run"
FIRST = 1000
"""The features of `add` have ids from here on."""


@dataclass(frozen=True)
class Row:
    """One feature that was added: where, and its pattern as bits (width,)."""

    feature_id: int
    name: str
    kind: str
    site: str
    centre: str
    mask: NDArray[np.uint8]
    polarity: NDArray[np.uint8]


def copy(catalogue: Made, folder: Path, model: str) -> tuple[Path, list[Row]]:
    """A copy of the tests' catalogue with a dozen features of `model` at two sites and both centres."""
    path = copied(catalogue.path, folder / "featured.duckdb")
    return path, add(path, model)


def add(path: Path, model: str, seed: int = 0) -> list[Row]:
    """Features with members, tops and figures. Patterns are random but for the first of each place, one type's code.

    The names: `royal`, `animal` (at every place), ` king` and `empty name` ones; the last feature has no tests.
    """
    rng = np.random.default_rng(seed)
    with duckdb.connect(str(path), read_only=True) as connection:
        places = connection.execute(
            "SELECT DISTINCT s.site_id, s.name, cs.centre, s.width FROM code_set cs JOIN site s USING (site_id) "
            "JOIN model m USING (model_id) WHERE m.name = ? AND cs.subject = 'type' AND s.point = 'resid_post' "
            "ORDER BY s.name, cs.centre",
            [model],
        ).fetchall()
        king, king_codes = _king(connection, model)
        states = connection.execute(
            "SELECT state_id FROM states WHERE model = ? AND NOT is_first AND site = ? AND centre = 'zero' "
            "ORDER BY state_id",
            [model, places[0][1]],
        ).fetchnumpy()["state_id"]
        (text_run,) = connection.execute(
            "SELECT min(run_id) FROM runs WHERE model = ? AND job = 'states'", [model]
        ).fetchone() or ("",)
        (model_id,) = connection.execute("SELECT model_id FROM model WHERE name = ?", [model]).fetchone() or (
            "",
        )
    made: list[Row] = []
    rows: list[dict[str, object]] = []
    figures: list[bulk.Figure] = []
    for site_id, site, centre, width in places:
        for name, kind, n_dims in (
            (" king", "discovered", width // 2),
            ("animal", "category", 7),
            (f"{site} only", "category", 1),
        ):
            ident = FIRST + len(made)
            mask = np.zeros(width, np.uint8)
            mask[rng.choice(width, n_dims, replace=False)] = 1
            signs = np.unpackbits(king_codes[site, centre], count=width)
            polarity = (signs if kind == "discovered" else rng.integers(0, 2, width).astype(np.uint8)) * mask
            made.append(Row(ident, name, kind, site, centre, mask, polarity))
            single = kind == "discovered"
            tested = n_dims > 1
            rows.append(
                {
                    "feature_id": ident, "run_id": RUN, "site_id": site_id, "kind": kind, "name": name,
                    "centre": centre, "basis": "standard", "n_dims": n_dims,
                    "mask": np.packbits(mask).tobytes(), "polarity": np.packbits(polarity).tobytes(),
                    "threshold": None if single or not tested else 0.75, "n_members": 3,
                    "seed_token": king if single else None, "repeats": 2 if single else 0, "best_dim": 1,
                    "best_dim_auc": 0.6 if ident % 3 == 2 else 0.8, "auc_in_sample": 0.9,
                    "auc_held_out": 0.9 - ident / 10_000 if tested else None, "auc_rotated": 0.7, "null_p95": 0.65,
                    "p_value": (0.001 if single else 0.5) if tested else None, "fire_rate": 0.001 * (ident % 4),
                    "agreement_mean": 0.5, "agreement_std": 0.0 if ident % 3 == 2 else 0.1,
                }
            )  # fmt: skip
            for control, value in (("none", 0.9), ("haar:1", 0.7), ("haar:2", 0.8), ("anchors", 0.5)):
                figures.append(
                    bulk.Figure(
                        site_id, "feature", str(ident), "auc_agreement", control, "held_out", value, 3
                    )
                )
            figures.append(
                bulk.Figure(site_id, "feature", str(ident), "auc_probe", "none", "held_out", 0.95, 3)
            )
            figures.append(
                bulk.Figure(site_id, "feature", str(ident), "a_new_one", "none", "held_out", 12.5, 3)
            )
            if single:
                for name_, value in (("category_share", 0.4), ("same_word_share", 0.0)):
                    for control in ("none", "spelling", "frequency", "random"):
                        figures.append(
                            bulk.Figure(site_id, "feature", str(ident), name_, control, "in_sample", value, 3)
                        )
                for name_, value in (("mean", 0.55), ("std", 0.05)):
                    metric = f"agreement_context_{name_}"
                    figures.append(
                        bulk.Figure(site_id, "feature", str(ident), metric, "none", "held_out", value, 9)
                    )
    ids = np.array([one.feature_id for one in made])
    with store.writing(path) as session:
        session.add(
            schema.Run(
                run_id=RUN, job="categories", model_id=model_id, params="{}", versions="{}", device="cpu",
                complete=True, failure=None, started_at=_WHEN, finished_at=_WHEN,
            )
        )  # fmt: skip
        bulk.insert(session, schema.feature_row, {k: pa.array([row[k] for row in rows]) for k in rows[0]})
        bulk.insert(
            session,
            schema.feature_member,
            {
                "feature_id": np.repeat(ids, 3),
                "token_id": np.tile([king, 5, 6], len(ids)),
                "part": ["define", "define", "score"] * len(ids),
            },
        )
        bulk.insert(
            session,
            schema.feature_type_row,
            {
                "feature_id": np.repeat(ids, 50),
                "rank": np.tile(np.arange(1, 51), len(ids)),
                "token_id": np.tile(np.arange(50, 100), len(ids)),
                "agreement": np.tile(np.linspace(1, 0.8, 50), len(ids)),
            },
        )
        chosen = states[np.linspace(3, len(states) - 1, 30).astype(int)]
        bulk.insert(
            session,
            schema.feature_state_row,
            {
                "run_id": [text_run] * 30 * len(ids),
                "feature_id": np.repeat(ids, 30),
                "state_id": np.tile(chosen, len(ids)),
                "agreement": np.tile(np.round(np.linspace(0.99, 0.8, 30), 2), len(ids)),
            },
        )
        bulk.insert_figures(session, RUN, figures)
    return made


def _king(
    connection: duckdb.DuckDBPyConnection, model: str
) -> tuple[int, dict[tuple[str, str], NDArray[np.uint8]]]:
    rows = connection.execute(
        "SELECT token_id, site, centre, code FROM types WHERE model = ? AND token = ' king'", [model]
    ).fetchall()
    return rows[0][0], {(row[1], row[2]): np.frombuffer(row[3], np.uint8) for row in rows}


# ---- causes ---------------------------------------------------------------------------------------

BLOCKS = (37, 30)
"""Neurons by block: no two alike."""
FLIP_RUNS = ("flip-1", "flip-2")
"""Of the first feature; the second is the latest."""
DOSES = (0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Causes:
    """What `add_causes` added, as bits (n, width) and items (n,)."""

    neurons: NDArray[np.uint8]
    neuron_items: NDArray[np.int64]
    unembedding: NDArray[np.uint8]
    direction: NDArray[np.uint8]


def add_causes(path: Path, model: str, rows: list[Row], seed: int = 0) -> Causes:
    """Neurons, an unembedding, a direction and two flips of the first feature, writers, coalitions, and words.

    Among the neurons are equal ones, opposites of each other, and one as far from type ` king` as its opposite.
    """
    rng = np.random.default_rng(seed)
    width = len(rows[0].mask)
    with duckdb.connect(str(path), read_only=True) as connection:
        ((model_id, vocabulary),) = connection.execute(
            "SELECT model_id, vocab_size FROM model WHERE name = ?", [model]
        ).fetchall()
        sites = dict(
            connection.execute("SELECT name, site_id FROM site WHERE model_id = ?", [model_id]).fetchall()
        )
        _, king_codes = _king(connection, model)
    king = np.unpackbits(king_codes["resid_post.1", "mean"], count=width)
    bits = rng.integers(0, 2, (sum(BLOCKS), width)).astype(np.uint8)
    bits[5:9] = bits[4]
    bits[9:12] = 1 - bits[4]
    bits[12] = king ^ (np.arange(width) < width // 2)
    bits[40] = bits[12]
    items = np.array([layer << 24 | i for layer, n in enumerate(BLOCKS) for i in range(n)], np.int64)
    unembedding = rng.integers(0, 2, (vocabulary, width)).astype(np.uint8)
    direction = rng.integers(0, 2, (1, width)).astype(np.uint8)
    first = rows[0]
    sets = (
        ("neurons", "neuron", "residual", items, bits),
        ("unembedding", "unembedding", "final_norm", np.arange(vocabulary), unembedding),
        (FLIP_RUNS[0], "direction", first.site, np.array([first.feature_id]), 1 - direction),
        (FLIP_RUNS[1], "direction", first.site, np.array([first.feature_id]), direction),
    )
    with store.writing(path) as session:
        for name, point in (("residual", "residual"), ("final_norm", "final_norm")):
            if name not in sites:
                sites[name] = f"{model_id}/{name}"
                session.add(
                    schema.Site(
                        site_id=sites[name],
                        model_id=model_id,
                        name=name,
                        point=point,
                        layer=None,
                        width=width,
                    )
                )
        jobs = {"neurons": "neurons", "unembedding": "unembedding", "writers": "writers", "words": "words"}
        jobs |= dict.fromkeys(FLIP_RUNS, "flip")
        for i, (run_id, job) in enumerate(jobs.items()):
            params = '{"scored_windows": 4, "own_tokens": 3, "other_tokens": 30}' if job == "flip" else "{}"
            session.add(
                schema.Run(
                    run_id=run_id, job=job, model_id=model_id, params=params, versions="{}", device="cpu",
                    complete=True, failure=None, started_at=_WHEN + timedelta(hours=i), finished_at=_WHEN,
                )
            )  # fmt: skip
        for i, (run_id, subject, site, own, some) in enumerate(sets):
            n = len(own)
            session.add(
                schema.CodeSet(
                    code_set_id=77 + i, run_id=run_id, site_id=sites[site], subject=subject, centre="zero",
                    basis="standard", width=width,
                )
            )  # fmt: skip
            session.add(
                schema.Shard(
                    run_id=run_id, start=0, n=n, tokens=n, forward_s=1.0, pack_s=0.5, write_s=0.25, wall_s=2.0
                )
            )
            norms = np.linspace(1, 2, n, dtype=np.float32)
            bulk.insert_codes(
                session, [bulk.code_columns(77 + i, own.astype(np.int64), norms, np.packbits(some, axis=1))]
            )
        _add_writers(session, rows, items, bits)
        _add_words(session, sites, items, first.feature_id, rng)
        for i, run_id in enumerate(FLIP_RUNS):
            _add_flips(session, run_id, first.feature_id, sites[first.site], sites["resid_post.1"], 1.0 + i)
    return Causes(bits, items, unembedding, direction[0])


def _add_writers(
    session: Session, rows: list[Row], items: NDArray[np.int64], bits: NDArray[np.uint8]
) -> None:
    """The ten best of its own block for each feature, in either polarity; coalitions and chance of the first."""
    for row in rows:
        layer = int(row.site.split(".")[1])
        own = np.flatnonzero(items >> 24 == layer)
        agreement = ((bits[own] == row.polarity) & (row.mask == 1)).sum(1) / row.mask.sum()
        best = np.maximum(agreement, 1 - agreement)
        top = np.argsort(-best, kind="stable")[:10]
        writers = {
            "feature_id": [row.feature_id] * 10,
            "layer": [layer] * 10,
            "neuron": (items[own][top] & 0xFFFFFF).astype(np.int32),
            "rank": np.arange(1, 11, dtype=np.int32),
            "polarity": np.where(agreement[top] >= 0.5, 1, -1).astype(np.int32),
            "agreement": best[top],
        }
        bulk.insert(session, schema.writer_row, writers)
        coalitions = {
            "feature_id": [row.feature_id] * 2,
            "layer": [layer] * 2,
            "k": [1, 10],
            "agreement": [0.7, 0.8],
            "agreement_split_half": pa.array([0.5, 0.55] if row.mask.sum() > 1 else [None] * 2, pa.float64()),
            "agreement_random": [0.69, 0.85],
        }
        bulk.insert(session, schema.coalition_row, coalitions)


def _add_words(
    session: Session, sites: dict[str, str], items: NDArray[np.int64], feature: int, rng: np.random.Generator
) -> None:
    """Twenty tokens up and twenty down; of neurons of the second block the signs alone, of the last none."""
    subjects = [("neuron", int(one), "residual") for one in items[:-1]]
    subjects += [("feature", feature, "resid_post.0"), ("direction", feature, "resid_post.0")]
    columns: dict[str, list[object]] = {
        name: [] for name in ("run_id", "site_id", "subject", "item", "source", "direction", "rank", "token_id", "logit")
    }  # fmt: skip
    for subject, item, site in subjects:
        for source in ("sign",) if subject == "neuron" and item >> 24 == 1 else ("float", "sign"):
            for direction in ("up", "down"):
                tokens = rng.choice(200, 20, replace=False)
                for i, token in enumerate(tokens.tolist()):
                    row = ("words", sites[site], subject, item, source, direction, i + 1, token, 3.0 - i / 10)
                    for name, value in zip(columns, row, strict=True):
                        columns[name].append(value)
    for name in ("rank", "token_id"):
        columns[name] = np.array(columns[name], np.int32)  # type: ignore[assignment]
    columns["logit"] = np.array(columns["logit"], np.float32)  # type: ignore[assignment]
    bulk.insert(session, schema.projection_row, columns)


def _add_flips(session: Session, run_id: str, feature: int, site: str, later: str, size: float) -> None:
    """As a run of `flip` leaves them: every arm and dose at its own norm, some at that of away, and a later site."""
    slopes = {
        "away": -3.1,
        "toward": 0.4,
        "random": -0.6,
        "disjoint": -0.5,
        "rotated": -2.9,
        "mean_difference": -2.2,
    }
    rows = [(site, arm, dose, "own") for arm in slopes if arm != "rotated" for dose in DOSES]
    rows += [(site, arm, dose, "away") for arm in ("rotated", "mean_difference") for dose in DOSES]
    rows += [(site, arm, 1.0, "away") for arm in ("toward", "random", "disjoint")]
    rows += [(later, arm, 1.0, "own" if arm == "away" else "away") for arm in ("away", "random", "rotated")]
    change = np.array([size * slopes[arm] * dose for _, arm, dose, _ in rows])
    bulk.insert(
        session,
        schema.flip_row,
        {
            "run_id": [run_id] * len(rows),
            "feature_id": [feature] * len(rows),
            "site_id": [row[0] for row in rows],
            "arm": [row[1] for row in rows],
            "dose": [row[2] for row in rows],
            "at_norm": [row[3] for row in rows],
            "norm": [10.5 * row[2] for row in rows],
            "own_logit_change": change,
            "other_logit_change": change / 5,
            "kl": np.abs(change) / 10,
            "n": [64] * len(rows),
            "own_std_error": [0.05] * len(rows),
            "other_std_error": [0.04] * len(rows),
            "kl_std_error": [0.012] * len(rows),
        },
    )
