"""What stands around the cells of an xLSTM layer: in torch, and for float32 on a CPU as one pass compiled by Numba.

Legend: B batch, T steps, E features, K kernel, N heads, D head width, P = N D features. `backend`: "reference" is torch
on any device and dtype; with any other name the fastest that can take the tensors, since none of these is a recurrence
that a user would ask a backend for.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from xlstm_tune.kernels.conv_numba import TAPS, conv_numba
from xlstm_tune.kernels.dispatch import resolve, triton_refusal
from xlstm_tune.kernels.dropout_numba import dropout_numba
from xlstm_tune.kernels.dropout_reference import dropout_reference
from xlstm_tune.kernels.feed_forward_numba import feed_forward_fits, feed_forward_numba
from xlstm_tune.kernels.matmul_numba import linear_fits, linear_numba
from xlstm_tune.kernels.mlstm_forms import MLSTMState
from xlstm_tune.kernels.mlstm_last import mlstm_last_weights
from xlstm_tune.kernels.mlstm_last_layer_numba import mlstm_last_layer_numba
from xlstm_tune.kernels.mlstm_last_numba import mlstm_last_numba
from xlstm_tune.kernels.mlstm_layer_numba import MLSTMLayerWeights, mlstm_layer_fits, mlstm_layer_numba
from xlstm_tune.kernels.mlstm_sources_numba import mlstm_sources_numba
from xlstm_tune.kernels.norm_numba import EPSILON, gated_head_norm_numba, head_norm_numba
from xlstm_tune.kernels.qkv_numba import BLOCK, qkv_numba
from xlstm_tune.kernels.simd import LANES

NORM_EPSILON = EPSILON

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu}


def _one_pass(backend: str, width: int, *tensors: Tensor | None) -> bool:
    """Whether the compiled passes, whose vectors are LANES wide, can take these tensors."""
    return (
        backend != "reference"
        and width % LANES == 0
        and all(one is None or (one.dtype == torch.float32 and one.device.type == "cpu") for one in tensors)
    )


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    past: Tensor | None = None,
    resets: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """SiLU of a depthwise convolution over time: weight[j] meets the input K - 1 - j steps back.

    x [B, T, E], weight [K, E], bias [E], past [B, K - 1, E] before x (zeros if None), resets [B, T] bool: nothing from
    before such a step is seen from there on.
    """
    if _one_pass(backend, LANES, x, weight, bias, past):  # any width, in padded lanes
        return conv_numba(x, weight, bias, past, resets)
    steps, before = x.shape[1], len(weight) - 1
    padded = F.pad(x, (0, 0, before, 0)) if past is None else torch.cat([past, x], 1)
    # Two steps see each other if no reset lies between them.
    segment = None if resets is None else F.pad(resets.long().cumsum(1), (before, 0))
    # Shifted products: on a CPU faster than torch's depthwise convolution for such short kernels.
    out = bias
    for shift, tap in enumerate(weight):
        seen = padded[:, shift : shift + steps]
        if segment is not None:
            seen = seen * (segment[:, shift : shift + steps] == segment[:, -steps:])[..., None]
        out = torch.addcmul(out, seen, tap)
    return F.silu(out)


def block_diagonal(x: Tensor, weight: Tensor, heads: int) -> Tensor:
    """x [B, T, P] in independent blocks, weight [P / block, block out, block in] → [B, T, N, D]."""
    groups, block, _ = weight.shape
    head = x.shape[2] // heads
    # Products of 4 × 4 leave a processor idle: several blocks make one tile, the zeros between them included. A tile
    # that is a head needs no copy to be seen head by head.
    tiles = heads if head % block == 0 and head <= 64 else groups // math.gcd(groups, max(1, 32 // block))
    by_tile = weight.view(tiles, groups // tiles, block, block)
    eye = torch.eye(groups // tiles, dtype=weight.dtype, device=weight.device)
    tiled = torch.einsum("tboi,bc->tcibo", by_tile, eye).reshape(tiles, x.shape[2] // tiles, -1)
    batch, steps, _ = x.shape
    rows = x.reshape(batch * steps, tiles, x.shape[2] // tiles).transpose(0, 1)
    out = torch.bmm(rows, tiled).view(tiles, batch, steps, tiled.shape[2]).permute(1, 2, 0, 3)
    return out if tiles == heads else out.reshape(batch, steps, heads, head)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """x [B, T, P] as [B, T, N, D]."""
    return x.view(*x.shape[:2], heads, x.shape[2] // heads)


def project_qkv(
    convolved: Tensor, x: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, backend: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """q and k of the convolved input, v of the raw one, both [B, T, P], by `block_diagonal`; each [B, T, N, D]."""
    if q.shape[2] == BLOCK and _one_pass(backend, x.shape[2], convolved, x, q, k, v):
        by_q, by_k, by_v = (_by_head(one, heads) for one in qkv_numba(convolved, x, q, k, v))
        return by_q, by_k, by_v
    return block_diagonal(convolved, q, heads), block_diagonal(convolved, k, heads), block_diagonal(x, v, heads)


def cell_inputs(
    convolved: Tensor,
    x: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    by_convolved: Tensor,
    by_x: Tensor,
    heads: int,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`project_qkv`, and the gates [B, T, gates]: by_convolved times the convolved input plus by_x times the raw one,
    both [gates, P]."""
    spare = (0, 0, 0, -len(by_x) % LANES)  # thin products are made LANES wide
    gates = linear(convolved, F.pad(by_convolved, spare), backend) + linear(x, F.pad(by_x, spare), backend)
    return *project_qkv(convolved, x, q, k, v, heads, backend), gates[..., : len(by_x)]


