"""Models of the Hugging Face hub."""

from __future__ import annotations

import sys
from pathlib import Path

from ...catalog.errors import ModelError
from .weights import brief

_FETCHED = ("*.safetensors", "*.json", "*.model", "*.txt", "*.tiktoken")


def fetch(model_id: str, revision: str | None, weights: bool) -> Path:
    import huggingface_hub as hub
    from huggingface_hub import errors
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    quiet = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    here = "pass a local folder or .gguf file instead"
    try:
        patterns = [p for p in _FETCHED if weights or p != "*.safetensors"]
        folder = hub.snapshot_download(
            model_id, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]
        )
    except errors.HFValidationError as error:
        raise ModelError(f"{model_id!r} is no file, folder or Hugging Face id", here) from error
    except errors.GatedRepoError as error:
        what = f"the Hugging Face model {model_id} is gated"
        raise ModelError(what, "accept its terms on its page and log in with `hf auth login`") from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{model_id} has no revision {revision!r}", "pass another --revision") from error
    except errors.RepositoryNotFoundError as error:
        what = f"no Hugging Face model {model_id!r}, or it is private"
        raise ModelError(what, f"check the id, log in with `hf auth login`, or {here}") from error
    except Exception as error:
        # Offline, no network, a proxy's refusal: many classes of three libraries, one way out.
        what = f"{model_id!r} is no local path, and it cannot be fetched from Hugging Face ({brief(error)})"
        raise ModelError(what, f"check the network, or {here}") from error
    finally:
        if quiet:
            enable_progress_bars()
    return Path(folder)
