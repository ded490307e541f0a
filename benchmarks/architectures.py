"""Every text architecture of transformers, tiny and with random weights, through `ingest`: writes `docs/architectures.md`.

    python benchmarks/architectures.py            # all, about fifteen minutes
    python benchmarks/architectures.py llama bert # some, printed and not written

Each runs in a process of its own with a limit of time and memory. What is tried: load it, find and check its sites, and
store the types and the states of a short text at the usual sites.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))
PAGE = ROOT / "docs" / "architectures.md"
SECONDS, BYTES = 120, 12 << 30
TEXT = "The king and the queen saw the ships in cold winter. " * 4

SMALL: dict[str, Any] = {
    # Widths, heads and layers, by the names that configs give them.
    "vocab_size": 512, "hidden_size": 64, "d_model": 64, "n_embd": 64, "dim": 64, "embed_dim": 64, "embedding_size": 64,
    "num_hidden_layers": 4, "n_layer": 4, "n_layers": 4, "num_layers": 4, "decoder_layers": 4, "encoder_layers": 4,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "decoder_attention_heads": 4,
    "encoder_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "attention_head_size": 16,
    "intermediate_size": 96, "n_inner": 96, "ffn_dim": 96, "d_ff": 96, "decoder_ffn_dim": 96, "encoder_ffn_dim": 96,
    "hidden_dim": 96, "max_position_embeddings": 256, "n_positions": 256, "max_seq_len": 256,
    # Mixtures, latent attention, state spaces.
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16,
    "v_head_dim": 16, "state_size": 8, "mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_expand": 2,
    "time_step_rank": 4, "attention_hidden_size": 64, "lru_width": 64, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "chunk_size": 16,
    "rotary_dim": 16, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "type_vocab_size": 2, "is_decoder": False,
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What came of one architecture. `kind` is `works`, `refused` (one line of ours), `fails` or `untried`."""

    model_type: str
    kind: str
    said: str
    seconds: float


def model_types() -> list[str]:
    """Those with a head that predicts tokens."""
    from transformers.models.auto import modeling_auto as auto

    causal, masked = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return sorted({*causal, *masked})


