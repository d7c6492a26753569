"""Parts of the mLSTM cell's Numba kernels: what the gates of a head say, and what happens within one chunk of steps.

Legend: T steps, L steps in a chunk (a multiple of LANES), D head width of q and k, V of v; a star marks a size padded
to a multiple of LANES, with zeros in rows of q, k and v. All arrays are flat. Equations in `mlstm_reference`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit

from xlstm_tune.kernels.mlstm_forms import EPSILON, largest_floor
from xlstm_tune.kernels.products import ROWS, get, onto, put, times, times_each, zeros
from xlstm_tune.kernels.simd import (
    CONTRACT,
    LANES,
    exp,
    load,
    log_sigmoid_and_slope,
    select,
    splat,
    spread,
    store,
)

SHUT = -1e4
"""A forget gate below this starts a new segment: sums and maxima begin anew, and nothing older weighs anything."""
CALM = 30.0
"""The rise of M over LANES steps up to which exp(a_s - M_t) may be split into two factors without overflow."""
LARGEST_FLOOR = largest_floor(torch.float32)
_ZERO, _NEVER = np.float32(0), np.float32(-np.inf)
_EPSILON = np.float32(EPSILON)


@njit
def gate_sums(i, f, at, stride, steps, chunk, m, log_f, slope, decay, a, running, segment, newest):
    """Walk over the gates of a head, `stride` apart from `at` on, behind a state with stabiliser m.

    Fills, each [chunks · L]: slope, the derivative of logsigmoid(f); decay F, a and running M in float64, as if each
    chunk and each segment began at F = 0; segment, the number of shut forget gates so far in the chunk; newest, the
    step whose input is the largest so far, counted from 1, or 0 for the initial state. Behind the last step a is -inf
    and M is huge, so that nothing there weighs anything. log_f is scratch. Returns the last stabiliser.
    """
    for t in range(steps):
        log_f[t] = f[at + t * stride]
    for t in range(steps, len(log_f)):
        log_f[t] = _ZERO
    for start in range(0, len(log_f), LANES):
        value, derivative = log_sigmoid_and_slope(load(log_f, start))
        store(log_f, start, value)
        store(slope, start, derivative)
    largest, total, count, last = m, 0.0, 0, 0
    for t in range(steps):
        if t % chunk == 0:
            largest += total
            total, count = 0.0, 0
        if log_f[t] < SHUT:
            count += 1
            total, largest = 0.0, -np.inf
            slope[t] = _ZERO
        else:
            total += log_f[t]
        one = np.float64(i[at + t * stride]) - total
        if not one < largest:
            largest = one
            last = t + 1
        decay[t], a[t], running[t], segment[t], newest[t] = total, one, largest, count, last
    for t in range(steps, len(log_f)):
        decay[t], a[t], running[t], segment[t] = 0.0, -np.inf, 1e30, -1
    return largest + total


@njit
def edge_weights(a, running, segment, start, count, rows, m, log_scale, past, to_end):
    """For the `count` steps of a chunk from `start` on: past [L*], the weight p_t of the state before it, whose
    stabiliser is m; to_end [L*], the weight of each step's input, over √D, in the state after it."""
    end = start + count - 1
    for t in range(rows):
        at = start + t
        past[t] = np.float32(m - running[at]) if segment[at] == 0 else _NEVER
        same = segment[at] == segment[end]
        to_end[t] = np.float32(a[at] - running[end] - log_scale) if same else _NEVER
    for t in range(0, rows, LANES):
        store(past, t, exp(load(past, t)))
        store(to_end, t, exp(load(to_end, t)))


