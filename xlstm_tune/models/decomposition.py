"""A window as a slow trend and what remains of it (DLinear, Zeng et al. 2023).

Legend: B batch, L lookback, H horizon, K targets.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def moving_average(x: Tensor, kernel: int) -> Tensor:
    """The centred mean over `kernel` (odd) steps of x [B, L, K]; beyond the ends the first and last value repeat."""
    reach = kernel // 2
    ends = (x[:, :1].expand(-1, reach, -1), x, x[:, -1:].expand(-1, reach, -1))
    return F.avg_pool1d(torch.cat(ends, 1).transpose(1, 2), kernel, stride=1).transpose(1, 2)


class TrendSkip(nn.Module):
    """A forecast beside the recurrent body: linear maps of trend and remainder from lookback to horizon, added.

    All targets share them. They start at zero, so that the first forecast is the body's.
    """

    def __init__(self, lookback: int, horizon: int, kernel: int):
        super().__init__()
        self.kernel = kernel
        self.trend = nn.Linear(lookback, horizon, bias=False)
        self.remainder = nn.Linear(lookback, horizon, bias=False)
        nn.init.zeros_(self.trend.weight)
        nn.init.zeros_(self.remainder.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The targets' window [B, L, K] to [B, H, K]."""
        trend = moving_average(x, self.kernel)
        y: Tensor = self.trend(trend.transpose(1, 2)) + self.remainder((x - trend).transpose(1, 2))
        return y.transpose(1, 2)
