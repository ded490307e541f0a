"""nnsight over a text at several sites, run by the peers' interpreter.

One trace a batch that saves the outputs of the wanted blocks and stops after the last one (`tracer.stop`). It has no
format on disk: each site is a float32 .npy file that batches are written to.
"""

from __future__ import annotations

import harness

given = harness.task()
harness.threads(given["threads"])

import nnsight  # noqa: E402
import torch  # noqa: E402
import windows  # noqa: E402
from nnsight import TransformersModel  # noqa: E402


def main() -> None:
    """Load, run once, say what it took."""
    torch.set_num_threads(given["threads"])
    model = TransformersModel(given["model"], task="text-generation", dispatch=True, dtype=torch.float32)
    layers = list(given["layers"])

    def states(ids: torch.Tensor) -> list[torch.Tensor]:
        with torch.inference_mode(), model.trace(ids) as tracer:
            saved = list().save()  # noqa: C408  (it is nnsight's own list)
            for layer in layers:
                saved.append(model.model.layers[layer].output)
            tracer.stop()
        return [one[0] if isinstance(one, tuple) else one for one in saved]

    windows.measure(given, model.tokenizer, states, f"nnsight {nnsight.__version__}")


if __name__ == "__main__":
    main()
