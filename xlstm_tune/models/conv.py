"""The causal convolution of an xLSTM layer. Legend: B batch, T steps, E features, K kernel."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlstm_tune.kernels.around import causal_conv
from xlstm_tune.kernels.shapes import expect_shape
from xlstm_tune.models.steps import expect_steps


class CausalConv(nn.Module):
    """Depthwise convolution over time that sees the present and the kernel - 1 steps before it, then SiLU.

    weight[j] meets the input kernel - 1 - j steps back. Initial values are those of torch.nn.Conv1d.
    """

    def __init__(self, width: int, kernel: int, backend: str = "auto"):
        super().__init__()
        self.width, self.kernel, self.backend = width, kernel, backend
        bound = 1.0 / math.sqrt(kernel)
        self.weight = nn.Parameter(nn.init.uniform_(torch.empty(kernel, width), -bound, bound))
        self.bias = nn.Parameter(nn.init.uniform_(torch.empty(width), -bound, bound))

    def forward(
        self, x: Tensor, past: Tensor | None = None, *, resets: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x [B, T, E] and the inputs before it [B, K - 1, E] (zeros if None) to the output and the new past.

        Nothing is seen across a reset; the new past ends with the last real step, and is zero before its last reset.
        """
        expect_steps("CausalConv", x, self.width, resets, lengths)
        if past is not None:
            expect_shape(past, "CausalConv: past", B=x.shape[0], past=self.kernel - 1, E=self.width)
        y = causal_conv(x, self.weight, self.bias, past, resets, self.backend)
        return y, self.end(x, past, resets, lengths)

    def end(
        self, x: Tensor, past: Tensor | None = None, resets: Tensor | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        """The new past alone: the K - 1 inputs up to the last real step, and zeros before its last reset."""
        before, steps = self.kernel - 1, x.shape[1]
        if resets is None and lengths is None and steps >= before:
            return x[:, steps - before :].clone()  # a view would keep all steps in memory
        padded = F.pad(x, (0, 0, before, 0)) if past is None else torch.cat([past, x], 1)
        end = torch.full((len(x),), steps, device=x.device) if lengths is None else lengths
        index = end[:, None] + torch.arange(before, device=x.device)
        last = padded.gather(1, index[..., None].expand(-1, -1, self.width))
        if resets is not None and before:
            segment = F.pad(resets.long().cumsum(1), (before, 0)).gather(1, index)
            last = last.masked_fill((segment != segment[:, -1:])[..., None], 0.0)
        return last
