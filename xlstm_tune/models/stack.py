"""A pattern such as "msm" as a stack of residual xLSTM blocks. Legend: B batch, T steps, E width."""

from __future__ import annotations

from torch import Tensor, nn

from xlstm_tune.kernels.shapes import expect_shape
from xlstm_tune.models.block import Block, FeedForward, Norm
from xlstm_tune.models.config import ModelConfig, round_up_64
from xlstm_tune.models.mlstm import MLSTMLayer, MLSTMLayerState
from xlstm_tune.models.slstm import SLSTMLayer, SLSTMLayerState

StackState = tuple[SLSTMLayerState | MLSTMLayerState, ...]
"""The state of each block, from input to output."""


class XLSTMStack(nn.Module):
    """The blocks of `config.blocks` from input to output, then a norm. `backend` is passed to the ops."""

    def __init__(self, config: ModelConfig, backend: str = "auto"):
        super().__init__()
        if not config.blocks:
            raise ValueError(f"XLSTMStack: model.family '{config.family}' has no xLSTM blocks")
        self.width = config.hidden_size
        blocks = len(config.blocks)
        self.blocks = nn.ModuleList(
            _slstm_block(config, at, blocks, backend) if kind == "s" else _mlstm_block(config, blocks, backend)
            for at, kind in enumerate(config.blocks)
        )
        self.norm = Norm(self.width)

    def forward(self, x: Tensor, state: StackState | None = None) -> tuple[Tensor, StackState]:
        """x [B, T, E] to the same shape, and the state after its last step. None is the state before any input."""
        expect_shape(x, "XLSTMStack: x", B=None, T=None, E=self.width)
        if state is not None and len(state) != len(self.blocks):
            raise ValueError(
                f"XLSTMStack: state must have one entry for each of {len(self.blocks)} blocks, got {len(state)}"
            )
        finals = []
        for at, block in enumerate(self.blocks):
            x, final = block(x, None if state is None else state[at])
            finals.append(final)
        return self.norm(x), tuple(finals)


def _slstm_block(config: ModelConfig, at: int, blocks: int, backend: str) -> Block:
    width = config.hidden_size
    layer = SLSTMLayer(width, config.heads, config.conv_kernel, config.dropout, at, blocks, backend)
    return Block(width, layer, FeedForward(width, round_up_64(width * config.ff_factor), blocks, config.dropout))


def _mlstm_block(config: ModelConfig, blocks: int, backend: str) -> Block:
    width = config.hidden_size
    layer = MLSTMLayer(width, config.inner_size, config.heads, config.conv_kernel, config.dropout, blocks, backend)
    return Block(width, layer)
