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
from xlstm_tune.kernels.tiles import f32, flat, kernel, own, run

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


@kernel
def _members_forward(first, end, samples, steps, heads, width, gated, h, weight, c, skip, z, y):
    """As `norm_forward`, `samples` of each member; weight and skip [M, P]."""
    features = heads * width
    size = steps * features
    for task in range(first, end):
        member, of_gated = task // samples, size if gated else 0
        norm_forward(
            0, 1, steps, heads, width, gated, own(h, task, size), own(weight, member, features),
            own(c, task, of_gated), own(skip, member, features if gated else 0),
            own(z, task, of_gated), own(y, task, size),
        )  # fmt: skip


@kernel
def _members_backward(
    first, end, samples, steps, heads, width, gated, h, weight, c, skip, z, grad, d_h, d_weight, d_c, d_skip, d_z,
):  # fmt: skip
    """As `norm_backward`, `samples` of each member; weight and skip [M, P], d_weight and d_skip [M B, P]."""
    features = heads * width
    size, none = steps * features, d_weight[:0]
    for task in range(first, end):
        member, of_gated, of_skip = task // samples, size if gated else 0, features if gated else 0
        norm_backward(
            0, 1, steps, heads, width, gated, own(h, task, size), own(weight, member, features),
            own(c, task, of_gated), own(skip, member, features if gated else 0),
            own(z, task, of_gated), own(grad, task, size),
            own(d_h, task, size), own(d_weight, task, features),
            own(d_c, task, of_gated), own(d_skip, task, of_skip),
            own(d_z, task, of_gated), none,
        )  # fmt: skip


def _sizes(h: Tensor, weight: Tensor) -> tuple[int, ...]:
    """Tasks, samples of a member, T, N, D."""
    return len(h), len(h) // max(1, len(weight)), *h.shape[1:]


def _by_member(shares: Tensor, like: Tensor) -> Tensor:
    """Shares of the samples [M B, N, D] summed for each member."""
    return shares.view(len(like), -1, *like.shape[1:]).sum(1)


def _norm(h: Tensor, weight: Tensor, train: bool) -> tuple[Tensor, ...]:
    y, none = torch.empty_like(h), h.new_empty(0)
    run(_members_forward, *_sizes(h, weight), False, *map(flat, (h, weight, none, none, none, y)))
    return (y,)


def _norm_backward(h: Tensor, weight: Tensor, grad: Tensor | None) -> tuple[Tensor, ...]:
    d_h, none = torch.empty_like(h), h.new_empty(0)
    if grad is None:
        return d_h.zero_(), torch.zeros_like(weight)
    shares = h.new_empty(len(h), *weight.shape[1:])
    tensors = (h, weight, none, none, none, grad.contiguous(), d_h, shares, none, none, none)
    run(_members_backward, *_sizes(h, weight), False, *map(flat, tensors))
    return d_h, _by_member(shares, weight)


def _gated(h: Tensor, weight: Tensor, c: Tensor, skip: Tensor, z: Tensor, train: bool) -> tuple[Tensor, ...]:
    y = torch.empty_like(h)
    run(_members_forward, *_sizes(h, weight), True, *map(flat, (h, weight, c, skip, z, y)))
    return (y,)


def _gated_backward(
    h: Tensor, weight: Tensor, c: Tensor, skip: Tensor, z: Tensor, grad: Tensor | None
) -> tuple[Tensor, ...]:
    d_h, d_c, d_z = torch.empty_like(h), torch.empty_like(c), torch.empty_like(z)
    if grad is None:
        return d_h.zero_(), torch.zeros_like(weight), d_c.zero_(), torch.zeros_like(skip), d_z.zero_()
    d_weight, d_skip = h.new_empty(len(h), *weight.shape[1:]), h.new_empty(len(h), *skip.shape[1:])
    tensors = (h, weight, c, skip, z, grad.contiguous(), d_h, d_weight, d_c, d_skip, d_z)
    run(_members_backward, *_sizes(h, weight), True, *map(flat, tensors))
    return d_h, _by_member(d_weight, weight), d_c, _by_member(d_skip, skip), d_z


def _like_first(h: Tensor, *_: object) -> tuple[Tensor, ...]:
    return (torch.empty_like(h),)


def _like_inputs(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Like all but the last, the gradient."""
    return tuple(torch.empty_like(tensor) for tensor in tensors[:-1])


_norm_in_layout = register(
    Kernel(
        name="head_norm_numba",
        inputs={"h": 0, "weight": 0},
        constants={},
        outputs={"y": 0},
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
        inputs=dict.fromkeys(("h", "weight", "c", "skip", "z"), 0),
        constants={},
        outputs={"y": 0},
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
    (y,) = _norm_in_layout(h.contiguous(), weight.contiguous().unsqueeze(0))
    return y


def gated_head_norm_numba(h: Tensor, weight: Tensor, c: Tensor, skip: Tensor, z: Tensor) -> Tensor:
    """(norm(h) · weight + skip · c) · SiLU(z); h, c, z [B, T, N, D], D a multiple of LANES, weight, skip [N, D]."""
    by_head, by_skip = (one.contiguous().unsqueeze(0) for one in (weight, skip))
    (y,) = _gated_in_layout(h.contiguous(), by_head, c.contiguous(), by_skip, z.contiguous())
    return y
