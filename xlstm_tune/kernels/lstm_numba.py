"""The LSTM cell on a CPU in float32, compiled by Numba; built as `slstm_numba`, without a projection of h.

Legend as in `lstm_reference`, whose equations these are; W = LANES samples side by side.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xlstm_tune.kernels.library import Kernel, register
from xlstm_tune.kernels.lstm_reference import LSTMState
from xlstm_tune.kernels.recurrence import gate_sums, heads_first, keep_by_head, parameter_gradients, through_weight
from xlstm_tune.kernels.simd import LANES, load, sigmoid_and_slope, store, tanh
from xlstm_tune.kernels.tiles import f32, flat, floats, gather, kernel, run, scatter, tiles_of

_ZERO, _ONE = f32(0), f32(1)
_GATES = 4
"""Saved for each step and unit: σ(i), σ(f), tanh(g), σ(o)."""


@kernel
def _forward(
    first, end, batch, steps, heads, width, gates, weight, bias, h0, c0, keep, train, h_out, c_out, saved, cells
):  # fmt: skip
    """Tasks first..end, each a head and a tile; all arrays flat.

    gates [N, B, T, 4, D], weight [N, 4, D, D], bias [N, 4, D], states [N, B, D], keep [N, B, T] or empty, h_out
    [B, T, N, D], saved [N, tiles, T, 4, D, W], cells [N, tiles, T + 1, D, W]; without `train` the last two may be
    empty.
    """
    tile = width * LANES
    tiles = (batch + LANES - 1) // LANES
    raw, kept = floats(4 * tile), floats(LANES)
    h, h_new, c = floats(tile), floats(tile), floats(tile)
    for task in range(first, end):
        head, sample = task // tiles, task % tiles * LANES
        count = min(LANES, batch - sample)
        row = (head * batch + sample) * width
        gather(h0, row, width, count, width, h)
        gather(c0, row, width, count, width, c)
        if train:
            at = task * (steps + 1) * tile
            for place in range(tile):
                cells[at + place] = c[place]
        for t in range(steps):
            gather(gates, ((head * batch + sample) * steps + t) * 4 * width, steps * 4 * width, count, 4 * width, raw)
            if keep.size:
                gather(keep, (head * batch + sample) * steps + t, steps, count, 1, kept)
                for unit in range(width):
                    store(h, unit * LANES, load(h, unit * LANES) * load(kept, 0))
            at_saved = (task * steps + t) * _GATES * tile
            at_cells = (task * (steps + 1) + t + 1) * tile
            for unit in range(width):
                place = unit * LANES
                i, f, g, o = gate_sums(raw, bias, weight, head, unit, width, h)
                i, _ = sigmoid_and_slope(i)
                f, _ = sigmoid_and_slope(f)
                o, _ = sigmoid_and_slope(o)
                g = tanh(g)
                c_new = f * load(c, place) + i * g
                store(c, place, c_new)
                store(h_new, place, o * tanh(c_new))
                if train:
                    store(saved, at_saved + place, i)
                    store(saved, at_saved + tile + place, f)
                    store(saved, at_saved + 2 * tile + place, g)
                    store(saved, at_saved + 3 * tile + place, o)
                    store(cells, at_cells + place, c_new)
            h, h_new = h_new, h
            scatter(h, width, count, h_out, ((sample * steps + t) * heads + head) * width, steps * heads * width)
        scatter(c, width, count, c_out, row, width)


@kernel
def _backward(
    first, end, batch, steps, heads, width, weight, keep, saved, cells, grad_h, grad_c, d_gates, d_h, d_c
):  # fmt: skip
    """Tasks and layouts as in `_forward`, but weight [N, D in, 4, D out]; grad_h [B, T, N, D] may be empty."""
    tile = width * LANES
    tiles = (batch + LANES - 1) // LANES
    raw, raw_new, kept = floats(4 * tile), floats(4 * tile), floats(LANES)
    h, c = floats(tile), floats(tile)
    for task in range(first, end):
        head, sample = task // tiles, task % tiles * LANES
        count = min(LANES, batch - sample)
        row = (head * batch + sample) * width
        gather(grad_c, row, width, count, width, c)
        raw[:] = _ZERO
        h[:] = _ZERO
        kept[:] = _ONE
        for t in range(steps - 1, -1, -1):
            if grad_h.size:
                row_h = ((sample * steps + t) * heads + head) * width
                gather(grad_h, row_h, steps * heads * width, count, width, h)
            at_saved = (task * steps + t) * _GATES * tile
            at_cells = (task * (steps + 1) + t) * tile
            for unit in range(width):
                place = unit * LANES
                dh = load(h, place) + through_weight(weight, head, unit, width, raw) * load(kept, 0)
                i, f = load(saved, at_saved + place), load(saved, at_saved + tile + place)
                g, o = load(saved, at_saved + 2 * tile + place), load(saved, at_saved + 3 * tile + place)
                y = tanh(load(cells, at_cells + tile + place))
                dc = load(c, place) + dh * o * (_ONE - y * y)
                store(raw_new, place, dc * g * i * (_ONE - i))
                store(raw_new, tile + place, dc * load(cells, at_cells + place) * f * (_ONE - f))
                store(raw_new, 2 * tile + place, dc * i * (_ONE - g * g))
                store(raw_new, 3 * tile + place, dh * y * o * (_ONE - o))
                store(c, place, dc * f)
            raw, raw_new = raw_new, raw
            scatter(
                raw, 4 * width, count, d_gates, ((head * batch + sample) * steps + t) * 4 * width, steps * 4 * width
            )
            if keep.size:
                gather(keep, (head * batch + sample) * steps + t, steps, count, 1, kept)
        for unit in range(width):
            place = unit * LANES
            store(h, place, through_weight(weight, head, unit, width, raw) * load(kept, 0))
        scatter(h, width, count, d_h, row, width)
        scatter(c, width, count, d_c, row, width)


def forward(
    gates: Tensor, recurrent: Tensor, bias: Tensor, h0: Tensor, c0: Tensor, keep: Tensor | None, train: bool
) -> tuple[Tensor, ...]:
    """gates [N, B, T, 4, D], recurrent [N, 4, D, D], bias [N, 4, D], states [N, B, D], keep [N, B, T] or None.

    Returns h [B, T, N, D] and the last c [N, B, D]; for `backward` saved [N, tiles, T, 4, D, W] and cells
    [N, tiles, T + 1, D, W], c from the initial state on.
    """
    found = forward_shapes(gates, recurrent, bias, h0, c0, keep, train)
    heads, batch, steps, _, width = gates.shape
    inputs = (gates, recurrent, bias, h0, c0, gates.new_empty(0) if keep is None else keep)
    run(_forward, heads * tiles_of(batch), batch, steps, heads, width, *map(flat, inputs), train, *map(flat, found))
    return found


def backward(
    recurrent: Tensor,
    h0: Tensor,
    keep: Tensor | None,
    h: Tensor,
    saved: Tensor,
    cells: Tensor,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
) -> tuple[Tensor, ...]:
    """Gradients of (gates, recurrent, bias, h0, c0), exact for any combination of output gradients."""
    batch, steps, heads, width = h.shape
    none = h.new_empty(0)
    inputs = (
        recurrent.permute(0, 3, 1, 2).contiguous(),
        none if keep is None else keep,
        saved,
        cells,
        none if grad_h is None else grad_h.contiguous(),
        torch.zeros_like(h0) if grad_c is None else grad_c.contiguous(),
    )
    d_gates, d_h0, d_c0 = h.new_empty(heads, batch, steps, 4, width), torch.empty_like(h0), torch.empty_like(h0)
    outputs = map(flat, (d_gates, d_h0, d_c0))
    run(_backward, heads * tiles_of(batch), batch, steps, heads, width, *map(flat, inputs), *outputs)
    return d_gates, *parameter_gradients(d_gates, h0, h, keep), d_h0, d_c0


def forward_shapes(
    gates: Tensor, recurrent: Tensor, bias: Tensor, h0: Tensor, c0: Tensor, keep: Tensor | None, train: bool
) -> tuple[Tensor, ...]:
    """Tensors like those that `forward` returns, not filled."""
    heads, batch, steps, _, width = gates.shape
    tiles, held = tiles_of(batch), int(train)
    return (
        gates.new_empty(batch, steps, heads, width),
        torch.empty_like(c0),
        gates.new_empty(heads, tiles, steps * held, _GATES, width, LANES),
        gates.new_empty(heads, tiles, (steps + 1) * held, width, LANES),
    )


def backward_shapes(recurrent: Tensor, h0: Tensor, keep: Tensor | None, h: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Tensors like those that `backward` returns, not filled."""
    batch, steps, heads, width = h.shape
    return (
        h.new_empty(heads, batch, steps, 4, width),
        torch.empty_like(recurrent),
        h.new_empty(heads, 4, width),
        torch.empty_like(h0),
        torch.empty_like(h0),
    )


