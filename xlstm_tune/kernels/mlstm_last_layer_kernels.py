"""An mLSTM layer's last output on a CPU in float32, a sample at a time: the kernels of `mlstm_last_layer_numba`.

Only inner inputs, gates and scores are made of every step, by the kernels of `mlstm_last_numba`; q, h, z and the output
are single rows. k and v stand on the other side of their products: a head's query goes back through the blocks of k to
score the convolved inputs, and the blocks of v are applied to the weighted sum of the raw ones.

Legend as in `mlstm_layer_kernels`; here R rows are 3 N made a multiple of four, and T' is T made a multiple of LANES.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from xlstm_tune.kernels.conv_numba import tap_sum
from xlstm_tune.kernels.matmul_numba import add_outer
from xlstm_tune.kernels.mlstm_last_numba import KEPT, TOTALS, last_backward, last_forward
from xlstm_tune.kernels.mlstm_layer_kernels import add, product
from xlstm_tune.kernels.mlstm_sources_numba import convolve
from xlstm_tune.kernels.norm_numba import norm_backward, norm_forward
from xlstm_tune.kernels.qkv_numba import project
from xlstm_tune.kernels.simd import CONTRACT, LANES, load, sigmoid_and_slope, splat, spread, store, turn
from xlstm_tune.kernels.tiles import f32, floats, kernel, own

ENDS = 4
"""Rows kept of the last step: convolved inner input, query, h and z."""


@njit
def _row_product(x, at, count, weight, at_weight, width, out):
    """out [width] = x [count], from `at` on, times weight [count, width]."""
    for feature in range(0, width, LANES):
        even, odd = splat(f32(0)), splat(f32(0))
        for one in range(0, count, 2):
            place = at_weight + one * width + feature
            even = even + spread(x, at + one) * load(weight, place)
            odd = odd + spread(x, at + one + 1) * load(weight, place + width)
        store(out, feature, even + odd)


@njit
def _add_row_outer(y, count, x, at, width, out, to):
    """out [count, width], from `to` on, += y [count] times x [width] from `at` on."""
    for row in range(count):
        factor = spread(y, row)
        for feature in range(0, width, LANES):
            place = to + row * width + feature
            store(out, place, load(out, place) + factor * load(x, at + feature))


@njit(forceinline=True, fastmath=CONTRACT)
def _add_turns(share, at, width, x, seen):
    """share [4, ·], rows `width` apart from `at` on, += x times what each lane sees of `seen` by each turn."""
    for number in range(4):
        place = at + number * width
        store(share, place, load(share, place) + x * seen)
        seen = turn(seen)


@njit(forceinline=True, fastmath=CONTRACT)
def _end_of_convolution(x, taps, bias, at, width, feature, of_c, d_x, d_taps, d_bias):
    """Add what the last step's convolved x, whose gradient is of_c, gives to its inputs, its taps and its bias."""
    x0, x1, x2, x3 = load(x, at), load(x, at - width), load(x, at - 2 * width), load(x, at - 3 * width)
    total = tap_sum(taps, bias, width, feature, x0, x1, x2, x3)
    share, rest = sigmoid_and_slope(total)
    through = of_c * share * (total * rest + f32(1))
    store(d_bias, feature, load(d_bias, feature) + through)
    for tap in range(4):
        place, source = tap * width + feature, at - (3 - tap) * width
        store(d_taps, place, load(d_taps, place) + through * load(x, source))
        store(d_x, source, load(d_x, source) + through * load(taps, place))


