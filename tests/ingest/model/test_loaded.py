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

from signarium.catalog.errors import InvalidInput, SiteError
from signarium.ingest.model.load import LoadedModel, load_model
from signarium.ingest.model.sites import Site

TEXTS = ["The king saw the sea.", "A ship", "日本 and the queen\n\n and 12 ships on stormy water"]


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return tiny.loaded(request.param)


@pytest.fixture(scope="module")
def llama() -> LoadedModel:
    return tiny.loaded("llama")


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    return tiny.smollm2()


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
        seen.append(tiny.capture(model, ids, model.sites, lengths))
    for site in model.sites:
        for row, n in enumerate(lengths):
            # The same kernels on the same shapes: not one bit may differ.
            assert torch.equal(seen[0][site][row, :n], seen[1][site][row, :n]), site


def test_a_padded_text_is_like_the_text_alone(model: LoadedModel) -> None:
    ids, lengths = padded(model, 2)
    together = tiny.capture(model, ids, model.sites, lengths)
    for row, n in enumerate(lengths):
        alone = tiny.capture(model, ids[row : row + 1, :n], model.sites)
        for site in model.sites:
            a, b = together[site][row, :n], alone[site][0]
            # Other shapes may add in another order, so float32 rounding is allowed, and nothing more.
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max())), site


def test_one_token_alone(model: LoadedModel) -> None:
    seen = tiny.capture(model, torch.LongTensor([[5], [9]]), model.sites)
    for site in model.sites:
        assert seen[site].shape == (2, 1, model.width_of(site))
        assert seen[site].isfinite().all()


def test_which_other_sites_are_wanted_changes_nothing(model: LoadedModel) -> None:
    ids, lengths = padded(model, 2)
    every = tiny.capture(model, ids, model.sites, lengths)
    for site in model.sites:
        assert torch.equal(tiny.capture(model, ids, [site], lengths)[site], every[site]), site


def test_the_pass_stops_after_the_last_site(model: LoadedModel) -> None:
    ids = torch.LongTensor([[5, 6, 7]])
    blocks = model.layout.taps[Site("resid_post", 0)].path.removesuffix(".0")

    def ran(sites: list[Site], bare: bool) -> tuple[list[int], list[str]]:
        with counted_calls(model.module) as entered:
            if bare:
                model.bare_forward(ids, None, sites)
            else:
                tiny.capture(model, ids, sites)
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

    def fail(site: Site, x: torch.Tensor) -> None:
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


def test_what_a_tokenizer_adds() -> None:
    llama, bert = (tiny.loaded(a) for a in ("llama", "bert"))
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


# ---- a real model -------------------------------------------------------------------------------


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
    state = tiny.capture(smollm2, ids, [Site("final_norm")])[Site("final_norm")][0, -1]
    logits = smollm2.module.get_input_embeddings().weight @ state  # type: ignore[operator]
    assert smollm2.token_strings()[int(logits.argmax())] == " Paris"


@pytest.mark.real
def test_smollm2_sublayers_add_up(smollm2: LoadedModel) -> None:
    ids = torch.LongTensor([smollm2.tokenizer(TEXTS[2])["input_ids"]])
    for layer in (1, 15, 29):
        spec = f"attn_out.{layer};mlp_out.{layer};resid_mid.{layer};resid_post.{layer - 1},{layer}"
        seen = tiny.capture(smollm2, ids, smollm2.parse_sites(spec))
        pre, post = seen[Site("resid_post", layer - 1)], seen[Site("resid_post", layer)]
        assert torch.equal(pre + seen[Site("attn_out", layer)], seen[Site("resid_mid", layer)])
        assert torch.equal(seen[Site("resid_mid", layer)] + seen[Site("mlp_out", layer)], post)
