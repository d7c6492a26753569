"""The public ops of the model family: lstm(), slstm() and mlstm(), one signature over all backends.

Legend: B batch, T steps, N heads, D head width. Half-precision inputs are computed in float32: h comes back in the
inputs' dtype, states stay in float32. Gradients are written by hand, so that they cannot be differentiated in turn: no
op has a double backward (`create_graph=True`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xlstm_tune.kernels.dispatch import Choice, resolve
from xlstm_tune.kernels.gates import slstm_gates
from xlstm_tune.kernels.lstm_numba import lstm_numba
from xlstm_tune.kernels.lstm_reference import LSTMState, lstm_reference
from xlstm_tune.kernels.masks import UNSEEN, at_end, blank_padding, check_masks, mask_gates
from xlstm_tune.kernels.mlstm_forms import MLSTMState
from xlstm_tune.kernels.mlstm_numba import mlstm_numba
from xlstm_tune.kernels.mlstm_reference import mlstm_chunkwise
from xlstm_tune.kernels.shapes import as_state, expect_floats, expect_shape, expect_tensor, of_no_samples
from xlstm_tune.kernels.slstm_inputs_numba import from_inputs_fits, slstm_from_inputs_numba
from xlstm_tune.kernels.slstm_numba import slstm_numba
from xlstm_tune.kernels.slstm_reference import SLSTMState, slstm_reference

__all__ = ["LSTMState", "MLSTMState", "SLSTMState", "lstm", "mlstm", "slstm", "slstm_from_inputs"]

_CELLS: dict[tuple[str, str], Callable[..., Any]] = {
    ("lstm", "reference"): lstm_reference,
    ("lstm", "numba"): lstm_numba,
    ("slstm", "reference"): slstm_reference,
    ("slstm", "numba"): slstm_numba,
    ("mlstm", "reference"): mlstm_chunkwise,
    ("mlstm", "numba"): mlstm_numba,
}


def lstm(
    gates: Tensor,
    recurrent: Tensor,
    bias: Tensor | None = None,
    initial_state: LSTMState | tuple[Tensor, ...] | None = None,
    *,
    projection: Tensor | None = None,
    resets: Tensor | None = None,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, LSTMState]:
    """The LSTM cell over a sequence; equations in `lstm_reference`.

    gates: [B, T, N, 4, D], the inputs' share of the gates i, f, g, o. recurrent: [N, 4, D, P]. bias: [N, 4, D].
    projection: [N, P, D], from the cell's output to h; None = none, and P = D.
    initial_state: h [B, N, P] and c [B, N, D], as an LSTMState or a plain tuple; None is the empty state, zeros.
    resets: boolean [B, T], True where a sample starts anew before that step, from the empty state; None = nowhere.
    lengths: integers [B] in 1..T, the real steps of each sample; padding after them may hold any finite numbers; None =
    T for all.
    Returns h over time [B, T, N, P], zero in the padding, and the state after the last real step. All inputs are
    differentiable, once: there is no double backward.
    Raises ValueError for a wrong shape or dtype, TypeError for what is no tensor, BackendUnavailable for a backend that
    cannot run here.
    """
    expect_shape(gates, "lstm: gates", B=None, T=None, N=None, gates=4, D=None)
    batch, steps, heads, _, width = gates.shape
    expect_shape(recurrent, "lstm: recurrent", N=heads, gates=4, D=width, P=width if projection is None else None)
    out = recurrent.shape[3]
    if bias is not None:
        expect_shape(bias, "lstm: bias", N=heads, gates=4, D=width)
    if projection is not None:
        expect_shape(projection, "lstm: projection", N=heads, P=out, D=width)
    state = as_state(initial_state, LSTMState, "lstm")
    if state is not None:
        expect_shape(state.h, "lstm: state h", B=batch, N=heads, P=out)
        expect_shape(state.c, "lstm: state c", B=batch, N=heads, D=width)
    expect_floats("lstm", gates=gates, recurrent=recurrent, bias=bias, projection=projection, **_named(state))
    check_masks("lstm", resets, lengths, batch, steps)
    dtype = _compute_dtype(gates, recurrent)
    choice = resolve("lstm", backend, gates.device.type, dtype, projection is not None)
    cell, kind = _cell(choice), _kind(choice, gates, dtype)
    if not batch:
        hung_on = (gates, recurrent, bias, projection, *(state or ()))
        shapes = ((batch, steps, heads, out), (batch, heads, out), (batch, heads, width))
        h, *final = of_no_samples(hung_on, dtype, *shapes)
        return h.to(gates.dtype), LSTMState(*final)
    state = None if state is None else LSTMState(*(tensor.to(dtype) for tensor in state))
    with torch.autocast(gates.device.type, enabled=False):
        inputs = gates.to(kind)
        if resets is not None or lengths is not None:
            inputs = mask_gates(inputs, 3, resets, lengths)
        h, final = cell(
            inputs,
            recurrent.to(kind),
            None if bias is None else bias.to(kind),
            state,
            projection=None if projection is None else projection.to(dtype),
            keep=None if resets is None else (~resets).to(dtype),
        )
        if lengths is not None:
            final = final._replace(h=at_end(h, lengths).to(dtype))
            h = blank_padding(h, lengths)
    return h.to(gates.dtype), final


def slstm(
    gates: Tensor,
    recurrent: Tensor,
    bias: Tensor | None = None,
    initial_state: SLSTMState | tuple[Tensor, ...] | None = None,
    *,
    resets: Tensor | None = None,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, SLSTMState]:
    """The sLSTM cell over a sequence; equations in `slstm_reference`.

    gates: [B, T, N, 4, D], the inputs' share of the gates i, f, z, o. They are finite, but i may be -inf: a shut gate,
    as is one below -1e20. Its step adds nothing; after the empty state h is 0, and so are its gradients, up to the
    first open gate. A reset before a shut gate empties c and n only at the next open one: let it stand before that one.
    recurrent: [N, 4, D out, D in]. bias: [N, 4, D].
    initial_state: h, c, n, m, each [B, N, D], as an SLSTMState or a plain tuple; None is the empty state, and so is
    n = 0 for a single element.
    resets: boolean [B, T], True where a sample starts anew before that step, from the empty state; None = nowhere.
    lengths: integers [B] in 1..T, the real steps of each sample; padding after them may hold any finite numbers; None =
    T for all.
    Returns h over time [B, T, N, D], zero in the padding, and the state after the last real step. All inputs are
    differentiable, once: there is no double backward.
    Raises ValueError for a wrong shape or dtype, TypeError for what is no tensor, BackendUnavailable for a backend that
    cannot run here.
    """
    return _slstm(gates, recurrent, bias, initial_state, resets, lengths, backend, may_shut=True)


def _slstm(
    gates: Tensor,
    recurrent: Tensor,
    bias: Tensor | None,
    initial_state: SLSTMState | tuple[Tensor, ...] | None,
    resets: Tensor | None,
    lengths: Tensor | None,
    backend: str,
    may_shut: bool,
) -> tuple[Tensor, SLSTMState]:
    """`slstm`; may_shut: gates i may be -inf, which those that a product has made are not."""
    expect_shape(gates, "slstm: gates", B=None, T=None, N=None, gates=4, D=None)
    batch, steps, heads, _, width = gates.shape
    state = as_state(initial_state, SLSTMState, "slstm")
    _check_slstm(batch, heads, width, recurrent, bias, state)
    expect_floats("slstm", gates=gates, recurrent=recurrent, bias=bias, **_named(state))
    check_masks("slstm", resets, lengths, batch, steps)
    dtype = _compute_dtype(gates, recurrent)
    choice = resolve("slstm", backend, gates.device.type, dtype)
    cell, kind = _cell(choice), _kind(choice, gates, dtype)
    if not batch:
        hung_on = (gates, recurrent, bias, *(state or ()))
        h, *final = of_no_samples(hung_on, dtype, (batch, steps, heads, width), *[(batch, heads, width)] * 4)
        return h.to(gates.dtype), SLSTMState(*final)
    state = None if state is None else SLSTMState(*(tensor.to(dtype) for tensor in state))
    if may_shut:
        state = _unseen(gates, state, dtype)
    with torch.autocast(gates.device.type, enabled=False):
        inputs = gates.to(kind)
        if resets is not None or lengths is not None:
            inputs = mask_gates(inputs, 3, resets, lengths)
        keep = None if resets is None else (~resets).to(dtype)
        h, final = cell(inputs, recurrent.to(kind), None if bias is None else bias.to(kind), state, keep)
        if lengths is not None:
            final = final._replace(h=at_end(h, lengths).to(dtype))
            h = blank_padding(h, lengths)
    return h.to(gates.dtype), final


def slstm_from_inputs(
    for_if: Tensor,
    for_zo: Tensor,
    in_weight: Tensor,
    recurrent: Tensor,
    bias: Tensor,
    initial_state: SLSTMState | tuple[Tensor, ...] | None = None,
    *,
    resets: Tensor | None = None,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, SLSTMState]:
    """`slstm` of the gates that `slstm_gates` makes of its inputs, without writing them to memory where that can be.

    for_if, for_zo: [B, T, E], what the gates i and f, and z and o, see. in_weight: [N, 4, D out, D in], N D = E, whose
    dtype, or autocast's, the gates and so h have. The rest, what is returned and raised: as for `slstm`.
    """
    state = as_state(initial_state, SLSTMState, "slstm")
    named = {"for_if": for_if, "for_zo": for_zo, "in_weight": in_weight, "recurrent": recurrent, "bias": bias}
    named |= _named(state)
    for name, tensor in named.items():
        expect_tensor(tensor, f"slstm: {name}")
    expect_floats("slstm", **named)
    square = in_weight.shape[2] if in_weight.dim() == 4 else None
    expect_shape(in_weight, "slstm: in_weight", N=None, gates=4, D_out=None, D_in=square)
    expect_shape(for_if, "slstm: for_if", B=None, T=None, E=None)
    plain = (
        len(for_if) > 0
        and all(tensor.dtype == torch.float32 for tensor in named.values())
        and resets is None
        and lengths is None
    )
    plain = plain and from_inputs_fits(in_weight)
    device = for_if.device.type
    if plain and not torch.is_autocast_enabled(device) and resolve("slstm", backend, device).backend == "numba":
        heads, _, width, _ = in_weight.shape
        expect_shape(for_if, "slstm: for_if", B=None, T=None, E=heads * width)
        expect_shape(for_zo, "slstm: for_zo", B=for_if.shape[0], T=for_if.shape[1], E=heads * width)
        _check_slstm(len(for_if), heads, width, recurrent, bias, state)
        return slstm_from_inputs_numba(for_if, for_zo, in_weight, recurrent, bias, state)
    gates = slstm_gates(for_if, for_zo, in_weight)
    return _slstm(gates, recurrent, bias, state, resets, lengths, backend, may_shut=False)


def _unseen(gates: Tensor, state: SLSTMState | None, dtype: torch.dtype) -> SLSTMState:
    """The state with n = 1 and m = UNSEEN in place of n = 0, where that and a shut first gate would make h = 0 / 0.

    To an open gate it is the empty state, to the last bit; behind a shut one h is 0 / 1.
    """
    if state is None:
        zeros = gates.new_zeros(gates.shape[0], gates.shape[2], gates.shape[4], dtype=dtype)
        return SLSTMState(zeros, zeros, torch.ones_like(zeros), torch.full_like(zeros, UNSEEN))
    empty = (state.n == 0) & (gates[:, 0, :, 0] <= UNSEEN)
    c, n, m = (one.masked_fill(empty, value) for one, value in zip(state[1:], (0.0, 1.0, UNSEEN), strict=True))
    return SLSTMState(state.h, c, n, m)


def _check_slstm(
    batch: int, heads: int, width: int, recurrent: Tensor, bias: Tensor | None, state: SLSTMState | None
) -> None:
    expect_shape(recurrent, "slstm: recurrent", N=heads, gates=4, D_out=width, D_in=width)
    if bias is not None:
        expect_shape(bias, "slstm: bias", N=heads, gates=4, D=width)
    for name, tensor in zip(SLSTMState._fields, state or (), strict=False):
        expect_shape(tensor, f"slstm: state {name}", B=batch, N=heads, D=width)


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    initial_state: MLSTMState | tuple[Tensor, ...] | None = None,
    *,
    resets: Tensor | None = None,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, MLSTMState]:
    """The mLSTM cell over a sequence; equations in `mlstm_forms`.

    q, k: [B, T, N, D] (k unscaled). v: [B, T, N, V]. i, f: [B, T, N], the gates before exponential and sigmoid.
    They are finite, but i may be -inf: a shut gate, as is one below -1e20. It adds nothing, and its gradient is 0;
    after the empty state h is 0 up to the first open gate, but for rounding (1e-25).
    initial_state: C [B, N, D, V], n [B, N, D], m [B, N], as an MLSTMState or a plain tuple; None is the empty state
    (0, 0, -inf).
    resets: boolean [B, T], True where a sample starts anew before that step, from the empty state; None = nowhere.
    lengths: integers [B] in 1..T, the real steps of each sample; padding after them may hold any finite numbers; None =
    T for all.
    Returns h over time [B, T, N, V], zero in the padding, and the state after the last real step. All inputs are
    differentiable, once: there is no double backward.
    Raises ValueError for a wrong shape or dtype, TypeError for what is no tensor, BackendUnavailable for a backend that
    cannot run here.
    """
    expect_shape(q, "mlstm: q", B=None, T=None, N=None, D=None)
    batch, steps, heads, width = q.shape
    expect_shape(k, "mlstm: k", B=batch, T=steps, N=heads, D=width)
    expect_shape(v, "mlstm: v", B=batch, T=steps, N=heads, D=None)
    expect_shape(i, "mlstm: i", B=batch, T=steps, N=heads)
    expect_shape(f, "mlstm: f", B=batch, T=steps, N=heads)
    state = as_state(initial_state, MLSTMState, "mlstm")
    if state is not None:
        expect_shape(state.c, "mlstm: state c", B=batch, N=heads, D_k=width, D_v=v.shape[-1])
        expect_shape(state.n, "mlstm: state n", B=batch, N=heads, D_k=width)
        expect_shape(state.m, "mlstm: state m", B=batch, N=heads)
    expect_floats("mlstm", q=q, k=k, v=v, i=i, f=f, **_named(state))
    check_masks("mlstm", resets, lengths, batch, steps)
    dtype = _compute_dtype(q, k, v, i, f)
    choice = resolve("mlstm", backend, q.device.type, dtype, width=max(width, v.shape[-1]))
    same = q.dtype == k.dtype == v.dtype
    cell, kind = _cell(choice), _kind(choice, q, dtype) if same else dtype
    if not batch:
        shapes = (v.shape, (batch, heads, width, v.shape[-1]), (batch, heads, width), (batch, heads))
        h, *final = of_no_samples((q, k, v, i, f, *(state or ())), dtype, *shapes)
        return h.to(q.dtype), MLSTMState(*final)
    state = None if state is None else MLSTMState(*(tensor.to(dtype) for tensor in state))
    with torch.autocast(q.device.type, enabled=False):
        i, f = i.to(dtype), f.to(dtype)
        i = i.clamp(min=UNSEEN)
        if resets is not None or lengths is not None:
            i, f = mask_gates(torch.stack([i, f], -1), 3, resets, lengths).unbind(-1)
        h, final = cell(q.to(kind), k.to(kind), v.to(kind), i, f, state)
        if lengths is not None:
            h = blank_padding(h, lengths)
    return h.to(q.dtype), final


def _named(state: LSTMState | SLSTMState | MLSTMState | None) -> dict[str, Tensor]:
    """A state's tensors by what messages call them."""
    return {} if state is None else {f"state {name}": tensor for name, tensor in state._asdict().items()}


def _cell(choice: Choice) -> Callable[..., Any]:
    """What runs the op. Triton is imported only where it is used."""
    if choice.backend == "triton" and choice.op == "lstm":
        from xlstm_tune.kernels.lstm_triton import lstm_triton

        return lstm_triton
    if choice.backend == "triton" and choice.op == "slstm":
        from xlstm_tune.kernels.slstm_triton import slstm_triton

        return slstm_triton
    if choice.backend == "triton":
        from xlstm_tune.kernels.mlstm_triton import mlstm_triton

        return mlstm_triton
    return _CELLS[choice.op, choice.backend]


def _kind(choice: Choice, gates: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype of gates and weights: Triton's kernels take 16 bits as they are."""
    return gates.dtype if choice.backend == "triton" else dtype


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any input has it, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
