"""The mLSTM kernel of one step, for inference: the state is read once and written once, nothing else is made.

Legend and equations as in `mlstm_forms`. Heads of any width.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from xlstm_tune.kernels.mlstm_chunk import SHUT
from xlstm_tune.kernels.mlstm_parts_triton import denominators
from xlstm_tune.kernels.parts_triton import log_sigmoid

_SHUT = tl.constexpr(SHUT)


@triton.jit
def _step(
    q, k, v, i, f, c0, n0, m0, h, c_out, n_out, m_out, tiles, width, value_width, scale,
    WARM: tl.constexpr, TILE: tl.constexpr, VALUE_TILE: tl.constexpr,
):  # fmt: skip
    """A program has one head of one sample and a tile of values. q, k [B, N, D], v, h [B, N, V], i, f [B, N], states
    c0 [B, N, D, V], n0 [B, N, D], m0 [B, N]."""
    task = tl.program_id(0).to(tl.int64) // tiles
    at_tile = tl.program_id(0) % tiles
    values = at_tile * VALUE_TILE + tl.arange(0, VALUE_TILE)
    log_f = log_sigmoid(tl.load(f + task))
    own = tl.load(i + task)
    past = tl.where(log_f < _SHUT, -float("inf"), log_f + tl.load(m0 + task))
    m = tl.maximum(own, past)
    kept, added = tl.exp(past - m), tl.exp(own - m) * scale
    vs = tl.load(v + task * value_width + values, mask=values < value_width, other=0.0).to(tl.float32) * added
    out = tl.zeros([VALUE_TILE], tl.float32)
    total = 0.0
    for offset in range(0, width, TILE):
        keys = offset + tl.arange(0, TILE)
        here = keys < width
        qs = tl.load(q + task * width + keys, mask=here, other=0.0).to(tl.float32)
        ks = tl.load(k + task * width + keys, mask=here, other=0.0).to(tl.float32)
        square = here[:, None] & (values < value_width)[None, :]
        at = task * width * value_width + keys[:, None] * value_width + values[None, :]
        c, n = ks[:, None] * vs[None, :], ks * added
        if WARM:
            c += kept * tl.load(c0 + at, mask=square, other=0.0)
            n += kept * tl.load(n0 + task * width + keys, mask=here, other=0.0)
        tl.store(c_out + at, c, mask=square)
        tl.store(n_out + task * width + keys, n, mask=keys < tl.where(at_tile == 0, width, 0))
        out += tl.sum(c * qs[:, None], 0)
        total += tl.sum(n * qs, 0)
    _floor, share = denominators(total, 0.0, m)
    tl.store(h + task * value_width + values, (out * share).to(h.dtype.element_ty), mask=values < value_width)
    if at_tile == 0:
        tl.store(m_out + task, m)


def step(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, c0: Tensor, n0: Tensor, m0: Tensor, warm: bool,
    h: Tensor, c: Tensor, n: Tensor, m: Tensor,
) -> None:  # fmt: skip
    """Writes h and the state behind the only step; all as for `mlstm_triton.forward` with T = 1."""
    batch, _, heads, width = q.shape
    value_width = v.shape[-1]
    value_tile = min(64, triton.next_power_of_2(value_width))
    tiles = triton.cdiv(value_width, value_tile)
    _step[(batch * heads * tiles,)](
        q, k, v, i, f, c0, n0, m0, h, c, n, m, tiles, width, value_width, 1 / math.sqrt(width),
        WARM=warm, TILE=min(32, triton.next_power_of_2(width)), VALUE_TILE=value_tile, num_warps=4,
    )  # fmt: skip
