"""The LSTM cell on a GPU, without a projection of h; built as `slstm_triton`, whose head says how.

Legend as in `lstm_reference`, whose equations these are.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from xlstm_tune.kernels import lstm_steps_triton as kernels
from xlstm_tune.kernels.library import Kernel, register
from xlstm_tune.kernels.lstm_reference import LSTMState
from xlstm_tune.kernels.parts_triton import (
    STEP_UNITS,
    exact,
    launch_for,
    parameter_gradients,
    programs,
    state_by_head,
)
from xlstm_tune.kernels.recurrence import heads_first, keep_by_head

_GATES = 4
"""Saved for each step and unit: σ(i), σ(f), tanh(g), σ(o)."""


def forward(
    gates: Tensor, recurrent: Tensor, bias: Tensor, h0: Tensor, c0: Tensor, keep: Tensor | None, train: bool
) -> tuple[Tensor, ...]:
    """gates [N, B, T, 4, D], recurrent [N, 4, D, D], bias [N, 4, D] of one dtype; states [N, B, D] and keep [N, B, T]
    (or None) in float32.

    Returns h [B, T, N, D] in the gates' dtype and the last c [N, B, D]; for `backward` saved [N, B, T, 4, D] and cells
    [N, B, T + 1, D], c from the initial state on, in float32.
    """
    found = forward_shapes(gates, recurrent, bias, h0, c0, keep, train)
    heads, batch, steps, _, width = gates.shape
    cut = launch_for(gates)
    if cut is not None:
        kernels.forward[(heads, programs(batch, cut))](
            gates, recurrent, bias, h0, c0, gates if keep is None else keep, *found, batch, steps, heads, width,
            KEEP=keep is not None, TRAIN=train, PRECISION=exact(gates), BLOCK=cut.samples, WIDE=cut.width,
            num_warps=cut.warps, num_stages=cut.stages,
        )  # fmt: skip
    else:
        _forward_by_step(gates, recurrent, bias, h0, c0, keep, train, found)
    return found


def _forward_by_step(
    gates: Tensor,
    recurrent: Tensor,
    bias: Tensor,
    h0: Tensor,
    c0: Tensor,
    keep: Tensor | None,
    train: bool,
    found: tuple[Tensor, ...],
) -> None:
    """Fill `found` with what `forward` returns, by a product and a kernel a step."""
    heads, batch, steps, _, width = gates.shape
    h_out, c, saved, cells = found
    weight = recurrent.flatten(1, 2).mT  # [N, D in, 4 D]
    total = heads * batch * width
    before, cell = h0, c0
    if train:
        cells[:, :, 0] = c0
    for t in range(steps):
        if keep is not None:
            before = before * keep[:, :, t, None]
        sums = gates[:, :, t].flatten(2).float() + torch.bmm(before.to(weight.dtype), weight).float()
        kernels.step[(triton.cdiv(total, STEP_UNITS),)](
            sums, bias, cell, h_out, c, saved, cells, batch, steps, heads, width, t, total,
            TRAIN=train, BLOCK=STEP_UNITS,
        )  # fmt: skip
        before, cell = h_out[:, t].transpose(0, 1), c


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
    of_h = h if grad_h is None else grad_h.contiguous()
    of_c = torch.zeros_like(h0) if grad_c is None else grad_c.contiguous()
    d_gates = recurrent.new_empty(heads, batch, steps, 4, width)
    cut = launch_for(recurrent)
    if cut is not None:
        d_h, d_c = torch.empty_like(h0), torch.empty_like(h0)
        kernels.backward[(heads, programs(batch, cut))](
            recurrent, h if keep is None else keep, saved, cells, of_h, of_c, d_gates, d_h, d_c,
            batch, steps, heads, width, KEEP=keep is not None, SEEN=grad_h is not None,
            PRECISION=exact(recurrent), BLOCK=cut.samples, WIDE=cut.width, num_warps=cut.warps, num_stages=cut.stages,
        )  # fmt: skip
    else:
        d_h, d_c = torch.zeros_like(h0), of_c.clone()
        weight = recurrent.flatten(1, 2)  # [N, 4 D, D in]
        total = heads * batch * width
        for t in range(steps - 1, -1, -1):
            kernels.step_back[(triton.cdiv(total, STEP_UNITS),)](
                d_h, saved, cells, of_h, d_c, d_gates, batch, steps, heads, width, t, total,
                SEEN=grad_h is not None, BLOCK=STEP_UNITS,
            )  # fmt: skip
            d_h = torch.bmm(d_gates[:, :, t].flatten(2), weight).float()
            if keep is not None:
                d_h = d_h * keep[:, :, t, None]
    return d_gates, *parameter_gradients(d_gates, h0, h, keep), d_h, d_c


def forward_shapes(
    gates: Tensor, recurrent: Tensor, bias: Tensor, h0: Tensor, c0: Tensor, keep: Tensor | None, train: bool
) -> tuple[Tensor, ...]:
    """Tensors like those that `forward` returns, not filled."""
    heads, batch, steps, _, width = gates.shape
    held = int(train)
    return (
        gates.new_empty(batch, steps, heads, width),
        torch.empty_like(c0),
        c0.new_empty(heads, batch, steps * held, _GATES, width),
        c0.new_empty(heads, batch, (steps + 1) * held, width),
    )


def backward_shapes(recurrent: Tensor, h0: Tensor, keep: Tensor | None, h: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Tensors like those that `backward` returns, not filled."""
    batch, steps, heads, width = h.shape
    return (
        recurrent.new_empty(heads, batch, steps, 4, width),
        torch.empty_like(recurrent),
        recurrent.new_empty(heads, 4, width),
        torch.empty_like(h0),
        torch.empty_like(h0),
    )


_in_layout = register(
    Kernel(
        name="lstm_triton",
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


def lstm_triton(
    gates: Tensor,
    recurrent: Tensor,
    bias: Tensor | None = None,
    initial_state: LSTMState | None = None,
    *,
    projection: Tensor | None = None,
    keep: Tensor | None = None,
) -> tuple[Tensor, LSTMState]:
    """`lstm_reference` without a projection, for float32, bfloat16 and float16 on a GPU: the same arguments and
    results, h in the gates' dtype, states in float32. Gates that lie head first in memory, as [N, B, T, 4, D], are
    taken in without a copy.
    """
    assert projection is None
    state = state_by_head(initial_state, 2, gates)
    h, c = _in_layout(*heads_first(gates, recurrent, bias), *state, keep_by_head(keep, gates.shape[2]))
    return h, LSTMState(h[:, -1].float(), c.transpose(0, 1))