@kernel
def forward(first, end, sizes, scale, keep, x, weights, y, x_end, kept):
    """Tasks first..end, each a sample of a member; y [M B, E], x_end [M B, K]. Kept: inner [M B, T, P], empty
    without `keep`; ends [M B, ENDS, P], pooled [M B, N, P], and what `last_forward` keeps.

    before [M, K]: the weight of a layer norm that comes before the layer; empty: there is none.
    """
    samples, steps, count, width, outputs, heads, rows, padded = sizes
    before, up, taps, bias, forth, back, by_c, by_x, gate_bias, norm, skip, down = weights
    inner, ends, pooled, exponentials, totals = kept
    if not keep:
        inner = floats(steps * width)
    normalised, none = floats(steps * count), np.empty(0, np.float32)
    gates, head_width = 2 * heads * width, width // heads
    rows_c, rows_x, gated = floats(rows * width), floats(rows * width), floats(width)
    rows_c[:] = f32(0)
    rows_x[:] = f32(0)
    for task in range(first, end):
        member = task // samples
        my_x, my_inner = own(x, task, steps * count), own(inner, task if keep else 0, steps * width)
        my_taps, my_bias = own(taps, member, 4 * width), own(bias, member, width)
        my_forth, my_back = own(forth, member, 12 * width), own(back, member, 12 * width)
        my_ends, my_pooled = own(ends, task, ENDS * width), own(pooled, task, heads * width)
        c, q, h, z = own(my_ends, 0, width), own(my_ends, 1, width), own(my_ends, 2, width), own(my_ends, 3, width)
        seen = my_x
        if before.size:
            seen = normalised
            norm_forward(0, 1, steps, 1, count, False, my_x, own(before, member, count), none, none, none, seen)
        product(seen, steps, count, up, 2 * member * count * width, width, my_inner)
        convolve(my_inner, my_taps, my_bias, 0, steps, steps - 1, width, 0, width, c, 0)
        rows_c[:gates] = own(by_c, member, gates)
        rows_x[:gates] = own(by_x, member, gates)
        for feature in range(0, width, LANES):
            query = project(my_forth, feature, width, load(c, feature)) * scale
            store(q, feature, query)
            row = 2 * heads + feature // head_width
            store(rows_c, row * width + feature, project(my_back, 4 * width + feature, width, query))
        last_forward(
            0, 1, steps, width, 1, heads, rows, my_inner, my_taps, my_bias, own(gate_bias, member, 2 * heads), rows_c,
            rows_x, my_pooled, own(exponentials, task, KEPT * heads * padded), own(totals, task, TOTALS * heads),
        )  # fmt: skip
        for feature in range(0, width, LANES):
            mean = load(my_pooled, feature // head_width * width + feature)
            store(h, feature, project(my_forth, 8 * width + feature, width, mean))
        _row_product(seen, (steps - 1) * count, count, up, (2 * member + 1) * count * width, width, z)
        norm_forward(
            0, 1, 1, heads, head_width, True, h, own(norm, member, width), c, own(skip, member, width), z, gated
        )
        _row_product(gated, 0, width, down, member * width * outputs, outputs, own(y, task, outputs))
        own(x_end, task, count)[:] = my_x[(steps - 1) * count :]


@kernel
def backward(
    first, end, parts, sizes, scale, x, weights, kept, grad, grad_end, d_x, d_before, d_up, d_down, d_gate_bias,
    d_small,
):  # fmt: skip
    """Tasks first..end, each a part of a member's samples; `weights` as the way back sees them.

    The parts' shares: d_before [M, parts, K] or empty, d_up [M, parts, 2, P, K], d_down [M, parts, E, P], d_gate_bias
    [M, parts, 2, N], and in d_small [M, parts, (19 + 4 N) P] those of taps, bias, q, k and v by turn, by_c, by_x, norm
    and skip, one behind the other.
    """
    samples, steps, count, width, outputs, heads, rows, padded = sizes
    before, up, taps, bias, forth, back, by_c, by_x, norm, skip, down = weights
    inner, ends, pooled, exponentials, totals = kept
    gates, head_width, end_of_x = 2 * heads * width, width // heads, (steps - 1) * count
    rows_c, rows_x, d_rows_c, d_rows_x = (
        floats(rows * width), floats(rows * width), floats(rows * width), floats(rows * width),
    )  # fmt: skip
    rows_c[:] = f32(0)
    rows_x[:] = f32(0)
    d_inner, d_pooled, s_taps, of_gate_bias = (
        floats(steps * width), floats(heads * width), floats(4 * width), floats(2 * heads),
    )  # fmt: skip
    d_pooled[:] = f32(0)
    gated, d_gated, d_h, d_c, d_z = floats(width), floats(width), floats(width), floats(width), floats(width)
    s_bias, s_norm, s_skip, through_z = floats(width), floats(width), floats(width), floats(count)
    normalised, d_normalised, s_before, none = (
        floats(steps * count), floats(steps * count), floats(count), np.empty(0, np.float32),
    )  # fmt: skip
    for task in range(first, end):
        member, part = task // parts, task % parts
        my_up, my_small = own(d_up, task, 2 * width * count), own(d_small, task, (19 + 4 * heads) * width)
        my_down, my_gate_bias = own(d_down, task, outputs * width), own(d_gate_bias, task, 2 * heads)
        own(d_before, task, count if before.size else 0)[:] = f32(0)
        my_up[:] = f32(0)
        my_small[:] = f32(0)
        my_down[:] = f32(0)
        my_gate_bias[:] = f32(0)
        of_gates = my_small[17 * width :]
        of_norms = of_gates[2 * gates :]
        my_taps, my_bias = own(taps, member, 4 * width), own(bias, member, width)
        my_forth, my_back = own(forth, member, 12 * width), own(back, member, 12 * width)
        rows_c[:gates] = own(by_c, member, gates)
        rows_x[:gates] = own(by_x, member, gates)
        for at in range(samples * part // parts, samples * (part + 1) // parts):
            sample = member * samples + at
            my_x, my_d_x = own(x, sample, steps * count), own(d_x, sample, steps * count)
            my_inner, my_pooled = own(inner, sample, steps * width), own(pooled, sample, heads * width)
            seen, d_seen, my_before = my_x, my_d_x, own(before, member, count if before.size else 0)
            if before.size:
                seen, d_seen = normalised, d_normalised
                norm_forward(0, 1, steps, 1, count, False, my_x, my_before, none, none, none, seen)
            my_grad, my_ends = own(grad, sample, outputs), own(ends, sample, ENDS * width)
            c, q, h, z = own(my_ends, 0, width), own(my_ends, 1, width), own(my_ends, 2, width), own(my_ends, 3, width)
            _row_product(my_grad, 0, outputs, down, member * outputs * width, width, d_gated)
            norm_backward(
                0, 1, 1, heads, head_width, True, h, own(norm, member, width), c, own(skip, member, width), z, d_gated,
                d_h, s_norm, d_c, s_skip, d_z, gated,
            )  # fmt: skip
            _add_row_outer(my_grad, outputs, gated, 0, width, my_down, 0)
            for feature in range(0, width, LANES):
                row, of_h = feature // head_width, load(d_h, feature)
                store(d_pooled, row * width + feature, project(my_back, 8 * width + feature, width, of_h))
                _add_turns(my_small, 13 * width + feature, width, of_h, load(my_pooled, row * width + feature))
                scored = project(my_back, 4 * width + feature, width, load(q, feature))
                store(rows_c, (2 * heads + row) * width + feature, scored)
            last_backward(
                0, 1, steps, width, 1, heads, rows, my_inner, my_taps, my_bias, rows_c, rows_x,
                own(exponentials, sample, KEPT * heads * padded), own(totals, sample, TOTALS * heads), d_pooled,
                d_inner, s_taps, s_bias, of_gate_bias, d_rows_c, d_rows_x,
            )  # fmt: skip
            for feature in range(0, width, LANES):
                row = 2 * heads + feature // head_width
                scored = load(d_rows_c, row * width + feature)
                of_q = project(my_forth, 4 * width + feature, width, scored) * scale
                _add_turns(my_small, 9 * width + feature, width, load(q, feature), scored)
                _add_turns(my_small, 5 * width + feature, width, of_q, load(c, feature))
                of_c = load(d_c, feature) + project(my_back, feature, width, of_q)
                _end_of_convolution(
                    my_inner, my_taps, my_bias, (steps - 1) * width + feature, width, feature, of_c, d_inner, s_taps,
                    s_bias,
                )  # fmt: skip
            add(s_taps, own(my_small, 0, 4 * width))
            add(s_bias, own(my_small, 4, width))
            add(d_rows_c[:gates], own(of_gates, 0, gates))
            add(d_rows_x[:gates], own(of_gates, 1, gates))
            add(s_norm, own(of_norms, 0, width))
            add(s_skip, own(of_norms, 1, width))
            for gate in range(2 * heads):
                my_gate_bias[gate] += of_gate_bias[gate]
            product(d_inner, steps, width, up, 2 * member * width * count, count, d_seen)
            _row_product(d_z, 0, width, up, (2 * member + 1) * width * count, count, through_z)
            add(through_z, d_seen[end_of_x:])
            add_outer(d_inner, 0, width, width, seen, 0, count, count, steps, my_up, 0)
            _add_row_outer(d_z, width, seen, end_of_x, count, my_up, width * count)
            if before.size:
                norm_backward(
                    0, 1, steps, 1, count, False, my_x, my_before, none, none, none, d_seen, my_d_x, s_before, none,
                    none, none, none,
                )  # fmt: skip
                add(s_before, own(d_before, task, count))
            add(own(grad_end, sample, count), my_d_x[end_of_x:])
