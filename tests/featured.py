"""Features over the real codes of a catalogue, for the tests of what reads them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from conftest import Made
from numpy.typing import NDArray

from signarium.catalog import bulk, schema, store

_WHEN = datetime(2026, 1, 2, 3, 4, 5)
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
    path = folder / "featured.duckdb"
    shutil.copy(catalogue.path, path)
    shutil.copytree(f"{catalogue.path}.indexes", f"{path}.indexes")
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
