"""Identifiers that come from content, so that machines which never met agree on them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

PLACE_BITS = 32
"""A text owns the ids base .. base + 2**32 - 1: its documents and its states count up from the base."""


def digest(*parts: Any) -> str:
    """SHA-256, in hex, of the JSON of `parts` (sorted keys, so that dicts compare by content)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def short_id(*parts: Any) -> str:
    """16 hex digits of `digest`: model_id, run_id."""
    return digest(*parts)[:16]


def int_id(*parts: Any) -> int:
    """A positive integer of 63 bits from `digest`: code_set_id."""
    return int(digest(*parts)[:16], 16) >> 1


def text_base(salt: int, *parts: Any) -> int:
    """The first id of a text: 31 bits of `digest` above `PLACE_BITS` zero bits.

    `salt` is 0 unless two texts of one catalogue collide.
    """
    return (int(digest(salt, *parts)[:8], 16) >> 1) << PLACE_BITS


NEURON_BITS = 24
"""The item of neuron n of block l is l << NEURON_BITS | n: blocks may differ in how many they have."""


def neuron_item(layer: int, neuron: int) -> int:
    """The item of a neuron among the codes of subject `neuron`."""
    return layer << NEURON_BITS | neuron


def neuron_place(item: int) -> tuple[int, int]:
    """Block and neuron of such an item."""
    return item >> NEURON_BITS, item & ((1 << NEURON_BITS) - 1)


def sae_item(sae_id: str, place: int) -> int:
    """The item of feature `place` of a dictionary among the codes of subject `direction`: 31 bits of its id above."""
    return (int(sae_id[:8], 16) >> 1) << PLACE_BITS | place
