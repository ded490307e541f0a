"""The sites, against transformers' own outputs and the modules that its source code names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from transformers import AutoModel, DynamicCache

from signarium.catalog.errors import SiteError
from signarium.ingest.model.load import LoadedModel, load_model
from signarium.ingest.model.sites import POINTS, Site

# For each architecture what its source code adds to the residual stream, by module: "out" is the module's
# output, "in" its input. {0} is the block.
LLAMA = {
    "attn_out": ("{0}.self_attn", "out"),
    "resid_mid": ("{0}.post_attention_layernorm", "in"),
    "ffn": ("{0}.mlp.down_proj", "in"),
    "mlp_out": ("{0}.mlp", "out"),
}
GEMMA = {
    "attn_out": ("{0}.post_attention_layernorm", "out"),
    "resid_mid": ("{0}.pre_feedforward_layernorm", "in"),
    "ffn": ("{0}.mlp.down_proj", "in"),
    "mlp_out": ("{0}.post_feedforward_layernorm", "out"),
}
NEOX = {
    "attn_out": ("{0}.attention", "out"),
    "ffn": ("{0}.mlp.dense_4h_to_h", "in"),
    "mlp_out": ("{0}.mlp", "out"),
}
OPT = {"attn_out": ("{0}.self_attn", "out"), "ffn": ("{0}.fc2", "in"), "mlp_out": ("{0}.fc2", "out")}
EXPECTED: dict[str, tuple[str, str, dict[str, tuple[str, str]]]] = {
    "llama": ("layers", "sequential", LLAMA),
    "mistral": ("layers", "sequential", LLAMA),
    "qwen2": ("layers", "sequential", LLAMA),
    "qwen3": ("layers", "sequential", LLAMA),
    "phi3": ("layers", "sequential", LLAMA),
    "gemma2": ("layers", "sequential", GEMMA),
    "gemma3": ("layers", "sequential", GEMMA),
    "gpt2": (
        "h",
        "sequential",
        {
            "attn_out": ("{0}.attn", "out"),
            "resid_mid": ("{0}.ln_2", "in"),
            "ffn": ("{0}.mlp.c_proj", "in"),
            "mlp_out": ("{0}.mlp", "out"),
        },
    ),
    "gpt_neox": ("layers", "parallel", NEOX),
    "gpt_neox_sequential": (
        "layers",
        "sequential",
        NEOX | {"resid_mid": ("{0}.post_attention_layernorm", "in")},
    ),
    "opt": ("decoder.layers", "sequential", OPT | {"resid_mid": ("{0}.final_layer_norm", "in")}),
    "opt_projected": (
        "decoder.layers",
        "post-norm",
        OPT | {"resid_mid": ("{0}.self_attn_layer_norm", "out")},
    ),
    "bert": (
        "encoder.layer",
        "post-norm",
        {
            "attn_out": ("{0}.attention.output.dense", "out"),
            "resid_mid": ("{0}.attention.output.LayerNorm", "out"),
            "ffn": ("{0}.output.dense", "in"),
            "mlp_out": ("{0}.output.dense", "out"),
        },
    ),
}
NO_FINAL_NORM = {"opt_projected", "bert"}


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def pair(request: pytest.FixtureRequest) -> tuple[str, LoadedModel, Any]:
    """An architecture, the model as loaded here, and as transformers loads it."""
    plain = AutoModel.from_pretrained(tiny.built(request.param), dtype=torch.float32).eval()
    return request.param, tiny.loaded(request.param), plain


def ids_of(model: LoadedModel) -> torch.LongTensor:
    # Longer than the sliding windows, so that what a window would crop shows.
    ids = model.tokenizer(tiny.TEXT)["input_ids"]
    assert len(ids) > 3 * tiny.WINDOW
    return torch.LongTensor([ids, ids[::-1]])


def reference(plain: Any, ids: Tensor, places: dict[Any, tuple[str, str]]) -> tuple[dict[Any, Tensor], Any]:
    """What modules took in or gave out in a pass of transformers alone, and the pass's output."""
    found: dict[Any, Tensor] = {}
    handles = []
    modules = dict(plain.named_modules())
    for key, (path, side) in places.items():

        def after(_: Any, args: Any, kwargs: Any, output: Any, key: Any = key, side: str = side) -> None:
            x = (args[0] if args else kwargs["hidden_states"]) if side == "in" else output
            found[key] = (x[0] if isinstance(x, tuple) else x).reshape(*ids.shape, -1).clone()

        handles.append(modules[path].register_forward_hook(after, with_kwargs=True))
    with torch.no_grad():
        output = plain(input_ids=ids, output_hidden_states=True)
    for handle in handles:
        handle.remove()
    return found, output


