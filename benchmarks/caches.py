"""States of one text to disk, beside SAELens, TransformerLens and nnsight: same model, windows, sites and threads.

Model loading and one first batch are outside the clock for everybody; tokenising, passes and writing are inside. The
GGUF file, which the peers do not read, is first written as a folder of float32 weights, which everybody then reads.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from measure import MODEL, NotMeasured, Setting, child, ours, threads
from overhead import topics
from table import Bar, Row, at_least, failed

CONTEXT, BATCH_ROWS, WIDTH = 256, 8, 576
ONE, EARLY = (14,), (1,)
FIVE = (5, 11, 17, 23, 29)
"""Blocks: the middle one, an early one, and those of our default sites."""
SPEED, DISK = at_least(2.0), at_least(25.0)
Found = dict[str, Any]


def export(folder: Path) -> Path:
    """The model as a folder of float32 safetensors with its tokenizer; made once."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    made = folder / "smollm2"
    if (made / "done").exists():
        return made
    options: dict[str, Any] = {"gguf_file": MODEL.name}
    read = AutoModelForCausalLM.from_pretrained(MODEL.parent, dtype=torch.float32, **options)
    # A model that was read from GGUF counts as quantised and will not be saved: its weights in a new one will.
    del read.config.quantization_config
    model = AutoModelForCausalLM.from_config(read.config).to(torch.float32)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(made)
    AutoTokenizer.from_pretrained(MODEL.parent, **options).save_pretrained(made)
    (made / "done").touch()
    return made


def text(model: Path, file: Path, tokens: int) -> Path:
    """The start of the text, so long that it gives the wanted tokens: nobody tokenises more than they run."""
    from tokenizers import Tokenizer

    whole = topics()
    encoded = Tokenizer.from_file(str(model / "tokenizer.json")).encode(whole, add_special_tokens=False)
    file.write_text(whole[: encoded.offsets[min(tokens + 64, len(encoded.ids) - 1)][0]])
    return file


