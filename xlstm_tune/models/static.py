"""What a sample has once joins what its steps have said. Legend: B batch, W pooled width, S static inputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StaticJoin(nn.Module):
    """pooled + up(gelu(down([pooled, static]))): both together decide, as a county's size multiplies what its weather
    says. `up` starts at zero, so that the first forecast is that of the steps alone.
    """

    def __init__(self, pooled: int, statics: int, inner: int):
        super().__init__()
        self.down = nn.Linear(pooled + statics, inner)
        self.up = nn.Linear(inner, pooled, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, pooled: Tensor, static: Tensor) -> Tensor:
        """pooled [B, W] and static [B, S] to [B, W]."""
        joined: Tensor = pooled + self.up(F.gelu(self.down(torch.cat([pooled, static], -1))))
        return joined
