"""A whole mLSTM layer on a CPU in float32 as one operator: what stays in cache between its stages and what is kept.

Called one after another, up-projections, convolution, projections, cell, norm and down-projection each pass tensors of
the inner width through memory, and their gradients. Here a thread takes one sample through all of them. For the way
back the inner inputs, z, h and the gates are kept; convolution, q, k and v are made again.

Legend: M members that vmap laid one after another (1 without it), B samples of a member, T steps, K inputs, P inner
width, N heads, D = P / N, E outputs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from xlstm_tune.kernels.conv_numba import TAPS
from xlstm_tune.kernels.library import Kernel, register
from xlstm_tune.kernels.matmul_numba import LARGEST_WEIGHT
from xlstm_tune.kernels.matmul_numba import ROWS as LEAST_STEPS
from xlstm_tune.kernels.mlstm_chunk import log_scale
from xlstm_tune.kernels.mlstm_forms import MLSTMState
from xlstm_tune.kernels.mlstm_layer_kernels import PARTS
from xlstm_tune.kernels.mlstm_layer_kernels import backward as _backward
from xlstm_tune.kernels.mlstm_layer_kernels import forward as _forward
from xlstm_tune.kernels.mlstm_reference import chunk_length
from xlstm_tune.kernels.mlstm_sources_numba import ROWS
from xlstm_tune.kernels.qkv_numba import BLOCK, by_turn, from_turns
from xlstm_tune.kernels.simd import LANES
from xlstm_tune.kernels.tiles import flat, run


class MLSTMLayerWeights(NamedTuple):
    """Of an mLSTM layer whose convolution has four taps and whose projections have blocks of four."""

    up: Tensor
    """[2 P, K]: the rows for the inner input, then for z."""
    taps: Tensor
    """[4, P]"""
    bias: Tensor
    """[P], of the convolution."""
    q: Tensor
    """[P / 4, 4 out, 4 in], as k and v."""
    k: Tensor
    v: Tensor
    by_c: Tensor
    """[2 N, P], what the gates i, then the gates f, see of the convolved inner input."""
    by_x: Tensor
    """[2 N, P], what they see of the inner input."""
    gate_bias: Tensor
    """[2 N]"""
    norm: Tensor
    """[P], of the heads, side by side."""
    skip: Tensor
    """[P]"""
    down: Tensor
    """[E, P]"""


INPUTS = ("x", *MLSTMLayerWeights._fields)


def _sizes(x: Tensor, weights: MLSTMLayerWeights) -> tuple[int, ...]:
    """As the kernels have them."""
    batch, steps, count = x.shape
    members, outputs, width = weights.down.shape
    heads = weights.gate_bias.shape[1] // 2
    chunk = -(-chunk_length(steps, width // heads) // LANES) * LANES
    return batch // members, steps, count, width, outputs, heads, weights.by_c.shape[1], chunk


def turned(weights: MLSTMLayerWeights, back: bool) -> Tensor:
    """q, k and v of each member by turn, [M · 3, 4, P]; back: as the way back sees them."""
    return by_turn(torch.stack(weights[3:6], 1).flatten(0, 1), back)


def cut_small(
    weights: MLSTMLayerWeights, d_up: Tensor, d_down: Tensor, d_gate_bias: Tensor, small: Tensor
) -> tuple[Tensor, ...]:
    """The weights' gradients, in their order. small [M, ·]: those of taps, bias, q, k and v by turn, by_c, by_x, norm
    and skip, one behind the other."""
    members, width = weights.norm.shape
    turns = (members, 3, BLOCK, width)
    shapes = (
        weights.taps.shape, weights.bias.shape, turns, weights.by_c.shape, weights.by_x.shape, weights.norm.shape,
        weights.skip.shape,
    )  # fmt: skip
    ends = list(itertools.accumulate(math.prod(shape[1:]) for shape in shapes[:-1]))
    d_taps, d_bias, d_turned, d_by_c, d_by_x, d_norm, d_skip = (
        cut.reshape(shape).clone() for cut, shape in zip(small.tensor_split(ends, 1), shapes, strict=True)
    )
    straight = from_turns(d_turned.flatten(0, 1))
    d_q, d_k, d_v = (torch.stack(straight[weight::3]) for weight in range(3))
    return d_up, d_taps, d_bias, d_q, d_k, d_v, d_by_c, d_by_x, d_gate_bias, d_norm, d_skip, d_down


def forward(x: Tensor, *others: Any) -> tuple[Tensor, ...]:
    """(x [M B, T, K], the weights as in MLSTMLayerWeights, each behind an axis M, by_c and by_x with R rows; train) →
    y [M B, T, E], C, n and m after the last step, the last three inner inputs; and what is kept."""
    *tensors, train = others
    w = MLSTMLayerWeights(*tensors)
    found = forward_shapes(x, *others)
    sizes = _sizes(x, w)
    y, *state, past = found[:5]
    width, heads = sizes[3], sizes[5]
    by_input = w.up.view(len(w.up), 2, width, -1).mT.contiguous()
    weights = (
        by_input, w.taps, w.bias, turned(w, False), w.by_c, w.by_x, w.gate_bias, w.norm, w.skip,
        w.down.mT.contiguous(),
    )  # fmt: skip
    run(
        _forward, len(x), sizes, log_scale(width // heads), train, flat(x), flat_all(weights), flat(y),
        flat_all(state), flat(past), flat_all(found[5:]),
    )  # fmt: skip
    return found


def backward(x: Tensor, *others: Any) -> tuple[Tensor, ...]:
    """Gradients of the inputs of `forward`, exact for any combination of output gradients."""
    w = MLSTMLayerWeights(*others[:12])
    c, n = others[12:14]
    grad, grad_c, grad_n, grad_m, grad_past = others[19:]
    sizes = _sizes(x, w)
    samples, _, _, width, outputs, heads, rows, _ = sizes
    members, parts = len(w.up), min(PARTS, samples)
    ended = grad_c is None and grad_n is None
    none = x.new_empty(0)
    of_state = (
        none if ended else _or_zeros(grad_c, c), none if ended else _or_zeros(grad_n, n),
        x.new_zeros(len(x), heads) if grad_m is None else grad_m.contiguous(),
    )  # fmt: skip
    of_y = x.new_zeros(*x.shape[:2], outputs) if grad is None else grad.contiguous()
    d_x = torch.empty_like(x)
    of_part = (w.up.shape[1:], w.down.shape[1:], w.gate_bias.shape[1:], ((19 + 2 * rows) * width,))
    shares = tuple(x.new_empty(members, parts, *shape) for shape in of_part)
    weights = (
        w.up, w.taps, w.bias, turned(w, False), turned(w, True), w.by_c, w.by_x, w.norm, w.skip, w.down,
    )  # fmt: skip
    run(
        _backward, members * parts, parts, sizes, log_scale(width // heads), ended, flat(x), flat_all(weights),
        flat_all(others[14:19]), flat_all((c, n)), flat(of_y), flat_all(of_state),
        flat(none if grad_past is None else grad_past.contiguous()), flat(d_x), *map(flat, shares),
    )  # fmt: skip
    return d_x, *cut_small(w, *(share.sum(1) for share in shares))


def forward_shapes(x: Tensor, *others: Any) -> tuple[Tensor, ...]:
    """Tensors like those that `forward` returns, not filled."""
    *tensors, train = others
    _, steps, _, width, outputs, heads, _, _ = _sizes(x, MLSTMLayerWeights(*tensors))
    kept, head = steps if train else 0, width // heads
    shapes = (
        (steps, outputs), (heads, head, head), (heads, head), (heads,), (TAPS - 1, width), *[(kept, width)] * 3,
        *[(kept, heads)] * 2,
    )  # fmt: skip
    return tuple(x.new_empty(len(x), *shape) for shape in shapes)


def backward_shapes(*tensors: Any) -> tuple[Tensor, ...]:
    """Tensors like those that `backward` returns, not filled."""
    return tuple(torch.empty_like(tensor) for tensor in tensors[: len(INPUTS)])


def flat_all(tensors: Iterable[Tensor]) -> tuple[Any, ...]:
    """Each as a flat array."""
    return tuple(map(flat, tensors))


def _or_zeros(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad.contiguous()


_in_layout = register(
    Kernel(
        name="mlstm_layer_numba",
        inputs=dict.fromkeys(INPUTS, 0),
        constants={},
        outputs=dict.fromkeys(("y", "c", "n", "m", "past"), 0),
        saved=dict.fromkeys(("inner", "z", "h", "i", "f"), 0),
        needs=(*INPUTS, "c", "n"),
        forward=forward,
        backward=backward,
        forward_shapes=forward_shapes,
        backward_shapes=backward_shapes,
    )
)


def mlstm_layer_fits(x: Tensor, weights: MLSTMLayerWeights) -> bool:
    """Whether the sizes suit `mlstm_layer_numba` and `mlstm_last_layer_numba`; of heads, a multiple of LANES."""
    heads, (outputs, width) = len(weights.gate_bias) // 2, weights.down.shape
    return mlstm_layer_sizes_fit(
        x.shape[1], max(x.shape[2], outputs), width, heads, len(weights.taps), weights.q.shape[2]
    ) and not any(size % LANES for size in (x.shape[2], outputs))


def mlstm_layer_sizes_fit(steps: int, hidden: int, inner: int, heads: int, taps: int, block: int) -> bool:
    """The same of a block that is yet to be made. taps: of the convolution. block: of the maps to q, k and v."""
    return (
        steps >= LEAST_STEPS
        and (taps, block) == (TAPS, BLOCK)
        and not any(size % LANES for size in (hidden, inner // heads))
        and inner * hidden <= LARGEST_WEIGHT
    )


def mlstm_layer_numba(x: Tensor, weights: MLSTMLayerWeights) -> tuple[Tensor, MLSTMState, Tensor]:
    """x [B, T, K] → y [B, T, E], the cell's state and the last three inner inputs [B, 3, P], all differentiable.

    Sizes as `mlstm_layer_fits` says.
    """
    spare = (0, 0, 0, -len(weights.by_c) % ROWS)
    padded = weights._replace(by_c=F.pad(weights.by_c, spare), by_x=F.pad(weights.by_x, spare))
    y, *state, past = _in_layout(x.contiguous(), *(weight.contiguous().unsqueeze(0) for weight in padded))
    return y, MLSTMState(*state), past
