"""Models of the Hugging Face hub: which of their files are needed, and fetching those."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...catalog.errors import ModelError
from .weights import OTHER_WEIGHTS, PICKLES, TOKENIZER_FILES, brief, shards

_SMALL = (
    "config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt",
    "chat_template.jinja", "adapter_config.json", *TOKENIZER_FILES,
)  # fmt: skip
_SINGLE, _INDEX, _ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"
_HERE = "pass a local folder or .gguf file instead"


@dataclass(frozen=True)
class Wanted:
    """What a model of the hub needs, at one commit: file names, and the bytes of those that are not here yet."""

    commit: str
    names: tuple[str, ...]
    missing: dict[str, int]


def fetch(model_id: str, revision: str | None, weights: bool) -> Path:
    """The folder of a model's snapshot, with the files that are needed and no others. `weights=False` leaves those out.

    Raises:
        ModelError: if it cannot be fetched, or holds no weights that can be loaded.
    """
    import huggingface_hub as hub

    with _errors(model_id, revision):
        wanted = _look_up(model_id, revision, weights)
        if wanted is None:
            # Without a network the cache has what was fetched before.
            patterns = ["*.safetensors"] * weights + ["*.json", "*.model", "*.txt", "*.tiktoken"]
            return Path(
                hub.snapshot_download(
                    model_id, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]
                )
            )
        return Path(
            hub.snapshot_download(model_id, revision=wanted.commit, allow_patterns=list(wanted.names))
        )


def in_cache(model_id: str, revision: str | None) -> Path | None:
    """The folder of a snapshot that was fetched before; None where there is none."""
    import huggingface_hub as hub

    try:
        return Path(hub.snapshot_download(model_id, revision=revision, local_files_only=True))
    except Exception:
        # No id, or nothing of it here: the client says so in many ways.
        return None


def to_fetch(model_id: str, revision: str | None, weights: bool) -> dict[str, int]:
    """Bytes by name of the files that `fetch` would fetch. Raises what it raises; only an index of weights is fetched."""
    with _errors(model_id, revision):
        wanted = _look_up(model_id, revision, weights)
    return wanted.missing if wanted is not None else {}


def _look_up(model_id: str, revision: str | None, weights: bool) -> Wanted | None:
    """What is needed; None where there is no network to ask."""
    import huggingface_hub as hub
    from huggingface_hub import errors

    try:
        info = hub.HfApi().model_info(model_id, revision=revision, files_metadata=True)
    except (errors.HFValidationError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        # A gated repository is one of those that are not found.
        raise
    except Exception:
        # Offline, no network, a server that fails: what the cache holds of it will do, or says what is wrong.
        return None
    commit = str(info.sha)
    sizes = {one.rfilename: int(one.size or 0) for one in info.siblings or ()}
    names = [name for name in sizes if name in _SMALL or ("/" not in name and name.endswith(".tiktoken"))]
    if weights:
        if _SINGLE in sizes:
            names.append(_SINGLE)
        elif _INDEX in sizes:
            names.append(_INDEX)
            names += shards(Path(hub.hf_hub_download(model_id, _INDEX, revision=commit)))
        elif _ADAPTER in sizes:
            names.append(_ADAPTER)
        else:
            raise _no_weights(model_id, sizes)
    cached = hub.try_to_load_from_cache
    missing = {
        name: sizes.get(name, 0)
        for name in names
        if not isinstance(cached(model_id, name, revision=commit), str)
    }
    return Wanted(commit, tuple(names), missing)


def _no_weights(model_id: str, there: Sequence[str] | dict[str, int]) -> ModelError:
    ggufs = sorted(name for name in there if name.endswith(".gguf"))
    if ggufs:
        what = f"{model_id} has no safetensors, but {ggufs[0]}"
        return ModelError(what, f"fetch it (`hf download {model_id} {ggufs[0]}`) and pass the file")
    others = sorted(
        name
        for name in there
        if name.endswith((*PICKLES, *OTHER_WEIGHTS, ".safetensors")) and "training_args" not in name
    )
    if any(name.endswith(PICKLES) for name in others):
        what = f"{model_id} has its weights in {others[0]} alone, a pickle, which can run any code when it is loaded"
        return ModelError(what, "convert it to safetensors where you trust it, and pass the folder")
    has = f" (it has {', '.join(others[:3])})" if others else ""
    return ModelError(f"{model_id} has no {_SINGLE}{has}", _HERE)


@contextmanager
def _errors(model_id: str, revision: str | None) -> Iterator[None]:
    """The errors of the hub's client as ours, and no progress bars where nobody watches."""
    from huggingface_hub import errors
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    quiet = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    try:
        yield
    except ModelError:
        raise
    except errors.HFValidationError as error:
        raise ModelError(f"{model_id!r} is no file, folder or Hugging Face id", _HERE) from error
    except errors.GatedRepoError as error:
        what = f"the Hugging Face model {model_id} is gated"
        raise ModelError(what, "accept its terms on its page and log in with `hf auth login`") from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{model_id} has no revision {revision!r}", "pass another --revision") from error
    except errors.RepositoryNotFoundError as error:
        what = f"no Hugging Face model {model_id!r}, or it is private"
        raise ModelError(what, f"check the id, log in with `hf auth login`, or {_HERE}") from error
    except Exception as error:
        # Offline, no network, a proxy's refusal: many classes of three libraries, one way out.
        what = f"{model_id!r} is no local path, and it cannot be fetched from Hugging Face ({brief(error)})"
        raise ModelError(what, f"check the network, or {_HERE}") from error
    finally:
        if quiet:
            enable_progress_bars()
