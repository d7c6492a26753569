"""The norm of each head on a CPU in float32, alone or with what follows it in an mLSTM layer, in one pass each way.

Legend: B batch, T steps, N heads, D head width, P = N D features.
"""

from __future__ import annotations

import math

import torch
from numba import njit
from torch import Tensor

from xlstm_tune.kernels.library import Kernel, register
from xlstm_tune.kernels.simd import CONTRACT, LANES, load, sigmoid_and_slope, splat, store, sum_lanes
from xlstm_tune.kernels.tiles import f32, flat, kernel, run

EPSILON = 1e-5


@njit(inline="always", fastmath=CONTRACT)
def _statistics(h, at, width):
    """Mean and 1 / deviation of a head's features."""
    sums = splat(f32(0))
    for feature in range(0, width, LANES):
        sums = sums + load(h, at + feature)
    mean = sum_lanes(sums) / f32(width)
    squares = splat(f32(0))
    for feature in range(0, width, LANES):
        centred = load(h, at + feature) - mean
        squares = squares + centred * centred
    return mean, f32(1) / f32(math.sqrt(sum_lanes(squares) / f32(width) + f32(EPSILON)))


@kernel
def norm_forward(first, end, steps, heads, width, gated, h, weight, c, skip, z, y):
    """Samples first..end; h, c, z, y [B, T, P], weight, skip [P], flat; c, skip and z are read only if `gated`."""
    for row in range(first * steps, end * steps):
        for head in range(heads):
            at = (row * heads + head) * width
            mean, scale = _statistics(h, at, width)
            for feature in range(0, width, LANES):
                place = head * width + feature
                out = (load(h, at + feature) - mean) * scale * load(weight, place)
                if gated:
                    gate = load(z, at + feature)
                    share, _ = sigmoid_and_slope(gate)
                    out = (out + load(skip, place) * load(c, at + feature)) * (gate * share)
                store(y, at + feature, out)


@kernel
def norm_backward(
    first, end, steps, heads, width, gated, h, weight, c, skip, z, grad, d_h, d_weight, d_c, d_skip, d_z, y,
):  # fmt: skip
    """As `norm_forward`; d_weight and d_skip [B, P] are the samples' shares. y, made again if gated: may be empty."""
    features = heads * width
    zero = splat(f32(0))
    for sample in range(first, end):
        for feature in range(0, features, LANES):
            store(d_weight, sample * features + feature, zero)
            if gated:
                store(d_skip, sample * features + feature, zero)
        for row in range(sample * steps, (sample + 1) * steps):
            for head in range(heads):
                at = (row * heads + head) * width
                mean, scale = _statistics(h, at, width)
                sums, products = zero, zero
                for feature in range(0, width, LANES):
                    place = head * width + feature
                    shared = sample * features + place
                    normal = (load(h, at + feature) - mean) * scale
                    through = load(grad, at + feature)
                    if gated:
                        gate, convolved = load(z, at + feature), load(c, at + feature)
                        share, rest = sigmoid_and_slope(gate)
                        added = normal * load(weight, place) + load(skip, place) * convolved
                        store(d_z, at + feature, through * added * share * (gate * rest + f32(1)))
                        if y.size:
                            store(y, at + feature, added * (gate * share))
                        through = through * (gate * share)
                        store(d_c, at + feature, through * load(skip, place))
                        store(d_skip, shared, load(d_skip, shared) + through * convolved)
                    store(d_weight, shared, load(d_weight, shared) + through * normal)
                    through = through * load(weight, place)
                    store(d_h, at + feature, through)
                    sums = sums + through
                    products = products + through * normal
                mean_through = sum_lanes(sums) / f32(width)
                mean_product = sum_lanes(products) / f32(width)
                for feature in range(0, width, LANES):
                    normal = (load(h, at + feature) - mean) * scale
                    through = load(d_h, at + feature)
                    store(d_h, at + feature, (through - mean_through - normal * mean_product) * scale)


