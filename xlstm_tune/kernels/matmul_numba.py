"""Matrix products and linear layers on a CPU in float32, for tall inputs and small weights, compiled by Numba.

Legend: R rows, K inputs, N outputs, a multiple of LANES; G groups, each with a weight of its own.

A tile of outputs is summed in registers (`register_products`): with AVX-512 24 vectors, as 6 rows × 4 vectors or 12
rows × 2 or 1. For each input, a tile loads its vectors of weights once and spreads one number a row. As long as the
weight stays in the second-level cache this is faster than a library's product, which packs its operands first.
"""

from __future__ import annotations

from typing import Any

import torch
from numba import njit
from torch import Tensor

from xlstm_tune.kernels.library import Kernel, register
from xlstm_tune.kernels.register_products import (
    add_product_1_1,
    add_product_4_1,
    add_product_4_4,
    add_product_8_2,
    add_product_16_1,
    product_6_4,
    product_12_1,
    product_12_2,
)
from xlstm_tune.kernels.simd import LANES
from xlstm_tune.kernels.tiles import f32, flat, kernel, run

ROWS = 12
"""Rows of a task; a last task of fewer begins earlier, and computes what it shares with its neighbour once more."""
CHUNK, _PARTS = 96, 16
"""The way back goes through rows by chunks that stay in cache, and sums by parts, so that threads share the work."""
LARGEST_WEIGHT = 2**16
"""Numbers of a weight up to which it stays in cache: 256 KiB."""


@njit(inline="always")
def multiply(x, at, row, count, weight, at_weight, width, out, at_out, row_out):
    """ROWS rows of x, `row` apart from `at` on, times weight [K = count, N = width], to rows of out `row_out` apart."""
    column = 0
    while width - column >= 4 * LANES:
        product_6_4(x, at, row, 1, count, weight, at_weight + column, width, out, at_out + column, row_out)
        product_6_4(
            x,
            at + 6 * row,
            row,
            1,
            count,
            weight,
            at_weight + column,
            width,
            out,
            at_out + 6 * row_out + column,
            row_out,
        )
        column += 4 * LANES
    while width - column >= 2 * LANES:
        product_12_2(x, at, row, 1, count, weight, at_weight + column, width, out, at_out + column, row_out)
        column += 2 * LANES
    if column < width:
        product_12_1(x, at, row, 1, count, weight, at_weight + column, width, out, at_out + column, row_out)


@kernel
def _matmul(
    first, end, rows, count, width, x, x_at, x_group, x_row, weight, out, out_at, out_group, out_row
):  # fmt: skip
    """Tasks first..end, each ROWS rows of a group; where x and out begin, and how far groups and rows are apart."""
    tasks = (rows + ROWS - 1) // ROWS
    for task in range(first, end):
        group, start = task // tasks, min(task % tasks * ROWS, rows - ROWS)
        multiply(
            x, x_at + group * x_group + start * x_row, x_row, count, weight, group * count * width, width,
            out, out_at + group * out_group + start * out_row, out_row,
        )  # fmt: skip


@njit(inline="always")
def add_outer(y, from_y, y_row, width, x, from_x, x_row, count, rows, out, to):
    """Add yᵀ x [N, K] of `rows` rows to out; y [., N = width], x [., K = count], rows y_row and x_row apart."""
    column = 0
    while count - column >= 4 * LANES:
        for feature in range(0, width, 4):
            add_product_4_4(
                y,
                from_y + feature,
                1,
                y_row,
                rows,
                x,
                from_x + column,
                x_row,
                out,
                to + feature * count + column,
                count,
            )
        column += 4 * LANES
    while count - column >= 2 * LANES:
        for feature in range(0, width, 8):
            add_product_8_2(
                y,
                from_y + feature,
                1,
                y_row,
                rows,
                x,
                from_x + column,
                x_row,
                out,
                to + feature * count + column,
                count,
            )
        column += 2 * LANES
    if column < count:
        for feature in range(0, width, 16):
            add_product_16_1(
                y,
                from_y + feature,
                1,
                y_row,
                rows,
                x,
                from_x + column,
                x_row,
                out,
                to + feature * count + column,
                count,
            )


