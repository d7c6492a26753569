"""Dropout on a GPU in float32 and 16 bits: one pass each way, without a mask in memory.

The equations are those of `dropout_reference`. Rate and seed are read on the device: the host does not wait for them,
and a captured CUDA graph finds others there each time it runs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from xlstm_tune.kernels.dropout_operator import dropout_operator
from xlstm_tune.kernels.dropout_reference import BLOCK, FIRST_FACTOR, GOLDEN, SECOND_FACTOR

TILE = 1024
"""Numbers that a program takes, all of them of one block."""
_BLOCK, _GOLDEN = tl.constexpr(BLOCK), tl.constexpr(GOLDEN)
_FIRST_FACTOR, _SECOND_FACTOR = tl.constexpr(FIRST_FACTOR), tl.constexpr(SECOND_FACTOR)


@triton.jit
def _mixed(key):
    """A hash of 32 bits."""
    key = key ^ (key >> 16)
    key = key * _FIRST_FACTOR
    key = key ^ (key >> 13)
    key = key * _SECOND_FACTOR
    return key ^ (key >> 16)


@triton.jit
def _threshold(rate):
    """rate · 2³² as a whole number of 32 bits, a half to the even one."""
    wide = rate * 4294967296.0
    whole = wide.to(tl.int64)
    rest = wide - whole.to(tl.float64)
    up = (rest > 0.5) | ((rest == 0.5) & (whole % 2 == 1))
    return tl.minimum(whole + up.to(tl.int64), 4294967295).to(tl.uint32)


@triton.jit
def _drop(x, y, rates, seeds, size, tiles, TILE: tl.constexpr):
    """A tile of a member's numbers: x, times scale or 0, to y; both flat, `size` numbers in `tiles` tiles a member."""
    program = tl.program_id(0)
    member, start = program // tiles, (program % tiles).to(tl.int64) * TILE
    rate = tl.load(rates + member)
    scale = (1.0 / (1.0 - rate)).to(tl.float32)
    keys = tl.load(seeds + member).to(tl.uint64) + (start // _BLOCK).to(tl.uint64) * _GOLDEN
    low, high = _mixed(keys.to(tl.uint32)), _mixed((keys >> 32).to(tl.uint32))
    own = tl.arange(0, TILE)
    places = (start % _BLOCK + own).to(tl.uint32)
    drawn = _mixed(_mixed(places + low) ^ high)
    at, inside = member.to(tl.int64) * size + start + own, start + own < size
    kept = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * scale
    tl.store(y + at, tl.where(drawn >= _threshold(rate), kept, 0.0).to(y.dtype.element_ty), mask=inside)


def _dropped(x: Tensor, rate: Tensor, seed: Tensor) -> Tensor:
    """As `dropout_operator` wants it."""
    y = torch.empty_like(x)
    if x.numel():
        size = x.numel() // len(seed)
        tiles = triton.cdiv(size, TILE)
        _drop[(len(seed) * tiles,)](x, y, rate, seed, size, tiles, TILE=TILE, num_warps=4)
    return y


dropout_triton = dropout_operator("dropout_triton", _dropped)
