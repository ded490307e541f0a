"""Writers at one site of a large model, on synthetic weights: a process of its own, so that its peak memory is its own.

    python benchmarks/writers.py NEURONS_PER_BLOCK BLOCKS WIDTH FEATURES [--whole]

Weights are fair coins with magnitudes of two sizes, made block by block as they are asked for; features have a random
sign at a third of the dimensions. Prints one line of JSON: seconds for the agreements of all features with all neurons
of all blocks and the best 50 of one, for the coalition curve of one block in sample, for its split halves, and the
peak memory. `--whole` adds everything that an ingest does at one site.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator

import numpy as np
import torch
from measure import NotMeasured, Setting, run_json
from peers import harness
from table import Row, failed


def rows(setting: Setting) -> Iterator[Row]:
    """Agreements of features with every neuron of a model, and coalitions in one block."""
    # Neurons of a block, blocks, width, features: SmolLM2's, and those of a model with 8 billion parameters.
    shapes = [(1536, 4, 576, 500)] if setting.quick else [(1536, 30, 576, 8400), (14_336, 32, 4096, 1500)]
    for neurons, blocks, width, n in shapes:
        what = f"agreements of {n:,} features with {blocks * neurons:,} neurons of width {width:,}"
        try:
            found = run_json([sys.executable, __file__, *map(str, (neurons, blocks, width, n))])
        except NotMeasured as error:
            yield failed(what, error)
            continue
        yield Row(
            what,
            f"{found['agreements_s']:.1f} s",
            f"peak {found['peak_bytes'] / 2**30:.2f} GiB; coalitions of one block, 7 sizes, "
            f"{found['coalition_s']:.1f} s, and in split halves {found['split_half_s']:.1f} s",
        )


def main() -> None:
    """Run it; see above."""
    n_neurons, n_blocks, width, n_features = (int(one) for one in sys.argv[1:5])
    from signarium.ingest.stats.bits import Patterns
    from signarium.ingest.writers import agreements, coalitions, measure

    making = 0.0

    def directions(block: int) -> torch.Tensor:
        nonlocal making
        begun = time.perf_counter()
        drawn = agreements.coins(n_neurons, width, np.random.default_rng(block))
        made = torch.from_numpy(drawn).to(torch.bfloat16)
        made[:, ::3] *= 2
        making += time.perf_counter() - begun
        return made

    generator = np.random.default_rng(0)
    mask = generator.random((n_features, width), np.float32) < 1 / 3
    patterns = Patterns(mask, generator.integers(0, 2, mask.shape, np.uint8).astype(bool))
    found: dict[str, float] = {"neurons": n_neurons * n_blocks, "width": width, "features": n_features}

    begun = time.perf_counter()
    held, own = agreements.Agreements(patterns), n_blocks // 2
    measure.best_of_blocks(held, directions, n_blocks, own, None)
    agreements.top_writers(held.counts(agreements.signs(directions(own))), patterns.n_dims)
    found["agreements_s"] = time.perf_counter() - begun - making
    found["synthetic_weights_s"] = making

    block, ks = agreements.signs(directions(own)), coalitions.sizes(n_neurons)
    begun = time.perf_counter()
    coalitions.curve(held, patterns, block, ks)
    found["coalition_s"] = time.perf_counter() - begun
    begun = time.perf_counter()
    coalitions.split_half(coalitions.halves(patterns, np.arange(n_features), 0), block, ks)
    found["split_half_s"] = time.perf_counter() - begun
    found["peak_bytes"] = harness.status("VmHWM")
    if "--whole" in sys.argv:
        group = measure.Group("discovered", "mean", np.arange(n_features), patterns)
        making, begun = 0.0, time.perf_counter()
        measure.measure_site(directions, n_blocks, own, [group], "site", 0)
        found["whole_site_s"] = time.perf_counter() - begun - making
        found["whole_peak_bytes"] = harness.status("VmHWM")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
