"""The CPU kernel for batches: distances by table look-up, sixteen or thirty-two codes at an instruction.

The codes of a block are turned so that a register holds one nibble of as many codes as it has bytes. What such a
nibble adds to the distance from a query is one of sixteen small numbers, and a byte shuffle (`vpshufb`, `tbl`)
looks up all of them at once: the exclusive or, the mask and the population count are in the table. A code is
turned once for all queries. The idea of registers as tables is that of André, Kermarrec and Le Scouarnec 2015
(fast scan for product quantisation); the counts here are exact.

Importing this module imports numba; `blocks.missing` tells first whether it can be.
"""

from __future__ import annotations

import platform
from contextlib import suppress
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from .shards import ROW_BITS

BLOCK = 128
"""Codes that are turned together."""
N_PATTERNS = 81
"""What a query can want of four bits: each of them 0, 1, or either."""

_LANES, _LOOKUP = (
    (16, "llvm.aarch64.neon.tbl1.v16i8")
    if platform.machine().lower() in ("aarch64", "arm64")
    else (32, "llvm.x86.avx2.pshuf.b")
)
_GROUPS = BLOCK // 8
_LINE = 8
"""Words of eight bytes in a line of the cache."""
_TILE = 62
"""Nibbles that are counted in bytes: four bits each, so 248 at most."""
_AT_ONCE = 2
"""Queries in one pass over a tile: with more the counts no longer fit into the registers."""
_NONE = np.int64(1 << 62)

_i8, _i16, _i64 = ir.IntType(8), ir.IntType(16), ir.IntType(64)


class _Kept:
    """numba's cache of one function, which may be damaged, or not to be written: then the function is compiled again."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def load_overload(self, *given: Any) -> Any:
        """What is kept, if it can be read."""
        try:
            return self._cache.load_overload(*given)
        except Exception:
            # Half a file fails in as many ways as there are halves. What can be saved again must not add to it.
            with suppress(Exception):
                self._cache.flush()
            return None

    def save_overload(self, *given: Any) -> None:
        """Keep it, if there is room."""
        with suppress(Exception):
            self._cache.save_overload(*given)


def _compiled(function: Any) -> Any:
    """`function` compiled when it is first called, kept on disk where there is a place for it."""
    try:
        made = njit(nogil=True, cache=True, boundscheck=False)(function)
    except RuntimeError:
        # No folder for numba's cache can be written: it is compiled anew in each process.
        return njit(nogil=True, boundscheck=False)(function)
    made._cache = _Kept(made._cache)
    return made


def _constant(value: int) -> Any:
    return ir.Constant(_i64, value)


@intrinsic
def _word(typing: Any, address: Any) -> Any:  # noqa: ARG001
    """The eight bytes at an address, which need not be a multiple of anything."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        return builder.load(builder.inttoptr(args[0], _i64.as_pointer()), align=1)

    return types.uint64(types.int64), generate


@intrinsic
def _count(
    typing: Any,  # noqa: ARG001
    tables: Any, patterns: Any, query: Any, planes: Any, first: Any, last: Any, counts: Any,
) -> Any:  # fmt: skip
    """Add to `counts` of two queries what the nibbles `first` to `last` (not with it, and after `first`) add."""
    arguments = (tables, patterns, query, planes, first, last, counts)
    n_registers = BLOCK // _LANES

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def start(i: int) -> Any:
            return builder.bitcast(
                context.make_array(signature.args[i])(context, builder, args[i]).data, _i8.as_pointer()
            )

        def at(base: Any, offset: Any, kind: Any) -> Any:
            return builder.bitcast(builder.gep(base, [offset]), kind.as_pointer())

        register, table = ir.VectorType(_i8, _LANES), ir.VectorType(_i8, 16)
        wide = ir.VectorType(_i16, _LANES)
        lookup = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(register, [table if _LANES == 16 else register, register]),
            _LOOKUP,
        )
        stride = context.make_array(signature.args[1])(context, builder, args[1]).strides
        stride = builder.extract_value(stride, 0)
        wanted = [
            builder.gep(start(1), [builder.mul(stride, builder.add(args[2], _constant(q)))])
            for q in range(_AT_ONCE)
        ]
        total = builder.gep(start(6), [builder.mul(args[2], _constant(2 * BLOCK))])
        repeat = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [i % 16 for i in range(_LANES)])

        before = builder.block
        loop, done = builder.append_basic_block("nibbles"), builder.append_basic_block("counted")
        builder.branch(loop)
        builder.position_at_end(loop)
        nibble = builder.phi(_i64)
        nibble.add_incoming(args[4], before)
        kept = [[builder.phi(register) for _ in range(n_registers)] for _ in range(_AT_ONCE)]
        plane = builder.mul(nibble, _constant(BLOCK))
        codes = [
            builder.load(at(start(3), builder.add(plane, _constant(i * _LANES)), register), align=16)
            for i in range(n_registers)
        ]
        added = []
        for q in range(_AT_ONCE):
            offset = builder.load(at(wanted[q], builder.mul(nibble, _constant(2)), _i16), align=2)
            found = builder.load(at(start(0), builder.zext(offset, _i64), table), align=16)
            if _LANES > 16:
                found = builder.shuffle_vector(found, ir.Constant(table, ir.Undefined), repeat)
            added.append(
                [builder.add(kept[q][i], builder.call(lookup, [found, codes[i]])) for i in range(n_registers)]
            )
        following = builder.add(nibble, _constant(1))
        nibble.add_incoming(following, loop)
        for q in range(_AT_ONCE):
            for i in range(n_registers):
                kept[q][i].add_incoming(ir.Constant(register, [0] * _LANES), before)
                kept[q][i].add_incoming(added[q][i], loop)
        builder.cbranch(builder.icmp_signed("<", following, args[5]), loop, done)
        builder.position_at_end(done)
        for q in range(_AT_ONCE):
            for i in range(n_registers):
                place = at(total, _constant(2 * (q * BLOCK + i * _LANES)), wide)
                builder.store(
                    builder.add(builder.load(place, align=2), builder.zext(added[q][i], wide)), place, align=2
                )
        return context.get_dummy_value()

    return types.void(*arguments), generate


