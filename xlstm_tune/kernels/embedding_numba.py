"""An embedding and what a first layer sees of its norm, on a CPU in float32, in one pass each way.

With e = Σ_f x_f basis_f + basis_F and its deviation s (for RMSNorm the root of its mean square), rows are (x, 1, 0 ...)
/ s: what `models/embedded.py` feeds a first layer with.

Legend: M members that vmap laid one after another (1 without it), B samples of a member, T steps, F features of a
token, E width, K = F + 1 or more.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from numba import njit
from torch import Tensor

from xlstm_tune.kernels.library import Kernel, register, wants_gradient
from xlstm_tune.kernels.mlstm_layer_kernels import PARTS
from xlstm_tune.kernels.norm_numba import EPSILON
from xlstm_tune.kernels.simd import CONTRACT, LANES, load, splat, spread, store, sum_lanes
from xlstm_tune.kernels.tiles import f32, flat, floats, kernel, own, run


@njit
def _centred(basis, features, width, rms):
    """basis [F + 1, E] less the mean of each row (0 if `rms`), and these means."""
    means, centred = floats(features + 1), floats((features + 1) * width)
    for row in range(features + 1):
        total = splat(f32(0))
        for column in range(row * width, (row + 1) * width, LANES):
            total = total + load(basis, column)
        means[row] = f32(0) if rms else sum_lanes(total) / f32(width)
        for column in range(row * width, (row + 1) * width, LANES):
            store(centred, column, load(basis, column) - means[row])
    return means, centred


@njit(forceinline=True, fastmath=CONTRACT)
def _embed(x, at, features, means, centred, width, e, to):
    """e - mean of the token x [F] from `at` on, to e from `to` on; returns the mean and 1 / deviation.

    Centred rows of the basis make it without a difference of large numbers.
    """
    mean, squares = means[features], splat(f32(0))
    for feature in range(features):
        mean += x[at + feature] * means[feature]
    for column in range(0, width, LANES):
        value = load(centred, features * width + column)
        for feature in range(features):
            value = value + spread(x, at + feature) * load(centred, feature * width + column)
        store(e, to + column, value)
        squares = squares + value * value
    return mean, f32(1) / f32(math.sqrt(sum_lanes(squares) / f32(width) + f32(EPSILON)))


@kernel
def _forward(first, end, sizes, rms, x, basis, rows, dense):
    """Tasks first..end, each a sample of a member; x [M B, T, F], basis [M, F + 1, E], rows [M B, T, K], dense [M B, S,
    E] of the last S steps."""
    samples, steps, features, width, count, kept = sizes
    spare = floats(width)
    for task in range(first, end):
        if task == first or task % samples == 0:
            my_basis = own(basis, task // samples, (features + 1) * width)
            means, centred = _centred(my_basis, features, width, rms)
        for step in range(steps):
            at, to = (task * steps + step) * features, (task * steps + step) * count
            shown = step >= steps - kept
            e, of_e = (dense, (task * kept + step - steps + kept) * width) if shown else (spare, 0)
            mean, scale = _embed(x, at, features, means, centred, width, e, of_e)
            if shown:
                for column in range(of_e, of_e + width, LANES):
                    store(e, column, load(e, column) + mean)
            for column in range(to, to + count, LANES):
                store(rows, column, splat(f32(0)))
            for feature in range(features):
                rows[to + feature] = x[at + feature] * scale
            rows[to + features] = scale


@kernel
def _backward(first, end, parts, sizes, rms, x, basis, d_rows, d_dense, d_x, d_basis):
    """Tasks first..end, each a part of a member's samples. d_basis [M, parts, F + 1, E]: the parts' shares; d_x as x,
    or empty: it is not wanted."""
    samples, steps, features, width, count, kept = sizes
    e = floats(width)
    for task in range(first, end):
        member, part = task // parts, task % parts
        my_basis, share = own(basis, member, (features + 1) * width), own(d_basis, task, (features + 1) * width)
        means, centred = _centred(my_basis, features, width, rms)
        share[:] = f32(0)
        for one in range(samples * part // parts, samples * (part + 1) // parts):
            sample = member * samples + one
            for step in range(steps):
                at, of_rows = (sample * steps + step) * features, (sample * steps + step) * count
                of_dense, shown = (sample * kept + step - steps + kept) * width, step >= steps - kept
                _, scale = _embed(x, at, features, means, centred, width, e, 0)
                d_scale = d_rows[of_rows + features]
                for feature in range(features):
                    d_scale += d_rows[of_rows + feature] * x[at + feature]
                factor = -scale * scale * scale * d_scale / f32(width)
                for column in range(0, width, LANES):
                    d_e = factor * load(e, column)
                    if shown:
                        d_e = d_e + load(d_dense, of_dense + column)
                    store(e, column, d_e)
                    for feature in range(features):
                        place = feature * width + column
                        store(share, place, load(share, place) + spread(x, at + feature) * d_e)
                    place = features * width + column
                    store(share, place, load(share, place) + d_e)
                if d_x.size:
                    for feature in range(features):
                        total = splat(f32(0))
                        for column in range(0, width, LANES):
                            total = total + load(e, column) * load(my_basis, feature * width + column)
                        d_x[at + feature] = sum_lanes(total) + d_rows[of_rows + feature] * scale


def _sizes(x: Tensor, basis: Tensor, count: int, kept: int) -> tuple[int, ...]:
    """As the kernels have them."""
    batch, steps, features = x.shape
    return batch // len(basis), steps, features, basis.shape[2], count, kept


def forward(x: Tensor, basis: Tensor, train: bool, count: int, kept: int, rms: bool, of_x: bool) -> tuple[Tensor, ...]:
    """x [M B, T, F], basis [M, F + 1, E] → rows [M B, T, count] and e at the last `kept` steps."""
    found = forward_shapes(x, basis, train, count, kept)
    run(_forward, len(x), _sizes(x, basis, count, kept), rms, *map(flat, (x, basis, *found)))
    return found


def backward(
    x: Tensor, basis: Tensor, of_rows: Tensor | None, of_dense: Tensor | None, count: int, kept: int, rms: bool,
    of_x: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x, zeros without `of_x`, and basis."""
    sizes = _sizes(x, basis, count, kept)
    parts = min(PARTS, sizes[0])
    shapes = forward_shapes(x, basis, True, count, kept)
    of_rows, of_dense = (
        torch.zeros_like(like) if grad is None else grad.contiguous()
        for grad, like in zip((of_rows, of_dense), shapes, strict=True)
    )
    d_x = torch.empty_like(x) if of_x else torch.zeros_like(x)
    shares = x.new_empty(len(basis), parts, *basis.shape[1:])
    tensors = (x, basis, of_rows, of_dense, d_x if of_x else x.new_empty(0), shares)
    run(_backward, len(basis) * parts, parts, sizes, rms, *map(flat, tensors))
    return d_x, shares.sum(1)


