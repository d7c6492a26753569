"""The sLSTM cell on a CPU in float32: one pass over time for each head and tile of samples, compiled by Numba.

Legend as in `slstm_reference`, whose equations these are; W = LANES samples side by side. The states of a tile stay in
the first-level cache for all steps; a unit's four gates are summed in registers and used there. Gates are read and
written batch-first, one row of 4 D for each sample and step, and transposed on the way.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from xlstm_tune.kernels.library import Kernel, register
from xlstm_tune.kernels.recurrence import (
    gate_sums,
    heads_first,
    inputs_share,
    keep_by_head,
    parameter_gradients,
    through_weight,
)
from xlstm_tune.kernels.simd import (
    LANES,
    exp,
    load,
    log_sigmoid_and_slope,
    select,
    sigmoid_and_slope,
    splat,
    store,
    tanh,
)
from xlstm_tune.kernels.slstm_reference import SLSTMState
from xlstm_tune.kernels.tiles import f32, flat, floats, gather, kernel, run, scatter, tiles_of

_LIMIT = f32(0.5 * math.log(torch.finfo(torch.float32).max))
"""Bound on log f' where n = 0: there f' multiplies zeros, and an overflow would make them NaN."""
_ZERO, _ONE = f32(0), f32(1)
_GATES = 5
"""Saved for each step and unit: i', f', tanh(z), sigmoid(o), sigmoid(-f)."""


@kernel
def _forward(
    first, end, batch, steps, heads, width, gates, for_if, for_zo, in_weight, weight, bias, h0, c0, n0, m0, keep, train,
    h_out, c_out, n_out, m_out, saved, cells,
):  # fmt: skip
    """Tasks first..end, each a head and a tile; all arrays flat.

    gates [N, B, T, 4, D], weight [N, 4, D, D], bias [N, 4, D], states [N, B, D], keep [N, B, T] or empty, h_out
    [B, T, N, D], saved [N, tiles, T, 5, D, W], cells [N, tiles, T + 1, 2, D, W]; without `train` the last two may be
    empty. If gates is empty, they are in_weight [N, 4, D, D] times for_if (i, f) and for_zo (z, o), each [B, T, N, D].
    """
    tile = width * LANES
    tiles = (batch + LANES - 1) // LANES
    raw, kept, seen_if, seen_zo = floats(4 * tile), floats(LANES), floats(tile), floats(tile)
    h, h_new, c, n, m = floats(tile), floats(tile), floats(tile), floats(tile), floats(tile)
    for task in range(first, end):
        head, sample = task // tiles, task % tiles * LANES
        count = min(LANES, batch - sample)
        row = (head * batch + sample) * width
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
            if gates.size:
                row_gates = ((head * batch + sample) * steps + t) * 4 * width
                gather(gates, row_gates, steps * 4 * width, count, 4 * width, raw)
            else:
                row_in = ((sample * steps + t) * heads + head) * width
                gather(for_if, row_in, steps * heads * width, count, width, seen_if)
                gather(for_zo, row_in, steps * heads * width, count, width, seen_zo)
                inputs_share(in_weight, head, width, seen_if, seen_zo, raw)
            if keep.size:
                gather(keep, (head * batch + sample) * steps + t, steps, count, 1, kept)
                for unit in range(width):
                    store(h, unit * LANES, load(h, unit * LANES) * load(kept, 0))
            at_saved = (task * steps + t) * _GATES * tile
            at_cells = (task * (steps + 1) + t + 1) * 2 * tile
            for unit in range(width):
                place = unit * LANES
                i, f, z, o = gate_sums(raw, bias, weight, head, unit, width, h)
                log_f, slope = log_sigmoid_and_slope(f)
                n_old = load(n, place)
                past = log_f + load(m, place)
                m_new = select(past > i, past, i)
                f_log = past - m_new
                if t == 0:
                    m_new = select(n_old == _ZERO, i, m_new)
                    f_log = past - m_new
                    f_log = select(f_log > _LIMIT, splat(_LIMIT), f_log)
                i_weight = exp(i - m_new)
                f_weight = exp(f_log)
                z = tanh(z)
                o, _ = sigmoid_and_slope(o)
                c_new = f_weight * load(c, place) + i_weight * z
                n_new = f_weight * n_old + i_weight
                store(c, place, c_new)
                store(n, place, n_new)
                store(m, place, m_new)
                store(h_new, place, o * c_new / n_new)
                if train:
                    store(saved, at_saved + place, i_weight)
                    store(saved, at_saved + tile + place, f_weight)
                    store(saved, at_saved + 2 * tile + place, z)
                    store(saved, at_saved + 3 * tile + place, o)
                    store(saved, at_saved + 4 * tile + place, slope)
                    store(cells, at_cells + place, n_new)
                    store(cells, at_cells + tile + place, c_new)
            h, h_new = h_new, h
            scatter(h, width, count, h_out, ((sample * steps + t) * heads + head) * width, steps * heads * width)
        scatter(c, width, count, c_out, row, width)
        scatter(n, width, count, n_out, row, width)
        scatter(m, width, count, m_out, row, width)


@kernel
def _backward(
    first, end, batch, steps, heads, width, weight, keep, saved, cells, grad_h, grad_c, grad_n, grad_m, stabilised,
    d_gates, d_h, d_c, d_n, d_m,
):  # fmt: skip
    """Tasks and layouts as in `_forward`, but weight [N, D in, 4, D out]; grad_h [B, T, N, D] may be empty.

    `stabilised`: the final state has gradients, so the stabiliser's path counts (see `slstm_reference.backward`).
    """
    tile = width * LANES
    tiles = (batch + LANES - 1) // LANES
    raw, raw_new, kept = floats(4 * tile), floats(4 * tile), floats(LANES)
    h, c, n, m = floats(tile), floats(tile), floats(tile), floats(tile)
    for task in range(first, end):
        head, sample = task // tiles, task % tiles * LANES
        count = min(LANES, batch - sample)
        row = (head * batch + sample) * width
        gather(grad_c, row, width, count, width, c)
        gather(grad_n, row, width, count, width, n)
        gather(grad_m, row, width, count, width, m)
        if stabilised:
            at = (task * (steps + 1) + steps) * 2 * tile
            for unit in range(width):
                place = unit * LANES
                through = load(cells, at + place) * load(n, place) + load(cells, at + tile + place) * load(c, place)
                store(m, place, load(m, place) - through)
        raw[:] = _ZERO
        h[:] = _ZERO
        kept[:] = _ONE
        for t in range(steps - 1, -1, -1):
            if grad_h.size:
                row_h = ((sample * steps + t) * heads + head) * width
                gather(grad_h, row_h, steps * heads * width, count, width, h)
            at_saved = (task * steps + t) * _GATES * tile
            at_cells = (task * (steps + 1) + t) * 2 * tile
            for unit in range(width):
                place = unit * LANES
                dh = load(h, place) + through_weight(weight, head, unit, width, raw) * load(kept, 0)
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
                store(raw_new, place, d_i)
                store(raw_new, tile + place, d_f)
                store(raw_new, 2 * tile + place, d_z)
                store(raw_new, 3 * tile + place, d_o)
                store(c, place, dc * f_weight)
                store(n, place, dn * f_weight)
            raw, raw_new = raw_new, raw
            scatter(
                raw, 4 * width, count, d_gates, ((head * batch + sample) * steps + t) * 4 * width, steps * 4 * width
            )
            if keep.size:
                gather(keep, (head * batch + sample) * steps + t, steps, count, 1, kept)
        at = task * (steps + 1) * 2 * tile
        for unit in range(width):
            place = unit * LANES
            through = load(cells, at + place) * load(n, place) + load(cells, at + tile + place) * load(c, place)
            store(m, place, load(m, place) + through if stabilised else through)
            store(h, place, through_weight(weight, head, unit, width, raw) * load(kept, 0))
        scatter(h, width, count, d_h, row, width)
        scatter(c, width, count, d_c, row, width)
        scatter(n, width, count, d_n, row, width)
        scatter(m, width, count, d_m, row, width)


def forward(
    gates: Tensor,
    recurrent: Tensor,
    bias: Tensor,
    h0: Tensor,
    c0: Tensor,
    n0: Tensor,
    m0: Tensor,
    keep: Tensor | None,
    train: bool,
) -> tuple[Tensor, ...]:
    """gates [N, B, T, 4, D], recurrent [N, 4, D, D], bias [N, 4, D], states [N, B, D], keep [N, B, T] or None.

    Returns h [B, T, N, D] and the last c, n, m [N, B, D]; for `backward` saved [N, tiles, T, 5, D, W] and cells
    [N, tiles, T + 1, 2, D, W], n and c from the initial state on.
    """
    found = forward_shapes(gates, recurrent, bias, h0, c0, n0, m0, keep, train)
    none = gates.new_empty(0)
    run_forward((gates, none, none, none), (recurrent, bias, h0, c0, n0, m0), keep, train, found)
    return found


def run_forward(
    sources: tuple[Tensor, Tensor, Tensor, Tensor],
    weights_and_state: tuple[Tensor, ...],
    keep: Tensor | None,
    train: bool,
    found: tuple[Tensor, ...],
) -> None:
    """Fill `found` with what `forward` returns. sources: gates, or (empty, for_if, for_zo, in_weight) of `_forward`."""
    batch, steps, heads, width = found[0].shape
    none = found[0].new_empty(0)
    inputs = (*sources, *weights_and_state, none if keep is None else keep)
    run(
        _forward, heads * tiles_of(batch), batch, steps, heads, width, *map(flat, inputs), train, *map(flat, found)
    )  # fmt: skip


def backward(
    recurrent: Tensor,
    h0: Tensor,
    keep: Tensor | None,
    h: Tensor,
    saved: Tensor,
    cells: Tensor,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    grad_n: Tensor | None,
    grad_m: Tensor | None,
) -> tuple[Tensor, ...]:
    """Gradients of (gates, recurrent, bias, h0, c0, n0, m0), exact for any combination of output gradients."""
    batch, steps, heads, width = h.shape
    none = h.new_empty(0)
    stabilised = not (grad_c is None and grad_n is None and grad_m is None)
    of_states = (torch.zeros_like(h0) if grad is None else grad.contiguous() for grad in (grad_c, grad_n, grad_m))
    inputs = (
        recurrent.permute(0, 3, 1, 2).contiguous(),
        none if keep is None else keep,
        saved,
        cells,
        none if grad_h is None else grad_h.contiguous(),
        *of_states,
    )
    d_gates = h.new_empty(heads, batch, steps, 4, width)
    d_states = [torch.empty_like(h0) for _ in range(4)]
    outputs = (d_gates, *d_states)
    run(
        _backward, heads * tiles_of(batch), batch, steps, heads, width,
        *map(flat, inputs), stabilised, *map(flat, outputs),
    )  # fmt: skip

    return d_gates, *parameter_gradients(d_gates, h0, h, keep), *d_states


def forward_shapes(
    gates: Tensor,
    recurrent: Tensor,
    bias: Tensor,
    h0: Tensor,
    c0: Tensor,
    n0: Tensor,
    m0: Tensor,
    keep: Tensor | None,
    train: bool,
) -> tuple[Tensor, ...]:
    """Tensors like those that `forward` returns, not filled."""
    heads, batch, steps, _, width = gates.shape
    tiles, held = tiles_of(batch), int(train)
    return (
        gates.new_empty(batch, steps, heads, width),
        *(torch.empty_like(h0) for _ in range(3)),
        gates.new_empty(heads, tiles, steps * held, _GATES, width, LANES),
        gates.new_empty(heads, tiles, (steps + 1) * held, 2, width, LANES),
    )


def backward_shapes(recurrent: Tensor, h0: Tensor, keep: Tensor | None, h: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Tensors like those that `backward` returns, not filled."""
    batch, steps, heads, width = h.shape
    return (
        h.new_empty(heads, batch, steps, 4, width),
        torch.empty_like(recurrent),
        h.new_empty(heads, 4, width),
        *(torch.empty_like(h0) for _ in range(4)),
    )


