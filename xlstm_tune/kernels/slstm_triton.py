"""The sLSTM cell on a GPU: one kernel for all steps where a head's recurrent weights fit on chip, else two a step.

Legend as in `slstm_reference`, whose equations these are. A program of the whole-sequence kernels has one head and 16
samples; its four recurrent matrices and its states stay on chip from the first step to the last. Wider heads take a
matrix product and a fused kernel of everything else at each step. Products have the inputs' dtype and are summed in
float32, states are float32. The gradient of the recurrent weights is one product over all steps after the loop.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from xlstm_tune.kernels import slstm_steps_triton as kernels
from xlstm_tune.kernels.library import Kernel, register
from xlstm_tune.kernels.parts_triton import (
    STEP_UNITS,
    exact,
    launch_for,
    parameter_gradients,
    programs,
    state_by_head,
)
from xlstm_tune.kernels.recurrence import heads_first, keep_by_head
from xlstm_tune.kernels.slstm_reference import SLSTMState

_GATES = 5
"""Saved for each step and unit: i', f', tanh(z), σ(o), σ(-f)."""


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
    """gates [N, B, T, 4, D], recurrent [N, 4, D, D], bias [N, 4, D] of one dtype; states [N, B, D] and keep [N, B, T]
    (or None) in float32.

    Returns h [B, T, N, D] in the gates' dtype and the last c, n, m [N, B, D]; for `backward` saved [N, B, T, 5, D] and
    cells [N, B, T + 1, 2, D], n and c from the initial state on, in float32.
    """
    found = forward_shapes(gates, recurrent, bias, h0, c0, n0, m0, keep, train)
    heads, batch, steps, _, width = gates.shape
    cut = launch_for(gates)
    if cut is not None:
        kernels.forward[(heads, programs(batch, cut))](
            gates, recurrent, bias, h0, c0, n0, m0, gates if keep is None else keep, *found, batch, steps, heads, width,
            KEEP=keep is not None, TRAIN=train, PRECISION=exact(gates), BLOCK=cut.samples, WIDE=cut.width,
            num_warps=cut.warps, num_stages=cut.stages,
        )  # fmt: skip
    else:
        _forward_by_step(gates, recurrent, bias, (h0, c0, n0, m0), keep, train, found)
    return found


def _forward_by_step(
    gates: Tensor,
    recurrent: Tensor,
    bias: Tensor,
    state: tuple[Tensor, ...],
    keep: Tensor | None,
    train: bool,
    found: tuple[Tensor, ...],
) -> None:
    """Fill `found` with what `forward` returns, by a product and a kernel a step."""
    heads, batch, steps, _, width = gates.shape
    h_out, c, n, m, saved, cells = found
    weight = recurrent.flatten(1, 2).mT  # [N, D in, 4 D]
    total = heads * batch * width
    before = state[0]
    cell = state[1:]
    if train:
        cells[:, :, 0, 0], cells[:, :, 0, 1] = state[2], state[1]
    for t in range(steps):
        if keep is not None:
            before = before * keep[:, :, t, None]
        sums = gates[:, :, t].flatten(2).float() + torch.bmm(before.to(weight.dtype), weight).float()
        kernels.step[(triton.cdiv(total, STEP_UNITS),)](
            sums, bias, *cell, h_out, c, n, m, saved, cells, batch, steps, heads, width, t, total,
            TRAIN=train, BLOCK=STEP_UNITS,
        )  # fmt: skip
        cell = (c, n, m)
        before = h_out[:, t].transpose(0, 1)


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
    stabilised = not (grad_c is None and grad_n is None and grad_m is None)
    none = h.new_empty(0)
    of_h = none if grad_h is None else grad_h.contiguous()
    of_cell = [torch.zeros_like(h0) if grad is None else grad.contiguous() for grad in (grad_c, grad_n, grad_m)]
    d_gates = h.new_empty(heads, batch, steps, 4, width, dtype=recurrent.dtype)
    d_state = [torch.empty_like(h0) for _ in range(4)]
    cut = launch_for(recurrent)
    if cut is not None:
        kernels.backward[(heads, programs(batch, cut))](
            recurrent, h if keep is None else keep, saved, cells, of_h, *of_cell, d_gates, *d_state,
            batch, steps, heads, width, KEEP=keep is not None, SEEN=grad_h is not None, STABILISED=stabilised,
            PRECISION=exact(recurrent), BLOCK=cut.samples, WIDE=cut.width, num_warps=cut.warps, num_stages=cut.stages,
        )  # fmt: skip
    else:
        d_state = _backward_by_step(recurrent, keep, saved, cells, grad_h, of_cell, stabilised, d_gates)
    return d_gates, *parameter_gradients(d_gates, h0, h, keep), *d_state


def _backward_by_step(
    recurrent: Tensor,
    keep: Tensor | None,
    saved: Tensor,
    cells: Tensor,
    grad_h: Tensor | None,
    grad_cell: list[Tensor],
    stabilised: bool,
    d_gates: Tensor,
) -> list[Tensor]:
    """Fill d_gates; the gradients of the initial h, c, n, m."""
    heads, batch, steps, _, width = d_gates.shape
    d_c, d_n, d_m = (grad.clone() for grad in grad_cell)
    if stabilised:
        n, c = cells[:, :, steps].unbind(2)
        d_m -= n * d_n + c * d_c
    weight = recurrent.flatten(1, 2)  # [N, 4 D, D in]
    total = heads * batch * width
    through = torch.zeros_like(d_c)
    for t in range(steps - 1, -1, -1):
        kernels.step_back[(triton.cdiv(total, STEP_UNITS),)](
            through, saved, cells, d_gates if grad_h is None else grad_h.contiguous(), d_c, d_n, d_m, d_gates,
            batch, steps, heads, width, t, total,
            SEEN=grad_h is not None, STABILISED=stabilised, BLOCK=STEP_UNITS,
        )  # fmt: skip
        through = torch.bmm(d_gates[:, :, t].flatten(2), weight).float()
        if keep is not None:
            through = through * keep[:, :, t, None]
    n, c = cells[:, :, 0].unbind(2)
    d_m += n * d_n + c * d_c
    return [through, d_c, d_n, d_m]


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
    held = int(train)
    return (
        gates.new_empty(batch, steps, heads, width),
        *(torch.empty_like(h0) for _ in range(3)),
        h0.new_empty(heads, batch, steps * held, _GATES, width),
        h0.new_empty(heads, batch, (steps + 1) * held, 2, width),
    )


def backward_shapes(recurrent: Tensor, h0: Tensor, keep: Tensor | None, h: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Tensors like those that `backward` returns, not filled."""
    batch, steps, heads, width = h.shape
    return (
        recurrent.new_empty(heads, batch, steps, 4, width),
        torch.empty_like(recurrent),
        recurrent.new_empty(heads, 4, width),
        *(torch.empty_like(h0) for _ in range(4)),
    )


_in_layout = register(
    Kernel(
        name="slstm_triton",
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


def slstm_triton(
    gates: Tensor,
    recurrent: Tensor,
    bias: Tensor | None = None,
    initial_state: SLSTMState | None = None,
    keep: Tensor | None = None,
) -> tuple[Tensor, SLSTMState]:
    """`slstm_reference` for float32, bfloat16 and float16 on a GPU: the same arguments and results, h in the gates'
    dtype, states in float32. Gates that lie head first in memory, as [N, B, T, 4, D], are taken in without a copy.
    """
    state = state_by_head(initial_state, 4, gates)
    h, *cell = _in_layout(*heads_first(gates, recurrent, bias), *state, keep_by_head(keep, gates.shape[2]))
    return h, SLSTMState(h[:, -1].float(), *(one.transpose(0, 1) for one in cell))