def test_every_point_that_the_architecture_has_is_there(pair: tuple[str, LoadedModel, Any]) -> None:
    architecture, model, _ = pair
    _, style, inside = EXPECTED[architecture]
    points = {"embed", "resid_post", "k", "v", "final_norm", *inside}
    if architecture in NO_FINAL_NORM:
        points.discard("final_norm")
        assert "no norm after its last block" in model.site_notes["final_norm"]
    assert {s.point for s in model.sites} == points
    assert model.residual == style
    assert len(model.sites) == len(set(model.sites))
    per_block = [s.point for s in model.sites if s.layer == 1]
    assert per_block == [p for p in POINTS if p in per_block]
    for layer in range(model.n_layers):
        assert [s.point for s in model.sites if s.layer == layer] == per_block


def test_shape_of_the_model(pair: tuple[str, LoadedModel, Any]) -> None:
    architecture, model, _ = pair
    config = tiny.config(architecture)
    assert model.n_layers == config.num_hidden_layers
    assert model.width == config.hidden_size
    assert model.vocab_size == tiny.VOCAB_SIZE
    assert model.causal == (architecture != "bert")
    assert model.max_positions == 128
    d_ffn = {"gpt2": 176, "opt": 88, "opt_projected": 88}.get(architecture) or config.intermediate_size
    assert model.d_ffn == d_ffn
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    assert model.width_of(Site("k", 0)) == model.width_of(Site("v", 0)) == heads * head_dim
    assert model.width_of(Site("ffn", 0)) == d_ffn
    assert model.width_of(Site("embed")) == (32 if architecture == "opt_projected" else model.width)


def test_residual_stream_is_transformers_own(pair: tuple[str, LoadedModel, Any]) -> None:
    architecture, model, plain = pair
    ids = ids_of(model)
    blocks = EXPECTED[architecture][0]
    last = Site("resid_post", model.n_layers - 1)
    seen = tiny.capture(model, ids, model.sites)
    found, output = reference(plain, ids, {last: (f"{blocks}.{last.layer}", "out")})
    # The last hidden state of that list is after the final norm; the ones before are raw.
    for layer in range(model.n_layers - 1):
        assert torch.equal(seen[Site("resid_post", layer)], output.hidden_states[layer + 1])
    assert torch.equal(seen[last], found[last])
    if Site("final_norm") in model.sites:
        assert torch.equal(seen[Site("final_norm")], output.last_hidden_state)
        assert not torch.allclose(seen[last], output.last_hidden_state, atol=0.05)
    elif architecture == "bert":
        assert torch.equal(seen[last], output.last_hidden_state)


def test_embed_is_the_token_embedding_alone(pair: tuple[str, LoadedModel, Any]) -> None:
    architecture, model, plain = pair
    ids = ids_of(model)
    seen = tiny.capture(model, ids, [Site("embed")])[Site("embed")]
    rows = plain.get_input_embeddings().weight[ids]
    scale = 48**0.5 if architecture.startswith("gemma") else 1.0
    assert torch.allclose(seen, rows * scale, rtol=1e-6, atol=0)


def test_points_inside_a_block(pair: tuple[str, LoadedModel, Any]) -> None:
    architecture, model, plain = pair
    ids = ids_of(model)
    blocks, _, inside = EXPECTED[architecture]
    places = {
        Site(point, layer): (path.format(f"{blocks}.{layer}"), side)
        for layer in range(model.n_layers)
        for point, (path, side) in inside.items()
    }
    seen = tiny.capture(model, ids, model.sites)
    found, _ = reference(plain, ids, places)
    for site in places:
        assert seen[site].shape == (*ids.shape, model.width_of(site))
        assert torch.equal(seen[site], found[site]), site


def test_sublayers_add_up(pair: tuple[str, LoadedModel, Any]) -> None:
    _, model, _ = pair
    seen = tiny.capture(model, ids_of(model), model.sites)
    for layer in range(1, model.n_layers):
        resid_pre = seen[Site("resid_post", layer - 1)]
        attn, mlp, resid_post = (seen[Site(p, layer)] for p in ("attn_out", "mlp_out", "resid_post"))
        close = {"rtol": 1e-5, "atol": 1e-5 * float(resid_post.abs().max())}
        if model.residual == "parallel":
            assert torch.allclose(resid_pre + attn + mlp, resid_post, **close)
            continue
        resid_mid = seen[Site("resid_mid", layer)]
        holds = (
            torch.allclose(resid_pre + attn, resid_mid, **close),
            torch.allclose(resid_mid + mlp, resid_post, **close),
        )
        assert holds == ((False, False) if model.residual == "post-norm" else (True, True))


