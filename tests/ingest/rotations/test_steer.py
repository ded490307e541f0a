"""What adding a direction does, against twins of which all is known and against a pass made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import turned
from numpy.typing import NDArray
from torch import Tensor

from dyck import task
from dyck.model import DyckConfig, DyckForStructure
from signarium.catalog import schema
from signarium.catalog.carry import Rotation
from signarium.catalog.errors import InvalidInput, SiteError
from signarium.ingest.model.load import LoadedModel, load_model
from signarium.ingest.model.sites import Site
from signarium.ingest.rotations import steer as module
from signarium.ingest.rotations.contrasts import Contrast, contrasts
from signarium.ingest.rotations.steer import ARMS, DOSES, Steered, Stream, figures, steer
from signarium.ingest.stats.paired import Paired

Ids = NDArray[np.int64]
SITES = [Site("resid_post", 1), Site("resid_mid", 1), Site("resid_mid", 0)]


def streams(a: LoadedModel, b: LoadedModel, at: Site) -> tuple[Stream, Stream]:
    return Stream(a, at), Stream(b, at)


_kept = TemporaryDirectory(prefix="signarium-toys-")


@cache
def windows(n: int = 24) -> list[Ids]:
    generator = np.random.default_rng(0)
    # Two lengths, so that batches are padded; one is longer than what is run.
    return [generator.integers(4, 290, 70 if i % 7 == 6 else 20 + i % 2) for i in range(n)]


@cache
def twin() -> LoadedModel:
    return load_model(str(turned.rotated_twin(tiny.built("llama"), seed=5)), device="cpu")


def planted(model: LoadedModel) -> Rotation:
    matrix = torch.from_numpy(turned.rotation(Path(model.source)))
    zero = torch.zeros(len(matrix), dtype=torch.float64)
    return Rotation(matrix, zero, zero, zero + 1, zero + 1)


def identity(width: int) -> Rotation:
    zero = torch.zeros(width, dtype=torch.float64)
    return Rotation(torch.eye(width, dtype=torch.float64), zero, zero, zero + 1, zero + 1)


def some(paired: Paired, name: str = "low less high", sign: float = 1.0) -> Contrast:
    """Tokens with low ids less the others, read at the others."""
    low = paired.token_ids < 60
    inside = np.arange(len(low)) >= paired.test.start
    left = ~low if sign > 0 else low
    return Contrast(name, low, ~low, left & inside, "t", "unembedding", (10, 11, 12), (200, 201), sign)


def pair(a: LoadedModel, b: LoadedModel, windows: Sequence[Ids], site: Site) -> Paired:
    """States of `windows` at `site` in both models, position 0 left out; a quarter of the windows for each part."""
    lengths = [len(one) - 1 for one in windows]
    ends = np.cumsum(lengths)[[len(windows) * k // 4 - 1 for k in (1, 2, 3, 4)]].tolist()
    parts = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    states = []
    for model in (a, b):
        rows: list[Tensor] = []
        for one in windows:
            model.forward(
                torch.from_numpy(one)[None],  # type: ignore[arg-type]
                None,
                [site],
                lambda _, x, rows=rows: rows.append(x[0, 1:].float().clone()),
            )
        states.append(torch.cat(rows))
    return Paired(
        states[0],
        states[1],
        (parts[0], parts[1]),
        parts[2],
        parts[3],
        np.concatenate([one[1:] for one in windows]),
        np.repeat(np.arange(len(windows)), lengths),
        np.concatenate([np.arange(1, n + 1) for n in lengths]),
    )


# ---- twins --------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", turned.FAMILY)
def test_a_twin_is_the_model_in_another_basis(architecture: str) -> None:
    a = tiny.loaded(architecture)
    folder = turned.rotated_twin(tiny.built(architecture), seed=3)
    b = load_model(str(folder), device="cpu")
    r = torch.from_numpy(turned.rotation(folder))
    torch.testing.assert_close(r @ r.T, torch.eye(48, dtype=torch.float64))
    ids = torch.from_numpy(np.stack([windows()[0], windows()[2]]))
    final = Site("final_norm")
    stream = [s for s in a.sites if s.point in ("embed", "attn_out", "resid_mid", "mlp_out", "resid_post")]
    in_a, in_b = (tiny.capture(model, ids, [*stream, final]) for model in (a, b))
    for site in stream:
        expected = in_a[site].double() @ r
        assert (in_b[site] - expected).norm() < 1e-5 * expected.norm(), site
    logits = in_a[final] @ a.unembedding().T
    torch.testing.assert_close(in_b[final] @ b.unembedding().T, logits, rtol=0, atol=1e-4)
    assert a.tokenizer_sha256 == b.tokenizer_sha256


def test_a_twin_of_a_tied_model_has_a_head_of_its_own(tmp_path: Path) -> None:
    a = load_model(str(tiny.folder(tmp_path, "llama", name="tied", tie_word_embeddings=True)), device="cpu")
    b = load_model(str(turned.rotated_twin(a, 1, tmp_path / "twin")), device="cpu")
    assert b.name == "twin"
    final = Site("final_norm")
    ids = torch.from_numpy(windows()[0])[None]
    logits = [tiny.capture(model, ids, [final])[final] @ model.unembedding().T for model in (a, b)]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-4)
    assert not torch.equal(b.embedding(), b.unembedding())


# ---- arms ---------------------------------------------------------------------------------------


@cache
def on_twin(site: Site) -> tuple[Steered, ...]:
    a, b = tiny.loaded("llama"), twin()
    paired = pair(a, b, windows(), site)
    chosen = [some(paired), some(paired, "subtracted", -1.0)]
    found, notes = steer(streams(a, b, at=site), planted(b), paired, windows(), chosen, seed=0)
    assert not notes
    return tuple(found)


@pytest.mark.parametrize("site", SITES, ids=str)
def test_in_a_twin_the_rotated_direction_does_what_the_own_one_does(site: Site) -> None:
    rows = {(one.direction, one.arm, one.dose): one for one in on_twin(site)}
    assert len(rows) == len(on_twin(site)) == 2 * len(ARMS) * len(DOSES)
    for direction in ("low less high", "subtracted"):
        for dose in DOSES:
            source = rows[direction, "source", dose]
            assert source.kl > 1e-3
            for arm in ("rotated", "own"):
                one = rows[direction, arm, dose]
                for what in ("norm", "target_change", "kl", "target_std_error", "kl_std_error"):
                    assert getattr(one, what) == pytest.approx(getattr(source, what), rel=1e-4, abs=2e-6), (
                        arm,
                        what,
                    )
                np.testing.assert_allclose(one.by_window, source.by_window, rtol=1e-3, atol=1e-4)
            for arm in ("as_is", "random"):
                one = rows[direction, arm, dose]
                assert one.norm == pytest.approx(source.norm)
                assert abs(one.target_change - source.target_change) > 0.1 * abs(source.target_change)
            assert source.norm == pytest.approx(2 * rows[direction, "source", 0.5].norm * dose)


def test_what_is_subtracted_moves_the_other_way() -> None:
    rows = {(one.direction, one.arm, one.dose): one for one in on_twin(SITES[0])}
    added, subtracted = (rows[name, "source", 0.5] for name in ("low less high", "subtracted"))
    assert added.norm == subtracted.norm
    assert added.target_change * subtracted.target_change < 0


def test_a_row_has_every_column_of_the_table() -> None:
    (one, *_) = on_twin(SITES[0])
    columns = {column.key for column in schema.steering_row.c} - {"rotation_id"}
    assert columns <= set(vars(one))
    assert one.n == sum(min(16, int((windows()[i][1:64] >= 60).sum())) for i in range(18, 24))
    assert one.windows.tolist() == [18, 19, 20, 21, 22, 23]


def test_a_random_direction_is_another_in_each_window_and_of_its_seed() -> None:
    a, b, site = tiny.loaded("llama"), twin(), SITES[0]
    paired = pair(a, b, windows(), site)
    added: list[Tensor] = []

    class Watched(Stream):
        def add(self, recorded: Any, vectors: Tensor) -> Tensor:
            added.append(vectors)
            return super().add(recorded, vectors)

    runs = []
    for seed in (0, 0, 1):
        added.clear()
        watched = Watched(a, site), Watched(b, site)
        found, _ = steer(watched, planted(b), paired, windows(), [some(paired)], seed=seed)
        runs.append([one.target_change for one in found if one.arm == "random"])
        varied = [one for one in added if len(one) > 1 and not torch.equal(one[0], one[1])]
        norms = {round(float(x), 6) for one in varied for x in one.norm(dim=1)}
        assert norms == {round(one.norm, 6) for one in found if one.arm == "random"}
    assert runs[0] == runs[1] != runs[2]


def test_arms_that_add_the_same_are_one_pass() -> None:
    model, site = tiny.loaded("llama"), SITES[0]
    paired = pair(model, model, windows(), site)
    calls = [0]

    def count(*_: Any) -> None:
        calls[0] += 1

    chosen = [
        some(paired),
        replace(some(paired, "nowhere"), measured=np.zeros(len(paired.token_ids), np.bool_)),
    ]
    handle = model.layout.taps[Site("final_norm")].module.register_forward_hook(count)  # type: ignore[union-attr]
    try:
        found, notes = steer(streams(model, model, at=site), identity(48), paired, windows(), chosen, seed=0)
    finally:
        handle.remove()
    assert notes == ["no steering by nowhere: no window has a token to measure at among its first 64"]
    # Two streams record and check one batch each; then A's direction and the random one, at every dose.
    assert calls[0] == 4 + 2 * len(DOSES)
    by_arm = {arm: [one.target_change for one in found if one.arm == arm] for arm in ARMS}
    assert by_arm["source"] == by_arm["as_is"] == by_arm["rotated"] == by_arm["own"] != by_arm["random"]


def test_no_difference_of_means_is_said() -> None:
    model, site = tiny.loaded("llama"), SITES[0]
    paired = pair(model, model, windows(), site)
    same = replace(some(paired), negative=some(paired).positive)
    found, notes = steer(streams(model, model, at=site), identity(48), paired, windows(), [same], seed=0)
    assert not found
    assert notes == ["no steering by low less high: there is no difference of means"]


# ---- against a pass made by hand ----------------------------------------------------------------


def test_the_effect_is_that_of_the_whole_model() -> None:
    model, site = tiny.loaded("llama"), SITES[0]
    paired = pair(model, model, windows(), site)
    one = some(paired)
    found, _ = steer(
        streams(model, model, at=site), identity(48), paired, windows(), [one], seed=0, max_windows=3
    )
    steered = next(x for x in found if x.arm == "own" and x.dose == 4.0)
    fit = np.arange(len(one.positive)) < paired.fit.stop
    v = paired.b[one.positive & fit].double().mean(0) - paired.b[one.negative & fit].double().mean(0)
    assert steered.norm == pytest.approx(4 * float(v.norm()))
    assert steered.windows.tolist() == [19, 21, 23]
    block = model.layout.taps[site].module
    assert block is not None

    def add(_: Any, __: Any, output: Any) -> Any:
        x = output if isinstance(output, Tensor) else output[0]
        x = torch.cat([x[:, :1], x[:, 1:] + 4 * v.float()], 1)
        return x if isinstance(output, Tensor) else (x, *output[1:])

    changes, divergences, others, means = [], [], [], []
    for i in steered.windows:
        ids = torch.from_numpy(windows()[i][:64])[None]
        at = [int(p) for p in np.flatnonzero(windows()[i][:64] >= 60) if p > 0]
        if len(at) > 16:
            at = [at[(2 * k + 1) * len(at) // 32] for k in range(16)]
        with torch.inference_mode():
            before = (model.module(ids).last_hidden_state @ model.unembedding().T)[0, at].double()
            handle = block.register_forward_hook(add)
            after = (model.module(ids).last_hidden_state @ model.unembedding().T)[0, at].double()
            handle.remove()
        moved = after - before
        other = moved[:, [200, 201]].mean(1)
        change = moved[:, [10, 11, 12]].mean(1) - other
        p, q = before.log_softmax(1), after.log_softmax(1)
        changes += change.tolist()
        others += other.tolist()
        divergences += (p.exp() * (p - q)).sum(1).tolist()
        means.append(float(change.mean()))
    assert steered.n == len(changes)
    assert steered.target_change == pytest.approx(np.mean(changes), rel=1e-4)
    assert steered.other_change == pytest.approx(np.mean(others), rel=1e-3)
    assert steered.kl == pytest.approx(np.mean(divergences), rel=1e-4)
    np.testing.assert_allclose(steered.by_window, means, rtol=1e-3)
    assert steered.target_std_error == pytest.approx(np.std(means, ddof=1) / 3**0.5, rel=1e-3)


def test_a_planted_direction_moves_its_target_and_a_random_one_does_not() -> None:
    model = tiny.loaded("llama")
    site = Site("resid_post", model.n_layers - 1)
    paired = pair(model, model, windows(), site)
    one = some(paired)
    rows = model.unembedding()
    gain = dict(model.module.named_parameters())["norm.weight"]
    toward = (rows[[10, 11, 12]].mean(0) - rows[[200, 201]].mean(0)) * gain
    states = torch.where(torch.from_numpy(one.positive)[:, None], toward, torch.zeros(48))
    found, _ = steer(
        streams(model, model, at=site),
        identity(48),
        replace(paired, a=states, b=states),
        windows(),
        [one],
        seed=0,
    )
    own = [x.target_change for x in found if x.arm == "own"]
    assert all(x > 0 for x in own)
    assert all(x < y for x, y in pairwise(own))
    for x in found:
        if x.arm == "random":
            assert x.target_std_error is not None
            assert abs(x.target_change) < min(own[DOSES.index(x.dose)] / 2, 4 * x.target_std_error)


# ---- where it is added --------------------------------------------------------------------------


@pytest.mark.parametrize("site", [*SITES, Site("resid_post", 3)], ids=str)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_adding_nothing_changes_nothing_and_a_vector_is_seen_at_its_site(
    architecture: str, site: Site
) -> None:
    model = tiny.loaded(architecture)
    if site not in model.sites:
        site = Site("resid_post", model.n_layers - 1)
    stream = Stream(model, site)
    batches = stream.batches(windows())
    assert sorted(i for batch, _ in batches for i in batch) == list(range(24))
    ((batch, recorded), *_) = batches
    zero = torch.zeros(len(batch), model.width, dtype=torch.float64)
    assert torch.equal(stream.add(recorded, zero), recorded.last)
    # What the part behind the site takes in: for `resid_post` the next block or the final norm.
    seen: list[Tensor] = []
    tap = model.layout.taps[site]
    assert tap.module is not None
    if tap.side == "in":
        handle = tap.module.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    else:
        handle = tap.module.register_forward_hook(
            lambda _, __, out: seen.append((out if isinstance(out, Tensor) else out[0]).clone())
        )
    vectors = torch.randn(
        len(batch), model.width, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    stream.add(recorded, zero)
    stream.add(recorded, vectors)
    handle.remove()
    moved = seen[1] - seen[0]
    assert not moved[:, 0].any()
    expected = vectors.float()[:, None].expand_as(moved[:, 1:])
    torch.testing.assert_close(moved[:, 1:], expected, rtol=1e-4, atol=1e-4)
    # The model is as it was.
    again = tiny.capture(model, recorded.ids, [Site("final_norm")])[Site("final_norm")]
    assert torch.equal(again, recorded.last)


def test_sites_that_cannot_be_steered_are_refused() -> None:
    llama, parallel = tiny.loaded("llama"), tiny.loaded("gpt_neox")
    with pytest.raises(
        SiteError, match=r"ffn\.0 of .* cannot be steered.*steer at a resid_post or resid_mid"
    ):
        Stream(llama, Site("ffn", 0))
    with pytest.raises(SiteError, match=r"embed of .* cannot be steered"):
        Stream(llama, Site("embed"))
    with pytest.raises(SiteError, match=r"steer at a resid_post site"):
        Stream(parallel, Site("mlp_out", 0))
    with pytest.raises(SiteError, match=r"resid_mid\.0.*in parallel"):
        Stream(parallel, Site("resid_mid", 0))
    # What goes through a norm behind each sum is not what a sublayer adds to.
    post = tiny.loaded("bert")
    with pytest.raises(SiteError, match=r"resid_mid\.0 of .* cannot be steered \(post-norm blocks\)"):
        Stream(post, Site("resid_mid", 0))


def test_a_model_that_reads_more_than_its_residual_stream_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.loaded("llama")
    real = module.inject.rest
    monkeypatch.setattr(module.inject, "rest", lambda *given: real(*given) + 1e-6)
    with pytest.raises(SiteError, match="needs more than its residual stream"):
        Stream(model, SITES[0]).batches(windows())


def test_widths_must_agree() -> None:
    a, b = tiny.loaded("llama"), tiny.loaded("gpt2")
    paired = pair(a, a, windows(), SITES[0])
    for models, rotation in (((a, b), identity(48)), ((a, a), identity(44))):
        with pytest.raises(InvalidInput, match="wide"):
            steer(streams(*models, at=SITES[0]), rotation, paired, windows(), [some(paired)], seed=0)


# ---- the toy family -----------------------------------------------------------------------------


@cache
def toy(seed: int) -> LoadedModel:
    folder = Path(_kept.name, f"toy-{seed}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = DyckForStructure(DyckConfig(initializer_range=0.2)).eval()
    made.save_pretrained(folder)
    task.tokenizer().save_pretrained(folder)
    return load_model(str(folder), device="cpu")


MID = Site("resid_mid", 1)
"""Where the cited paper steers."""


@cache
def on_toys() -> tuple[list[Ids], Paired]:
    rows = task.draw(np.random.default_rng(3), 320, (20, 48))
    texts = [row[: int((row != task.PAD).sum())].copy() for row in rows]
    return texts, pair(toy(0), toy(1), texts, MID)


def test_the_toy_family_is_steered_by_all_its_heads() -> None:
    a, b, site = toy(0), toy(1), MID
    texts, paired = on_toys()
    chosen, notes = contrasts(a, b, texts, paired)
    assert not notes
    assert [one.readout for one in chosen] == ["valid", "depth", "unembedding"]
    found, notes = steer(streams(a, b, at=site), identity(64), paired, texts, chosen, seed=0)
    assert not notes
    assert len(found) == 75
    # A small model is measured on more windows than a large one: here on all that are of the test.
    assert max(len(one.windows) for one in found) == 80
    (own, *_) = [one for one in figures(found) if one[1] == "own"]
    assert own[3] == sum(one.n for one in found if one.arm == "own" and one.dose == 2.0)


def test_the_toy_family_is_read_by_the_head_of_the_contrast() -> None:
    model = toy(1)
    texts, paired = on_toys()
    chosen, _ = contrasts(toy(0), model, texts, paired)
    found, _ = steer(
        streams(toy(0), model, at=MID), identity(64), paired, texts, chosen[:1], seed=0, max_windows=1
    )
    one = next(x for x in found if x.arm == "own" and x.dose == 1.0)
    assert one.target_std_error is None
    positive, negative = (side[paired.fit] for side in (chosen[0].positive, chosen[0].negative))
    v = paired.b[paired.fit][positive].mean(0) - paired.b[paired.fit][negative].mean(0)
    made = DyckForStructure.from_pretrained(model.source)
    (window,) = one.windows.tolist()
    ids = torch.from_numpy(texts[window])[None]
    at = np.sort(paired.positions[chosen[0].measured & (paired.documents == window)])
    assert one.n == len(at) <= 16
    with torch.inference_mode():
        before = made(ids).valid[0, at].double()
        made.model.blocks[1].attn.register_forward_hook(
            lambda _, __, out: torch.cat([out[:, :1], out[:, 1:] - v], 1)
        )
        after = made(ids).valid[0, at].double()
    change = (after - before) @ torch.tensor([1.0, -1.0], dtype=torch.float64)
    assert one.target_change == pytest.approx(float(change.mean()), rel=1e-4)
    p, q = before.log_softmax(1), after.log_softmax(1)
    assert one.kl == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-3, abs=1e-6)


# ---- figures ------------------------------------------------------------------------------------


def row(direction: str, arm: str, dose: float, values: list[float], documents: list[int]) -> Steered:
    by_window = np.array(values)
    return Steered(
        direction, arm, dose, 1.0, "t", float(by_window.mean()), 0.0, 0.0, 2 * len(values), None, None, None,
        by_window, np.array(documents),
    )  # fmt: skip


def test_figures_stand_at_one_dose_beside_their_controls() -> None:
    rotated, own = [3.0, 5.0, 4.0], [4.0, 6.0, 8.0]
    rows = [row("x", arm, 2.0, own if arm == "own" else rotated, [3, 5, 9]) for arm in ARMS]
    rows += [row("x", arm, 4.0, [100.0, 100.0, 100.0], [3, 5, 9]) for arm in ARMS]
    found = {control: rest for _, control, *rest in figures(rows)}
    assert {metric for metric, *_ in figures(rows)} == {"steering_target"}
    assert list(found) == ["none", "source", "as_is", "random", "own"]
    assert found["none"] == [4.0, 6, pytest.approx(1 / 3**0.5)]
    assert found["own"] == [6.0, 6, pytest.approx(np.std([1, 1, 4], ddof=1) / 3**0.5)]
    assert found["as_is"] == [4.0, 6, 0.0]
    assert figures([]) == []
    assert figures([one for one in rows if one.dose == 4.0]) == []


def test_the_ratio_of_divergences() -> None:
    """As the cited paper measures transfer: what a direction does to B as it is, by what it does to A."""
    kl = {
        "source": (1.0, 2.0),
        "as_is": (3.0, 4.0),
        "random": (1.0, 1.0),
        "rotated": (1.0, 2.0),
        "own": (9.0, 9.0),
    }
    rows = [
        replace(row(name, arm, 2.0, [1.0, 2.0], [0, 1]), kl=kl[arm][place])
        for place, name in enumerate("xy")
        for arm in ARMS
    ]
    found = {control: rest for metric, control, *rest in figures(rows) if metric == "steering_kl_ratio"}
    assert found["none"] == [pytest.approx(2.5), 2, pytest.approx(0.5)]
    assert found["random"][:2] == [pytest.approx(0.75), 2]
    assert found["random"][2] == pytest.approx(np.std([2.0, 1.5], ddof=1) / 2**0.5)
    assert found["rotated"][:2] == [pytest.approx(1.0), 2]


def test_directions_that_share_windows_are_not_independent() -> None:
    values = [3.0, 5.0, 4.0, 8.0]
    once = [row("x", arm, 2.0, values, [1, 2, 3, 4]) for arm in ARMS]
    (_, _, _, _, alone), *_ = figures(once)
    (_, _, _, n, shared), *_ = figures([*once, *(replace(one, direction="y") for one in once)])
    apart = [replace(one, direction="y", windows=one.windows + 10) for one in once]
    (_, _, _, _, separate), *_ = figures([*once, *apart])
    # The same again says no more than it does once; as much again from other windows does.
    assert n == 16
    assert shared == pytest.approx(alone)
    assert separate is not None
    assert separate == pytest.approx(alone / 2**0.5, rel=0.1)
    single = [row("x", arm, 2.0, [3.0], [1]) for arm in ARMS]
    assert all(one[4] is None for one in figures(single))
