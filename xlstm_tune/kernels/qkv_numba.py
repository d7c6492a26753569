"""mLSTM's q, k and v on a CPU in float32: projections in independent blocks of four features, in one pass each way.

Legend: B batch, T steps, P features, W lanes. A lane holds a feature; what its block's other features are is seen by
turning the block (`simd.turn`): weight [4, P] holds, for each turn, the weight of the feature that a lane then sees.
"""

from __future__ import annotations

import functools

import torch
from numba import njit
from torch import Tensor

from xlstm_tune.kernels.library import Kernel, register
from xlstm_tune.kernels.simd import CONTRACT, LANES, load, splat, store, turn
from xlstm_tune.kernels.tiles import f32, flat, kernel, run

BLOCK = 4


@njit(forceinline=True, fastmath=CONTRACT)
def project(weight, at, width, x0):
    """Σ over turns of weight, from `at` on and `width` apart, times what each lane sees of x0."""
    x1 = turn(x0)
    x2 = turn(x1)
    x3 = turn(x2)
    near = load(weight, at) * x0 + load(weight, at + width) * x1
    return near + (load(weight, at + 2 * width) * x2 + load(weight, at + 3 * width) * x3)


@kernel
def _forward(first, end, steps, width, c, x, weight, q, k, v):
    """Samples first..end; c, x, q, k, v [B, T, P], weight [q, k, v; 4; P], flat."""
    for row in range(first * steps, end * steps):
        for feature in range(0, width, LANES):
            at = row * width + feature
            seen, raw = load(c, at), load(x, at)
            store(q, at, project(weight, feature, width, seen))
            store(k, at, project(weight, 4 * width + feature, width, seen))
            store(v, at, project(weight, 8 * width + feature, width, raw))


@kernel
def _backward(first, end, steps, width, c, x, turned, d_q, d_k, d_v, d_c, d_x, d_weight):
    """As `_forward`; turned: the weights as the way back sees them; d_weight [B, 3, 4, P], the samples' shares."""
    zero = splat(f32(0))
    for sample in range(first, end):
        for feature in range(0, width, LANES):
            q0, q1, q2, q3, k0, k1, k2, k3, v0, v1, v2, v3 = (
                zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero,
            )  # fmt: skip
            for step in range(steps):
                at = (sample * steps + step) * width + feature
                dq, dk, dv, seen, raw = load(d_q, at), load(d_k, at), load(d_v, at), load(c, at), load(x, at)
                by_q = project(turned, feature, width, dq)
                by_k = project(turned, 4 * width + feature, width, dk)
                store(d_c, at, by_q + by_k)
                store(d_x, at, project(turned, 8 * width + feature, width, dv))
                q0, k0, v0 = q0 + dq * seen, k0 + dk * seen, v0 + dv * raw
                seen, raw = turn(seen), turn(raw)
                q1, k1, v1 = q1 + dq * seen, k1 + dk * seen, v1 + dv * raw
                seen, raw = turn(seen), turn(raw)
                q2, k2, v2 = q2 + dq * seen, k2 + dk * seen, v2 + dv * raw
                seen, raw = turn(seen), turn(raw)
                q3, k3, v3 = q3 + dq * seen, k3 + dk * seen, v3 + dv * raw
            at = sample * 12 * width + feature
            store(d_weight, at, q0)
            store(d_weight, at + width, q1)
            store(d_weight, at + 2 * width, q2)
            store(d_weight, at + 3 * width, q3)
            store(d_weight, at + 4 * width, k0)
            store(d_weight, at + 5 * width, k1)
            store(d_weight, at + 6 * width, k2)
            store(d_weight, at + 7 * width, k3)
            store(d_weight, at + 8 * width, v0)
            store(d_weight, at + 9 * width, v1)
            store(d_weight, at + 10 * width, v2)
            store(d_weight, at + 11 * width, v3)


@functools.cache
def _turns(back: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each turn and lane of a block, the (output, input) whose weight it uses, each [4, 4]."""
    turns = torch.arange(BLOCK, device=device).view(-1, 1)
    lane = torch.arange(BLOCK, device=device).expand(BLOCK, BLOCK)
    other = (lane + turns) % BLOCK
    return (other, lane) if back else (lane, other)


def by_turn(weights: Tensor, back: bool) -> Tensor:
    """[W, P / 4, out, in], W weights, to [W, 4, P]; back: as the way back sees them."""
    return weights[:, :, *_turns(back, weights.device)].permute(0, 2, 1, 3).flatten(2).contiguous()


def from_turns(turned: Tensor) -> tuple[Tensor, ...]:
    """The way back of `by_turn`: [W, 4, P] to W of [P / 4, out, in]."""
    count = len(turned)
    weights = turned.new_empty(count, turned.shape[2] // BLOCK, BLOCK, BLOCK)
    weights[:, :, *_turns(False, turned.device)] = turned.view(count, BLOCK, -1, BLOCK).permute(0, 2, 1, 3)
    return tuple(part.clone() for part in weights)


def forward(c: Tensor, x: Tensor, q: Tensor, k: Tensor, v: Tensor, train: bool) -> tuple[Tensor, ...]:
    """c, x [B, T, P]; weights q, k (of c) and v (of x) [P / 4, 4 out, 4 in] → their products [B, T, P]."""
    found = forward_shapes(c)
    batch, steps, width = c.shape
    run(_forward, batch, steps, width, *map(flat, (c, x, by_turn(torch.stack([q, k, v]), False), *found)))
    return found


def backward(
    c: Tensor, x: Tensor, q: Tensor, k: Tensor, v: Tensor, d_q: Tensor | None, d_k: Tensor | None, d_v: Tensor | None
) -> tuple[Tensor, ...]:
    """Gradients of (c, x, q, k, v)."""
    batch, steps, width = c.shape
    grads = (torch.zeros_like(c) if grad is None else grad.contiguous() for grad in (d_q, d_k, d_v))
    d_c, d_x = torch.empty_like(c), torch.empty_like(x)
    shares = c.new_empty(batch, 3, BLOCK, width)
    turned = by_turn(torch.stack([q, k, v]), True)
    run(_backward, batch, steps, width, *map(flat, (c, x, turned, *grads, d_c, d_x, shares)))
    return d_c, d_x, *from_turns(shares.sum(0))


def forward_shapes(c: Tensor, *_: object) -> tuple[Tensor, ...]:
    """Tensors like those that `forward` returns, not filled."""
    return torch.empty_like(c), torch.empty_like(c), torch.empty_like(c)


def backward_shapes(c: Tensor, x: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, ...]:
    """Tensors like those that `backward` returns, not filled."""
    return tuple(torch.empty_like(tensor) for tensor in (c, x, q, k, v))


_in_layout = register(
    Kernel(
        name="qkv_numba",
        inputs={"c": 2, "x": 2, "q": 0, "k": 0, "v": 0},
        constants={},
        outputs={"by_q": 2, "by_k": 2, "by_v": 2},
        saved={},
        needs=("c", "x", "q", "k", "v"),
        forward=forward,
        backward=backward,
        forward_shapes=forward_shapes,
        backward_shapes=backward_shapes,
    )
)


def qkv_numba(c: Tensor, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """c, x [B, T, P], P a multiple of LANES; weights [P / 4, 4, 4] → q and k of c, v of x, each [B, T, P]."""
    by_q, by_k, by_v = _in_layout(*(tensor.contiguous() for tensor in (c, x, q, k, v)))
    return by_q, by_k, by_v
