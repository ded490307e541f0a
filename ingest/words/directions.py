"""Directions of the residual stream in words: which tokens they raise and lower through the final norm and the head."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...catalog.bulk import Figure
from ...catalog.errors import InvalidInput
from ..model.loaded import LoadedModel
from ..model.sites import Site
from ..stats.bases import HAAR_SEEDS, haar
from ..stats.draws import rng
from ..stats.figures import Scope
from ..stats.products import times

TOP = 20
"""Tokens kept in each direction."""
SAMPLE = 1024
"""Directions that the overlap of floats and signs is measured on, beside its controls."""
_LOGIT_BYTES = 64 << 20
"""What the logits of some directions over the whole vocabulary may take."""
_GROUP = 64
"""Tokens whose logits are first looked at through their best."""
_NEAR = 2.0**-20
"""Logits of one direction are measured anew where they differ by less than this share of the largest that any can be."""
Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Words:
    """The tokens that n directions raise (`up`) and lower (`down`) most: ids and logits, each (n, TOP), in order."""

    up: Ids
    up_logits: NDArray[np.float32]
    down: Ids
    down_logits: NDArray[np.float32]

    def __getitem__(self, some: NDArray[np.int64]) -> Words:
        return Words(self.up[some], self.up_logits[some], self.down[some], self.down_logits[some])

    def shared(self, other: Words) -> NDArray[np.float64]:
        """(n,): share of the tokens, up and down together, that both have in the same direction."""
        both = [
            (a[:, :, None] == b[:, None, :]).any(2).mean(1)
            for a, b in ((self.up, other.up), (self.down, other.down))
        ]
        found: NDArray[np.float64] = np.mean(both, axis=0)
        return found


@dataclass(frozen=True)
class Coded:
    """What the signs of n directions are taken of, where that is not the direction itself: `code`, [n, width], as signs
    or zeros; and the words of the directions ("float") and of the code ("sign"), as `Vocabulary.sources` gives them."""

    code: Tensor
    sources: dict[str, Words]

    def __getitem__(self, some: NDArray[np.int64]) -> Coded:
        return Coded(self.code[some], {name: words[some] for name, words in self.sources.items()})


def signs(directions: Tensor) -> Tensor:
    """The sign code of each direction as numbers: 1 where an entry is positive, else -1; float32, same shape."""
    return torch.where(directions > 0, 1.0, -1.0)


class Vocabulary:
    """The unembedding of a model and the norm before it.

    Raises:
        ModelError: if the model has no unembedding.
    """

    def __init__(self, model: LoadedModel) -> None:
        self.width, self.size = model.width, model.vocab_size
        self.unembedding = model.unembedding()
        self._longest = float(torch.linalg.vector_norm(self.unembedding, dim=1, dtype=torch.float32).max())
        tap = model.layout.taps.get(Site("final_norm"))
        # In float32: a rounded direction would be another one, and norm(x) - norm(0) cancels digits.
        self._norm: Any = None if tap is None else copy.deepcopy(tap.module).float()  # type: ignore[union-attr]
        # Rows that no token uses, which some models are padded with.
        unused = [i for i, token in enumerate(model.token_strings()) if not token]
        self._unused = torch.tensor(unused, dtype=torch.int64, device=self.unembedding.device)

    def normed(self, directions: Tensor) -> Tensor:
        """[n, width]: each direction at root mean square 1 through the linear part of the final norm, float32.

        norm(x) - norm(0), so that a LayerNorm's bias, the same for all directions, stays out.
        """
        x = directions.to(self.unembedding.device, torch.float32)
        x = x / x.square().mean(1, keepdim=True).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        if self._norm is None:
            return x
        with torch.inference_mode():
            zero = self._norm(torch.zeros(1, self.width, device=x.device))
            return (self._norm(x) - zero).clone()

    def project(self, directions: Tensor) -> Words:
        """The tokens of each of `directions`, [n, width], by the logit that they would have if the residual stream
        held this direction alone; equal logits by token id. The head's bias, scale and soft cap are left out.

        Logits too close to be told apart by a float32 product are measured again in float64, so that rows of the
        unembedding that are alike, as those of unused tokens often are, get equal ones.
        """
        if directions.dim() != 2 or directions.shape[1] != self.width:
            raise InvalidInput(f"directions of shape {list(directions.shape)} are no [n, {self.width}]")
        k = min(TOP, self.size - len(self._unused))
        parts: list[tuple[NDArray[Any], ...]] = []
        # One buffer for all blocks: giving 64 MiB back and asking for them again costs as much as the product.
        rows = min(len(directions), max(1, _LOGIT_BYTES // (4 * self.size)))
        buffer = torch.empty(rows, self.size, device=self.unembedding.device)
        for start in range(0, len(directions), max(1, rows)):
            x = self.normed(directions[start : start + rows])
            logits = self._logits(x, buffer[: len(x)])
            near = _NEAR * self._longest * torch.linalg.vector_norm(x, dim=1)

            def again(row: int, ids: Tensor, x: Tensor = x) -> Tensor:
                return (self.unembedding[ids].double() @ x[row].double()).float()

            found: list[NDArray[Any]] = []
            for largest in (True, False):
                logits[:, self._unused] = float("-inf" if largest else "inf")
                found += _top(logits, k, largest, near, again)
            parts.append(tuple(found))
        if not parts:
            ids, values = np.empty((0, k), np.int32), np.empty((0, k), np.float32)
            return Words(ids, values, ids, values)
        return Words(*(np.concatenate(one) for one in zip(*parts, strict=True)))

    def sources(self, directions: Tensor, coded: Tensor | None = None) -> dict[str, Words]:
        """The words of `directions`, [n, width], and of their signs alone (of `coded`, as signs or zeros, if given)."""
        code = signs(directions) if coded is None else coded
        return {"float": self.project(directions), "sign": self.project(code)}

    def _logits(self, x: Tensor, out: Tensor) -> Tensor:
        if self.unembedding.dtype == torch.float32:
            return times(x, self.unembedding.T, out)
        # A head in another float type is turned to float32 a part at a time.
        step = max(1, (64 << 20) // (4 * self.width))
        for start in range(0, self.size, step):
            times(x, self.unembedding[start : start + step].float().T, out[:, start : start + step])
        return out


def _top(
    logits: Tensor, k: int, largest: bool, near: Tensor, again: Callable[[int, Tensor], Tensor]
) -> tuple[Ids, NDArray[np.float32]]:
    """Ids and values of the k largest (or smallest) of each row in order, equal ones by id.

    The k best lie in the k groups whose best are best, so that the rest of the vocabulary is looked at once. Rows in
    which two of them, or one of them and one that is not, are no more than `near`, (n,), apart are taken in the order of
    `again(row, ids)`.
    """
    n, size = logits.shape
    whole = size // _GROUP * _GROUP
    grouped = whole >= 4 * k * _GROUP
    candidates = best = logits
    if grouped:
        groups = logits[:, :whole].view(n, -1, _GROUP)
        best = groups.amax(2) if largest else groups.amin(2)
        chosen = best.topk(k, dim=1, largest=largest).indices
        ids = (chosen[:, :, None] * _GROUP + torch.arange(_GROUP, device=logits.device)).flatten(1)
        ids = torch.cat([ids, torch.arange(whole, size, device=logits.device).expand(n, -1)], 1)
        candidates = logits.gather(1, ids)
    values, places = candidates.topk(k, dim=1, largest=largest)
    ids = ids.gather(1, places) if grouped else places
    border = values[:, -1:] + (-near[:, None] if largest else near[:, None])

    def as_good(x: Tensor) -> Tensor:
        return x >= border if largest else x <= border

    # One as good as the last is among the candidates, or it is the best of a group that is not: then of k more.
    close = (as_good(candidates).sum(1) > k) | (as_good(best).sum(1) > k)
    close |= (values.diff(dim=1).abs() <= near[:, None]).any(1)
    for row in torch.nonzero(close)[:, 0].tolist():
        some = logits[row] >= border[row] if largest else logits[row] <= border[row]
        found = torch.nonzero(some)[:, 0]
        measured = again(row, found)
        order = measured.argsort(descending=largest, stable=True)[:k]
        ids[row], values[row] = found[order], measured[order]
    return ids.to(torch.int32).cpu().numpy(), values.float().cpu().numpy()


def rows(
    run_id: str, site_id: str, subject: str, items: NDArray[np.int64], sources: dict[str, Words]
) -> dict[str, Any]:
    """Columns of `projection_row` for directions called `items`, (n,), as each source reads them."""
    columns: dict[str, list[NDArray[Any]]] = {
        name: [] for name in ("item", "source", "direction", "rank", "token_id", "logit")
    }
    n = len(items)
    for source, words in sources.items():
        for direction, ids, logits in (
            ("up", words.up, words.up_logits),
            ("down", words.down, words.down_logits),
        ):
            k = ids.shape[1]
            columns["item"].append(np.repeat(items, k))
            columns["source"].append(np.full(n * k, source, object))
            columns["direction"].append(np.full(n * k, direction, object))
            columns["rank"].append(np.tile(np.arange(1, k + 1, dtype=np.int32), n))
            columns["token_id"].append(ids.ravel())
            columns["logit"].append(logits.ravel())
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    total = len(joined["item"])
    # Side by side by item, which is what is asked for: DuckDB then reads one row group for it.
    order = np.argsort(joined["item"], kind="stable")
    constant = {"run_id": run_id, "site_id": site_id, "subject": subject}
    return {
        **{name: np.full(total, value, object) for name, value in constant.items()},
        **{name: values[order] for name, values in joined.items()},
    }


def overlap_figures(
    vocabulary: Vocabulary, directions: Tensor, site_id: str, subject: str, subject_id: str, seed: int,
    coded: Coded | None = None,
) -> list[Figure]:  # fmt: skip
    """How many of the tokens that directions [n, width] name are named by their signs alone, beside three controls.

    Controls: `random_signs`, the same entries with signs drawn at random, and those signs: what the sizes alone give; `haar:1`, the
    signs taken in a Haar-random basis and turned back; `shuffled`, the signs of another of the directions.
    """
    x = directions.float().cpu()
    code = signs(x) if coded is None else coded.code.float().cpu()
    sources = vocabulary.sources(x, code) if coded is None else coded.sources
    real, own = sources["float"], sources["sign"]
    shared = real.shared(own)
    generator = rng(seed, "words", site_id, subject, subject_id)
    n, width = x.shape
    coins = torch.from_numpy(generator.choice(np.array([-1, 1], np.float32), (n, width)))
    q = haar(width, HAAR_SEEDS[0])
    turned = x @ q
    if coded is not None:
        # As many dimensions as are registered, the largest, in the other basis as well.
        kept = (code != 0).sum(1)
        ranks = turned.abs().argsort(dim=1, descending=True).argsort(dim=1)
        turned_signs = torch.where(ranks < kept[:, None], signs(turned), 0.0)
    else:
        turned_signs = signs(turned)
    random = vocabulary.project(x.abs() * coins).shared(vocabulary.project(code.abs() * coins))
    others = np.roll(np.arange(n), 1) if n > 1 else np.arange(n)
    found = {
        "random_signs": random,
        f"haar:{HAAR_SEEDS[0]}": real.shared(vocabulary.project(turned_signs @ q.T)),
        "shuffled": real.shared(own[others]),
    }
    if n < 2:
        del found["shuffled"]

    scope = Scope(site_id, subject, subject_id, seed)

    def figure(control: str, values: NDArray[np.float64]) -> Figure:
        paired = None if control == "none" else shared - values
        return scope.mean("projection_overlap", control, "in_sample", values, paired)

    return [figure("none", shared), *(figure(control, values) for control, values in found.items())]


def evenly(n: int, sizes: Sequence[int]) -> list[NDArray[np.int64]]:
    """Places of `n` things, as evenly as may be, among all of groups of `sizes`: those of each group."""
    total = sum(sizes)
    places = np.linspace(0, max(0, total - 1), min(n, total)).round().astype(np.int64)
    chosen = np.unique(places)
    edges = np.cumsum([0, *sizes])
    return [chosen[(chosen >= a) & (chosen < b)] - a for a, b in pairwise(edges)]
