from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from digest import codes, digest, rows, sound
from effort import in_full
from safetensors.torch import load_file, save_file
from transformers import AutoModel

import signarium
from signarium.catalog import store
from signarium.catalog.errors import InvalidInput, ModelError
from signarium.catalog.verify import verify
from signarium.ingest import journal, size
from signarium.ingest.model.load import LoadedModel, load_model
from signarium.ingest.model.sites import Site
from signarium.ingest.types import stage as types

WANTED = ("embed", "resid_post.0", "resid_mid.1", "mlp_out.1", "k.1", "ffn.2", "final_norm")
"""Sites of several widths; those that an architecture lacks are left out."""
WITH_BOS = ("llama", "gemma2", "gpt2", "opt", "bert")
"""A few kinds of positions; the others would take the same path again."""


def states_of(model: LoadedModel, sites: list[Site], ids: torch.Tensor) -> dict[str, np.ndarray[Any, Any]]:
    """By site, the states at the last position of each row, float64."""
    found: dict[str, np.ndarray[Any, Any]] = {}
    model.forward(ids, None, sites, lambda site, x: found.update({site.name: x[:, -1].double().numpy()}))  # type: ignore[arg-type]
    return found


def bits(code: np.ndarray[Any, Any], width: int) -> np.ndarray[Any, Any]:
    assert not np.unpackbits(code, axis=1)[:, width:].any()
    return np.unpackbits(code, axis=1, count=width)


def check(path: Path, view: str, site: str, x: np.ndarray[Any, Any], mean: np.ndarray[Any, Any]) -> None:
    """Stored codes and norms of a site against its states, one row a token."""
    assert len(x) == tiny.VOCAB_SIZE
    for centre, shift in (("zero", 0.0), ("mean", mean)):
        items, norms, found = codes(path, view, site, centre)
        assert np.array_equal(items, np.arange(len(x)))
        assert np.allclose(norms, np.linalg.norm(x, axis=1), rtol=1e-5)
        differ = bits(found, x.shape[1]) != (x > shift)
        # The centre is rounded to float32 and states to their type: only what lies that near may differ.
        scale = np.abs(x).max() + np.abs(mean).max()
        assert (np.abs(x - shift)[differ] < 1e-6 * scale).all()
        assert differ.mean() < 1e-3


@pytest.mark.parametrize("architecture", tiny.FAMILIES)
def test_types_are_the_vocabulary_alone(architecture: str, tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path, architecture)
    model = tiny.loaded(architecture)
    sites = [one for one in model.sites if one.name in WANTED]
    assert len(sites) >= 5
    path = tmp_path / "c.duckdb"
    spec = ";".join(one.name for one in sites)
    with_bos = architecture in WITH_BOS
    report = signarium.ingest(path, folder, sites=spec, bos=with_bos, device="cpu")  # type: ignore[operator]
    assert report.tokens == (1 + with_bos) * tiny.VOCAB_SIZE
    sound(path)
    # Opening a file takes DuckDB longer than the rows; while it is open here, it opens at once.
    with store.reading(path):
        as_the_model_says(path, model, sites, with_bos)


