"""Engines that keep the codes in a GPU's memory: FAISS's own, and matrix products on its tensor cores."""

from __future__ import annotations

import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..codes import Codes
from ..errors import InvalidInput
from .flat import Flat, faiss
from .shards import ROW_BITS, Distances, Found, Rows, merge, nothing, stack

FAISS_MOST = 2048
"""Neighbours that FAISS's GPU index gives at most."""
_FAISS_BYTES = 256 << 20
"""Memory for its intermediate results."""
_PRODUCT_BYTES = 704 << 20
"""Memory of the products of one tile, four bytes each, and of the candidates among them."""
_TILE_BYTES = 128 << 20
"""Memory of the codes of one tile, a byte a bit."""
_GROUP = 64
"""Codes of which only the nearest is looked at to begin with."""
_NO_CODE = -(1 << 20)
"""Less than any product: codes have fewer bits."""
_WEIGHTS = (128, 64, 32, 16, 8, 4, 2, 1)


class DeviceFull(InvalidInput):
    """The codes do not fit into a GPU's memory."""

    def __init__(self, codes: Codes) -> None:
        super().__init__(
            f"{codes.nbytes / 1e9:.1f} GB of codes do not fit into the GPU's memory",
            "search on the CPU: --engine blocks or faiss",
        )


@cache
def missing_faiss() -> str | None:
    """Why FAISS cannot search on a GPU here; None if it can."""
    if find_spec("faiss") is None:
        return "FAISS is not installed"
    lib = faiss()
    if not hasattr(lib, "GpuIndexBinaryFlat"):
        return "this FAISS is built without CUDA (faiss-gpu has it)"
    return None if lib.get_num_gpus() else "FAISS sees no CUDA device"


@cache
def missing_tensor() -> str | None:
    """Why matrix products cannot run on a GPU here; None if they can."""
    if find_spec("torch") is None:
        return "torch is not installed"
    # Loading torch takes seconds, and most machines have no driver for it to find.
    if sys.platform == "linux" and not any(Path(one).exists() for one in ("/dev/nvidiactl", "/dev/dxg")):
        return "there is no CUDA device"
    import torch

    return None if torch.cuda.is_available() else "torch sees no CUDA device"


class FaissDevice:
    """`GpuIndexBinaryFlat` over codes, uint8 (n, bytes), with the ties of every other engine.

    Raises:
        DeviceFull: if they do not fit.
    """

    def __init__(self, codes: Codes) -> None:
        lib = faiss()
        self._codes = codes
        # Its kernels read four bytes at a time; bits that are 0 on both sides add nothing.
        self._pad = -codes.shape[1] % 4
        self._resources = lib.StandardGpuResources()
        # It would take one and a half gigabytes for itself.
        self._resources.setTempMemory(_FAISS_BYTES)
        self._index = lib.GpuIndexBinaryFlat(self._resources, 8 * (codes.shape[1] + self._pad))
        try:
            for start in range(0, len(codes), 1 << 20):
                self._index.add(self._padded(codes[start : start + (1 << 20)]))
        except RuntimeError as error:
            # FAISS has no class of its own for it.
            if "memory" not in str(error):
                raise
            raise DeviceFull(codes) from error

    def _padded(self, codes: Codes) -> Codes:
        return np.ascontiguousarray(np.pad(codes, ((0, 0), (0, self._pad))))

    def search(self, queries: Codes, k: int, rows: Rows | None = None) -> Found:
        """The `k` codes nearest to each of `queries` (q, bytes), among `rows` (ascending) if given, which the CPU
        searches, as it does for those queries whose last place is tied beyond what the GPU gives."""
        n = len(self._codes)
        if rows is not None or min(k, n) >= FAISS_MOST:
            return Flat(self._codes).search(queries, k, rows)
        k = min(k, n)
        if not n or not len(queries):
            return nothing(len(queries), k)
        asked = min(n, max(2 * k, k + 30), FAISS_MOST)
        distances, found = self._index.search(self._padded(queries), asked)
        distances, found = merge([(distances.astype(np.int32), found.astype(np.int64))], asked)
        # Which of equal codes FAISS keeps on a GPU is not said, so all of them must be among those asked for.
        open_end = (
            np.flatnonzero(distances[:, k - 1] == distances[:, -1]) if asked < n else np.empty(0, np.int64)
        )
        distances, found = distances[:, :k].copy(), found[:, :k].copy()
        if len(open_end):
            distances[open_end], found[open_end] = Flat(self._codes).search(queries[open_end], k)
        return distances, found