def rows(setting: Setting) -> Iterator[Row]:
    """Speed and memory at one site beside SAELens' runner and at five beside the others; bytes at an early site."""
    model = export(setting.kept)
    tokens, rounds = (4096, 1) if setting.quick else (16_384, 4)

    def task(wanted: int) -> Found:
        return {
            "model": str(model),
            "text": str(text(model, setting.scratch / "text.txt", wanted)),
            "tokens": wanted,
            "context": CONTEXT,
            "batch_rows": BATCH_ROWS,
            "width": WIDTH,
            "threads": threads(),
            "output": fresh(setting),
        }

    def mine(wanted: int, layers: tuple[int, ...]) -> Found:
        sites = ";".join(f"resid_post.{layer}" for layer in layers)
        return ours("harvest.py", {**task(wanted), "sites": sites})

    def peer(script: str, wanted: int, layers: tuple[int, ...], **more: Any) -> Found:
        return child(setting.peer, f"peers/{script}.py", {**task(wanted), "layers": layers, **more})

    runners: dict[str, Callable[[], Found]] = {
        f"SAELens' cache runner, {kind}": lambda kind=kind, n=tokens: peer("saelens", n, ONE, kind=kind)  # type: ignore[misc]
        for kind in ("AutoModelForCausalLM", "HookedTransformer")
    }
    what = f"{tokens:,} tokens, resid_post.{ONE[0]}"
    yield from speed(what, lambda: mine(tokens, ONE), runners, rounds, SPEED)
    tokens = max(4096, tokens // 2)
    five: dict[str, Callable[[], Found]] = {
        "TransformerLens' run_with_cache": lambda: peer("transformerlens", tokens, FIVE),
        "nnsight": lambda: peer("nnsight_cache", tokens, FIVE),
    }
    yield from speed(f"{tokens:,} tokens, 5 sites", lambda: mine(tokens, FIVE), five, rounds // 2 or 1)
    # Bytes do not depend on the block, and the first ones are soon done; the more states, the less blocks of 256 KiB
    # and what a catalogue holds once blur what a state takes.
    whole = 8192 if setting.quick else 110_592
    yield from disk(
        f"{whole:,} tokens, resid_post.{EARLY[0]}",
        lambda: mine(whole, EARLY),
        lambda: peer("saelens", whole, EARLY, kind="AutoModelForCausalLM"),
    )


def fresh(setting: Setting) -> str:
    """A folder that is not there yet: what the last run wrote is gone."""
    folder = setting.scratch / "states"
    shutil.rmtree(folder, ignore_errors=True)
    return str(folder)


def speed(
    what: str,
    mine: Callable[[], Found],
    peers: dict[str, Callable[[], Found]],
    rounds: int,
    bar: Bar | None = None,
) -> Iterator[Row]:
    """Tokens a second and memory beside each peer: the quicker of some runs, everybody in turn."""
    runs: dict[str, list[Found]] = {}
    broken: dict[str, NotMeasured] = {}
    for _ in range(rounds):
        for name, run in {"ours": mine, **peers}.items():
            if name in broken:
                continue
            try:
                found = run()
                runs.setdefault(name, []).append(found)
            except NotMeasured as error:
                broken[name] = error
    if "ours" in broken:
        yield failed(what, broken["ours"], bar)
        return
    best = {name: min(found, key=lambda one: one["seconds"]) for name, found in runs.items()}
    me = best["ours"]
    rate, bare = me["tokens"] / me["seconds"], max(one["bare"] for one in runs["ours"])
    yield Row(f"tokens/s, {what}", f"{rate:,.0f}", f"the bare passes alone: {bare:,.0f}", rate / bare)
    for name in peers:
        if name in broken:
            yield failed(f"tokens/s, {what}: {name}", broken[name], bar)
            continue
        it = best[name]
        theirs = it["tokens"] / it["seconds"]
        yield Row(
            f"tokens/s, {what}", f"{rate:,.0f}", f"{it['version']}, {name}: {theirs:,.0f}", rate / theirs, bar
        )
        yield Row(
            f"peak memory, {what}",
            f"{me['peak'] / 2**20:,.0f} MiB",
            f"{name}: {it['peak'] / 2**20:,.0f} MiB (both with the model)",
            it["peak"] / me["peak"],
        )
        each, own = it["disk"] / it["states"], me["disk"] / me["states"]
        yield Row(
            f"bytes a state on disk, {what}", f"{own:,.0f}", f"{name}, float32: {each:,.0f}", each / own
        )
        signs = "".join("1" if value > 0 else "0" for value in it["state"])
        if signs != me["signs"]:
            yield Row(f"{what}: STATES DIFFER", me["signs"], f"{name}: {signs}")


def disk(what: str, mine: Callable[[], Found], peer: Callable[[], Found]) -> Iterator[Row]:
    """Bytes a state: of the whole catalogue, and what each further state adds to it; and what both take, where the
    passes are short."""
    try:
        me, it = mine(), peer()
    except NotMeasured as error:
        yield failed(f"bytes a state on disk, {what}", error, DISK)
        return
    each, own = it["disk"] / it["states"], me["disk"] / me["states"]
    theirs = f"SAELens, float32: {each:,.0f}"
    rows = {
        "bytes a state on disk, vocabulary and texts included": own,
        "the same with the search index": own + me["indexes"] / me["states"],
        "bytes that each further state adds to the catalogue": me["further"],
        "the same with the search index, which has every code once more": me["further"] + me["code"],
    }
    rate, their = me["tokens"] / me["seconds"], it["tokens"] / it["seconds"]
    yield Row(
        f"tokens/s, {what}", f"{rate:,.0f}", f"SAELens' cache runner: {their:,.0f}", rate / their, SPEED
    )
    for name, bytes_ in rows.items():
        yield Row(f"{name}, {what}", f"{bytes_:.1f}", theirs, each / bytes_, DISK)
