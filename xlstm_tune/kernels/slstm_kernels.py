"""The sLSTM cell's passes over time, for each head and tile of samples, in float32 on a CPU, compiled by Numba.

Legend as in `slstm_reference`, whose equations these are; W = LANES samples side by side. The states of a tile stay in
the first-level cache for all steps. Each step first sums its gates by register products of weights and tiles, and then
goes through the units. Gates and inputs are read, and outputs written, batch-first, and transposed on the way.
"""

from __future__ import annotations

import math

import torch
from numba import njit

from xlstm_tune.kernels.matmul_numba import add_column
from xlstm_tune.kernels.products import fetch
from xlstm_tune.kernels.recurrence import STEPS, add_shares, copy_rows
from xlstm_tune.kernels.simd import (
    CONTRACT,
    LANES,
    exp,
    load,
    log_sigmoid_and_slope,
    select,
    sigmoid,
    splat,
    spread,
    store,
    sum_lanes,
    tanh,
    with_sign,
)
from xlstm_tune.kernels.tiles import f32, floats, gather, kernel, scatter

_LIMIT = f32(0.5 * math.log(torch.finfo(torch.float32).max))
"""Bound on log f' where n = 0: there f' multiplies zeros, and an overflow would make them NaN."""
_ZERO, _ONE = f32(0), f32(1)
SAVED = 5
"""Saved for each step and unit: i', f', tanh(z), sigmoid(o), sigmoid(-f)."""
AHEAD = 4
"""Rows are asked for so many steps ahead: they lie too far apart for the processor to guess which comes next."""


