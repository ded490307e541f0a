"""How large a job will be: what is still to be computed, and the bytes that it takes on disk."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..catalog.bulk import ROW_GROUP
from ..catalog.codes import n_bytes
from ..catalog.schema import BLOCK_BYTES


@dataclass(frozen=True)
class Size:
    """What a stage has left to do. Sizes add.

    `tokens` go through the model, `rows` are codes to be stored; the bytes are those of the catalogue, of its indexes
    and of scratch files that are there only while the job runs. `features` is how many will be made at most: discovered
    features that repeat another are merged.
    """

    tokens: int = 0
    rows: int = 0
    features: int = 0
    catalogue_bytes: int = 0
    index_bytes: int = 0
    scratch_bytes: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(
            self.tokens + other.tokens,
            self.rows + other.rows,
            self.features + other.features,
            self.catalogue_bytes + other.catalogue_bytes,
            self.index_bytes + other.index_bytes,
            self.scratch_bytes + other.scratch_bytes,
        )

    @staticmethod
    def empty(path: Path) -> Size:
        """What a job at `path` takes before its first stage: an empty catalogue where none is there yet."""
        return Size(catalogue_bytes=0 if path.exists() else EMPTY_BYTES)

    @property
    def stored_bytes(self) -> int:
        """What stays on disk."""
        return self.catalogue_bytes + self.index_bytes


def free_bytes(path: Path) -> int:
    """What is free on the disk of `path`, which need not exist yet."""
    return shutil.disk_usage(path.resolve().parent).free


# ---- code sets ----------------------------------------------------------------------------------
# DuckDB's storage, measured: an uncompressed code costs its bytes and a 4-byte offset, a norm 4 bytes; item and
# code_set_id compress to nearly nothing. A column fills blocks of 64 KiB, and since every shard is committed
# and checkpointed by itself, its last blocks stay part empty.

SHARD_BLOCKS = 3.0
"""Blocks of a shard beside its codes and norms: the small columns and the metadata."""
EMPTY_BYTES = 536_576 + 19 * BLOCK_BYTES
"""A catalogue with one small run: each small table and each key fills a block."""
TOKEN_BYTES = 11.0
"""Of a row of `token_row`."""
DIMENSION_BYTES = 50
"""Of a row of `dimension_row`."""
STATE_BYTES = 3.0
"""Of a row of `state_row`."""
WINDOW_BYTES = 90
"""Of a row of `document_row` beside its text."""
TEXT_SHARE = 0.55
"""Bytes in the file for a byte of text: DuckDB compresses it."""
CODE_BYTES = 10
"""Of a code beside its bits where a run's shards are large."""
WORD_BYTES = 8.2
"""Of a row of `projection_row`."""
FEATURE_BYTES = 1300
"""Of a feature beside its mask and polarity: top tokens, members, some thirty figures."""
WRITER_BYTES = 9
"""Of a row of `writer_row` or `coalition_row`."""


class Wide(Protocol):
    """Anything that has a width in dimensions, as a code set has."""

    @property
    def width(self) -> int:
        """Dimensions."""


def shard_tokens(sets: Sequence[Wide]) -> int:
    """Tokens of a shard: those whose codes fill a row group, within reason for a kill to lose."""
    return max(256, min(65_536, ROW_GROUP // max(1, len(sets))))


def code_bytes(sets: Sequence[Wide], items: int, other_bytes: float) -> int:
    """Bytes that `items` rows of each code set add to the file, with `other_bytes` in other tables."""
    step = shard_tokens(sets)
    blocks = float(math.ceil(other_bytes / BLOCK_BYTES))
    for n in [step] * (items // step) + [items % step]:
        if n:
            codes = sum(n * (n_bytes(one.width) + 4) for one in sets)
            norms = n * len(sets) * 4
            blocks += math.ceil(codes / BLOCK_BYTES) + math.ceil(norms / BLOCK_BYTES) + SHARD_BLOCKS
    return round(blocks * BLOCK_BYTES)
