"""LSTM and sLSTM on a GPU as operators: what their backward passes need is stored, or computed again piece by piece.

Storing, the backward pass finds the gates' functions and the cells of every step. Recomputing, the forward pass keeps
what it was given and the state before each piece of PIECE steps; the backward pass goes from the last piece to the
first and runs the forward kernel over each once more. It is the same kernel on the same numbers, so gradients agree to
the last bit: which way was taken shows in time and memory alone.

Bytes kept for each unit and step, besides h, which both keep, with numbers of s bytes in the gates:

    sLSTM   storing 28: five functions of the gates, n and c    recomputing 4 s of gates, 12 / PIECE of c, n and m
    LSTM    storing 20: four functions of the gates and c       recomputing 4 s of gates, 4 / PIECE of c

While it recomputes, a backward pass holds in addition what storing would, for one piece.
Legend: B batch, T steps, N heads, D head width, S steps of a piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xlstm_tune.kernels.config import VARIABLE as VARIABLE
from xlstm_tune.kernels.config import asked
from xlstm_tune.kernels.library import Kernel, constant_when_compiled, members, register
from xlstm_tune.kernels.parts_triton import parameter_gradients

PIECE = 64
"""Steps that are computed again at a time: long enough for a kernel's start to weigh little."""
SHARE = 1 / 32
"""Of a device's memory that a call may store. A model has several layers, each keeps other things too, and other trials
may run on the same GPU."""

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Cell:
    """A recurrent cell as its module runs it. A state is h and `states`, each [N, B, D], in float32 and contiguous but
    for h; pieces are ranges of steps; tensors over time have all T steps, `stored` those of the piece."""

    name: str
    states: tuple[str, ...]
    """Parts of the state besides h."""
    gates: int
    """Functions of the gates that are stored for each step and unit."""
    cells: int
    """Parts of the state that are."""
    walk: Callable[..., None]
    """(gates, recurrent, bias, state, keep, h, write, ends, stored, piece): from a state over a piece. Fills `ends`,
    the parts of the state behind it; h, which with `write` = False is there already; and `stored`, unless None."""
    walk_back: Callable[..., list[Tensor]]
    """(recurrent, keep, grad_h or None, gradients, stabilised, d_gates, stored, piece) → gradients of the state before
    a piece, from those of the state behind it. Fills d_gates. stabilised: the final state has gradients."""

    @property
    def stored_bytes(self) -> int:
        """Of each unit and step."""
        return 4 * (self.gates + self.cells)


def storing(cell: Cell) -> Callable[..., Tensors]:
    """The operator of a cell that stores. (gates [N, B, T, 4, D], recurrent [N, 4, D, D], bias [N, 4, D], h0, *cells0
    [N, B, D], keep [N, B, T] or None) → h [B, T, N, D] in the gates' dtype and the last *cells; saved for the backward
    pass [N, B, T, gates, D] and cells [N, B, T + 1, cells, D] from the initial state on, in float32."""

    def forward(*inputs: Any) -> Tensors:
        gates, recurrent, bias, *state, keep, train = inputs
        h, *ends, saved, cells = found = shapes(*inputs)
        stored = (saved, cells) if train else None
        cell.walk(gates, recurrent, bias, state, keep, h, True, ends, stored, range(gates.shape[2]))
        return found

    def shapes(*inputs: Any) -> Tensors:
        gates, train = inputs[0], inputs[-1]
        return *_outputs(*inputs), *_stored(cell, gates, gates.shape[2] if train else None)

    def backward(
        recurrent: Tensor, h0: Tensor, keep: Tensor | None, h: Tensor, saved: Tensor, cells: Tensor, *grads: Any
    ) -> Tensors:
        whole = range(h.shape[1])
        return _backward(cell, recurrent, h0, keep, h, grads, [whole], lambda _: (saved, cells))

    def backward_shapes(recurrent: Tensor, h0: Tensor, keep: Tensor | None, h: Tensor, *rest: Any) -> Tensors:
        return _gradients(cell, recurrent, h0, h)

    needs = ("recurrent", "h0", "keep", "h")
    found = (forward, backward, shapes, backward_shapes)
    return _register(cell, f"{cell.name}_triton", {"saved": 0, "cells": 0}, needs, found)


