"""Resets inside a batch and samples of different lengths, as values of the gates.

Legend: B batch, T steps. A step behind a sample's end gets a shut input gate and an open forget gate: the state passes
it unchanged, so that what stands there afterwards is the state after the last real step. A step before which a sample
starts anew gets a shut forget gate: nothing older counts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xlstm_tune.kernels.shapes import expect_shape

SHUT = -1e30
"""A gate that is shut for certain, and yet finite, so that no arithmetic on it gives NaN; its negative is open."""
UNSEEN = -1e20
"""An input gate up to here is shut; the stabiliser of a past that weighs nothing beside any open gate's input."""
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
"""Torch compares no others."""


def check_masks(name: str, resets: Tensor | None, lengths: Tensor | None, batch: int, steps: int) -> None:
    """Raise ValueError unless resets is a boolean [B, T] and lengths integers [B] in 1..T (either may be None).

    Raises TypeError where they are no tensors.

    On a GPU the values of lengths are checked there: a wrong one ends in a CUDA error at a later call.
    """
    if resets is not None:
        expect_shape(resets, f"{name}: resets", B=batch, T=steps)
        if resets.dtype != torch.bool:
            raise ValueError(f"{name}: resets must be boolean, True where a sample starts anew, got {resets.dtype}")
    if lengths is not None:
        expect_shape(lengths, f"{name}: lengths", B=batch)
        if lengths.dtype not in _INTEGERS:
            raise ValueError(
                f"{name}: lengths must be integers, such as torch.int64, steps of each sample, got {lengths.dtype}"
            )
        if not batch:
            return
        # Reading them out would break a graph that is being compiled, and a vmapped tensor has no one value.
        if torch.compiler.is_compiling() or torch._C._functorch.is_batchedtensor(lengths):
            return
        if lengths.is_cuda:
            # Reading them would make the host wait, in every layer, and cannot be captured: the device checks them.
            torch._assert_async(((lengths >= 1) & (lengths <= steps)).all(), f"{name}: lengths must lie in 1..{steps}")
            return
        low, high = int(lengths.min()), int(lengths.max())
        if low < 1 or high > steps:
            raise ValueError(f"{name}: lengths must lie in 1..{steps} (the steps), got {low if low < 1 else high}")


def padding(lengths: Tensor, steps: int) -> Tensor:
    """[B, T], True at the steps behind each sample's end."""
    return torch.arange(steps, device=lengths.device) >= lengths.unsqueeze(1)


def mask_gates(gates: Tensor, axis: int, resets: Tensor | None, lengths: Tensor | None) -> Tensor:
    """Gates [B, T, ...] with the input gate at index 0 and the forget gate at index 1 of `axis`, masked as above."""
    batch, steps = gates.shape[:2]
    shut = torch.zeros(batch, steps, 2, device=gates.device, dtype=gates.dtype)
    if resets is not None:
        shut[..., 1] = torch.where(resets, SHUT, 0.0)
    if lengths is not None:
        ended = padding(lengths, steps)
        values = torch.where(ended, SHUT, 0.0)  # made on the device: a copy from the host would wait for it
        shut = torch.where(ended.unsqueeze(-1), torch.stack([values, -values], -1).to(shut.dtype), shut)
    rest = gates.shape[axis] - 2
    shape = [batch, steps, *[1] * (gates.dim() - 2)]
    shape[axis] = 2 + rest
    masked = torch.nn.functional.pad(shut, (0, rest)).view(shape)
    return torch.where(masked != 0, masked, gates)


def at_end(over_time: Tensor, lengths: Tensor) -> Tensor:
    """The entries [B, ...] of a tensor [B, T, ...] at each sample's last real step."""
    index = (lengths.long() - 1).view(-1, *[1] * (over_time.dim() - 1)).expand(-1, 1, *over_time.shape[2:])
    return over_time.gather(1, index).squeeze(1)


def blank_padding(over_time: Tensor, lengths: Tensor) -> Tensor:
    """A tensor [B, T, ...] with zeros behind each sample's end."""
    ended = padding(lengths, over_time.shape[1])
    return over_time.masked_fill(ended.view(*ended.shape, *[1] * (over_time.dim() - 2)), 0.0)
