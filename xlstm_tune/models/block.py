"""The parts of an xLSTM block: norms, block-diagonal projection, feed-forward, directions, residual block.

Legend: B batch, T steps, E width of the residual stream. Structure and initial values are those of the official package
(xlstm 2.0.6, Apache-2.0), described in Beck et al. 2024, "xLSTM: Extended Long Short-Term Memory", appendix A.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlstm_tune.kernels.around import (
    ACTIVATIONS,
    NORM_EPSILON,
    block_diagonal,
    gated_feed_forward,
    head_norm,
    layer_norm,
)
from xlstm_tune.kernels.shapes import expect_shape
from xlstm_tune.models.config import Activation, BlockNorm
from xlstm_tune.models.draws import Dropout
from xlstm_tune.models.steps import expect_steps, flip, flip_resets, last_steps


def init_projection(weight: Tensor, width: int) -> None:
    """N(0, 2 / (5 E)), for projections of a residual stream of this width (Nguyen and Salazar 2019)."""
    nn.init.normal_(weight, std=math.sqrt(2 / (5 * width)))


def init_down_projection(weight: Tensor, width: int, blocks: int) -> None:
    """Standard deviation 2 / (blocks √E), for projections back into the residual stream (Wang and Komatsuzaki 2021)."""
    nn.init.normal_(weight, std=2 / (blocks * math.sqrt(width)))


class Norm(nn.Module):
    """Layer normalisation without bias; `rms` leaves the mean in.

    The weight w is stored around zero and applied as 1 + w, so that weight decay pulls it to 1.
    """

    def __init__(self, width: int, rms: bool = False, backend: str = "auto"):
        super().__init__()
        self.width, self.rms, self.backend = width, rms, backend
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, E] to the same shape."""
        expect_shape(x, "Norm: x", B=None, T=None, E=self.width)
        weight = 1.0 + self.weight
        if self.rms:
            return F.rms_norm(x, (self.width,), weight, NORM_EPSILON)
        return layer_norm(x, weight, self.backend)


class HeadNorm(nn.Module):
    """Layer normalisation of each head by itself, weighed as in `Norm`.

    A head of width 1 has no spread to normalise (the formula would turn it into zeros): it is only scaled.
    """

    def __init__(self, width: int, heads: int, backend: str = "auto"):
        super().__init__()
        self.heads, self.head, self.backend = heads, width // heads, backend
        self.weight = nn.Parameter(torch.zeros(width))

    def by_head(self) -> Tensor:
        """1 + w, [N, D]."""
        return 1.0 + self.weight.view(self.heads, self.head)

    def forward(self, h: Tensor) -> Tensor:
        """h [B, T, N, D] to the same shape."""
        expect_shape(h, "HeadNorm: h", B=None, T=None, N=self.heads, D=self.head)
        return head_norm(h, self.by_head(), self.backend)


def block_norm(kind: BlockNorm, width: int, backend: str = "auto") -> nn.Module:
    """The norm of the residual stream before a layer, a feed-forward, or the end."""
    return nn.Identity() if kind == "none" else Norm(width, kind == "rms", backend)


class BlockDiagonal(nn.Module):
    """A bias-free projection of `width` features in independent blocks: weight [width / block, block out, block in]."""

    def __init__(self, width: int, block: int, heads: int, init_width: int):
        super().__init__()
        self.width, self.heads = width, heads
        self.weight = nn.Parameter(torch.empty(width // block, block, block))
        init_projection(self.weight, init_width)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, width] to [B, T, heads, width / heads]."""
        expect_shape(x, "BlockDiagonal: x", B=None, T=None, width=self.width)
        return block_diagonal(x, self.weight, self.heads)


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
        backend: str = "auto",
    ):
        super().__init__()
        self.width, self.gated, self.activation, self.backend = width, gated, activation, backend
        self.up = nn.Linear(width, 2 * inner if gated else inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)
        self.dropout = Dropout(dropout, backend)
        init_projection(self.up.weight, width)
        init_down_projection(self.down.weight, width, blocks)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, E] to the same shape."""
        expect_shape(x, "FeedForward: x", B=None, T=None, E=self.width)
        if self.gated:
            y = gated_feed_forward(x, self.up.weight, self.down.weight, self.activation, self.backend)
        else:
            y = self.down(ACTIVATIONS[self.activation](self.up(x)))
        out: Tensor = self.dropout(y)
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

    def last(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What `forward` gives at step 0, where this direction ends: x [B, T, E] to [B, 1, E]."""
        y: Tensor = self.layer.last(flip(x, lengths), lengths)  # type: ignore[operator]
        return y


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
        self,
        width: int,
        layer: nn.Module,
        feed_forward: FeedForward | None = None,
        norm: BlockNorm = "layer",
        backend: str = "auto",
    ):
        super().__init__()
        self.norm = block_norm(norm, width, backend)
        self.layer = layer
        self.feed_forward_norm = None if feed_forward is None else block_norm(norm, width, backend)
        self.feed_forward = feed_forward

    def forward(
        self,
        x: Tensor,
        state: Any = None,
        *,
        resets: Tensor | None = None,
        lengths: Tensor | None = None,
        normalised: Any = None,
    ) -> tuple[Tensor, Any]:
        """x [B, T, E] to the same shape, and the layer's state. normalised: norm x as the layer takes it, if known."""
        seen = self.norm(x) if normalised is None else normalised
        y, state = self.layer(seen, state, resets=resets, lengths=lengths)
        return self._feed_forward(x + y), state

    def last(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """x [B, T, E] to what `forward` gives where the running direction ends, [B, 1, E]: at each sample's last real
        step, or at step 0 for a layer in reverse. Only one that runs in a single direction has such an end.
        """
        at_once = None
        if lengths is None and isinstance(self.norm, Norm) and not self.norm.rms and hasattr(self.layer, "normed_last"):
            at_once = self.layer.normed_last(x, 1.0 + self.norm.weight)  # type: ignore[operator]
        if at_once is not None:
            y, end = at_once
            return self._feed_forward(end + y)
        end = x[:, :1] if isinstance(self.layer, Reversed) else last_steps(x, lengths)
        return self.finish(end, self.norm(x), lengths)

    def finish(self, end: Tensor, normalised: Any, lengths: Tensor | None = None) -> Tensor:
        """`last` of an x that is `end` [B, 1, E] there; normalised: norm x of all steps, as the layer takes it."""
        y: Tensor = self.layer.last(normalised, lengths)  # type: ignore[operator]
        return self._feed_forward(end + y)

    def _feed_forward(self, x: Tensor) -> Tensor:
        """With the residual; x [B, T, E] to the same shape."""
        if self.feed_forward is None or self.feed_forward_norm is None:
            return x
        y: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return y
