"""The sLSTM cell on a GPU: one kernel for many steps where a head's recurrent weights fit on chip, else two a step.

Legend as in `slstm_reference`, whose equations these are; S steps of a piece, which is all T or some of them (see
`gated_triton`). A program of the kernels for many steps has one head and 4 to 16 samples; its four recurrent matrices
and its states stay on chip from the first step to the last. Wider heads take a matrix product and a fused kernel of
everything else at each step. Products have the inputs' dtype and are summed in float32, states are float32. The
gradient of the recurrent weights is one product over all steps after the loop.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xlstm_tune.kernels import slstm_steps_triton as kernels
from xlstm_tune.kernels.gated_triton import Cell, recomputes, recomputing, storing
from xlstm_tune.kernels.parts_triton import STEP_UNITS, exact, launch_for, programs, state_by_head, step_programs
from xlstm_tune.kernels.recurrence import heads_first, keep_by_head
from xlstm_tune.kernels.slstm_reference import SLSTMState

State = list[Tensor]
"""h, c, n and m [N, B, D]."""
Stored = tuple[Tensor, Tensor]
"""i', f', tanh(z), σ(o) and σ(-f) [N, B, S, 5, D]; n and c [N, B, S + 1, 2, D] from the state before the piece on."""


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
    and ends [N, B, D], the last c, n, m, in float32.
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
    before, *cell = state
    if stored is not None:
        stored[1][:, :, 0, 0], stored[1][:, :, 0, 1] = state[2], state[1]
    for t in piece:
        if keep is not None:
            before = before * keep[:, :, t, None]
        product = torch.bmm(before.to(weight.dtype), weight)
        kernels.step[step_programs(heads * batch, width)](
            gates[:, :, piece.start :], product, bias, *cell, h[:, piece.start :], *ends, *(stored or ends[:2]),
            batch, steps, len(piece), heads, width, t - piece.start,
            WRITE=write, TRAIN=stored is not None, BLOCK=STEP_UNITS,
        )  # fmt: skip
        before, cell = h[:, t].transpose(0, 1), ends


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
    """The way back of `walk`: as `gated_triton.Cell` says. Between pieces the gradient of m is what
    `slstm_steps_triton.backward` carries from step to step instead."""
    heads, batch, steps, _, width = d_gates.shape
    cut = launch_for(recurrent, heads, batch)
    if cut is None:
        return _walk_back_by_step(recurrent, keep, grad_h, gradients, stabilised, d_gates, stored, piece)
    found = [torch.empty_like(one) for one in gradients]
    kept, of_h = gradients[0] if keep is None else keep[:, :, piece.start :], d_gates
    if grad_h is not None:
        of_h = grad_h[:, piece.start :]
    kernels.backward[(heads * programs(batch, cut),)](
        recurrent, kept, *stored, of_h, *gradients, d_gates[:, :, piece.start :], *found,
        batch, steps, len(piece), heads, width, int(piece.start == 0), int(piece.stop == steps),
        KEEP=keep is not None, SEEN=grad_h is not None, STABILISED=stabilised,
        PRECISION=exact(recurrent), **cut.options(width),
    )  # fmt: skip
    return found


def _walk_back_by_step(
    recurrent: Tensor,
    keep: Tensor | None,
    grad_h: Tensor | None,
    gradients: State,
    stabilised: bool,
    d_gates: Tensor,
    stored: Stored,
    piece: range,
) -> State:
    """`walk_back` by a kernel and a product a step."""
    heads, batch, steps, _, width = d_gates.shape
    through, *rest = gradients
    d_c, d_n, d_m = (grad.clone() for grad in rest)
    if stabilised and piece.stop == steps:
        n, c = stored[1][:, :, -1].unbind(2)
        d_m -= n * d_n + c * d_c
    weight = recurrent.flatten(1, 2)  # [N, 4 D, D in]
    of_h = d_gates if grad_h is None else grad_h[:, piece.start :]
    for t in reversed(piece):
        kernels.step_back[step_programs(heads * batch, width)](
            through, *stored, of_h, d_c, d_n, d_m, d_gates[:, :, piece.start :],
            batch, steps, len(piece), heads, width, t - piece.start,
            SEEN=grad_h is not None, STABILISED=stabilised, BLOCK=STEP_UNITS,
        )  # fmt: skip
        through = torch.bmm(d_gates[:, :, t].flatten(2), weight)
        if keep is not None:
            through = through * keep[:, :, t, None]
    if piece.start == 0:
        n, c = stored[1][:, :, 0].unbind(2)
        d_m += n * d_n + c * d_c
    return [through.float(), d_c, d_n, d_m]


CELL = Cell("slstm", ("c", "n", "m"), gates=5, cells=2, walk=walk, walk_back=walk_back)
_storing, _recomputing = storing(CELL), recomputing(CELL)


def slstm_triton(
    gates: Tensor,
    recurrent: Tensor,
    bias: Tensor | None = None,
    initial_state: SLSTMState | None = None,
    keep: Tensor | None = None,
) -> tuple[Tensor, SLSTMState]:
    """`slstm_reference` for float32, bfloat16 and float16 on a GPU: the same arguments and results, h in the gates'
    dtype, states in float32. Gates that lie head first in memory, as [N, B, T, 4, D], are taken in without a copy.
    """
    state = state_by_head(initial_state, 4, gates)
    run = _recomputing if recomputes(CELL, gates, recurrent) else _storing
    h, *cell = run(*heads_first(gates, recurrent, bias), *state, keep_by_head(keep, gates.shape[2]))
    return h, SLSTMState(h[:, -1].float(), *(one.transpose(0, 1) for one in cell))
