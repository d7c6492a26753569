"""The mLSTM cell on a CPU in float32, compiled by Numba: a head of a sample at a time, chunk by chunk in the cache.

Legend as in `mlstm_chunk`; equations in `mlstm_reference`. Nothing is saved for the backward pass but inputs and
outputs: it walks over the chunks once more for the states, which costs less than writing them to memory.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from xlstm_tune.kernels.library import Kernel, register
from xlstm_tune.kernels.mlstm_chunk import (
    add_past,
    denominators,
    edge_weights,
    gate_sums,
    log_scale,
    next_state,
    outputs,
    scores,
)
from xlstm_tune.kernels.mlstm_forms import MLSTMState, mlstm_empty_state
from xlstm_tune.kernels.mlstm_gradients import (
    of_gates,
    of_keys,
    of_pairs,
    of_queries,
    of_state,
    of_sums,
    of_values,
)
from xlstm_tune.kernels.mlstm_reference import chunk_length
from xlstm_tune.kernels.products import copy_in, copy_out, fetch, padded, turn
from xlstm_tune.kernels.simd import LANES
from xlstm_tune.kernels.tiles import flat, kernel, run

_ZERO = np.float32(0)


@njit
def _scratch(length, chunk, wide, value_wide):
    """Memory for one thread: what the gates of a head say over time, and within a chunk rows of q and k, rows of v,
    pairs of steps, and numbers a step, in the order in which the kernels name them."""
    return (
        (np.empty(length, np.float64), np.empty(length, np.float64), np.empty(length, np.float64)),
        (np.empty(length, np.float32), np.empty(length, np.float32), np.empty(length, np.float32)),
        (np.zeros(chunk * wide, np.float32), np.zeros(chunk * wide, np.float32), np.zeros(chunk * wide, np.float32)),
        (np.zeros(chunk * value_wide, np.float32), np.zeros(chunk * value_wide, np.float32)),
        (np.empty(chunk * chunk, np.float32), np.empty(chunk * chunk, np.float32)),
        (np.empty(chunk, np.float32), np.empty(chunk, np.float32), np.empty(chunk, np.float32)),
        (np.empty(chunk, np.float32), np.empty(chunk, np.float32), np.empty(chunk + LANES, np.float32)),
    )


@njit
def _state_in(c0, n0, task, width, value_width, wide, value_wide, state):
    """State of a task from C [D, V] and n [D] into a state [C: D* × V*, n: D*]."""
    copy_in(c0, task * width * value_width, value_width, width, value_width, state, value_wide, wide)
    for feature in range(width):
        state[wide * value_wide + feature] = n0[task * width + feature]


@njit
def _state_out(state, task, width, value_width, wide, value_wide, c_out, n_out):
    """The way back."""
    copy_out(state, value_wide, width, value_width, c_out, task * width * value_width, value_width)
    for feature in range(width):
        n_out[task * width + feature] = state[wide * value_wide + feature]


@kernel
def cell_forward(
    first, end, steps, heads, width, value_width, chunk, scale, warm, cached, q, k, v, i, f, c0, n0, m0,
    h_out, c_out, n_out, m_out,
):  # fmt: skip
    """Tasks first..end, each a head of a sample, heads innermost; arrays flat, laid out as in `forward`.

    cached: the rows of the next task are near already, and need not be asked for.
    """
    wide, value_wide, length = padded(width), padded(value_width), (steps + chunk - 1) // chunk * chunk
    scratch = _scratch(length, chunk, wide, value_wide)
    (decay, a, running), (log_f, slope, segment), (queries, keys, turned), (values, sums) = scratch[:4]
    (weights, pairs), (past, to_end, total), (floor, share, own) = scratch[4:]
    newest, lanes = np.empty(length, np.int64), np.arange(LANES).astype(np.float32)
    state = np.zeros(wide * value_wide + wide, np.float32)
    row, value_row = heads * width, heads * value_width
    for task in range(first, end):
        head = task % heads
        at = task // heads * steps * heads + head
        # Rows of the next task, which the processor would not expect: asked for here and there, a few at a time.
        ahead = 1 if head + 1 < heads else (steps - 1) * heads + 1
        m = np.float64(m0[task])
        m_out[task] = gate_sums(i, f, at, heads, steps, chunk, m, log_f, slope, decay, a, running, segment, newest)
        if warm:
            _state_in(c0, n0, task, width, value_width, wide, value_wide, state)
        for start in range(0, steps, chunk):
            count = min(chunk, steps - start)
            asked = 0 if cached else count
            rows, empty, place = padded(count), start == 0 and not warm, at + start * heads
            copy_in(q, place * width, row, count, width, queries, wide, rows)
            copy_in(k, place * width, row, count, width, keys, wide, rows)
            copy_in(v, place * value_width, value_row, count, value_width, values, value_wide, rows)
            turn(queries, wide, rows, wide, turned, chunk)
            fetch(q, (place + ahead) * width, row, asked, width)
            edge_weights(a, running, segment, start, count, rows, m, scale, past, to_end)
            scores(
                keys, turned, width, wide, a, running, segment, start, count, rows, chunk, scale, own, lanes,
                weights, pairs, total,
            )  # fmt: skip
            if not empty:
                add_past(state, width, wide, value_wide, turned, past, rows, chunk, total)
            denominators(total, decay, running, start, rows, floor, share)
            fetch(k, (place + ahead) * width, row, asked, width)
            outputs(queries, width, wide, state, value_wide, past, pairs, values, share, count, chunk, empty, sums)
            fetch(v, (place + ahead) * value_width, value_row, asked, value_width)
            copy_out(sums, value_wide, count, value_width, h_out, place * value_width, value_row)
            next_state(state, 0, keys, values, to_end, past, count, width, wide, value_wide, empty, state, 0)
            fetch(h_out, (place + ahead) * value_width, value_row, asked, value_width)
            m = decay[start + count - 1] + running[start + count - 1]
        _state_out(state, task, width, value_width, wide, value_wide, c_out, n_out)


@kernel
def cell_backward(
    first, end, steps, heads, width, value_width, chunk, scale, warm, ended, cached, q, k, v, i, f, c0, n0, m0, h, c,
    n, grad_h, grad_c, grad_n, grad_m, d_q, d_k, d_v, d_i, d_f, d_c, d_n, d_m,
):  # fmt: skip
    """As `cell_forward`; grad_h may be empty. ended: the final C and n have no gradients, and theirs are empty."""
    wide, value_wide, length = padded(width), padded(value_width), (steps + chunk - 1) // chunk * chunk
    scratch = _scratch(length, chunk, wide, value_wide)
    (decay, a, running), (log_f, slope, segment), (queries, keys, turned), (values, grads) = scratch[:4]
    (weights, pairs), (past, to_end, total), (floor, share, own) = scratch[4:]
    _, (of_row, of_weights, of_m), (block, _, _), (value_block, grads_turned), (grad_pairs, _), _, _ = _scratch(
        length, chunk, wide, value_wide
    )
    newest, lanes = np.empty(length, np.int64), np.arange(LANES).astype(np.float32)
    size, chunks = wide * value_wide + wide, length // chunk
    states, later, later_turned = (
        np.zeros(chunks * size, np.float32), np.zeros(size, np.float32), np.zeros(size, np.float32),
    )  # fmt: skip
    passed = np.empty(length + 1, np.float32)
    row, value_row = heads * width, heads * value_width
    for task in range(first, end):
        head = task % heads
        at = task // heads * steps * heads + head
        ahead = 1 if head + 1 < heads else (steps - 1) * heads + 1
        m = np.float64(m0[task])
        gate_sums(i, f, at, heads, steps, chunk, m, log_f, slope, decay, a, running, segment, newest)

        if warm:
            _state_in(c0, n0, task, width, value_width, wide, value_wide, states)
        for number in range(chunks - 1):
            start = number * chunk
            place = at + start * heads
            copy_in(k, place * width, row, chunk, width, keys, wide, chunk)
            copy_in(v, place * value_width, value_row, chunk, value_width, values, value_wide, chunk)
            edge_weights(a, running, segment, start, chunk, chunk, m, scale, past, to_end)
            next_state(
                states, number * size, keys, values, to_end, past, chunk, width, wide, value_wide,
                number == 0 and not warm, states, (number + 1) * size,
            )  # fmt: skip
            m = decay[start + chunk - 1] + running[start + chunk - 1]

        later[:] = _ZERO
        to_m = grad_m[task]
        if not ended:
            _state_in(grad_c, grad_n, task, width, value_width, wide, value_wide, later)
            for place in range(task * width, (task + 1) * width):
                to_m -= grad_n[place] * n[place]
            for place in range(task * width * value_width, (task + 1) * width * value_width):
                to_m -= grad_c[place] * c[place]
        for number in range(chunks - 1, -1, -1):
            start = number * chunk
            count = min(chunk, steps - start)
            asked = 0 if cached else count
            rows, place, state = padded(count), at + start * heads, states[number * size : (number + 1) * size]
            empty, last = number == 0 and not warm, number == chunks - 1 and ended
            m = decay[start - 1] + running[start - 1] if number else np.float64(m0[task])
            copy_in(q, place * width, row, count, width, queries, wide, rows)
            copy_in(k, place * width, row, count, width, keys, wide, rows)
            copy_in(v, place * value_width, value_row, count, value_width, values, value_wide, rows)
            turn(queries, wide, rows, wide, turned, chunk)
            fetch(q, (place + ahead) * width, row, asked, width)
            edge_weights(a, running, segment, start, count, rows, m, scale, past, to_end)
            scores(
                keys, turned, width, wide, a, running, segment, start, count, rows, chunk, scale, own, lanes,
                weights, pairs, total,
            )  # fmt: skip
            if not empty:
                add_past(state, width, wide, value_wide, turned, past, rows, chunk, total)
            denominators(total, decay, running, start, rows, floor, share)
            fetch(k, (place + ahead) * width, row, asked, width)
            if grad_h.size:
                copy_in(grad_h, place * value_width, value_row, count, value_width, grads, value_wide, rows)
                copy_in(h, place * value_width, value_row, count, value_width, value_block, value_wide, rows)
            else:
                grads[:] = _ZERO
                value_block[:] = _ZERO
            fetch(v, (place + ahead) * value_width, value_row, asked, value_width)
            of_sums(grads, value_block, value_wide, rows, floor, share, total, of_row[start:], of_m[start:])
            turn(grads, value_wide, rows, value_wide, grads_turned, chunk)
            fetch(h, (place + ahead) * value_width, value_row, asked, value_width)
            of_pairs(values, value_width, value_wide, grads_turned, total, weights, count, rows, chunk, grad_pairs)
            fetch(grad_h, (place + ahead) * value_width, value_row, asked, value_width)
            of_queries(
                keys, width, wide, grad_pairs, state, value_width, value_wide, grads_turned, total, past, count, rows,
                chunk, empty, turned,
            )  # fmt: skip
            turn(turned, chunk, wide, rows, block, wide)
            copy_out(block, wide, count, width, d_q, place * width, row)
            fetch(d_q, (place + ahead) * width, row, asked, width)
            if not last:
                turn(later, value_wide, wide, value_wide, later_turned, wide)
            of_keys(
                queries, width, wide, grad_pairs, values, value_width, value_wide, later, later_turned, to_end, count,
                chunk, last, keys, block, of_weights[start:],
            )  # fmt: skip
            copy_out(block, wide, count, width, d_k, place * width, row)
            fetch(d_k, (place + ahead) * width, row, asked, width)
            of_values(keys, width, wide, pairs, grads, value_wide, later, to_end, count, chunk, last, value_block)
            copy_out(value_block, value_wide, count, value_width, d_v, place * value_width, value_row)
            fetch(d_v, (place + ahead) * value_width, value_row, asked, value_width)
            if not empty:
                of_state(queries, width, wide, grads, value_wide, total, past, count, later)

        of_row[steps - 1] += grad_m[task]
        of_m[steps - 1] += to_m
        of_gates(of_row, of_weights, of_m, newest, log_f, slope, steps, passed, d_i, d_f, at, heads)
        d_m[task] = _ZERO
        if warm:
            summed = passed[0]
            for place in range(size):
                summed += later[place] * states[place]
            d_m[task] = summed
        else:
            later[:] = _ZERO
        _state_out(later, task, width, value_width, wide, value_wide, d_c, d_n)


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
        cell_forward, batch * heads, steps, heads, width, v.shape[-1], chunk, log_scale(width), warm, False,
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
    ended = grad_c is None and grad_n is None
    no_c, no_n = (one.new_empty(0) if ended else torch.zeros_like(one) for one in (c, n))
    gradients = (
        h.new_empty(0) if grad_h is None else grad_h.contiguous(),
        no_c if grad_c is None else grad_c.contiguous(),
        no_n if grad_n is None else grad_n.contiguous(),
        torch.zeros_like(m0) if grad_m is None else grad_m.contiguous(),
    )
    run(
        cell_backward, batch * heads, steps, heads, width, v.shape[-1], chunk, log_scale(width), warm, ended, False,
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


_by_chunk = register(
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
    """`mlstm_chunkwise` for float32 on a CPU: the same arguments and results; chunks are rounded up to
    multiples of LANES."""
    warm = initial_state is not None
    state = initial_state if initial_state is not None else mlstm_empty_state(q, v)
    length = chunk_length(q.shape[1], q.shape[-1]) if chunk is None else chunk
    inputs = (tensor.contiguous() for tensor in (q, k, v, i, f, *state))
    h, *final = _by_chunk(*inputs, chunk=-(-length // LANES) * LANES, warm=warm)
    return h, MLSTMState(*final)
