"""A whole mLSTM layer on a CPU in float32, one sample after another: the Numba kernels behind `mlstm_layer_numba`.

Each stage is the kernel that also runs by itself, called for one sample. What passes between stages, and every gradient
of it, is memory of a thread that stays in the second-level cache.

Legend: M members that vmap laid one after another (1 without it), B samples of a member, T steps, K inputs, P inner
width, N heads, E outputs, R rows, the gates 2 N made a multiple of four. All arrays are flat. `sizes` are
(B, T, K, P, E, N, R, steps of a chunk); a weight, and what belongs to a sample, stands behind that of the one before.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from xlstm_tune.kernels.matmul_numba import ROWS, add_outer, multiply
from xlstm_tune.kernels.mlstm_numba import cell_backward, cell_forward
from xlstm_tune.kernels.mlstm_sources_numba import sources_backward, sources_forward
from xlstm_tune.kernels.norm_numba import norm_backward, norm_forward
from xlstm_tune.kernels.simd import LANES, load, store
from xlstm_tune.kernels.tiles import f32, floats, kernel, own

PARTS = 16
"""Parts of a member's samples, each of which sums the gradients of the weights, so that threads share the work."""


@njit
def product(x, rows, count, weight, at_weight, width, out):
    """out [rows, width] = x [rows, count] times weight [count, width]; at least ROWS rows."""
    for start in range(0, rows, ROWS):
        row = min(start, rows - ROWS)
        multiply(x, row * count, count, count, weight, at_weight, width, out, row * width, width)


@njit
def add(source, target):
    """target += source, for a multiple of LANES."""
    for place in range(0, len(source), LANES):
        store(target, place, load(target, place) + load(source, place))


@kernel
def forward(first, end, sizes, scale, keep, x, weights, y, state, past, kept):
    """Tasks first..end, each a sample of a member. Inner inputs, z, h, i and f are in `kept`, empty without `keep`; the
    last three inner inputs in past [M B, 3, P]."""
    samples, steps, count, width, outputs, heads, rows, chunk = sizes
    up, taps, bias, turned, by_c, by_x, gate_bias, norm, skip, down = weights
    size, gates, head = steps * width, steps * heads, width // heads
    c, q, k, v = floats(size), floats(size), floats(size), floats(size)
    raw = floats(steps * rows)
    inner, z, h, i, f = kept
    if not keep:
        inner, z, h, i, f = floats(size), floats(size), floats(size), floats(gates), floats(gates)
    none, empty = np.empty(0, np.float32), np.full(heads, f32(-np.inf))
    for task in range(first, end):
        member, place = task // samples, task if keep else 0
        my_x, my_i, my_f = own(x, task, steps * count), own(i, place, gates), own(f, place, gates)
        my_inner, my_z, my_h = own(inner, place, size), own(z, place, size), own(h, place, size)
        product(my_x, steps, count, up, 2 * member * count * width, width, my_inner)
        product(my_x, steps, count, up, (2 * member + 1) * count * width, width, my_z)
        own(past, task, 3 * width)[:] = my_inner[(steps - 3) * width :]
        sources_forward(
            0, 1, steps, width, 1, rows, my_inner, own(taps, member, 4 * width), own(bias, member, width),
            own(turned, member, 12 * width), own(by_c, member, rows * width), own(by_x, member, rows * width),
            c, q, k, v, raw,
        )  # fmt: skip
        for step in range(steps):
            for one in range(heads):
                my_i[step * heads + one] = raw[step * rows + one] + gate_bias[2 * member * heads + one]
                my_f[step * heads + one] = raw[step * rows + heads + one] + gate_bias[(2 * member + 1) * heads + one]
        cell_forward(
            0, heads, steps, heads, head, head, chunk, scale, False, True, q, k, v, my_i, my_f, none, none, empty, my_h,
            own(state[0], task, width * head), own(state[1], task, width), own(state[2], task, heads),
        )  # fmt: skip
        norm_forward(
            0, 1, steps, heads, head, True, my_h, own(norm, member, width), c, own(skip, member, width), my_z, c
        )
        product(c, steps, width, down, member * width * outputs, outputs, own(y, task, steps * outputs))


