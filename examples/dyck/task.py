"""Bounded-depth Dyck-3: sequences of three kinds of brackets, and what is true at each of their tokens.

A row is BOS, brackets, EOS, PAD. A closing bracket must be of the kind that was opened last, nothing may be
closed that was not opened, and at most eight brackets may be open. What breaks a rule makes the rest of the
row invalid. An end with open brackets breaks none. The task is that of McCann (arXiv 2605.24577).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from signarium.catalog.errors import InvalidInput

PAD, BOS, EOS = 0, 1, 2
UNK = 9
FIRST_BRACKET = 3
BRACKETS = "()[]{}"
"""Token 3 + i is BRACKETS[i]: opening brackets have odd ids, and the one that closes follows."""
N_FAMILIES = 3
MAX_DEPTH = 8
VOCAB_SIZE = 40
CONTEXT = 64
MIN_CONTENT, MAX_CONTENT = 2, CONTEXT - 2
LONG_CONTENT = (50, 60)
OPEN_SHARE = 0.55
"""How often a valid row opens a bracket where it could also close one."""
KINDS = ("held_out", "long", "compositional")
_MAX_PAIRS = 10
_BATCHES, _HELD_OUT = 0, 1  # streams of a seed that never meet
_HELD_OUT_SEED = 20_000

Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Labels:
    """What holds after each token of rows of shape (n, L); every array has that shape.

    `depth`, int64: brackets open, 0 to 8; at and after the first broken rule it stays what it was before.
    `valid`, int64: 1 until a rule is broken, 0 from there on. `mask`, bool: all but PAD, where labels count.
    """

    depth: NDArray[np.int64]
    valid: NDArray[np.int64]
    mask: NDArray[np.bool_]


def labels(ids: NDArray[np.integer]) -> Labels:
    """The labels of rows of token ids, shape (n, L), from the ids alone.

    Tokens that are no brackets change nothing, so rows may be cut anywhere and need neither BOS nor EOS.

    Raises:
        InvalidInput: if `ids` is no matrix of integers.
    """
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        raise InvalidInput(f"token ids of shape {list(ids.shape)} and {ids.dtype} are no integers (n, L)")
    n, length = ids.shape
    bracket = np.asarray(ids, dtype=np.int64).T - FIRST_BRACKET
    is_bracket = (bracket >= 0) & (bracket < 2 * N_FAMILIES)
    opens = is_bracket & (bracket % 2 == 0)
    closes = is_bracket & (bracket % 2 == 1)
    family = bracket // 2
    rows = np.arange(n)
    # One slot more than is legal on both sides, so that no step needs a case of its own.
    stack = np.full((n, MAX_DEPTH + 2), -1, dtype=np.int64)
    depth = np.zeros((length, n), dtype=np.int64)
    valid = np.ones((length, n), dtype=np.int64)
    now, good = np.zeros(n, dtype=np.int64), np.ones(n, dtype=bool)
    for t in range(length):
        pushes = opens[t]
        wrong = (pushes & (now == MAX_DEPTH)) | (closes[t] & (stack[rows, now] != family[t]))
        good = good & ~wrong
        stack[rows, now + 1] = np.where(pushes, family[t], stack[rows, now + 1])
        now = now + good * (pushes.astype(np.int64) - closes[t])
        depth[t], valid[t] = now, good
    return Labels(depth.T.copy(), valid.T.copy(), np.asarray(ids != PAD))


# ---- drawing rows -------------------------------------------------------------------------------


def draw(rng: np.random.Generator, n: int, content: tuple[int, int] = (MIN_CONTENT, MAX_CONTENT)) -> Ids:
    """`n` rows of shape (n, 64): every other one valid, the rest of brackets drawn uniformly.

    Content lengths are uniform over `content`, both ends included. A valid row opens with probability 0.55
    where both moves are legal; the kind it opens is uniform.
    """
    low, high = content
    lengths = rng.integers(low, high + 1, n)
    moves = rng.random((high, n))
    families = rng.integers(0, N_FAMILIES, (high, n))
    brackets = rng.integers(0, 2 * N_FAMILIES, (high, n))
    walked = np.arange(0, n, 2)
    brackets[:, walked] = _walk(moves[:, walked], families[:, walked])
    return _framed(brackets.T, lengths)


def _walk(moves: NDArray[np.float64], families: Ids) -> Ids:
    """Brackets, 0 to 5, of shape (L, n) that break no rule."""
    length, n = moves.shape
    rows = np.arange(n)
    stack = np.zeros((n, MAX_DEPTH + 1), dtype=np.int64)
    depth = np.zeros(n, dtype=np.int64)
    brackets = np.empty((length, n), dtype=np.int64)
    for t in range(length):
        opens = (depth == 0) | ((depth < MAX_DEPTH) & (moves[t] < OPEN_SHARE))
        brackets[t] = np.where(opens, 2 * families[t], 2 * stack[rows, depth] + 1)
        depth = depth + np.where(opens, 1, -1)
        # A row that closed writes back what it holds.
        stack[rows, depth] = np.where(opens, families[t], stack[rows, depth])
    return brackets


def _framed(brackets: Ids, lengths: Ids) -> Ids:
    """Rows with BOS, the first `lengths` brackets of each, EOS and PAD."""
    n, length = brackets.shape
    ids = np.full((n, CONTEXT), PAD, dtype=np.int64)
    ids[:, 0] = BOS
    inside = np.arange(length)[None] < lengths[:, None]
    ids[:, 1 : length + 1] = np.where(inside, brackets + FIRST_BRACKET, PAD)
    ids[np.arange(n), lengths + 1] = EOS
    return ids


def draw_long(rng: np.random.Generator, n: int) -> Ids:
    """`n` rows of shape (n, 64) as from `draw`, with 50 to 60 brackets each."""
    return draw(rng, n, LONG_CONTENT)


def draw_compositional(rng: np.random.Generator, n: int) -> Ids:
    """`n` valid rows of shape (n, 64): one nest of a single kind, 3 to 8 deep, among pairs of all kinds.

    The nest stands between up to ten pairs on either side; training rows hardly ever hold such a nest.
    """
    depths = rng.integers(3, MAX_DEPTH + 1, n)
    families = rng.integers(0, N_FAMILIES, n)
    before, after = rng.integers(0, _MAX_PAIRS + 1, (2, n))
    pairs = rng.integers(0, N_FAMILIES, (n, MAX_CONTENT))
    start, end = 2 * before, 2 * (before + depths)
    t = np.arange(MAX_CONTENT)[None]
    in_nest = (t >= start[:, None]) & (t < end[:, None])
    # Pairs start at even places on both sides of the nest, since the nest is of even length.
    kind = np.where(in_nest, families[:, None], np.repeat(pairs[:, ::2], 2, axis=1)[:, :MAX_CONTENT])
    closes = np.where(in_nest, t >= (start + depths)[:, None], t % 2 == 1)
    return _framed(2 * kind + closes, end + 2 * after)


def held_out_rows(kind: str, n: int, seed: int = _HELD_OUT_SEED) -> Ids:
    """`n` rows of shape (n, 64) from a stream that no training batch is drawn from.

    `kind` is "held_out" (drawn as training rows are), "long" or "compositional".

    Raises:
        InvalidInput: if there is no such kind.
    """
    draws = dict(zip(KINDS, (draw, draw_long, draw_compositional), strict=True))
    if kind not in draws:
        raise InvalidInput(f"no rows of kind {kind!r}", f"there is {', '.join(KINDS)}")
    return draws[kind](np.random.default_rng([seed, KINDS.index(kind), _HELD_OUT]), n)


def batch_rows(seed: int, step: int, n: int) -> Ids:
    """The `n` training rows of one step of a seed."""
    return draw(np.random.default_rng([seed, step, _BATCHES]), n)


def text(ids: NDArray[np.integer]) -> list[str]:
    """The brackets of rows of shape (n, L) as strings, special tokens left out."""
    letters = np.array(["", "", "", *BRACKETS, *[""] * (VOCAB_SIZE - FIRST_BRACKET - len(BRACKETS))])
    return ["".join(row) for row in letters[np.asarray(ids)]]


def tokenizer() -> Any:
    """The fast tokenizer of these rows, for transformers: one token a character, BOS before, EOS behind.

    What is no bracket, white space included, is the unknown token.
    """
    from tokenizers import Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    special = {"<pad>": PAD, "<bos>": BOS, "<eos>": EOS, "<unk>": UNK}
    letters = {letter: FIRST_BRACKET + i for i, letter in enumerate(BRACKETS)}
    backend = Tokenizer(models.BPE(vocab=special | letters, merges=[], unk_token="<unk>"))
    backend.decoder = decoders.Fuse()
    ends = [(token, special[token]) for token in ("<bos>", "<eos>")]
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
