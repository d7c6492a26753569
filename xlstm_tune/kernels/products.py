"""Small matrix products in registers for Numba kernels: eight rows of a result by LANES columns at a time.

A product a @ b is built up by `onto`: for each step of the inner axis one vector of b meets eight single numbers of a.
The numbers of a may lie anywhere at fixed strides, so a may as well be transposed; b's rows must be contiguous. Rows
and columns are padded by the caller: rows to a multiple of 8, columns to a multiple of LANES.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from xlstm_tune.kernels.simd import CONTRACT, LANES, WIDE, load, prefetch, splat, spread, store, transpose

ROWS = 8
"""Rows in registers at a time: enough independent sums to hide the latency of a fused product and sum."""


@njit
def zeros():
    """Eight rows of zeros."""
    zero = splat(np.float32(0))
    return zero, zero, zero, zero, zero, zero, zero, zero


@njit(fastmath=CONTRACT)
def onto(rows, a, at, row, step, b, b_at, b_step, count):
    """rows + a @ b over an inner axis of `count`. Element (r, k) of a is at + r · row + k · step; row k of b starts at
    b_at + k · b_step."""
    r0, r1, r2, r3, r4, r5, r6, r7 = rows
    if WIDE:
        for _ in range(count):
            x = load(b, b_at)
            r0 = r0 + spread(a, at) * x
            r1 = r1 + spread(a, at + row) * x
            r2 = r2 + spread(a, at + 2 * row) * x
            r3 = r3 + spread(a, at + 3 * row) * x
            r4 = r4 + spread(a, at + 4 * row) * x
            r5 = r5 + spread(a, at + 5 * row) * x
            r6 = r6 + spread(a, at + 6 * row) * x
            r7 = r7 + spread(a, at + 7 * row) * x
            at += step
            b_at += b_step
        return r0, r1, r2, r3, r4, r5, r6, r7
    r0, r1, r2, r3 = _onto_four(r0, r1, r2, r3, a, at, row, step, b, b_at, b_step, count)
    r4, r5, r6, r7 = _onto_four(r4, r5, r6, r7, a, at + 4 * row, row, step, b, b_at, b_step, count)
    return r0, r1, r2, r3, r4, r5, r6, r7


@njit(forceinline=True, fastmath=CONTRACT)
def _onto_four(r0, r1, r2, r3, a, at, row, step, b, b_at, b_step, count):
    """As `onto`, of the four rows that fit into the registers of AVX2."""
    for _ in range(count):
        x = load(b, b_at)
        r0 = r0 + spread(a, at) * x
        r1 = r1 + spread(a, at + row) * x
        r2 = r2 + spread(a, at + 2 * row) * x
        r3 = r3 + spread(a, at + 3 * row) * x
        at += step
        b_at += b_step
    return r0, r1, r2, r3


@njit
def get(a, at, row):
    """Eight rows from memory, `row` apart."""
    return (
        load(a, at), load(a, at + row), load(a, at + 2 * row), load(a, at + 3 * row),
        load(a, at + 4 * row), load(a, at + 5 * row), load(a, at + 6 * row), load(a, at + 7 * row),
    )  # fmt: skip


@njit
def put(rows, a, at, row):
    """Eight rows to memory, `row` apart."""
    r0, r1, r2, r3, r4, r5, r6, r7 = rows
    store(a, at, r0)
    store(a, at + row, r1)
    store(a, at + 2 * row, r2)
    store(a, at + 3 * row, r3)
    store(a, at + 4 * row, r4)
    store(a, at + 5 * row, r5)
    store(a, at + 6 * row, r6)
    store(a, at + 7 * row, r7)


@njit(fastmath=CONTRACT)
def times(rows, x):
    """Each row times the vector or number x."""
    r0, r1, r2, r3, r4, r5, r6, r7 = rows
    return r0 * x, r1 * x, r2 * x, r3 * x, r4 * x, r5 * x, r6 * x, r7 * x


@njit(fastmath=CONTRACT)
def times_each(rows, a, at):
    """Row r times the number a[at + r]."""
    r0, r1, r2, r3, r4, r5, r6, r7 = rows
    return (
        r0 * spread(a, at), r1 * spread(a, at + 1), r2 * spread(a, at + 2), r3 * spread(a, at + 3),
        r4 * spread(a, at + 4), r5 * spread(a, at + 5), r6 * spread(a, at + 6), r7 * spread(a, at + 7),
    )  # fmt: skip


@njit
def padded(size):
    """The next multiple of LANES."""
    return (size + LANES - 1) // LANES * LANES


@njit
def copy_in(rows, at, stride, count, width, block, block_width, block_rows):
    """Rows [count, width], `stride` apart in a flat array → block [block_rows, block_width]; zeros in further rows and
    columns, where something that is not finite may have been left."""
    whole = width - width % LANES
    for row in range(count):
        place = row * block_width
        for start in range(0, whole, LANES):
            store(block, place + start, load(rows, at + start))
        for feature in range(whole, width):
            block[place + feature] = rows[at + feature]
        for feature in range(width, block_width):
            block[place + feature] = np.float32(0)
        at += stride
    for place in range(count * block_width, block_rows * block_width, LANES):
        store(block, place, splat(np.float32(0)))


@njit
def fetch(rows, at, stride, count, width):
    """Ask for rows [count, width], `stride` apart in a flat array, ahead of their use."""
    for row in range(count):
        for start in range(0, width, LANES):
            prefetch(rows, at + row * stride + start)


@njit
def copy_out(block, block_width, count, width, rows, at, stride):
    """Block [count, block_width] → rows [count, width], `stride` apart in a flat array."""
    whole = width - width % LANES
    for row in range(count):
        place = row * block_width
        for start in range(0, whole, LANES):
            store(rows, at + start, load(block, place + start))
        for feature in range(whole, width):
            rows[at + feature] = block[place + feature]
        at += stride


@njit
def turn(source, source_width, rows, columns, target, target_width):
    """Block [rows, source_width] → its transpose [columns, target_width], in squares of LANES."""
    for row in range(0, rows, LANES):
        for column in range(0, columns, LANES):
            transpose(
                source, row * source_width + column, source_width, target, column * target_width + row, target_width
            )
