"""The gated feed-forward, down(activation(gate) · up), on a CPU in float32: a few rows at a time, all products and the
activation while they are in cache, compiled by Numba. The next block's rows are asked for during the activation.

Legend: R rows (samples and steps), E features, F inner features, G groups (members), each with weights of its own.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from xlstm_tune.kernels.library import Kernel, register
from xlstm_tune.kernels.matmul_numba import CHUNK, ROWS, add_outer, fits, multiply, parts_of, share_of
from xlstm_tune.kernels.products import fetch
from xlstm_tune.kernels.simd import CONTRACT, LANES, exp, load, select, sigmoid_and_slope, splat, store, with_sign
from xlstm_tune.kernels.tiles import f32, flat, kernel, run

KINDS = ("gelu", "silu", "relu")


@njit(inline="always", fastmath=CONTRACT)
def _normal(x):
    """(Φ(x), φ(x)) of the standard normal distribution.

    Φ(-|x|) = φ · a polynomial in 1 / (1 + p |x|), to 1e-7 (Abramowitz and Stegun 1964, 7.1.26, with x / √2 for x).
    """
    positive = x > f32(0)
    size = with_sign(x, splat(f32(1)))
    bell = exp(x * x * f32(-0.5))
    t = f32(1) / (size * f32(0.3275911 * 0.7071067811865476) + f32(1))
    series = t * f32(1.061405429) + f32(-1.453152027)
    series = series * t + f32(1.421413741)
    series = series * t + f32(-0.284496736)
    series = series * t + f32(0.254829592)
    tail = series * t * bell * f32(0.5)
    return select(positive, f32(1) - tail, tail), bell * f32(0.3989422804014327)


@njit(inline="always", fastmath=CONTRACT)
def _activation(x, kind):
    """(the activation, its derivative)."""
    if kind == 0:
        share, density = _normal(x)
        return x * share, x * density + share
    if kind == 1:
        share, rest = sigmoid_and_slope(x)
        return x * share, share * (x * rest + f32(1))
    step = select(x > f32(0), splat(f32(1)), splat(f32(0)))
    return x * step, step


@kernel
def _forward(first, end, rows, width, inner, kind, x, up, down, y, halves):
    """Tasks first..end, each ROWS rows of a group; flat arrays.

    x, y [G, R, E], up [G, E, 2 F] and down [G, F, E], transposed; halves [G, R, 2 F]: gate and up.
    """
    tasks = (rows + ROWS - 1) // ROWS
    active = np.empty(ROWS * inner, np.float32)
    for task in range(first, end):
        group = task // tasks
        start = group * rows + min(task % tasks * ROWS, rows - ROWS)
        multiply(
            x, start * width, width, width, up, group * width * 2 * inner, 2 * inner,
            halves, start * 2 * inner, 2 * inner,
        )  # fmt: skip
        for row in range(ROWS):
            at = (start + row) * 2 * inner
            for rows_of in (x, y):
                fetch(rows_of, (start + row + ROWS) * width, width, 1, width)
            for feature in range(0, inner, LANES):
                fetch(halves, at + ROWS * 2 * inner + feature, inner, 2, LANES)
                value, _ = _activation(load(halves, at + feature), kind)
                store(active, row * inner + feature, value * load(halves, at + inner + feature))
        multiply(active, 0, inner, inner, down, group * inner * width, width, y, start * width, width)


@kernel
def _backward(first, end, parts, rows, width, inner, kind, x, up, down, halves, grad, d_x, d_up, d_down):
    """Tasks first..end, each a part of a group's rows, by chunks: x, halves, grad and d_x as in `_forward`.

    up [G, 2 F, E], down [G, E, F]; d_up and d_down [G, parts, ...] are the parts' shares.
    """
    share = share_of(rows, parts)
    # A last block of rows may begin before its chunk.
    d_halves = np.empty((CHUNK + ROWS) * 2 * inner, np.float32)
    active = np.empty((CHUNK + ROWS) * inner, np.float32)
    for task in range(first, end):
        group = task // parts
        to_up, to_down = task * 2 * inner * width, task * width * inner
        for place in range(2 * inner * width):
            d_up[to_up + place] = f32(0)
        for place in range(width * inner):
            d_down[to_down + place] = f32(0)
        for chunk in range(task % parts * share, min((task % parts + 1) * share, rows), CHUNK):
            some = min(CHUNK, rows - chunk)
            for begin in range(chunk, chunk + some, ROWS):
                block = min(begin, rows - ROWS)
                start, here = group * rows + block, block - chunk + ROWS
                multiply(
                    grad, start * width, width, width, down, group * width * inner, inner, active, here * inner, inner
                )
                for row in range(ROWS):
                    at, at_active, at_halves = (start + row) * 2 * inner, (here + row) * inner, (here + row) * 2 * inner
                    for rows_of in (x, grad, d_x):
                        fetch(rows_of, (start + row + ROWS) * width, width, 1, width)
                    for feature in range(0, inner, LANES):
                        fetch(halves, at + ROWS * 2 * inner + feature, inner, 2, LANES)
                        value, slope = _activation(load(halves, at + feature), kind)
                        factor = load(halves, at + inner + feature)
                        through = load(active, at_active + feature)
                        store(d_halves, at_halves + feature, through * factor * slope)
                        store(d_halves, at_halves + inner + feature, through * value)
                        store(active, at_active + feature, value * factor)
                multiply(
                    d_halves, here * 2 * inner, 2 * inner, 2 * inner, up, group * 2 * inner * width, width,
                    d_x, start * width, width,
                )  # fmt: skip
            start = (group * rows + chunk) * width
            add_outer(d_halves, ROWS * 2 * inner, 2 * inner, 2 * inner, x, start, width, width, some, d_up, to_up)
            add_outer(grad, start, width, width, active, ROWS * inner, inner, inner, some, d_down, to_down)


def _tasks(x: Tensor) -> int:
    return len(x) * -(-x.shape[1] // ROWS)


def forward(x: Tensor, up: Tensor, down: Tensor, train: bool, kind: int) -> tuple[Tensor, ...]:
    """x [G, R, E], up [G, 2 F, E], down [G, E, F] → the output [G, R, E], and gate and up [G, R, 2 F]."""
    y, halves = torch.empty_like(x), x.new_empty(*x.shape[:2], up.shape[1])
    _, rows, width = x.shape
    tensors = (x, up.mT.contiguous(), down.mT.contiguous(), y, halves)
    run(_forward, _tasks(x), rows, width, down.shape[2], kind, *map(flat, tensors))
    return y, halves if train else halves[:, :0].clone()


def backward(x: Tensor, up: Tensor, down: Tensor, halves: Tensor, grad: Tensor | None, kind: int) -> tuple[Tensor, ...]:
    """Gradients of (x, up, down)."""
    if grad is None:
        return torch.zeros_like(x), torch.zeros_like(up), torch.zeros_like(down)
    groups, rows, width = x.shape
    inner, parts = down.shape[2], parts_of(rows)
    d_x, d_up, d_down = (
        torch.empty_like(x),
        x.new_empty(groups, parts, *up.shape[1:]),
        x.new_empty(groups, parts, *down.shape[1:]),
    )
    tensors = (x, up, down, halves, grad.contiguous(), d_x, d_up, d_down)
    run(_backward, groups * parts, parts, rows, width, inner, kind, *map(flat, tensors))
    return d_x, d_up.sum(1), d_down.sum(1)


def _forward_shapes(x: Tensor, up: Tensor, down: Tensor, train: bool, kind: int) -> tuple[Tensor, ...]:
    return torch.empty_like(x), x.new_empty(len(x), x.shape[1] if train else 0, up.shape[1])


def _backward_shapes(x: Tensor, up: Tensor, down: Tensor, *_: object) -> tuple[Tensor, ...]:
    return torch.empty_like(x), torch.empty_like(up), torch.empty_like(down)


_in_layout = register(
    Kernel(
        name="feed_forward_numba",
        inputs={"x": 0, "up": 0, "down": 0},
        constants={},
        outputs={"y": 0},
        saved={"halves": 0},
        needs=("x", "up", "down"),
        forward=forward,
        backward=backward,
        forward_shapes=_forward_shapes,
        backward_shapes=_backward_shapes,
        options={"kind": "int"},
    )
)


def feed_forward_fits(x: Tensor, up: Tensor, down: Tensor) -> bool:
    """Whether the sizes of x [B, T, E] and of the weights suit `feed_forward_numba`."""
    rows, width, inner = x.shape[0] * x.shape[1], x.shape[2], down.shape[1]
    return inner % LANES == 0 and fits(rows, 2 * inner, width) and fits(rows, width, 2 * inner)


def feed_forward_numba(x: Tensor, up: Tensor, down: Tensor, activation: str) -> Tensor:
    """x [B, T, E], up [2 F, E] (gate, then up), down [E, F] → [B, T, E]; one of KINDS, gelu being the exact one."""
    rows = x.flatten(0, 1).unsqueeze(0).contiguous()
    (y,) = _in_layout(rows, up.unsqueeze(0).contiguous(), down.unsqueeze(0).contiguous(), kind=KINDS.index(activation))
    return y.view(x.shape)
