"""What each window is centred on and divided by. Legend: B batch, T steps, F features."""

from __future__ import annotations

import torch
from torch import Tensor

from xlstm_tune.kernels.around import NORM_EPSILON
from xlstm_tune.kernels.masks import at_end, padding


def window_statistics(kind: str, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
    """(centre, scale) of each window of x [B, T, F], each [B, 1, F] or None, as `model.instance_norm` names them.

    lengths: int64 [B] in 1..T; the steps beyond count for nothing and must be finite.
    """
    match kind:
        case "none":
            return None, None
        case "last":
            if lengths is None:
                return x[:, -1:], None
            return at_end(x, lengths).unsqueeze(1), None
        case _:
            if lengths is None:
                variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
            else:
                real = ~padding(lengths, x.shape[1]).unsqueeze(2)
                count = lengths.view(-1, 1, 1)
                mean = (x * real).sum(1, keepdim=True) / count
                variance = ((x - mean) * real).square().sum(1, keepdim=True) / count
            return mean, (variance + NORM_EPSILON).sqrt()