@kernel
def cell_forward(
    first, end, batch, steps, heads, width, gates, for_if, for_zo, in_weight, weight, bias, h0, c0, n0, m0, keep, train,
    h_out, c_out, n_out, m_out, saved, cells,
):  # fmt: skip
    """Tasks first..end, each a head and a tile; all arrays flat. M members' samples and heads stand one behind the
    other; `heads` are those of one.

    gates [M N, B, T, 4, D], weight [M N, D in, 4, D out], bias [M N, 4, D], states [M N, B, D], keep [M N, B, T] or
    empty, h_out [M B, T, N, D], saved [M N, tiles, T, 5, D, W], cells [M N, tiles, T + 1, 2, D, W]; without `train` the
    last two may be empty. If gates is empty, they are in_weight, laid out as weight, times for_if (i, f) and for_zo
    (z, o), each [M B, T, N, D].
    """
    tile = width * LANES
    tiles = (batch + LANES - 1) // LANES
    lane, step = steps * heads * width, heads * width
    raw, kept, seen = floats(4 * tile), floats(LANES), floats(tile)
    h, c, n, m = floats(tile), floats(tile), floats(tile), floats(tile)
    for task in range(first, end):
        head, sample = task // tiles, task % tiles * LANES
        count = min(LANES, batch - sample)
        row, by = (head * batch + sample) * width, head * 4 * width * width
        first_h = (head // heads * batch + sample) * lane + head % heads * width
        gather(h0, row, width, count, width, h)
        gather(c0, row, width, count, width, c)
        gather(n0, row, width, count, width, n)
        gather(m0, row, width, count, width, m)
        if train:
            at = task * (steps + 1) * 2 * tile
            for place in range(tile):
                cells[at + place] = n[place]
                cells[at + tile + place] = c[place]
        for t in range(steps):
            row_h = first_h + t * step
            fetch(h_out, row_h + AHEAD * step, lane, count, width)
            if gates.size:
                row_gates = ((head * batch + sample) * steps + t) * 4 * width
                fetch(gates, row_gates + AHEAD * 4 * width, steps * 4 * width, count, 4 * width)
                gather(gates, row_gates, steps * 4 * width, count, 4 * width, raw)
                for gate in range(4 * width):
                    store(raw, gate * LANES, load(raw, gate * LANES) + spread(bias, head * 4 * width + gate))
            else:
                for gate in range(4 * width):
                    store(raw, gate * LANES, spread(bias, head * 4 * width + gate))
                fetch(for_if, row_h + AHEAD * step, lane, count, width)
                fetch(for_zo, row_h + AHEAD * step, lane, count, width)
                gather(for_if, row_h, lane, count, width, seen)
                add_column(in_weight, by, 1, 4 * width, 2 * width, width, seen, 0, LANES, raw, 0, LANES)
                gather(for_zo, row_h, lane, count, width, seen)
                later = by + 2 * width
                add_column(in_weight, later, 1, 4 * width, 2 * width, width, seen, 0, LANES, raw, 2 * tile, LANES)
            if keep.size:
                gather(keep, (head * batch + sample) * steps + t, steps, count, 1, kept)
                for unit in range(width):
                    store(h, unit * LANES, load(h, unit * LANES) * load(kept, 0))
            add_column(weight, by, 1, 4 * width, 4 * width, width, h, 0, LANES, raw, 0, LANES)
            at_saved = (task * steps + t) * SAVED * tile
            at_cells = (task * (steps + 1) + t + 1) * 2 * tile
            for unit in range(width):
                place = unit * LANES
                log_f, slope = log_sigmoid_and_slope(load(raw, tile + place))
                n_old = load(n, place)
                i_weight, f_weight, m_new = _weights(load(raw, place), log_f + load(m, place), n_old, t == 0)
                z = tanh(load(raw, 2 * tile + place))
                o = sigmoid(load(raw, 3 * tile + place))
                c_new = f_weight * load(c, place) + i_weight * z
                n_new = f_weight * n_old + i_weight
                store(c, place, c_new)
                store(n, place, n_new)
                store(m, place, m_new)
                store(h, place, o * c_new / n_new)
                if train:
                    fetch(saved, at_saved + SAVED * tile + place, tile, SAVED, LANES)
                    fetch(cells, at_cells + 2 * tile + place, tile, 2, LANES)
                    store(saved, at_saved + place, i_weight)
                    store(saved, at_saved + tile + place, f_weight)
                    store(saved, at_saved + 2 * tile + place, z)
                    store(saved, at_saved + 3 * tile + place, o)
                    store(saved, at_saved + 4 * tile + place, slope)
                    store(cells, at_cells + place, n_new)
                    store(cells, at_cells + tile + place, c_new)
            scatter(h, width, count, h_out, row_h, lane)
        scatter(c, width, count, c_out, row, width)
        scatter(n, width, count, n_out, row, width)
        scatter(m, width, count, m_out, row, width)


@njit(forceinline=True, fastmath=CONTRACT)
def _weights(i, past, n_old, first):
    """i' and f' and the stabiliser m of a step; past: log f + the stabiliser before, first: whether it is step 0."""
    newer = past > i
    m = select(newer, past, i)
    if first:
        m = select(n_old == _ZERO, i, m)
        f_log = past - m
        return exp(i - m), exp(select(f_log > _LIMIT, splat(_LIMIT), f_log)), m
    # One of the two is e^0.
    smaller = exp(with_sign(past - i, splat(-_ONE)))
    return select(newer, smaller, splat(_ONE)), select(newer, splat(_ONE), smaller), m


@kernel
def cell_backward(
    first, end, batch, steps, heads, width, for_if, for_zo, in_weight, weight, h0, keep, h_out, saved, cells, grad_h,
    grad_c, grad_n, grad_m, stabilised, d_gates, d_if, d_zo, d_in, d_weight, d_bias, d_h, d_c, d_n, d_m,
):  # fmt: skip
    """Tasks and layouts as in `cell_forward`, but weights [N, 4, D out, D in]; grad_h [M B, T, N, D] may be empty.

    `stabilised`: the final state has gradients, so the stabiliser's path counts (see `slstm_reference.backward`).
    Either d_gates is empty or, where the gates were given, in_weight is, and with it d_if, d_zo [M B, T, N, D] and
    d_in. d_in and d_weight [M N, tiles, 4, D out, P] and d_bias [M N, tiles, 4, D] are the tiles' shares, with P = D
    padded to a multiple of LANES. For them, STEPS steps' gates stay in cache, [4, D, STEPS, W], and meet as many rows
    of inputs.
    """
    tile, padded = width * LANES, (width + LANES - 1) // LANES * LANES
    tiles = (batch + LANES - 1) // LANES
    lane, step = steps * heads * width, heads * width
    gates, raw, sums = floats(4 * tile * STEPS), floats(4 * tile), floats(4 * tile)
    kept, real = floats(LANES), floats(LANES)
    h, c, n, m, came, out = floats(tile), floats(tile), floats(tile), floats(tile), floats(tile), floats(tile)
    rows = floats(STEPS * LANES * padded)
    rows[:] = _ZERO
    for task in range(first, end):
        head, sample = task // tiles, task % tiles * LANES
        count = min(LANES, batch - sample)
        row, by = (head * batch + sample) * width, head * 4 * width * width
        first_h = (head // heads * batch + sample) * lane + head % heads * width
        own = task * 4 * width * padded
        for one in range(LANES):
            real[one] = _ONE if one < count else _ZERO
        gather(grad_c, row, width, count, width, c)
        gather(grad_n, row, width, count, width, n)
        gather(grad_m, row, width, count, width, m)
        if stabilised:
            at = (task * (steps + 1) + steps) * 2 * tile
            for unit in range(width):
                place = unit * LANES
                through = load(cells, at + place) * load(n, place) + load(cells, at + tile + place) * load(c, place)
                store(m, place, load(m, place) - through)
        came[:] = _ZERO
        h[:] = _ZERO
        sums[:] = _ZERO
        d_weight[own : own + 4 * width * padded] = _ZERO
        if in_weight.size:
            d_in[own : own + 4 * width * padded] = _ZERO
        for last in range(steps, 0, -STEPS):
            start = max(last - STEPS, 0)
            for t in range(last - 1, start - 1, -1):
                row_h = first_h + t * step
                fetch(h_out, row_h - AHEAD * step, lane, count, width)
                if in_weight.size:
                    fetch(for_if, row_h - AHEAD * step, lane, count, width)
                    fetch(for_zo, row_h - AHEAD * step, lane, count, width)
                    fetch(d_if, row_h - AHEAD * step, lane, count, width)
                    fetch(d_zo, row_h - AHEAD * step, lane, count, width)
                if grad_h.size:
                    fetch(grad_h, row_h - AHEAD * step, lane, count, width)
                    gather(grad_h, row_h, lane, count, width, came)
                at_saved = (task * steps + t) * SAVED * tile
                at_cells = (task * (steps + 1) + t) * 2 * tile
                for unit in range(width):
                    place, to = unit * LANES, (unit * STEPS + t - start) * LANES
                    dh = load(came, place) + load(h, place)
                    fetch(saved, at_saved - SAVED * tile + place, tile, SAVED, LANES)
                    fetch(cells, at_cells - 2 * tile + place, tile, 2, LANES)
                    i_weight = load(saved, at_saved + place)
                    f_weight = load(saved, at_saved + tile + place)
                    z = load(saved, at_saved + 2 * tile + place)
                    o = load(saved, at_saved + 3 * tile + place)
                    slope = load(saved, at_saved + 4 * tile + place)
                    n_old, c_old = load(cells, at_cells + place), load(cells, at_cells + tile + place)
                    n_new, c_new = load(cells, at_cells + 2 * tile + place), load(cells, at_cells + 3 * tile + place)
                    share = _ONE / n_new
                    y = c_new * share
                    by_cell = dh * o * share
                    dc = load(c, place) + by_cell
                    dn = load(n, place) - by_cell * y
                    d_i = i_weight * (dc * z + dn)
                    d_f = f_weight * slope * (dc * c_old + dn * n_old)
                    d_z = dc * i_weight * (_ONE - z * z)
                    d_o = dh * y * o * (_ONE - o)
                    if stabilised:
                        g = load(m, place)
                        to_past = select(f_weight > i_weight, g, splat(_ZERO))
                        if t == 0:
                            to_past = select(n_old == _ZERO, splat(_ZERO), to_past)
                        d_i = d_i + (g - to_past)
                        d_f = d_f + to_past * slope
                        store(m, place, to_past)
                    store(gates, to, d_i)
                    store(gates, to + tile * STEPS, d_f)
                    store(gates, to + 2 * tile * STEPS, d_z)
                    store(gates, to + 3 * tile * STEPS, d_o)
                    store(c, place, dc * f_weight)
                    store(n, place, dn * f_weight)
                at, apart = (t - start) * LANES, STEPS * LANES
                h[:] = _ZERO
                add_column(weight, by, 1, width, width, 4 * width, gates, at, apart, h, 0, LANES)
                if keep.size:
                    gather(keep, (head * batch + sample) * steps + t, steps, count, 1, kept)
                    for unit in range(width):
                        store(h, unit * LANES, load(h, unit * LANES) * load(kept, 0))
            some = last - start
            row_in = first_h + start * step
            if in_weight.size:
                for t in range(some):
                    out[:] = _ZERO
                    add_column(in_weight, by, 1, width, width, 2 * width, gates, t * LANES, apart, out, 0, LANES)
                    scatter(out, width, count, d_if, row_in + t * step, lane)
                    out[:] = _ZERO
                    late, at = by + 2 * width * width, t * LANES + 2 * tile * STEPS
                    add_column(in_weight, late, 1, width, width, 2 * width, gates, at, apart, out, 0, LANES)
                    scatter(out, width, count, d_zo, row_in + t * step, lane)
                copy_rows(for_if, row_in, lane, step, count, some, width, rows, 0)
                add_shares(gates, 0, 2 * width, some, rows, width, d_in, own)
                copy_rows(for_zo, row_in, lane, step, count, some, width, rows, 0)
                add_shares(gates, 2 * tile * STEPS, 2 * width, some, rows, width, d_in, own + 2 * width * padded)
            else:
                for t in range(start, last):
                    for gate in range(4 * width):
                        store(raw, gate * LANES, load(gates, (gate * STEPS + t - start) * LANES))
                    row_gates = ((head * batch + sample) * steps + t) * 4 * width
                    scatter(raw, 4 * width, count, d_gates, row_gates, steps * 4 * width)
            if start == 0:
                copy_rows(h0, row, width, 0, count, 1, width, rows, 0)
                copy_rows(h_out, row_in, lane, step, count, some - 1, width, rows, 1)
            else:
                copy_rows(h_out, row_in - step, lane, step, count, some, width, rows, 0)
            if keep.size:
                for t in range(some):
                    for one in range(count):
                        factor = keep[(head * batch + sample + one) * steps + start + t]
                        at = (t * LANES + one) * padded
                        for feature in range(0, padded, LANES):
                            store(rows, at + feature, load(rows, at + feature) * factor)
            add_shares(gates, 0, 4 * width, some, rows, width, d_weight, own)
            for gate in range(4 * width):
                added = load(sums, gate * LANES)
                for t in range(some):
                    added = added + load(gates, (gate * STEPS + t) * LANES)
                store(sums, gate * LANES, added)
        for gate in range(4 * width):
            d_bias[task * 4 * width + gate] = sum_lanes(load(sums, gate * LANES) * load(real, 0))
        at = task * (steps + 1) * 2 * tile
        for unit in range(width):
            place = unit * LANES
            through = load(cells, at + place) * load(n, place) + load(cells, at + tile + place) * load(c, place)
            store(m, place, load(m, place) + through if stabilised else through)
        scatter(h, width, count, d_h, row, width)
        scatter(c, width, count, d_c, row, width)
        scatter(n, width, count, d_n, row, width)
        scatter(m, width, count, d_m, row, width)
