"""What an mLSTM layer gives at the last step, from the layer's input, on a CPU in float32 as one operator.

The inputs are those of `mlstm_layer_numba`, and so is the legend.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from xlstm_tune.kernels.library import Kernel, register
from xlstm_tune.kernels.mlstm_last_layer_kernels import ENDS
from xlstm_tune.kernels.mlstm_last_layer_kernels import backward as _backward
from xlstm_tune.kernels.mlstm_last_layer_kernels import forward as _forward
from xlstm_tune.kernels.mlstm_last_numba import KEPT, TOTALS
from xlstm_tune.kernels.mlstm_layer_kernels import PARTS
from xlstm_tune.kernels.mlstm_layer_numba import MLSTMLayerWeights, cut_small, flat_all, turned
from xlstm_tune.kernels.mlstm_sources_numba import ROWS
from xlstm_tune.kernels.simd import LANES
from xlstm_tune.kernels.tiles import f32, flat, run

_INPUTS = ("x", "before", *MLSTMLayerWeights._fields)


def _sizes(x: Tensor, weights: MLSTMLayerWeights) -> tuple[int, ...]:
    """As the kernels have them."""
    batch, steps, count = x.shape
    members, outputs, width = weights.down.shape
    heads = weights.gate_bias.shape[1] // 2
    rows, padded = -(-3 * heads // ROWS) * ROWS, -(-steps // LANES) * LANES
    return batch // members, steps, count, width, outputs, heads, rows, padded


def _scale(sizes: tuple[int, ...]) -> Any:
    """Of the queries."""
    return f32(1 / math.sqrt(sizes[3] // sizes[5]))


def forward(x: Tensor, before: Tensor, *others: Any) -> tuple[Tensor, ...]:
    """(x [M B, T, K], before [M, K] or [M, 0], the weights as in MLSTMLayerWeights, each behind an axis M; train) →
    y [M B, E], x's last step [M B, K]; and what is kept."""
    *tensors, train = others
    w = MLSTMLayerWeights(*tensors)
    found = forward_shapes(x, before, *others)
    sizes = _sizes(x, w)
    by_input = w.up.view(len(w.up), 2, sizes[3], -1).mT.contiguous()
    weights = (
        before, by_input, w.taps, w.bias, turned(w, False), turned(w, True), w.by_c, w.by_x, w.gate_bias, w.norm,
        w.skip, w.down.mT.contiguous(),
    )  # fmt: skip
    run(
        _forward,
        len(x),
        sizes,
        _scale(sizes),
        train,
        flat(x),
        flat_all(weights),
        flat(found[0]),
        flat(found[1]),
        flat_all(found[2:]),
    )
    return found


def backward(x: Tensor, before: Tensor, *others: Any) -> tuple[Tensor, ...]:
    """Gradients of the inputs of `forward`, in their order."""
    tensors, kept, (grad, grad_end) = others[:12], others[12:-2], others[-2:]
    w = MLSTMLayerWeights(*tensors)
    sizes = _sizes(x, w)
    samples, width, heads = sizes[0], sizes[3], sizes[5]
    members, parts = len(w.up), min(PARTS, samples)
    weights = (
        before, w.up, w.taps, w.bias, turned(w, False), turned(w, True), w.by_c, w.by_x, w.norm, w.skip, w.down,
    )  # fmt: skip
    d_x = torch.empty_like(x)
    grad = x.new_zeros(len(x), sizes[4]) if grad is None else grad.contiguous()
    grad_end = torch.zeros_like(x[:, 0]) if grad_end is None else grad_end.contiguous()
    of_part = (before.shape[1:], w.up.shape[1:], w.down.shape[1:], w.gate_bias.shape[1:], ((19 + 4 * heads) * width,))
    shares = tuple(x.new_empty(members, parts, *shape) for shape in of_part)
    run(
        _backward, members * parts, parts, sizes, _scale(sizes), flat(x), flat_all(weights), flat_all(kept),
        flat(grad), flat(grad_end), flat(d_x), *map(flat, shares),
    )  # fmt: skip
    d_before, *of_weights = (share.sum(1) for share in shares)
    return d_x, d_before, *cut_small(w, *of_weights)


def forward_shapes(x: Tensor, before: Tensor, *others: Any) -> tuple[Tensor, ...]:
    """Tensors like those that `forward` returns, not filled."""
    *tensors, train = others
    _, steps, count, width, outputs, heads, _, padded = _sizes(x, MLSTMLayerWeights(*tensors))
    shapes = (
        (outputs,), (count,), (steps if train else 0, width), (ENDS, width), (heads, width), (heads, KEPT, padded),
        (heads, TOTALS),
    )  # fmt: skip
    return tuple(x.new_empty(len(x), *shape) for shape in shapes)


def backward_shapes(*tensors: Any) -> tuple[Tensor, ...]:
    """Tensors like those that `backward` returns, not filled."""
    return tuple(torch.empty_like(tensor) for tensor in tensors[: len(_INPUTS)])


_in_layout = register(
    Kernel(
        name="mlstm_last_layer_numba",
        inputs=dict.fromkeys(_INPUTS, 0),
        constants={},
        outputs={"y": 0, "x_end": 0},
        saved=dict.fromkeys(("inner", "ends", "pooled", "exponentials", "totals"), 0),
        needs=_INPUTS,
        forward=forward,
        backward=backward,
        forward_shapes=forward_shapes,
        backward_shapes=backward_shapes,
    )
)


def mlstm_last_layer_numba(
    x: Tensor, weights: MLSTMLayerWeights, before: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x [B, T, K] → what `mlstm_layer_numba` gives at the last step, [B, E], and the last step of x, [B, K].

    before [K]: the weight of a layer norm of x that comes before the layer. Sizes as `mlstm_layer_fits` says.
    """
    before = x.new_empty(0) if before is None else before
    y, x_end = _in_layout(x.contiguous(), *(weight.contiguous().unsqueeze(0) for weight in (before, *weights)))
    return y, x_end
