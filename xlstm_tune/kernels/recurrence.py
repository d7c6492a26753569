"""What the LSTM and sLSTM kernels for a CPU share: four gates that see h through a weight, and the gradients of that.

Legend as in `slstm_reference`; W = LANES samples side by side, tiles [.., W] as in `tiles`.
"""

from __future__ import annotations

import torch
from numba import njit
from torch import Tensor

from xlstm_tune.kernels.matmul_numba import add_column, outer
from xlstm_tune.kernels.simd import CONTRACT, LANES, load, splat, spread, store
from xlstm_tune.kernels.tiles import f32

STEPS = 4
"""Steps whose gates' gradients are kept in cache, to be met with what those gates saw in one product."""


@njit(forceinline=True, fastmath=CONTRACT)
def gate_sums(raw, bias, weight, head, unit, width, h):
    """The four gates of a unit before their functions: inputs' share + bias + R h, each a vector.

    raw [4, D, W], bias [N, 4, D], weight [N, 4, D, D in], h [D, W].
    """
    at = head * 4 * width + unit
    first = load(raw, unit * LANES) + spread(bias, at)
    second = load(raw, (width + unit) * LANES) + spread(bias, at + width)
    third = load(raw, (2 * width + unit) * LANES) + spread(bias, at + 2 * width)
    fourth = load(raw, (3 * width + unit) * LANES) + spread(bias, at + 3 * width)
    row, gate = at * width, width * width
    for source in range(width):
        seen = load(h, source * LANES)
        first = first + seen * spread(weight, row + source)
        second = second + seen * spread(weight, row + gate + source)
        third = third + seen * spread(weight, row + 2 * gate + source)
        fourth = fourth + seen * spread(weight, row + 3 * gate + source)
    return first, second, third, fourth


@njit(forceinline=True, fastmath=CONTRACT)
def through_weight(weight, head, unit, width, d_raw):
    """What a unit's h receives from the gates of the next step: weight [N, D in, 4, D] times d_raw [4, D, W]."""
    row = (head * width + unit) * 4 * width
    first, second, third, fourth = splat(f32(0)), splat(f32(0)), splat(f32(0)), splat(f32(0))
    for target in range(width):
        first = first + load(d_raw, target * LANES) * spread(weight, row + target)
        second = second + load(d_raw, (width + target) * LANES) * spread(weight, row + width + target)
        third = third + load(d_raw, (2 * width + target) * LANES) * spread(weight, row + 2 * width + target)
        fourth = fourth + load(d_raw, (3 * width + target) * LANES) * spread(weight, row + 3 * width + target)
    return (first + second) + (third + fourth)


@njit(forceinline=True)
def copy_rows(source, at, lane_stride, step_stride, count, steps, width, rows, first):
    """Rows of `count` samples and `steps` steps of a flat array → rows [STEPS, W, P] from step `first` on.

    Further lanes become zero; columns from `width` up to P, the next multiple of LANES, stay as they are.
    """
    padded, whole = (width + LANES - 1) // LANES * LANES, width - width % LANES
    for step in range(steps):
        place, to = at + step * step_stride, (first + step) * LANES * padded
        for feature in range(0, whole, LANES):
            for lane in range(count):
                store(rows, to + lane * padded + feature, load(source, place + lane * lane_stride + feature))
        for feature in range(whole, width):
            for lane in range(count):
                rows[to + lane * padded + feature] = source[place + lane * lane_stride + feature]
        for empty in range(to + count * padded, to + LANES * padded, LANES):
            store(rows, empty, splat(f32(0)))


@njit(forceinline=True)
def add_shares(gates, at, count, steps, rows, width, out, to):
    """Add to out [count, P] the products of `count` gates [., STEPS, W] with rows [STEPS, W, P], over `steps` steps."""
    padded = (width + LANES - 1) // LANES * LANES
    for column in range(0, padded, LANES):
        add_column(
            gates, at, STEPS * LANES, 1, count, steps * LANES, rows, column, padded, out, to + column, padded
        )  # fmt: skip


def parameter_gradients(d_gates: Tensor, h0: Tensor, h: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients of recurrent [N, 4, D, D] and bias [N, 4, D], from those of the gates in one product a head.

    d_gates [N, B, T, 4, D], h0 [N, B, D], h [B, T, N, D], keep [N, B, T] or None.
    """
    heads, batch, steps, _, width = d_gates.shape
    rows = d_gates.view(heads, batch * steps, 4 * width)
    before = torch.cat([h0.transpose(0, 1).unsqueeze(1), h[:, :-1]], 1)  # [B, T, N, D]
    if keep is not None:
        before *= keep.permute(1, 2, 0).unsqueeze(3)
    seen = before.view(batch * steps, heads, width).transpose(0, 1)
    of_recurrent = outer(rows, seen) if width % LANES == 0 else torch.bmm(rows.transpose(1, 2), seen)
    return of_recurrent.view(heads, 4, width, width), rows.sum(1).view(heads, 4, width)


def heads_first(gates: Tensor, recurrent: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Gates [B, T, N, 4, D] as [N, B, T, 4, D], weights contiguous, and zeros for a bias that is None."""
    if bias is None:
        bias = gates.new_zeros(recurrent.shape[:3])
    return gates.permute(2, 0, 1, 3, 4).contiguous(), recurrent.contiguous(), bias.contiguous()


def keep_by_head(keep: Tensor | None, heads: int) -> Tensor | None:
    """keep [B, T] as [N, B, T]."""
    return None if keep is None else keep.expand(heads, *keep.shape).contiguous()
