from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from torch import Tensor

from signarium.catalog.errors import InvalidInput, ModelError, SiteError
from signarium.ingest.model import LoadedModel, load_model
from signarium.ingest.sites import POINTS, Site

ROOT = Path(__file__).parents[2]
SMOLLM2 = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
MINILM = ROOT / "models" / "all-minilm-l6-v2"
TEXTS = ["The king saw the sea.", "A ship", "日本 and the queen\n\n and 12 ships on stormy water"]


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(str(tiny.folder(tmp_path_factory.mktemp("models"), request.param)), device="cpu")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(str(tiny.folder(tmp_path_factory.mktemp("models"), "llama")), device="cpu")


def capture(
    model: LoadedModel, ids: Tensor, sites: list[Site], lengths: list[int] | None = None
) -> dict[Site, Tensor]:
    seen: dict[Site, Tensor] = {}
    model.forward(torch.LongTensor(ids), lengths, sites, lambda site, x: seen.update({site: x.clone()}))
    return seen


def padded(model: LoadedModel, fill: int) -> tuple[torch.LongTensor, list[int]]:
    rows = [model.tokenizer(text)["input_ids"] for text in TEXTS]
    length = max(map(len, rows))
    return torch.LongTensor([r + [fill] * (length - len(r)) for r in rows]), [len(r) for r in rows]


@contextlib.contextmanager
def counted_calls(module: Any) -> Iterator[list[str]]:
    """Names of the modules that were entered, in order."""
    entered: list[str] = []
    handles = [
        m.register_forward_pre_hook(lambda _, __, name=name: entered.append(name))
        for name, m in module.named_modules()
    ]
    yield entered
    for handle in handles:
        handle.remove()


def n_hooks(model: LoadedModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.module.modules())


# ---- passes -------------------------------------------------------------------------------------


def test_what_padding_holds_changes_nothing(model: LoadedModel) -> None:
    seen = []
    for fill in (2, 7):
        ids, lengths = padded(model, fill)
        seen.append(capture(model, ids, model.sites, lengths))
    for site in model.sites:
        for row, n in enumerate(lengths):
            # The same kernels on the same shapes: not one bit may differ.
            assert torch.equal(seen[0][site][row, :n], seen[1][site][row, :n]), site


def test_a_padded_text_is_like_the_text_alone(model: LoadedModel) -> None:
    ids, lengths = padded(model, 2)
    together = capture(model, ids, model.sites, lengths)
    for row, n in enumerate(lengths):
        alone = capture(model, ids[row : row + 1, :n], model.sites)
        for site in model.sites:
            a, b = together[site][row, :n], alone[site][0]
            # Other shapes may add in another order, so float32 rounding is allowed, and nothing more.
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max())), site


def test_one_token_alone(model: LoadedModel) -> None:
    seen = capture(model, torch.LongTensor([[5], [9]]), model.sites)
    for site in model.sites:
        assert seen[site].shape == (2, 1, model.width_of(site))
        assert seen[site].isfinite().all()


def test_which_other_sites_are_wanted_changes_nothing(model: LoadedModel) -> None:
    ids, lengths = padded(model, 2)
    every = capture(model, ids, model.sites, lengths)
    for site in model.sites:
        assert torch.equal(capture(model, ids, [site], lengths)[site], every[site]), site


def test_the_pass_stops_after_the_last_site(model: LoadedModel) -> None:
    ids = torch.LongTensor([[5, 6, 7]])
    blocks = model.layout.taps[Site("resid_post", 0)].path.removesuffix(".0")

    def ran(sites: list[Site], bare: bool) -> tuple[list[int], list[str]]:
        with counted_calls(model.module) as entered:
            if bare:
                model.bare_forward(ids, None, sites)
            else:
                capture(model, ids, sites)
        layers = [i for i in range(model.n_layers) if f"{blocks}.{i}" in entered]
        return layers, entered

    for bare in (False, True):
        assert ran([Site("embed")], bare)[0] == []
        assert ran([Site("embed"), Site("resid_post", 0)], bare)[0] == [0]
        layers, entered = ran([Site("k", 1), Site("resid_post", 0)], bare)
        assert layers == [0, 1]
        # Keys come before the FFN, whose last map therefore never ran in block 1.
        assert model.layout.taps[Site("ffn", 0)].path in entered
        assert model.layout.taps[Site("ffn", 1)].path not in entered
        assert ran([Site("resid_post", 1)], bare)[0] == [0, 1]
        last = model.sites[-1]
        assert ran([last], bare)[0] == list(range(model.n_layers))
    assert ran([], False)[1] == []