class Tensor:
    """Codes, uint8 (n, bytes), as bits b of a matrix product with the signs s that a query wants (-1, 1, or 0 on a
    dimension that does not count): they differ on the number of wanted ones less b . s.

    The codes stay packed; a tile at a time is unpacked to a byte a bit. Of the products of a tile only the best of
    each group of 64 is looked at, then the groups that may hold one of the k best: the whole matrix of distances is
    never held. Memory beyond the codes is below 1 GiB for any number of queries and of codes, while `k` is below a
    million.

    Args:
        device: a torch device. On a CPU it is exact and slow; that is for tests.

    Raises:
        DeviceFull: if they do not fit.
    """

    def __init__(self, codes: Codes, device: str = "cuda") -> None:
        import torch

        self._n, self._size = codes.shape
        # Products of bytes come in sixteens.
        self._columns = -(-8 * self._size // 16) * 16
        self._device = torch.device(device)
        try:
            self._codes = torch.empty(codes.shape, dtype=torch.uint8, device=device)
        except torch.OutOfMemoryError as error:
            raise DeviceFull(codes) from error
        for start in range(0, len(codes), 1 << 20):
            part = np.ascontiguousarray(codes[start : start + (1 << 20)])
            # `numpy` arrays that are mapped from a file are read only, and torch warns of them.
            self._codes[start : start + len(part)] = torch.from_numpy(
                part if part.flags.writeable else part.copy()
            )
        self._weights = torch.tensor(_WEIGHTS, dtype=torch.uint8, device=device)

    def search(self, queries: Codes, k: int, rows: Rows | None = None) -> Found:
        """The `k` codes nearest to each of `queries` (q, bytes), among `rows` (ascending) if given."""
        import torch

        n = self._n if rows is None else len(rows)
        k = min(k, n)
        if not n or not len(queries):
            return nothing(len(queries), k)
        tile = self._tile(n)
        groups = tile // _GROUP
        # Products of a tile, and beside them the candidates as keys of eight bytes, several times over.
        each = 4 * tile + 64 * min(tile, k * _GROUP) + 64 * k + 2 * self._columns
        step = max(1, min(len(queries), _PRODUCT_BYTES // each))
        answers = []
        for start in range(0, len(queries), step):
            some = queries[start : start + step]
            signs, positive = self._signs(some, None)
            best = torch.empty((len(some), 0), dtype=torch.int64, device=self._device)
            for first in range(0, n, tile):
                m = min(tile, n - first)
                product = self._product(signs, first, m, rows, tile)[: len(some)]
                if min(k, tile) >= groups:
                    columns = torch.arange(tile, device=self._device).expand(len(some), tile)
                    values = product
                else:
                    columns, values = _candidates(product, k)
                # The larger the product the nearer; among equals, the lower the row. No two keys are the same.
                keys = (values.long() << ROW_BITS) - (first + columns)
                keys = torch.where(columns < m, keys, torch.iinfo(torch.int64).min)
                keys = torch.cat([best, keys], 1)
                best = keys.topk(min(k, first + m, keys.shape[1]), dim=1).values
                # Else they would be there beside those of the next tile.
                del product, columns, values, keys
            values = (best + (1 << ROW_BITS) - 1) >> ROW_BITS
            found = (values << ROW_BITS) - best
            distances = positive[: len(some), None] - values
            answers.append((distances.int().cpu().numpy(), found.cpu().numpy()))
        distances, places = stack(answers)
        return distances, places if rows is None else rows[places]

    def differing(self, polarity: Codes, mask: Codes | None) -> Distances:
        """Bits of each of `mask` in which each code differs from `polarity`, both (q, bytes); int32 (q, n)."""
        n = self._n
        found = np.empty((len(polarity), n), np.int32)
        tile = self._tile(max(1, n))
        step = max(1, _PRODUCT_BYTES // (8 * tile + 2 * self._columns))
        for start in range(0, len(polarity), step):
            some = slice(start, start + step)
            signs, positive = self._signs(polarity[some], None if mask is None else mask[some])
            for first in range(0, n, tile):
                m = min(tile, n - first)
                product = self._product(signs, first, m, None, tile)
                apart = (positive[:, None] - product[:, :m])[: len(polarity[some])]
                found[some, first : first + m] = apart.cpu().numpy()
                del product, apart
        return found

    def _tile(self, n: int) -> int:
        """Codes of a tile: a multiple of the group, and of what the tensor cores want."""
        most = max(_GROUP, _TILE_BYTES // (8 * self._size) // _GROUP * _GROUP)
        return min(most, 32_768, -(-n // _GROUP) * _GROUP)

    def _signs(self, polarity: Codes, mask: Codes | None) -> tuple[Any, Any]:
        """Signs that queries want, int8 (q', columns), and how many are positive, int32 (q',): a whole number of
        eight rows, more than sixteen of them, as int8 products want."""
        import torch

        wanted = np.full_like(polarity, 255) if mask is None else mask
        signs = np.zeros((max(24, -(-len(polarity) // 8) * 8), self._columns), np.int8)
        bits = 2 * np.unpackbits(polarity, axis=-1).astype(np.int8) - 1
        signs[: len(polarity), : 8 * self._size] = bits * np.unpackbits(wanted, axis=-1).astype(np.int8)
        there = torch.from_numpy(signs).to(self._device)
        return there, (there > 0).sum(1, dtype=torch.int32)

    def _product(self, signs: Any, first: int, m: int, rows: Rows | None, tile: int) -> Any:
        """Products of all queries with `m` codes, int32 (q', tile); columns from `m` on are below any other."""
        import torch

        some: Any = slice(first, first + m)
        if rows is not None:
            some = torch.from_numpy(rows[some]).to(self._device)
        codes = self._codes[some]
        # A bool is a byte that is 0 or 1.
        bits = (codes[:, :, None] & self._weights).ne(0).view(torch.int8).reshape(m, 8 * self._size)
        if bits.shape != (tile, signs.shape[1]):
            bits = torch.nn.functional.pad(bits, (0, signs.shape[1] - bits.shape[1], 0, tile - m))
        product = torch._int_mm(signs, bits.T)
        product[:, m:] = _NO_CODE
        return product


def _candidates(product: Any, k: int) -> tuple[Any, Any]:
    """Columns and values, (q, k * 64), among which the `k` largest of each row are, ties to the lower column.

    A group holds one of them only if its own largest is among the k largest of groups, by (value, group).
    """
    import torch

    n = len(product)
    grouped = product.view(n, -1, _GROUP)
    largest = grouped.amax(-1).long()
    group = torch.arange(largest.shape[1], device=product.device)
    keys = (largest << ROW_BITS) - group
    chosen = keys.topk(k, dim=1).indices[:, :, None]
    values = grouped.gather(1, chosen.expand(-1, -1, _GROUP))
    columns = chosen * _GROUP + torch.arange(_GROUP, device=product.device)
    return columns.reshape(n, -1), values.reshape(n, -1)
