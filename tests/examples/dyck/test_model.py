"""The two-block transformer: against its formulas written out, and as `ingest` loads it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from dyck import MODEL_TYPE, task
from dyck.model import (
    DyckConfig,
    DyckForStructure,
    DyckModel,
    position_features,
    save_folder,
)
from signarium.catalog.errors import ModelError
from signarium.ingest.model import registered
from signarium.ingest.model.load import load_model

POINTS = ("k", "v", "attn_out", "resid_mid", "ffn", "mlp_out", "resid_post")


def drawn(seed: int = 0) -> DyckForStructure:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DyckForStructure(DyckConfig()).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dyck") / "drawn"
    save_folder(drawn(), path, {"step": 0})
    return path


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.from_numpy(task.draw(np.random.default_rng(0), 6))


def written_out(weights: dict[str, Tensor], row: list[int]) -> dict[str, list[Tensor]]:
    """One row, position by position, in float64; site names to states."""
    w = {name: tensor.double() for name, tensor in weights.items()}

    def norm(x: Tensor, gain: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).mean() + 1e-5) * gain

    stream = []
    for t, token in enumerate(row):
        angle = 2 * math.pi * t / 64
        features = [t / 64, 1 / (t + 1), math.log(t + 1) / math.log(64), float(t == 0)]
        features += [math.cos(angle), math.sin(angle), *[0.0] * 58]
        stream.append(w["model.embed.weight"][token] + torch.tensor(features).double())
    sites = {}
    for layer in (0, 1):
        b = f"model.blocks.{layer}."
        normed = [norm(x, w[b + "attn_norm.weight"]) for x in stream]
        q, k, v = ([w[f"{b}attn.{m}_proj.weight"] @ x for x in normed] for m in "qkv")
        mid = []
        for t, x in enumerate(stream):
            heads = []
            for h in range(4):
                part = slice(16 * h, 16 * h + 16)
                scores = torch.stack([q[t][part] @ k[s][part] / 4 for s in range(t + 1)])
                heads.append(sum(a * v[s][part] for s, a in enumerate(scores.softmax(0))))
            mid.append(x + w[b + "attn.o_proj.weight"] @ torch.cat(heads))
        up, down = w[b + "mlp.up_proj.weight"], w[b + "mlp.down_proj.weight"]
        stream = [x + down @ (up @ norm(x, w[b + "mlp_norm.weight"])).clamp(min=0) for x in mid]
        sites |= {f"resid_mid.{layer}": mid, f"resid_post.{layer}": stream}
    sites["final_norm"] = [norm(x, w["model.final_norm.weight"]) for x in stream]
    return sites


def test_sizes_and_first_weights() -> None:
    model = drawn()
    assert sum(p.numel() for p in model.parameters()) == 104_448
    for name, tensor in model.state_dict().items():
        if "norm" in name:
            assert torch.equal(tensor, torch.ones(64))
        else:
            # Six standard errors of the mean.
            assert abs(tensor.mean()) < 6 * 0.02 / math.sqrt(tensor.numel())
            assert abs(tensor.std() - 0.02) < 6 * 0.02 / math.sqrt(tensor.numel())
    assert not list(model.buffers())
    assert not torch.equal(drawn(1).model.embed.weight, model.model.embed.weight)


def test_position_features_are_fixed_and_in_six_dimensions() -> None:
    features = position_features(64, 64)
    assert features.shape == (64, 64)
    assert not features[:, 6:].any()
    assert features[0, :6].tolist() == [0, 1, 0, 1, 1, 0]
    assert torch.allclose(features[16, :3], torch.tensor([0.25, 1 / 17, math.log(17) / math.log(64)]))
    assert torch.allclose(features[16, 3:6], torch.tensor([0.0, 0.0, 1.0]), atol=1e-6)
    assert torch.equal(position_features(10, 64), features[:10])


def test_a_folder_loads_with_all_its_sites(folder: Path) -> None:
    model = load_model(str(folder))
    named = ["embed", *(f"{p}.{i}" for i in (0, 1) for p in POINTS), "final_norm"]
    assert [site.name for site in model.sites] == named
    assert model.site_notes == {}
    assert model.causal
    assert model.residual == "sequential"
    assert (model.architecture, model.width, model.d_ffn, model.vocab_size) == ("signarium_dyck", 64, 256, 40)
    assert (model.max_positions, model.bos_id, model.tokenizer_adds()) == (64, 1, ([1], [2]))
    assert model.token_strings()[:10] == ["<pad>", "<bos>", "<eos>", *"()[]{}", "<unk>"]
    assert set(model.token_strings()[10:]) == {""}


def test_sites_are_those_of_the_formulas_and_of_training(folder: Path, ids: Tensor) -> None:
    model, weights = load_model(str(folder)), load_file(folder / "model.safetensors")
    seen: dict[str, Tensor] = {}
    lengths = (ids != task.PAD).sum(1).tolist()
    model.forward(ids, lengths, model.sites, lambda site, x: seen.__setitem__(site.name, x.clone()))
    with torch.no_grad():
        assert torch.equal(seen["final_norm"], drawn()(ids).last_hidden_state)
    for i in (0, 3):
        row = ids[i, : lengths[i]].tolist()
        for name, states in written_out(weights, row).items():
            found = seen[name][i, : len(row)].double()
            assert torch.allclose(found, torch.stack(states), rtol=1e-4, atol=1e-5), name


def test_the_token_head_is_the_unembedding(folder: Path, ids: Tensor) -> None:
    model, trained = load_model(str(folder)), drawn()
    assert torch.equal(model.unembedding(), trained.token_head.weight)
    assert torch.equal(model.embedding(), trained.model.embed.weight)
    assert model.unembedding_bias() is None
    with torch.no_grad():
        out = trained(ids)
        registered.tell_transformers(MODEL_TYPE)
        causal = AutoModelForCausalLM.from_pretrained(folder)
        assert torch.equal(causal(ids).logits, out.token)
    assert (out.token.shape, out.depth.shape, out.valid.shape) == ((6, 64, 40), (6, 64, 9), (6, 64, 2))


def test_all_heads_load_strictly(folder: Path) -> None:
    again, info = DyckForStructure.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    for name, tensor in drawn().state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    backbone = DyckModel.from_pretrained(folder)
    assert torch.equal(backbone.blocks[1].mlp.up_proj.weight, drawn().model.blocks[1].mlp.up_proj.weight)


def test_random_weights_of_the_same_architecture(folder: Path) -> None:
    one, same, other = (load_model(str(folder), random_init=seed) for seed in (3, 3, 4))
    assert one.weights_sha256 == same.weights_sha256 != other.weights_sha256
    assert torch.equal(one.unembedding(), same.unembedding())
    assert abs(one.embedding().std() - 0.02) < 0.002
    assert not torch.equal(one.embedding(), drawn().model.embed.weight)


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "model"
    save_folder(drawn(0), path, {})
    first = {p.name: p.read_bytes() for p in path.iterdir()}
    (path / "left.txt").write_text("of an older save")
    save_folder(drawn(0), path, {})
    assert {p.name: p.read_bytes() for p in path.iterdir()} == first
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert sum(map(len, first.values())) < 500_000


def test_a_damaged_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        data = file.read_bytes()
        (tmp_path / file.name).write_bytes(data[:-100] if file.suffix == ".safetensors" else data)
    with pytest.raises(ModelError, match="truncated"):
        load_model(str(tmp_path))
