"""The parts of an xLSTM block: norms, block-diagonal projection, feed-forward, directions, residual block.

Legend: B batch, T steps, E width of the residual stream. Structure and initial values are those of the official package
(xlstm 2.0.6, Apache-2.0), described in Beck et al. 2024, "xLSTM: Extended Long Short-Term Memory", appendix A.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlstm_tune.kernels.shapes import expect_shape
from xlstm_tune.models.config import Activation, BlockNorm
from xlstm_tune.models.steps import expect_steps, flip, flip_resets

NORM_EPSILON = 1e-5

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu}


def init_projection(weight: Tensor, width: int) -> None:
    """N(0, 2 / (5 E)), for projections of a residual stream of this width (Nguyen and Salazar 2019)."""
    nn.init.normal_(weight, std=math.sqrt(2 / (5 * width)))


def init_down_projection(weight: Tensor, width: int, blocks: int) -> None:
    """Standard deviation 2 / (blocks √E), for projections back into the residual stream (Wang and Komatsuzaki 2021)."""
    nn.init.normal_(weight, std=2 / (blocks * math.sqrt(width)))


class Norm(nn.Module):
    """Layer normalisation without bias, over each head by itself if there are several; `rms` leaves the mean in.

    The weight w is stored around zero and applied as 1 + w, so that weight decay pulls it to 1. A head of width 1 has
    no spread to normalise (the formula would turn it into zeros): it is only scaled.
    """

    def __init__(self, width: int, heads: int = 1, rms: bool = False):
        super().__init__()
        self.width, self.heads, self.rms = width, heads, rms
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., E], the heads side by side in E."""
        if x.shape[-1] != self.width:
            raise ValueError(
                f"Norm: x must be [..., E={self.width}], got {list(x.shape)}: "
                f"axis {x.dim() - 1} (E) is {x.shape[-1]} and must be {self.width}"
            )
        weight = 1.0 + self.weight
        if self.heads == self.width:
            return x * weight
        if self.rms:
            return F.rms_norm(x, (self.width,), weight, NORM_EPSILON)
        if self.heads == 1:
            return F.layer_norm(x, (self.width,), weight, None, NORM_EPSILON)
        return F.group_norm(x.reshape(-1, self.width), self.heads, weight, None, NORM_EPSILON).view(x.shape)


def block_norm(kind: BlockNorm, width: int) -> nn.Module:
    """The norm of the residual stream before a layer, a feed-forward, or the end."""
    return nn.Identity() if kind == "none" else Norm(width, rms=kind == "rms")


class BlockDiagonal(nn.Module):
    """A bias-free projection of `width` features in independent blocks: weight [width / block, block out, block in]."""

    def __init__(self, width: int, block: int, init_width: int):
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.empty(width // block, block, block))
        init_projection(self.weight, init_width)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, width] to the same shape."""
        expect_shape(x, "BlockDiagonal: x", B=None, T=None, width=self.width)
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
    """down(activation(gate) · up) if gated, down(activation(up)) if not; dropout; no biases."""

    def __init__(
        self,
        width: int,
        inner: int,
        blocks: int,
        dropout: float = 0.0,
        gated: bool = True,
        activation: Activation = "gelu",
    ):
        super().__init__()
        self.width, self.gated, self.activation = width, gated, activation
        self.up = nn.Linear(width, 2 * inner if gated else inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        init_projection(self.up.weight, width)
        init_down_projection(self.down.weight, width, blocks)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, E] to the same shape."""
        expect_shape(x, "FeedForward: x", B=None, T=None, E=self.width)
        activate = ACTIVATIONS[self.activation]
        if self.gated:
            gate, up = self.up(x).chunk(2, dim=-1)
            inner = activate(gate) * up
        else:
            inner = activate(self.up(x))
        out: Tensor = self.dropout(self.down(inner))
        return out


class Reversed(nn.Module):
    """A layer that runs from the last real step to the first: its initial state enters after the last step, and its
    final state is the one before step 0. Pieces of a sequence run from the last to the first.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(
        self, x: Tensor, state: Any = None, *, resets: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """As `layer`. A sample that starts anew at step 0 leaves an empty state."""
        expect_steps("Reversed", x, x.shape[-1], resets, lengths)
        turned = None if resets is None else flip_resets(resets, lengths)
        y, state = self.layer(flip(x, lengths), state, resets=turned, lengths=lengths)
        if resets is not None:
            state = state.cleared(resets[:, 0])
        return flip(y, lengths), state


class BothWays(nn.Module):
    """The sum of a layer and of another one that runs from the last step to the first; the state is a pair."""

    def __init__(self, forth: nn.Module, back: nn.Module):
        super().__init__()
        self.forth = forth
        self.back = Reversed(back)

    def forward(
        self, x: Tensor, state: Any = None, *, resets: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, tuple[Any, Any]]:
        """x [B, T, E] to the same shape; state (of `forth` from the left, of `back` from the right)."""
        if state is not None and len(state) != 2:
            raise ValueError(f"BothWays: state must be a pair (one of each direction), got {len(state)} entries")
        left, right = state or (None, None)
        y, left = self.forth(x, left, resets=resets, lengths=lengths)
        z, right = self.back(x, right, resets=resets, lengths=lengths)
        return y + z, (left, right)


class Block(nn.Module):
    """x + layer(norm x), then, with a feed-forward, x + feed_forward(norm x).

    `layer` maps (x [B, T, E], state or None, resets, lengths) to (y [B, T, E], state), with y = 0 at padding where
    x = 0 is.
    """

    def __init__(
        self, width: int, layer: nn.Module, feed_forward: FeedForward | None = None, norm: BlockNorm = "layer"
    ):
        super().__init__()
        self.norm = block_norm(norm, width)
        self.layer = layer
        self.feed_forward_norm = None if feed_forward is None else block_norm(norm, width)
        self.feed_forward = feed_forward

    def forward(
        self, x: Tensor, state: Any = None, *, resets: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """x [B, T, E] to the same shape, and the layer's state."""
        y, state = self.layer(self.norm(x), state, resets=resets, lengths=lengths)
        x = x + y
        if self.feed_forward is not None and self.feed_forward_norm is not None:
            x = x + self.feed_forward(self.feed_forward_norm(x))
        return x, state
