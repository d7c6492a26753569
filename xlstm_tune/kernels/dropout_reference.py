"""Dropout in torch on any device and dtype, and what each place's draw is: `dropout_numba` and `dropout_triton` agree
with it in every bit.

The places of x are counted in order, in blocks of BLOCK. A block has two keys of 32 bits, low and high: the halves of
seed + block · GOLDEN modulo 2⁶⁴, each through the hash h. The i-th place of a block draws h(h(i + low) xor high), which
is uniform over 32 bits, and is dropped if that is less than rate · 2³². h is the finaliser of MurmurHash3, by Austin
Appleby.

Numbers of 32 bits without a sign are held in int64 here, which torch computes with everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 4096
"""Places that share keys, so that what is added to a key never exceeds 32 bits."""
FIRST_FACTOR, SECOND_FACTOR = 0x85EBCA6B, 0xC2B2AE35
"""Of MurmurHash3's finaliser."""
GOLDEN = 0x9E3779B97F4A7C15
"""2⁶⁴ over the golden ratio: keys of neighbouring blocks differ in about half of their bits."""
_LOW_HALF = 2**32 - 1


def scalar(value: float | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number, or a tensor of one, as a 0-d tensor of this dtype on a device, which is not waited for."""
    if isinstance(value, Tensor):
        return value.to(device, dtype, non_blocking=True)
    return torch.full((), value, dtype=dtype, device=device)


def mixed(key: Tensor) -> Tensor:
    """The hash h, of numbers of 32 bits."""
    key = key ^ (key >> 16)
    key = (key * FIRST_FACTOR) & _LOW_HALF
    key = key ^ (key >> 13)
    key = (key * SECOND_FACTOR) & _LOW_HALF
    return key ^ (key >> 16)


def draws_of(seed: Tensor, count: int) -> Tensor:
    """What the first `count` places draw, [count], of a 0-d seed in int64."""
    blocks = torch.arange(-(-count // BLOCK), device=seed.device).unsqueeze(1)
    keys = seed + blocks * (GOLDEN - 2**64)  # the same number modulo 2⁶⁴, as int64 has it
    low, high = mixed(keys & _LOW_HALF), mixed((keys >> 32) & _LOW_HALF)
    places = torch.arange(BLOCK, device=seed.device)
    return mixed(mixed((places + low) & _LOW_HALF) ^ high).flatten()[:count]


def dropout_reference(x: Tensor, rate: float | Tensor, seed: int | Tensor) -> Tensor:
    """x of any shape with each number zero with probability `rate`, 0 to 1 without 1, and else divided by 1 - rate.

    The same seed, 0 <= seed < 2⁶³, drops the same places. Both may be 0-d tensors, which vmap may have made of those of
    its members; a rate in float32 is the float64 that it equals. 16 bits are computed in float32.
    """
    rate, seed = scalar(rate, torch.float64, x.device), scalar(seed, torch.int64, x.device)
    threshold = (rate * 2**32).round().clamp(max=_LOW_HALF).long()
    kept = (draws_of(seed, x.numel()) >= threshold).view(x.shape)
    dtype = torch.promote_types(x.dtype, torch.float32)
    scale = (1 / (1 - rate)).to(dtype)
    return torch.where(kept, x.to(dtype) * scale, 0.0).to(x.dtype)
