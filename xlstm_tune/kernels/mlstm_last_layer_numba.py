"""What an mLSTM layer's last output pools, from the layer's input, on a CPU in float32 as one operator.

The up-projection and `mlstm_last_numba` of a sample in one go: the inner inputs and their gradients stay in cache.

Legend: M members that vmap laid one after another (1 without it), B samples of a member, T steps, K inputs, P inner
width, N heads; R rows, and what is kept, T' included, as in `mlstm_last_numba`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xlstm_tune.kernels.conv_numba import TAPS
from xlstm_tune.kernels.library import Kernel, register
from xlstm_tune.kernels.matmul_numba import LARGEST_WEIGHT, add_outer
from xlstm_tune.kernels.matmul_numba import ROWS as LEAST_STEPS
from xlstm_tune.kernels.mlstm_last_numba import KEPT, TOTALS, last_backward, last_forward, rows_of
from xlstm_tune.kernels.mlstm_layer_kernels import PARTS, add, own, product
from xlstm_tune.kernels.simd import LANES
from xlstm_tune.kernels.tiles import f32, flat, floats, kernel, run


@kernel
def _forward(first, end, sizes, x, up, taps, bias, gate_bias, by_c, by_x, pooled, inner, kept, totals):
    """Tasks first..end, each a sample of a member; sizes (B, T, K, P, N, R, T'); up [M, K, P]; all flat."""
    samples, steps, count, width, heads, rows, padded = sizes
    for task in range(first, end):
        member, my_inner = task // samples, own(inner, task, steps * width)
        product(own(x, task, steps * count), steps, count, up, member * count * width, width, my_inner)
        last_forward(
            0, 1, steps, width, 1, heads, rows, my_inner, own(taps, member, 4 * width), own(bias, member, width),
            own(gate_bias, member, 2 * heads), own(by_c, task, rows * width), own(by_x, member, rows * width),
            own(pooled, task, heads * width), own(kept, task, KEPT * heads * padded), own(totals, task, TOTALS * heads),
        )  # fmt: skip


@kernel
def _backward(
    first, end, parts, sizes, x, up, taps, bias, by_c, by_x, inner, kept, totals, grad, d_x, d_by_c, d_up, d_gate_bias,
    d_small,
):  # fmt: skip
    """Tasks first..end, each a part of a member's samples; up [M, P, K].

    The parts' shares: d_up [M, parts, P, K], d_gate_bias [M, parts, 2, N], and in d_small [M, parts, (5 + R) P] those
    of taps, bias and by_x, one behind the other.
    """
    samples, steps, count, width, heads, rows, padded = sizes
    small = (5 + rows) * width
    d_inner, share, of_gate_bias = floats(steps * width), floats(small), floats(2 * heads)
    s_taps, s_bias, s_by_x = share[: 4 * width], share[4 * width : 5 * width], share[5 * width :]
    for task in range(first, end):
        member, part = task // parts, task % parts
        my_up, my_small = own(d_up, task, width * count), own(d_small, task, small)
        my_gate_bias = own(d_gate_bias, task, 2 * heads)
        my_up[:] = f32(0)
        my_small[:] = f32(0)
        my_gate_bias[:] = f32(0)
        for at in range(samples * part // parts, samples * (part + 1) // parts):
            sample = member * samples + at
            last_backward(
                0, 1, steps, width, 1, heads, rows, own(inner, sample, steps * width), own(taps, member, 4 * width),
                own(bias, member, width), own(by_c, sample, rows * width), own(by_x, member, rows * width),
                own(kept, sample, KEPT * heads * padded), own(totals, sample, TOTALS * heads),
                own(grad, sample, heads * width), d_inner, s_taps, s_bias, of_gate_bias,
                own(d_by_c, sample, rows * width), s_by_x,
            )  # fmt: skip
            add(share, my_small)
            for gate in range(2 * heads):
                my_gate_bias[gate] += of_gate_bias[gate]
            my_x, my_d_x = own(x, sample, steps * count), own(d_x, sample, steps * count)
            product(d_inner, steps, width, up, member * width * count, count, my_d_x)
            add_outer(d_inner, 0, width, width, my_x, 0, count, count, steps, my_up, 0)


def _sizes(x: Tensor, up: Tensor, gate_bias: Tensor, by_x: Tensor) -> tuple[int, ...]:
    """As the kernels have them."""
    rows, steps, count = x.shape
    padded = -(-steps // LANES) * LANES
    return rows // len(up), steps, count, up.shape[1], gate_bias.shape[1] // 2, by_x.shape[1], padded


def forward(
    x: Tensor, up: Tensor, taps: Tensor, bias: Tensor, gate_bias: Tensor, by_c: Tensor, by_x: Tensor, train: bool
) -> tuple[Tensor, ...]:
    """x [M B, T, K]; up [M, P, K], taps [M, 4, P], bias [M, P], gate_bias [M, 2 N], by_c [M B, R, P], by_x [M, R, P].

    Returns pooled [M B, N, P], and the inner inputs, kept and totals for `backward`.
    """
    found = forward_shapes(x, up, taps, bias, gate_bias, by_c, by_x)
    tensors = (x, up.mT.contiguous(), taps, bias, gate_bias, by_c, by_x, *found)
    run(_forward, len(x), _sizes(x, up, gate_bias, by_x), *map(flat, tensors))
    return found


def backward(
    x: Tensor, up: Tensor, taps: Tensor, bias: Tensor, gate_bias: Tensor, by_c: Tensor, by_x: Tensor, inner: Tensor,
    kept: Tensor, totals: Tensor, grad: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of the inputs of `forward`, in their order."""
    inputs = (x, up, taps, bias, gate_bias, by_c, by_x)
    if grad is None:
        return tuple(torch.zeros_like(tensor) for tensor in inputs)
    sizes = _sizes(x, up, gate_bias, by_x)
    samples, _, _, width, heads, rows, _ = sizes
    members, parts = len(up), min(PARTS, samples)
    d_x, d_by_c = torch.empty_like(x), torch.empty_like(by_c)
    of_part = (up.shape[1:], gate_bias.shape[1:], (5 + rows, width))
    shares = tuple(x.new_empty(members, parts, *shape) for shape in of_part)
    tensors = (x, up, taps, bias, by_c, by_x, inner, kept, totals, grad.contiguous(), d_x, d_by_c, *shares)
    run(_backward, members * parts, parts, sizes, *map(flat, tensors))
    d_up, d_gate_bias, small = (share.sum(1) for share in shares)
    d_by_x = small[:, 5:].clone()
    d_by_x[:, 2 * heads :] = 0.0  # of the rows for scores the kernel makes something else
    return d_x, d_up, small[:, :4].clone(), small[:, 4].clone(), d_gate_bias, d_by_c, d_by_x


def forward_shapes(
    x: Tensor, up: Tensor, taps: Tensor, bias: Tensor, gate_bias: Tensor, by_c: Tensor, by_x: Tensor, *others: Any
) -> tuple[Tensor, ...]:
    """Tensors like those that `forward` returns, not filled."""
    _, steps, _, width, heads, _, padded = _sizes(x, up, gate_bias, by_x)
    shapes = ((heads, width), (steps, width), (heads, KEPT, padded), (heads, TOTALS))
    return tuple(x.new_empty(len(x), *shape) for shape in shapes)


def backward_shapes(*tensors: Any) -> tuple[Tensor, ...]:
    """Tensors like those that `backward` returns, not filled."""
    return tuple(torch.empty_like(tensor) for tensor in tensors[:7])


_in_layout = register(
    Kernel(
        name="mlstm_last_layer_numba",
        inputs=dict.fromkeys(("x", "up", "taps", "bias", "gate_bias", "by_c", "by_x"), 0),
        constants={},
        outputs={"pooled": 0},
        saved={"inner": 0, "kept": 0, "totals": 0},
        needs=("x", "up", "taps", "bias", "gate_bias", "by_c", "by_x"),
        forward=forward,
        backward=backward,
        forward_shapes=forward_shapes,
        backward_shapes=backward_shapes,
    )
)


def mlstm_last_layer_fits(x: Tensor, up: Tensor, taps: Tensor) -> bool:
    """Whether the sizes suit `mlstm_last_layer_numba`."""
    whole = not any(size % LANES for size in up.shape)
    return whole and x.shape[1] >= LEAST_STEPS and len(taps) == TAPS and up.numel() <= LARGEST_WEIGHT


def mlstm_last_layer_numba(
    x: Tensor, up: Tensor, taps: Tensor, bias: Tensor, gate_bias: Tensor, by_c: Tensor, by_x: Tensor, queries: Tensor
) -> Tensor:
    """`mlstm_last_numba` of the inner inputs x upᵀ; x [B, T, K], up [P, K], sizes as `mlstm_last_layer_fits` says."""
    of_sample, by_x = rows_of(by_c, by_x, queries)
    weights = (one.contiguous().unsqueeze(0) for one in (up, taps, bias, gate_bias))
    (pooled,) = _in_layout(x.contiguous(), *weights, of_sample, by_x.unsqueeze(0))
    return pooled
