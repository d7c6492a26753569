"""The mLSTM's output at the last step alone, on a CPU in float32: from the inner input to the weighted values.

Equations in `mlstm_last`. Convolution, gates, scores and the weighted sum of a sample are made in one go, while its
steps are in the second-level cache; the backward pass makes the convolution again and keeps only numbers of a head.

Legend: B batch, T steps, M members that vmap laid side by side (1 without it), N heads and P features of a member, R
rows, 3 N made a multiple of ROWS: a member's input gates, its forget gates, its scores, then nothing.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor

from xlstm_tune.kernels.conv_numba import store_taps, tap_sum, to_input
from xlstm_tune.kernels.library import Kernel, register
from xlstm_tune.kernels.mlstm_forms import EPSILON, largest_floor
from xlstm_tune.kernels.mlstm_sources_numba import ROWS, add_rows, convolve, last_inputs, outer_rows
from xlstm_tune.kernels.simd import (
    CONTRACT,
    LANES,
    exp,
    load,
    log_sigmoid_and_slope,
    sigmoid_and_slope,
    splat,
    spread,
    store,
    sum_lanes,
)
from xlstm_tune.kernels.tiles import f32, flat, floats, kernel, run

_EPSILON = f32(EPSILON)
_LARGEST_FLOOR = f32(largest_floor(torch.float32))
KEPT = 3
"""Kept for each head and step: its exponential, its score and sigmoid(-f)."""
TOTALS = 3
"""Kept for each head: the sum of the products, the denominator and the stabiliser."""


@kernel
def last_forward(
    first, end, steps, width, members, heads, rows, x, taps, bias, gate_bias, by_c, by_x, pooled, kept, totals
):  # fmt: skip
    """Tasks first..end, each a sample and a member; all flat.

    x [B, T, M P], taps [4, M P], bias [M P], gate_bias [M, 2, N], by_c [B, M, R, P], by_x [M, R, P], pooled
    [B, M, N, P], kept [B, M, N, 3, T'], totals [B, M, N, 3]; T' is T made a multiple of LANES.
    """
    full = members * width
    zero = splat(f32(0))
    padded = (steps + LANES - 1) // LANES * LANES
    columns = (heads + ROWS - 1) // ROWS * ROWS
    c, sums, decay = floats(width), floats(rows * padded), floats(padded)
    weights, block = floats(steps * columns), floats(ROWS * LANES)
    weights[:] = f32(0)
    sums[:] = f32(0)
    for task in range(first, end):
        sample, member = task // members, task % members
        for step in range(steps):
            convolve(x, taps, bias, sample, steps, step, full, member * width, width, c, 0)
            at = (sample * steps + step) * full + member * width
            for row in range(0, rows, ROWS):
                of_c = ((sample * members + member) * rows + row) * width
                s0, s1, s2, s3 = add_rows(c, 0, by_c, of_c, width, zero, zero, zero, zero)
                s0, s1, s2, s3 = add_rows(x, at, by_x, (member * rows + row) * width, width, s0, s1, s2, s3)
                to = row * padded + step
                sums[to], sums[to + padded] = sum_lanes(s0), sum_lanes(s1)
                sums[to + 2 * padded], sums[to + 3 * padded] = sum_lanes(s2), sum_lanes(s3)
        for head in range(heads):
            to = (task * heads + head) * KEPT * padded
            input_bias = gate_bias[member * 2 * heads + head]
            forget_bias = gate_bias[(member * 2 + 1) * heads + head]
            for step in range(0, padded, LANES):
                log, slope = log_sigmoid_and_slope(load(sums, (heads + head) * padded + step) + forget_bias)
                store(decay, step, log)
                store(kept, to + padded + step, load(sums, (2 * heads + head) * padded + step))
                store(kept, to + 2 * padded + step, slope)
            later, largest = f32(0), f32(-np.inf)
            for step in range(steps - 1, -1, -1):
                exponent = sums[head * padded + step] + input_bias + later
                later += decay[step]
                decay[step] = exponent
                largest = max(largest, exponent)
            total = zero
            for step in range(0, padded, LANES):
                weight = exp(load(decay, step) - largest)
                store(kept, to + step, weight)
                if step + LANES <= steps:
                    total = total + weight * load(kept, to + padded + step)
            product = sum_lanes(total)
            for step in range(steps - steps % LANES, steps):
                product += kept[to + step] * kept[to + padded + step]
            floor = f32(math.exp(min(-largest, _LARGEST_FLOOR)))
            size = max(abs(product), floor) if product == product else product  # NaN stays NaN
            at = (task * heads + head) * TOTALS
            totals[at], totals[at + 1], totals[at + 2] = product, size + _EPSILON, largest
            for step in range(steps):
                weights[step * columns + head] = kept[to + step] * kept[to + padded + step] / (size + _EPSILON)
        start = sample * steps * full + member * width
        for head in range(0, heads, ROWS):
            for feature in range(0, width, LANES):
                outer_rows(steps, weights, head, columns, x, start + feature, full, block, 0, LANES)
                for row in range(min(ROWS, heads - head)):
                    store(pooled, (task * heads + head + row) * width + feature, load(block, row * LANES))


@njit(forceinline=True, fastmath=CONTRACT)
def _head_back(
    steps, padded, columns, heads, head, rows, task, kept, totals, d_weights, for_c, for_x, d_gate_bias
):  # fmt: skip
    """Gradients of a head's gates and scores to for_c and for_x [T, R], which of for_x the scores' rows get the weights
    instead; d_weights [T, columns] are those of the weights."""
    at = (task * heads + head) * TOTALS
    product, denominator, largest = totals[at], totals[at + 1], totals[at + 2]
    of_kept = (task * heads + head) * KEPT * padded
    d_denominator = f32(0)
    for step in range(steps):
        weight = kept[of_kept + step] * kept[of_kept + padded + step] / denominator
        for_x[step * rows + 2 * heads + head] = weight
        d_denominator -= d_weights[step * columns + head] * weight
    d_denominator /= denominator
    floor = f32(math.exp(min(-largest, _LARGEST_FLOOR)))
    d_product, d_largest = f32(0), f32(0)
    if abs(product) > floor:
        d_product = d_denominator if product > 0 else -d_denominator
    elif -largest < _LARGEST_FLOOR:
        d_largest = -floor * d_denominator
    at_largest = 0
    for step in range(steps):
        d_term = d_weights[step * columns + head] / denominator + d_product
        weight = kept[of_kept + step]
        if weight == f32(1):
            at_largest = step
        d_exponent = d_term * weight * kept[of_kept + padded + step]
        d_largest -= d_exponent
        for_c[step * rows + 2 * heads + head] = d_term * weight
        for_c[step * rows + head] = d_exponent
    for_c[at_largest * rows + head] += d_largest
    earlier, of_input, of_forget = f32(0), f32(0), f32(0)
    for step in range(steps):
        place = step * rows
        d_input, d_forget = for_c[place + head], earlier * kept[of_kept + 2 * padded + step]
        for_c[place + heads + head] = d_forget
        for_x[place + head], for_x[place + heads + head] = d_input, d_forget
        earlier += d_input
        of_input += d_input
        of_forget += d_forget
    d_gate_bias[task * 2 * heads + head] = of_input
    d_gate_bias[(task * 2 + 1) * heads + head] = of_forget


@kernel
def last_backward(
    first, end, steps, width, members, heads, rows, x, taps, bias, by_c, by_x, kept, totals, d_pooled,
    d_x, d_taps, d_bias, d_gate_bias, d_by_c, d_by_x,
):  # fmt: skip
    """As `last_forward`. The samples' shares: d_taps [B, 4, M P], d_bias [B, M P], d_gate_bias [B, M, 2, N], d_by_x
    [B, M, R, P]; only the rows of gates count in the last."""
    full = members * width
    zero = splat(f32(0))
    padded = (steps + LANES - 1) // LANES * LANES
    columns = (heads + ROWS - 1) // ROWS * ROWS
    c, for_c, for_x = floats(steps * LANES), floats(steps * rows), floats(steps * rows)
    d_weights, values, from_x = floats(steps * columns), floats(columns * width), floats(rows * width)
    for_c[:] = f32(0)
    for_x[:] = f32(0)
    values[:] = f32(0)
    for task in range(first, end):
        sample, member = task // members, task % members
        start = sample * steps * full + member * width
        for place in range(heads * width):
            values[place] = d_pooled[task * heads * width + place]
        for place in range(rows * width):  # of an input: the gates' weights, then what its weighted sums receive
            own = place - 2 * heads * width
            from_x[place] = values[own] if 0 <= own < heads * width else by_x[member * rows * width + place]
        for step in range(steps):
            for head in range(0, heads, ROWS):
                at = start + step * full
                s0, s1, s2, s3 = add_rows(x, at, values, head * width, width, zero, zero, zero, zero)
                to = step * columns + head
                d_weights[to], d_weights[to + 1] = sum_lanes(s0), sum_lanes(s1)
                d_weights[to + 2], d_weights[to + 3] = sum_lanes(s2), sum_lanes(s3)
        for head in range(heads):
            _head_back(
                steps, padded, columns, heads, head, rows, task, kept, totals, d_weights, for_c, for_x, d_gate_bias
            )
        for feature in range(0, width, LANES):
            place = member * width + feature
            x1, x2, x3, t1, t2, t3, b1, b2, b3 = zero, zero, zero, zero, zero, zero, zero, zero, zero
            tap0, tap1, tap2, tap3, shift = zero, zero, zero, zero, zero
            of_c = task * rows * width + feature
            for step in range(steps):
                at = start + step * full + feature
                x0 = load(x, at)
                total = tap_sum(taps, bias, full, place, x0, x1, x2, x3)
                share, rest = sigmoid_and_slope(total)
                store(c, step * LANES, total * share)
                through, b0 = zero, zero
                for row in range(rows):
                    through = through + spread(for_c, step * rows + row) * load(by_c, of_c + row * width)
                    b0 = b0 + spread(for_x, step * rows + row) * load(from_x, row * width + feature)
                t0 = through * share * (total * rest + f32(1))
                if step >= 3:
                    store(d_x, at - 3 * full, b3 + to_input(taps, full, place, t0, t1, t2, t3))
                tap0, tap1, tap2, tap3 = tap0 + t0 * x3, tap1 + t0 * x2, tap2 + t0 * x1, tap3 + t0 * x0
                shift = shift + t0
                x1, x2, x3, t1, t2, t3, b1, b2, b3 = x0, x1, x2, t0, t1, t2, b0, b1, b2
            last_inputs(d_x, start + feature, steps, full, taps, place, t1, t2, t3, b1, b2, b3)
            store_taps(d_taps, d_bias, sample, full, place, tap0, tap1, tap2, tap3, shift)
            for row in range(0, rows, ROWS):
                to = (task * rows + row) * width + feature
                outer_rows(steps, for_c, row, rows, c, 0, LANES, d_by_c, to, width)
                outer_rows(steps, for_x, row, rows, x, start + feature, full, d_by_x, to, width)


def _sizes(x: Tensor, gate_bias: Tensor, by_x: Tensor) -> tuple[int, ...]:
    """(tasks, steps, width, members, heads, rows)."""
    members, rows, width = by_x.shape
    return x.shape[0] * members, x.shape[1], width, members, gate_bias.shape[2], rows


def forward(
    x: Tensor, taps: Tensor, bias: Tensor, gate_bias: Tensor, by_c: Tensor, by_x: Tensor, train: bool
) -> tuple[Tensor, ...]:
    """As the kernel has them: pooled [B, M, N, P], and kept and totals for `backward`."""
    found = forward_shapes(x, taps, bias, gate_bias, by_c, by_x)
    run(last_forward, *_sizes(x, gate_bias, by_x), *map(flat, (x, taps, bias, gate_bias, by_c, by_x, *found)))
    return found


def backward(
    x: Tensor, taps: Tensor, bias: Tensor, gate_bias: Tensor, by_c: Tensor, by_x: Tensor, kept: Tensor, totals: Tensor,
    grad: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of the inputs of `forward`, in their order."""
    inputs = (x, taps, bias, gate_bias, by_c, by_x)
    if grad is None:
        return tuple(torch.zeros_like(tensor) for tensor in inputs)
    d_x, d_by_c = torch.empty_like(x), torch.empty_like(by_c)
    d_taps, d_bias, d_gate_bias, d_by_x = (
        x.new_empty(len(x), *tensor.shape) for tensor in (taps, bias, gate_bias, by_x)
    )
    tensors = (x, taps, bias, by_c, by_x, kept, totals, grad.contiguous())
    run(
        last_backward, *_sizes(x, gate_bias, by_x),
        *map(flat, (*tensors, d_x, d_taps, d_bias, d_gate_bias, d_by_c, d_by_x)),
    )  # fmt: skip
    d_by_x[:, :, 2 * gate_bias.shape[2] :] = 0.0
    return d_x, d_taps.sum(0), d_bias.sum(0), d_gate_bias.sum(0), d_by_c, d_by_x.sum(0)


def forward_shapes(
    x: Tensor, taps: Tensor, bias: Tensor, gate_bias: Tensor, by_c: Tensor, by_x: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    """Tensors like those that `forward` returns, not filled."""
    members, _rows, width = by_x.shape
    of_head = (x.shape[0], members, gate_bias.shape[2])
    padded = -(-x.shape[1] // LANES) * LANES
    return x.new_empty(*of_head, width), x.new_empty(*of_head, KEPT, padded), x.new_empty(*of_head, TOTALS)


def backward_shapes(*tensors: Any) -> tuple[Tensor, ...]:
    """Tensors like those that `backward` returns, not filled."""
    return tuple(torch.empty_like(tensor) for tensor in tensors[:6])


_in_layout = register(
    Kernel(
        name="mlstm_last_numba",
        inputs={"x": 2, "taps": 1, "bias": 0, "gate_bias": 0, "by_c": 1, "by_x": 0},
        constants={},
        outputs={"pooled": 1},
        saved={"kept": 1, "totals": 1},
        needs=("x", "taps", "bias", "gate_bias", "by_c", "by_x"),
        forward=forward,
        backward=backward,
        forward_shapes=forward_shapes,
        backward_shapes=backward_shapes,
    )
)


def rows_of(by_c: Tensor, by_x: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Rows for gates, scores, then nothing: what they see of a sample's convolved x [B, R, P], and of x [R, P]."""
    heads = queries.shape[1]
    rows = -(-3 * heads // ROWS) * ROWS
    of_sample = torch.cat([by_c.expand(len(queries), *by_c.shape), queries], 1)
    return F.pad(of_sample, (0, 0, 0, rows - 3 * heads)), F.pad(by_x, (0, 0, 0, rows - 2 * heads))


def mlstm_last_numba(
    x: Tensor, taps: Tensor, bias: Tensor, gate_bias: Tensor, by_c: Tensor, by_x: Tensor, queries: Tensor
) -> Tensor:
    """x [B, T, P], P a multiple of LANES; taps [4, P], bias [P] of the convolution; gate_bias [2 N], by_c and by_x
    [2 N, P], the input gates, then the forget gates, of the convolved x and of x; queries [B, N, P], what a head's
    score of a step is of its convolved x. Returns Σ over steps of weight · x, for each head, [B, N, P].
    """
    of_sample, by_x = rows_of(by_c, by_x, queries)
    tensors = (x, taps, bias, gate_bias.view(1, 2, -1), of_sample.unsqueeze(1), by_x.unsqueeze(0))
    (pooled,) = _in_layout(*(tensor.contiguous() for tensor in tensors))
    return pooled.squeeze(1)
