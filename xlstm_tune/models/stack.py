"""A pattern such as "msm" as a stack of residual xLSTM blocks. Legend: B batch, T steps, E width."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from xlstm_tune.kernels.shapes import expect_dtype
from xlstm_tune.models.block import Block, BothWays, FeedForward, Reversed, block_norm
from xlstm_tune.models.config import ModelConfig
from xlstm_tune.models.embedded import Embedded, Narrow
from xlstm_tune.models.mlstm import MLSTMLayer, MLSTMLayerState
from xlstm_tune.models.slstm import SLSTMLayer, SLSTMLayerState
from xlstm_tune.models.steps import expect_steps, hide_padding

LayerState = SLSTMLayerState | MLSTMLayerState
StackState = tuple[LayerState | tuple[LayerState, LayerState], ...]
"""The state of each block, from input to output; a pair (forward, reverse) where a block runs both ways."""


class XLSTMStack(nn.Module):
    """The blocks of `config.blocks` from input to output, then a norm. `backend` is passed to the ops.

    In direction `reverse`, a state comes from the steps after x, and the final state is that before its first step; in
    direction `both` the states are pairs, as torch's bidirectional LSTM has them.
    """

    def __init__(self, config: ModelConfig, backend: str = "auto"):
        super().__init__()
        if not config.blocks:
            raise ValueError(f"XLSTMStack: model.family '{config.family}' has no xLSTM blocks")
        self.config = config
        self.width = self.output_size = config.hidden_size
        self.blocks = nn.ModuleList(_block(config, at, backend) for at in range(len(config.blocks)))
        self.norm = block_norm(config.norm, self.width, backend)
        self._shortens = backend != "reference"

    def forward(
        self,
        x: Tensor | Embedded,
        state: StackState | None = None,
        *,
        resets: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, StackState]:
        """x [B, T, E] to the same shape (0 at padding), and the state after the last real step.

        state: None is the state before any input. resets [B, T] bool: the sample starts anew before this step.
        lengths [B]: the real steps of each sample, 1 to T. Raises ValueError for a wrong shape and, without autocast,
        for an x, or inputs kept in the state, of another dtype than the weights; the cells cast their own states.
        x may come as an embedding that is not written out: with it a first mLSTM block does the same in less work.
        """
        x, normalised = self._enter(x, lengths)
        expect_steps("XLSTMStack", x, self.width, resets, lengths)
        if state is not None and (not isinstance(state, tuple | list) or len(state) != len(self.blocks)):
            got = len(state) if isinstance(state, tuple | list) else type(state).__name__
            raise ValueError(f"XLSTMStack: state must have one entry for each of {len(self.blocks)} blocks, got {got}")
        if state is not None:
            self._check_past(state)
        x = hide_padding(x, lengths)
        finals = []
        for at, block in enumerate(self.blocks):
            before = None if state is None else state[at]
            x, final = block(x, before, resets=resets, lengths=lengths, normalised=None if at else normalised)
            finals.append(final)
        return self.norm(x), tuple(finals)

    def last(self, x: Tensor | Embedded, lengths: Tensor | None = None) -> Tensor:
        """x [B, T, E] to what `forward` gives where the running direction ends, [B, E]: the last real step of each
        sample, in direction `reverse` step 0. Of the last block only what reaches that output is computed.

        Raises ValueError for a wrong shape and for direction `both`, which has two ends.
        """
        if self.config.direction == "both":
            raise ValueError("XLSTMStack.last: direction must be forward or reverse, 'both' ends at either end")
        *whole, final = self.blocks
        x, normalised = self._enter(x, lengths, last=not whole)
        if normalised is not None and not whole:
            y = final.finish(x, normalised, lengths)  # type: ignore[operator]
        else:
            expect_steps("XLSTMStack", x, self.width, None, lengths)
            x = hide_padding(x, lengths)
            for block in whole:
                x, _ = block(x, lengths=lengths, normalised=normalised)
                normalised = None
            y = final.last(x, lengths)  # type: ignore[operator]
        end: Tensor = self.norm(y)
        return end.squeeze(1)

    @property
    def _dtype(self) -> torch.dtype:
        """That of the weights."""
        return next(self.parameters()).dtype

    def _check_past(self, state: StackState) -> None:
        """The inputs that convolutions keep meet the weights as they are; the shapes are for the layers to check."""
        for at, entry in enumerate(state):
            for layer in entry if self.config.direction == "both" else (entry,):
                if isinstance(layer, tuple) and layer and isinstance(layer[0], Tensor):
                    expect_dtype(layer[0], f"XLSTMStack: state[{at}], conv", self._dtype)

    def _enter(self, x: Tensor | Embedded, lengths: Tensor | None, last: bool = False) -> tuple[Tensor, Narrow | None]:
        """x written out, and what the first block's layer sees of an embedding where it can take that in few
        dimensions; with those and `last`, x is [B, 1, E], each sample's last real step."""
        if not isinstance(x, Embedded):
            if isinstance(x, Tensor):
                expect_dtype(x, "XLSTMStack: x", self._dtype)
            return x, None
        first = self.blocks[0]
        if not isinstance(first.layer, MLSTMLayer) or not self._shortens or not x.narrows():
            return x.dense(), None
        normalised, x = x.normalised(first.norm, lengths, last)  # type: ignore[arg-type]
        return x, normalised


def _block(config: ModelConfig, at: int, backend: str) -> Block:
    blocks, kind = config.blocks, config.blocks[at]

    def layer() -> nn.Module:
        shared: dict[str, Any] = {
            "heads": config.heads,
            "conv_kernel": config.conv_kernel,
            "dropout": config.dropout,
            "head_norm": config.head_norm,
            "blocks": len(blocks),
            "backend": backend,
        }
        if kind == "s":
            return SLSTMLayer(config.hidden_size, block=at, **shared)
        return MLSTMLayer(config.hidden_size, config.inner_size, qkv_block=config.qkv_block, **shared)

    match config.direction:
        case "forward":
            directed = layer()
        case "reverse":
            directed = Reversed(layer())
        case "both":
            directed = BothWays(layer(), layer())
    feed_forward = None
    if kind in config.feed_forward_after:
        feed_forward = FeedForward(
            config.hidden_size,
            config.feed_forward_size,
            len(blocks),
            config.dropout,
            gated=config.feed_forward == "gated",
            activation=config.activation,
            backend=backend,
        )
    return Block(config.hidden_size, directed, feed_forward, config.norm, backend)