def test_keys_and_values_are_those_of_the_cache(pair: tuple[str, LoadedModel, Any]) -> None:
    architecture, model, plain = pair
    ids = ids_of(model)
    seen = tiny.capture(model, ids, model.parse_sites("k.*;v.*"))
    if architecture == "bert":
        path = "encoder.layer.{}.attention.self.{}"
        linear = {"k": "key", "v": "value"}
        places = {s: (path.format(s.layer, linear[s.point]), "out") for s in seen}
        found, _ = reference(plain, ids, places)
        assert all(torch.equal(seen[s], found[s]) for s in seen)
        return
    # A cache without a config has no sliding layers and keeps every position.
    cache = DynamicCache()
    with torch.no_grad():
        plain(input_ids=ids, past_key_values=cache, use_cache=True)
    for site, x in seen.items():
        assert site.layer is not None
        layer = cache.layers[site.layer]
        states = layer.keys if site.point == "k" else layer.values
        n_heads, head_dim = states.shape[1], states.shape[3]
        assert x.shape == (*ids.shape, n_heads * head_dim)
        for head in range(n_heads):
            assert torch.equal(x[..., head * head_dim : (head + 1) * head_dim], states[:, head])


def test_ffn_directions_are_what_a_neuron_writes(pair: tuple[str, LoadedModel, Any]) -> None:
    _, model, _ = pair
    layer = 1
    directions = model.ffn_directions(layer)
    assert directions.shape == (model.d_ffn, model.width)
    # The map is affine: what it gives for one neuron at 1 less what it gives for none is that neuron's row.
    last_map: Any = model.layout.taps[Site("ffn", layer)].module
    with torch.inference_mode():
        none = last_map(torch.zeros(1, model.d_ffn))
        assert torch.allclose(last_map(torch.eye(model.d_ffn)) - none, directions, atol=1e-6)


def test_resid_mid_is_refused_by_name_with_parallel_attention() -> None:
    model = tiny.loaded("gpt_neox")
    with pytest.raises(
        SiteError, match=r"no site resid_mid\.1 \(attention and FFN of layers\.1 run in parallel"
    ):
        model.parse_sites("resid_mid.1")
    with pytest.raises(SiteError, match="in parallel"):
        model.width_of(Site("resid_mid", 0))
    with pytest.raises(SiteError, match="in parallel"):
        model.forward(torch.LongTensor([[5]]), None, [Site("resid_mid", 0)], lambda *_: None)


# ---- architectures beyond those of the table, from random weights ----


def random_model(tmp_path: Path, model_type: str, **values: Any) -> LoadedModel:
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type, **({"vocab_size": tiny.VOCAB_SIZE} | values))
    config.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    return load_model(str(tmp_path), random_init=0)


SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def test_an_encoder_without_a_cache_shows_its_key_and_value_maps(tmp_path: Path) -> None:
    model = random_model(tmp_path, "distilbert", dim=48, hidden_dim=80, n_layers=3, n_heads=4, pad_token_id=2)
    taps = model.layout.taps
    assert taps[Site("k", 1)].path == "transformer.layer.1.attention.k_lin"
    assert taps[Site("v", 1)].path == "transformer.layer.1.attention.v_lin"
    assert model.residual == "post-norm"
    assert not model.causal


def test_positions_counted_from_the_padding_row(tmp_path: Path) -> None:
    model = random_model(tmp_path, "roberta", **(SIZES | {"pad_token_id": 1, "eos_token_id": 2}))
    # 64 rows, of which row 1 is padding and the first token has row 2.
    assert model.max_positions == 62
    model.forward(torch.full((1, 62), 7), None, [model.sites[-1]], lambda *_: None)


def test_a_mixture_of_experts_has_no_ffn_site(tmp_path: Path) -> None:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    model = random_model(
        tmp_path, "qwen2_moe", num_key_value_heads=2, **SIZES, **experts, shared_expert_intermediate_size=32
    )
    assert {s.point for s in model.sites} == set(POINTS) - {"ffn"}
    with pytest.raises(SiteError, match=r"ffn\.1 .*shared_expert\.down_proj is not all"):
        model.parse_sites("ffn.1")


def test_a_scaled_residual_keeps_what_can_be_checked(tmp_path: Path) -> None:
    model = random_model(tmp_path, "granite", **SIZES, num_key_value_heads=2, residual_multiplier=0.2)
    assert {s.point for s in model.sites} == {"embed", "k", "v", "ffn", "resid_post", "final_norm"}
    with pytest.raises(SiteError, match="no outputs of two sublayers add up"):
        model.parse_sites("mlp_out.1")


def test_a_model_without_blocks_of_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="no list of 3 blocks, each run once with a width of 48"):
        random_model(tmp_path, "albert", **SIZES, embedding_size=16)
