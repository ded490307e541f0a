from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file, save_file

from signarium.catalog.errors import ModelError, SiteError
from signarium.ingest.model.devices import find_devices
from signarium.ingest.model.load import load_model
from signarium.ingest.model.sites import POINTS

MINILM = tiny.MODELS / "all-minilm-l6-v2"


def test_what_a_model_says_of_itself(tmp_path: Path, capfd: Any) -> None:
    path = tiny.folder(tmp_path, "qwen3", name="My.Model-1.5")
    capfd.readouterr()
    model = load_model(str(path), device="cpu")
    assert capfd.readouterr() == ("", "")
    assert (model.source, model.name, model.revision) == (str(path), "My.Model-1.5", None)
    assert (model.architecture, model.dtype, model.device) == ("qwen3", "float32", torch.device("cpu"))
    assert model.random_init_seed is None
    assert not model.module.training


def test_logging_is_as_it_was(tmp_path: Path) -> None:
    log = transformers.utils.logging
    before = log.get_verbosity(), log.is_progress_bar_enabled()
    load_model(str(tiny.folder(tmp_path, "llama")))
    with pytest.raises(ModelError):
        load_model(str(tmp_path))
    assert (log.get_verbosity(), log.is_progress_bar_enabled()) == before


@pytest.mark.parametrize(
    ("stored", "asked", "gets"),
    [
        (torch.float32, "auto", "float32"),
        (torch.bfloat16, "auto", "bfloat16"),
        (torch.float16, "auto", "float32"),  # a CPU computes in float16 badly or not at all
        (torch.float32, "bfloat16", "bfloat16"),
        (torch.bfloat16, "float32", "float32"),
        (torch.float32, "float16", "float16"),
    ],
)
def test_dtypes(tmp_path: Path, stored: torch.dtype, asked: str, gets: str) -> None:
    path = tiny.folder(tmp_path, "llama", dtype=stored)
    model = load_model(str(path), device="cpu", dtype=asked)
    assert model.dtype == gets
    kinds = {x.dtype for x in tiny.capture(model, torch.LongTensor([[5, 6]]), model.sites).values()}
    assert kinds == {getattr(torch, gets)}
    assert model.residual == "sequential"


def test_every_architecture_is_found_in_bfloat16() -> None:
    # The checks count roundings of the dtype, so they are as strict here as in float32.
    for architecture in tiny.ARCHITECTURES:
        full = tiny.loaded(architecture)
        half = load_model(str(tiny.built(architecture)), device="cpu", dtype="bfloat16")
        assert {s: t.path for s, t in half.layout.taps.items()} == {
            s: t.path for s, t in full.layout.taps.items()
        }
        assert half.residual == full.residual
        assert half.causal == full.causal


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device": "cuda"}, "no device 'cuda' here"),
        ({"device": "cuda:1"}, "no device 'cuda:1' here"),
        ({"device": "mps"}, "no device 'mps' here"),
        ({"device": "tpu"}, "no device 'tpu'"),
        ({"device": "cpu:1"}, "no device 'cpu:1': there is one cpu"),
        ({"device": "meta"}, "device 'meta' is not supported"),
        ({"dtype": "int8"}, "no dtype 'int8': there is auto, float32, bfloat16, float16"),
    ],
)
def test_devices_and_dtypes_that_are_not_there(
    tmp_path: Path, options: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ModelError) as error:
        load_model(str(tiny.folder(tmp_path, "llama")), **options)
    assert says in str(error.value)
    assert load_model(str(tmp_path / "llama-0"), device="auto").device == torch.device("cpu")


@pytest.mark.parametrize(
    ("names", "cards", "says"),
    [
        (["cuda:0", "cuda:1"], ["H100", "H100"], None),
        (["cuda", "cuda:1"], ["H100", "H100"], None),
        (["cpu", "cpu", "cpu"], [], None),
        (
            ["cuda:0", "cuda:1"],
            ["H100", "A100"],
            "cuda:0 and cuda:1 are devices of different kinds (H100, A100)",
        ),
        (["cuda:0", "cpu"], ["H100"], "cuda:0 and cpu are devices of different kinds (H100, cpu)"),
        (["cuda:1", "cuda:0", "cuda:1"], ["H100", "H100"], "--devices names cuda:1 twice"),
        (["cuda:0", "cuda"], ["H100"], "--devices names cuda twice"),
        (["cuda:0", "cuda:2"], ["H100", "H100"], "no device 'cuda:2' here"),
    ],
)
def test_several_devices_are_of_one_kind(
    names: list[str], cards: list[str], says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cards))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda one: cards[one.index or 0])
    if says is None:
        assert [str(one) for one in find_devices(names)] == names
    else:
        with pytest.raises(ModelError) as error:
            find_devices(names)
        assert says in str(error.value)


def test_random_weights_come_from_their_seed_alone(tmp_path: Path) -> None:
    path = tiny.folder(tmp_path, "llama")
    stored = load_model(str(path))
    (path / "model.safetensors").unlink()  # none are needed
    state = torch.random.get_rng_state()
    first = load_model(str(path), random_init=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    again, other = (load_model(str(path), random_init=seed) for seed in (3, 4))
    assert (first.random_init_seed, stored.random_init_seed) == (3, None)
    assert first.weights_sha256 == again.weights_sha256
    assert len({m.weights_sha256 for m in (stored, first, other)}) == 3
    weights = [dict(m.module.named_parameters()) for m in (first, again, other)]
    name = "layers.2.mlp.down_proj.weight"
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])
    assert not torch.equal(weights[0][name], weights[2][name])
    # transformers' own initialisation: a normal distribution of that width.
    assert abs(float(weights[0][name].std()) / stored.module.config.initializer_range - 1) < 0.05
    half = load_model(str(path), random_init=3, dtype="bfloat16")
    assert torch.equal(dict(half.module.named_parameters())[name], weights[0][name].bfloat16())


