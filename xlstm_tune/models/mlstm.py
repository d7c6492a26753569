"""The mLSTM layer. Legend: B batch, T steps, E width, P inner width, N heads, D = P / N head width."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlstm_tune.kernels import MLSTMState, mlstm
from xlstm_tune.kernels.around import (
    block_diagonal,
    cell_inputs,
    convolved_cell_inputs,
    end_of_mlstm_layer,
    gated_head_norm,
    linear,
    pooled_by_last,
    whole_mlstm_layer,
)
from xlstm_tune.kernels.dispatch import resolve
from xlstm_tune.kernels.mlstm_layer_numba import MLSTMLayerWeights
from xlstm_tune.kernels.shapes import as_state, expect_shape
from xlstm_tune.models.block import BlockDiagonal, HeadNorm, init_down_projection, init_projection
from xlstm_tune.models.conv import CausalConv
from xlstm_tune.models.draws import Dropout
from xlstm_tune.models.embedded import Narrow
from xlstm_tune.models.steps import expect_steps, hide_padding, last_steps


class MLSTMLayerState(NamedTuple):
    """The last kernel - 1 inner inputs [B, K - 1, P] (none without a convolution), and the cell's state."""

    conv: Tensor
    cell: MLSTMState

    def cleared(self, samples: Tensor) -> MLSTMLayerState:
        """The state with these samples (bool [B]) as before any input."""
        c, n, m = self.cell
        return MLSTMLayerState(
            self.conv.masked_fill(samples[:, None, None], 0.0),
            MLSTMState(
                c.masked_fill(samples[:, None, None, None], 0.0),
                n.masked_fill(samples[:, None, None], 0.0),
                m.masked_fill(samples[:, None], -math.inf),
            ),
        )


