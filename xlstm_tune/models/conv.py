"""The causal convolution of an xLSTM layer. Legend: B batch, T steps, E features, K kernel."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlstm_tune.kernels.shapes import expect_shape
from xlstm_tune.models.steps import expect_steps


class CausalConv(nn.Module):
    """Depthwise convolution over time that sees the present and the kernel - 1 steps before it, then SiLU.

    weight[j] meets the input kernel - 1 - j steps back. Initial values are those of torch.nn.Conv1d.
    """

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.width, self.kernel = width, kernel
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
        before = self.kernel - 1
        if past is None:
            padded = F.pad(x, (0, 0, before, 0))
        else:
            expect_shape(past, "CausalConv: past", B=x.shape[0], past=before, E=self.width)
            padded = torch.cat([past, x], 1)
        # [B, K - 1 + T]: two steps see each other if no reset lies between them.
        segment = None if resets is None else F.pad(resets.long().cumsum(1), (before, 0))
        return F.silu(self._convolve(padded, segment)), self._last(padded, segment, lengths)

    def _convolve(self, padded: Tensor, segment: Tensor | None) -> Tensor:
        steps = padded.shape[1] - self.kernel + 1
        # Shifted products: on a CPU faster than torch's depthwise convolution for such short kernels.
        out: Tensor = self.bias
        for shift, weight in enumerate(self.weight):
            seen = padded[:, shift : shift + steps]
            if segment is not None:
                seen = seen * (segment[:, shift : shift + steps] == segment[:, -steps:])[..., None]
            out = torch.addcmul(out, seen, weight)
        return out

    def _last(self, padded: Tensor, segment: Tensor | None, lengths: Tensor | None) -> Tensor:
        """The K - 1 inputs up to the last real step."""
        before = self.kernel - 1
        steps = padded.shape[1] - before
        if lengths is None:
            at = torch.full((len(padded),), steps, device=padded.device)
            past = padded[:, steps:]
        else:
            at = lengths
            index = at[:, None] + torch.arange(before, device=at.device)
            past = padded.gather(1, index[..., None].expand(-1, -1, padded.shape[2]))
        if segment is not None:
            index = at[:, None] + torch.arange(self.kernel, device=at.device) - 1
            held = segment.gather(1, index)
            past = past.masked_fill((held[:, 1:] != held[:, -1:])[..., None], 0.0)
        return past