@intrinsic
def _turn(typing: Any, words: Any, planes: Any, nibble: Any) -> Any:  # noqa: ARG001
    """Eight bytes of each code of a block, byte 8g + r of which `words` has at [r, g], to sixteen planes from `nibble` on.

    Eight by eight bytes are transposed in registers, by halves, quarters and eighths (Warren, Hacker's Delight, 7-3).
    """
    four = ir.VectorType(_i64, 4)

    def every(value: int) -> Any:
        return ir.Constant(four, [value] * 4)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        read, write = (
            builder.bitcast(
                context.make_array(signature.args[i])(context, builder, args[i]).data, _i8.as_pointer()
            )
            for i in (0, 1)
        )
        write = builder.gep(write, [builder.mul(args[2], _constant(BLOCK))])

        def place(base: Any, offset: int) -> Any:
            return builder.bitcast(builder.gep(base, [_constant(offset)]), four.as_pointer())

        for group in range(0, BLOCK, 32):
            x = [builder.load(place(read, r * BLOCK + group), align=16) for r in range(8)]
            for step, mask in ((4, 0x00000000FFFFFFFF), (2, 0x0000FFFF0000FFFF), (1, 0x00FF00FF00FF00FF)):
                shift = every(8 * step)
                for r in (r for r in range(8) if not r & step):
                    turned = builder.xor(builder.lshr(x[r], shift), x[r + step])
                    turned = builder.and_(turned, every(mask))
                    x[r] = builder.xor(x[r], builder.shl(turned, shift))
                    x[r + step] = builder.xor(x[r + step], turned)
            half = every(0x0F0F0F0F0F0F0F0F)
            for byte in range(8):
                upper = builder.and_(builder.lshr(x[byte], every(4)), half)
                for i, plane in enumerate((upper, builder.and_(x[byte], half))):
                    builder.store(plane, place(write, (2 * byte + i) * BLOCK + group), align=16)
        return context.get_dummy_value()

    return types.void(words, planes, nibble), generate


@intrinsic
def _byte(typing: Any, address: Any) -> Any:  # noqa: ARG001
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        return builder.load(builder.inttoptr(args[0], _i8.as_pointer()))

    return types.uint8(types.int64), generate


@_compiled
def _few(address, n):  # type: ignore[no-untyped-def]
    value = np.uint64(0)
    for i in range(n):
        value |= np.uint64(_byte(np.int64(address + i))) << np.uint64(8 * i)
    return value


@_compiled
def _load(address, size, places, words, planes):  # type: ignore[no-untyped-def]
    """The codes of `size` bytes at `places` (BLOCK offsets in bytes from `address`), as planes of nibbles.

    A line of the cache at a time, since the next code is farther away than the cache is large when codes are wide.
    """
    whole = size // 8
    for line in range(0, whole, _LINE):
        n = min(_LINE, whole - line)
        for r in range(8):
            for g in range(_GROUPS):
                at = np.int64(address + places[8 * g + r] + 8 * line)
                for i in range(n):
                    words[i, r, g] = _word(at + 8 * i)
        for i in range(n):
            _turn(words[i], planes, np.int64(16 * (line + i)))
    rest = size - 8 * whole
    if rest:
        down = np.uint64(64 - 8 * rest)
        for r in range(8):
            for g in range(_GROUPS):
                at = np.int64(address + places[8 * g + r])
                # Nothing past a code is read: its last word overlaps the one before it.
                words[0, r, g] = _word(at + size - 8) >> down if whole else _few(at, rest)
        _turn(words[0], planes, np.int64(16 * whole))


