"""States of a text at several sites, in files beside the catalogue: too many to be held, needed several times over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...catalog.errors import InvalidInput
from ..model.sites import Site
from ..text import windows as texts
from .forward import batches, default_batch_tokens, one_pass

if TYPE_CHECKING:
    from ..model.loaded import LoadedModel

Ids = NDArray[np.int64]
_REPORT = 256
SOURCES = 20
"""Documents are kept apart by source where a text has at least so many, else by window."""


class Windows(list[Ids]):
    """Windows of token ids as ingest cuts them, no two alike; `groups` (n,) numbers what must not be torn apart, `repeats`
    counts the windows that were left out because they came before."""

    groups: NDArray[np.int64]
    repeats: int = 0


def cut(
    model: LoadedModel,
    files: Sequence[texts.TextFile],
    context: int,
    max_tokens: int | None,
    counted: Callable[[str, int], None],
) -> Windows:
    """The first windows of a text that have more than a first position, up to the one that reaches `max_tokens`.

    A window of the very tokens of an earlier one is left out: what is fitted on one would be scored on the other.

    Raises:
        InvalidInput: if there is none, or `context` has no room for a token.
    """
    found, sources, seen = Windows(), list[str](), set[bytes]()
    taken = 0
    prefix, suffix = model.tokenizer_adds()
    for number, file in enumerate(files):
        tokens = 0
        for i, one in enumerate(
            texts.windows(file, model.tokenizer, context=context, prefix=prefix, suffix=suffix)
        ):
            if max_tokens is not None and taken >= max_tokens:
                break
            tokens += len(one.ids)
            if i % _REPORT == 0:
                counted(file.name, tokens)
            if one.ids.tobytes() in seen:
                found.repeats += 1
            elif len(one.ids) > 1:
                seen.add(one.ids.tobytes())
                found.append(one.ids.astype(np.int64))
                taken += len(one.ids)
                sources.append(f"{number} {one.source}")
        if max_tokens is not None and taken >= max_tokens:
            break
    if not found:
        raise InvalidInput("the text has no window of two tokens or more", "pass a longer text")
    names = {name: i for i, name in enumerate(dict.fromkeys(sources))}
    by_source = np.array([names[name] for name in sources], np.int64)
    found.groups = by_source if len(names) >= SOURCES else np.arange(len(found), dtype=np.int64)
    return found


def sum_of(windows: Sequence[Ids]) -> int:
    """Tokens of all windows."""
    return sum(len(one) for one in windows)


def record(
    model: LoadedModel,
    windows: Sequence[Ids],
    sites: Sequence[Site],
    outputs: Mapping[Site, Tensor],
    starts: Sequence[int],
    computed: Callable[[int], None] | None = None,
    batch_tokens: int | None = None,
) -> None:
    """Run `model` over `windows` and write what it has at `sites` after each window's first position.

    `outputs[site]` is [rows, width] on the host; the len(window) - 1 states of window i go to its rows from
    `starts[i]` on. First positions are left out: their activations are atypical, and so large that they would decide
    every sum of squares. `computed` is told how many positions a batch had.
    """
    lengths = [len(one) for one in windows]
    for batch in batches(lengths, batch_tokens or default_batch_tokens(model.device)):
        longest = max(lengths[i] for i in batch)
        ids = torch.zeros((len(batch), longest), dtype=torch.int64)
        for row, i in enumerate(batch):
            ids[row, : lengths[i]] = torch.from_numpy(windows[i])
        padded = any(lengths[i] < longest for i in batch)

        def sink(site: Site, x: Tensor, batch: Sequence[int] = batch) -> None:
            x = x.to("cpu")
            for row, i in enumerate(batch):
                outputs[site][starts[i] : starts[i] + lengths[i] - 1] = x[row, 1 : lengths[i]]

        with one_pass(ids.numel()):
            model.forward(ids, [lengths[i] for i in batch] if padded else None, sites, sink)  # type: ignore[arg-type]
        if computed is not None:
            computed(sum(lengths[i] for i in batch))


def row_starts(windows: Sequence[Ids]) -> list[int]:
    """Where each window's rows start if they follow one another, and the number of rows behind the last."""
    return [0, *np.cumsum([len(one) - 1 for one in windows]).tolist()]


def split(windows: Windows, seed: int, shares: Sequence[float] = (0.3, 0.3, 0.1, 0.3)) -> Iterator[list[int]]:
    """Windows by part: two halves of the fit, validation, test, of about those shares of tokens.

    Groups go to a part whole, in random order.

    Raises:
        InvalidInput: if there are fewer groups than parts.
    """
    groups = np.random.default_rng(seed).permutation(np.unique(windows.groups))
    if len(groups) < len(shares):
        raise InvalidInput(
            f"the text makes {len(groups)} different document{'s'[: len(groups) != 1]}, too few to fit and to score on others",
            "pass a longer text, or a smaller --context",
        )
    sizes = np.bincount(windows.groups, [len(one) - 1 for one in windows], minlength=int(groups.max()) + 1)[
        groups
    ]
    ends = np.cumsum(sizes) / sizes.sum()
    start = 0
    for i, upto in enumerate(np.cumsum(shares)):
        # Every part gets at least one, and leaves one for each that follows.
        stop = int(np.searchsorted(ends, upto - 1e-9, "left")) + 1
        stop = min(max(stop, start + 1), len(groups) - (len(shares) - 1 - i))
        if i == len(shares) - 1:
            stop = len(groups)
        inside = np.isin(windows.groups, groups[start:stop])
        yield np.flatnonzero(inside).tolist()
        start = stop