_in_layout = register(
    Kernel(
        name="lstm_numba",
        inputs={"gates": 0, "recurrent": 0, "bias": 0, "h0": 0, "c0": 0},
        constants={"keep": 0},
        outputs={"h": 2, "c": 0},
        saved={"saved": 0, "cells": 0},
        needs=("recurrent", "h0", "keep", "h"),
        forward=forward,
        backward=backward,
        forward_shapes=forward_shapes,
        backward_shapes=backward_shapes,
    )
)


def lstm_numba(
    gates: Tensor,
    recurrent: Tensor,
    bias: Tensor | None = None,
    initial_state: LSTMState | None = None,
    *,
    projection: Tensor | None = None,
    keep: Tensor | None = None,
) -> tuple[Tensor, LSTMState]:
    """`lstm_reference` without a projection, for float32 on a CPU. Gates that lie head first in memory, as
    [N, B, T, 4, D], are taken in without a copy.
    """
    assert projection is None
    batch, _, heads, _, width = gates.shape
    if initial_state is None:
        state = [gates.new_zeros(heads, batch, width)] * 2
    else:
        state = [one.transpose(0, 1).contiguous() for one in initial_state]
    h, c = _in_layout(*heads_first(gates, recurrent, bias), *state, keep_by_head(keep, heads))
    return h, LSTMState(h[:, -1], c.transpose(0, 1))
