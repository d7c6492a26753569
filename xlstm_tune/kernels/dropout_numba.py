"""Dropout on a CPU in float32, compiled by Numba: one pass each way, without a mask in memory.

What is dropped follows from a seed and a number's place: a hash of both (the finaliser of MurmurHash3, by Austin
Appleby, twice) is uniform over 32 bits. The way back computes it again. torch draws its mask one number after the other
from a generator, which takes longer than a small layer's products.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from xlstm_tune.kernels.library import Kernel, register
from xlstm_tune.kernels.tiles import flat, kernel, run

_BLOCK = 4096
"""Numbers of a task; each has keys of its own, so that places never exceed 32 bits."""
_ONE, _TWO = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@njit(inline="always")
def _mixed(key):
    """A hash of 32 bits."""
    key = np.uint32(key ^ (key >> np.uint32(16)))
    key = np.uint32(key * _ONE)
    key = np.uint32(key ^ (key >> np.uint32(13)))
    key = np.uint32(key * _TWO)
    return np.uint32(key ^ (key >> np.uint32(16)))


@kernel
def _drop(first, end, x, y, seed, threshold, scale):
    """Blocks first..end of x, times scale or 0, to y; flat."""
    for block in range(first, end):
        keys = np.uint64(seed) + np.uint64(block) * _GOLDEN
        low, high = _mixed(np.uint32(keys)), _mixed(np.uint32(keys >> np.uint64(32)))
        start = block * _BLOCK
        count = min(_BLOCK, len(x) - start)
        source, target = x[start : start + count], y[start : start + count]
        for place in range(count):
            drawn = _mixed(np.uint32(_mixed(np.uint32(np.uint32(place) + low)) ^ high))
            target[place] = source[place] * scale if drawn >= threshold else np.float32(0)


def _dropped(x: Tensor, rate: float, seed: int) -> Tensor:
    y = torch.empty_like(x)
    threshold, scale = np.uint32(min(round(rate * 2**32), 2**32 - 1)), np.float32(1 / (1 - rate))
    run(_drop, -(-x.numel() // _BLOCK), flat(x), flat(y), seed, threshold, scale)
    return y


def forward(x: Tensor, train: bool, rate: float, seed: int) -> tuple[Tensor, ...]:
    """x, contiguous, of any shape."""
    return (_dropped(x, rate, seed),)


def backward(grad: Tensor | None, rate: float, seed: int) -> tuple[Tensor, ...]:
    """The gradient of x. y has always one: nothing else comes out."""
    assert grad is not None
    return (_dropped(grad.contiguous(), rate, seed),)


def _shapes(x: Tensor, *rest: object) -> tuple[Tensor, ...]:
    return (torch.empty_like(x),)


_in_layout = register(
    Kernel(
        name="dropout_numba",
        inputs={"x": 0},
        constants={},
        outputs={"y": 0},
        saved={},
        needs=(),
        forward=forward,
        backward=backward,
        forward_shapes=_shapes,
        backward_shapes=_shapes,
        options={"rate": "float", "seed": "int"},
    )
)


def dropout_numba(x: Tensor, rate: float, seed: int) -> Tensor:
    """x with each number zero with probability `rate`, 0 to 1 without 1, and else divided by 1 - rate. The same seed
    drops the same places; 0 <= seed < 2⁶³."""
    (y,) = _in_layout(x.contiguous(), rate=rate, seed=seed)
    return y
