"""The stage features, end to end: what it leaves, again, resumed, and with categories of one's own."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import wordy
from digest import Commands, digest, rows, sound
from effort import some
from once import Once

import signarium
from signarium.catalog.codes import agreement, unpack
from signarium.catalog.errors import InvalidInput
from signarium.ingest import stages
from signarium.ingest.features import stage, type_jobs
from signarium.ingest.model.loaded import LoadedModel
from signarium.ingest.stats.bases import bases
from signarium.ingest.words import anchors

pytestmark = pytest.mark.long

OPTIONS: dict[str, Any] = wordy.INGESTED | {"stages": ["types", "states", "features"]}


@pytest.fixture(scope="module")
def home(once: Once) -> Path:
    """A model, a text, and a catalogue with features over both: to be read."""
    return once.folder("wordy", wordy.catalogue)


def ingest(path: Path, home: Path, **options: Any) -> Any:
    text = [] if options.pop("no_text", False) else [home / "a.txt"]
    return signarium.ingest(path, home / "wordy-0", text=text, **(OPTIONS | options))  # type: ignore[operator]


def own_categories(home: Path, **extra: list[str]) -> Path:
    """A file with one category of 25 words, and others."""
    file = home / "own.csv"
    some = [word for words in wordy.words().values() for word in words][:25]
    lines = [f"{name},{word}" for name, words in ({"mine": some} | extra).items() for word in words]
    file.write_text("category,word\n" + "\n".join(lines) + "\n")
    return file


def members_of(path: Path) -> dict[int, list[int]]:
    """The types that each feature was made from."""
    return dict(rows(path, "SELECT feature_id, list(token_id) FROM feature_members GROUP BY ALL"))


# ---- what it leaves -----------------------------------------------------------------------------


def test_features_are_a_default_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = [replace(one, usual=True) for one in stages.LISTED]
    monkeypatch.setattr(stages, "LISTED", usual)
    later = ["features", "neurons", "writers"]
    assert [one.name for one in stages.choose(None, ["text"])] == ["types", "states", *later]
    assert [one.name for one in stages.choose(None, [])] == ["types", *later]


def test_every_job_is_done_and_nothing_is_left_behind(home: Path) -> None:
    path = home / "c.duckdb"
    jobs = rows(path, "SELECT job, status FROM runs ORDER BY started_at")
    assert [job for job, _ in jobs][:2] == ["types", "states"]
    assert {job for job, _ in jobs} == {"types", "states", *stage.JOBS}
    assert {status for _, status in jobs} == {"done"}
    assert not [one.name for one in home.iterdir() if "scratch" in one.name or one.name.endswith(".lock")]
    sound(path)


def test_a_feature_is_what_its_columns_say(home: Path) -> None:
    """Mask, tops, fire rate and AUC of every feature, computed from the stored codes of the types."""
    path = home / "c.duckdb"
    features = rows(
        path,
        "SELECT feature_id, site, centre, kind, n_dims, mask, polarity, fire_rate, auc_in_sample FROM features ORDER BY feature_id",
    )
    kinds = {row[3] for row in features}
    assert kinds == {"category", "discovered"}
    parts = defaultdict[tuple[str, str], list[bytes]](list)
    for site, centre, code in rows(path, "SELECT site, centre, code FROM types ORDER BY token_id"):
        parts[site, centre].append(code)
    codes = {
        key: np.frombuffer(b"".join(some), np.uint8).reshape(wordy.ROWS, -1) for key, some in parts.items()
    }
    tops = defaultdict[int, list[tuple[int, float]]](list)
    for ident, *top in rows(
        path, "SELECT feature_id, token_id, agreement FROM feature_types ORDER BY feature_id, rank"
    ):
        tops[ident].append(tuple(top))
    members = members_of(path)
    seeds = dict(rows(path, "SELECT feature_id, seed_token FROM feature_row WHERE kind = 'discovered'"))
    for ident, site, centre, kind, n_dims, mask, polarity, fire_rate, auc in features:
        m, p = (np.frombuffer(one, np.uint8) for one in (mask, polarity))
        assert np.bitwise_count(m).sum() == n_dims > 0
        assert not (p & ~m).any()
        shares = agreement(codes[site, centre], m, p)
        assert fire_rate == pytest.approx((shares >= 0.8 - 1e-12).mean())
        expected = np.lexsort((np.arange(wordy.ROWS), -shares))[:50]
        assert [token for token, _ in tops[ident]] == expected.tolist()
        assert np.allclose([share for _, share in tops[ident]], shares[expected], rtol=1e-6, atol=1e-12)
        others = np.ones(wordy.ROWS, bool)
        others[members[ident]] = False
        assert (ident in seeds) == (kind == "discovered")
        if ident in seeds:
            others[seeds[ident]] = False
        a, b = shares[members[ident]][:, None], shares[others][None]
        assert auc == pytest.approx(((a > b) + 0.5 * (np.abs(a - b) < 1e-12)).mean(), abs=1e-9)


def test_states_are_scored_without_first_positions(home: Path) -> None:
    path = home / "c.duckdb"
    found = rows(
        path,
        "SELECT feature_id, f.site, f.centre, f.mask, f.polarity FROM features f WHERE f.kind = 'category' ORDER BY ALL LIMIT 4",
    )
    members = members_of(path)
    for ident, site, centre, mask, polarity in found:
        states = rows(
            path,
            "SELECT state_id, token_id, code FROM states WHERE site = ? AND centre = ? AND position > 0 ORDER BY state_id",
            [site, centre],
        )
        codes = np.frombuffer(b"".join(row[2] for row in states), np.uint8).reshape(len(states), -1)
        shares = agreement(codes, np.frombuffer(mask, np.uint8), np.frombuffer(polarity, np.uint8))
        order = np.argsort(-shares, kind="stable")[:20]
        tops = rows(
            path, "SELECT state_id, agreement FROM feature_states WHERE feature_id = ? ORDER BY rank", [ident]
        )
        assert [row[0] for row in tops] == [states[i][0] for i in order]
        assert [row[1] for row in tops] == pytest.approx(shares[order].tolist())
        figures = dict(
            rows(
                path,
                "SELECT metric, value FROM measurements WHERE subject_id = ? AND metric LIKE '%context%'",
                [str(ident)],
            )
        )
        assert figures["agreement_context_mean"] == pytest.approx(shares.mean())
        assert figures["agreement_context_std"] == pytest.approx(shares.std())
        inside = np.isin([row[1] for row in states], members[ident])
        a, b = shares[inside][:, None], shares[~inside][None]
        assert figures["auc_context"] == pytest.approx(((a > b) + 0.5 * (np.abs(a - b) < 1e-12)).mean())
    contexts = rows(path, "SELECT token, context, position FROM feature_states LIMIT 200")
    assert all(token in context and position > 0 for token, context, position in contexts)


def test_figures_stand_beside_their_controls(home: Path) -> None:
    path = home / "c.duckdb"
    found = {
        tuple(row)
        for row in rows(
            path,
            "SELECT DISTINCT subject, metric, control, split FROM measurements WHERE subject <> 'feature' AND site = 'resid_post.1'",
        )
    }
    for metric in ("best_dim_auc", "auc_agreement", "auc_log_odds"):
        for control in ("none", *bases()):
            assert ("category", metric, control, "held_out") in found
    assert ("category", "auc_probe", "none", "held_out") in found
    for control in ("anchors", "anchors_rank"):
        assert ("category", "auc_agreement", control, "held_out") in found
    for control in ("none", *bases()):
        assert ("type", "mi_mean", control, "in_sample") in found
        assert ("state", "mi_mean", control, "in_sample") in found
        assert ("category", "auc_context", control, "held_out") in found
        assert ("discovered", "features_distinct", control, "in_sample") in found
    verdicts = dict(rows(path, "SELECT claim_id || control || centre, verdict FROM evidence"))
    assert set(verdicts.values()) == {"survives", "does not survive", "not measured"}
    assert rows(path, "SELECT DISTINCT verdict FROM evidence WHERE control = 'random weights'") == [
        ("not measured",)
    ]
    # Random weights hold no categories: nothing survives its own controls.
    survivors, n = rows(
        path, "SELECT count(*) FILTER (survives), count(*) FROM features WHERE kind = 'category'"
    )[0]
    assert n > 30 and survivors <= 0.05 * n


def test_a_random_twin_is_the_control_of_its_model(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.duckdb"
    options = {"sites": "resid_post.1", "no_text": True, "stages": ["types", "features"], "seeds": 5}
    ingest(path, home, **options)
    ingest(path, home, random_init=5, **options)
    found = dict(
        rows(
            path,
            "SELECT claim_id || centre, control_value FROM evidence WHERE control = 'random weights' AND value IS NOT NULL",
        )
    )
    twin = dict(
        rows(
            path,
            "SELECT subject_id, value FROM measurements WHERE model LIKE '%random-5' AND subject = 'category' "
            "AND metric = 'best_dim_auc' AND control = 'none' AND split = 'in_sample'",
        )
    )
    assert found["1.1zero"] == twin["zero"] and found["1.1mean"] == twin["mean"]
    assert {row[0] for row in rows(path, "SELECT DISTINCT model FROM evidence")} == {"wordy-0"}


# ---- again, resumed, more -----------------------------------------------------------------------


def test_the_same_again_does_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = home / "c.duckdb"
    before = path.read_bytes()
    monkeypatch.setattr(LoadedModel, "forward", lambda *_: pytest.fail("computed again"))
    report = ingest(path, home)
    assert report.already and report.estimate.features == 0 and report.estimate.tokens == 0
    assert path.read_bytes() == before


def test_types_first_and_features_later_are_the_same(home: Path, tmp_path: Path) -> None:
    """Control bases that the stage types has not left are made by a pass of their own."""
    path, options = tmp_path / "c.duckdb", {"sites": "k.1"}
    ingest(path, home, stages=["types"], no_text=True, seeds=None, **options)
    ingest(path, home, stages=["states"], seeds=None, **options)
    assert not rows(path, "SELECT 1 FROM features")
    ingest(path, home, stages=["features"], no_text=True, **options)
    query = (
        "SELECT name, site, kind, centre, mask, polarity, auc_held_out, auc_rotated, p_value FROM features "
        "WHERE site = 'k.1' ORDER BY ALL"
    )
    found = rows(path, query)
    assert found
    assert found == rows(home / "c.duckdb", query)


def test_sites_and_categories_of_ones_own_are_added(home: Path, tmp_path: Path) -> None:
    path, options = tmp_path / "c.duckdb", {"no_text": True, "seeds": 10}
    ingest(path, home, sites="resid_post.0", stages=["types", "features"], **options)
    first = rows(path, "SELECT * FROM feature_row ORDER BY feature_id")
    ingest(path, home, sites="resid_post.0,1", stages=["types", "features"], **options)
    there = {
        row[0] for row in rows(path, "SELECT feature_id FROM feature_row WHERE site_id LIKE '%resid_post.0'")
    }
    assert there == {row[0] for row in first}
    file = own_categories(tmp_path, tiny=["gold", "iron"])
    report = ingest(path, home, sites="resid_post.0", stages=["features"], categories=file, **options)
    assert any("tiny (" in note and "left out" in note for note in report.notes)
    assert rows(path, "SELECT name, count(*) FROM features WHERE name IN ('mine', 'tiny') GROUP BY 1") == [
        ("mine", 2)
    ]
    # Discovery was not done twice.
    assert rows(path, "SELECT count(*) FROM runs WHERE job = 'discovery'") == [(2,)]


def test_a_run_cut_short_is_finished_with_all_its_sites(home: Path, tmp_path: Path) -> None:
    """Asked again for one of its sites, it still does the others, whose control codes it then needs."""
    path = tmp_path / "c.duckdb"
    options = {"no_text": True, "stages": ["types", "features"], "seeds": 5}
    made = type_jobs.categories.make

    def fails(bases: Any, site_id: str, *rest: Any) -> Any:
        if site_id.endswith("resid_post.1"):
            raise RuntimeError("cut short")
        return made(bases, site_id, *rest)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(type_jobs.categories, "make", fails)
        ingest(path, home, sites="resid_post.0,1", **options)
    assert rows(path, "SELECT status FROM runs WHERE job = 'categories'") == [("failed",)]
    ingest(path, home, sites="resid_post.0", **options)
    assert rows(path, "SELECT DISTINCT site FROM features WHERE kind = 'category' ORDER BY 1") == [
        ("resid_post.0",),
        ("resid_post.1",),
    ]
    assert rows(path, "SELECT count(*) FROM runs WHERE status <> 'done'") == [(0,)]


BAD = {
    "no such file": (None, "there is no file"),
    "empty": ("", "is empty"),
    "no header": ("a,b\n", "category,word"),
    "no word is a token": ("category,word\nx,qqqqqqqqqq\ny,zzzzzzzzzz\n", "20 words that are one token"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_categories_are_refused_before_anything_is_written(home: Path, tmp_path: Path, name: str) -> None:
    content, expected = BAD[name]
    file = tmp_path / "bad.csv"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InvalidInput, match=expected):
        ingest(tmp_path / "c.duckdb", home, categories=file)
    assert {one.name for one in tmp_path.iterdir()} <= {"bad.csv"}


def test_what_belongs_to_features_needs_the_stage(home: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"belongs? to the stage features"):
        ingest(tmp_path / "c.duckdb", home, stages=["types", "states"])
    with pytest.raises(InvalidInput, match="add types to `stages`"):
        ingest(tmp_path / "c.duckdb", home, stages=["features"], no_text=True)


def test_a_vocabulary_without_words_still_has_discovered_features(tmp_path: Path) -> None:
    import tiny

    path = tmp_path / "c.duckdb"
    report = signarium.ingest(  # type: ignore[operator]
        path,
        tiny.folder(tmp_path, "gpt2"),
        sites="resid_post.1",
        stages=["types", "features"],
        seeds=10,
        device="cpu",
    )
    assert any(f"no category of the pack has {anchors.LEAST} words" in note for note in report.notes)
    assert not rows(path, "SELECT 1 FROM features WHERE kind = 'category'")
    assert rows(path, "SELECT count(*) FROM runs WHERE job = 'discovery' AND status = 'done'") == [(1,)]


# ---- killed -------------------------------------------------------------------------------------


def test_killed_and_resumed_is_never_killed(warm: Commands, home: Path, tmp_path: Path) -> None:
    inputs = [
        home / "wordy-0", "--text", home / "a.txt", "--sites", "k.1", "--context", 64, "--device", "cpu",
        "--seeds", 5, "--stages", "types,states,features",
    ]  # fmt: skip
    undisturbed = tmp_path / "undisturbed.duckdb"
    loaded = str(home / "wordy-0")
    whole = warm.run("--db", undisturbed, "ingest", *inputs, loaded=loaded)
    assert whole.code == 0, whole.err
    expected = digest(undisturbed)
    path = tmp_path / "killed.duckdb"
    for part in some((0.5, 0.7, 0.85), 2):
        warm.run("--db", path, "ingest", *inputs, kill_after=part * whole.seconds, loaded=loaded)
        if path.exists():
            with duckdb.connect(str(path), read_only=True) as connection:
                # A shard is whole or not there: every feature has its tops.
                assert connection.execute(
                    "SELECT count(*) FROM feature_row WHERE feature_id NOT IN (SELECT feature_id FROM feature_type_row)"
                ).fetchone() == (0,)
    assert warm.run("--db", path, "ingest", *inputs, loaded=loaded).code == 0
    assert digest(path) == expected
    sound(path)
    assert not [one.name for one in tmp_path.iterdir() if "scratch" in one.name]


def test_patterns_of_categories_follow_the_definition(home: Path) -> None:
    """Bag of Dims, Eq. 2, from the stored codes: registered dimensions, polarity and threshold of every category."""
    path = home / "c.duckdb"
    members = members_of(path)
    for site, centre in rows(
        path, "SELECT DISTINCT site, centre FROM features WHERE kind = 'category' ORDER BY ALL"
    ):
        found = rows(
            path, "SELECT code FROM types WHERE site = ? AND centre = ? ORDER BY token_id", [site, centre]
        )
        size = len(found[0][0])
        width = rows(path, "SELECT width FROM sites WHERE site = ?", [site])[0][0]
        bits = unpack(np.frombuffer(b"".join(row[0] for row in found), np.uint8).reshape(-1, size), width)
        for ident, mask, polarity, threshold, best in rows(
            path,
            "SELECT feature_id, mask, polarity, threshold, best_dim_auc FROM features WHERE kind = 'category' AND site = ? "
            "AND centre = ?",
            [site, centre],
        ):
            ids = members[ident]
            others = np.ones(len(bits), bool)
            others[ids] = False
            apart = bits[ids].mean(0) - bits[others].mean(0)
            auc = 0.5 + np.abs(apart) / 2
            tau = 0.75 if auc.max() >= 0.75 else 0.7 if auc.max() >= 0.7 else None
            registered = auc >= tau if tau else np.arange(width) == auc.argmax()
            assert threshold == tau and best == pytest.approx(auc.max())
            assert (unpack(np.frombuffer(mask, np.uint8), width) == registered).all()
            assert (unpack(np.frombuffer(polarity, np.uint8), width) == (registered & (apart > 0))).all()
