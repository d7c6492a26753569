"""All that the mLSTM cell is fed with, on a CPU in float32, from its inner input in one pass each way.

Convolution, q, k, v and gates by themselves would each write results to memory and their gradients too, and autograd
would add up those that belong to one tensor. Here a sample's steps stay in the second-level cache.

Legend: B batch, T steps, M members that vmap laid side by side (1 without it), P features of a member, R rows, the
gates of a member, a multiple of ROWS. x, c, q, k, v [B, T, M P]; gates [B, T, M, R]. The convolution has four taps, and
the blocks of q, k and v four features: their weights stand by turn, [3, 4, M P], as in `qkv_numba`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor

from xlstm_tune.kernels.conv_numba import store_taps, tap_sum, to_input
from xlstm_tune.kernels.library import Kernel, register
from xlstm_tune.kernels.qkv_numba import BLOCK, by_turn, from_turns, project
from xlstm_tune.kernels.simd import CONTRACT, LANES, load, sigmoid_and_slope, splat, spread, store, sum_lanes, turn
from xlstm_tune.kernels.tiles import f32, flat, floats, kernel, run

ROWS = 4
"""Rows at a time: as many independent sums as hide the latency of one."""


@njit(forceinline=True, fastmath=CONTRACT)
def convolve(x, taps, bias, sample, steps, step, full, first, width, c, at_c, slope=None):
    """SiLU of the convolution for features first .. first + width of a step, to c from `at_c` on; its slope likewise.

    Zeros stand before step 0.
    """
    for feature in range(first, first + width, LANES):
        at = (sample * steps + step) * full + feature
        zero = splat(f32(0))
        x1 = load(x, at - full) if step >= 1 else zero
        x2 = load(x, at - 2 * full) if step >= 2 else zero
        x3 = load(x, at - 3 * full) if step >= 3 else zero
        total = tap_sum(taps, bias, full, feature, load(x, at), x1, x2, x3)
        share, rest = sigmoid_and_slope(total)
        store(c, at_c + feature - first, total * share)
        if slope is not None:
            store(slope, at_c + feature - first, share * (total * rest + f32(1)))


@njit(forceinline=True, fastmath=CONTRACT)
def last_inputs(d_x, start, steps, full, taps, place, t1, t2, t3, b1, b2, b3):
    """Gradients of the last three inputs, whose later steps do not exist: of the step before the end the convolution's
    sum has the gradient t1, and the input has received b1 elsewhere; of the one before it t2 and b2, then t3 and b3."""
    zero, end = splat(f32(0)), start + steps * full
    if steps >= 3:
        store(d_x, end - 3 * full, b3 + to_input(taps, full, place, zero, t1, t2, t3))
    if steps >= 2:
        store(d_x, end - 2 * full, b2 + to_input(taps, full, place, zero, zero, t1, t2))
    store(d_x, end - full, b1 + to_input(taps, full, place, zero, zero, zero, t1))


@njit(forceinline=True, fastmath=CONTRACT)
def add_rows(x, at, weight, row, width, s0, s1, s2, s3):
    """Four sums of vectors, to each of which x [width] from `at` on times a row of weight [.., width] is added."""
    for feature in range(0, width, LANES):
        one = load(x, at + feature)
        s0 = s0 + one * load(weight, row + feature)
        s1 = s1 + one * load(weight, row + width + feature)
        s2 = s2 + one * load(weight, row + 2 * width + feature)
        s3 = s3 + one * load(weight, row + 3 * width + feature)
    return s0, s1, s2, s3


@njit(forceinline=True, fastmath=CONTRACT)
def outer_rows(steps, by_row, at, stride, x, at_x, stride_x, out, at_out, width):
    """Four rows of Σ over steps of by_row [.., 4 rows] times LANES features of x, to out [4, width]."""
    s0, s1, s2, s3 = splat(f32(0)), splat(f32(0)), splat(f32(0)), splat(f32(0))
    for step in range(steps):
        one, place = load(x, at_x + step * stride_x), at + step * stride
        s0 = s0 + spread(by_row, place) * one
        s1 = s1 + spread(by_row, place + 1) * one
        s2 = s2 + spread(by_row, place + 2) * one
        s3 = s3 + spread(by_row, place + 3) * one
    store(out, at_out, s0)
    store(out, at_out + width, s1)
    store(out, at_out + 2 * width, s2)
    store(out, at_out + 3 * width, s3)


@kernel
def sources_forward(
    first, end, steps, width, members, rows, x, taps, bias, weight, by_c, by_x, c, q, k, v, gates, slope=None
):  # fmt: skip
    """Tasks first..end, each a sample and a member; taps [4, M P], bias [M P], by_c and by_x [M, R, P]; all flat.

    slope: as c, for `sources_backward`; None = it is not wanted.
    """
    full = members * width
    zero = splat(f32(0))
    for task in range(first, end):
        sample, member = task // members, task % members
        for step in range(steps):
            at = (sample * steps + step) * full + member * width
            convolve(x, taps, bias, sample, steps, step, full, member * width, width, c, at, slope)
            for feature in range(0, width, LANES):
                place = member * width + feature
                seen = load(c, at + feature)
                store(q, at + feature, project(weight, place, full, seen))
                store(k, at + feature, project(weight, 4 * full + place, full, seen))
                store(v, at + feature, project(weight, 8 * full + place, full, load(x, at + feature)))
            to = ((sample * steps + step) * members + member) * rows
            for row in range(0, rows, ROWS):
                of_row = (member * rows + row) * width
                s0, s1, s2, s3 = add_rows(c, at, by_c, of_row, width, zero, zero, zero, zero)
                s0, s1, s2, s3 = add_rows(x, at, by_x, of_row, width, s0, s1, s2, s3)
                gates[to + row], gates[to + row + 1] = sum_lanes(s0), sum_lanes(s1)
                gates[to + row + 2], gates[to + row + 3] = sum_lanes(s2), sum_lanes(s3)


@kernel
def sources_backward(
    first, end, steps, width, members, rows, x, taps, bias, turned, by_c, by_x, d_c, d_q, d_k, d_v, d_gates,
    d_x, d_taps, d_bias, d_weight, d_by_c, d_by_x, c=None, slope=None,
):  # fmt: skip
    """As `sources_forward`; turned: the weights of q, k and v as the way back sees them. c and its slope are computed
    again where they are not given.

    d_taps [B, 4, M P], d_bias [B, M P], d_weight [B, 3, 4, M P], d_by_c and d_by_x [B, M, R, P] are the samples'
    shares.
    """
    full = members * width
    zero = splat(f32(0))
    column = floats(steps * LANES)
    for task in range(first, end):
        sample, member = task // members, task % members
        for feature in range(0, width, LANES):
            place = member * width + feature
            start, of_row = sample * steps * full + place, member * rows * width + feature
            # Of the three steps before: inputs, gradients of the convolution's sums, and what the inputs have received.
            x1, x2, x3, t1, t2, t3, b1, b2, b3 = zero, zero, zero, zero, zero, zero, zero, zero, zero
            tap0, tap1, tap2, tap3, shift = zero, zero, zero, zero, zero
            q0, q1, q2, q3, k0, k1, k2, k3, v0, v1, v2, v3 = (
                zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero,
            )  # fmt: skip
            for step in range(steps):
                at = start + step * full
                x0 = load(x, at)
                if slope is None:
                    total = tap_sum(taps, bias, full, place, x0, x1, x2, x3)
                    share, rest = sigmoid_and_slope(total)
                    seen, steep = total * share, share * (total * rest + f32(1))
                    store(column, step * LANES, seen)
                else:
                    seen, steep = load(c, at), load(slope, at)
                raw = x0
                dq, dk, dv = load(d_q, at), load(d_k, at), load(d_v, at)
                b0 = project(turned, 8 * full + place, full, dv)
                through = project(turned, place, full, dq) + project(turned, 4 * full + place, full, dk)
                through = through + load(d_c, at)
                from_row = ((sample * steps + step) * members + member) * rows
                for row in range(rows):
                    of_gate = spread(d_gates, from_row + row)
                    through = through + of_gate * load(by_c, of_row + row * width)
                    b0 = b0 + of_gate * load(by_x, of_row + row * width)
                t0 = through * steep
                if step >= 3:
                    store(d_x, at - 3 * full, b3 + to_input(taps, full, place, t0, t1, t2, t3))
                tap0, tap1, tap2, tap3 = tap0 + t0 * x3, tap1 + t0 * x2, tap2 + t0 * x1, tap3 + t0 * x0
                shift = shift + t0
                q0, k0, v0 = q0 + dq * seen, k0 + dk * seen, v0 + dv * raw
                seen, raw = turn(seen), turn(raw)
                q1, k1, v1 = q1 + dq * seen, k1 + dk * seen, v1 + dv * raw
                seen, raw = turn(seen), turn(raw)
                q2, k2, v2 = q2 + dq * seen, k2 + dk * seen, v2 + dv * raw
                seen, raw = turn(seen), turn(raw)
                q3, k3, v3 = q3 + dq * seen, k3 + dk * seen, v3 + dv * raw
                x1, x2, x3, t1, t2, t3, b1, b2, b3 = x0, x1, x2, t0, t1, t2, b0, b1, b2
            last_inputs(d_x, start, steps, full, taps, place, t1, t2, t3, b1, b2, b3)
            store_taps(d_taps, d_bias, sample, full, place, tap0, tap1, tap2, tap3, shift)
            at = sample * 3 * BLOCK * full + place
            store(d_weight, at, q0)
            store(d_weight, at + full, q1)
            store(d_weight, at + 2 * full, q2)
            store(d_weight, at + 3 * full, q3)
            store(d_weight, at + 4 * full, k0)
            store(d_weight, at + 5 * full, k1)
            store(d_weight, at + 6 * full, k2)
            store(d_weight, at + 7 * full, k3)
            store(d_weight, at + 8 * full, v0)
            store(d_weight, at + 9 * full, v1)
            store(d_weight, at + 10 * full, v2)
            store(d_weight, at + 11 * full, v3)
            for row in range(0, rows, ROWS):
                slopes = (sample * steps * members + member) * rows + row
                to = ((sample * members + member) * rows + row) * width + feature
                if slope is None:
                    outer_rows(steps, d_gates, slopes, members * rows, column, 0, LANES, d_by_c, to, width)
                else:
                    outer_rows(steps, d_gates, slopes, members * rows, c, start, full, d_by_c, to, width)
                outer_rows(steps, d_gates, slopes, members * rows, x, start, full, d_by_x, to, width)


def _sizes(x: Tensor, by_c: Tensor) -> tuple[int, ...]:
    """(tasks, steps, width, members, rows)."""
    members, rows, width = by_c.shape
    return x.shape[0] * members, x.shape[1], width, members, rows


def forward(
    x: Tensor, taps: Tensor, bias: Tensor, q: Tensor, k: Tensor, v: Tensor, by_c: Tensor, by_x: Tensor, train: bool
) -> tuple[Tensor, ...]:
    """x [B, T, M P], taps [4, M P], bias [M P], q, k, v [M P / 4, 4 out, 4 in], by_c and by_x [M, R, P] → c, and the
    projections q, k (of c) and v (of x), [B, T, M P]; gates [B, T, M, R], rows by_c of c plus rows by_x of x."""
    found = forward_shapes(x, taps, bias, q, k, v, by_c, by_x)
    weight = by_turn(torch.stack([q, k, v]), False)
    run(sources_forward, *_sizes(x, by_c), *map(flat, (x, taps, bias, weight, by_c, by_x, *found)))
    return found


def backward(
    x: Tensor, taps: Tensor, bias: Tensor, q: Tensor, k: Tensor, v: Tensor, by_c: Tensor, by_x: Tensor,
    *gradients: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of the inputs of `forward`, in their order; gradients: of c, q, k, v and gates."""
    of_gates = x.new_empty(*x.shape[:2], *by_c.shape[:2])
    sources = (
        torch.zeros_like(like) if grad is None else grad.contiguous()
        for grad, like in zip(gradients, (x, x, x, x, of_gates), strict=True)
    )
    batch, full = x.shape[0], x.shape[2]
    d_x = torch.empty_like(x)
    shares = [
        x.new_empty(batch, *shape) for shape in (taps.shape, bias.shape, (3, BLOCK, full), by_c.shape, by_x.shape)
    ]
    turned = by_turn(torch.stack([q, k, v]), True)
    run(
        sources_backward, *_sizes(x, by_c), *map(flat, (x, taps, bias, turned, by_c, by_x, *sources, d_x, *shares))
    )  # fmt: skip
    d_taps, d_bias, d_weight, d_by_c, d_by_x = (share.sum(0) for share in shares)
    return d_x, d_taps, d_bias, *from_turns(d_weight), d_by_c, d_by_x


