"""The sLSTM cell on a CPU in float32 as an operator; its passes are in `slstm_kernels`.

Legend as in `slstm_reference`; W = LANES samples side by side.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xlstm_tune.kernels.library import Kernel, register
from xlstm_tune.kernels.recurrence import heads_first, keep_by_head
from xlstm_tune.kernels.simd import LANES
from xlstm_tune.kernels.slstm_kernels import SAVED, cell_backward, cell_forward
from xlstm_tune.kernels.slstm_reference import SLSTMState
from xlstm_tune.kernels.tiles import flat, run, tiles_of


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
    """Fill `found` with what `forward` returns. sources: gates, for_if, for_zo, in_weight, as for `cell_forward`."""
    _, steps, heads, width = found[0].shape
    none = found[0].new_empty(0)
    *given, in_weight = sources
    recurrent, *rest = weights_and_state
    inputs = (*given, _by_input(in_weight), _by_input(recurrent), *rest, none if keep is None else keep)
    every, batch = rest[1].shape[:2]
    run(
        cell_forward, every * tiles_of(batch), batch, steps, heads, width, *map(flat, inputs), train, *map(flat, found)
    )  # fmt: skip


def _by_input(weight: Tensor) -> Tensor:
    """[N, 4, D out, D in] as [N, D in, 4, D out]; an empty one as it is."""
    return weight.permute(0, 3, 1, 2).contiguous() if weight.numel() else weight


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
    d_gates = h.new_empty(heads, batch, steps, 4, width)
    gradients = (grad_h, grad_c, grad_n, grad_m)
    found = run_backward((none, none, none), recurrent, h0, keep, h, saved, cells, gradients, (d_gates, none, none))
    return d_gates, *found[1:]


def run_backward(
    sources: tuple[Tensor, Tensor, Tensor],
    recurrent: Tensor,
    h0: Tensor,
    keep: Tensor | None,
    h: Tensor,
    saved: Tensor,
    cells: Tensor,
    gradients: tuple[Tensor | None, ...],
    of_sources: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, ...]:
    """Fill of_sources (d_gates, d_if, d_zo) for sources (for_if, for_zo, in_weight), empty as `cell_backward` has them.

    Returns the gradients of (in_weight, recurrent, bias, h0, c0, n0, m0).
    """
    _, steps, heads, width = h.shape
    every, batch = h0.shape[:2]
    none = h.new_empty(0)
    grad_h, *of_states = gradients
    stabilised = any(grad is not None for grad in of_states)
    inputs = (
        *sources,
        recurrent,
        h0,
        none if keep is None else keep,
        h,
        saved,
        cells,
        none if grad_h is None else grad_h.contiguous(),
        *(torch.zeros_like(h0) if grad is None else grad.contiguous() for grad in of_states),
    )
    tiles, padded = tiles_of(batch), -(-width // LANES) * LANES
    d_recurrent = h.new_empty(every, tiles, 4, width, padded)
    d_in = torch.empty_like(d_recurrent) if sources[2].numel() else none
    d_bias = h.new_empty(every, tiles, 4, width)
    d_states = [torch.empty_like(h0) for _ in range(4)]
    outputs = (*of_sources, d_in, d_recurrent, d_bias, *d_states)
    run(
        cell_backward, every * tiles, batch, steps, heads, width, *map(flat, inputs), stabilised, *map(flat, outputs)
    )  # fmt: skip
    d_weights = (shares.sum(1)[..., :width].contiguous() if shares.numel() else none for shares in (d_in, d_recurrent))
    return *d_weights, d_bias.sum(1), *d_states


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
        gates.new_empty(heads, tiles, steps * held, SAVED, width, LANES),
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
