"""The LSTM three times, with one interface and one state_dict: fused, from elementary operations, and torch's own.

Legend: B batch, T steps, E inputs, D hidden size, P output size of a direction (D without a projection), L layers.
Equations (Hochreiter and Schmidhuber 1997, with forget gates after Gers et al. 2000 and the recurrent projection of Sak
et al. 2014; gates in torch's order i, f, g, o):

    i = σ(W_ii x + b_ii + W_hi h + b_hi)        f, o likewise
    g = tanh(W_ig x + b_ig + W_hg h + b_hg)
    c' = f c + i g,  h' = o tanh(c'), with a projection W_hr o tanh(c')
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from xlstm_tune.kernels import LSTMState as CellState
from xlstm_tune.kernels import lstm
from xlstm_tune.kernels.shapes import expect_shape
from xlstm_tune.models.config import Direction
from xlstm_tune.models.draws import Dropout
from xlstm_tune.models.primitives import matmul, sigmoid, tanh
from xlstm_tune.models.steps import expect_steps, flip, flip_resets, hide_padding

LSTMState = tuple[Tensor, Tensor]
"""h [L, B, P] and c [L, B, D], as torch.nn.LSTM has them; with both directions 2 L rows, both of a layer together."""

SUFFIXES: dict[Direction, tuple[str, ...]] = {"forward": ("",), "reverse": ("",), "both": ("", "_reverse")}
"""What the names of a layer's weights end in, for each of its directions."""


class _Layers(nn.Module, ABC):
    """Weights, shapes and order of the layers, for the two LSTMs of our own."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        layers: int = 1,
        bias: bool = True,
        dropout: float = 0.0,
        projection: int = 0,
        direction: Direction = "forward",
        backend: str = "auto",
    ):
        super().__init__()
        _check_projection(projection, hidden_size)
        self.input_size, self.hidden_size, self.layers, self.bias = input_size, hidden_size, layers, bias
        self.projection, self.direction, self.backend = projection, direction, backend
        self.state_size = projection or hidden_size
        self.output_size = self.state_size * len(SUFFIXES[direction])
        self.dropouts = nn.ModuleList(Dropout(dropout, backend) for _ in range(layers - 1))
        bound = 1.0 / math.sqrt(hidden_size)
        for layer in range(layers):
            for suffix in SUFFIXES[direction]:
                for name, shape in self._shapes(self.output_size if layer else input_size).items():
                    initial = nn.init.uniform_(torch.empty(shape), -bound, bound)
                    self.register_parameter(f"{name}_l{layer}{suffix}", nn.Parameter(initial))

    def forward(
        self,
        x: Tensor,
        state: LSTMState | None = None,
        *,
        resets: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, LSTMState]:
        """x [B, T, E] to h over time [B, T, output_size], zero in the padding, and the final state.

        resets: boolean [B, T], True where a sample starts anew before that step. lengths: [B], real steps, padding
        after them. None: nowhere, and T for all. A reverse direction runs from the last real step to the first: its
        initial state enters there, and its final state is the one before step 0.
        Raises ValueError for a wrong shape.
        """
        directions = len(SUFFIXES[self.direction])
        expect_steps("lstm", x, self.input_size, resets, lengths)
        _check_state(state, self.layers * directions, x.shape[0], self.state_size, self.hidden_size)
        x = hide_padding(x, lengths)
        turned = None if resets is None or self.direction == "forward" else flip_resets(resets, lengths)
        finals = []
        for layer in range(self.layers):
            x = self.dropouts[layer - 1](x) if layer else x
            outputs = []
            for at, suffix in enumerate(SUFFIXES[self.direction], layer * directions):
                before = None if state is None else (state[0][at], state[1][at])
                if suffix or self.direction == "reverse":
                    y, final = self._run_layer(f"l{layer}{suffix}", flip(x, lengths), before, turned, lengths)
                    y = flip(y, lengths)
                    if resets is not None:
                        h, c = (entry.masked_fill(resets[:, :1], 0.0) for entry in final)
                        final = (h, c)
                else:
                    y, final = self._run_layer(f"l{layer}", x, before, resets, lengths)
                outputs.append(y)
                finals.append(final)
            x = outputs[0] if directions == 1 else torch.cat(outputs, 2)
        h_all, c_all = (torch.stack(entries) for entries in zip(*finals, strict=True))
        return x, (h_all, c_all)

    @abstractmethod
    def _run_layer(
        self, name: str, x: Tensor, state: LSTMState | None, resets: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, LSTMState]:
        """One direction of one layer, from the first step to the last: x [B, T, features] to h and the final state."""

    def _shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        """A layer's weights, in torch's order."""
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (4 * self.hidden_size, inputs),
            "weight_hh": (4 * self.hidden_size, self.state_size),
        }
        if self.bias:
            shapes |= {"bias_ih": (4 * self.hidden_size,), "bias_hh": (4 * self.hidden_size,)}
        if self.projection:
            shapes["weight_hr"] = (self.projection, self.hidden_size)
        return shapes

    def _weight(self, kind: str, name: str) -> Tensor:
        """By name, since torch.func.functional_call puts plain tensors in the parameters' places."""
        found: Tensor = getattr(self, f"{kind}_{name}")
        return found