@kernel
def backward(
    first, end, parts, sizes, scale, ended, x, weights, kept, state, grad, grad_state, grad_past, d_x, d_up, d_down,
    d_gate_bias, d_small,
):  # fmt: skip
    """Tasks first..end, each a part of a member's samples; `weights` as the way back sees them.

    The parts' shares: d_up [M, parts, 2, P, K], d_down [M, parts, E, P], d_gate_bias [M, parts, 2, N], and in d_small
    [M, parts, (19 + 2 R) P] those of taps, bias, q, k and v by turn, by_c, by_x, norm and skip, one behind the other.
    grad_past is empty, and so are the gradients of C and n if `ended`, where there are none.
    """
    samples, steps, count, width, outputs, heads, rows, chunk = sizes
    up, taps, bias, forth, back, by_c, by_x, norm, skip, down = weights
    inner, z, h, i, f = kept
    size, gates, head = steps * width, steps * heads, width // heads
    c, q, k, v = floats(size), floats(size), floats(size), floats(size)
    d_c, d_z, d_h = floats(size), floats(size), floats(size)
    # Stages that read before they write share memory, so that all of it stays in cache.
    d_q, d_k, d_v, d_gated, d_inner = q, k, v, d_h, d_h
    gated, slope = floats(size), floats(size)
    d_i, d_f, d_raw, none, through_z = (
        floats(gates), floats(gates), floats(steps * rows), np.empty(0, np.float32), floats(steps * count),
    )  # fmt: skip
    d_raw[:] = f32(0)
    empty, of_c, of_n, of_m = np.full(heads, f32(-np.inf)), floats(width * head), floats(width), floats(heads)
    of_state = 0 if ended else width
    small = (19 + 2 * rows) * width
    share = floats(small)
    s_taps, s_bias, s_turned = share[: 4 * width], share[4 * width : 5 * width], share[5 * width : 17 * width]
    s_by_c, s_by_x = own(share[17 * width :], 0, rows * width), own(share[17 * width :], 1, rows * width)
    s_norm, s_skip = own(share[(17 + 2 * rows) * width :], 0, width), own(share[(17 + 2 * rows) * width :], 1, width)
    for task in range(first, end):
        member, part = task // parts, task % parts
        my_up, my_small = own(d_up, task, 2 * width * count), own(d_small, task, small)
        my_down, my_gate_bias = own(d_down, task, outputs * width), own(d_gate_bias, task, 2 * heads)
        my_up[:] = f32(0)
        my_down[:] = f32(0)
        my_gate_bias[:] = f32(0)
        my_small[:] = f32(0)
        my_taps, my_bias = own(taps, member, 4 * width), own(bias, member, width)
        my_forth, my_back = own(forth, member, 12 * width), own(back, member, 12 * width)
        my_by_c, my_by_x = own(by_c, member, rows * width), own(by_x, member, rows * width)
        my_norm, my_skip = own(norm, member, width), own(skip, member, width)
        for at in range(samples * part // parts, samples * (part + 1) // parts):
            sample = member * samples + at
            my_x, my_d_x = own(x, sample, steps * count), own(d_x, sample, steps * count)
            my_grad = own(grad, sample, steps * outputs)
            my_inner, my_z, my_h = own(inner, sample, size), own(z, sample, size), own(h, sample, size)
            product(my_grad, steps, outputs, down, member * outputs * width, width, d_gated)
            sources_forward(
                0, 1, steps, width, 1, 0, my_inner, my_taps, my_bias, my_forth, my_by_c, my_by_x, c, q, k, v, none,
                slope,
            )  # fmt: skip
            norm_backward(
                0, 1, steps, heads, head, True, my_h, my_norm, c, my_skip, my_z, d_gated, d_h, s_norm, d_c, s_skip, d_z,
                gated,
            )  # fmt: skip
            add_outer(my_grad, 0, outputs, outputs, gated, 0, width, width, steps, my_down, 0)
            cell_backward(
                0, heads, steps, heads, head, head, chunk, scale, False, ended, True, q, k, v, own(i, sample, gates),
                own(f, sample, gates), none, none, empty, my_h, own(state[0], sample, width * head),
                own(state[1], sample, width), d_h, own(grad_state[0], sample, of_state * head),
                own(grad_state[1], sample, of_state), own(grad_state[2], sample, heads), d_q, d_k, d_v, d_i, d_f,
                of_c, of_n, of_m,
            )  # fmt: skip
            for step in range(steps):
                for one in range(heads):
                    of_i, of_f = d_i[step * heads + one], d_f[step * heads + one]
                    d_raw[step * rows + one], d_raw[step * rows + heads + one] = of_i, of_f
                    my_gate_bias[one] += of_i
                    my_gate_bias[heads + one] += of_f
            sources_backward(
                0, 1, steps, width, 1, rows, my_inner, my_taps, my_bias, my_back, my_by_c, my_by_x, d_c, d_q, d_k, d_v,
                d_raw, d_inner, s_taps, s_bias, s_turned, s_by_c, s_by_x, c, slope,
            )  # fmt: skip
            if grad_past.size:
                add(own(grad_past, sample, 3 * width), d_inner[(steps - 3) * width :])
            add(share, my_small)
            product(d_inner, steps, width, up, 2 * member * width * count, count, my_d_x)
            product(d_z, steps, width, up, (2 * member + 1) * width * count, count, through_z)
            add(through_z, my_d_x)
            add_outer(d_inner, 0, width, width, my_x, 0, count, count, steps, my_up, 0)
            add_outer(d_z, 0, width, width, my_x, 0, count, count, steps, my_up, width * count)