def forward_shapes(x: Tensor, *others: Any) -> tuple[Tensor, ...]:
    """Tensors like those that `forward` returns, not filled."""
    by_c = others[5]
    return *(torch.empty_like(x) for _ in range(4)), x.new_empty(*x.shape[:2], *by_c.shape[:2])


def backward_shapes(*tensors: Any) -> tuple[Tensor, ...]:
    """Tensors like those that `backward` returns, not filled."""
    return tuple(torch.empty_like(tensor) for tensor in tensors[:8])


_in_layout = register(
    Kernel(
        name="mlstm_sources_numba",
        inputs={"x": 2, "taps": 1, "bias": 0, "q": 0, "k": 0, "v": 0, "by_c": 0, "by_x": 0},
        constants={},
        outputs={"c": 2, "by_q": 2, "by_k": 2, "by_v": 2, "gates": 2},
        saved={},
        needs=("x", "taps", "bias", "q", "k", "v", "by_c", "by_x"),
        forward=forward,
        backward=backward,
        forward_shapes=forward_shapes,
        backward_shapes=backward_shapes,
    )
)


def mlstm_sources_numba(
    x: Tensor, taps: Tensor, bias: Tensor, q: Tensor, k: Tensor, v: Tensor, by_c: Tensor, by_x: Tensor
) -> tuple[Tensor, ...]:
    """x [B, T, P], P a multiple of LANES, taps [4, P], bias [P], q, k, v [P / 4, 4, 4], by_c and by_x [gates, P].

    Returns c, SiLU of the convolution; q and k of c, v of x, all [B, T, P]; gates [B, T, gates], by_c c + by_x x.
    """
    spare = (0, 0, 0, -len(by_c) % ROWS)
    rows = (F.pad(one, spare).unsqueeze(0) for one in (by_c, by_x))
    *found, gates = _in_layout(*(tensor.contiguous() for tensor in (x, taps, bias, q, k, v)), *rows)
    return *found, gates.squeeze(2)[..., : len(by_c)]