class LSTM(_Layers):
    """The LSTM on the fused op: the input's share of all gates in one product, the steps as one operator."""

    def _run_layer(
        self, name: str, x: Tensor, state: LSTMState | None, resets: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, LSTMState]:
        gates = F.linear(x, self._weight("weight_ih", name))  # [B, T, 4 D]
        h, final = lstm(
            gates.view(*gates.shape[:2], 1, 4, self.hidden_size),
            self._weight("weight_hh", name).view(1, 4, self.hidden_size, -1),
            (self._weight("bias_ih", name) + self._weight("bias_hh", name)).view(1, 4, -1) if self.bias else None,
            None if state is None else CellState(state[0].unsqueeze(1), state[1].unsqueeze(1)),
            projection=self._weight("weight_hr", name).unsqueeze(0) if self.projection else None,
            resets=resets,
            lengths=lengths,
            backend=self.backend,
        )
        return h.flatten(2), (final.h.squeeze(1), final.c.squeeze(1))


class LSTMScratch(_Layers):
    """The LSTM from `primitives` alone, to be read line by line."""

    def _run_layer(
        self, name: str, x: Tensor, state: LSTMState | None, resets: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, LSTMState]:
        batch, steps, features = x.shape
        # Transposed copies, since the broadcast product runs along contiguous rows.
        from_input = self._weight("weight_ih", name).t().contiguous()  # [E, 4 D]
        from_hidden = self._weight("weight_hh", name).t().contiguous()  # [P, 4 D]
        # The inputs' share of the gates depends on no earlier step: one product for all steps.
        inputs = matmul(x.reshape(batch * steps, features), from_input).view(batch, steps, from_input.shape[1])
        if self.bias:
            inputs = inputs + (self._weight("bias_ih", name) + self._weight("bias_hh", name))
        if state is None:
            h, c = x.new_zeros(batch, self.state_size), x.new_zeros(batch, self.hidden_size)
        else:
            h, c = state

        outputs = []
        for t, step in enumerate(inputs.unbind(1)):
            before = h, c
            if resets is not None:
                h, c = h.masked_fill(resets[:, t, None], 0.0), c.masked_fill(resets[:, t, None], 0.0)
            i, f, g, o = (step + matmul(h, from_hidden)).chunk(4, dim=1)
            c = sigmoid(f) * c + sigmoid(i) * tanh(g)
            h = sigmoid(o) * tanh(c)
            if self.projection:
                h = matmul(h, self._weight("weight_hr", name).t())
            outputs.append(h)
            if lengths is not None:
                real = (t < lengths)[:, None]
                h, c = torch.where(real, h, before[0]), torch.where(real, c, before[1])
        return hide_padding(torch.stack(outputs, 1), lengths), (h, c)


class LSTMTorch(nn.LSTM):
    """torch.nn.LSTM behind the interface of the other two. It cannot start a sample anew inside a batch."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        layers: int = 1,
        bias: bool = True,
        dropout: float = 0.0,
        projection: int = 0,
        direction: Direction = "forward",
    ):
        _check_projection(projection, hidden_size)
        super().__init__(
            input_size,
            hidden_size,
            layers,
            bias=bias,
            dropout=dropout if layers > 1 else 0.0,  # torch warns about a dropout that one layer cannot apply
            proj_size=projection,
            bidirectional=direction == "both",
            batch_first=True,
        )
        self.direction = direction
        self.output_size = (projection or hidden_size) * len(SUFFIXES[direction])

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        state: LSTMState | None = None,
        *,
        resets: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, LSTMState]:
        """As the other two; ValueError for resets too."""
        expect_steps("lstm", x, self.input_size, resets, lengths)
        rows = self.num_layers * len(SUFFIXES[self.direction])
        _check_state(state, rows, x.shape[0], self.proj_size or self.hidden_size, self.hidden_size)
        if resets is not None:
            raise ValueError(
                "lstm_torch: torch.nn.LSTM takes no resets; cut the sequences there, or use the family lstm"
            )
        # Autocast gives torch's LSTM float16 on a GPU, whatever type was asked for: gradients would vanish in it.
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(next(self.parameters()).dtype)
        state = None if state is None else (state[0].to(x.dtype), state[1].to(x.dtype))
        x = hide_padding(x, lengths)
        if self.direction == "reverse":
            x = flip(x, lengths)
        with torch.autocast(x.device.type, enabled=False):
            if lengths is None or not len(x):  # there is nothing to pack
                y, final = super().forward(x, state)
            else:
                packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
                found, final = super().forward(packed, state)
                y, _ = pad_packed_sequence(found, batch_first=True, total_length=x.shape[1])
        return flip(y, lengths) if self.direction == "reverse" else y, final


def open_forget_gates(lstm: LSTM | LSTMScratch | LSTMTorch, bias: float) -> None:
    """Add `bias` to the forget gates' initial bias in every layer; nothing to do for an LSTM without biases."""
    for name, parameter in lstm.named_parameters():
        if name.startswith("bias_ih"):
            with torch.no_grad():
                parameter[lstm.hidden_size : 2 * lstm.hidden_size] += bias


def _check_projection(projection: int, hidden_size: int) -> None:
    if not 0 <= projection < hidden_size:
        raise ValueError(
            f"lstm: projection must be smaller than hidden_size ({hidden_size}), or 0 for none, got {projection}"
        )


def _check_state(state: LSTMState | None, rows: int, batch: int, state_size: int, hidden_size: int) -> None:
    if state is not None:
        if not isinstance(state, tuple | list) or len(state) != 2:
            got = f"{len(state)} entries" if isinstance(state, tuple | list) else type(state).__name__
            raise TypeError(f"lstm: state must be a pair of tensors (h, c), got {got}")
        h, c = state
        expect_shape(h, "lstm: state h", L=rows, B=batch, P=state_size)
        expect_shape(c, "lstm: state c", L=rows, B=batch, D=hidden_size)