def as_the_model_says(path: Path, model: LoadedModel, sites: list[Site], with_bos: bool) -> None:
    """Whatever the catalogue holds of these sites, against the states that the model shows."""
    widths = {one.name: model.width_of(one) for one in sites}
    assert dict(rows(path, "SELECT site, width FROM sites")) == widths
    n = (1 + with_bos) * tiny.VOCAB_SIZE
    assert rows(path, "SELECT count(*) FROM codes") == [(2 * len(sites) * n,)]

    each = states_of(model, sites, torch.arange(tiny.VOCAB_SIZE)[:, None])
    for name, x in each.items():
        check(path, "types", name, x, x.mean(0))
        p = (x > 0).mean(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = -np.nan_to_num(p * np.log2(p)) - np.nan_to_num((1 - p) * np.log2(1 - p))
        expected = [
            p,
            entropy,
            x.mean(0),
            x.std(0),
            np.bincount(x.argmax(1), minlength=x.shape[1]) / len(x),
            np.bincount(x.argmin(1), minlength=x.shape[1]) / len(x),
        ]
        columns = "p_positive, entropy, mean, std, argmax_share, argmin_share"
        found = rows(path, f"SELECT {columns} FROM dimensions WHERE site = ? ORDER BY dim", [name])
        for one, other in zip(np.array(found).T, expected, strict=True):
            assert np.allclose(one, other, rtol=1e-9, atol=1e-12)
        measured = rows(
            path,
            "SELECT value, n FROM measurements WHERE site = ? AND metric = 'bit_entropy_mean' AND subject = 'type'",
            [name],
        )
        assert measured == [(pytest.approx(entropy.mean()), tiny.VOCAB_SIZE)]
    tokens = rows(path, "SELECT token FROM types WHERE site = 'embed' AND centre = 'zero' ORDER BY token_id")
    assert [row[0] for row in tokens] == model.token_strings()
    if with_bos:
        assert model.bos_id is not None
        ids = torch.arange(tiny.VOCAB_SIZE)[:, None]
        behind = states_of(model, sites, torch.cat([torch.full_like(ids, model.bos_id), ids], 1))
        for name, x in behind.items():
            check(path, "types_bos", name, x, each[name].mean(0))
            found = rows(path, "SELECT mean FROM dimensions_bos WHERE site = ? ORDER BY dim", [name])
            assert np.allclose([row[0] for row in found], x.mean(0), rtol=1e-9, atol=1e-12)


def test_against_transformers_itself(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path, "llama")
    path = tmp_path / "c.duckdb"
    signarium.ingest(path, folder, sites="embed;resid_post.0,3;final_norm", device="cpu")  # type: ignore[operator]
    raw = AutoModel.from_pretrained(folder).eval()
    hidden: list[torch.Tensor] = []
    with torch.inference_mode():
        last = raw.layers[3].register_forward_hook(
            lambda _, __, out: hidden.append(out[0] if isinstance(out, tuple) else out)
        )
        out = raw(torch.arange(tiny.VOCAB_SIZE)[:, None], output_hidden_states=True)
        last.remove()
    expected = {
        "embed": raw.embed_tokens.weight,
        "resid_post.0": out.hidden_states[1][:, 0],
        "resid_post.3": hidden[0].reshape(tiny.VOCAB_SIZE, -1),
        "final_norm": out.last_hidden_state[:, 0],
    }
    for name, tensor in expected.items():
        x = tensor.detach().double().numpy()
        check(path, "types", name, x, x.mean(0))


def test_a_sibling_with_a_larger_vocabulary_adds_its_tokens(tmp_path: Path) -> None:
    path = tmp_path / "c.duckdb"
    small = tiny.folder(tmp_path, "llama", 0, vocab_size=290)
    large = tiny.folder(tmp_path, "llama", 1, vocab_size=310)
    for folder in (small, large):
        signarium.ingest(path, folder, sites="embed", device="cpu")  # type: ignore[operator]
    assert len(rows(path, "SELECT DISTINCT tokenizer_sha256 FROM models")) == 1
    for name, n in (("llama-0", 290), ("llama-1", 310)):
        found = rows(
            path, "SELECT token FROM types WHERE model = ? AND centre = 'zero' ORDER BY token_id", [name]
        )
        expected = load_model(str(tmp_path / name), device="cpu").token_strings()
        assert len(expected) == n and [row[0] for row in found] == expected
    assert rows(path, "SELECT count(*) FROM token_row") == [(310,)]
    sound(path)


@pytest.mark.parametrize("architecture", ["llama", in_full("gpt2")])
def test_neither_shards_nor_batches_matter(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Batches of other shapes may round otherwise: at most one bit in a thousand, and the means to 1e-6.
    folder = tiny.folder(tmp_path, architecture)
    one, other = tmp_path / "one.duckdb", tmp_path / "other.duckdb"
    options: dict[str, Any] = {"sites": "embed;resid_post.2;k.1", "bos": True, "device": "cpu"}
    signarium.ingest(one, folder, **options)  # type: ignore[operator]
    monkeypatch.setattr(size, "shard_tokens", lambda _: 101)
    signarium.ingest(other, folder, batch_tokens=10, **options)  # type: ignore[operator]
    assert rows(other, "SELECT count(*) FROM shard") == [(2 * -(-tiny.VOCAB_SIZE // 101),)]
    for view in ("types", "types_bos"):
        for site in ("embed", "resid_post.2", "k.1"):
            for centre in ("zero", "mean"):
                a, b = codes(one, view, site, centre), codes(other, view, site, centre)
                assert np.array_equal(a[0], b[0])
                assert np.allclose(a[1], b[1], rtol=1e-5)
                flipped = np.bitwise_count(a[2] ^ b[2]).sum() / (8 * a[2].size)
                assert flipped < 1e-3 if site != "embed" else flipped == 0
    query = "SELECT mean, std FROM dimensions ORDER BY site, dim"
    assert np.allclose(rows(one, query), rows(other, query), rtol=1e-6, atol=1e-6)


def test_scratch_files_made_anew_do_not_move_the_centre(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Stopped after two shards; then the scratch files are lost and the states come out differently (here by a
    # patch, on a real machine by other batches). The centre of the later shards is that of the stored means.
    folder = tiny.folder(tmp_path, "llama")
    path = tmp_path / "c.duckdb"
    monkeypatch.setattr(size, "shard_tokens", lambda _: 100)
    real = types._rows
    calls = []

    def fails_late(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 4:
            raise ModelError("stopped here")
        return real(*args)

    monkeypatch.setattr(types, "_rows", fails_late)
    with pytest.raises(ModelError, match="stopped here"):
        signarium.ingest(path, folder, sites="resid_post.0", device="cpu")  # type: ignore[operator]
    run_id, means = (
        rows(path, "SELECT run_id FROM runs")[0][0],
        rows(path, "SELECT mean FROM dimensions ORDER BY dim"),
    )
    assert rows(path, "SELECT count(*) FROM shard") == [(3,)]
    journal.clear(path, run_id)
    monkeypatch.setattr(types, "_rows", real)
    compute = types._compute
    made = []

    def shifted(model: Any, spec: Any, start: int, *args: Any) -> Any:
        made.append(start)
        return compute(model, spec, start, *args)

    monkeypatch.setattr(types, "_compute", shifted)
    centres = []
    monkeypatch.setattr(types, "_rows", lambda *args: centres.append(args[2].mean) or real(*args))
    signarium.ingest(path, folder, sites="resid_post.0", device="cpu")  # type: ignore[operator]
    # Only what was missing is computed, and its centre is what stands in the catalogue, bit for bit.
    assert made == [300]
    assert len(centres) == 1 and [(one,) for one in centres[0].tolist()] == means
    sound(path)
    assert rows(path, "SELECT status FROM runs") == [("done",)]


def test_damaged_scratch_files_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.folder(tmp_path, "llama")
    whole, path = tmp_path / "whole.duckdb", tmp_path / "c.duckdb"
    monkeypatch.setattr(size, "shard_tokens", lambda _: 50)
    signarium.ingest(whole, folder, sites="resid_post.0;k.1", device="cpu")  # type: ignore[operator]
    merged = types._merged
    monkeypatch.setattr(types, "_merged", lambda *_: (_ for _ in ()).throw(ModelError("stopped here")))
    with pytest.raises(ModelError, match="stopped here"):
        signarium.ingest(path, folder, sites="resid_post.0;k.1", device="cpu")  # type: ignore[operator]
    monkeypatch.setattr(types, "_merged", merged)
    scratch = journal.scratch(path, rows(path, "SELECT run_id FROM runs")[0][0])
    assert sorted(int(one.name) for one in scratch.iterdir()) == list(range(0, 304, 50))
    (scratch / "0").write_bytes(b"")
    (scratch / "50").write_bytes((scratch / "50").read_bytes()[:-40])
    (scratch / "100").write_bytes(b"\xff" * 100)
    (scratch / "150").write_bytes((scratch / "300").read_bytes())
    (scratch / "200.tmp").write_bytes(b"half")
    (scratch / "200").unlink()
    signarium.ingest(path, folder, sites="resid_post.0;k.1", device="cpu")  # type: ignore[operator]
    assert digest(path) == digest(whole)
    assert not scratch.exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types(dtype: str, tmp_path: Path) -> None:
    # float16 on a CPU only when asked for; either type has a fourth of float32's digits, and scratch keeps it.
    folder = tiny.folder(tmp_path, "llama")
    path = tmp_path / "c.duckdb"
    signarium.ingest(path, folder, sites="resid_post.1", dtype=dtype, device="cpu")  # type: ignore[operator]
    model = load_model(str(folder), dtype=dtype, device="cpu")
    x = states_of(model, model.parse_sites("resid_post.1"), torch.arange(304)[:, None])["resid_post.1"]
    check(path, "types", "resid_post.1", x, x.mean(0))
    assert rows(path, "SELECT dtype FROM models") == [(dtype,)]


def test_nan_on_the_way_is_refused_with_the_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.folder(tmp_path, "llama")
    real = LoadedModel.forward

    def broken(self: LoadedModel, ids: Any, lengths: Any, sites: Any, sink: Any) -> None:
        real(self, ids, lengths, sites, lambda site, x: sink(site, x / 0 if site.point == "ffn" else x))

    monkeypatch.setattr(LoadedModel, "forward", broken)
    with pytest.raises(ModelError, match=r"ffn\.1 hold NaN or infinity"):
        signarium.ingest(tmp_path / "c.duckdb", folder, sites="embed;ffn.1", device="cpu")  # type: ignore[operator]
    assert rows(tmp_path / "c.duckdb", "SELECT status, tokens FROM runs") == [("failed", 0)]
    sound(tmp_path / "c.duckdb")


def test_bos_needs_the_stage_types(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(tiny.TEXT)
    with pytest.raises(InvalidInput, match="`bos` belongs to the stage types"):
        signarium.ingest(  # type: ignore[operator]
            tmp_path / "c.duckdb", tmp_path, text=[tmp_path / "a.txt"], stages=["states"], bos=True
        )


def test_a_type_without_a_finite_state_is_left_out_and_named(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path, "llama")
    tensors = load_file(folder / "model.safetensors")
    # Finite, and its norm is not.
    tensors["model.embed_tokens.weight"][35] = 3e38
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    path = tmp_path / "c.duckdb"
    options: dict[str, Any] = {"sites": "embed;resid_post.1", "stages": "types,features", "device": "cpu"}
    report = signarium.ingest(path, folder, **options)  # type: ignore[operator]
    (note,) = [one for one in report.notes if "NaN" in one]
    assert note.startswith("1 type gives NaN or infinity, and stays without a code: ")
    found = rows(
        path, "SELECT site, count(*), count(*) FILTER (token_id = 35) FROM types GROUP BY site, centre"
    )
    assert found == [(site, tiny.VOCAB_SIZE - 1, 0) for site, _, _ in found] and len(found) == 4
    assert all(one.ok for one in verify(path))
    assert signarium.ingest(path, folder, **options).already  # type: ignore[operator]