def config(model_type: str) -> Any:
    """A tiny config: of `SMALL` what that architecture has."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    usual = kind()
    of_text = usual.get_text_config() if hasattr(usual, "get_text_config") else usual
    values = {name: value for name, value in SMALL.items() if _has(of_text, name)}
    if "kv_lora_rank" in values:
        # Latent attention has as many of the one as of the other.
        values["num_key_value_heads"] = values["num_attention_heads"]
    for name in ("layer_types", "layers_block_type", "block_types"):
        types = getattr(of_text, name, None)
        if isinstance(types, list) and types:
            # One of each kind of block, in their order.
            kinds = list(dict.fromkeys(types))
            values[name] = (kinds * 4)[: max(4, len(kinds))]
            for layers in ("num_hidden_layers", "n_layer", "num_layers"):
                if layers in values:
                    values[layers] = len(values[name])
    if of_text is not usual:
        for key, value in vars(usual).items():
            if value is of_text:
                return kind(**{key: values})
    try:
        return kind(**values)
    except Exception:
        # Some derive one size from the others.
        for name in (
            "head_dim",
            "layer_types",
            "layers_block_type",
            "num_key_value_heads",
            "mamba_d_head",
            "mamba_n_heads",
        ):
            values.pop(name, None)
        return kind(**values)


def _has(usual: Any, name: str) -> bool:
    """Whether a config has a value of that name for all its blocks together."""
    try:
        return name != "is_decoder" and hasattr(usual, name)
    except Exception:
        return False


def attempt(model_type: str, folder: Path) -> tuple[str, str]:
    """(kind, what is said) of one architecture."""
    import tiny

    import signarium
    from signarium.catalog.errors import SignariumError

    try:
        made = config(model_type)
    except Exception as error:
        return "untried", f"no small config: {brief(error)}"
    home = folder / model_type
    home.mkdir()
    made.save_pretrained(home)
    tiny.tokenizer("bert" if "bert" in model_type else "llama").save_pretrained(home)
    (folder / "text.txt").write_text(TEXT)
    path = folder / "c.duckdb"
    try:
        signarium.ingest(
            path, home, random_init=0, text=folder / "text.txt", stages=["types", "states"], context=24, device="cpu"
        )  # fmt: skip
    except SignariumError as error:
        return "refused", brief(error, folder)
    except Exception as error:
        return "fails", f"{type(error).__name__}: {brief(error, folder)}"
    c = signarium.open(path)
    sites = c.sql("SELECT DISTINCT site FROM code_sets ORDER BY site").to_pylist()
    (model,) = c.sql("SELECT n_layers, width FROM models").to_pylist()
    return "works", f"{model['n_layers']} blocks, {len(sites)} sites"


def brief(error: BaseException, folder: Path | None = None) -> str:
    """The first line of an error, without places."""
    text = " ".join(str(error).split()) or type(error).__name__
    if folder is not None:
        text = re.sub(rf"{re.escape(str(folder))}/?", "", text)
    return text if len(text) < 160 else text[:157] + "..."


def outcomes(wanted: list[str]) -> Iterator[Outcome]:
    """Each in a forked process: what it imports and allocates goes with it."""
    import torch
    import transformers.modeling_utils  # noqa: F401

    import signarium.ingest.run
    import signarium.migrations.manage  # noqa: F401

    torch.set_num_threads(1)
    for model_type in wanted:
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as home:
            answer = Path(home) / "answer.json"
            pid = os.fork()
            if pid == 0:
                resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
                resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
                with open(os.devnull, "w") as nothing:
                    os.dup2(nothing.fileno(), 1)
                    os.dup2(nothing.fileno(), 2)
                try:
                    said = attempt(model_type, Path(home))
                except BaseException as error:
                    said = "fails", f"{type(error).__name__}: {brief(error)}"
                answer.write_text(json.dumps(said))
                os._exit(0)
            _, status = os.waitpid(pid, 0)
            code = os.waitstatus_to_exitcode(status)
            kind, said = (
                json.loads(answer.read_text()) if answer.exists() else ("fails", f"ended with {code}")
            )
        yield Outcome(model_type, kind, said, time.perf_counter() - begun)


def page(found: list[Outcome]) -> str:
    """The page, as Markdown."""
    import transformers

    parts = [
        "# Architectures",
        "",
        f"Every architecture of transformers {transformers.__version__} that predicts tokens, tiny and with random weights, through",
        "`ingest`: loaded, its sites found and checked, types and states stored. `python benchmarks/architectures.py`",
        "makes this page. Random weights say that the sites are right, not that a checkpoint's files load.",
        "",
    ]
    titles = {
        "works": "Works",
        "refused": "Refused, with the reason",
        "fails": "Fails in transformers or here",
        "untried": "Not tried: no tiny config of it could be made",
    }
    for kind, title in titles.items():
        rows = [one for one in found if one.kind == kind]
        parts += [f"## {title} ({len(rows)})", ""]
        if kind == "works":
            parts += [", ".join(f"`{one.model_type}`" for one in rows), ""]
        elif rows:
            parts += ["| architecture | what is said |", "|---|---|"]
            parts += [f"| `{one.model_type}` | {one.said.replace('|', '/')} |" for one in rows]
            parts.append("")
    return "\n".join(parts)


def main() -> None:
    """Try those that are named, or all, and write the page."""
    wanted = sys.argv[1:] or model_types()
    found = []
    for one in outcomes(wanted):
        print(f"{one.model_type:28} {one.kind:8} {one.seconds:5.1f} s  {one.said}", flush=True)
        found.append(one)
    if not sys.argv[1:]:
        PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
