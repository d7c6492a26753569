"""The gate of a feed-forward, activation(gate) · up, on a CPU in float32, in one pass each way.

Legend: B batch, T steps, F features.
"""

from __future__ import annotations

import torch
from numba import njit
from torch import Tensor

from xlstm_tune.kernels.library import Kernel, register
from xlstm_tune.kernels.simd import CONTRACT, LANES, exp, load, select, sigmoid_and_slope, splat, store
from xlstm_tune.kernels.tiles import f32, flat, kernel, run

KINDS = ("gelu", "silu", "relu")


@njit(inline="always", fastmath=CONTRACT)
def _normal(x):
    """(Φ(x), φ(x)) of the standard normal distribution.

    Φ(-|x|) = φ · a polynomial in 1 / (1 + p |x|), to 1e-7 (Abramowitz and Stegun 1964, 7.1.26, with x / √2 for x).
    """
    positive = x > f32(0)
    size = select(positive, x, f32(0) - x)
    bell = exp(x * x * f32(-0.5))
    t = f32(1) / (size * f32(0.3275911 * 0.7071067811865476) + f32(1))
    series = t * f32(1.061405429) + f32(-1.453152027)
    series = series * t + f32(1.421413741)
    series = series * t + f32(-0.284496736)
    series = series * t + f32(0.254829592)
    tail = series * t * bell * f32(0.5)
    return select(positive, f32(1) - tail, tail), bell * f32(0.3989422804014327)


@njit(inline="always", fastmath=CONTRACT)
def _activation(x, kind):
    """(the activation, its derivative)."""
    if kind == 0:
        share, density = _normal(x)
        return x * share, x * density + share
    if kind == 1:
        share, rest = sigmoid_and_slope(x)
        return x * share, share * (x * rest + f32(1))
    step = select(x > f32(0), splat(f32(1)), splat(f32(0)))
    return x * step, step


@kernel
def _forward(first, end, part, kind, gate, up, y):
    """Parts first..end of `part` neighbours each."""
    for at in range(first * part, end * part, LANES):
        value, _ = _activation(load(gate, at), kind)
        store(y, at, value * load(up, at))


@kernel
def _backward(first, end, part, kind, gate, up, grad, d_gate, d_up):
    for at in range(first * part, end * part, LANES):
        value, slope = _activation(load(gate, at), kind)
        through = load(grad, at)
        store(d_gate, at, through * load(up, at) * slope)
        store(d_up, at, through * value)


def forward(gate: Tensor, up: Tensor, keep: bool, kind: int) -> tuple[Tensor, ...]:
    """gate, up [B, T, F] → activation(gate) · up."""
    y = torch.empty_like(gate)
    run(_forward, len(gate), gate[0].numel(), kind, *map(flat, (gate, up, y)))
    return (y,)


def backward(gate: Tensor, up: Tensor, grad: Tensor | None, kind: int) -> tuple[Tensor, ...]:
    """Gradients of (gate, up)."""
    d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
    if grad is None:
        return d_gate.zero_(), d_up.zero_()
    run(_backward, len(gate), gate[0].numel(), kind, *map(flat, (gate, up, grad.contiguous(), d_gate, d_up)))
    return d_gate, d_up


def _forward_shapes(gate: Tensor, *_: object) -> tuple[Tensor, ...]:
    return (torch.empty_like(gate),)


def _backward_shapes(gate: Tensor, up: Tensor, *_: object) -> tuple[Tensor, ...]:
    return torch.empty_like(gate), torch.empty_like(up)


_in_layout = register(
    Kernel(
        name="glu_numba",
        inputs={"gate": 0, "up": 0},
        constants={},
        outputs={"y": 0},
        saved={},
        needs=("gate", "up"),
        forward=forward,
        backward=backward,
        forward_shapes=_forward_shapes,
        backward_shapes=_backward_shapes,
        options={"kind": "int"},
    )
)


def glu_numba(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """activation(gate) · up; gate, up [B, T, F], F a multiple of LANES; one of KINDS, gelu being the exact one."""
    (y,) = _in_layout(gate.contiguous(), up.contiguous(), kind=KINDS.index(activation))
    return y
