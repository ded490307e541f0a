"""How large a job will be: what is still to be computed, and the bytes that it takes on disk."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from ..catalog.codes import n_bytes
from ..catalog.schema import BLOCK_BYTES
from ..catalog.shared import ROW_GROUP

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Step:
    """A part of a stage that reports its own progress, as far as it is known before it runs.

    `job` is what `Progress.started` will call it, and `seconds` what all of it takes on two cores of a laptop: see the
    constants below. Steps of one `pace` (the model's passes, or sums over codes) are slower or faster by one factor, which
    the first of them shows.
    """

    job: str
    seconds: float
    pace: Literal["passes", "sums"] = "sums"


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
    steps: tuple[Step, ...] = ()

    def __add__(self, other: Size) -> Size:
        return Size(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(Size)))

    def one_at_a_time(self, largest: int) -> Size:
        """The size of runs whose scratch files are never there together: those of the largest count."""
        return replace(self, scratch_bytes=largest)

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


# ---- seconds ------------------------------------------------------------------------------------
# Measured with SmolLM2 (135 million weights, width 576) on two cores; what runs corrects them.

FLOPS = 9e10
"""Floating-point operations a second of a model's passes with a few sites taken."""
DEVICE_SPEED = 100.0
"""How much faster passes are on a GPU."""
CATEGORY_SECONDS = 11.0 / (49_152 * 576)
"""Categories at a site: for each type and dimension."""
DISCOVERY_SECONDS = 6.0 / (49_152 * 576)
"""Discovered features at a site: for each type and dimension."""
INDEPENDENCE_SECONDS = 1.5 / (49_152 * 576)
"""Independence at a site: for each type and dimension."""
SCORE_SECONDS = 1.5 / (20_000 * 576)
"""Stored states against a code set's features: for each state and dimension."""
WORD_SECONDS = 70.0 / (46_080 * 49_152 * 576)
"""Neurons in words: for each neuron, type and dimension."""
WRITER_SECONDS = 4.0 / (1_600 * 576)
"""Writers of features: for each feature and dimension."""


def pass_seconds(model: Shape, tokens: int) -> float:
    """What the passes of `tokens` tokens through a model take: two operations for each weight of its blocks."""
    weights = model.n_layers * model.width * (4 * model.width + 3 * model.d_ffn)
    speed = DEVICE_SPEED if model.device.type == "cuda" else 1.0
    return 2 * weights * tokens / (FLOPS * speed)


class Shape(Protocol):
    """What the speed of a model depends on."""

    width: int
    n_layers: int
    d_ffn: int
    device: torch.device


# ---- code sets ----------------------------------------------------------------------------------
# DuckDB's storage, measured: an uncompressed code costs its bytes and a 4-byte offset, a norm 4 bytes; item and
# code_set_id compress to nearly nothing. A column fills blocks of 64 KiB, and since every shard is committed
# and checkpointed by itself, its last blocks stay part empty.

SHARD_BLOCKS = 3.0
"""Blocks of a shard beside its codes and norms: the small columns and the metadata."""
EMPTY_BYTES = 536_576 + 20 * BLOCK_BYTES
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
