"""Features at one site of a large model, on synthetic codes: a process of its own, so that its peak memory is its own.

    python benchmarks/features.py TYPES WIDTH SEEDS FOLDER

Codes are clusters seen through random signs, in five bases that have nothing in common. Prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from measure import NotMeasured, Setting, run_json
from numpy.typing import NDArray
from peers import harness
from table import Row, failed

CATEGORIES, ANCHORS = 175, 50


def synthetic(file: Path, types: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Codes (types, bytes) in a file: each type is one of 2,000 centres with a third of its bits drawn anew."""
    rng = np.random.default_rng(seed)
    size = -(-width // 8)
    centres = rng.integers(0, 256, (2000, size), dtype=np.uint8)
    codes = np.memmap(file, np.uint8, "w+", shape=(types, size))
    which = np.random.default_rng(0).integers(0, len(centres), types)
    for start in range(0, types, 8192):
        part = centres[which[start : start + 8192]]
        flips = rng.integers(0, 256, part.shape, dtype=np.uint8) & rng.integers(
            0, 256, part.shape, dtype=np.uint8
        )
        codes[start : start + 8192] = part ^ flips
    codes.flush()
    return np.memmap(file, np.uint8, "r", shape=(types, size))


def rows(setting: Setting) -> Iterator[Row]:
    """Categories and discovered features with all their controls, at one site and centre."""
    shapes = [(32_768, 576, 300)] if setting.quick else [(49_152, 576, 1500), (262_144, 5120, 1500)]
    for types, width, seeds in shapes:
        what = f"features of {types:,} types at width {width:,}: 175 categories, {seeds:,} seeds, one site and centre"
        try:
            found = run_json(
                [sys.executable, __file__, *map(str, (types, width, seeds)), str(setting.scratch)]
            )
        except NotMeasured as error:
            yield failed(what, error)
            continue
        yield Row(
            what,
            f"{found['categories_s']:.0f} s and {found['discovery_s']:.0f} s",
            f"peak {found['peak_bytes'] / 2**30:.2f} GiB; baselines, once a model, {found['baselines_s']:.0f} s",
        )


def main() -> None:
    """Categories and discovery, as an ingest runs them for one site and one centre."""
    types, width, n_seeds = (int(one) for one in sys.argv[1:4])
    folder = Path(sys.argv[4])
    from signarium.ingest.features import categories, discovery
    from signarium.ingest.features.coherence import Vocabulary as Spelling
    from signarium.ingest.features.prototypes import Ranks
    from signarium.ingest.stats.bits import TypeBits
    from signarium.ingest.stats.draws import rng
    from signarium.ingest.words.anchors import Anchors, Vocabulary

    names = ["standard", "haar:1", "haar:2", "haar:3", "scaled:1"]
    bases = {
        name: TypeBits(synthetic(folder / f"codes{i}", types, width, i), width)
        for i, name in enumerate(names)
    }
    generator = np.random.default_rng(1)
    letters = np.array(list("abcdefghijklmnop"))
    strings = [" " + "".join(one) for one in letters[generator.integers(0, 16, (types, 6))]]
    vocabulary = Vocabulary(strings)
    which = np.random.default_rng(0).integers(0, 2000, types)
    anchors = [
        Anchors(f"c{i}", np.flatnonzero(which == i)[:ANCHORS], ("",) * int((which == i).sum()))
        for i in range(CATEGORIES)
    ]
    ranks = Ranks.of(vocabulary.words, rng(0, "ranks"))
    found: dict[str, float] = {}
    begun = time.perf_counter()
    categories.make(bases, "s", "mean", anchors, categories.Split.of(anchors, 0), vocabulary, ranks, 0)
    found["categories_s"] = time.perf_counter() - begun
    seeds = discovery.choose_seeds(types, n_seeds, 0)
    begun = time.perf_counter()
    baselines = discovery.Baselines(Spelling(strings, anchors), ranks, seeds, 0)
    found["baselines_s"] = time.perf_counter() - begun
    begun = time.perf_counter()
    discovery.make(bases, "s", "mean", seeds, [strings[i] for i in seeds], baselines, ranks, 0)
    found["discovery_s"] = time.perf_counter() - begun
    found["peak_bytes"] = harness.status("VmHWM")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
