"""A flip from end to end: what it leaves, again, resumed, at several sites, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wordy
from digest import digest, rows, sound
from effort import in_full
from once import Once
from sqlalchemy import update

from signarium.catalog import schema, store
from signarium.catalog.codes import unpack
from signarium.catalog.errors import InvalidInput, ModelError, NotFound
from signarium.ingest.flips import passes, run, tokens
from signarium.ingest.flips.arms import ARMS, DOSES
from signarium.ingest.flips.request import FlipRequest
from signarium.ingest.flips.run import FlipReport
from signarium.ingest.model.load import load_model
from signarium.ingest.model.sites import Site
from signarium.ingest.passes import inject
from signarium.ingest.progress import Silent
from signarium.ingest.stats import outcome
from signarium.ingest.text.windows import find_texts

pytestmark = pytest.mark.long


def flip(path: Path, feature: int, progress: Silent | None = None, **options: Any) -> FlipReport:
    return run.flip(path, FlipRequest(feature, **options), progress)


SMALL: dict[str, Any] = {"windows": 6, "context": 24, "device": "cpu"}


@pytest.fixture(scope="module")
def home(once: Once, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its text, and a catalogue with categories."""
    made, shared = tmp_path_factory.mktemp("flips"), once.folder("wordy", wordy.catalogue)
    for name in ("a.txt", "c.duckdb"):
        shutil.copy(shared / name, made)
    (made / "wordy-0").symlink_to(shared / "wordy-0")
    return made


@pytest.fixture(scope="module")
def flipped(home: Path) -> tuple[Path, FlipReport]:
    """A copy with one feature flipped."""
    path = copy(home, home / "flipped.duckdb")
    return path, flip(path, feature_of(path), text=home / "a.txt", **SMALL)


def copy(home: Path, path: Path) -> Path:
    return Path(shutil.copy(home / "c.duckdb", path))


def feature_of(path: Path, name: str = "animal", site: str = "resid_post.1", centre: str = "zero") -> int:
    query = "SELECT feature_id FROM features WHERE name = ? AND site = ? AND centre = ? AND kind = 'category'"
    return int(rows(path, query, [name, site, centre])[0][0])


class Counting(Silent):
    """Hears of passes; `stop` ends the run after so many of them."""

    def __init__(self, stop: int = -1) -> None:
        self.stop, self.total, self.done, self.unit = stop, 0, 0, ""

    def started(self, job: str, total: int, done: int, unit: str = "tokens") -> None:
        self.total, self.unit = total, unit

    def computed(self, units: int) -> None:
        if self.done == self.stop:
            raise KeyboardInterrupt
        self.done += units


# ---- what it leaves -----------------------------------------------------------------------------


def test_every_arm_dose_and_norm_is_there_once(flipped: tuple[Path, FlipReport]) -> None:
    path, report = flipped
    assert not report.already and report.model == "wordy-0" and report.seconds > 0
    found = set(rows(path, "SELECT site, arm, round(dose, 3), at_norm FROM flips"))
    own = {("resid_post.1", arm, dose, "own") for arm in ARMS if arm != "rotated" for dose in DOSES}
    own |= {("resid_post.1", arm, dose, "away") for arm in ("rotated", "mean_difference") for dose in DOSES}
    own |= {("resid_post.1", arm, 1.0, "away") for arm in ("toward", "random", "disjoint")}
    for site in ("resid_post.2", "resid_post.3"):
        own |= {(site, "away", 1.0, "own")}
        own |= {(site, arm, 1.0, "away") for arm in ("random", "rotated", "mean_difference")}
    assert found == own
    assert rows(path, "SELECT count(*) FROM flips") == [(len(own),)]
    sound(path)
    assert not list(path.parent.glob("*.lock"))


def test_its_run_says_what_was_measured(flipped: tuple[Path, FlipReport]) -> None:
    path, report = flipped
    ((job, params, status),) = rows(
        path,
        "SELECT r.job, r.params, v.status FROM run r JOIN runs v USING (run_id) WHERE r.run_id = ?",
        [report.run_id],
    )
    known = json.loads(params)
    assert (job, status) == ("flip", "done")
    members = rows(path, "SELECT count(*) FROM feature_members WHERE feature_id = ?", [report.feature_id])
    assert known["own_tokens"] == known["other_tokens"] == members[0][0]
    assert known["about"] == "zero" and known["sites"] == ["resid_post.1", "resid_post.2", "resid_post.3"]
    assert known["scored_windows"] == 6 and known["fit_on"] == "other windows" and not report.notes
    assert rows(path, "SELECT DISTINCT n FROM flips") == [(6 * outcome.POSITIONS,)]


