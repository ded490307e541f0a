"""`align` on planted turned, on unrelated models, and on what it must refuse; killed and resumed."""

from __future__ import annotations

import random
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import digest
import numpy as np
import pytest
import tiny
import torch
import turned
import wordy
from effort import in_full

from signarium import ingest
from signarium.catalog import parts, verify
from signarium.catalog.errors import InvalidInput, ModelError, NotFound, SignariumError, SiteError
from signarium.ingest.model.load import load_model
from signarium.ingest.model.sites import Site
from signarium.ingest.passes.gather import cut, record, row_starts
from signarium.ingest.rotations import run as rotations
from signarium.ingest.rotations.explained import explained
from signarium.ingest.rotations.fit import fit
from signarium.ingest.rotations.report import AlignReport
from signarium.ingest.rotations.request import AlignRequest
from signarium.ingest.saes.add import add_sae
from signarium.ingest.saes.dictionary import save
from signarium.ingest.saes.request import SaeAddRequest, Settings
from signarium.ingest.saes.train import train
from signarium.ingest.stats.paired import Paired
from signarium.ingest.text.windows import find_texts

pytestmark = pytest.mark.long

PLANTED = 11
"""The seed of the planted rotation: none of those that Haar controls are drawn from."""
CONTEXT = 24


def align(path: Path, model_a: str, model_b: str, **options: Any) -> AlignReport:
    return rotations.align(path, AlignRequest(model_a, model_b, **options))


