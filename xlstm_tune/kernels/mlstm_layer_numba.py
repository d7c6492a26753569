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
from typing import Any

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

_INPUTS = (
    "x", "up", "taps", "bias", "q", "k", "v", "by_c", "by_x", "gate_bias", "norm", "skip", "down",
)  # fmt: skip


def _sizes(x: Tensor, up: Tensor, by_c: Tensor, gate_bias: Tensor, down: Tensor) -> tuple[int, ...]:
    """As the kernels have them."""
    rows, steps, count = x.shape
    members, width, heads = len(up), up.shape[1] // 2, gate_bias.shape[1] // 2
    chunk = -(-chunk_length(steps, width // heads) // LANES) * LANES
    return rows // members, steps, count, width, down.shape[1], heads, by_c.shape[1], chunk


def _turned(q: Tensor, k: Tensor, v: Tensor, back: bool) -> Tensor:
    """[M, P / 4, out, in] each to [M · 3, 4, P]."""
    return by_turn(torch.stack([q, k, v], 1).flatten(0, 1), back)


def forward(
    x: Tensor, up: Tensor, taps: Tensor, bias: Tensor, q: Tensor, k: Tensor, v: Tensor, by_c: Tensor, by_x: Tensor,
    gate_bias: Tensor, norm: Tensor, skip: Tensor, down: Tensor, train: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """x [M B, T, K]; up [M, 2 P, K], taps [M, 4, P], bias [M, P], q, k, v [M, P / 4, 4 out, 4 in], by_c and by_x
    [M, R, P], gate_bias [M, 2 N], norm and skip [M, P], down [M, E, P].

    Returns y [M B, T, E], C, n and m after the last step, the last three inner inputs; and what is kept.
    """
    sizes = _sizes(x, up, by_c, gate_bias, down)
    found = forward_shapes(x, up, taps, bias, q, k, v, by_c, by_x, gate_bias, norm, skip, down, train)
    y, *state, past = found[:5]
    width, heads = sizes[3], sizes[5]
    by_input = up.view(len(up), 2, width, -1).mT.contiguous()
    weights = (by_input, taps, bias, _turned(q, k, v, False), by_c, by_x, gate_bias, norm, skip, down.mT.contiguous())
    run(
        _forward, len(x), sizes, log_scale(width // heads), train, flat(x), _flat(weights), flat(y), _flat(state),
        flat(past), _flat(found[5:]),
    )  # fmt: skip
    return found


def backward(
    x: Tensor, up: Tensor, taps: Tensor, bias: Tensor, q: Tensor, k: Tensor, v: Tensor, by_c: Tensor, by_x: Tensor,
    gate_bias: Tensor, norm: Tensor, skip: Tensor, down: Tensor, c: Tensor, n: Tensor, inner: Tensor, z: Tensor,
    h: Tensor, i: Tensor, f: Tensor, grad: Tensor | None, grad_c: Tensor | None, grad_n: Tensor | None,
    grad_m: Tensor | None, grad_past: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of the inputs of `forward`, exact for any combination of output gradients."""
    sizes = _sizes(x, up, by_c, gate_bias, down)
    samples, _, _, width, outputs, heads, rows, _ = sizes
    members, parts = len(up), min(PARTS, samples)
    ended = grad_c is None and grad_n is None
    none = x.new_empty(0)
    of_state = (
        none if ended else _or_zeros(grad_c, c), none if ended else _or_zeros(grad_n, n),
        x.new_zeros(len(x), heads) if grad_m is None else grad_m.contiguous(),
    )  # fmt: skip
    of_y = x.new_zeros(*x.shape[:2], outputs) if grad is None else grad.contiguous()
    d_x = torch.empty_like(x)
    of_part = (up.shape[1:], down.shape[1:], gate_bias.shape[1:], ((19 + 2 * rows) * width,))
    shares = tuple(x.new_empty(members, parts, *shape) for shape in of_part)
    turned = (_turned(q, k, v, back) for back in (False, True))
    run(
        _backward, members * parts, parts, sizes, log_scale(width // heads), ended, flat(x),
        _flat((up, taps, bias, *turned, by_c, by_x, norm, skip, down)), _flat((inner, z, h, i, f)), _flat((c, n)),
        flat(of_y), _flat(of_state), flat(none if grad_past is None else grad_past.contiguous()), flat(d_x),
        *map(flat, shares),
    )  # fmt: skip
    d_up, d_down, d_gate_bias, small = (share.sum(1) for share in shares)
    of_small = (taps.shape, bias.shape, (members, 3, BLOCK, width), by_c.shape, by_x.shape, norm.shape, skip.shape)
    ends = list(itertools.accumulate(math.prod(shape[1:]) for shape in of_small[:-1]))
    cuts = small.tensor_split(ends, 1)
    d_taps, d_bias, d_turned, d_by_c, d_by_x, d_norm, d_skip = (
        cut.reshape(shape).clone() for cut, shape in zip(cuts, of_small, strict=True)
    )
    turns = from_turns(d_turned.flatten(0, 1))
    d_q, d_k, d_v = (torch.stack(turns[weight::3]) for weight in range(3))
    return d_x, d_up, d_taps, d_bias, d_q, d_k, d_v, d_by_c, d_by_x, d_gate_bias, d_norm, d_skip, d_down


def forward_shapes(*tensors: Any) -> tuple[Tensor, ...]:
    """Tensors like those that `forward` returns, not filled."""
    x, up, gate_bias, down, train = tensors[0], tensors[1], tensors[9], tensors[12], tensors[13]
    batch, steps, _ = x.shape
    width, heads, kept = up.shape[1] // 2, gate_bias.shape[1] // 2, steps if train else 0
    return (
        x.new_empty(batch, steps, down.shape[1]),
        x.new_empty(batch, heads, width // heads, width // heads),
        x.new_empty(batch, heads, width // heads),
        x.new_empty(batch, heads),
        x.new_empty(batch, TAPS - 1, width),
        *(x.new_empty(batch, kept, width) for _ in range(3)),
        *(x.new_empty(batch, kept, heads) for _ in range(2)),
    )


def backward_shapes(*tensors: Any) -> tuple[Tensor, ...]:
    """Tensors like those that `backward` returns, not filled."""
    return tuple(torch.empty_like(tensor) for tensor in tensors[: len(_INPUTS)])


def _flat(tensors: Iterable[Tensor]) -> tuple[Any, ...]:
    return tuple(map(flat, tensors))


def _or_zeros(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad.contiguous()


_in_layout = register(
    Kernel(
        name="mlstm_layer_numba",
        inputs=dict.fromkeys(_INPUTS, 0),
        constants={},
        outputs=dict.fromkeys(("y", "c", "n", "m", "past"), 0),
        saved=dict.fromkeys(("inner", "z", "h", "i", "f"), 0),
        needs=(*_INPUTS, "c", "n"),
        forward=forward,
        backward=backward,
        forward_shapes=forward_shapes,
        backward_shapes=backward_shapes,
    )
)


def mlstm_layer_fits(x: Tensor, up: Tensor, taps: Tensor, q: Tensor, down: Tensor) -> bool:
    """Whether the sizes suit `mlstm_layer_numba`, whose head width has to be a multiple of LANES."""
    width = up.shape[0] // 2
    return (
        x.shape[1] >= LEAST_STEPS
        and len(taps) == TAPS
        and q.shape[2] == BLOCK
        and not any(size % LANES for size in (x.shape[2], width, len(down)))
        and width * max(x.shape[2], len(down)) <= LARGEST_WEIGHT
    )


def mlstm_layer_numba(
    x: Tensor, up: Tensor, taps: Tensor, bias: Tensor, q: Tensor, k: Tensor, v: Tensor, by_c: Tensor, by_x: Tensor,
    gate_bias: Tensor, norm: Tensor, skip: Tensor, down: Tensor,
) -> tuple[Tensor, MLSTMState, Tensor]:  # fmt: skip
    """x [B, T, K]; up [2 P, K], the rows for the inner input, then for z; taps [4, P], bias [P]; q, k, v [P / 4, 4, 4];
    by_c and by_x [2 N, P], what the gates see of the convolved inner input and of the inner input, and gate_bias [2 N],
    each for i, then for f; norm [N, D] and skip [P]; down [E, P]. Sizes as `mlstm_layer_fits` says.

    Returns y [B, T, E], the cell's state and the last three inner inputs [B, 3, P], all differentiable.
    """
    spare = (0, 0, 0, -len(by_c) % ROWS)
    by_c, by_x = F.pad(by_c, spare), F.pad(by_x, spare)
    weights = (up, taps, bias, q, k, v, by_c, by_x, gate_bias, norm.flatten(), skip, down)
    y, *state, past = _in_layout(x.contiguous(), *(weight.contiguous().unsqueeze(0) for weight in weights))
    return y, MLSTMState(*state), past