def test_norms_and_signs(flipped: tuple[Path, FlipReport]) -> None:
    path, _ = flipped
    found = {
        row[:4]: row[4:]
        for row in rows(
            path, "SELECT site, arm, round(dose, 3), at_norm, norm, kl, own_logit_change FROM flips"
        )
    }
    site = "resid_post.1"
    away = [found[site, "away", dose, "own"][0] for dose in DOSES]
    assert away == sorted(away) and away[0] > 0
    for dose, norm in zip(DOSES, away, strict=True):
        for arm in ("rotated", "mean_difference"):
            assert found[site, arm, dose, "away"][0] == pytest.approx(norm, rel=1e-4)
    assert found[site, "random", 1.0, "away"][0] == pytest.approx(away[-1], rel=1e-4)
    assert all(kl >= 0 for _, kl, _ in found.values())
    assert found[site, "away", 1.0, "own"][1] > 0


def test_figures_stand_beside_their_controls(flipped: tuple[Path, FlipReport]) -> None:
    path, report = flipped
    by_arm = {
        row[0]: row[1:]
        for row in rows(
            path,
            "SELECT arm, own_logit_change, other_logit_change, kl, own_std_error FROM flips WHERE site = 'resid_post.1' "
            "AND dose = 1 AND (at_norm = 'away' OR arm = 'away')",
        )
    }
    figures = {
        row[:4]: row[4:]
        for row in rows(
            path,
            "SELECT subject, subject_id, metric, control, value, n, std_error, split FROM measurements WHERE run_id = ?",
            [report.run_id],
        )
    }
    metrics = ("own_logit_change", "other_logit_change", "flip_kl")
    for subject, ident in (("feature", str(report.feature_id)), ("flip", "zero")):
        for arm in ARMS:
            control = "none" if arm == "away" else arm
            for k, metric in enumerate(metrics):
                value, n, error, split = figures[subject, ident, metric, control]
                assert value == pytest.approx(by_arm[arm][k]) and error is not None and split == "held_out"
                assert n == (6 * outcome.POSITIONS if subject == "feature" else 1)
            specific = figures[subject, ident, "own_less_other", control][0]
            assert specific == pytest.approx(by_arm[arm][0] - by_arm[arm][1])
        assert figures[subject, ident, "own_logit_change", "other_tokens"][0] == pytest.approx(
            by_arm["away"][1]
        )
        assert figures[subject, ident, "own_logit_change", "none"][2] == pytest.approx(by_arm["away"][3])
    assert len(figures) == 2 * (4 * len(ARMS) + 1)


