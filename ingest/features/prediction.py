"""What signs alone predict of the next token (Bag of Dims, sections 4 and 5), with the controls it lacks.

Every method ranks the whole vocabulary for each row; a hit is a target among the first k. A token's rank is
the number of tokens with a larger score and of those with an equal score and a lower id, so the vocabulary is
never sorted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...catalog import engines
from ...catalog.codes import hamming, n_bytes, unpack
from ...catalog.errors import InvalidInput
from ..passes.pack import pack_signs
from ..stats.products import times

Shares = dict[str, dict[int, float]]
"""By method and k, the share of rows with a hit."""

# Float32 values of the largest array of scores: 256 MB, and as much again for what is compared with it.
_SCORES = 1 << 26
_CHUNK = 1 << 24


# ---- sign-only next token -----------------------------------------------------------------------


@torch.no_grad()
def sign_only(
    h: Tensor,
    unembedding: Tensor,
    *,
    loudest: int,
    seed: int,
    rotations: Sequence[Tensor] = (),
    ks: Sequence[int] = (1, 5, 10, 100),
    bias: Tensor | None = None,
) -> Shares:
    """How often the model's own next token is among the first k when only signs of the state are kept.

    Bag of Dims, section 4 (Table 1), which has `none`, `loudest` and `permutation`. The target is the argmax
    of h W' + bias, so this is agreement with the model, not accuracy on a text.

    Args:
        h: (n, D), states after the final norm.
        unembedding: (V, D), rows of the head; `bias` is (V,), and enters the target alone.
        loudest: how many dimensions `loudest` keeps (the paper: 800).
        seed: of `permutation` and of `loudest_random`.
        rotations: orthogonal (D, D) matrices Q.
        ks: the k of each share.

    Returns:
        By method:
        `none`: sign(h), all dimensions equally large, sign(0) = -1.
        `loudest`: signs of the `loudest` dimensions of largest |h| in each row, equals by lower dimension;
            zero elsewhere.
        `permutation`: sign(h) with its dimensions permuted, alike in all rows.
        `loudest_random`: signs of `loudest` random dimensions, drawn for each row; zero elsewhere.
        `haar:i`, `loudest_haar:i`: as `none` and `loudest` in the basis of rotation i (from 1), mapped back:
            Q' sign(Q h). One bit a dimension in a basis that nothing singles out.

    Raises:
        InvalidInput: if shapes do not fit, or if a state is NaN or infinite.
    """
    n, width = _check_states(h, unembedding)
    _check_ks(ks)
    if not 1 <= loudest <= width:
        raise InvalidInput(f"loudest is {loudest}, and states have {width} dimensions")
    if bias is not None and bias.shape != unembedding.shape[:1]:
        raise InvalidInput(f"a bias of shape {list(bias.shape)} does not fit {len(unembedding)} tokens")
    h = h.to(device=unembedding.device, dtype=torch.float32)
    turned = _rotations(rotations, width, unembedding.device)
    # Drawn row by row on the CPU, so that neither the blocks nor the device change them.
    generator = torch.Generator().manual_seed(seed)
    permutation = torch.randperm(width, generator=generator).to(h.device)
    ranks: dict[str, list[Tensor]] = {}
    for rows in _row_blocks(n, len(unembedding)):
        x = h[rows]
        drawn = [torch.randperm(width, generator=generator)[:loudest] for _ in range(len(x))]
        signs = _sign(x)
        kept = {
            "none": signs,
            "loudest": _only(signs, _largest(x, loudest)),
            "permutation": signs[:, permutation],
            "loudest_random": _only(signs, torch.stack(drawn).to(h.device)),
        }
        for i, q in enumerate(turned, 1):
            y = x @ q.T
            signs = _sign(y)
            kept[f"haar:{i}"] = signs @ q
            kept[f"loudest_haar:{i}"] = _only(signs, _largest(y, loudest)) @ q
        logits = _logits(x, unembedding)
        if bias is not None:
            logits += bias.to(logits)
        # The first of several largest logits, as `Tensor.argmax` promises.
        target = logits.argmax(1)
        for method, vectors in kept.items():
            ranks.setdefault(method, []).append(_ranks(_logits(vectors, unembedding, out=logits), target))
    return {method: _shares(torch.cat(parts).cpu().numpy(), ks) for method, parts in ranks.items()}


def _sign(x: Tensor) -> Tensor:
    return torch.where(x > 0, 1.0, -1.0)


def _largest(x: Tensor, k: int) -> Tensor:
    """(n, k): the dimensions of largest |x|; a stable sort, since `topk` promises nothing about equals."""
    return x.abs().sort(dim=1, descending=True, stable=True).indices[:, :k]


def _only(signs: Tensor, dims: Tensor) -> Tensor:
    return torch.zeros_like(signs).scatter_(1, dims, signs.gather(1, dims))


# ---- majority signs of the context --------------------------------------------------------------


@torch.no_grad()
def sign_majority(
    embedding: Tensor,
    contexts: Sequence[NDArray[np.integer]],
    targets: NDArray[np.integer],
    counts: NDArray[np.integer],
    *,
    ks: Sequence[int] = (100, 4096),
    h_final: Tensor | None = None,
    rotations: Sequence[Tensor] = (),
) -> Shares:
    """How often the next token is among the first k by the signs of the context's embeddings.

    Bag of Dims, section 5 (Table 2), which has `none` and `full_dot`.

    Args:
        embedding: (V, D), rows of the token embedding.
        contexts: the token ids of each of n prompts.
        targets: (n,), the token that follows each.
        counts: (V,), how often each token occurs in a text other than the prompts' own.
        ks: the k of each share.
        h_final: (n, D), the states at the last position, for `full_dot`.
        rotations: orthogonal (D, D) matrices Q.

    Returns:
        By method, equal scores going by lower id:
        `none`: tokens by how many signs of their embedding agree with the majority of the context's, each
            occurrence a vote, sign(0) = -1 and a tied vote -1 (the paper says nothing of ties).
        `frequency`: tokens by `counts`.
        `repeat`: the context's own tokens, the most recent first, then the others by `counts`.
        `full_dot`: tokens by h_final times their embedding, where `h_final` is given.
        `haar:i`: as `none`, with the signs of Q e for the embeddings e, for rotation i (from 1).

    Raises:
        InvalidInput: if shapes do not fit, a context is empty, or a token id is none of the V.
    """
    if embedding.dim() != 2:
        raise InvalidInput(f"an embedding of shape {list(embedding.shape)} is no [V, D]")
    vocab, width = embedding.shape
    _check_ks(ks)
    _check_tokens(contexts, targets, counts, vocab)
    turned = _rotations(rotations, width, embedding.device)
    found = {"none": _majority_ranks(embedding, None, contexts, targets)}
    found["frequency"], found["repeat"] = _baseline_ranks(contexts, targets, counts)
    if h_final is not None:
        n, _ = _check_states(h_final, embedding)
        if n != len(contexts):
            raise InvalidInput(f"{n} states were given for {len(contexts)} prompts")
        found["full_dot"] = _dot_ranks(h_final, embedding, targets)
    for i, q in enumerate(turned, 1):
        found[f"haar:{i}"] = _majority_ranks(embedding, q, contexts, targets)
    return {method: _shares(ranks, ks) for method, ranks in found.items()}


def _majority_ranks(
    embedding: Tensor,
    rotation: Tensor | None,
    contexts: Sequence[NDArray[np.integer]],
    targets: NDArray[np.integer],
) -> NDArray[np.int64]:
    """(n,): the rank of each target, a part of the vocabulary at a time."""
    vocab, width = embedding.shape
    codes = np.empty((vocab, n_bytes(width)), np.uint8)
    for part in _chunks(vocab, width):
        x = embedding[part].float()
        codes[part] = pack_signs(x if rotation is None else x @ rotation.T).cpu().numpy()

    if not len(contexts):
        return np.empty(0, np.int64)
    positive = (unpack(codes[ids], width).sum(0, dtype=np.int64) for ids in contexts)
    majority = np.stack(
        [np.packbits(2 * one > len(ids)) for one, ids in zip(positive, contexts, strict=True)]
    )
    own = hamming(majority, codes[targets])[:, None].astype(np.int32)
    ranks = np.zeros(len(contexts), np.int64)
    for part in _chunks(vocab, len(contexts)):
        apart = engines.differing(codes[part], majority, width=width)
        earlier = np.arange(part.start, part.stop) < targets[:, None]
        # At an equal distance the lower id comes first.
        ranks += np.count_nonzero(apart < own + earlier, axis=1)
    return ranks


def _baseline_ranks(
    contexts: Sequence[NDArray[np.integer]], targets: NDArray[np.integer], counts: NDArray[np.integer]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ranks of the targets by frequency, and with the context's own tokens put first."""
    order = np.argsort(-counts.astype(np.int64), kind="stable")
    by_count = np.empty(len(counts), np.int64)
    by_count[order] = np.arange(len(counts))
    frequency, repeat = by_count[targets], np.empty(len(targets), np.int64)
    for row, (ids, target) in enumerate(zip(contexts, targets.tolist(), strict=True)):
        recent = list(dict.fromkeys(np.asarray(ids)[::-1].tolist()))
        if target in recent:
            repeat[row] = recent.index(target)
        else:
            # Tokens of the context leave their own places in the frequency list.
            moved = int((by_count[recent] < by_count[target]).sum())
            repeat[row] = len(recent) + by_count[target] - moved
    return frequency, repeat