@njit(fastmath=CONTRACT)
def scores(
    keys, queries_turned, width, wide, a, running, segment, start, count, rows, chunk, log_scale, own, lanes,
    weights, out, total,
):  # fmt: skip
    """weights and out [L, L], as [s, t]: the weight over √D of step s in step t ≥ s, and that times k_s · q_t; the sum
    of the latter over s in total [L*]. keys [L, D*], queries_turned [D*, L]. Above the diagonal whole blocks of LANES
    steps t are left out, not written. own [L + LANES] is scratch; lanes [LANES] counts from 0.
    """
    for t in range(0, rows, LANES):
        # Relative to a step nearby float32 is exact where it matters.
        near = running[start + t]
        calm = True
        for lane in range(LANES):
            rise = running[start + t + lane] - near
            own[chunk + lane] = np.float32(rise)
            calm = calm and (abs(rise) < CALM or t + lane >= count)
        largest = load(own, chunk)
        if calm:
            # exp(a_s - M_t) as a product: an exponential for each step, not for each pair.
            largest = exp(splat(_ZERO) - largest)
            for s in range(min(t + LANES, rows)):
                own[s] = np.float32(a[start + s] - near - log_scale)
            for s in range(0, min(t + LANES, rows), LANES):
                store(own, s, exp(load(own, s)))
        segments = load(segment, start + t)
        summed = splat(_ZERO)
        for s in range(0, min(t + LANES, count), ROWS):
            put(onto(zeros(), keys, s * wide, wide, 1, queries_turned, t, chunk, width), out, s * chunk + t, chunk)
            for row in range(s, s + ROWS):
                if calm:
                    weight = spread(own, row) * largest
                else:  # far apart, as behind shut input gates: what is near in one lane is not in another
                    for lane in range(LANES):
                        own[chunk + lane] = np.float32(a[start + row] - running[start + t + lane] - log_scale)
                    weight = exp(load(own, chunk))
                weight = select(segments == spread(segment, start + row), weight, splat(_ZERO))
                weight = select(load(lanes, 0) < np.float32(row - t), splat(_ZERO), weight)
                place = row * chunk + t
                score = load(out, place) * weight
                store(weights, place, weight)
                store(out, place, score)
                summed = summed + score
        store(total, t, summed)


@njit(fastmath=CONTRACT)
def add_past(state, width, wide, value_wide, queries_turned, past, rows, chunk, total):
    """total [L*] += p_t (q_t · n); n stands behind C in the state [C: D* × V*, n: D*]."""
    at = wide * value_wide
    for t in range(0, rows, LANES):
        even, odd = splat(_ZERO), splat(_ZERO)
        for feature in range(0, width - 1, 2):
            even = even + spread(state, at + feature) * load(queries_turned, feature * chunk + t)
            odd = odd + spread(state, at + feature + 1) * load(queries_turned, (feature + 1) * chunk + t)
        if width % 2:
            even = even + spread(state, at + width - 1) * load(queries_turned, (width - 1) * chunk + t)
        store(total, t, load(total, t) + (even + odd) * load(past, t))


@njit(fastmath=CONTRACT)
def denominators(total, decay, running, start, rows, floor, share):
    """floor [L*]: exp(-m_t), held below overflow; share [L*]: 1 / (max(|total|, floor) + ε)."""
    for t in range(rows):
        floor[t] = np.float32(min(-(decay[start + t] + running[start + t]), LARGEST_FLOOR))
    for t in range(0, rows, LANES):
        least = exp(load(floor, t))
        size = load(total, t)
        size = select(size < _ZERO, _ZERO - size, size)
        size = select(size > least, size, select(size == size, least, size))
        store(floor, t, least)
        store(share, t, np.float32(1) / (size + _EPSILON))


@njit(fastmath=CONTRACT)
def outputs(queries, width, wide, state, value_wide, past, pairs, values, share, count, chunk, empty, out):
    """out [L, V*]: h. share is one over its denominator."""
    for t in range(0, count, ROWS):
        for column in range(0, value_wide, LANES):
            block = zeros()
            if not empty:
                block = onto(block, queries, t * wide, wide, 1, state, column, value_wide, width)
                block = times_each(block, past, t)
            block = onto(block, pairs, t, 1, chunk, values, column, value_wide, min(t + ROWS, count))
            put(times_each(block, share, t), out, t * value_wide + column, value_wide)


@njit(fastmath=CONTRACT)
def next_state(state, at, keys, values, to_end, past, count, width, wide, value_wide, empty, after, after_at):
    """State [C: D* × V*, n: D*] behind a chunk, into `after`; keys [L, D*] are scaled by `to_end` in place."""
    for s in range(count):
        for feature in range(0, wide, LANES):
            place = s * wide + feature
            store(keys, place, load(keys, place) * spread(to_end, s))
    kept = past[count - 1]
    for feature in range(0, width, ROWS):
        for column in range(0, value_wide, LANES):
            place = feature * value_wide + column
            block = zeros() if empty else times(get(state, at + place, value_wide), kept)
            block = onto(block, keys, feature, 1, wide, values, column, value_wide, count)
            put(block, after, after_at + place, value_wide)
    offset = wide * value_wide
    for feature in range(0, wide, LANES):
        summed = splat(_ZERO) if empty else load(state, at + offset + feature) * kept
        for s in range(count):
            summed = summed + load(keys, s * wide + feature)
        store(after, after_at + offset + feature, summed)


def log_scale(width: int) -> float:
    """log √D."""
    return 0.5 * math.log(width)
