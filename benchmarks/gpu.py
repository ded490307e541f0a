"""What a GPU does: the cost of an ingest beside bare passes, and exact search beside FAISS's own on the device.

    python benchmarks/gpu.py [--quick] [--only gpu-ingest,gpu-search,gpu-engines] [--device cuda]

Writes its parts of benchmarks/RESULTS.md, and the rows of the GPU's engines in catalog/engines/measured.json.
`--device cpu --quick` runs the same code at tiny sizes where there is no GPU; its times mean nothing.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import costs
import numpy as np
from measure import NotMeasured, Setting, machine, memory_free, ours, python, seconds, versions
from overhead import topics
from run import GPU_PARTS, arguments, chosen, measure, output
from search import queries, scaled, spoken
from table import Row, at_least, at_most, failed

INGEST_BAR, SEARCH_BAR = at_most(1.05), at_least(8.0)
PRODUCT_BAR, MEMORY_BAR = at_least(0.40), at_most(1.0, "GiB")
BATCHES = (1, 64, 4096)
WIDTH, K = 2560, 10
PEAKS = {
    "H100 PCIe": 1513e12,
    "H100 NVL": 1671e12,
    "H100": 1979e12,
    "H200": 1979e12,
    "B200": 4500e12,
    "A100": 624e12,
    "L40S": 733e12,
    "L40": 362e12,
    "L4": 242e12,
    "RTX 4090": 661e12,
}
"""Dense int8 operations a second; the first name that a card's name holds. Check your card's data sheet."""
QWEN3_4B = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_936,
    "max_position_embeddings": 40_960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": True,
}
SMALL = {
    **QWEN3_4B,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
}
SMALL |= {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 4096}
Codes = np.ndarray[Any, np.dtype[np.uint8]]


def card(device: str) -> str:
    """The name of the device."""
    import torch

    return torch.cuda.get_device_name(0) if device == "cuda" else "cpu"


def wait(device: str) -> None:
    """Until what was begun on the device is done."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


# ---- ingest -------------------------------------------------------------------------------------


