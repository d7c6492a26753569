"""The sLSTM cell on a CPU with the inputs' share of the gates computed step by step, in the cell.

Gates are four times as many numbers as what they are made of: writing them to memory and reading them back takes as
long as computing the cell. Legend as in `slstm_numba`, whose kernels these are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xlstm_tune.kernels.library import Kernel, register
from xlstm_tune.kernels.slstm_numba import (
    forward_shapes,
    heads_first_state,
    run_backward,
    run_forward,
)
from xlstm_tune.kernels.slstm_reference import SLSTMState

LARGEST_WEIGHT = 2**18
"""Numbers of a head's input weight up to which each step can take it from the cache: 1 MiB."""


def _forward(
    for_if: Tensor,
    for_zo: Tensor,
    in_weight: Tensor,
    recurrent: Tensor,
    bias: Tensor,
    h0: Tensor,
    c0: Tensor,
    n0: Tensor,
    m0: Tensor,
    train: bool,
) -> tuple[Tensor, ...]:
    """As `slstm_numba.forward`, the gates being in_weight [N, 4, D, D] times for_if (i, f) and for_zo (z, o), each
    [B, T, N, D]."""
    found = _forward_shapes(for_if, for_zo, in_weight, recurrent, bias, h0, c0, n0, m0, train)
    sources = (for_if.new_empty(0), for_if, for_zo, in_weight)
    run_forward(sources, (recurrent, bias, h0, c0, n0, m0), None, train, found)
    return found


def _backward(
    for_if: Tensor,
    for_zo: Tensor,
    in_weight: Tensor,
    recurrent: Tensor,
    h0: Tensor,
    h: Tensor,
    saved: Tensor,
    cells: Tensor,
    *gradients: Tensor | None,
) -> tuple[Tensor, ...]:
    """Gradients of (for_if, for_zo, in_weight, recurrent, bias, h0, c0, n0, m0)."""
    d_sources = torch.empty_like(for_if), torch.empty_like(for_zo)
    sources, of_sources = (for_if, for_zo, in_weight), (h.new_empty(0), *d_sources)
    found = run_backward(sources, recurrent, h0, None, h, saved, cells, gradients, of_sources)
    return *d_sources, *found


def _forward_shapes(
    for_if: Tensor,
    for_zo: Tensor,
    in_weight: Tensor,
    recurrent: Tensor,
    bias: Tensor,
    h0: Tensor,
    c0: Tensor,
    n0: Tensor,
    m0: Tensor,
    train: bool,
) -> tuple[Tensor, ...]:
    like_gates = for_if.new_empty(*h0.shape[:2], for_if.shape[1], 0, for_if.shape[3])
    _, *others = forward_shapes(like_gates, recurrent, bias, h0, c0, n0, m0, None, train)
    return for_if.new_empty(for_if.shape), *others


def _backward_shapes(
    for_if: Tensor, for_zo: Tensor, in_weight: Tensor, recurrent: Tensor, h0: Tensor, h: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    others = (
        torch.empty_like(recurrent),
        h.new_empty(len(recurrent), 4, h.shape[3]),
        *(torch.empty_like(h0) for _ in range(4)),
    )
    return *(one.new_empty(one.shape) for one in (for_if, for_zo, in_weight)), *others


_from_inputs = register(
    Kernel(
        name="slstm_from_inputs_numba",
        inputs={
            "for_if": 0,
            "for_zo": 0,
            "in_weight": 0,
            "recurrent": 0,
            "bias": 0,
            "h0": 0,
            "c0": 0,
            "n0": 0,
            "m0": 0,
        },
        constants={},
        outputs={"h": 0, "c": 0, "n": 0, "m": 0},
        saved={"saved": 0, "cells": 0},
        needs=("for_if", "for_zo", "in_weight", "recurrent", "h0", "h"),
        forward=_forward,
        backward=_backward,
        forward_shapes=_forward_shapes,
        backward_shapes=_backward_shapes,
    )
)


def from_inputs_fits(in_weight: Tensor) -> bool:
    """Whether `slstm_from_inputs_numba` is the faster way for in_weight [N, 4, D, D]."""
    return in_weight.shape[1:].numel() <= LARGEST_WEIGHT


def slstm_from_inputs_numba(
    for_if: Tensor,
    for_zo: Tensor,
    in_weight: Tensor,
    recurrent: Tensor,
    bias: Tensor,
    initial_state: SLSTMState | None = None,
) -> tuple[Tensor, SLSTMState]:
    """`slstm_numba` of the gates that `slstm_gates` makes of for_if, for_zo [B, T, E] and in_weight."""
    heads, _, width, _ = recurrent.shape
    batch, steps, _ = for_if.shape
    sources = (source.reshape(batch, steps, heads, width).contiguous() for source in (for_if, for_zo))
    weights = (weight.contiguous() for weight in (in_weight, recurrent, bias))
    h, *cell = _from_inputs(*sources, *weights, *heads_first_state(initial_state, for_if, heads, width))
    return h, SLSTMState(h[:, -1], *(one.transpose(0, 1) for one in cell))
