"""SAELens' CacheActivationsRunner over a text at one site, run by the peers' interpreter.

Its two ways to run a model are both measured: `AutoModelForCausalLM`, a transformers model with its hooks, which is the
documented one for SmolLM2, and `HookedTransformer`, its default, whose list of models lacks SmolLM2 and is told of the
folder. Both stop after the site's block. The text is tokenised on the fly, without BOS, into
the same windows as ours; activations go to its own format, Hugging Face datasets in Arrow files, float32.
"""

from __future__ import annotations

from pathlib import Path

import harness

given = harness.task()
harness.threads(given["threads"])

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig, __version__  # noqa: E402
from transformer_lens import loading_from_pretrained as loading  # noqa: E402


def runner(tokens: int, output: Path) -> CacheActivationsRunner:
    """A runner over so many tokens of the text; it loads the model."""
    kind, layer, context, rows = given["kind"], given["layers"][-1], given["context"], given["batch_rows"]
    hooked = kind == "HookedTransformer"
    config = CacheActivationsRunnerConfig(
        dataset_path="",
        model_name=given["model"],
        model_class_name=kind,
        model_from_pretrained_kwargs={} if hooked else {"dtype": torch.float32},
        model_batch_size=rows,
        hook_name=f"blocks.{layer}.hook_resid_post" if hooked else f"model.layers.{layer}",
        d_in=given["width"],
        training_tokens=tokens,
        context_size=context,
        new_cached_activations_path=str(output),
        shuffle=False,
        prepend_bos=False,
        device="cpu",
        # Eight batches a file; a byte more, since it rounds the size down to whole batches.
        buffer_size_gb=(min(8 * rows * context, tokens) * given["width"] * 4 + 1) / 1e9,
    )
    text = Dataset.from_dict({"text": [Path(given["text"]).read_text()]})
    return CacheActivationsRunner(config, override_dataset=text)


def main() -> None:
    """Load, run once, say what it took."""
    torch.set_num_threads(given["threads"])
    listed = loading.get_official_model_name
    # Everything behind the list reads a folder as it is.
    loading.get_official_model_name = lambda name: name if Path(name).is_dir() else listed(name)
    output = Path(given["output"])
    # One batch outside the clock, for what is set up once.
    runner(given["batch_rows"] * given["context"], output / "first").run()
    one = runner(given["tokens"], output / "all")
    with harness.Watch() as watch:
        made = one.run()
    harness.answer(
        seconds=watch.seconds,
        tokens=len(made) * given["context"],
        states=len(made) * given["context"],
        disk=harness.size_of(output / "all"),
        peak=watch.peak,
        version=f"SAELens {__version__}",
        state=made[0][one.cfg.hook_name][5][:8],
    )


if __name__ == "__main__":
    main()