def model_folder(folder: Path, config: dict[str, Any], text: str) -> Path:
    """A folder with a config and a tokenizer that is trained on the text; the weights are drawn when it is loaded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config

    made = folder / "qwen3"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(32_000, config["vocab_size"]),
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    Qwen3Config(**config, architectures=["Qwen3ForCausalLM"]).save_pretrained(made)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(made)
    return made


def ingest(setting: Setting) -> Iterator[Row]:
    """States of a text at five sites, each whole ingest beside bare passes over the very same batches."""
    import torch

    import signarium
    from signarium.ingest.model.load import load_model

    tokens, rounds = (2048, 1) if setting.quick else (1_048_576, 3)
    text = topics()
    folder = model_folder(setting.scratch, SMALL if setting.quick else QWEN3_4B, text)
    file = setting.scratch / "text.txt"
    file.write_text(text if setting.quick else "\n".join(f"{part}\n{text}" for part in range(12)))
    dtype = "float32" if setting.device == "cpu" else "bfloat16"
    model = load_model(str(folder), device=setting.device, dtype=dtype, random_init=0)
    forward, passes = model.forward, list[tuple[Any, ...]]()

    def recorded(ids: torch.Tensor, lengths: list[int] | None, sites: list[Any], sink: object) -> None:
        passes.append((ids.clone().pin_memory() if ids.is_pinned() else ids.clone(), lengths, sites))
        forward(ids, lengths, sites, sink)  # type: ignore[arg-type]

    def whole(wanted: int, name: str) -> dict[str, Any]:
        path = setting.scratch / f"{name}.duckdb"
        with patch("signarium.ingest.model.load.load_model", lambda *_, **__: model):
            signarium.ingest(path, str(folder), text=[file], stages=["states"], max_tokens=wanted)  # type: ignore[operator]
        wait(setting.device)
        return dict(signarium.open(path).runs().to_pylist()[0])

    def bare() -> None:
        for one in passes:
            model.bare_forward(*one)
        wait(setting.device)

    # What is imported, compiled and set up once.
    whole(tokens // 16, "first")
    model.forward = recorded  # type: ignore[method-assign]
    whole(tokens, "recorded")
    model.forward = forward  # type: ignore[method-assign]
    bare()
    turns = []
    for turn in range(rounds):
        # The bare passes before and after, so that a card that grows warm slows both alike.
        before = seconds(bare)
        begun = time.perf_counter()
        run = whole(tokens, f"turn{turn}")
        took = time.perf_counter() - begun
        passed = (before + seconds(bare)) / 2
        turns.append((took / passed, took, passed, run))
    ratio, took, passed, run = sorted(turns, key=lambda one: one[0])[rounds // 2]
    shape = "a small shape" if setting.quick else "the shape of Qwen3-4B"
    memory = f"; peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if setting.device == "cuda" else ""
    yield Row(
        f"ingest / bare forward, random weights in {shape}, states, {run['tokens']:,} tokens, 5 sites, {dtype}",
        f"{run['tokens'] / took:,.0f} tokens/s",
        f"bare {run['tokens'] / passed:,.0f} tokens/s; of the ingest pack {run['pack_s']:.2f} s, "
        f"write {run['write_s']:.2f} s{memory}",
        ratio,
        INGEST_BAR,
    )


# ---- search -------------------------------------------------------------------------------------


def raw_faiss(codes: Codes) -> Callable[[Codes], Any]:
    """FAISS's own index on the device, searched as it stands.

    Raises:
        NotMeasured: if this FAISS has none, or there is no device.
    """
    from signarium.catalog.engines.flat import faiss

    lib = faiss()
    if not hasattr(lib, "GpuIndexBinaryFlat") or not lib.get_num_gpus():
        raise NotMeasured("this FAISS has no GpuIndexBinaryFlat, or sees no device")
    index = lib.GpuIndexBinaryFlat(lib.StandardGpuResources(), 8 * codes.shape[1])
    for start in range(0, len(codes), 1 << 20):
        index.add(np.ascontiguousarray(codes[start : start + (1 << 20)]))
    return lambda asked: index.search(asked, K)


def opened(name: str, codes: Codes, width: int, device: str) -> Any:
    """An engine's codes where it wants them.

    Raises:
        NotMeasured: if it cannot run here.
    """
    from signarium.catalog import engines
    from signarium.catalog.engines.device import Tensor

    if name == "tensor" and device == "cpu":
        return Tensor(codes, "cpu")
    if (why := engines.missing(name, codes.shape[1])) is not None:
        raise NotMeasured(f"{name}: {why}")
    return engines.open(name, codes, width)


def clear(device: str) -> None:
    """Give back what an engine held on the device."""
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def timed(
    search: Callable[[Codes], Any], asked: Codes, batches: tuple[int, ...], quick: bool
) -> dict[int, dict[str, Any]]:
    """Seconds of each batch; every engine hands its answer to the host, so there is nothing left to wait for."""
    found = {}
    for batch in batches:
        search(asked[:1])
        # Always the whole batch: what a GPU takes does not grow with the queries until they fill it.
        times = [seconds(lambda m=batch: search(asked[:m]))]  # type: ignore[misc]
        while len(times) < (2 if quick else 5) and sum(times) < (0.5 if quick else 20.0):
            times.append(seconds(lambda m=batch: search(asked[:m])))  # type: ignore[misc]
        found[batch] = {"seconds": statistics.median(times), "measured": batch, "batch": batch}
    return found


def random_codes(n: int, size: int) -> Codes:
    """Codes (n, size) that have nothing in common."""
    rng, codes = np.random.default_rng(0), np.empty((n, size), np.uint8)
    for start in range(0, n, 1 << 20):
        part = codes[start : start + (1 << 20)]
        part[:] = rng.integers(0, 256, part.shape, dtype=np.uint8)
    return codes


def search(setting: Setting) -> Iterator[Row]:
    """Our engine beside FAISS's on the same codes, all of them on the device."""
    sizes = (1_000, 2_000) if setting.quick else (1_000_000, 10_000_000, 50_000_000)
    batches = (1, 8, 32) if setting.quick else BATCHES
    size = WIDTH // 8
    fits = [n for n in sizes if 1.5 * n * size < memory_free()]
    for n in sizes:
        if n not in fits:
            yield failed(
                f"{n:,} codes of {WIDTH:,} bits on {card(setting.device)}", "too little memory on the host"
            )
    if not fits:
        return
    codes = random_codes(max(fits), size)
    asked = np.random.default_rng(1).integers(0, 256, (max(batches), size), dtype=np.uint8)
    for n in fits:
        what = f"{n:,} codes of {WIDTH:,} bits, exact, k = 10, {card(setting.device)}"
        barred = n == (2_000 if setting.quick else 10_000_000)
        try:
            yield from beside_faiss(setting, codes[:n], asked, batches, what, barred)
        except Exception as error:
            # A card may be too small for the largest.
            yield failed(what, f"{type(error).__name__}: {error}")
        clear(setting.device)


