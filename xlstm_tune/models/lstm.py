"""The LSTM twice, with one interface and one state_dict: torch's own, and one written from elementary operations.

Legend: B batch, T steps, F inputs, D hidden size, L layers. Equations (Hochreiter and Schmidhuber 1997, with forget
gates after Gers et al. 2000; gates in torch's order i, f, g, o):

    i = σ(W_ii x + b_ii + W_hi h + b_hi)        f, o likewise
    g = tanh(W_ig x + b_ig + W_hg h + b_hg)
    c' = f c + i g,  h' = o tanh(c')
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from xlstm_tune.kernels.shapes import expect_shape
from xlstm_tune.models.primitives import matmul, sigmoid, tanh

LSTMState = tuple[Tensor, Tensor]
"""h and c, each [L, B, D], as torch.nn.LSTM has them."""


class LSTM(nn.LSTM):
    """torch.nn.LSTM, batch first, with shapes checked; dropout stands between layers only."""

    def __init__(self, input_size: int, hidden_size: int, layers: int = 1, bias: bool = True, dropout: float = 0.0):
        # torch warns about a dropout that one layer cannot apply.
        between = dropout if layers > 1 else 0.0
        super().__init__(input_size, hidden_size, layers, bias=bias, dropout=between, batch_first=True)

    def forward(  # type: ignore[override]
        self, x: Tensor, state: LSTMState | None = None
    ) -> tuple[Tensor, LSTMState]:
        """x [B, T, F] to h over time [B, T, D] and the final state. Raises ValueError for a wrong shape."""
        _check(x, state, self.input_size, self.hidden_size, self.num_layers)
        outputs, final = super().forward(x, state)
        return outputs, final


class LSTMScratch(nn.Module):
    """An LSTM from `primitives` alone. Its state_dict is torch.nn.LSTM's: weights load both ways."""

    def __init__(self, input_size: int, hidden_size: int, layers: int = 1, bias: bool = True, dropout: float = 0.0):
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.layers = layers
        self.bias = bias
        self.dropout = nn.Dropout(dropout)
        bound = 1.0 / math.sqrt(hidden_size)
        for layer in range(layers):
            width = hidden_size if layer else input_size
            shapes: dict[str, tuple[int, ...]] = {
                "weight_ih": (4 * hidden_size, width),
                "weight_hh": (4 * hidden_size, hidden_size),
            }
            if bias:
                shapes |= {"bias_ih": (4 * hidden_size,), "bias_hh": (4 * hidden_size,)}
            for name, shape in shapes.items():
                parameter = nn.Parameter(nn.init.uniform_(torch.empty(shape), -bound, bound))
                self.register_parameter(f"{name}_l{layer}", parameter)

    def forward(self, x: Tensor, state: LSTMState | None = None) -> tuple[Tensor, LSTMState]:
        """x [B, T, F] to h over time [B, T, D] and the final state. Raises ValueError for a wrong shape."""
        _check(x, state, self.input_size, self.hidden_size, self.layers)
        if state is None:
            zeros = x.new_zeros(self.layers, x.shape[0], self.hidden_size)
            state = (zeros, zeros)
        finals = []
        for layer, (h, c) in enumerate(zip(*state, strict=True)):
            x, final = self._run_layer(layer, self.dropout(x) if layer else x, h, c)
            finals.append(final)
        h_all, c_all = (torch.stack(states) for states in zip(*finals, strict=True))
        return x, (h_all, c_all)

    def _run_layer(self, layer: int, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, LSTMState]:
        batch, steps, width = x.shape
        # By getattr, since torch.func.functional_call puts plain tensors in the parameters' places. Transposed copies,
        # since the broadcast product runs along contiguous rows.
        from_input = getattr(self, f"weight_ih_l{layer}").t().contiguous()  # [F, 4 D]
        from_hidden = getattr(self, f"weight_hh_l{layer}").t().contiguous()  # [D, 4 D]
        # The inputs' share of the gates depends on no earlier step: one product for all steps.
        inputs = matmul(x.reshape(batch * steps, width), from_input).view(batch, steps, 4 * self.hidden_size)
        if self.bias:
            inputs = inputs + getattr(self, f"bias_ih_l{layer}") + getattr(self, f"bias_hh_l{layer}")

        outputs = []
        for step in inputs.unbind(1):
            i, f, g, o = (step + matmul(h, from_hidden)).chunk(4, dim=1)
            c = sigmoid(f) * c + sigmoid(i) * tanh(g)
            h = sigmoid(o) * tanh(c)
            outputs.append(h)
        return torch.stack(outputs, 1), (h, c)


def open_forget_gates(lstm: LSTM | LSTMScratch, bias: float) -> None:
    """Add `bias` to the forget gates' initial bias in every layer; nothing to do for an LSTM without biases."""
    for name, parameter in lstm.named_parameters():
        if name.startswith("bias_ih"):
            with torch.no_grad():
                parameter[lstm.hidden_size : 2 * lstm.hidden_size] += bias


def _check(x: Tensor, state: LSTMState | None, inputs: int, hidden: int, layers: int) -> None:
    expect_shape(x, "lstm: x", B=None, T=None, F=inputs)
    for name, tensor in zip("hc", state or (), strict=False):
        expect_shape(tensor, f"lstm: state {name}", L=layers, B=x.shape[0], D=hidden)
