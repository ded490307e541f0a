"""Models of the catalogue at work again: loaded as they were ingested, and the code of a free text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..catalog import store
from ..catalog.codes import Codes
from ..catalog.errors import InvalidInput, ModelError, NotFound, SignariumError, option
from .differences import differences
from .model.devices import find_device
from .model.load import LoadedModel, load_model
from .model.sites import Site
from .passes.forward import default_batch_tokens, one_pass, signs_of
from .passes.pack import check_norms, norms_of
from .stats.moments import stored_moments
from .text.windows import token_ids


@dataclass(frozen=True)
class Encoded:
    """A text's token and its code at one site: uint8 (bytes,)."""

    code: Codes
    token: str
    position: int
    n_tokens: int


def reload(path: Path, name: str, device: str = "auto") -> LoadedModel:
    """The model called `name` as it was when it was ingested.

    Raises:
        ModelError: if its weights are no longer where they were, or are others now.
    """
    with store.reading(path) as connection:
        row = connection.execute(
            "SELECT model_id, source, revision, dtype, random_init_seed, weights_sha256, tokenizer_sha256, config, attention "
            "FROM model WHERE name = ?",
            [name],
        ).fetchone()
    if row is None:
        raise NotFound("model", name)
    ident, source, revision, dtype, seed, weights, tokenizer, config, attention = row
    # Said as it is: the weights have no part in it.
    find_device(device)
    try:
        model = load_model(
            source,
            revision=revision,
            device=device,
            dtype=dtype,
            random_init=seed,
            attention=attention or "auto",
            tokenizer_sha256=tokenizer,
        )
    except SignariumError as error:
        raise ModelError(
            f"the weights of {name} are not at hand ({error.what})",
            "put them back where they were, or ingest them from where they are",
        ) from error
    if model.weights_sha256 != weights:
        raise ModelError(
            f"{source} holds other weights than {name} was ingested from", "put the old ones back"
        )
    if model.tokenizer_sha256 != tokenizer:
        raise ModelError(
            f"{source} holds another tokenizer than {name} was ingested with", "put the old one back"
        )
    if config is not None and config != model.config:
        keys = ", ".join(differences(config, model.config))
        raise ModelError(
            f"{source} has another config than {name} was ingested with ({keys})", "put the old one back"
        )
    model.catalogue_id = ident
    return model


def site_mean(path: Path, name: str, site: str) -> NDArray[np.float64]:
    """The centre `mean` of a model's site, (width,).

    Raises:
        NotFound: if the stage types has not run there.
    """
    with store.reading(path) as connection:
        (ident,) = connection.execute("SELECT model_id FROM models WHERE name = ?", [name]).fetchone() or (
            "",
        )
        moments = stored_moments(connection, ident, site=site, finished=False)
    if site not in moments:
        raise NotFound(
            f"centre mean of {name} at",
            site,
            todo=f"run `signarium ingest` with the stage types, or pass {option('centre', 'zero')}",
        )
    return moments[site].mean


def encode_text(
    path: Path,
    name: str,
    site: str,
    centre: str,
    text: str,
    position: int | None = None,
    device: str = "auto",
) -> Encoded:
    """The sign code of one token of `text` (its last one, or the one at `position`), tokenized as ingest does.

    Positions count from 0 with the special tokens that the tokenizer adds; negative ones from the end.

    Raises:
        InvalidInput: if the text has no token or none at `position`.
    """
    model = reload(path, name, device)
    where = Site.from_name(site)
    ids, chosen = _tokens_of(model, name, text, position)
    shift = None
    if centre == "mean":
        shift = torch.from_numpy(site_mean(path, name, site).astype(np.float32))
    rows = signs_of(model, [np.array(ids, dtype=np.int32)], [where], {site: {centre: shift}}, len(ids))
    token = model.tokenizer.decode([ids[chosen]])
    return Encoded(rows[site].codes[centre][chosen], token, chosen, len(ids))


def _tokens_of(model: LoadedModel, name: str, text: str, position: int | None) -> tuple[list[int], int]:
    """A text's tokens as ingest takes them, and the place of the one that is meant."""
    prefix, suffix = model.tokenizer_adds()
    ids = [*prefix, *token_ids(model.tokenizer, text)]
    if len(ids) == len(prefix):
        raise InvalidInput("the text holds no token", "search for some words")
    last = len(ids) - 1
    ids += suffix
    if model.max_positions is not None and len(ids) > model.max_positions:
        raise InvalidInput(
            f"the text has {len(ids)} tokens, {name} takes {model.max_positions}", "search a shorter text"
        )
    chosen = last if position is None else position + len(ids) if position < 0 else position
    if not 0 <= chosen < len(ids):
        raise InvalidInput(
            f"{option('position', position)} is outside the text's {len(ids)} tokens",
            f"pass 0 to {len(ids) - 1}",
        )
    return ids, chosen


@dataclass(frozen=True, eq=False)
class State:
    """A text's token and its hidden state at one site: float64 (width,), raw."""

    floats: NDArray[np.float64]
    token: str
    position: int
    n_tokens: int