def test_sites_come_in_the_order_of_the_pass_and_hooks_go(llama: LoadedModel) -> None:
    before = n_hooks(llama)
    order: list[Site] = []
    llama.forward(
        torch.LongTensor([[5, 6]]), None, [*reversed(llama.sites), *llama.sites], lambda s, _: order.append(s)
    )
    assert order == llama.sites

    def fail(site: Site, x: Tensor) -> None:
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk is full"):
        llama.forward(torch.LongTensor([[5, 6]]), None, llama.sites, fail)
    assert n_hooks(llama) == before


def test_passes_need_no_gradients(llama: LoadedModel) -> None:
    modes = []
    llama.forward(
        torch.LongTensor([[5]]),
        None,
        [Site("resid_post", 0)],
        lambda _, x: modes.append((x.is_inference(), x.requires_grad)),
    )
    assert modes == [(True, False)]


@pytest.mark.parametrize(
    ("ids", "lengths", "says"),
    [
        ([5, 6], None, "are no int64"),
        ([[5.0]], None, "are no int64"),
        ([[]], None, "are no int64"),
        ([[304]], None, "token id 304 is none of the 304 rows"),
        ([[-1]], None, "token id -1 is none of the 304 rows"),
        ([[5] * 129], None, "129 tokens are more than the 128 positions"),
        ([[5, 6]], [3], "lengths must be 1 numbers from 1 to 2"),
        ([[5, 6]], [0], "lengths must be"),
        ([[5, 6]], [1, 1], "lengths must be"),
    ],
)
def test_input_that_cannot_be_used(llama: LoadedModel, ids: Any, lengths: Any, says: str) -> None:
    with pytest.raises(InvalidInput) as error:
        llama.forward(torch.tensor(ids), lengths, llama.sites, lambda *_: None)  # type: ignore[arg-type]
    assert says in str(error.value)


def test_a_site_that_is_not_there(llama: LoadedModel) -> None:
    with pytest.raises(SiteError, match="no layer 4"):
        llama.forward(torch.LongTensor([[5]]), None, [Site("k", 4)], lambda *_: None)
    with pytest.raises(SiteError, match="no layer 4"):
        llama.width_of(Site("k", 4))


# ---- tokens -------------------------------------------------------------------------------------


def test_token_strings_are_decoded_rows(llama: LoadedModel) -> None:
    strings = llama.token_strings()
    assert len(strings) == llama.vocab_size == tiny.VOCAB_SIZE
    (king,) = llama.tokenizer(" king")["input_ids"]
    assert strings[king] == " king"
    assert strings[llama.tokenizer("A")["input_ids"][0]] == "A"
    assert strings[llama.tokenizer("\n")["input_ids"][0]] == "\n"
    assert strings[:4] == ["<bos>", "<eos>", "<pad>", "<unk>"]
    assert strings[tiny.N_TOKENS :] == [""] * (tiny.VOCAB_SIZE - tiny.N_TOKENS)
    # The bytes of é are no text by themselves, yet each can be told from the others.
    pieces = [strings[i] for i in llama.tokenizer("é")["input_ids"]]
    assert len(set(pieces)) == 2
    assert "�" not in "".join(pieces)
    there = [s for s in strings if s]
    assert len(there) == len(set(there)) == tiny.N_TOKENS


def save_tokenizer(path: Path, backend: Any, **names: str) -> None:
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(path)