@njit(inline="always")
def add_column(x, at, row, step, rows, count, column, from_column, apart, out, to, out_row):
    """Add x [rows, count] times column [count, LANES] to out [rows, LANES], for any number of rows.

    Element (r, k) of x is at + r · row + k · step; rows of column and out lie `apart` and `out_row` from each other.
    """
    first = 0
    while rows - first >= 16:
        add_product_16_1(
            x, at + first * row, row, step, count, column, from_column, apart, out, to + first * out_row, out_row
        )
        first += 16
    while rows - first >= 4:
        add_product_4_1(
            x, at + first * row, row, step, count, column, from_column, apart, out, to + first * out_row, out_row
        )
        first += 4
    while first < rows:
        add_product_1_1(
            x, at + first * row, row, step, count, column, from_column, apart, out, to + first * out_row, out_row
        )
        first += 1


@kernel
def _matmul_backward(
    first, end, parts, rows, width, count, grad, grad_at, grad_group, grad_row, x, x_at, x_group, x_row, weight,
    d_x, d_x_at, d_x_group, d_x_row, d_weight,
):  # fmt: skip
    """Tasks first..end, each a part of a group's rows: d_x = grad weight, and its share of gradᵀ x.

    grad [G, R, N = width], x and d_x [G, R, K = count], weight [G, N, K], d_weight [G, parts, N, K].
    """
    share = share_of(rows, parts)
    for task in range(first, end):
        group, to = task // parts, task * width * count
        for place in range(to, to + width * count):
            d_weight[place] = f32(0)
        from_grad, from_x, to_x = grad_at + group * grad_group, x_at + group * x_group, d_x_at + group * d_x_group
        for row in range(task % parts * share, min((task % parts + 1) * share, rows), CHUNK):
            some = min(CHUNK, rows - row)
            for start in range(row, row + some, ROWS):
                block = min(start, rows - ROWS)
                multiply(
                    grad, from_grad + block * grad_row, grad_row, width, weight, group * width * count, count,
                    d_x, to_x + block * d_x_row, d_x_row,
                )  # fmt: skip
            add_outer(
                grad, from_grad + row * grad_row, grad_row, width, x, from_x + row * x_row, x_row, count, some,
                d_weight, to,
            )  # fmt: skip


@kernel
def _outer(first, end, parts, rows, width, count, grad, grad_at, grad_group, grad_row, x, x_at, x_group, x_row, out):
    """As `_matmul_backward`, the weight's gradient alone: out [G, parts, N, K]."""
    share = share_of(rows, parts)
    for task in range(first, end):
        group, to = task // parts, task * width * count
        for place in range(to, to + width * count):
            out[place] = f32(0)
        row = task % parts * share
        some = min(share, rows - row)
        if some > 0:
            from_grad, from_x = grad_at + group * grad_group + row * grad_row, x_at + group * x_group + row * x_row
            add_outer(grad, from_grad, grad_row, width, x, from_x, x_row, count, some, out, to)


@njit(inline="always")
def share_of(rows, parts):
    """Rows of a part, whole chunks."""
    return (rows + parts * CHUNK - 1) // (parts * CHUNK) * CHUNK


