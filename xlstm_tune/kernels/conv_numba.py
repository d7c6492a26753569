"""The causal convolution with SiLU on a CPU in float32: one pass over the inputs each way, compiled by Numba.

Legend: B batch, T steps, E features, K kernel, G groups of features whose samples start anew at steps of their own.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor

from xlstm_tune.kernels.library import Kernel, register
from xlstm_tune.kernels.simd import CONTRACT, LANES, load, sigmoid_and_slope, splat, store
from xlstm_tune.kernels.tiles import f32, flat, kernel, run

TAPS = 4
"""The usual kernel, whose inputs and gradients of neighbouring steps stay in registers."""


@njit(forceinline=True, fastmath=CONTRACT)
def tap_sum(weight, bias, width, feature, x0, x1, x2, x3):
    """Four taps before the SiLU, for LANES features of a step: x0 is its input, x1 that of the step before, ..."""
    near = load(bias, feature) + load(weight, 3 * width + feature) * x0 + load(weight, 2 * width + feature) * x1
    return near + (load(weight, width + feature) * x2 + load(weight, feature) * x3)


@njit(forceinline=True, fastmath=CONTRACT)
def to_input(weight, width, feature, t0, t1, t2, t3):
    """What an input receives from the sums of its own step, t3, of the one after it, t2, ..., of the third after it."""
    near = load(weight, 3 * width + feature) * t3 + load(weight, 2 * width + feature) * t2
    return near + (load(weight, width + feature) * t1 + load(weight, feature) * t0)


@njit(forceinline=True, fastmath=CONTRACT)
def store_taps(d_weight, d_bias, sample, width, feature, tap0, tap1, tap2, tap3, shift):
    """A sample's shares of the gradients of four taps and of the bias, for LANES features."""
    at = sample * TAPS * width + feature
    store(d_weight, at, tap0)
    store(d_weight, at + width, tap1)
    store(d_weight, at + 2 * width, tap2)
    store(d_weight, at + 3 * width, tap3)
    store(d_bias, sample * width + feature, shift)


@njit(forceinline=True, fastmath=CONTRACT)
def _sum(x, past, weight, bias, at, at_past, feature, width, taps, step, first):
    """Bias + Σ over taps first.. of weight times input, for LANES features of one step; `past` stands before `x`."""
    total = load(bias, feature)
    for tap in range(first, taps):
        source = step - taps + 1 + tap
        if source >= 0:
            seen = load(x, at + source * width + feature)
        else:
            seen = load(past, at_past + (taps - 1 + source) * width + feature)
        total = total + seen * load(weight, tap * width + feature)
    return total


@kernel
def _forward(first, end, batch, steps, width, taps, groups, x, weight, bias, past, resets, out):
    """Tasks first..end, each a sample and a group; all arrays flat.

    x, out [B, T, E], weight [K, E], bias [E], past [B, K - 1, E], resets [B, T, G] or empty.
    """
    part = width // groups
    for task in range(first, end):
        sample, group = task // groups, task % groups
        at, at_past = sample * steps * width, sample * (taps - 1) * width
        since = taps  # steps since the sample started anew; `taps` is as good as any more
        for step in range(steps):
            since = min(since + 1, taps)
            if resets.size and resets[(sample * steps + step) * groups + group]:
                since = 1
            whole = taps == TAPS and since == TAPS and step >= TAPS - 1
            for feature in range(group * part, (group + 1) * part, LANES):
                if whole:
                    here = at + step * width + feature
                    x1, x2, x3 = load(x, here - width), load(x, here - 2 * width), load(x, here - 3 * width)
                    total = tap_sum(weight, bias, width, feature, load(x, here), x1, x2, x3)
                else:
                    total = _sum(x, past, weight, bias, at, at_past, feature, width, taps, step, taps - since)
                share, _ = sigmoid_and_slope(total)
                store(out, at + step * width + feature, total * share)


@njit(forceinline=True, fastmath=CONTRACT)
def _four_taps_back(x, weight, bias, past, grad, d_x, d_weight, d_bias, d_past, sample, steps, width, feature):
    """`_backward` for LANES features of a sample that nowhere starts anew."""
    at_past, at = sample * 3 * width + feature, sample * steps * width + feature
    zero = splat(f32(0))
    x1, x2, x3 = load(past, at_past + 2 * width), load(past, at_past + width), load(past, at_past)
    t1, t2, t3 = zero, zero, zero
    tap0, tap1, tap2, tap3, shift = zero, zero, zero, zero, zero
    for step in range(steps + 3):  # three steps after the last, whose sums receive nothing
        t0 = zero
        if step < steps:
            x0 = load(x, at + step * width)
            total = tap_sum(weight, bias, width, feature, x0, x1, x2, x3)
            share, rest = sigmoid_and_slope(total)
            t0 = load(grad, at + step * width) * share * (total * rest + f32(1))
            tap0, tap1, tap2, tap3 = tap0 + t0 * x3, tap1 + t0 * x2, tap2 + t0 * x1, tap3 + t0 * x0
            shift = shift + t0
            x1, x2, x3 = x0, x1, x2
        received = to_input(weight, width, feature, t0, t1, t2, t3)
        if step < 3:
            store(d_past, at_past + step * width, received)
        else:
            store(d_x, at + (step - 3) * width, received)
        t1, t2, t3 = t0, t1, t2
    store_taps(d_weight, d_bias, sample, width, feature, tap0, tap1, tap2, tap3, shift)


