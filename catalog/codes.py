"""Sign codes: packed bits, and what can be counted on them.

Bit d of a code is 1 when x[d] > 0; 0 and -0.0 give 0. Eight bits a byte, the lowest dimension in the
highest bit (`numpy.packbits` default), padded with zero bits to a whole byte.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidInput

Codes = NDArray[np.uint8]
"""uint8 array whose last axis has ceil(width / 8) bytes."""


def n_bytes(width: int) -> int:
    """Bytes of a code of `width` bits."""
    return -(-width // 8)


def pack(x: NDArray[Any]) -> Codes:
    """Sign codes of the rows of `x`, shape (..., width), to uint8 of shape (..., ceil(width / 8)).

    Raises:
        InvalidInput: if `x` holds NaN or an infinity.
    """
    if not np.isfinite(x).all():
        raise InvalidInput("hidden states hold NaN or infinity", "a sign code needs finite values")
    return np.packbits(x > 0, axis=-1)


def unpack(codes: Codes, width: int) -> NDArray[np.uint8]:
    """Bits of `codes`, shape (..., ceil(width / 8)), to 0/1 of shape (..., width).

    Raises:
        InvalidInput: if the last axis is not ceil(width / 8) bytes long.
    """
    if codes.shape[-1] != n_bytes(width):
        raise InvalidInput(f"codes of {codes.shape[-1]} bytes are not of width {width}")
    return np.unpackbits(codes, axis=-1, count=width)


def hamming(a: Codes, b: Codes) -> NDArray[np.int64]:
    """Bits that differ between `a` and `b` (broadcast against each other, last axis the bytes)."""
    return np.bitwise_count(a ^ b).sum(axis=-1, dtype=np.int64)


def agreement(code: Codes, mask: Codes, polarity: Codes) -> NDArray[np.float64]:
    """Share of the dimensions in `mask` on which `code` has the sign that `polarity` expects.

    Equals 1 - masked Hamming / n_dims (Bag of Dims, section 3). An empty mask gives NaN.
    """
    n = np.bitwise_count(mask).sum(axis=-1, dtype=np.int64)
    differing = np.bitwise_count((code ^ polarity) & mask).sum(axis=-1, dtype=np.int64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(n > 0, 1.0 - differing / n, np.nan)


def from_hex(text: str, width: int) -> Codes:
    """A code from hex digits.

    Raises:
        InvalidInput: if `text` is no hex, has another length, or sets bits past `width`.
    """
    try:
        raw = bytes.fromhex(text.strip())
    except ValueError as error:
        raise InvalidInput(f"{text!r} is not a code in hex", "give an even number of hex digits") from error
    if len(raw) != n_bytes(width):
        raise InvalidInput(
            f"a code of {len(raw)} bytes was given",
            f"width {width} needs {n_bytes(width)} bytes ({2 * n_bytes(width)} digits)",
        )
    code = np.frombuffer(raw, dtype=np.uint8)
    if width % 8 and raw[-1] & ((1 << (8 - width % 8)) - 1):
        raise InvalidInput("the code sets bits past its width", f"the last {8 - width % 8} bits must be 0")
    return code
