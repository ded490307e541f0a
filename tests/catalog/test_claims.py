"""The verdicts of `evidence`: computed from measurements by SQL, here against figures whose verdict is known."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest
import small

from signarium.catalog import bulk, parts, schema, store


def figure(metric: str, control: str, split: str, value: float, **other: object) -> bulk.Figure:
    kind = {"site_id": "s0", "subject": "swept", "subject_id": "mean", "n": 100, "std_error": 0.01} | other
    return bulk.Figure(metric=metric, control=control, split=split, value=value, **kind)  # type: ignore[arg-type]


SWEPT = figure("layer_sweep_auc", "none", "held_out", 0.9, subject="category")


def catalogue(path: Path, *runs: list[bulk.Figure], params: str = "{}") -> Path:
    small.filled(path)
    with store.writing(path) as session:
        for i, figures in enumerate(runs):
            made = small.run(f"figures-{i}", "categories")
            made.started_at = datetime(2026, 1, 1) + timedelta(days=i)
            made.params = params if i == len(runs) - 1 else "{}"
            session.add(made)
            bulk.insert_figures(session, made.run_id, figures)
    return path


def verdicts(path: Path, claim_id: str) -> dict[str, tuple[float | None, float | None, str]]:
    with store.reading(path) as connection:
        rows = connection.execute(
            "SELECT control, value, control_value, verdict FROM evidence WHERE claim_id = ? AND centre IN ('mean', '')",
            [claim_id],
        ).fetchall()
    return {row[0]: tuple(row[1:]) for row in rows}  # type: ignore[misc]


def test_every_claim_has_a_row_before_anything_is_measured(tmp_path: Path) -> None:
    path = catalogue(tmp_path / "c.duckdb")
    with store.reading(path) as connection:
        rows = connection.execute("SELECT claim_id, centre, control, verdict FROM evidence").fetchall()
    assert {row[3] for row in rows} == {"not measured"}
    assert {row[:3] for row in rows} == {
        (one.claim_id, centre.replace("*", ""), control.name)
        for one in parts.claims()
        for centre in one.centres
        for control in one.judged
    }
    assert len(rows) == len(set(rows))


@pytest.mark.parametrize(("rotated", "expected"), [(0.70, "survives"), (0.79, "does not survive")])
def test_above_counts_the_paired_error_and_the_spread_of_draws(
    tmp_path: Path, rotated: float, expected: str
) -> None:
    """0.80 against draws around 0.70 or 0.79: errors of 0.01 and the draws' spread leave the second within chance."""
    draws = [figure("best_dim_auc", f"haar:{i}", "in_sample", rotated + 0.005 * (i - 2)) for i in (1, 2, 3)]
    own = figure("best_dim_auc", "none", "in_sample", 0.80, std_error=0.5)
    found = verdicts(catalogue(tmp_path / "c.duckdb", [SWEPT, own, *draws]), "1.1")["rotated basis"]
    assert found == (0.80, pytest.approx(rotated), expected)


def test_the_published_range_and_a_held_out_half(tmp_path: Path) -> None:
    own = figure("best_dim_auc", "none", "in_sample", 0.80)
    half = figure("best_dim_auc", "none", "held_out", 0.70)
    found = verdicts(catalogue(tmp_path / "c.duckdb", [SWEPT, own, half]), "1.1")
    assert found["the published range"] == (0.80, 0.80, "survives")
    assert found["held-out half"] == (0.80, 0.70, "does not survive")
    assert found["random weights"] == (0.80, None, "not measured")


def test_mutual_information_must_stay_below(tmp_path: Path) -> None:
    own = figure("mi_mean", "none", "in_sample", 0.003, subject="type", std_error=None)
    high = figure("mi_mean", "haar:1", "in_sample", 0.006, subject="type", std_error=None)
    found = verdicts(catalogue(tmp_path / "c.duckdb", [SWEPT, own, high]), "3.1")
    assert found["the published range"][2] == "survives"
    assert found["rotated basis"] == (0.003, 0.006, "survives")


def test_the_newest_sweep_says_which_site(tmp_path: Path) -> None:
    path = tmp_path / "c.duckdb"
    small.filled(path)
    with store.writing(path) as session:
        session.add(
            schema.Site(
                site_id="s9", model_id="m0", name="resid_post.0", point="resid_post", layer=0, width=76
            )
        )
        for i, site in enumerate(("s0", "s9")):
            made = small.run(f"figures-{i}", "categories")
            made.started_at = datetime(2026, 1, 1 + i)
            session.add(made)
            figures = [
                figure("layer_sweep_auc", "none", "held_out", 0.9, subject="category", site_id=site),
                figure("best_dim_auc", "none", "in_sample", 0.6 + i / 10, site_id=site),
            ]
            bulk.insert_figures(session, made.run_id, figures)
    assert verdicts(path, "1.1")["the published range"][0] == pytest.approx(0.7)


def test_categories_of_ones_own_do_not_answer_for_the_pack(tmp_path: Path) -> None:
    pack = [SWEPT, figure("best_dim_auc", "none", "in_sample", 0.72)]
    own = [SWEPT, figure("best_dim_auc", "none", "in_sample", 0.99, n=1000)]
    path = catalogue(tmp_path / "c.duckdb", pack, own, params='{"categories": "mine.csv"}')
    assert verdicts(path, "1.1")["the published range"][0] == pytest.approx(0.72)


def test_a_random_twin_answers_at_the_same_site(tmp_path: Path) -> None:
    path = catalogue(tmp_path / "c.duckdb", [SWEPT, figure("best_dim_auc", "none", "in_sample", 0.72)])
    with store.writing(path) as session:
        model = session.get_one(schema.Model, "m0")
        values = {one.name: getattr(model, one.name) for one in schema.Model.__table__.columns}
        session.add(schema.Model(**(values | {"model_id": "m1", "name": "twin", "random_init_seed": 3})))
        session.add(
            schema.Site(
                site_id="t0", model_id="m1", name="resid_post.1", point="resid_post", layer=1, width=76
            )
        )
        # All of its categories, wherever its own sweep went.
        twin = figure("best_dim_auc", "none", "in_sample", 0.60, subject="category", site_id="t0")
        bulk.insert_figures(session, "figures-0", [twin])
    assert verdicts(path, "1.1")["random weights"] == (0.72, 0.60, "survives")
    with store.reading(path) as connection:
        assert connection.execute("SELECT DISTINCT model FROM evidence").fetchall() == [("tiny",)]