def test_token_strings_of_a_sentencepiece_tokenizer(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    path = tiny.folder(tmp_path, "llama")
    vocab = ["<s>", "<unk>", "<0x41>", "<0xE2>", "a", "▁king", "king", "▁"]
    backend = Tokenizer(
        models.BPE({t: i for i, t in enumerate(vocab)}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    strip = decoders.Strip(" ", 1, 0)
    replace = decoders.Replace("▁", " ")
    backend.decoder = decoders.Sequence([replace, decoders.ByteFallback(), decoders.Fuse(), strip])
    save_tokenizer(path, backend, bos_token="<s>", unk_token="<unk>")
    strings = load_model(str(path)).token_strings()
    # The decoder drops a leading space and turns byte tokens into letters; neither may reach the catalogue.
    assert strings[: len(vocab)] == ["<s>", "<unk>", "<0x41>", "<0xE2>", "a", " king", "king", " "]


def test_token_strings_of_a_wordpiece_tokenizer(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    path = tiny.folder(tmp_path, "bert")
    vocab = ["[CLS]", "[SEP]", "[PAD]", "[UNK]", "king", "##king", "."]
    backend = Tokenizer(models.WordPiece({t: i for i, t in enumerate(vocab)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    save_tokenizer(path, backend, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]", pad_token="[PAD]")
    assert load_model(str(path)).token_strings()[: len(vocab)] == vocab


def test_what_a_tokenizer_adds(tmp_path: Path) -> None:
    llama, bert = (load_model(str(tiny.folder(tmp_path, a))) for a in ("llama", "bert"))
    assert (llama.tokenizer_adds(), llama.bos_id) == (([], []), 0)
    assert (bert.tokenizer_adds(), bert.bos_id) == (([0], [1]), 0)


def test_the_tokenizer_cuts_and_pads_nothing(tmp_path: Path) -> None:
    path = tiny.folder(tmp_path, "llama")
    definition = json.loads((path / "tokenizer.json").read_text("utf-8"))
    definition["truncation"] = {
        "direction": "Right",
        "max_length": 3,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    pad = {
        "direction": "Right",
        "pad_to_multiple_of": 64,
        "pad_id": 2,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    definition["padding"] = {"strategy": "BatchLongest", **pad}
    plain = load_model(str(path))
    (path / "tokenizer.json").write_text(json.dumps(definition), "utf-8")
    cutting = load_model(str(path))
    assert len(cutting.tokenizer.backend_tokenizer.encode("a b c d e f g").ids) == 13
    assert cutting.tokenizer_sha256 == plain.tokenizer_sha256


def test_the_tokenizer_hash_sees_tokens_and_special_tokens(tmp_path: Path) -> None:
    path = tiny.folder(tmp_path, "llama")
    seen = {load_model(str(path)).tokenizer_sha256 for _ in range(2)}
    assert len(seen) == 1
    text = (path / "tokenizer.json").read_text("utf-8")
    definition = json.loads(text)
    vocab = definition["model"]["vocab"]
    vocab["Ġking"], vocab["Ġsea"] = vocab["Ġsea"], vocab["Ġking"]
    (path / "tokenizer.json").write_text(json.dumps(definition), "utf-8")
    seen.add(load_model(str(path)).tokenizer_sha256)
    (path / "tokenizer.json").write_text(text, "utf-8")
    config = json.loads((path / "tokenizer_config.json").read_text("utf-8"))
    (path / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "<eos>"}), "utf-8")
    seen.add(load_model(str(path)).tokenizer_sha256)
    assert len(seen) == 3


# ---- loading ------------------------------------------------------------------------------------


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
    kinds = {x.dtype for x in capture(model, torch.LongTensor([[5, 6]]), model.sites).values()}
    assert kinds == {getattr(torch, gets)}
    assert model.residual == "sequential"


def test_every_architecture_is_found_in_bfloat16(tmp_path: Path) -> None:
    # The checks count roundings of the dtype, so they are as strict here as in float32.
    for architecture in tiny.ARCHITECTURES:
        path = tiny.folder(tmp_path, architecture)
        full, half = (load_model(str(path), device="cpu", dtype=d) for d in ("float32", "bfloat16"))
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
    from safetensors.torch import load_file, save_file

    tensors = load_file(path / "model.safetensors")
    name = next(n for n in tensors if n.endswith("layers.1.fc2.bias"))
    tensors[name] += 60000
    name = name.replace("layers.1", "layers.2")
    tensors[name] += 60000
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    assert load_model(str(path), dtype="float32").causal
    with pytest.raises(SiteError, match="gives NaN or infinity in float16: pass --dtype float32"):
        load_model(str(path), dtype="float16")


# ---- real models --------------------------------------------------------------------------------


def need(path: Path) -> str:
    if not path.exists():
        pytest.fail(f"{path} is missing: run `make setup`")
    return str(path)


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    return load_model(need(SMOLLM2), device="cpu")


@pytest.mark.real
def test_smollm2_is_what_it_is(smollm2: LoadedModel) -> None:
    assert (smollm2.name, smollm2.architecture) == ("SmolLM2-135M-Instruct.Q4_1", "llama")
    assert (smollm2.width, smollm2.n_layers, smollm2.d_ffn, smollm2.vocab_size) == (576, 30, 1536, 49152)
    assert (smollm2.dtype, smollm2.causal, smollm2.residual) == ("float32", True, "sequential")
    assert smollm2.width_of(Site("k", 0)) == 3 * 64
    assert len(smollm2.sites) == 2 + 30 * 7
    assert smollm2.site_notes == {}
    assert [s.name for s in smollm2.default_sites()] == [f"resid_post.{i}" for i in (5, 11, 17, 23, 29)]


@pytest.mark.real
def test_smollm2_tokens(smollm2: LoadedModel) -> None:
    # SmolLM2's own tokenizer adds no BOS, and splits numbers into digits.
    assert smollm2.tokenizer_adds() == ([], [])
    strings = smollm2.token_strings()
    assert strings[smollm2.bos_id or 0] == "<|im_start|>"

    def pieces(text: str) -> list[str]:
        return [strings[i] for i in smollm2.tokenizer(text)["input_ids"]]

    assert pieces(" king") == [" king"]
    assert pieces("king of 2024\n\n") == ["king", " of", " ", "2", "0", "2", "4", "\n\n"]
    assert sum(not s for s in strings) == 0
    assert len(set(strings)) == len(strings)
    # Row 180 is the byte 0xE9 and row 2756 the letter é, which byte-level vocabularies write alike.
    assert (strings[180], strings[2756]) == ("<0xE9>", "é")


@pytest.mark.real
def test_smollm2_predicts_paris(smollm2: LoadedModel) -> None:
    # Its unembedding is its embedding, so the whole path from text to token is in the sites.
    ids = torch.LongTensor([smollm2.tokenizer("The capital of France is")["input_ids"]])
    state = capture(smollm2, ids, [Site("final_norm")])[Site("final_norm")][0, -1]
    logits = smollm2.module.get_input_embeddings().weight @ state  # type: ignore[operator]
    assert smollm2.token_strings()[int(logits.argmax())] == " Paris"


@pytest.mark.real
def test_smollm2_sublayers_add_up(smollm2: LoadedModel) -> None:
    ids = torch.LongTensor([smollm2.tokenizer(TEXTS[2])["input_ids"]])
    for layer in (1, 15, 29):
        spec = f"attn_out.{layer};mlp_out.{layer};resid_mid.{layer};resid_post.{layer - 1},{layer}"
        seen = capture(smollm2, ids, smollm2.parse_sites(spec))
        pre, post = seen[Site("resid_post", layer - 1)], seen[Site("resid_post", layer)]
        assert torch.equal(pre + seen[Site("attn_out", layer)], seen[Site("resid_mid", layer)])
        assert torch.equal(seen[Site("resid_mid", layer)] + seen[Site("mlp_out", layer)], post)


@pytest.mark.real
def test_a_gguf_file_is_read_alone(tmp_path: Path, smollm2: LoadedModel) -> None:
    # A tokenizer of another model beside the file must not be taken for its own.
    tiny.tokenizer().save_pretrained(tmp_path)
    tiny.config("gpt2").save_pretrained(tmp_path)
    file = tmp_path / "Other.gguf"
    file.symlink_to(need(SMOLLM2))
    other = load_model(str(file), random_init=0)
    assert (other.name, other.architecture, other.dtype) == ("Other", "llama", "float32")
    assert other.tokenizer_sha256 == smollm2.tokenizer_sha256
    assert other.weights_sha256 != smollm2.weights_sha256


@pytest.mark.real
def test_a_truncated_gguf_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "cut.gguf"
    with Path(need(SMOLLM2)).open("rb") as stream:
        for n_bytes in (100, 1 << 20, 5 << 20):
            stream.seek(0)
            file.write_bytes(stream.read(n_bytes))
            with pytest.raises(ModelError, match="is truncated or corrupt"):
                load_model(str(file))


@pytest.mark.real
def test_minilm_is_an_encoder(capfd: Any) -> None:
    model = load_model(need(MINILM), device="cpu")
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
    states = capture(model, ids, [last], [len(r) for r in rows])[last]
    means = torch.stack([x[: len(r)].mean(0) for x, r in zip(states, rows, strict=True)])
    near, far = torch.cosine_similarity(means[:1], means[1:]).tolist()
    assert near > 0.7 > 0.3 > far