def test_states_that_overflow_are_refused(tmp_path: Path) -> None:
    path = tiny.folder(tmp_path, "opt")
    tensors = load_file(path / "model.safetensors")
    name = next(n for n in tensors if n.endswith("layers.1.fc2.bias"))
    tensors[name] += 60000
    name = name.replace("layers.1", "layers.2")
    tensors[name] += 60000
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    assert load_model(str(path), dtype="float32").causal
    with pytest.raises(SiteError, match="gives NaN or infinity in float16: pass --dtype float32"):
        load_model(str(path), dtype="float16")


# ---- GGUF ---------------------------------------------------------------------------------------


def test_a_gguf_file_is_read_alone(tmp_path: Path) -> None:
    file = tiny.gguf(tmp_path / "alone" / "Tiny.F32.gguf")
    # A tokenizer and a config of another model beside the file must not be taken for its own.
    beside = tmp_path / "beside"
    tiny.tokenizer("bert").save_pretrained(beside)
    tiny.config("gpt2").save_pretrained(beside)
    (beside / "Other.gguf").symlink_to(file)
    alone, other = (load_model(str(each), device="cpu") for each in (file, beside / "Other.gguf"))
    assert (alone.name, other.name) == ("Tiny.F32", "Other")
    for model in (alone, other):
        assert (model.architecture, model.dtype, model.residual) == ("llama", "float32", "sequential")
        assert (model.width, model.n_layers, model.d_ffn) == (48, tiny.N_LAYERS, 80)
    assert other.tokenizer_sha256 == alone.tokenizer_sha256
    assert other.weights_sha256 == alone.weights_sha256
    drawn = load_model(str(file), random_init=0)
    assert drawn.architecture == "llama"
    assert drawn.weights_sha256 != alone.weights_sha256


def test_threads_read_gguf_files_side_by_side(tmp_path: Path) -> None:
    files = [tiny.gguf(tmp_path / f"{seed}.gguf", seed) for seed in (0, 1)]
    alone = [load_model(str(one), device="cpu").embedding() for one in files]
    with ThreadPoolExecutor(2) as pool:
        both = pool.map(lambda one: load_model(str(one), device="cpu").embedding(), files * 3)
        assert all(torch.equal(got, wanted) for got, wanted in zip(both, alone * 3, strict=True))


def test_gguf_weights_are_those_that_were_stored(tmp_path: Path) -> None:
    stored = tiny.loaded("llama")
    model = load_model(str(tiny.gguf(tmp_path / "Tiny.gguf")), device="cpu")
    ids = torch.LongTensor([stored.tokenizer(tiny.TEXT)["input_ids"]])
    assert model.tokenizer(tiny.TEXT)["input_ids"] == ids[0].tolist()
    seen, expected = (tiny.capture(m, ids, m.sites) for m in (model, stored))
    assert seen.keys() == expected.keys()
    for site, x in expected.items():
        assert torch.equal(seen[site], x), site


@pytest.mark.parametrize("kept", [0.001, 0.1, 0.5, 0.9, 1.0])
def test_a_truncated_gguf_is_refused(tmp_path: Path, kept: float) -> None:
    # Cut in its header, its vocabulary and its tensors.
    whole = tiny.gguf(tmp_path / "whole.gguf").read_bytes()
    file = tmp_path / "cut.gguf"
    file.write_bytes(whole[: max(8, int(kept * len(whole)) - 64)])
    with pytest.raises(ModelError, match="is truncated or corrupt"):
        load_model(str(file))


# ---- a real model -------------------------------------------------------------------------------


@pytest.mark.real
def test_minilm_is_an_encoder(capfd: Any) -> None:
    model = load_model(str(tiny.need(MINILM)), device="cpu")
    assert capfd.readouterr() == ("", "")
    assert (model.architecture, model.width, model.n_layers, model.d_ffn) == ("bert", 384, 6, 1536)
    assert (model.vocab_size, model.max_positions, model.causal) == (30522, 512, False)
    assert model.residual == "post-norm"
    assert (model.tokenizer_adds(), model.bos_id) == (([101], [102]), 101)
    assert {s.point for s in model.sites} == set(POINTS) - {"final_norm"}
    strings = model.token_strings()
    assert [strings[i] for i in (101, 102, 2332)] == ["[CLS]", "[SEP]", "king"]
    assert strings[model.tokenizer.convert_tokens_to_ids("##ing")] == "##ing"

    last = model.default_sites()[-1]
    texts = ["A man is eating food.", "A man is eating a meal.", "The market fell by two percent."]
    rows = [model.tokenizer(text)["input_ids"] for text in texts]
    length = max(map(len, rows))
    ids = torch.LongTensor([r + [0] * (length - len(r)) for r in rows])
    states = tiny.capture(model, ids, [last], [len(r) for r in rows])[last]
    means = torch.stack([x[: len(r)].mean(0) for x, r in zip(states, rows, strict=True)])
    near, far = torch.cosine_similarity(means[:1], means[1:]).tolist()
    assert near > 0.7 > 0.3 > far
