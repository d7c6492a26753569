"""The mLSTM layer. Legend: B batch, T steps, E width, P inner width, N heads, D = P / N head width."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlstm_tune.kernels import MLSTMState, mlstm
from xlstm_tune.kernels.shapes import expect_shape
from xlstm_tune.models.block import BlockDiagonal, CausalConv, Norm, init_down_projection, init_projection

PROJECTION_BLOCK = 4
"""Width of the independent blocks of the q, k and v projections."""


class MLSTMLayerState(NamedTuple):
    """The last kernel - 1 inner inputs [B, K - 1, P] (none without a convolution), and the cell's state."""

    conv: Tensor
    cell: MLSTMState


class MLSTMLayer(nn.Module):
    """Up-projection to (x, z); convolution and SiLU before q and k, raw x for v; cell; norm per head; the convolved x
    added, times a learnt skip; times SiLU(z); down-projection; dropout. With kernel 0, x itself takes its place.

    The gates see q, k and v side by side: `gates` maps 3 P features to i (N rows), then f (N rows).
    Raises ValueError when the heads, or 4, do not divide the inner width.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        heads: int = 4,
        conv_kernel: int = 4,
        dropout: float = 0.0,
        blocks: int = 1,
        backend: str = "auto",
    ):
        super().__init__()
        if inner % heads or inner % PROJECTION_BLOCK:
            raise ValueError(
                f"MLSTMLayer: inner must be a multiple of heads and of {PROJECTION_BLOCK}, "
                f"got inner {inner} and {heads} heads"
            )
        self.width, self.inner, self.heads, self.backend = width, inner, heads, backend
        self.up = nn.Linear(width, 2 * inner, bias=False)
        self.conv = CausalConv(inner, conv_kernel) if conv_kernel else None
        self.q = BlockDiagonal(inner, PROJECTION_BLOCK, init_width=width)
        self.k = BlockDiagonal(inner, PROJECTION_BLOCK, init_width=width)
        self.v = BlockDiagonal(inner, PROJECTION_BLOCK, init_width=width)
        self.gates = nn.Linear(3 * inner, 2 * heads)
        self.norm = Norm(inner, heads)
        self.skip = nn.Parameter(torch.ones(inner))
        self.down = nn.Linear(inner, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        init_projection(self.up.weight, width)
        init_down_projection(self.down.weight, width, blocks)
        nn.init.zeros_(self.gates.weight)
        with torch.no_grad():
            self.gates.bias[:heads].normal_(std=0.1)
            self.gates.bias[heads:] = torch.linspace(3.0, 6.0, heads)

    def forward(self, x: Tensor, state: MLSTMLayerState | None = None) -> tuple[Tensor, MLSTMLayerState]:
        """x [B, T, E] to the same shape and the final state; a single step is T = 1."""
        expect_shape(x, "MLSTMLayer: x", B=None, T=None, E=self.width)
        inner, z = self.up(x).chunk(2, dim=-1)
        if self.conv is None:
            convolved, past = inner, inner[:, :0]
        else:
            convolved, past = self.conv(inner, None if state is None else state.conv)
        q, k, v = self.q(convolved), self.k(convolved), self.v(inner)
        i, f = self.gates(torch.cat([q, k, v], -1)).chunk(2, dim=-1)
        q, k, v = (tensor.view(*tensor.shape[:2], self.heads, -1) for tensor in (q, k, v))
        h, cell = mlstm(q, k, v, i, f, None if state is None else state.cell, backend=self.backend)
        h = self.norm(h.flatten(2)) + self.skip * convolved
        return self.dropout(self.down(h * F.silu(z))), MLSTMLayerState(past, cell)
