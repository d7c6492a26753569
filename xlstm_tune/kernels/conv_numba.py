"""The causal convolution with SiLU on a CPU in float32: one pass over the inputs each way, compiled by Numba.

Legend: M members that vmap laid one after another (1 without it), B samples of a member, T steps, E features, K kernel.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor

from xlstm_tune.kernels.library import Kernel, register
from xlstm_tune.kernels.simd import CONTRACT, LANES, load, sigmoid_and_slope, splat, store
from xlstm_tune.kernels.tiles import f32, flat, kernel, own, run

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
def _forward(first, end, samples, steps, width, taps, x, weights, biases, past, resets, out):
    """Tasks first..end, each a sample of a member; all arrays flat.

    x, out [M B, T, E], weights [M, K, E], biases [M, E], past [M B, K - 1, E], resets [M B, T] or empty.
    """
    for sample in range(first, end):
        member = sample // samples
        weight = own(weights, member, taps * width)
        bias = own(biases, member, width)
        at, at_past = sample * steps * width, sample * (taps - 1) * width
        since = taps  # steps since the sample started anew; `taps` is as good as any more
        for step in range(steps):
            since = min(since + 1, taps)
            if resets.size and resets[sample * steps + step]:
                since = 1
            whole = taps == TAPS and since == TAPS and step >= TAPS - 1
            for feature in range(0, width, LANES):
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
    first, end, samples, steps, width, taps, x, weights, biases, past, resets, grad, d_x, d_weight, d_bias, d_past
):
    """As `_forward`; d_weight [M B, K, E] and d_bias [M B, E] are the samples' shares."""
    zero = splat(f32(0))
    for sample in range(first, end):
        member = sample // samples
        weight = own(weights, member, taps * width)
        bias = own(biases, member, width)
        at, at_past = sample * steps * width, sample * (taps - 1) * width
        at_weight, at_bias = sample * taps * width, sample * width
        if taps == TAPS and not resets.size:
            for feature in range(0, width, LANES):
                _four_taps_back(
                    x, weight, bias, past, grad, d_x, d_weight, d_bias, d_past, sample, steps, width, feature
                )
            continue
        for feature in range(0, width, LANES):
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
            if resets.size and resets[sample * steps + step]:
                since = 1
            for feature in range(0, width, LANES):
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


def _arguments(x: Tensor, weight: Tensor) -> tuple[int, ...]:
    """(tasks, samples of a member, steps, width, taps)."""
    return len(x), len(x) // max(1, len(weight)), *x.shape[1:], weight.shape[1]


def _flat_resets(resets: Tensor | None) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    empty = np.empty(0, np.bool_)
    return empty if resets is None else resets.contiguous().view(-1).numpy()


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, past: Tensor, resets: Tensor | None, train: bool
) -> tuple[Tensor, ...]:
    """x [M B, T, E], weight [M, K, E], bias [M, E], past [M B, K - 1, E], resets [M B, T] or None → out, as x."""
    out = torch.empty_like(x)
    inputs = map(flat, (x, weight, bias, past))
    run(_forward, *_arguments(x, weight), *inputs, _flat_resets(resets), flat(out))
    return (out,)


def backward(
    x: Tensor, weight: Tensor, bias: Tensor, past: Tensor, resets: Tensor | None, grad: Tensor | None
) -> tuple[Tensor, ...]:
    """Gradients of (x, weight, bias, past); what is needed of the forward pass is computed again."""
    d_x, d_past = torch.empty_like(x), torch.empty_like(past)
    if grad is None:
        return d_x.zero_(), torch.zeros_like(weight), torch.zeros_like(bias), d_past.zero_()
    d_weight, d_bias = (x.new_empty(len(x), *one.shape[1:]) for one in (weight, bias))
    inputs = map(flat, (x, weight, bias, past))
    outputs = map(flat, (d_x, d_weight, d_bias, d_past))
    arguments = _arguments(x, weight)
    run(_backward, *arguments, *inputs, _flat_resets(resets), flat(grad.contiguous()), *outputs)
    by_member = (one.view(len(weight), -1, *one.shape[1:]).sum(1) for one in (d_weight, d_bias))
    return d_x, *by_member, d_past


def _forward_shapes(x: Tensor, *_: object) -> tuple[Tensor, ...]:
    return (torch.empty_like(x),)


def _backward_shapes(x: Tensor, weight: Tensor, bias: Tensor, past: Tensor, *_: object) -> tuple[Tensor, ...]:
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias), torch.empty_like(past)


_in_layout = register(
    Kernel(
        name="conv_numba",
        inputs={"x": 0, "weight": 0, "bias": 0, "past": 0},
        constants={"resets": 0},
        outputs={"y": 0},
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
    """`around.causal_conv` for float32 on a CPU: the same arguments and result."""
    width = x.shape[2]
    if past is None:
        past = x.new_zeros(x.shape[0], len(weight) - 1, width)
    missing = -width % LANES
    tensors = [F.pad(tensor, (0, missing)) if missing else tensor for tensor in (x, weight, bias, past)]
    x, weight, bias, past = (tensor.contiguous() for tensor in tensors)
    (out,) = _in_layout(x, weight.unsqueeze(0), bias.unsqueeze(0), past, resets)
    return out[..., :width] if missing else out