@intrinsic
def _fetch(typing: Any, address: Any) -> Any:  # noqa: ARG001
    """Begin to read the line of the cache at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        pointer, number = _i8.as_pointer(), ir.IntType(32)
        prefetch = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [pointer, number, number, number]),
            "llvm.prefetch.p0",
        )
        # To read, to be kept in the second level, data.
        builder.call(
            prefetch, [builder.inttoptr(args[0], pointer), *(ir.Constant(number, one) for one in (0, 2, 1))]
        )
        return context.get_dummy_value()

    return types.void(address), generate


@_compiled
def _fetch_block(address, size, rows, start, stop):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        at = np.int64(address + (rows[i] if len(rows) else i) * size)
        for line in range(0, size, 64):
            _fetch(at + line)


@_compiled
def _block(address, size, rows, start, m, stop, tables, patterns, places, words, planes, counts):  # type: ignore[no-untyped-def]
    """Distances of the `m` codes from row `start` on (of `rows`, if there are any) to all queries, in `counts`."""
    # The codes of the next block come in while this one is counted.
    _fetch_block(address, size, rows, start + m, min(start + m + BLOCK, stop))
    for i in range(BLOCK):
        row = start + min(i, m - 1)
        places[i] = (rows[row] if len(rows) else row) * size
    _load(address, size, places, words, planes)
    counts[:] = 0
    nibbles = 2 * size
    tiles = (nibbles + _TILE - 1) // _TILE
    for tile in range(tiles):
        first, last = np.int64(nibbles * tile // tiles), np.int64(nibbles * (tile + 1) // tiles)
        for query in range(0, len(patterns), _AT_ONCE):
            _count(tables, patterns, np.int64(query), planes, first, last, counts)


@_compiled
def _room(size, n_queries):  # type: ignore[no-untyped-def]
    """What `_block` writes to: places, words, planes and counts."""
    # Planes are written sixteen at a time, those past the last byte to be overwritten or left alone.
    return (
        np.empty(BLOCK, np.int64),
        np.empty((_LINE, 8, _GROUPS), np.uint64),
        np.empty((2 * size + 16, _GROUPS), np.uint64),
        np.empty((n_queries, BLOCK), np.uint16),
    )


@_compiled
def _replace_largest(heap, key):  # type: ignore[no-untyped-def]
    n, i = len(heap), 0
    while True:
        child = 2 * i + 1
        if child >= n:
            break
        if child + 1 < n and heap[child + 1] > heap[child]:
            child += 1
        if heap[child] <= key:
            break
        heap[i] = heap[child]
        i = child
    heap[i] = key


@_compiled
def nearest(address, size, rows, start, stop, tables, patterns, heaps):  # type: ignore[no-untyped-def]
    """Keys of the nearest codes of a shard, as heaps (q, k) whose first is the largest; a key is
    distance << ROW_BITS | row. `heaps` holds larger keys to begin with, and no more of them than there are rows."""
    places, words, planes, counts = _room(size, len(patterns))
    for first in range(start, stop, BLOCK):
        m = min(BLOCK, stop - first)
        _block(address, size, rows, first, m, stop, tables, patterns, places, words, planes, counts)
        for query in range(len(heaps)):
            heap, distances = heaps[query], counts[query]
            worst = np.uint16(min(heap[0] >> ROW_BITS, 65_535))
            nearer = False
            for i in range(BLOCK):
                nearer |= distances[i] < worst
            if not nearer:
                continue
            for i in range(m):
                # Rows ascend, so among equals the first to come stays.
                if distances[i] < heap[0] >> ROW_BITS:
                    _replace_largest(heap, (np.int64(distances[i]) << ROW_BITS) | (first + i))


@intrinsic
def _ones(typing: Any, word: Any) -> Any:  # noqa: ARG001
    """Bits of a word that are 1."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        return builder.ctpop(args[0])

    return types.int64(types.uint64), generate


@_compiled
def nearest_to_few(address, size, rows, start, stop, queries, heaps):  # type: ignore[no-untyped-def]
    """As `nearest`, code by code, for so few queries that turning the codes takes longer than it saves; `queries` are
    uint64 (q, words), the bytes of the last word that no code has being zero."""
    whole, rest = size // 8, size % 8
    down = np.uint64(64 - 8 * rest)
    for i in range(start, stop):
        at = np.int64(address + (rows[i] if len(rows) else i) * size)
        last = np.uint64(0)
        if rest:
            last = _word(at + size - 8) >> down if whole else _few(at, rest)
        for query in range(len(heaps)):
            distance = np.int64(0)
            for word in range(whole):
                distance += _ones(_word(at + 8 * word) ^ queries[query, word])
            if rest:
                distance += _ones(last ^ queries[query, whole])
            heap = heaps[query]
            if distance < heap[0] >> ROW_BITS:
                _replace_largest(heap, (distance << ROW_BITS) | i)


@_compiled
def distances(address, size, rows, start, stop, tables, patterns, found):  # type: ignore[no-untyped-def]
    """Distances of a shard's codes to all queries, in the columns `start` to `stop` of `found`, int32 (q, n)."""
    places, words, planes, counts = _room(size, len(patterns))
    for first in range(start, stop, BLOCK):
        m = min(BLOCK, stop - first)
        _block(address, size, rows, first, m, stop, tables, patterns, places, words, planes, counts)
        for query in range(len(found)):
            for i in range(m):
                found[query, first + i] = counts[query, i]


def empty_heaps(n_queries: int, k: int) -> Any:
    """What `nearest` begins with."""
    return np.full((n_queries, k), _NONE, np.int64)