def some_text(n: int = 400) -> str:
    """Records of 80 words; in one of five stand three others, each of which comes but once, so that a test part holds
    some that the fit never saw."""
    rng = random.Random(0)
    words = [word for some in wordy.words().values() for word in some]
    rng.shuffle(words)
    usual, rare = words[:80], words[80:]
    lines = []
    for i in range(n):
        drawn = [rng.choice(usual) for _ in range(14)]
        if i % 5 == 0 and len(rare) >= 3:
            drawn[3:6] = [rare.pop() for _ in range(3)]
        lines.append('{"text": "The ' + " ".join(drawn) + '"}')
    return "\n".join(lines)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue of model A, its rotated twin T, and B, which has nothing to do with them; and both alignments."""
    folder = tmp_path_factory.mktemp("align")
    first, other = wordy.folder(folder, 0), wordy.folder(folder, 1)
    turned.rotated_twin(first, PLANTED, folder / "twin")
    (folder / "t.jsonl").write_text(some_text(), encoding="utf-8")
    db = folder / "c.duckdb"
    for source, name in ((first, "A"), (folder / "twin", "T"), (other, "B")):
        ingest(
            db, str(source), name=name, text=folder / "t.jsonl", max_tokens=400, context=CONTEXT, sites="resid_post.1;resid_mid.2",
            stages="types,states,features" if name == "A" else "types,states",
            seeds=8 if name == "A" else None,
        )  # fmt: skip
    shutil.copy(db, folder / "before.duckdb")
    for name in "TB":
        # What directions do is looked at in the twin alone.
        align(db, "A", name, text=folder / "t.jsonl", context=CONTEXT, steer=name == "T")
    return folder


def figures(db: Path, a: str, b: str, metric: str, site: str = "resid_post.1") -> dict[str, float]:
    rows = digest.rows(
        db,
        "SELECT control, value FROM measurements WHERE model = ? AND subject = 'rotation' AND subject_id = ? AND metric = ? "
        "AND site = ?",
        [b, a, metric, site],
    )
    return dict(rows)


def test_a_planted_rotation_comes_back(home: Path) -> None:
    """Same function in a rotated basis: R itself to 1e-3, nearly everything explained, and nothing without R."""
    planted = np.load(home / "twin" / turned.ROTATION)
    rows = digest.rows(
        home / "c.duckdb",
        "SELECT site_b, width, matrix, ev_rotation, ev_identity, ev_mean_shift, ev_shuffled, halves_agreement, rank_warning, "
        "n_fit, n_test FROM rotations WHERE model_b = 'T' ORDER BY site_b",
    )
    assert [row[0] for row in rows] == ["resid_mid.2", "resid_post.1"]
    for _, width, matrix, rotated, identity, shifted, shuffled, halves, warning, n_fit, n_test in rows:
        found = np.frombuffer(matrix, "<f4").reshape(width, width)
        assert np.linalg.norm(found - planted) / np.linalg.norm(planted) < 1e-3
        assert rotated > 0.999
        assert max(identity, shifted, shuffled) < 0
        assert halves > 0.999
        assert warning is None
        assert n_fit > n_test > 1000


def test_what_a_planted_rotation_carries(home: Path) -> None:
    """Floats carry every bit; signs alone about 1 - arccos(sqrt(2 / pi)) / pi = 0.795 of them."""
    db = home / "c.duckdb"
    codes = figures(db, "A", "T", "code_agreement")
    assert codes["none"] > 0.999
    assert codes["signs_alone"] == pytest.approx(0.795, abs=0.02)
    assert codes["plus_minus_one"] == pytest.approx(0.795, abs=0.02)
    for control in ("as_is", "mean_shift", "shuffled", "haar:1"):
        assert codes[control] == pytest.approx(0.5, abs=0.05)
    found = figures(db, "A", "T", "retrieval_top1")
    # Codes of 48 bits have ties, which exact states share as well.
    assert found["none"] == pytest.approx(found["affine"], abs=0.01)
    assert found["none"] > 0.7 > found["token_identity"] > found["shuffled"]
    prototypes = figures(db, "A", "T", "prototype_auc")
    assert prototypes["none"] == pytest.approx(prototypes["source"], abs=1e-3)
    steering = figures(db, "A", "T", "steering_target")
    if steering:
        assert steering["none"] == pytest.approx(steering["source"], rel=1e-3, abs=1e-6)


def test_unrelated_models_are_no_better_than_their_null(home: Path) -> None:
    """At tokens that the fit never saw no better than shuffled pairs; at all others no better than exchanged types,
    which like them give a token one vector wherever it stands; and the token alone, without any other model, does better."""
    db = home / "c.duckdb"
    for site in ("resid_post.1", "resid_mid.2"):
        ev = figures(db, "A", "B", "rotation_ev", site)
        assert ev["none"] < 0
        assert ev["none"] < ev["token_mean"]
    said = digest.rows(
        db,
        "SELECT claim_id, control, verdict FROM evidence WHERE model = 'B' AND from_model = 'A' AND verdict <> 'not measured'",
    )
    verdicts = {(claim, control): verdict for claim, control, verdict in said}
    assert verdicts["11.2", "fitted on shuffled pairs"] == "does not survive"
    assert verdicts["11.1", "token types exchanged"] == "does not survive"
    assert verdicts["11.1", "the token alone, no other model"] == "does not survive"
    assert verdicts["11.3", "at least 0.9"] == "does not survive"
    twin = digest.rows(
        db, "SELECT claim_id, control, verdict FROM evidence WHERE model = 'T' AND from_model = 'A'"
    )
    assert {
        ("11.1", "fitted on shuffled pairs", "survives"),
        ("11.2", "fitted on shuffled pairs", "survives"),
    } <= set(twin)


def test_features_carried_are_features_of_b(home: Path) -> None:
    rows = digest.rows(
        home / "c.duckdb",
        "SELECT f.model, f.kind, f.name, g.model, g.kind, g.name, f.n_dims, g.n_dims, f.auc_held_out, bit_count(f.mask::BIT), "
        "(SELECT count(*) FROM feature_types t WHERE t.feature_id = f.feature_id) FROM carried_features c "
        "JOIN features f USING (feature_id) JOIN features g ON g.feature_id = c.source_feature_id JOIN rotations r "
        "USING (rotation_id) WHERE r.model_b = 'T'",
    )
    assert rows
    for model, kind, name, source, source_kind, source_name, n_dims, source_dims, auc, bits, listed in rows:
        assert (model, kind, source, source_kind) == ("T", "direction", "A", "category")
        assert name == source_name
        assert n_dims == source_dims == bits
        assert 0 <= auc <= 1
        assert listed == 50
    assert all(one.ok for one in verify.verify(home / "c.duckdb"))


def test_again_does_nothing_and_writes_the_matrix(home: Path, tmp_path: Path) -> None:
    db = home / "c.duckdb"
    before = digest.digest(db)
    report = align(db, "A", "T", text=home / "t.jsonl", context=CONTEXT, output=tmp_path / "R")
    assert report.already
    assert [one.name for one in report.outputs] == ["R.resid_mid.2.npy", "R.resid_post.1.npy"]
    planted = np.load(home / "twin" / turned.ROTATION)
    for file in report.outputs:
        found = np.load(file)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, planted, atol=1e-3)
    assert digest.digest(db) == before
    assert not list(home.glob("*.scratch*"))


def test_one_site_one_file(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "c.duckdb"
    shutil.copy(home / "before.duckdb", copy)
    report = align(
        copy, "T", "A", text=home / "t.jsonl", context=CONTEXT, sites="resid_post.0", steer=False, max_tokens=3000,
        output=tmp_path / "R.npy",
    )  # fmt: skip
    assert report.outputs == [tmp_path / "R.npy"]
    # The other way round it is the transpose.
    planted = np.load(home / "twin" / turned.ROTATION)
    np.testing.assert_allclose(np.load(tmp_path / "R.npy"), planted.T, atol=1e-3)


def test_too_few_tokens_are_said(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "c.duckdb"
    shutil.copy(home / "before.duckdb", copy)
    report = align(
        copy,
        "A",
        "B",
        text=home / "t.jsonl",
        context=CONTEXT,
        max_tokens=60,
        steer=False,
        sites="resid_post.0",
    )
    assert "not determined" in (report.rotations[0].rank_warning or "")
    with pytest.raises(InvalidInput, match="too few to fit and to score on others"):
        align(copy, "A", "B", text=home / "t.jsonl", context=CONTEXT, max_tokens=20, steer=False)


REFUSED: dict[str, tuple[dict[str, object], type[SignariumError], str]] = {
    "gone": ({"model_b": "nobody"}, NotFound, "nobody"),
    "itself": ({"model_b": "A"}, InvalidInput, "aligned with itself"),
    "width": ({"model_b": "wide"}, InvalidInput, "48 wide and wide 44"),
    "tokenizer": ({"model_b": "other"}, InvalidInput, "different tokenizers"),
    "site": ({"sites": "resid_post.9"}, SiteError, "resid_post.9"),
    "no text": ({"text": "/nowhere.txt"}, SignariumError, "nowhere"),
    "limit": ({"max_tokens": 0}, InvalidInput, "`max_tokens` must be"),
    "output": ({"output": "/nowhere/R.npy"}, InvalidInput, "cannot be written"),
    "steering": ({"steer": "resid_post.3"}, SiteError, "none of the sites"),
    "steering where": ({"steer": "embed", "sites": "embed"}, SiteError, "nothing can be added"),
    "seed": ({"seed": 1 << 70}, InvalidInput, "below 2\\^62"),
    "no output": ({"output": ""}, InvalidInput, "names no file"),
}


@pytest.fixture(scope="module")
def to_refuse(home: Path) -> tuple[Path, dict[str, tuple[int, str]]]:
    """A catalogue with two models more, and its digest."""
    db = home / "refused.duckdb"
    shutil.copy(home / "before.duckdb", db)
    for source, known in ((tiny.built("gpt2"), "wide"), (tiny.built("llama"), "other")):
        ingest(db, str(source), name=known, stages="types", sites="resid_post.0")
    return db, digest.digest(db)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(home: Path, to_refuse: tuple[Path, dict[str, tuple[int, str]]], name: str) -> None:
    changes, error, what = REFUSED[name]
    db, before = to_refuse
    with pytest.raises(error, match=what):
        align(db, **({"model_a": "A", "model_b": "B", "text": home / "t.jsonl"} | changes))
    assert digest.digest(db) == before
    assert not list(home.glob("*.scratch*"))


def test_a_model_that_is_gone(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "c.duckdb"
    shutil.copy(home / "before.duckdb", copy)
    moved = (home / "twin").rename(home / "twin-away")
    try:
        with pytest.raises(ModelError, match="weights of T are not at hand"):
            align(copy, "A", "T", text=home / "t.jsonl", context=CONTEXT)
    finally:
        moved.rename(home / "twin")


@pytest.mark.parametrize("after", [in_full("states"), "first site", in_full("second site")])
def test_cut_short_and_gone_on_with(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    """The rows are those of a run that was never cut short."""
    copy = tmp_path / "c.duckdb"
    shutil.copy(home / "before.duckdb", copy)
    calls = 0
    real = rotations._Run._compute

    def cut_short(job: rotations._Run, i: int) -> object:
        nonlocal calls
        calls += 1
        if i == ["states", "first site", "second site"].index(after):
            raise KeyboardInterrupt
        return real(job, i)

    with monkeypatch.context() as patch:
        patch.setattr(rotations._Run, "_compute", cut_short)
        with pytest.raises(KeyboardInterrupt):
            align(copy, "A", "T", text=home / "t.jsonl", context=CONTEXT)
    assert calls
    align(copy, "A", "T", text=home / "t.jsonl", context=CONTEXT)
    tables = (
        "rotation_row",
        "rotation_component_row",
        "carried_row",
        "steering_row",
        "measurement_row",
        "feature_row",
    )
    for table in tables:
        query = f"SELECT * FROM {table} WHERE {{}} ORDER BY ALL"
        of_t = {
            "measurement_row": "run_id IN (SELECT run_id FROM runs WHERE model = 'T' AND job = 'align')",
            "feature_row": "kind = 'direction' AND site_id IN (SELECT site_id FROM sites WHERE model = 'T')",
            "carried_row": "rotation_id IN (SELECT rotation_id FROM rotations WHERE model_b = 'T')",
        }
        condition = of_t.get(table, of_t["carried_row"])
        assert digest.rows(copy, query.format(condition)) == digest.rows(
            home / "c.duckdb", query.format(condition)
        ), table
    assert not list(tmp_path.glob("*.scratch*"))


def test_a_full_disk_is_said_before(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "c.duckdb"
    shutil.copy(home / "before.duckdb", copy)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(SignariumError, match="free"):
        align(copy, "A", "T", text=home / "t.jsonl", context=CONTEXT)


@pytest.mark.real
@pytest.mark.full
def test_smollm2_and_its_twin(tmp_path: Path) -> None:
    """The bar itself on a real model: R to 1e-3 relative, held-out explained variance above 0.999."""
    from pydoc_data.topics import topics

    first = tiny.smollm2()
    second = load_model(str(turned.rotated_twin(first, PLANTED, tmp_path / "twin")), device="cpu")
    file = tmp_path / "t.txt"
    file.write_text("\n".join(topics[name] for name in sorted(topics))[:24_000], encoding="utf-8")
    windows = cut(first, find_texts([file]), 64, 2600, lambda *_: None)
    site = Site("resid_post", 3)
    starts = row_starts(windows)
    states = [torch.empty(starts[-1], first.width) for _ in "ab"]
    for model, out in zip((first, second), states, strict=True):
        record(model, windows, [site], {site: out}, starts)
    ends = [starts[len(windows) * k // 10] for k in (0, 4, 7, 8, 10)]
    parts = [slice(*pair) for pair in pairwise(ends)]
    paired = Paired(
        states[0], states[1], (parts[0], parts[1]), parts[2], parts[3],
        np.concatenate([one[1:] for one in windows]), np.repeat(np.arange(len(windows)), np.diff(starts)),
        np.concatenate([np.arange(1, len(one)) for one in windows]),
    )  # fmt: skip
    fitted = fit(paired, 0)
    planted = turned.rotation(tmp_path / "twin")
    found = fitted.rotation.matrix.numpy()
    assert np.linalg.norm(found - planted) / np.linalg.norm(planted) < 1e-3
    ev = explained(paired, fitted).value
    assert ev["rotation"] > 0.999
    assert ev["identity"] < 0
    assert fitted.rank_warning is None


def test_every_claim_about_rotations_has_its_figures(home: Path, tmp_path: Path) -> None:
    """A claim whose figure or control nobody writes would be `not measured` for ever."""
    copy = tmp_path / "c.duckdb"
    shutil.copy(home / "c.duckdb", copy)
    width = 48
    generator = torch.Generator().manual_seed(0)
    for name in "AT":
        for seed in (0, 1 if name == "A" else 2):
            made = train(
                torch.randn(2000, width, generator=generator), Settings(expansion=2, steps=40, seed=seed)
            )
            save(tmp_path / f"{name}{seed}.safetensors", made)
            file = tmp_path / f"{name}{seed}.safetensors"
            add_sae(copy, SaeAddRequest(name, "resid_post.1", file, f"{name}{seed}"))
    # One site, which is the one that directions are tried at.
    report = align(copy, "A", "T", text=home / "t.jsonl", context=CONTEXT, sites="resid_post.1")
    assert not report.already
    missing = digest.rows(
        copy,
        "SELECT claim_id, control FROM evidence WHERE model = 'T' AND split_part(claim_id, '.', 1)::INT >= 11 "
        "AND verdict = 'not measured' AND from_model IS NOT DISTINCT FROM CASE WHEN value IS NULL THEN NULL ELSE 'A' END",
    )
    # B has no categories of its own here.
    assert set(missing) <= {("15.3", "this model's own categories")}
    written = {
        row[0] for row in digest.rows(copy, "SELECT DISTINCT claim_id FROM evidence WHERE from_model = 'A'")
    }
    assert written == {one.claim_id for one in parts.claims() if one.subject == "rotation"}


def test_models_in_bfloat16(home: Path, tmp_path: Path) -> None:
    """States wait in the float type of their model; sums are in float64 all the same."""
    db = tmp_path / "c.duckdb"
    for source, name in ((home / "wordy-0", "A"), (home / "twin", "T")):
        ingest(db, str(source), name=name, stages="types", sites="resid_post.1", dtype="bfloat16")
    report = align(
        db,
        "A",
        "T",
        text=home / "t.jsonl",
        context=CONTEXT,
        sites="resid_post.1",
        max_tokens=3000,
        steer=False,
    )
    (one,) = report.rotations
    # Eight bits of mantissa, rounded in two different bases and carried through two blocks.
    assert 0.98 < one.ev_rotation < 0.99999
    assert one.ev_shuffled < 0