def convolved_cell_inputs(
    x: Tensor,
    taps: Tensor,
    bias: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    by_convolved: Tensor,
    by_x: Tensor,
    heads: int,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`causal_conv` of x [B, T, P] from the empty past, and `cell_inputs` of it and x."""
    tensors = (x, taps, bias, q, k, v, by_convolved, by_x)
    if len(taps) == TAPS and q.shape[2] == BLOCK and _one_pass(backend, x.shape[2], *tensors):
        convolved, by_q, by_k, by_v, gates = mlstm_sources_numba(*tensors)
        return convolved, _by_head(by_q, heads), _by_head(by_k, heads), _by_head(by_v, heads), gates
    convolved = causal_conv(x, taps, bias, backend=backend)
    return convolved, *cell_inputs(convolved, x, q, k, v, by_convolved, by_x, heads, backend)


def whole_mlstm_layer(
    x: Tensor, weights: MLSTMLayerWeights, backend: str = "auto"
) -> tuple[Tensor, MLSTMState, Tensor] | None:
    """An mLSTM layer of x [B, T, K] from the empty state as one op, or None where its parts have to be called.

    Returns the layer's output [B, T, E], the cell's state, and the last three inner inputs [B, 3, P].
    """
    if not _one_pass(backend, LANES, x, *weights) or not mlstm_layer_fits(x, weights):
        return None
    head_width = 2 * len(weights.norm) // len(weights.gate_bias)
    if resolve("mlstm", backend, x.device.type, x.dtype, width=head_width).backend != "numba":
        return None
    return mlstm_layer_numba(x, weights)


def end_of_mlstm_layer(
    x: Tensor, weights: MLSTMLayerWeights, before: Tensor | None = None, backend: str = "auto"
) -> tuple[Tensor, Tensor] | None:
    """An mLSTM layer's output at the last step alone, [B, E], of x [B, T, K] from the empty state, and x at that step,
    [B, K], as one op, or None where its parts have to be called. before [K]: the weight of a layer norm before it."""
    if not _one_pass(backend, LANES, x, before, *weights) or not mlstm_layer_fits(x, weights):
        return None
    return mlstm_last_layer_numba(x, weights, before)


def pooled_by_last(
    x: Tensor,
    conv: tuple[Tensor, Tensor] | None,
    gate_bias: Tensor,
    by_convolved: Tensor,
    by_x: Tensor,
    queries: Tensor,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """The steps of x [B, T, P] by what they weigh in the mLSTM's output at the last one, for each head, [B, N, P].

    conv: taps [K, P] and bias [P] of `causal_conv`; None = x itself. Gates: by_convolved times the convolved x plus
    by_x times x, [2 N, P] each, plus gate_bias [2 N]; the input gates first. queries [B, N, P] times the convolved x
    are the scores, `mlstm_last` makes weights of them. lengths: as there.
    """
    tensors = (gate_bias, by_convolved, by_x, queries)
    usual = conv is not None and len(conv[0]) == TAPS and lengths is None
    if conv is not None and usual and _one_pass(backend, x.shape[2], x, *conv, *tensors):
        return mlstm_last_numba(x, *conv, *tensors)
    convolved = x if conv is None else causal_conv(x, *conv, backend=backend)
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        keys, values = convolved.to(dtype), x.to(dtype)
        gate_bias, by_convolved, by_x, queries = (tensor.to(dtype) for tensor in tensors)
        i, f = (keys @ by_convolved.t() + values @ by_x.t() + gate_bias).chunk(2, dim=-1)
        weights = mlstm_last_weights(keys @ queries.transpose(1, 2), i, f, lengths)
        return (weights.transpose(1, 2) @ values).to(x.dtype)


def head_norm(h: Tensor, weight: Tensor, backend: str = "auto") -> Tensor:
    """h [B, T, N, D] less its mean over D, over its deviation, times weight [N, D]; a head of width 1 only times it."""
    if h.shape[3] == 1:
        return h * weight
    if _one_pass(backend, h.shape[3], h, weight):
        return head_norm_numba(h, weight)
    # On a CPU twice as fast as torch's group norm.
    return F.layer_norm(h, h.shape[3:], None, None, NORM_EPSILON) * weight


def layer_norm(x: Tensor, weight: Tensor, backend: str = "auto") -> Tensor:
    """x [B, T, E] less its mean over E, over its deviation, times weight [E]."""
    if _one_pass(backend, x.shape[2], x, weight):
        return head_norm_numba(x.unsqueeze(2), weight.unsqueeze(0)).squeeze(2)
    return F.layer_norm(x, x.shape[2:], weight, None, NORM_EPSILON)


def gated_head_norm(
    h: Tensor, weight: Tensor, convolved: Tensor, skip: Tensor, z: Tensor, backend: str = "auto"
) -> Tensor:
    """(head_norm(h) + skip · convolved) · SiLU(z); h, convolved, z [B, T, N, D], weight, skip [N, D]."""
    if h.shape[3] > 1 and _one_pass(backend, h.shape[3], h, weight, convolved, skip, z):
        return gated_head_norm_numba(h, weight, convolved, skip, z)
    return torch.addcmul(head_norm(h, weight, backend), skip, convolved) * F.silu(z)


def linear(x: Tensor, weight: Tensor, backend: str = "auto") -> Tensor:
    """x [B, T, K], weight [N, K] → x weightᵀ [B, T, N]."""
    if _one_pass(backend, LANES, x, weight) and linear_fits(x, weight):
        return linear_numba(x, weight)
    return F.linear(x, weight)


def dropout(x: Tensor, rate: float | Tensor, seed: int | Tensor, backend: str = "auto") -> Tensor:
    """`dropout_reference`: what is dropped of x, of any shape, follows from the seed and the place alone.

    rate: 0 to 1 without 1. seed: int64, from 0 on. Each a number or a 0-d tensor, on a GPU best one that lies there.
    """
    if not isinstance(rate, Tensor) and rate == 0:
        return x
    device, fast = x.device.type, backend != "reference" and x.dtype != torch.float64 and x.dim() > 0
    if fast and device == "cpu":
        return dropout_numba(x.float(), rate, seed).to(x.dtype)
    if fast and device == "cuda" and triton_refusal(device, x.dtype) is None:
        from xlstm_tune.kernels.dropout_triton import dropout_triton

        return dropout_triton(x, rate, seed)
    return dropout_reference(x, rate, seed)


def gated_feed_forward(x: Tensor, up: Tensor, down: Tensor, activation: str, backend: str = "auto") -> Tensor:
    """down(activation(gate) · value) of x [B, T, E]; up [2 F, E]: the rows for gate, then for value; down [E, F]."""
    if _one_pass(backend, LANES, x, up, down) and feed_forward_fits(x, up, down):
        return feed_forward_numba(x, up, down, activation)
    # Two products: the halves of one would not be contiguous, nor would their gradients.
    gate, value = (F.linear(x, half) for half in up.chunk(2))
    return F.linear(ACTIVATIONS[activation](gate) * value, down)
