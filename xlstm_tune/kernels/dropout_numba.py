"""Dropout on a CPU in float32, compiled by Numba: one pass each way, without a mask in memory.

The equations are those of `dropout_reference`. torch draws its mask one number after the other from a generator, which
takes longer than a small layer's products.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from xlstm_tune.kernels.dropout_operator import dropout_operator
from xlstm_tune.kernels.dropout_reference import BLOCK, FIRST_FACTOR, GOLDEN, SECOND_FACTOR
from xlstm_tune.kernels.tiles import flat, kernel, run

_FIRST_FACTOR, _SECOND_FACTOR = np.uint32(FIRST_FACTOR), np.uint32(SECOND_FACTOR)
_GOLDEN = np.uint64(GOLDEN)


@njit(inline="always")
def _mixed(key):
    """A hash of 32 bits."""
    key = np.uint32(key ^ (key >> np.uint32(16)))
    key = np.uint32(key * _FIRST_FACTOR)
    key = np.uint32(key ^ (key >> np.uint32(13)))
    key = np.uint32(key * _SECOND_FACTOR)
    return np.uint32(key ^ (key >> np.uint32(16)))


@kernel
def _drop(first, end, size, x, y, rates, seeds):
    """Tasks first..end, each a block of a member's numbers: x, times scale or 0, to y; both flat, `size` a member."""
    blocks = -(-size // BLOCK)
    for task in range(first, end):
        member, block = task // blocks, task % blocks
        rate = rates[member]
        threshold, scale = np.uint32(min(np.rint(rate * 2.0**32), 2.0**32 - 1)), np.float32(1 / (1 - rate))
        keys = np.uint64(seeds[member]) + np.uint64(block) * _GOLDEN
        low, high = _mixed(np.uint32(keys)), _mixed(np.uint32(keys >> np.uint64(32)))
        start = member * size + block * BLOCK
        count = min(BLOCK, size - block * BLOCK)
        source, target = x[start : start + count], y[start : start + count]
        for place in range(count):
            drawn = _mixed(np.uint32(_mixed(np.uint32(np.uint32(place) + low)) ^ high))
            target[place] = source[place] * scale if drawn >= threshold else np.float32(0)


def _dropped(x: Tensor, rate: Tensor, seed: Tensor) -> Tensor:
    """As `dropout_operator` wants it."""
    y = torch.empty_like(x)
    if x.numel():
        size = x.numel() // len(seed)
        run(_drop, len(seed) * -(-size // BLOCK), size, *map(flat, (x, y, rate, seed)))
    return y


dropout_numba = dropout_operator("dropout_numba", _dropped)