@kernel
def _backward(
    first, end, batch, steps, width, taps, groups, x, weight, bias, past, resets, grad, d_x, d_weight, d_bias, d_past
):
    """As `_forward`; d_weight [B, K, E] and d_bias [B, E] are the samples' shares."""
    part = width // groups
    zero = splat(f32(0))
    for task in range(first, end):
        sample, group = task // groups, task % groups
        at, at_past = sample * steps * width, sample * (taps - 1) * width
        at_weight, at_bias = sample * taps * width, sample * width
        if taps == TAPS and not resets.size:
            for feature in range(group * part, (group + 1) * part, LANES):
                _four_taps_back(
                    x, weight, bias, past, grad, d_x, d_weight, d_bias, d_past, sample, steps, width, feature
                )
            continue
        for feature in range(group * part, (group + 1) * part, LANES):
            store(d_bias, at_bias + feature, zero)
            for tap in range(taps):
                store(d_weight, at_weight + tap * width + feature, zero)
            for step in range(taps - 1):
                store(d_past, at_past + step * width + feature, zero)
            for step in range(steps):
                store(d_x, at + step * width + feature, zero)
        since = taps
        for step in range(steps):
            since = min(since + 1, taps)
            if resets.size and resets[(sample * steps + step) * groups + group]:
                since = 1
            for feature in range(group * part, (group + 1) * part, LANES):
                total = _sum(x, past, weight, bias, at, at_past, feature, width, taps, step, taps - since)
                share, rest = sigmoid_and_slope(total)
                d_total = load(grad, at + step * width + feature) * share * (total * rest + f32(1))
                store(d_bias, at_bias + feature, load(d_bias, at_bias + feature) + d_total)
                for tap in range(taps - since, taps):
                    source = step - taps + 1 + tap
                    through = load(weight, tap * width + feature) * d_total
                    if source >= 0:
                        place = at + source * width + feature
                        seen = load(x, place)
                        store(d_x, place, load(d_x, place) + through)
                    else:
                        place = at_past + (taps - 1 + source) * width + feature
                        seen = load(past, place)
                        store(d_past, place, load(d_past, place) + through)
                    place = at_weight + tap * width + feature
                    store(d_weight, place, load(d_weight, place) + d_total * seen)


def _arguments(x: Tensor, weight: Tensor, resets: Tensor | None) -> tuple[int, ...]:
    """(tasks, batch, steps, width, taps, groups)."""
    groups = 1 if resets is None else resets.shape[2]
    return x.shape[0] * groups, *x.shape, weight.shape[0], groups


def _flat_resets(resets: Tensor | None) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    empty = np.empty(0, np.bool_)
    return empty if resets is None else resets.contiguous().view(-1).numpy()


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, past: Tensor, resets: Tensor | None, train: bool
) -> tuple[Tensor, ...]:
    """x [B, T, E], weight [K, E], bias [E], past [B, K - 1, E], resets [B, T, G] or None → the output [B, T, E]."""
    out = torch.empty_like(x)
    inputs = map(flat, (x, weight, bias, past))
    run(_forward, *_arguments(x, weight, resets), *inputs, _flat_resets(resets), flat(out))
    return (out,)


def backward(
    x: Tensor, weight: Tensor, bias: Tensor, past: Tensor, resets: Tensor | None, grad: Tensor | None
) -> tuple[Tensor, ...]:
    """Gradients of (x, weight, bias, past); what is needed of the forward pass is computed again."""
    d_x, d_past = torch.empty_like(x), torch.empty_like(past)
    if grad is None:
        return d_x.zero_(), torch.zeros_like(weight), torch.zeros_like(bias), d_past.zero_()
    d_weight, d_bias = x.new_empty(len(x), *weight.shape), x.new_empty(len(x), *bias.shape)
    inputs = map(flat, (x, weight, bias, past))
    outputs = map(flat, (d_x, d_weight, d_bias, d_past))
    arguments = _arguments(x, weight, resets)
    run(_backward, *arguments, *inputs, _flat_resets(resets), flat(grad.contiguous()), *outputs)
    return d_x, d_weight.sum(0), d_bias.sum(0), d_past


def _forward_shapes(x: Tensor, *_: object) -> tuple[Tensor, ...]:
    return (torch.empty_like(x),)


def _backward_shapes(x: Tensor, weight: Tensor, bias: Tensor, past: Tensor, *_: object) -> tuple[Tensor, ...]:
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias), torch.empty_like(past)


_in_layout = register(
    Kernel(
        name="conv_numba",
        inputs={"x": 2, "weight": 1, "bias": 0, "past": 2},
        constants={"resets": 2},
        outputs={"y": 2},
        saved={},
        needs=("x", "weight", "bias", "past", "resets"),
        forward=forward,
        backward=backward,
        forward_shapes=_forward_shapes,
        backward_shapes=_backward_shapes,
    )
)


def conv_numba(
    x: Tensor, weight: Tensor, bias: Tensor, past: Tensor | None = None, resets: Tensor | None = None
) -> Tensor:
    """`conv_reference` for float32 on a CPU: the same arguments and result."""
    width = x.shape[2]
    if past is None:
        past = x.new_zeros(x.shape[0], len(weight) - 1, width)
    missing = -width % LANES
    tensors = [F.pad(tensor, (0, missing)) if missing else tensor for tensor in (x, weight, bias, past)]
    by_group = None if resets is None else resets.unsqueeze(2)
    (out,) = _in_layout(*(tensor.contiguous() for tensor in tensors), by_group)
    return out[..., :width] if missing else out