def _norm(h: Tensor, weight: Tensor, train: bool) -> tuple[Tensor, ...]:
    y, none = torch.empty_like(h), h.new_empty(0)
    batch, steps, heads, width = h.shape
    run(norm_forward, batch, steps, heads, width, False, *map(flat, (h, weight, none, none, none, y)))
    return (y,)


def _norm_backward(h: Tensor, weight: Tensor, grad: Tensor | None) -> tuple[Tensor, ...]:
    d_h, none = torch.empty_like(h), h.new_empty(0)
    batch, steps, heads, width = h.shape
    if grad is None:
        return d_h.zero_(), torch.zeros_like(weight)
    shares = h.new_empty(batch, *weight.shape)
    tensors = (h, weight, none, none, none, grad.contiguous(), d_h, shares, none, none, none, none)
    run(norm_backward, batch, steps, heads, width, False, *map(flat, tensors))
    return d_h, shares.sum(0)


def _gated(h: Tensor, weight: Tensor, c: Tensor, skip: Tensor, z: Tensor, train: bool) -> tuple[Tensor, ...]:
    y = torch.empty_like(h)
    batch, steps, heads, width = h.shape
    run(norm_forward, batch, steps, heads, width, True, *map(flat, (h, weight, c, skip, z, y)))
    return (y,)


def _gated_backward(
    h: Tensor, weight: Tensor, c: Tensor, skip: Tensor, z: Tensor, grad: Tensor | None
) -> tuple[Tensor, ...]:
    batch, steps, heads, width = h.shape
    d_h, d_c, d_z = torch.empty_like(h), torch.empty_like(c), torch.empty_like(z)
    if grad is None:
        return d_h.zero_(), torch.zeros_like(weight), d_c.zero_(), torch.zeros_like(skip), d_z.zero_()
    d_weight, d_skip = h.new_empty(batch, *weight.shape), h.new_empty(batch, *skip.shape)
    tensors = (h, weight, c, skip, z, grad.contiguous(), d_h, d_weight, d_c, d_skip, d_z, h.new_empty(0))
    run(norm_backward, batch, steps, heads, width, True, *map(flat, tensors))
    return d_h, d_weight.sum(0), d_c, d_skip.sum(0), d_z


def _like_first(h: Tensor, *_: object) -> tuple[Tensor, ...]:
    return (torch.empty_like(h),)


def _like_inputs(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Like all but the last, the gradient."""
    return tuple(torch.empty_like(tensor) for tensor in tensors[:-1])


_norm_in_layout = register(
    Kernel(
        name="head_norm_numba",
        inputs={"h": 2, "weight": 0},
        constants={},
        outputs={"y": 2},
        saved={},
        needs=("h", "weight"),
        forward=_norm,
        backward=_norm_backward,
        forward_shapes=_like_first,
        backward_shapes=_like_inputs,
    )
)

_gated_in_layout = register(
    Kernel(
        name="gated_head_norm_numba",
        inputs={"h": 2, "weight": 0, "c": 2, "skip": 0, "z": 2},
        constants={},
        outputs={"y": 2},
        saved={},
        needs=("h", "weight", "c", "skip", "z"),
        forward=_gated,
        backward=_gated_backward,
        forward_shapes=_like_first,
        backward_shapes=_like_inputs,
    )
)


def head_norm_numba(h: Tensor, weight: Tensor) -> Tensor:
    """h [B, T, N, D], D a multiple of LANES, weight [N, D] → (h - mean) / deviation · weight, each over D."""
    (y,) = _norm_in_layout(h.contiguous(), weight.contiguous())
    return y


def gated_head_norm_numba(h: Tensor, weight: Tensor, c: Tensor, skip: Tensor, z: Tensor) -> Tensor:
    """(norm(h) · weight + skip · c) · SiLU(z); h, c, z [B, T, N, D], D a multiple of LANES, weight, skip [N, D]."""
    (y,) = _gated_in_layout(*(tensor.contiguous() for tensor in (h, weight, c, skip, z)))
    return y