def beside_faiss(
    setting: Setting, codes: Codes, asked: Codes, batches: tuple[int, ...], what: str, barred: bool
) -> Iterator[Row]:
    """Rows of one size."""
    theirs: dict[int, dict[str, Any]] = {}
    truth = None
    try:
        peer = raw_faiss(codes)
        theirs, truth = timed(peer, asked, batches, setting.quick), peer(asked[:64])[0]
        del peer
    except (NotMeasured, RuntimeError) as error:
        # FAISS says with a RuntimeError that a card is too small for it, which is no reason to leave ours out.
        yield failed(f"{what}: GpuIndexBinaryFlat", error)
    clear(setting.device)
    engine = opened("tensor", codes, WIDTH, setting.device)
    ours_ = timed(lambda some: engine.search(some, K), asked, batches, setting.quick)
    last = max(batches)
    for batch in batches:
        mine, bar = ours_[batch], SEARCH_BAR if barred and batch == last else None
        said, ratio = "", None
        if theirs:
            it = theirs[batch]
            said, ratio = (
                f"GpuIndexBinaryFlat {spoken(it['seconds'])}{scaled(it)}",
                it["seconds"] / mine["seconds"],
            )
        yield Row(f"{what}, {queries(batch)}", f"{spoken(mine['seconds'])}{scaled(mine)}", said, ratio, bar)
    if truth is not None and not np.array_equal(truth, engine.search(asked[:64], K)[0]):
        yield Row(f"{what}: DISTANCES DIFFER", beside="GpuIndexBinaryFlat")
    if setting.device == "cuda":
        yield memory(engine, asked, what)
    if barred:
        yield product(setting, engine, asked, len(codes), what)


def memory(engine: Any, asked: Codes, what: str) -> Row:
    """The most that a search of the largest batch takes on the device beyond the codes."""
    import torch

    clear("cuda")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    engine.search(asked, K)
    extra = (torch.cuda.max_memory_allocated() - before) / 2**30
    return Row(
        f"memory beyond the codes, {what}, {queries(len(asked))}",
        f"{extra:.2f} GiB",
        bar=MEMORY_BAR,
        figure=extra,
    )