def recomputing(cell: Cell) -> Callable[..., Tensors]:
    """The operator of a cell that recomputes, called as that of `storing`; saved for the backward pass are its inputs
    and the states between pieces, [pieces - 1, states, N, B, D] in float32."""
    count = 4 + len(cell.states)

    def forward(*inputs: Any) -> Tensors:
        gates, recurrent, bias, *state, keep, train = inputs
        h, *ends, between = found = shapes(*inputs)
        for number, piece in enumerate(_pieces(gates.shape[2]) if train else [range(gates.shape[2])]):
            behind = list(between[number]) if number < len(between) else ends
            cell.walk(gates, recurrent, bias, state, keep, h, True, behind, None, piece)
            state = [_before(piece.stop, h, state[0]), *behind]
        return found

    def shapes(*inputs: Any) -> Tensors:
        gates, h0, train = inputs[0], inputs[3], inputs[-1]
        between = len(_pieces(gates.shape[2])) - 1 if train else 0
        return *_outputs(*inputs), h0.new_empty(between, len(cell.states), *h0.shape)

    def backward(*inputs: Any) -> Tensors:
        gates, recurrent, bias, h0, *cells0 = inputs[:count]
        keep, h, between, *grads = inputs[count:]
        behind = [torch.empty_like(h0) for _ in cells0]

        def stored(piece: range) -> Tensors:
            cells = list(between[piece.start // PIECE - 1]) if piece.start else cells0
            again = _stored(cell, gates, len(piece))
            state = [_before(piece.start, h, h0), *cells]
            cell.walk(gates, recurrent, bias, state, keep, h, False, behind, again, piece)
            return again

        return _backward(cell, recurrent, h0, keep, h, grads, _pieces(h.shape[1]), stored)

    def backward_shapes(*inputs: Any) -> Tensors:
        return _gradients(cell, inputs[1], inputs[3], inputs[count + 1])

    needs = ("gates", "recurrent", "bias", "h0", *(f"{name}0" for name in cell.states), "keep", "h")
    found = (forward, backward, shapes, backward_shapes)
    return _register(cell, f"{cell.name}_triton_recomputing", {"between": 2}, needs, found)


def recomputes(cell: Cell, gates: Tensor, recurrent: Tensor) -> bool:
    """Whether a call recomputes: as VARIABLE says, else where it would store more than SHARE of the device's memory.

    All of its memory counts and not what is free, so that a shape always takes the same way and nothing waits for the
    device. gates [B, T, N, 4, D]; members of a population count, though vmap hides them.
    Raises SpecError for a value of VARIABLE that is none.
    """
    if (way := asked()) != "auto":
        return way == "recompute"
    units = gates.numel() // 4 * members(gates, recurrent)
    return torch.is_grad_enabled() and too_much(
        units * cell.stored_bytes, device_memory(gates.device.type, gates.device.index)
    )


def too_much(stored: int, memory: int) -> bool:
    """Whether a call may not store so many bytes on a device with so much memory; 0 = no limit is known."""
    return memory > 0 and stored > SHARE * memory


@constant_when_compiled
def device_memory(kind: str, index: int | None) -> int:
    """Bytes of a device, free or not; 0 for a CPU, on which the interpreter runs."""
    return int(torch.cuda.get_device_properties(index).total_memory) if kind == "cuda" else 0


def _backward(
    cell: Cell,
    recurrent: Tensor,
    h0: Tensor,
    keep: Tensor | None,
    h: Tensor,
    grads: Sequence[Tensor | None],
    pieces: list[range],
    stored: Callable[[range], Tensors],
) -> Tensors:
    """Gradients of (gates, recurrent, bias, h0, *cells0), exact for any combination of gradients of h and *cells."""
    d_gates = _gates_like(h, recurrent)
    zeros = torch.zeros_like(h0)
    of_h, *of_cells = (None if grad is None else grad.contiguous() for grad in grads)
    stabilised = any(grad is not None for grad in of_cells)
    of_state = [zeros, *(zeros if grad is None else grad for grad in of_cells)]
    for piece in reversed(pieces):
        of_state = cell.walk_back(recurrent, keep, of_h, of_state, stabilised, d_gates, stored(piece), piece)
    return d_gates, *parameter_gradients(d_gates, h0, h, keep), *of_state


def _pieces(steps: int) -> list[range]:
    return [range(first, min(first + PIECE, steps)) for first in range(0, steps, PIECE)]


def _before(step: int, h: Tensor, h0: Tensor) -> Tensor:
    """h before a step, [N, B, D]: of h [B, T, N, D] a view, on which a product is the same each time."""
    return h[:, step - 1].transpose(0, 1) if step else h0


def _outputs(gates: Tensor, recurrent: Tensor, bias: Tensor, h0: Tensor, *rest: Any) -> Tensors:
    """Not filled: h and the final cells."""
    heads, batch, steps, _, width = gates.shape
    return gates.new_empty(batch, steps, heads, width), *(torch.empty_like(h0) for _ in rest[:-2])


def _stored(cell: Cell, gates: Tensor, steps: int | None) -> Tensors:
    """Not filled: what is stored of so many steps; None = nothing."""
    heads, batch, _, _, width = gates.shape
    after = 0 if steps is None else steps + 1
    counts = ((steps or 0, cell.gates), (after, cell.cells))
    return tuple(gates.new_empty(heads, batch, *count, width, dtype=torch.float32) for count in counts)


def _gates_like(h: Tensor, recurrent: Tensor) -> Tensor:
    """Not filled: [N, B, T, 4, D]."""
    batch, steps, heads, width = h.shape
    return recurrent.new_empty(heads, batch, steps, 4, width)


def _gradients(cell: Cell, recurrent: Tensor, h0: Tensor, h: Tensor) -> Tensors:
    """Not filled: those of the inputs."""
    of_state = (torch.empty_like(h0) for _ in ("h", *cell.states))
    return _gates_like(h, recurrent), torch.empty_like(recurrent), torch.empty_like(recurrent[..., 0]), *of_state


def _register(
    cell: Cell, name: str, saved: dict[str, int], needs: tuple[str, ...], functions: tuple[Callable[..., Tensors], ...]
) -> Callable[..., Tensors]:
    forward, backward, forward_shapes, backward_shapes = functions
    return register(
        Kernel(
            name=name,
            inputs=dict.fromkeys(["gates", "recurrent", "bias", "h0", *(f"{one}0" for one in cell.states)], 0),
            constants={"keep": 0},
            outputs={"h": 2} | dict.fromkeys(cell.states, 0),
            saved=saved,
            needs=needs,
            forward=forward,
            backward=backward,
            forward_shapes=forward_shapes,
            backward_shapes=backward_shapes,
        )
    )
