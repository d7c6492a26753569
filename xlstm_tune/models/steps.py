"""What the steps of a batch are: where samples start anew, where they end, and the way back through them.

Legend: B batch, T steps, E features. `resets` [B, T] bool: the sample starts anew before this step, nothing from before
it counts. `lengths` [B], whole numbers in 1..T: steps at or beyond are padding. None: no resets, no padding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from xlstm_tune.kernels.masks import blank_padding, check_masks
from xlstm_tune.kernels.shapes import expect_shape


def expect_steps(name: str, x: Tensor, width: int, resets: Tensor | None, lengths: Tensor | None) -> None:
    """Raise ValueError unless x is [B, T, E = width], and resets and lengths fit it."""
    expect_shape(x, f"{name}: x", B=None, T=None, E=width)
    check_masks(name, resets, lengths, x.shape[0], x.shape[1])


def hide_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x [B, T, E] with zeros in place of padding, whatever stood there, NaN included."""
    return x if lengths is None else blank_padding(x, lengths)


def last_steps(x: Tensor, lengths: Tensor | None, count: int = 1) -> Tensor:
    """x [B, T, E] at the last `count` real steps of each sample, [B, count, E]; zeros before a sample's first step.

    Without lengths, and if T is smaller than `count`, only the T steps.
    """
    if lengths is None:
        return x[:, -count:]
    index = lengths[:, None] + torch.arange(count, device=x.device)
    padded = F.pad(x, (0, 0, count, 0))
    return padded.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def flip(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x [B, T, ...] with the real steps of each sample from last to first; padding stays where it is."""
    if lengths is None:
        return x.flip(1)
    steps = torch.arange(x.shape[1], device=x.device)
    last = lengths[:, None] - 1
    source = torch.where(steps <= last, last - steps, steps)  # [B, T]
    return x.gather(1, source.view(*source.shape, *[1] * (x.dim() - 2)).expand_as(x))


def flip_resets(resets: Tensor, lengths: Tensor | None) -> Tensor:
    """`resets` for the flipped steps: what separates step t from t - 1 now stands before step t - 1.

    The one before step 0 has no step left to stand before: it concerns the state that leaves the sequence there.
    """
    last = torch.zeros_like(resets[:, :1])
    moved = flip(torch.cat([resets[:, 1:], last], 1), lengths)
    # With padding, the reset that stood before its first step has come to the front; no real step stands before it.
    return torch.cat([last, moved[:, 1:]], 1)