def _dot_ranks(h: Tensor, embedding: Tensor, targets: NDArray[np.integer]) -> NDArray[np.int64]:
    h = h.to(device=embedding.device, dtype=torch.float32)
    target = torch.from_numpy(np.asarray(targets, np.int64)).to(embedding.device)
    parts = [
        _ranks(_logits(h[rows], embedding), target[rows]) for rows in _row_blocks(len(h), len(embedding))
    ]
    return torch.cat(parts).cpu().numpy()


# ---- ranks --------------------------------------------------------------------------------------


def _row_blocks(n: int, vocab: int) -> Iterator[slice]:
    """Rows whose scores over the whole vocabulary fit into `_SCORES`."""
    return _slices(n, _SCORES // vocab)


def _chunks(n: int, width: int) -> Iterator[slice]:
    """Rows of `width` values that fit into `_CHUNK`."""
    return _slices(n, _CHUNK // width)


def _slices(n: int, size: int) -> Iterator[slice]:
    for start in range(0, n, max(1, size)):
        yield slice(start, min(n, start + max(1, size)))


def _logits(x: Tensor, unembedding: Tensor, out: Tensor | None = None) -> Tensor:
    """(n, V): x times the rows of `unembedding`, in float32, into `out` where it is given."""
    if out is None:
        out = torch.empty(len(x), len(unembedding), device=x.device)
    for part in _chunks(*unembedding.shape):
        times(x, unembedding[part].float().T, out[:, part])
    return out


def _ranks(scores: Tensor, target: Tensor) -> Tensor:
    """(n,): how many tokens come before `target`, (n,), by their `scores`, (n, V)."""
    target = target[:, None]
    own = scores.gather(1, target)
    ids = torch.arange(scores.shape[1], device=scores.device)
    before = (scores == own).logical_and_(ids < target).logical_or_(scores > own)
    # Truth values are counted a register at a time by numpy, by torch one after the other: 17 times as long.
    return torch.from_numpy(np.count_nonzero(before.cpu().numpy(), axis=1))


def _shares(ranks: NDArray[np.int64], ks: Sequence[int]) -> dict[int, float]:
    return {int(k): float((ranks < k).mean()) for k in ks}


# ---- checks -------------------------------------------------------------------------------------


def _check_states(h: Tensor, unembedding: Tensor) -> tuple[int, int]:
    if h.dim() != 2 or unembedding.dim() != 2 or h.shape[1] != unembedding.shape[1] or not len(h):
        shapes = f"{list(h.shape)} and {list(unembedding.shape)}"
        raise InvalidInput(f"states and unembedding of shapes {shapes} are no [n, D] and [V, D]")
    if not h.isfinite().all():
        raise InvalidInput("hidden states hold NaN or infinity", "a sign needs finite values")
    return h.shape[0], h.shape[1]


def _rotations(rotations: Sequence[Tensor], width: int, device: torch.device) -> list[Tensor]:
    for q in rotations:
        if q.shape != (width, width):
            raise InvalidInput(f"a rotation of shape {list(q.shape)} does not turn {width} dimensions")
    return [q.to(device=device, dtype=torch.float32) for q in rotations]


def _check_ks(ks: Sequence[int]) -> None:
    if not ks or min(ks) < 1:
        raise InvalidInput(f"k must be 1 or more, not {list(ks)}")


def _check_tokens(
    contexts: Sequence[NDArray[np.integer]],
    targets: NDArray[np.integer],
    counts: NDArray[np.integer],
    vocab: int,
) -> None:
    if not len(contexts) or targets.shape != (len(contexts),):
        raise InvalidInput(f"targets of shape {list(targets.shape)} for {len(contexts)} prompts")
    if counts.shape != (vocab,):
        raise InvalidInput(f"counts of shape {list(counts.shape)} for {vocab} tokens")
    if not all(len(ids) for ids in contexts):
        raise InvalidInput("a prompt has no token")
    for ids in (*contexts, targets):
        if ids.min() < 0 or ids.max() >= vocab:
            raise InvalidInput(f"a token id is none of the {vocab} rows of the embedding")
