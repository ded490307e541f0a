"""One site of two models of one width, on synthetic states: a process of its own, so that its memory is its own.

    python benchmarks/rotations.py WIDTH TOKENS FOLDER [--device DEVICE]

B's states are A's, turned, with noise; both are float32, mapped from files in FOLDER, in documents of 256 tokens: six
eighths for the fit, one for validation, one for the test. Prints one line of JSON: seconds for the fit (and within it
for its decompositions), for the explained variances and for the statistics of the rotation, and the peak memory beyond
the states: resident and not mapped from a file, or on the device where it is one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from measure import NotMeasured, Setting, run_json
from peers.harness import status
from table import Row, failed


def mapped(folder: Path, width: int, tokens: int) -> list[torch.Tensor]:
    """A's and B's states, float32 [tokens, width], as their files hold them."""
    return [
        torch.from_file(str(folder / name), True, tokens * width, dtype=torch.float32).view(tokens, width)
        for name in "ab"
    ]


def make(folder: Path, width: int, tokens: int) -> None:
    """Block by block into files, so that they are never whole in memory; a spectrum that falls as a power."""
    both = mapped(folder, width, tokens)
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    sizes = torch.arange(1, width + 1) ** -0.5
    for start in range(0, tokens, 2048):
        a = torch.randn(min(2048, tokens - start), width, generator=generator) * sizes
        noise = torch.randn(a.shape, generator=generator) * sizes
        both[0][start : start + len(a)] = a
        both[1][start : start + len(a)] = (a + 0.5 * noise) @ turn


class Peak:
    """The most that is resident while the context is open, looked at every 10 ms, beyond what was at its start."""

    def __enter__(self) -> Peak:
        self.bytes, self._open, begun = 0, True, status("RssAnon")

        def watch() -> None:
            while self._open:
                self.bytes = max(self.bytes, status("RssAnon") - begun)
                time.sleep(0.01)

        self._thread = threading.Thread(target=watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False
        self._thread.join()


def rows(setting: Setting) -> Iterator[Row]:
    """A rotation at one site with all that it is compared with."""
    for width, tokens in [(1024, 16_384)] if setting.quick else [(1024, 65_536), (4096, 65_536)]:
        try:
            found = run_json([sys.executable, __file__, str(width), str(tokens), str(setting.scratch)])
        except NotMeasured as error:
            yield failed(f"rotation of one site of width {width:,}, {tokens:,} tokens", error)
            continue
        seconds = sum(found[name] for name in ("fit_s", "explained_s", "statistics_s"))
        yield Row(
            f"rotation of one site of width {width:,}, {tokens:,} tokens, {found['device']}",
            f"{seconds:.0f} s",
            f"fit {found['fit_s']:.0f} s (of it decompositions {found['decompositions_s']:.0f} s), explained variance "
            f"{found['explained_s']:.0f} s, statistics {found['statistics_s']:.0f} s; peak beyond the states "
            f"{found['peak_bytes'] / 2**30:.2f} GiB, where a float64 matrix of that width has {width * width / 2**27:.2f}; "
            f"33 such sites, extrapolated and not run: {33 * seconds / 60:.0f} min",
        )


def main() -> None:
    """Run it; see above."""
    parser = argparse.ArgumentParser()
    parser.add_argument("width", type=int)
    parser.add_argument("tokens", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    from signarium.ingest.rotations import explained, fit, haar
    from signarium.ingest.stats.paired import Paired

    device, tokens = torch.device(options.device), options.tokens
    on_device = device.type == "cuda"
    # In a process of its own: memory that is freed here may stay resident and hide what the fit takes.
    making = multiprocessing.get_context("spawn").Process(
        target=make, args=(options.folder, options.width, tokens)
    )
    making.start()
    making.join()
    if making.exitcode:
        raise SystemExit("the synthetic states could not be made")
    a, b = mapped(options.folder, options.width, tokens)
    eighth = tokens // 8 // 256 * 256
    cuts = [0, 3 * eighth, 6 * eighth, 7 * eighth, 8 * eighth]
    first, second, validation, test = (slice(*pair) for pair in itertools.pairwise(cuts))
    ids = np.random.default_rng(0).zipf(1.3, tokens).clip(max=50_000)
    rows = np.arange(tokens)
    paired = Paired(a, b, (first, second), validation, test, ids, rows // 256, rows % 256, device)

    decomposing = 0.0

    def timed(work: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **more: object) -> object:
            nonlocal decomposing
            begun = time.perf_counter()
            result = work(*args, **more)
            if on_device:
                torch.cuda.synchronize()
            decomposing += time.perf_counter() - begun
            return result

        return run

    svd, eigh = torch.linalg.svd, torch.linalg.eigh
    found: dict[str, object] = {"width": options.width, "tokens": tokens}
    if on_device:
        found["device"] = torch.cuda.get_device_name(device)
        # What the libraries set up once is no part of a site.
        eigh(svd(torch.eye(64, dtype=torch.float64, device=device))[0])
        torch.cuda.reset_peak_memory_stats(device)
    else:
        found["device"] = "cpu"
        eigh(svd(torch.eye(64, dtype=torch.float64))[0])

    with Peak() as peak:
        torch.linalg.svd, torch.linalg.eigh = timed(svd), timed(eigh)  # type: ignore[assignment]
        begun = time.perf_counter()
        fitted = fit.fit(paired, 0)
        found["fit_s"] = time.perf_counter() - begun
        found["decompositions_s"] = decomposing
        found["fit_peak_bytes"] = torch.cuda.max_memory_allocated(device) if on_device else peak.bytes
        torch.linalg.svd, torch.linalg.eigh = svd, eigh
        begun = time.perf_counter()
        values = explained.explained(paired, fitted)
        found["explained_s"] = time.perf_counter() - begun
        begun = time.perf_counter()
        haar.statistics(fitted.rotation.matrix)
        found["statistics_s"] = time.perf_counter() - begun
    found["peak_bytes"] = torch.cuda.max_memory_allocated(device) if on_device else peak.bytes
    found["explained"] = values.value["rotation"]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
