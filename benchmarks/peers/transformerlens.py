"""TransformerLens' `run_with_cache` over a text at several sites, run by the peers' interpreter.

`TransformerBridge.boot_transformers`, its way to run a model from a folder, with `names_filter` for the sites and
`stop_at_layer` after the last one. It has no format on disk: each site is a float32 .npy file that batches are written to.
"""

from __future__ import annotations

from importlib.metadata import version

import harness

given = harness.task()
harness.threads(given["threads"])

import torch  # noqa: E402
import windows  # noqa: E402
from transformer_lens.model_bridge import TransformerBridge  # noqa: E402


def main() -> None:
    """Load, run once, say what it took."""
    torch.set_num_threads(given["threads"])
    model = TransformerBridge.boot_transformers(given["model"], device="cpu", dtype=torch.float32)
    names = [f"blocks.{layer}.hook_resid_post" for layer in given["layers"]]

    def states(ids: torch.Tensor) -> list[torch.Tensor]:
        with torch.inference_mode():
            _, cache = model.run_with_cache(
                ids, names_filter=names, stop_at_layer=given["layers"][-1] + 1, return_type=None
            )
        return [cache[name] for name in names]

    windows.measure(given, model.tokenizer, states, f"TransformerLens {version('transformer-lens')}")


if __name__ == "__main__":
    main()