def parts_of(rows: int) -> int:
    """Parts into which so many rows are split."""
    return min(_PARTS, -(-rows // CHUNK))


def fits(rows: int, count: int, width: int) -> bool:
    """Whether `matmul` can compute such a product, and is the faster way."""
    return rows >= ROWS and width % LANES == 0 and count * width <= LARGEST_WEIGHT


def matmul(x: Tensor, weight: Tensor, out: Tensor) -> None:
    """out [G, R, N] = x [G, R, K] @ weight [G, K, N]; x and out may be strided, but not along their last axis.

    All float32 on a CPU, and as `fits` says.
    """
    groups, rows, count = x.shape
    width = out.shape[2]
    tasks = groups * -(-rows // ROWS)
    run(
        _matmul, tasks, rows, count, width, *_strided(x), flat(weight.contiguous()), *_strided(out)
    )  # fmt: skip


def matmul_backward(grad: Tensor, x: Tensor, weight: Tensor, d_x: Tensor) -> Tensor:
    """d_x [G, R, K] = grad [G, R, N] @ weight [G, N, K]; returns gradᵀ x [G, N, K], for x [G, R, K].

    All float32 on a CPU; grad, x and d_x may be strided, but not along their last axis; N and K multiples of LANES.
    """
    groups, rows, width = grad.shape
    count, parts = x.shape[2], parts_of(rows)
    d_weight = x.new_empty(groups, parts, width, count)
    run(
        _matmul_backward, groups * parts, parts, rows, width, count, *_strided(grad), *_strided(x),
        flat(weight.contiguous()), *_strided(d_x), flat(d_weight),
    )  # fmt: skip
    return d_weight.sum(1)


def outer(grad: Tensor, x: Tensor) -> Tensor:
    """gradᵀ x [G, N, K], for grad [G, R, N] and x [G, R, K]; conditions as for `matmul_backward`."""
    groups, rows, width = grad.shape
    count, parts = x.shape[2], parts_of(rows)
    out = x.new_empty(groups, parts, width, count)
    run(_outer, groups * parts, parts, rows, width, count, *_strided(grad), *_strided(x), flat(out))
    return out.sum(1)


def _strided(tensor: Tensor) -> tuple[Any, ...]:
    """The memory of a tensor [G, R, ·], where it begins there, how far its groups and its rows are apart."""
    base = tensor.detach().as_strided((tensor.untyped_storage().nbytes() // 4,), (1,), 0)
    return base.numpy(), tensor.storage_offset(), tensor.stride(0), tensor.stride(1)


def forward(x: Tensor, weight: Tensor, train: bool) -> tuple[Tensor, ...]:
    """x [G, R, K], weight [G, N, K] → [G, R, N]."""
    y = x.new_empty(*x.shape[:2], weight.shape[1])
    matmul(x, weight.mT, y)
    return (y,)


def backward(x: Tensor, weight: Tensor, grad: Tensor | None) -> tuple[Tensor, ...]:
    """Gradients of (x, weight)."""
    if grad is None:
        return torch.zeros_like(x), torch.zeros_like(weight)
    grad, d_x = grad.contiguous(), torch.empty_like(x)
    return d_x, matmul_backward(grad, x, weight, d_x)


def _forward_shapes(x: Tensor, weight: Tensor, train: bool) -> tuple[Tensor, ...]:
    return (x.new_empty(*x.shape[:2], weight.shape[1]),)


def _backward_shapes(x: Tensor, weight: Tensor, grad: Tensor | None) -> tuple[Tensor, ...]:
    return torch.empty_like(x), torch.empty_like(weight)


_in_layout = register(
    Kernel(
        name="linear_numba",
        inputs={"x": 0, "weight": 0},
        constants={},
        outputs={"y": 0},
        saved={},
        needs=("x", "weight"),
        forward=forward,
        backward=backward,
        forward_shapes=_forward_shapes,
        backward_shapes=_backward_shapes,
    )
)


def linear_fits(x: Tensor, weight: Tensor) -> bool:
    """Whether the sizes of x [B, T, K] and weight [N, K] suit `linear_numba`."""
    rows, (width, count) = x.shape[0] * x.shape[1], weight.shape
    return fits(rows, count, width) and fits(rows, width, count)  # the way back needs both to be multiples of LANES


def linear_numba(x: Tensor, weight: Tensor) -> Tensor:
    """x [B, T, K], weight [N, K] → x weightᵀ [B, T, N]."""
    rows = x.flatten(0, 1).unsqueeze(0).contiguous()
    (y,) = _in_layout(rows, weight.unsqueeze(0).contiguous())
    return y.view(*x.shape[:2], -1)