class MLSTMLayer(nn.Module):
    """Up-projection to (x, z); convolution and SiLU before q and k, raw x for v; cell; norm per head; the convolved x
    added, times a learnt skip; times SiLU(z); down-projection; dropout. With kernel 0, x itself takes its place.

    The gates see q, k and v side by side: `gates` maps 3 P features to i (N rows), then f (N rows).
    q, k and v are projected in independent blocks of `qkv_block` features. `head_norm` false leaves out the norm.
    Raises ValueError when the heads, or `qkv_block`, do not divide the inner width.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        heads: int = 4,
        conv_kernel: int = 4,
        dropout: float = 0.0,
        head_norm: bool = True,
        qkv_block: int = 4,
        blocks: int = 1,
        backend: str = "auto",
    ):
        super().__init__()
        if inner % heads or inner % qkv_block:
            raise ValueError(
                f"MLSTMLayer: inner must be a multiple of heads and of qkv_block, "
                f"got inner {inner}, {heads} heads and qkv_block {qkv_block}"
            )
        self.width, self.inner, self.heads, self.backend = width, inner, heads, backend
        self.up = nn.Linear(width, 2 * inner, bias=False)
        self.conv = CausalConv(inner, conv_kernel, backend) if conv_kernel else None
        self.q = BlockDiagonal(inner, qkv_block, heads, width)
        self.k = BlockDiagonal(inner, qkv_block, heads, width)
        self.v = BlockDiagonal(inner, qkv_block, heads, width)
        self.gates = nn.Linear(3 * inner, 2 * heads)
        self.norm = HeadNorm(inner, heads, backend) if head_norm else None
        self.skip = nn.Parameter(torch.ones(inner))
        self.down = nn.Linear(inner, width, bias=False)
        self.dropout = Dropout(dropout, backend)
        init_projection(self.up.weight, width)
        init_down_projection(self.down.weight, width, blocks)
        nn.init.zeros_(self.gates.weight)
        with torch.no_grad():
            self.gates.bias[:heads].normal_(std=0.1)
            self.gates.bias[heads:] = torch.linspace(3.0, 6.0, heads, device="cpu")

    def forward(
        self,
        x: Tensor | Narrow,
        state: MLSTMLayerState | None = None,
        *,
        resets: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, MLSTMLayerState]:
        """x [B, T, E] to the same shape (0 at padding) and the state after the last real step; one step is T = 1.

        x may come as rows of fewer numbers and a basis: the up-projection is then of those rows.
        """
        rows, up = self._rows(x, resets, lengths)
        state = as_state(state, MLSTMLayerState, "MLSTMLayer", "state")
        seen_by_gates = self._gate_weights()
        weights = self._weights(up, seen_by_gates)
        if weights is not None and state is None and resets is None and lengths is None:
            whole = whole_mlstm_layer(rows, weights, self.backend)
            if whole is not None:
                return self.dropout(whole[0]), MLSTMLayerState(whole[2], whole[1])
        # Two products: the halves of one would not be contiguous, nor would their gradients.
        inner, z = (linear(rows, half, self.backend) for half in up.chunk(2))
        of_cell = (self.q.weight, self.k.weight, self.v.weight, *seen_by_gates, self.heads, self.backend)
        if self.conv is not None and state is None and resets is None:
            convolved, q, k, v, gates = convolved_cell_inputs(inner, self.conv.weight, self.conv.bias, *of_cell)
            past = self.conv.end(inner, lengths=lengths)
        else:
            convolved, past = self._convolve(inner, state, resets, lengths)
            q, k, v, gates = cell_inputs(convolved, inner, *of_cell)
        i, f = (gates + self.gates.bias).chunk(2, dim=-1)
        cell = None if state is None else state.cell
        h, cell = mlstm(q, k, v, i, f, cell, resets=resets, lengths=lengths, backend=self.backend)
        # Padding stays zero without a mask: z is 0 there.
        y = self._leave(h, *(tensor.view_as(h) for tensor in (convolved, z)))
        return self.dropout(linear(y.flatten(2), self.down.weight, self.backend)), MLSTMLayerState(past, cell)

    def last(self, x: Tensor | Narrow, lengths: Tensor | None = None) -> Tensor:
        """x [B, T, E] to what `forward` gives at each sample's last real step, [B, 1, E], in much less work.

        Only the convolution and the gates are needed of every step. k and v are not made at all: their projections go
        to the other side of the two products that they stand in, where there is one row a head and sample.
        """
        rows, up = self._rows(x, None, lengths)
        # A backend that cannot run here is refused, as always.
        resolve("mlstm", self.backend, rows.device.type, rows.dtype, width=self.inner // self.heads)
        seen_by_gates = self._gate_weights()
        weights = self._weights(up, seen_by_gates)
        if weights is not None and lengths is None:
            found = end_of_mlstm_layer(rows, weights, backend=self.backend)
            if found is not None:
                y: Tensor = self.dropout(found[0].unsqueeze(1))
                return y
        tail = last_steps(rows, lengths, 1 if self.conv is None else self.conv.kernel)
        inner, z = F.linear(tail, up).chunk(2, dim=-1)
        convolved_end, z = (inner if self.conv is None else self.conv(inner)[0])[:, -1:], z[:, -1:]
        q = self.q(convolved_end).squeeze(1) / math.sqrt(self.inner // self.heads)
        own_head = torch.diag_embed(q.transpose(1, 2), dim1=1, dim2=2).flatten(2)  # [B, N, P]
        seen_by_q = block_diagonal(own_head, self.k.weight.transpose(1, 2), 1).squeeze(2)
        conv = None if self.conv is None else (self.conv.weight, self.conv.bias)
        gates = (self.gates.bias, *seen_by_gates)
        inner = linear(rows, up.chunk(2)[0], self.backend)
        pooled = pooled_by_last(inner, conv, *gates, seen_by_q, lengths, self.backend)
        h = self.v(pooled).diagonal(dim1=1, dim2=2).transpose(1, 2).unsqueeze(1)  # [B, 1, N, D]
        y = self._leave(h, *(tensor.view_as(h) for tensor in (convolved_end, z)))
        out: Tensor = self.dropout(linear(y.flatten(2), self.down.weight, self.backend))
        return out

    def normed_last(self, x: Tensor, norm: Tensor) -> tuple[Tensor, Tensor] | None:
        """`last` of x [B, T, E] after a layer norm with this weight [E], and x at the last step, [B, 1, E] both; None
        where that cannot be had at once."""
        weights = self._weights(self.up.weight, self._gate_weights())
        found = None if weights is None else end_of_mlstm_layer(x, weights, norm, self.backend)
        return None if found is None else (self.dropout(found[0].unsqueeze(1)), found[1].unsqueeze(1))

    def _rows(self, x: Tensor | Narrow, resets: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the up-projection sees, zeros at padding, and its weight [2 P, ·] for that."""
        rows, up = (x.rows, self.up.weight @ x.basis) if isinstance(x, Narrow) else (x, self.up.weight)
        expect_steps("MLSTMLayer", rows, up.shape[1], resets, lengths)
        return hide_padding(rows, lengths), up

    def _leave(self, h: Tensor, convolved: Tensor, z: Tensor) -> Tensor:
        """Norm, skip and gate, all [B, T, N, D]."""
        skip = self.skip.view(self.heads, -1)
        if self.norm is None:
            return torch.addcmul(h, skip, convolved) * F.silu(z)
        return gated_head_norm(h, self.norm.by_head(), convolved, skip, z, self.backend)

    def _convolve(
        self, inner: Tensor, state: MLSTMLayerState | None, resets: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The convolution, where there is one, and the new past."""
        if self.conv is not None:
            before = None if state is None else state.conv
            convolved, past = self.conv(inner, before, resets=resets, lengths=lengths)
            return convolved, past
        if state is not None:
            expect_shape(state.conv, "MLSTMLayer: state conv", B=inner.shape[0], past=0, P=self.inner)
        return inner, inner[:, :0]

    def _weights(self, up: Tensor, seen_by_gates: tuple[Tensor, Tensor]) -> MLSTMLayerWeights | None:
        """As the kernels of a whole layer have them, with this weight of the up-projection; None without a convolution
        or a norm, which those kernels include."""
        if self.conv is None or self.norm is None:
            return None
        return MLSTMLayerWeights(
            up, self.conv.weight, self.conv.bias, self.q.weight, self.k.weight, self.v.weight, *seen_by_gates,
            self.gates.bias, self.norm.by_head().flatten(), self.skip, self.down.weight,
        )  # fmt: skip

    def _gate_weights(self) -> tuple[Tensor, Tensor]:
        """What i and f, which see q, k and v, see of the convolved input and of the raw one, each [2 N, P].

        It spares products of q, k and v.
        """
        projections = torch.cat([self.q.weight, self.k.weight, self.v.weight])  # [3 P / block, block out, block in]
        by_block = self.gates.weight.view(2 * self.heads, *projections.shape[:2]).transpose(0, 1)
        by_q, by_k, by_v = (by_block @ projections).transpose(0, 1).flatten(1).chunk(3, 1)
        return by_q + by_k, by_v