def test_doses_below_one_take_every_second_window(
    flipped: tuple[Path, FlipReport], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dose that is compared has all windows, and comes out the same either way."""
    monkeypatch.setattr(passes, "HALVED", 4)
    path = copy(home, tmp_path / "c.duckdb")
    report = flip(path, feature_of(path), text=home / "a.txt", **SMALL)
    sizes = rows(path, "SELECT DISTINCT dose = 1, n FROM flips ORDER BY ALL")
    assert sizes == [(False, 3 * outcome.POSITIONS), (True, 6 * outcome.POSITIONS)]
    query = "SELECT site, arm, at_norm, norm, own_logit_change, kl, own_std_error FROM flips WHERE dose = 1 ORDER BY ALL"
    for one, other in zip(rows(path, query), rows(flipped[0], query), strict=True):
        assert one[:3] == other[:3]
        assert one[3:] == pytest.approx(other[3:], rel=1e-3, abs=1e-6)
    assert report.run_id == flipped[1].run_id
    sound(path)


def test_the_difference_of_means_is_a_code(flipped: tuple[Path, FlipReport]) -> None:
    path, report = flipped
    ((subject, centre, basis, site, n, item, norm, code),) = rows(
        path,
        "SELECT s.subject, s.centre, s.basis, s.site, s.n, c.item, c.norm, c.code FROM code_sets s JOIN code_row c "
        "USING (code_set_id) WHERE s.run_id = ?",
        [report.run_id],
    )
    assert (subject, centre, basis, site, n) == ("direction", "zero", "standard", "resid_post.1", 1)
    assert item == report.feature_id and norm > 0
    assert unpack(np.frombuffer(code, np.uint8)[None], 48).any()
    said = rows(
        path,
        "SELECT source, direction, count(*) FROM projections WHERE subject = 'direction' AND subject_id = ? GROUP BY ALL "
        "ORDER BY ALL",
        [str(report.feature_id)],
    )
    assert said == [(source, way, 20) for source in ("float", "sign") for way in ("down", "up")]


def test_a_row_is_what_a_hooked_model_gives(flipped: tuple[Path, FlipReport], home: Path) -> None:
    """Away at full dose, from logits over the whole vocabulary and without any of the shortcuts."""
    path, report = flipped
    loaded = load_model(str(home / "wordy-0"), device="cpu")
    feature = tokens.read_feature(path, report.feature_id)
    chosen = tokens.choose_windows(loaded, find_texts([home / "a.txt"]), feature, 6, 24, lambda *_: None)
    module = loaded.layout.taps[feature.site].module
    assert module is not None
    signs = torch.from_numpy(np.where(feature.polarity, -1.0, 1.0)).float()
    mask = torch.from_numpy(feature.mask)

    def away(_: Any, __: Any, output: Any) -> Any:
        h = output if isinstance(output, torch.Tensor) else output[0]
        return inject._with_first(output, torch.where(mask, signs * h.abs(), h))

    head = loaded.unembedding()
    changes, divergences = [], []
    for window in chosen.scored:
        ids = torch.from_numpy(window)[None]
        before = inject._run(loaded, ids)[0] @ head.T
        handle = module.register_forward_hook(away)
        after = inject._run(loaded, ids)[0] @ head.T
        handle.remove()
        at = outcome.positions(len(window))
        changes.append((after - before)[at][:, feature.tokens].mean(1))
        p, q = before[at].double().log_softmax(1), after[at].double().log_softmax(1)
        divergences.append((p.exp() * (p - q)).sum(1))
    ((own, kl),) = rows(
        path,
        "SELECT own_logit_change, kl FROM flips WHERE site = 'resid_post.1' AND arm = 'away' AND dose = 1",
    )
    assert own == pytest.approx(float(torch.cat(changes).mean()), abs=1e-4)
    assert kl == pytest.approx(float(torch.cat(divergences).mean()), rel=1e-3, abs=1e-5)


# ---- again, resumed, several --------------------------------------------------------------------


def test_the_same_command_does_nothing_and_another_seed_is_another_run(
    flipped: tuple[Path, FlipReport], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, report = flipped
    before = digest(path)
    monkeypatch.setattr(run, "reload", lambda *_: pytest.fail("the model was loaded"))
    # A name is no content.
    renamed = Path(shutil.copy(home / "a.txt", home / "b.txt"))
    again = flip(path, report.feature_id, text=[renamed], **SMALL)
    assert again.already and again.run_id == report.run_id and digest(path) == before
    with pytest.raises(pytest.fail.Exception):
        flip(path, report.feature_id, text=home / "a.txt", **(SMALL | {"seed": 1}))


@pytest.mark.parametrize("stop", [in_full(0), 9])
def test_resumed_is_never_killed(
    flipped: tuple[Path, FlipReport], home: Path, tmp_path: Path, stop: int
) -> None:
    whole, report = flipped
    path = copy(home, tmp_path / "c.duckdb")
    first = Counting(stop)
    with pytest.raises(KeyboardInterrupt):
        flip(path, report.feature_id, text=home / "a.txt", progress=first, **SMALL)
    assert rows(path, "SELECT finished_at FROM run WHERE job = 'flip'") == [(None,)]
    second = Counting()
    assert not flip(path, report.feature_id, text=home / "a.txt", progress=second, **SMALL).already
    assert second.unit == "passes" and second.done == second.total > 0
    if stop == 9:
        assert second.total < first.total
    assert digest(path, without=["index_part"]) == digest(whole, without=["index_part"])


def test_several_features_at_a_site_and_the_other_centre(home: Path, tmp_path: Path) -> None:
    path = copy(home, tmp_path / "c.duckdb")
    small = SMALL | {"windows": 3}
    idents = [feature_of(path, name, "resid_post.3", "mean") for name in ("animal", "color")]
    for ident in idents:
        report = flip(path, ident, text=home / "a.txt", **small)
    # The last block: no later site. Once more, with another seed, which then counts.
    assert rows(path, "SELECT DISTINCT site FROM flips") == [("resid_post.3",)]
    report = flip(path, idents[0], text=home / "a.txt", **(small | {"seed": 3}))
    about = rows(
        path, "SELECT json_extract_string(params, '$.about') FROM run WHERE run_id = ?", [report.run_id]
    )
    assert about == [("text mean",)]
    query = (
        "SELECT metric, control, value, n, std_error FROM measurements WHERE run_id = ? AND subject = 'flip' "
        "AND subject_id = 'mean'"
    )
    found = {row[:2]: row[2:] for row in rows(path, query, [report.run_id])}
    each = rows(
        path,
        "SELECT subject_id, control, value, std_error FROM measurements JOIN run USING (run_id) WHERE subject = 'feature' "
        "AND metric = 'own_logit_change' AND job = 'flip' ORDER BY run.started_at",
    )
    latest = {row[:2]: row[2] for row in each}
    errors = {row[:2]: row[3] for row in each}
    for control in ("none", "random", "rotated", "other_tokens"):
        values = np.array([latest[str(ident), control] for ident in idents])
        value, n, error = found["own_logit_change", control]
        assert value == pytest.approx(values.mean()) and n == 2
        # So few features say nothing of others: the error is that over their windows.
        assert error == pytest.approx(np.hypot(*(errors[str(one), control] for one in idents)) / 2)
    sound(path)


def test_one_window(home: Path, tmp_path: Path) -> None:
    path = copy(home, tmp_path / "c.duckdb")
    report = flip(path, feature_of(path), text=home / "a.txt", windows=1, context=12, device="cpu")
    assert any("fitted on those that are measured on" in one for one in report.notes)
    query = "SELECT DISTINCT own_std_error, kl_std_error FROM flips"
    assert rows(path, query) == [(None, None)]
    sound(path)


def test_a_planted_feature_loses_its_tokens(home: Path, tmp_path: Path) -> None:
    """At the last block only the norm and the head come after: against the mean of its tokens' rows there."""
    path = copy(home, tmp_path / "c.duckdb")
    ident = feature_of(path, "metal", "resid_post.3")
    model = load_model(str(home / "wordy-0"), device="cpu")
    feature = tokens.read_feature(path, ident)
    norm: Any = model.layout.taps[Site("final_norm")].module
    head = model.unembedding() * norm.weight
    toward = (head[feature.tokens].mean(0) - head.mean(0)).numpy()
    polarity, mask = np.packbits(toward > 0).tobytes(), np.packbits(np.ones(48, np.uint8)).tobytes()
    with store.writing(path) as session:
        table = schema.feature_row
        values = {"mask": mask, "polarity": polarity, "n_dims": 48}
        session.execute(update(table).where(table.c.feature_id == ident).values(values))
    report = flip(path, ident, text=home / "a.txt", **SMALL)
    own = dict(rows(path, "SELECT arm, own_logit_change FROM flips WHERE dose = 1 AND at_norm = 'own'"))
    others = dict(rows(path, "SELECT arm, other_logit_change FROM flips WHERE dose = 1 AND at_norm = 'own'"))
    assert own["away"] < -0.5 and own["toward"] > 0.5
    assert abs(others["away"]) < -own["away"] / 2
    doses = rows(path, "SELECT own_logit_change FROM flips WHERE arm = 'away' ORDER BY dose")
    assert doses == sorted(doses, reverse=True)
    # All dimensions are its own: nothing is left for another feature.
    assert "disjoint" not in own and any("no arm disjoint" in one for one in report.notes)


# ---- refused ------------------------------------------------------------------------------------


def test_bad_input_is_one_line(home: Path, tmp_path: Path) -> None:
    path = copy(home, tmp_path / "c.duckdb")
    ident = feature_of(path)
    text = home / "a.txt"
    plain = tmp_path / "plain.txt"
    plain.write_text("12345 67890 " * 40)

    def says(kind: type[Exception], pattern: str, feature: int = ident, **options: Any) -> None:
        with pytest.raises(kind, match=pattern) as caught:
            flip(path, feature, **({"text": text, **SMALL} | options))
        assert "\n" not in str(caught.value)

    key = feature_of(path, site="k.1")
    says(
        InvalidInput,
        rf"^feature {key} is at k\.1, which is not what a block gives out: flip one at a resid_post site$",
        key,
    )
    says(NotFound, r"^no feature '5' in the catalogue: see", 5)
    says(
        InvalidInput, rf"^the text has none of the \d+ tokens of feature {ident} \(animal\): pass", text=plain
    )
    says(InvalidInput, r"a context of 500 is more than the 128 positions", context=500)
    says(InvalidInput, r"^`windows` must be positive", windows=0)
    assert rows(path, "SELECT count(*) FROM run WHERE job = 'flip'") == [(0,)]
    with store.writing(path) as session:
        session.execute(update(schema.Model).values(source=str(tmp_path / "gone")))
    says(
        ModelError,
        r"^the weights of wordy-0 are not at hand \(.*\): put them back where they were, or ingest them from where they are$",
    )