def forward_shapes(x: Tensor, basis: Tensor, train: bool, count: int, kept: int, *options: Any) -> tuple[Tensor, ...]:
    """Tensors like those that `forward` returns, not filled."""
    return x.new_empty(*x.shape[:2], count), x.new_empty(len(x), kept, basis.shape[2])


def backward_shapes(x: Tensor, basis: Tensor, *others: Any) -> tuple[Tensor, ...]:
    """Tensors like those that `backward` returns, not filled."""
    return torch.empty_like(x), torch.empty_like(basis)


_in_layout = register(
    Kernel(
        name="embedding_numba",
        inputs={"x": 0, "basis": 0},
        constants={},
        outputs={"rows": 0, "dense": 0},
        saved={},
        needs=("x", "basis"),
        forward=forward,
        backward=backward,
        forward_shapes=forward_shapes,
        backward_shapes=backward_shapes,
        options={"count": "int", "kept": "int", "rms": "bool", "of_x": "bool"},
    )
)


def embedding_fits(x: Tensor, basis: Tensor) -> bool:
    """Whether `embedding_numba` can take these tensors."""
    return x.device.type == "cpu" and x.dtype == basis.dtype == torch.float32 and basis.shape[1] % LANES == 0


def embedding_numba(x: Tensor, basis: Tensor, count: int, kept: int, rms: bool = False) -> tuple[Tensor, Tensor]:
    """x [B, T, F], basis [F + 1, E], E and count multiples of LANES → rows [B, T, count], and e at the last `kept`
    steps, [B, kept, E]."""
    options = {"count": count, "kept": kept, "rms": rms, "of_x": wants_gradient(x)}
    rows, dense = _in_layout(x.contiguous(), basis.contiguous().unsqueeze(0), **options)
    return rows, dense
