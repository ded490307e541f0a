"""Either polarity: a negative activation turns what a neuron writes, so a code and its opposite are one direction.

The distance is then the smaller of d and (bits compared - d). It is 1 where the direction itself is nearer, or as near as
its opposite, and -1 where its opposite is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...catalog.codes import Codes, unpack
from ...catalog.engines import Distances
from ...catalog.index import Items


def opposite(code: Codes, width: int) -> Codes:
    """Every sign turned, the padding still zero; uint8 (bytes,)."""
    return np.packbits(1 - unpack(code, width))


def nearer(distances: NDArray[Any], size: Any) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Distances (n,) out of `size` bits, one or each its own, in the nearer polarity, and which that is."""
    return np.minimum(distances, size - distances), np.where(2 * distances <= size, 1, -1).astype(np.int32)


def either(distances: Distances, items: Items, k: int) -> tuple[Distances, Items]:
    """The answers (2, k') to a code and to its opposite as one of (1, k''), a row an item, by (distance, item).

    What is among the k nearest in either polarity is among the k nearest in its nearer one, so nothing is missed.
    """
    near, who = distances.ravel(), items.ravel()
    order = np.lexsort((near, who))
    first = np.ones(len(order), np.bool_)
    first[1:] = who[order][1:] != who[order][:-1]
    kept = order[first]
    kept = kept[np.lexsort((who[kept], near[kept]))][:k]
    return near[kept][None], who[kept][None]
