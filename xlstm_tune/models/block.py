"""The parts of an xLSTM block: norms, causal convolution, block-diagonal projection, feed-forward, residual block.

Legend: B batch, T steps, E width of the residual stream. Structure and initial values are those of the official package
(xlstm 2.0.6, Apache-2.0), described in Beck et al. 2024, "xLSTM: Extended Long Short-Term Memory", appendix A.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPSILON = 1e-5


def init_projection(weight: Tensor, width: int) -> None:
    """N(0, 2 / (5 E)), for projections of a residual stream of this width (Nguyen and Salazar 2019)."""
    nn.init.normal_(weight, std=math.sqrt(2 / (5 * width)))


def init_down_projection(weight: Tensor, width: int, blocks: int) -> None:
    """Standard deviation 2 / (blocks √E), for projections back into the residual stream (Wang and Komatsuzaki 2021)."""
    nn.init.normal_(weight, std=2 / (blocks * math.sqrt(width)))


class Norm(nn.Module):
    """Layer normalisation without bias, over each head by itself if there are several.

    The weight w is stored around zero and applied as 1 + w, so that weight decay pulls it to 1. A head of width 1 has
    no spread to normalise (the formula would turn it into zeros): it is only scaled.
    """

    def __init__(self, width: int, heads: int = 1):
        super().__init__()
        self.heads = heads
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., E], the heads side by side in E."""
        head = x.shape[-1] // self.heads
        if head > 1:
            x = F.layer_norm(x.view(*x.shape[:-1], self.heads, head), (head,), eps=NORM_EPSILON).flatten(-2)
        return x * (1.0 + self.weight)


class CausalConv(nn.Module):
    """Depthwise convolution over time that sees the present and the kernel - 1 steps before it, then SiLU.

    weight[j] meets the input kernel - 1 - j steps back. Initial values are those of torch.nn.Conv1d.
    """

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.kernel = kernel
        bound = 1.0 / math.sqrt(kernel)
        self.weight = nn.Parameter(nn.init.uniform_(torch.empty(kernel, width), -bound, bound))
        self.bias = nn.Parameter(nn.init.uniform_(torch.empty(width), -bound, bound))

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [B, T, E] and the kernel - 1 inputs before it (zeros if None) to the output and the new past."""
        steps = x.shape[1]
        padded = F.pad(x, (0, 0, self.kernel - 1, 0)) if past is None else torch.cat([past, x], 1)
        # Shifted products: on a CPU faster than torch's depthwise convolution for such short kernels.
        out: Tensor = self.bias
        for shift, weight in enumerate(self.weight):
            out = torch.addcmul(out, padded[:, shift : shift + steps], weight)
        return F.silu(out), padded[:, steps:]


class BlockDiagonal(nn.Module):
    """A bias-free projection of `width` features in independent blocks: weight [width / block, block out, block in]."""

    def __init__(self, width: int, block: int, init_width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width // block, block, block))
        init_projection(self.weight, init_width)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, width] to the same shape."""
        groups, block, _ = self.weight.shape
        # Products of 4 × 4 leave a processor idle: several blocks make one tile, the zeros between them included.
        per_tile = math.gcd(groups, max(1, 16 // block))
        tiles, size = groups // per_tile, per_tile * block
        weight = self.weight.view(tiles, per_tile, block, block)
        eye = torch.eye(per_tile, dtype=weight.dtype, device=weight.device)
        tiled = torch.einsum("tboi,bc->tcibo", weight, eye).reshape(tiles, size, size)
        rows = x.reshape(-1, tiles, size).transpose(0, 1)
        return torch.bmm(rows, tiled).transpose(0, 1).reshape(x.shape)


class FeedForward(nn.Module):
    """Gated feed-forward: down(gelu(gate) · up), dropout; no biases."""

    def __init__(self, width: int, inner: int, blocks: int, dropout: float = 0.0):
        super().__init__()
        self.up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        init_projection(self.up.weight, width)
        init_down_projection(self.down.weight, width, blocks)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, E] to the same shape."""
        gate, up = self.up(x).chunk(2, dim=-1)
        out: Tensor = self.dropout(self.down(F.gelu(gate) * up))
        return out


class Block(nn.Module):
    """x + layer(norm x), then, with a feed-forward, x + feed_forward(norm x).

    `layer` maps (x [B, T, E], state or None) to (y [B, T, E], state).
    """

    def __init__(self, width: int, layer: nn.Module, feed_forward: FeedForward | None = None):
        super().__init__()
        self.norm = Norm(width)
        self.layer = layer
        self.feed_forward_norm = Norm(width) if feed_forward is not None else None
        self.feed_forward = feed_forward

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """x [B, T, E] to the same shape, and the layer's state."""
        y, state = self.layer(self.norm(x), state)
        x = x + y
        if self.feed_forward is not None and self.feed_forward_norm is not None:
            x = x + self.feed_forward(self.feed_forward_norm(x))
        return x, state
