"""The mLSTM cell on a CPU in float32, compiled by Numba: one head of one sample at a time, chunk by chunk in the cache.

Legend as in `mlstm_chunk`; equations in `mlstm_reference`. Nothing is saved for the backward pass but inputs and
outputs: it walks over the chunks once more for the states, which costs less than writing them to memory.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from xlstm_tune.kernels.library import Kernel, register
from xlstm_tune.kernels.mlstm_chunk import (
    SHUT,
    add_past,
    denominators,
    edge_weights,
    gate_sums,
    log_scale,
    next_state,
    scores,
)
from xlstm_tune.kernels.mlstm_forms import EPSILON, MLSTMState, mlstm_empty_state
from xlstm_tune.kernels.products import (
    ROWS,
    copy_in,
    copy_out,
    fetch,
    get,
    onto,
    padded,
    put,
    times,
    times_each,
    turn,
    zeros,
)
from xlstm_tune.kernels.simd import LANES, load, splat, spread, store, sum_lanes
from xlstm_tune.kernels.tiles import flat, kernel, run

_ZERO = np.float32(0)
_EPSILON = np.float32(EPSILON)


@kernel
def _forward(
    first, end, steps, heads, width, value_width, chunk, scale, warm, q, k, v, i, f, c0, n0, m0,
    h_out, c_out, n_out, m_out,
):  # fmt: skip
    """Tasks first..end, each a sample and a head; arrays flat, laid out as in `forward`."""
    wide, value_wide, length = padded(width), padded(value_width), (steps + chunk - 1) // chunk * chunk
    decay, a, running = np.empty(length, np.float64), np.empty(length, np.float64), np.empty(length, np.float64)
    log_f, slope, segment = np.empty(length, np.float32), np.empty(length, np.float32), np.empty(length, np.float32)
    newest = np.empty(length, np.int64)
    queries, keys, turned = (
        np.zeros(chunk * wide, np.float32), np.zeros(chunk * wide, np.float32), np.zeros(chunk * wide, np.float32),
    )  # fmt: skip
    values, sums = np.zeros(chunk * value_wide, np.float32), np.zeros(chunk * value_wide, np.float32)
    weights, pairs = np.empty(chunk * chunk, np.float32), np.empty(chunk * chunk, np.float32)
    past, to_end, total, floor, share = (
        np.empty(chunk, np.float32), np.empty(chunk, np.float32), np.empty(chunk, np.float32),
        np.empty(chunk, np.float32), np.empty(chunk, np.float32),
    )  # fmt: skip
    state = np.zeros(wide * value_wide + wide, np.float32)
    for task in range(first, end):
        sample, head = task // heads, task % heads
        ahead = 1 if head + 1 < heads else (steps - 1) * heads + 1
        m = np.float64(m0[task])
        at = sample * steps * heads + head
        last = gate_sums(i, f, at, heads, steps, chunk, m, log_f, slope, decay, a, running, segment, newest)
        if warm:
            copy_in(c0, task * width * value_width, value_width, width, value_width, state, value_wide, wide)
            for feature in range(width):
                state[wide * value_wide + feature] = n0[task * width + feature]
        empty = not warm
        for start in range(0, steps, chunk):
            count = min(chunk, steps - start)
            rows = padded(count)
            place = at + start * heads
            copy_in(q, place * width, heads * width, count, width, queries, wide, rows)
            copy_in(k, place * width, heads * width, count, width, keys, wide, rows)
            copy_in(v, place * value_width, heads * value_width, count, value_width, values, value_wide, rows)
            beside = place + ahead
            turn(queries, wide, rows, wide, turned, chunk)
            fetch(q, beside * width, heads * width, count, width)
            edge_weights(a, running, segment, start, count, rows, m, scale, past, to_end)
            scores(
                keys, turned, width, wide, a, running, segment, start, count, rows, chunk, scale, weights, pairs, total
            )
            if not empty:
                add_past(state, width, wide, value_wide, turned, past, rows, chunk, total)
            denominators(total, decay, running, start, rows, floor, share)
            fetch(k, beside * width, heads * width, count, width)
            for t in range(0, count, ROWS):
                for column in range(0, value_wide, LANES):
                    block = zeros()
                    if not empty:
                        block = onto(block, queries, t * wide, wide, 1, state, column, value_wide, width)
                        block = times_each(block, past, t)
                    block = onto(block, pairs, t, 1, chunk, values, column, value_wide, min(t + ROWS, count))
                    put(times_each(block, share, t), sums, t * value_wide + column, value_wide)
            fetch(v, beside * value_width, heads * value_width, count, value_width)
            copy_out(sums, value_wide, count, value_width, h_out, place * value_width, heads * value_width)
            next_state(state, 0, keys, values, to_end, past, count, width, wide, value_wide, empty, state, 0)
            fetch(h_out, beside * value_width, heads * value_width, count, value_width)
            empty = False
            m = decay[start + count - 1] + running[start + count - 1]
        copy_out(state, value_wide, width, value_width, c_out, task * width * value_width, value_width)
        for feature in range(width):
            n_out[task * width + feature] = state[wide * value_wide + feature]
        m_out[task] = last


@kernel
def _backward(
    first, end, steps, heads, width, value_width, chunk, scale, warm, ahead, q, k, v, i, f, c0, n0, m0, h, c, n,
    grad_h, grad_c, grad_n, grad_m, d_q, d_k, d_v, d_i, d_f, d_c, d_n, d_m,
):  # fmt: skip
    """As `_forward`. `ahead`: there are gradients of the final state; grad_h may be empty."""
    wide, value_wide, length = padded(width), padded(value_width), (steps + chunk - 1) // chunk * chunk
    chunks, size, of_n = length // chunk, wide * value_wide + wide, wide * value_wide
    decay, a, running = np.empty(length, np.float64), np.empty(length, np.float64), np.empty(length, np.float64)
    log_f, slope, segment = np.empty(length, np.float32), np.empty(length, np.float32), np.empty(length, np.float32)
    newest = np.empty(length, np.int64)
    row, column_sum, of_m = (
        np.empty(length, np.float32), np.empty(length, np.float32), np.empty(length, np.float32),
    )  # fmt: skip
    passed = np.empty(length + 1, np.float32)
    queries, keys, queries_turned, block_q, block_k = (
        np.zeros(chunk * wide, np.float32), np.zeros(chunk * wide, np.float32), np.zeros(chunk * wide, np.float32),
        np.zeros(chunk * wide, np.float32), np.zeros(chunk * wide, np.float32),
    )  # fmt: skip
    values, grads, grads_turned, block_v = (
        np.zeros(chunk * value_wide, np.float32), np.zeros(chunk * value_wide, np.float32),
        np.zeros(chunk * value_wide, np.float32), np.zeros(chunk * value_wide, np.float32),
    )  # fmt: skip
    weights, pairs, grad_pairs = (
        np.empty(chunk * chunk, np.float32), np.empty(chunk * chunk, np.float32), np.empty(chunk * chunk, np.float32),
    )  # fmt: skip
    past, to_end, total, floor, share, along = (
        np.empty(chunk, np.float32), np.empty(chunk, np.float32), np.empty(chunk, np.float32),
        np.empty(chunk, np.float32), np.empty(chunk, np.float32), np.zeros(chunk, np.float32),
    )  # fmt: skip
    ones = np.ones(1, np.float32)
    states, later, later_turned = (
        np.zeros(chunks * size, np.float32), np.zeros(size, np.float32), np.zeros(wide * value_wide, np.float32),
    )  # fmt: skip
    for task in range(first, end):
        sample, head = task // heads, task % heads
        at = sample * steps * heads + head
        beyond = 1 if head + 1 < heads else (steps - 1) * heads + 1
        m = np.float64(m0[task])
        gate_sums(i, f, at, heads, steps, chunk, m, log_f, slope, decay, a, running, segment, newest)

        if warm:
            copy_in(c0, task * width * value_width, value_width, width, value_width, states, value_wide, wide)
            for feature in range(width):
                states[of_n + feature] = n0[task * width + feature]
        for number in range(chunks - 1):
            start = number * chunk
            place = at + start * heads
            copy_in(k, place * width, heads * width, chunk, width, keys, wide, chunk)
            copy_in(v, place * value_width, heads * value_width, chunk, value_width, values, value_wide, chunk)
            edge_weights(a, running, segment, start, chunk, chunk, m, scale, past, to_end)
            next_state(
                states, number * size, keys, values, to_end, past, chunk, width, wide, value_wide,
                not warm and number == 0, states, (number + 1) * size,
            )  # fmt: skip
            m = decay[start + chunk - 1] + running[start + chunk - 1]

        to_m = grad_m[task]
        later[:] = _ZERO
        if ahead:
            copy_in(grad_c, task * width * value_width, value_width, width, value_width, later, value_wide, wide)
            for feature in range(width):
                later[of_n + feature] = grad_n[task * width + feature]
                to_m -= grad_n[task * width + feature] * n[task * width + feature]
            for place in range(task * width * value_width, (task + 1) * width * value_width):
                to_m -= grad_c[place] * c[place]
        for number in range(chunks - 1, -1, -1):
            start = number * chunk
            count = min(chunk, steps - start)
            rows = padded(count)
            place = at + start * heads
            m = decay[start - 1] + running[start - 1] if number else np.float64(m0[task])
            behind = warm or number > 0
            before = ahead or number < chunks - 1
            copy_in(q, place * width, heads * width, count, width, queries, wide, rows)
            copy_in(k, place * width, heads * width, count, width, keys, wide, rows)
            copy_in(v, place * value_width, heads * value_width, count, value_width, values, value_wide, rows)
            beside = place + beyond
            fetch(q, beside * width, heads * width, count, width)
            turn(queries, wide, rows, wide, queries_turned, chunk)
            edge_weights(a, running, segment, start, count, rows, m, scale, past, to_end)
            scores(
                keys, queries_turned, width, wide, a, running, segment, start, count, rows, chunk, scale,
                weights, pairs, total,
            )  # fmt: skip
            state = states[number * size : (number + 1) * size]
            if behind:
                add_past(state, width, wide, value_wide, queries_turned, past, rows, chunk, total)
            denominators(total, decay, running, start, rows, floor, share)

            fetch(k, beside * width, heads * width, count, width)
            # Gradients of the numerator, and in `total` those of total.
            if grad_h.size:
                copy_in(grad_h, place * value_width, heads * value_width, count, value_width, grads, value_wide, rows)
                copy_in(h, place * value_width, heads * value_width, count, value_width, block_v, value_wide, rows)
            else:
                grads[:] = _ZERO
                block_v[:] = _ZERO
            fetch(v, beside * value_width, heads * value_width, count, value_width)
            for t in range(rows):
                summed = splat(_ZERO)
                for column in range(t * value_wide, (t + 1) * value_wide, LANES):
                    grad = load(grads, column)
                    summed = summed + grad * load(block_v, column)
                    store(grads, column, grad * spread(share, t))
                of_h = sum_lanes(summed) * share[t]
                of_m[start + t] = -of_h * _EPSILON
                if abs(total[t]) > floor[t]:
                    row[start + t] = _ZERO
                    total[t] = -of_h if total[t] > _ZERO else of_h
                else:
                    row[start + t] = of_h * floor[t]
                    total[t] = _ZERO
            fetch(h, beside * value_width, heads * value_width, count, value_width)
            turn(grads, value_wide, rows, value_wide, grads_turned, chunk)

            for t in range(0, rows, LANES):
                of_total = load(total, t)
                for s in range(0, min(t + LANES, count), ROWS):
                    block = onto(zeros(), values, s * value_wide, value_wide, 1, grads_turned, t, chunk, value_width)
                    put(block, grad_pairs, s * chunk + t, chunk)
                    for pair in range(s * chunk + t, (s + ROWS) * chunk + t, chunk):
                        store(grad_pairs, pair, (load(grad_pairs, pair) + of_total) * load(weights, pair))
                for feature in range(0, width, ROWS):
                    block = zeros()
                    if behind:
                        block = onto(
                            block, state, feature * value_wide, value_wide, 1, grads_turned, t, chunk, value_width
                        )
                        block = onto(block, state, of_n + feature, 1, 0, total, t, 0, 1)
                        block = times(block, load(past, t))
                    block = onto(block, keys, feature, 1, wide, grad_pairs, t, chunk, min(t + LANES, count))
                    put(block, queries_turned, feature * chunk + t, chunk)
            fetch(grad_h, beside * value_width, heads * value_width, count, value_width)
            turn(queries_turned, chunk, wide, rows, block_q, wide)
            copy_out(block_q, wide, count, width, d_q, place * width, heads * width)

            fetch(d_q, beside * width, heads * width, count, width)
            if before:
                turn(later, value_wide, wide, value_wide, later_turned, wide)
            for s in range(0, count, ROWS):
                for feature in range(0, wide, LANES):
                    block = zeros()
                    if before:
                        block = onto(
                            block, values, s * value_wide, value_wide, 1, later_turned, feature, wide, value_width
                        )
                        block = onto(block, ones, 0, 0, 0, later, of_n + feature, 0, 1)
                        block = times_each(block, to_end, s)
                    block = onto(
                        block, grad_pairs, s * chunk + s, chunk, 1, queries, s * wide + feature, wide, count - s
                    )
                    put(block, block_k, s * wide + feature, wide)
                for column in range(0, value_wide, LANES):
                    block = zeros()
                    if before:
                        block = onto(block, keys, s * wide, wide, 1, later, column, value_wide, width)
                        block = times_each(block, to_end, s)
                    block = onto(
                        block, pairs, s * chunk + s, chunk, 1, grads, s * value_wide + column, value_wide, count - s
                    )
                    put(block, block_v, s * value_wide + column, value_wide)
            fetch(d_k, beside * width, heads * width, count, width)
            copy_out(block_k, wide, count, width, d_k, place * width, heads * width)
            copy_out(block_v, value_wide, count, value_width, d_v, place * value_width, heads * value_width)
            fetch(d_v, beside * value_width, heads * value_width, count, value_width)
            for s in range(count):
                summed = splat(_ZERO)
                for feature in range(s * wide, (s + 1) * wide, LANES):
                    summed = summed + load(keys, feature) * load(block_k, feature)
                column_sum[start + s] = sum_lanes(summed)

            if behind:
                for t in range(count):
                    for column in range(t * value_wide, (t + 1) * value_wide, LANES):
                        store(grads, column, load(grads, column) * spread(past, t))
                    along[t] = past[t] * total[t]
                kept = past[count - 1]
                for feature in range(0, width, ROWS):
                    for column in range(0, value_wide, LANES):
                        pair = feature * value_wide + column
                        block = times(get(later, pair, value_wide), kept)
                        block = onto(block, queries, feature, 1, wide, grads, column, value_wide, count)
                        put(block, later, pair, value_wide)
                for feature in range(0, wide, LANES):
                    summed = load(later, of_n + feature) * kept
                    for t in range(count):
                        summed = summed + load(queries, t * wide + feature) * spread(along, t)
                    store(later, of_n + feature, summed)

        # The gates, from the last step to the first.
        of_m[steps - 1] += to_m
        row[steps - 1] += grad_m[task]
        passed[: steps + 1] = _ZERO
        for t in range(steps):
            passed[newest[t]] += of_m[t]
        summed_up = 0.0
        for t in range(steps - 1, -1, -1):
            of_i = column_sum[t] + passed[t + 1]
            summed_up += np.float64(row[t]) - np.float64(of_i)
            d_i[at + t * heads] = of_i
            d_f[at + t * heads] = np.float32(summed_up) * slope[t]
            if log_f[t] < SHUT:
                summed_up = 0.0
        of_m0 = passed[0]
        if warm:
            for place in range(size):
                of_m0 += later[place] * states[place]
        else:
            later[:] = _ZERO
            of_m0 = _ZERO
        copy_out(later, value_wide, width, value_width, d_c, task * width * value_width, value_width)
        for feature in range(width):
            d_n[task * width + feature] = later[of_n + feature]
        d_m[task] = of_m0


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    c0: Tensor,
    n0: Tensor,
    m0: Tensor,
    keep: bool,
    chunk: int,
    warm: bool,
) -> tuple[Tensor, ...]:
    """q, k [B, T, N, D], v [B, T, N, V], i, f [B, T, N], state c0 [B, N, D, V], n0 [B, N, D], m0 [B, N], contiguous.

    warm = False: the initial state is the empty one and is not read. chunk is a multiple of LANES.
    Returns h [B, T, N, V] and c, n, m after the last step.
    """
    found = forward_shapes(q, k, v, i, f, c0, n0, m0, keep, chunk, warm)
    batch, steps, heads, width = q.shape
    inputs = map(flat, (q, k, v, i, f, c0, n0, m0))
    run(
        _forward, batch * heads, steps, heads, width, v.shape[-1], chunk, log_scale(width), warm,
        *inputs, *map(flat, found),
    )  # fmt: skip
    return found


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    c0: Tensor,
    n0: Tensor,
    m0: Tensor,
    h: Tensor,
    c: Tensor,
    n: Tensor,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    grad_n: Tensor | None,
    grad_m: Tensor | None,
    chunk: int,
    warm: bool,
) -> tuple[Tensor, ...]:
    """Gradients of (q, k, v, i, f, c0, n0, m0), exact for any combination of output gradients."""
    batch, steps, heads, width = q.shape
    found = tuple(torch.empty_like(tensor) for tensor in (q, k, v, i, f, c0, n0, m0))
    ahead = grad_c is not None or grad_n is not None
    no_c, no_n = (torch.zeros_like(one) if ahead else one.new_empty(0) for one in (c, n))
    gradients = (
        h.new_empty(0) if grad_h is None else grad_h.contiguous(),
        no_c if grad_c is None else grad_c.contiguous(),
        no_n if grad_n is None else grad_n.contiguous(),
        torch.zeros_like(m0) if grad_m is None else grad_m.contiguous(),
    )
    run(
        _backward, batch * heads, steps, heads, width, v.shape[-1], chunk, log_scale(width), warm, ahead,
        *map(flat, (q, k, v, i, f, c0, n0, m0, h, c, n)), *map(flat, gradients), *map(flat, found),
    )  # fmt: skip
    return found


def forward_shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    c0: Tensor,
    n0: Tensor,
    m0: Tensor,
    keep: bool,
    chunk: int,
    warm: bool,
) -> tuple[Tensor, ...]:
    """Tensors like those that `forward` returns, not filled."""
    return tuple(torch.empty_like(tensor) for tensor in (v, c0, n0, m0))


def backward_shapes(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, c0: Tensor, n0: Tensor, m0: Tensor, *_: object
) -> tuple[Tensor, ...]:
    """Tensors like those that `backward` returns, not filled."""
    return tuple(torch.empty_like(tensor) for tensor in (q, k, v, i, f, c0, n0, m0))


_in_layout = register(
    Kernel(
        name="mlstm_numba",
        inputs=dict.fromkeys(("q", "k", "v", "i", "f", "c0", "n0", "m0"), 0),
        constants={},
        outputs=dict.fromkeys(("h", "c", "n", "m"), 0),
        saved={},
        needs=("q", "k", "v", "i", "f", "c0", "n0", "m0", "h", "c", "n"),
        forward=forward,
        backward=backward,
        forward_shapes=forward_shapes,
        backward_shapes=backward_shapes,
        options={"chunk": "int", "warm": "bool"},
    )
)


def mlstm_numba(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    initial_state: MLSTMState | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, MLSTMState]:
    """`mlstm_chunkwise` for float32 on a CPU: the same arguments and results; `chunk` is a multiple of LANES."""
    warm = initial_state is not None
    state = initial_state if initial_state is not None else mlstm_empty_state(q, v)
    inputs = (tensor.contiguous() for tensor in (q, k, v, i, f, *state))
    h, *final = _in_layout(*inputs, chunk=chunk or 32, warm=warm)
    return h, MLSTMState(*final)
