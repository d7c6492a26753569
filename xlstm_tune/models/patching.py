"""Several steps as one input of the recurrent body (PatchTST, Nie et al. 2023).

Legend: B batch, T steps, F features, P steps of a patch, S steps from one patch to the next, N patches.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cut_patches(x: Tensor, length: int, stride: int, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """x [B, T, F] to its patches [B, N, F · P], and how many of them each sample has [B] (None without lengths).

    Patch n holds the steps n S .. n S + P - 1, feature by feature. N is the smallest number that covers all steps;
    steps beyond a sample's last one repeat that one. Patches beyond a sample's own are padding.
    """
    steps = x.shape[1]
    covered = length + stride * max(0, -(-(steps - length) // stride))
    if lengths is None:
        if covered > steps:
            x = torch.cat([x, x[:, -1:].expand(-1, covered - steps, -1)], 1)
    else:
        step = torch.minimum(torch.arange(covered, device=x.device), lengths.unsqueeze(1) - 1)  # [B, covered]
        x = x.gather(1, step.unsqueeze(2).expand(-1, -1, x.shape[2]))
        lengths = 1 + torch.div((lengths - length).clamp(min=0) + stride - 1, stride, rounding_mode="floor")
    return x.unfold(1, length, stride).flatten(2), lengths
