"""The LSTM cell on a GPU, without a projection of h; built as `slstm_triton`, whose head says how.

Legend as in `lstm_reference`, whose equations these are; S steps of a piece, which is all T or some of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xlstm_tune.kernels import lstm_steps_triton as kernels
from xlstm_tune.kernels.gated_triton import Cell, recomputes, recomputing, storing
from xlstm_tune.kernels.lstm_reference import LSTMState
from xlstm_tune.kernels.parts_triton import STEP_UNITS, exact, launch_for, programs, state_by_head, step_programs
from xlstm_tune.kernels.recurrence import heads_first, keep_by_head

State = list[Tensor]
"""h and c [N, B, D]."""
Stored = tuple[Tensor, Tensor]
"""σ(i), σ(f), tanh(g) and σ(o) [N, B, S, 4, D]; c [N, B, S + 1, 1, D] from the state before the piece on."""


def walk(
    gates: Tensor,
    recurrent: Tensor,
    bias: Tensor,
    state: State,
    keep: Tensor | None,
    h: Tensor,
    write: bool,
    ends: list[Tensor],
    stored: Stored | None,
    piece: range,
) -> None:
    """From a state over a piece: as `gated_triton.Cell` says.

    gates [N, B, T, 4, D], recurrent [N, 4, D, D], bias [N, 4, D], h [B, T, N, D] of one dtype; keep [N, B, T] (or None)
    and ends [N, B, D], the last c, in float32.
    """
    heads, batch, steps, _, width = gates.shape
    cut = launch_for(gates, heads, batch)
    if cut is None:
        _walk_by_step(gates, recurrent, bias, state, keep, h, write, ends, stored, piece)
        return
    before, *cell = state
    # What is not read has the dtype of something that never changes it: another dtype is another kernel to compile.
    kept = ends[0] if keep is None else keep[:, :, piece.start :]
    kernels.forward[(heads * programs(batch, cut),)](
        gates[:, :, piece.start :], recurrent, bias, before.float().contiguous(), *cell, kept, h[:, piece.start :],
        *ends, *(stored or (ends[0], ends[0])),
        batch, steps, len(piece), heads, width, KEEP=keep is not None, WRITE=write, TRAIN=stored is not None,
        PRECISION=exact(gates), STAGES=cut.stages, **cut.options(width),
    )  # fmt: skip


def _walk_by_step(
    gates: Tensor,
    recurrent: Tensor,
    bias: Tensor,
    state: State,
    keep: Tensor | None,
    h: Tensor,
    write: bool,
    ends: list[Tensor],
    stored: Stored | None,
    piece: range,
) -> None:
    """`walk` by a product and a kernel a step."""
    heads, batch, steps, _, width = gates.shape
    weight = recurrent.flatten(1, 2).mT  # [N, D in, 4 D]
    before, cell = state
    if stored is not None:
        stored[1][:, :, 0, 0] = cell
    for t in piece:
        if keep is not None:
            before = before * keep[:, :, t, None]
        product = torch.bmm(before.to(weight.dtype), weight)
        kernels.step[step_programs(heads * batch, width)](
            gates[:, :, piece.start :], product, bias, cell, h[:, piece.start :], *ends, *(stored or state),
            batch, steps, len(piece), heads, width, t - piece.start,
            WRITE=write, TRAIN=stored is not None, BLOCK=STEP_UNITS,
        )  # fmt: skip
        before, cell = h[:, t].transpose(0, 1), ends[0]


def walk_back(
    recurrent: Tensor,
    keep: Tensor | None,
    grad_h: Tensor | None,
    gradients: State,
    stabilised: bool,
    d_gates: Tensor,
    stored: Stored,
    piece: range,
) -> State:
    """The way back of `walk`: as `gated_triton.Cell` says."""
    heads, batch, steps, _, width = d_gates.shape
    of_h = d_gates if grad_h is None else grad_h[:, piece.start :]
    d_gates_here = d_gates[:, :, piece.start :]
    cut = launch_for(recurrent, heads, batch)
    if cut is not None:
        found = [torch.empty_like(one) for one in gradients]
        kept = gradients[0] if keep is None else keep[:, :, piece.start :]
        kernels.backward[(heads * programs(batch, cut),)](
            recurrent, kept, *stored, of_h, *gradients, d_gates_here, *found,
            batch, steps, len(piece), heads, width, KEEP=keep is not None, SEEN=grad_h is not None,
            PRECISION=exact(recurrent), **cut.options(width),
        )  # fmt: skip
        return found
    d_h, d_c = gradients[0], gradients[1].clone()
    weight = recurrent.flatten(1, 2)  # [N, 4 D, D in]
    for t in reversed(piece):
        kernels.step_back[step_programs(heads * batch, width)](
            d_h, *stored, of_h, d_c, d_gates_here, batch, steps, len(piece), heads, width, t - piece.start,
            SEEN=grad_h is not None, BLOCK=STEP_UNITS,
        )  # fmt: skip
        d_h = torch.bmm(d_gates[:, :, t].flatten(2), weight)
        if keep is not None:
            d_h = d_h * keep[:, :, t, None]
    return [d_h.float(), d_c]


CELL = Cell("lstm", ("c",), gates=4, cells=1, walk=walk, walk_back=walk_back)
_storing, _recomputing = storing(CELL), recomputing(CELL)


def lstm_triton(
    gates: Tensor,
    recurrent: Tensor,
    bias: Tensor | None = None,
    initial_state: LSTMState | None = None,
    *,
    projection: Tensor | None = None,
    keep: Tensor | None = None,
) -> tuple[Tensor, LSTMState]:
    """`lstm_reference` without a projection, for float32, bfloat16 and float16 on a GPU: the same arguments and
    results, h in the gates' dtype, states in float32. Gates that lie head first in memory, as [N, B, T, 4, D], are
    taken in without a copy.
    """
    assert projection is None
    state = state_by_head(initial_state, 2, gates)
    run = _recomputing if recomputes(CELL, gates, recurrent) else _storing
    h, c = run(*heads_first(gates, recurrent, bias), *state, keep_by_head(keep, gates.shape[2]))
    return h, LSTMState(h[:, -1].float(), c.transpose(0, 1))