_in_layout = register(
    Kernel(
        name="slstm_numba",
        inputs={"gates": 0, "recurrent": 0, "bias": 0, "h0": 0, "c0": 0, "n0": 0, "m0": 0},
        constants={"keep": 0},
        outputs={"h": 2, "c": 0, "n": 0, "m": 0},
        saved={"saved": 0, "cells": 0},
        needs=("recurrent", "h0", "keep", "h"),
        forward=forward,
        backward=backward,
        forward_shapes=forward_shapes,
        backward_shapes=backward_shapes,
    )
)


def slstm_numba(
    gates: Tensor,
    recurrent: Tensor,
    bias: Tensor | None = None,
    initial_state: SLSTMState | None = None,
    keep: Tensor | None = None,
) -> tuple[Tensor, SLSTMState]:
    """`slstm_reference` for float32 on a CPU: the same arguments and results. Gates that lie head first in memory, as
    [N, B, T, 4, D], are taken in without a copy.
    """
    _, _, heads, _, width = gates.shape
    state = heads_first_state(initial_state, gates, heads, width)
    h, *cell = _in_layout(*heads_first(gates, recurrent, bias), *state, keep_by_head(keep, heads))
    return h, SLSTMState(h[:, -1], *(one.transpose(0, 1) for one in cell))


def heads_first_state(state: SLSTMState | None, like: Tensor, heads: int, width: int) -> list[Tensor]:
    """Each of the state as [N, B, D]."""
    if state is None:
        return [like.new_zeros(heads, like.shape[0], width)] * 4
    return [one.transpose(0, 1).contiguous() for one in state]