def encode_state(
    path: Path, name: str, site: str, text: str, position: int | None = None, device: str = "auto"
) -> State:
    """The hidden state that `encode_text` takes the signs of.

    Raises:
        InvalidInput: as `encode_text`.
        ModelError: if it holds NaN or infinity.
    """
    model = reload(path, name, device)
    ids, chosen = _tokens_of(model, name, text, position)
    found: list[torch.Tensor] = []

    def sink(_: Site, x: torch.Tensor) -> None:
        found.append(x.reshape(-1, x.shape[-1])[chosen].float().cpu())

    with one_pass(len(ids)):
        model.forward(torch.tensor([ids], dtype=torch.int64), None, [Site.from_name(site)], sink)  # type: ignore[arg-type]
    (floats,) = found
    check_norms(norms_of(floats[None]).numpy(), site)
    return State(floats.double().numpy(), model.tokenizer.decode([ids[chosen]]), chosen, len(ids))


class Place(Protocol):
    """Where a code lies."""

    @property
    def model(self) -> str: ...
    @property
    def site(self) -> str: ...
    @property
    def centre(self) -> str: ...


class TextEncoder:
    """One token of a free text for `nearest`: its last, or that at `position`; `encode_text` and `encode_state` say how.

    `token` is the token that was encoded last, and its place in the text, in words.
    """

    def __init__(self, path: Path, text: str, position: int | None = None, device: str = "auto") -> None:
        self.path, self._what, self.token = path, (text, position, device), ""

    def code(self, place: Place) -> Codes:
        """Its code at a place, uint8 (bytes,)."""
        found = encode_text(self.path, place.model, place.site, place.centre, *self._what)
        self._say(found)
        return found.code

    def floats(self, place: Place) -> NDArray[np.float64]:
        """Its state at a site, (width,)."""
        found = encode_state(self.path, place.model, place.site, *self._what)
        self._say(found)
        return found.floats

    def _say(self, found: Encoded | State) -> None:
        self.token = f"{found.token!r}, token {found.position} of {found.n_tokens}"


@dataclass(frozen=True, eq=False)
class EncodedText:
    """All tokens of a text, cut into windows as ingest cuts it; the arrays are (n,) and codes uint8 (n, bytes).

    `chunks` numbers the windows from 0, `positions` the tokens inside each, special ones included.
    """

    tokens: list[str]
    token_ids: NDArray[np.int32]
    chunks: NDArray[np.int32]
    positions: NDArray[np.int32]
    codes: dict[tuple[str, str], Codes]

    @property
    def is_first(self) -> NDArray[np.bool_]:
        """Position 0, where activations are atypical."""
        return self.positions == 0


def encode_tokens(
    path: Path,
    name: str,
    places: Sequence[tuple[str, str]],
    text: str,
    context: int = 256,
    device: str = "auto",
) -> EncodedText:
    """The sign codes of every token of `text` at each (site, centre) of `places`, in one pass a window.

    A window has at most `context` tokens, or as many as the model takes.

    Raises:
        InvalidInput: if the text has no token, or `context` no room for one.
        NotFound: for the centre mean where the stage types has not run.
    """
    centres: dict[str, dict[str, torch.Tensor | None]] = {}
    means = {site: site_mean(path, name, site) for site, centre in places if centre == "mean"}
    model = reload(path, name, device)
    for site, centre in places:
        shift = torch.from_numpy(means[site].astype(np.float32)) if centre == "mean" else None
        centres.setdefault(site, {})[centre] = shift
    prefix, suffix = model.tokenizer_adds()
    special = len(prefix) + len(suffix)
    room = min(context, model.max_positions or context) - special
    if room < 1:
        raise InvalidInput(
            f"a context of {context} has no room for a token beside {special} special ones",
            f"use {option('context', special + 1)} or more",
        )
    ids = token_ids(model.tokenizer, text)
    if not ids:
        raise InvalidInput("the text holds no token", "give some words")
    windows = [
        np.array([*prefix, *ids[start : start + room], *suffix], dtype=np.int32)
        for start in range(0, len(ids), room)
    ]
    lengths = [len(one) for one in windows]
    sites = [Site.from_name(site) for site in centres]
    rows = signs_of(model, windows, sites, centres, default_batch_tokens(model.device))
    every = np.concatenate(windows)
    return EncodedText(
        _token_texts(path, name, model, every),
        every,
        np.repeat(np.arange(len(windows), dtype=np.int32), lengths),
        np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
        {(site, centre): rows[site].codes[centre] for site, centre in places},
    )


def _token_texts(path: Path, name: str, model: LoadedModel, ids: NDArray[np.int32]) -> list[str]:
    """Tokens as the catalogue spells them."""
    listed = ", ".join(map(str, sorted(set(ids.tolist()))))
    with store.reading(path) as connection:
        rows = connection.execute(
            "SELECT t.token_id, t.token FROM token_row t JOIN model m ON m.tokenizer_sha256 = t.tokenizer "
            f"WHERE m.name = ? AND t.token_id IN ({listed})",
            [name],
        ).fetchall()
    known = dict(rows)
    return [known.get(i) or str(model.tokenizer.decode([i])) for i in ids.tolist()]
