"""Parts of the mLSTM cell's backward Numba kernel: gradients within one chunk of steps, and of the gates.

Legend and layouts as in `mlstm_chunk`; the derivation is that of `mlstm_reference.backward`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from xlstm_tune.kernels.mlstm_chunk import SHUT
from xlstm_tune.kernels.mlstm_forms import EPSILON
from xlstm_tune.kernels.products import ROWS, get, onto, put, times, times_each, zeros
from xlstm_tune.kernels.simd import CONTRACT, LANES, load, splat, spread, store, sum_lanes

_ZERO = np.float32(0)
_EPSILON = np.float32(EPSILON)


@njit(fastmath=CONTRACT)
def of_sums(grads, h, value_wide, rows, floor, share, total, row, of_m):
    """From the gradients of h to those of the numerator in place, grads [L, V*], and of total in place of total [L*].

    Also fills row and of_m [L*]: Σ_s E_ts + dm_t and dm_t.
    """
    for t in range(rows):
        summed, part = splat(_ZERO), share[t]
        for place in range(t * value_wide, (t + 1) * value_wide, LANES):
            grad = load(grads, place)
            summed = summed + grad * load(h, place)
            store(grads, place, grad * part)
        of_h = sum_lanes(summed) * part
        of_m[t] = -of_h * _EPSILON
        if abs(total[t]) > floor[t]:
            row[t] = _ZERO
            total[t] = -of_h if total[t] > _ZERO else of_h
        else:
            row[t] = of_h * floor[t]
            total[t] = _ZERO


@njit(fastmath=CONTRACT)
def of_pairs(values, value_width, value_wide, grads_turned, of_total, weights, count, rows, chunk, out):
    """out [L, L], as [s, t]: gradient of k_s · q_t. grads_turned [V*, L] and of_total [L*] are those of the sums."""
    for t in range(0, rows, LANES):
        by_total = load(of_total, t)
        for s in range(0, min(t + LANES, count), ROWS):
            block = onto(zeros(), values, s * value_wide, value_wide, 1, grads_turned, t, chunk, value_width)
            put(block, out, s * chunk + t, chunk)
            for place in range(s * chunk + t, (s + ROWS) * chunk + t, chunk):
                store(out, place, (load(out, place) + by_total) * load(weights, place))


@njit(fastmath=CONTRACT)
def of_queries(
    keys, width, wide, grad_pairs, state, value_width, value_wide, grads_turned, of_total, past, count, rows, chunk,
    empty, out,
):  # fmt: skip
    """out [D*, L]: gradients of q, turned, through the pairs and through the state before the chunk."""
    of_n = wide * value_wide
    for t in range(0, rows, LANES):
        for feature in range(0, width, ROWS):
            block = zeros()
            if not empty:
                block = onto(block, state, feature * value_wide, value_wide, 1, grads_turned, t, chunk, value_width)
                block = onto(block, state, of_n + feature, 1, 0, of_total, t, 0, 1)
                block = times(block, load(past, t))
            block = onto(block, keys, feature, 1, wide, grad_pairs, t, chunk, min(t + LANES, count))
            put(block, out, feature * chunk + t, chunk)


@njit(fastmath=CONTRACT)
def of_keys(
    queries, width, wide, grad_pairs, values, value_width, value_wide, later, later_turned, to_end, count, chunk, ended,
    keys, out, of_weights,
):  # fmt: skip
    """out [L, D*]: gradients of k, through the pairs and through the state after the chunk, whose gradient is later
    [C: D* × V*, n: D*] and later_turned [V*, D*]. of_weights [L]: k_s · dk_s. ended: later is zero."""
    one = np.ones(1, np.float32)
    for s in range(0, count, ROWS):
        for feature in range(0, wide, LANES):
            block = zeros()
            if not ended:
                block = onto(block, values, s * value_wide, value_wide, 1, later_turned, feature, wide, value_width)
                block = onto(block, one, 0, 0, 0, later, wide * value_wide + feature, 0, 1)
                block = times_each(block, to_end, s)
            block = onto(block, grad_pairs, s * chunk + s, chunk, 1, queries, s * wide + feature, wide, count - s)
            put(block, out, s * wide + feature, wide)
    for s in range(count):
        summed = splat(_ZERO)
        for place in range(s * wide, (s + 1) * wide, LANES):
            summed = summed + load(keys, place) * load(out, place)
        of_weights[s] = sum_lanes(summed)


@njit(fastmath=CONTRACT)
def of_values(keys, width, wide, pairs, grads, value_wide, later, to_end, count, chunk, ended, out):
    """out [L, V*]: gradients of v, likewise."""
    for s in range(0, count, ROWS):
        for column in range(0, value_wide, LANES):
            block = zeros()
            if not ended:
                block = onto(block, keys, s * wide, wide, 1, later, column, value_wide, width)
                block = times_each(block, to_end, s)
            block = onto(block, pairs, s * chunk + s, chunk, 1, grads, s * value_wide + column, value_wide, count - s)
            put(block, out, s * value_wide + column, value_wide)


@njit(fastmath=CONTRACT)
def of_state(queries, width, wide, grads, value_wide, of_total, past, count, later):
    """later, the gradient of the state after a chunk, becomes that of the state before it. Scales grads and of_total by
    `past` in place."""
    for t in range(count):
        for place in range(t * value_wide, (t + 1) * value_wide, LANES):
            store(grads, place, load(grads, place) * spread(past, t))
        of_total[t] *= past[t]
    kept = past[count - 1]
    for feature in range(0, width, ROWS):
        for column in range(0, value_wide, LANES):
            place = feature * value_wide + column
            block = times(get(later, place, value_wide), kept)
            put(onto(block, queries, feature, 1, wide, grads, column, value_wide, count), later, place, value_wide)
    for feature in range(0, wide, LANES):
        summed = load(later, wide * value_wide + feature) * kept
        for t in range(count):
            summed = summed + load(queries, t * wide + feature) * spread(of_total, t)
        store(later, wide * value_wide + feature, summed)


@njit
def of_gates(row, of_weights, of_m, newest, log_f, slope, steps, passed, d_i, d_f, at, stride):
    """Gradients of a head's gates, `stride` apart from `at` on, from those of the logarithms of weights and of m.

    passed [T + 1] is scratch; afterwards its first number is what the initial stabiliser receives from later ones.
    """
    passed[: steps + 1] = _ZERO
    for t in range(steps):
        passed[newest[t]] += of_m[t]
    summed = 0.0
    for t in range(steps - 1, -1, -1):
        of_i = of_weights[t] + passed[t + 1]
        summed += np.float64(row[t]) - np.float64(of_i)
        d_i[at + t * stride] = of_i
        d_f[at + t * stride] = np.float32(summed) * slope[t]
        if log_f[t] < SHUT:
            summed = 0.0  # nothing behind a shut gate reaches what is before it