def product(setting: Setting, engine: Any, asked: Codes, n: int, what: str) -> Row:
    """The share of the card's int8 peak that the matrix products of the largest batch reach, by torch's profiler."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    device = setting.device == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device else [])]
    with profile(activities=kinds) as profiler:
        whole = seconds(lambda: engine.search(asked, K))
    inside = 0.0
    for event in profiler.key_averages():
        if event.key == "aten::_int_mm":
            inside += (event.device_time_total if device else event.cpu_time_total) / 1e6
    if not inside:
        return failed(f"int8 products of {what}", "the profiler saw none", PRODUCT_BAR)
    rate = 2.0 * len(asked) * n * WIDTH / inside
    a, b = (
        torch.ones((4096, 4096) if device else (64, 64), dtype=torch.int8, device=setting.device)
        for _ in range(2)
    )
    torch._int_mm(a, b.T)
    wait(setting.device)
    best = (
        2.0
        * a.shape[0] ** 3
        * 10
        / seconds(lambda: [torch._int_mm(a, b.T) for _ in range(10)] and wait(setting.device))
    )
    name = card(setting.device)
    peak = next((value for key, value in PEAKS.items() if key in name), None)
    said = f"{inside / whole:.0%} of the search; a lone product of {a.shape[0]:,} cubed reaches {best / 1e12:,.0f}"
    said += f", the data sheet says {peak / 1e12:,.0f}" if peak else ", and no peak is known of this card"
    share = None if peak is None else rate / peak
    return Row(
        f"int8 operations a second in the matrix products, {what}, {queries(len(asked))}; ratio: of the peak",
        f"{rate / 1e12:,.3g} TOPS",
        said,
        share,
        PRODUCT_BAR,
    )


# ---- the table of costs -------------------------------------------------------------------------


def engines(setting: Setting) -> Iterator[Row]:
    """Every engine of the GPU at every width and batch; replaces their rows in the table that `auto` chooses by."""
    n = 1_000 if setting.quick else 4_000_000
    batches = (1, 4, 32) if setting.quick else (*costs.BATCHES, 4096)
    table = setting.kept / "measured.json" if setting.quick else costs.TABLE
    for width in (576, WIDTH, 4096):
        codes, engine = random_codes(n, width // 8), None
        asked = np.random.default_rng(1).integers(0, 256, (max(batches), width // 8), dtype=np.uint8)
        for name in ("faiss-gpu", "tensor"):
            what = f"engine {name}, {n:,} codes of {width:,} bits"
            try:
                # The device is awake before the copy is timed.
                opened(name, codes[:1024], width, setting.device)
                begun = time.perf_counter()
                engine = opened(name, codes, width, setting.device)
                wait(setting.device)
                copy = time.perf_counter() - begun
                found = {
                    "search": timed(
                        lambda some, engine=engine: engine.search(some, K), asked, batches, setting.quick
                    )
                }
                if name == "tensor":
                    found["count"] = timed(
                        lambda some, engine=engine: engine.differing(some, None),
                        asked,
                        costs.COUNTED[: 2 if setting.quick else None],
                        setting.quick,
                    )
                start = 0.0
                if setting.device == "cuda":
                    # In processes of their own: what the device takes to wake is paid by each.
                    task = {"what": "start", "width": width, "works": [name]}
                    start = min(float(ours("scan.py", task)["seconds"]) for _ in range(2))
            except Exception as error:
                yield failed(what, error)
                continue
            finally:
                engine = None
                clear(setting.device)
            rows = [
                {
                    "work": work,
                    "engine": name,
                    "width": width,
                    "n": n,
                    "batch": batch,
                    "seconds": float(f"{one['seconds']:.4g}"),
                    "threads": 1,
                    "machine": card(setting.device),
                    "start": round(start, 2),
                    "copy": float(f"{copy / codes.nbytes:.3g}"),
                }
                for work, batches_ in found.items()
                for batch, one in batches_.items()
            ]
            costs.merge(table, rows)
            yield from costs.said(rows, f"{n:,} codes of {width:,} bits")


def main() -> int:
    """Run the parts and write their rows."""
    parser = arguments(GPU_PARTS, __doc__)
    parser.add_argument(
        "--device", default="cuda", choices=("cuda", "cpu"), help="cpu is for a dry run, with --quick"
    )
    options = parser.parse_args()
    if options.device == "cpu" and not options.quick:
        parser.error("--device cpu is a dry run: add --quick")
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "no CUDA device here: `make bench-gpu` needs one (try benchmarks/gpu.py --device cpu --quick)",
            file=sys.stderr,
        )
        return 1
    about = f"{card(options.device)}; {machine()}; {python()}, {versions('torch', 'numpy')}"
    if options.device == "cuda":
        about += f", CUDA {torch.version.cuda}"
    about += f", FAISS {_faiss()}"
    wanted = chosen(parser, GPU_PARTS, options.only)
    good = measure(
        GPU_PARTS, wanted, output(options.quick), about, options.quick, options.peers, options.device
    )
    return 0 if good else 1


def _faiss() -> str:
    from signarium.catalog.engines.flat import faiss

    return str(faiss().__version__)


if __name__ == "__main__":
    sys.exit(main())
