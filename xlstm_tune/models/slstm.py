"""The sLSTM layer. Legend: B batch, T steps, E width, N heads, D = E / N head width."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from xlstm_tune.kernels import SLSTMState, slstm_from_inputs
from xlstm_tune.kernels.shapes import as_state, expect_shape
from xlstm_tune.models.block import HeadNorm, init_projection
from xlstm_tune.models.conv import CausalConv
from xlstm_tune.models.draws import Dropout
from xlstm_tune.models.steps import expect_steps, hide_padding


class SLSTMLayerState(NamedTuple):
    """The last kernel - 1 inputs [B, K - 1, E] (none without a convolution), and the cell's state."""

    conv: Tensor
    cell: SLSTMState

    def cleared(self, samples: Tensor) -> SLSTMLayerState:
        """The state with these samples (bool [B]) as before any input."""
        conv = self.conv.masked_fill(samples[:, None, None], 0.0)
        cell = (tensor.masked_fill(samples[:, None, None], 0.0) for tensor in self.cell)
        return SLSTMLayerState(conv, SLSTMState(*cell))


def forget_bias(heads: int, width: int, block: int = 0, blocks: int = 1) -> Tensor:
    """Initial forget-gate bias [N, D]: 5 - 12 u^(0.3 + 1.3 block / (blocks - 1)), with u = d / (D - 1) over a head.

    Early blocks mostly forget fast, late ones remember. A single block counts as the first. Heads of width 1 have no d
    to spread over: u = n / (N - 1) then runs over the heads, as over the units of one head (and is 0 for one unit).
    """
    units = heads if width == 1 else width
    spread = torch.arange(units, device="cpu") / max(units - 1, 1)
    bias = 5.0 - 12.0 * spread ** (0.3 + 1.3 * block / max(blocks - 1, 1))
    return bias.view(heads, 1) if width == 1 else bias.expand(heads, width)


class SLSTMLayer(nn.Module):
    """Causal convolution and SiLU before the gates i and f, the raw input for z and o; cell; dropout; norm per head,
    which `head_norm` false leaves out.

    Without a convolution (kernel 0) all gates see the raw input. Gates stand in the order i, f, z, o:
    input_weight and recurrent_weight [N, 4, D out, D in], bias [N, 4, D].
    Raises ValueError when the heads do not divide the width.
    """

    def __init__(
        self,
        width: int,
        heads: int = 4,
        conv_kernel: int = 4,
        dropout: float = 0.0,
        head_norm: bool = True,
        block: int = 0,
        blocks: int = 1,
        backend: str = "auto",
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"SLSTMLayer: heads must divide width, got {heads} heads and width {width}")
        head = width // heads
        self.width, self.heads, self.backend = width, heads, backend
        self.conv = CausalConv(width, conv_kernel, backend) if conv_kernel else None
        self.input_weight = nn.Parameter(torch.empty(heads, 4, head, head))
        self.recurrent_weight = nn.Parameter(torch.zeros(heads, 4, head, head))
        self.bias = nn.Parameter(torch.zeros(heads, 4, head))
        self.dropout = Dropout(dropout, backend)
        self.norm = HeadNorm(width, heads, backend) if head_norm else nn.Identity()
        init_projection(self.input_weight, width)
        with torch.no_grad():
            self.bias[:, 1] = forget_bias(heads, head, block, blocks)

    def forward(
        self,
        x: Tensor,
        state: SLSTMLayerState | None = None,
        *,
        resets: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, SLSTMLayerState]:
        """x [B, T, E] to the same shape (0 at padding) and the state after the last real step; one step is T = 1."""
        h, state = self._run_cell(x, state, resets, lengths)
        return self._leave(h), state

    def last(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """x [B, T, E] to what `forward` gives at each sample's last real step, [B, 1, E]."""
        h, state = self._run_cell(x, None, None, lengths)
        return self._leave(state.cell.h.unsqueeze(1).to(h.dtype))

    def _run_cell(
        self, x: Tensor, state: SLSTMLayerState | None, resets: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, SLSTMLayerState]:
        """Convolution and cell: h over time [B, T, N, D] (0 at padding) and the state after the last real step."""
        expect_steps("SLSTMLayer", x, self.width, resets, lengths)
        state = as_state(state, SLSTMLayerState, "SLSTMLayer", "state")
        x = hide_padding(x, lengths)
        if self.conv is None:
            if state is not None:
                expect_shape(state.conv, "SLSTMLayer: state conv", B=x.shape[0], past=0, E=self.width)
            convolved, past = x, x[:, :0]
        else:
            convolved, past = self.conv(x, None if state is None else state.conv, resets=resets, lengths=lengths)
        h, cell = slstm_from_inputs(
            convolved,
            x,
            self.input_weight,
            self.recurrent_weight,
            self.bias,
            None if state is None else state.cell,
            resets=resets,
            lengths=lengths,
            backend=self.backend,
        )
        return h, SLSTMLayerState(past, cell)

    def _leave(self, h: Tensor) -> Tensor:
        """h [B, T, N, D] to the output [B, T, E]."""
        y: Tensor = self.norm(self.dropout(h))
        return y.flatten(2)
