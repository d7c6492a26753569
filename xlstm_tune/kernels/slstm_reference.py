"""The sLSTM cell over time in plain torch, with an explicit backward: the truth that faster backends are held to.

Legend: B batch, T steps, N heads, D head width; the four gates stand in the order i, f, z, o.

Equations (Beck et al. 2024, "xLSTM: Extended Long Short-Term Memory", section 2.2 and appendix A, per element):

    raw = gates + R h + b           recurrence within a head only
    l   = logsigmoid(f) + m         log weight of the past, m being the stabiliser
    m'  = max(i, l)                 and m' = i where n = 0, that is, where nothing has been seen yet
    i'  = exp(i - m'),  f' = exp(l - m')
    c'  = f' c + i' tanh(z),  n' = f' n + i',  h' = sigmoid(o) c' / n'

After a step n is never 0 again (i' or f' is 1, and n' >= min(1, n)), so the rule for n = 0 concerns first steps alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from xlstm_tune.kernels.library import Kernel, register


class SLSTMState(NamedTuple):
    """What the cell carries from step to step, each [B, N, D]: output h, cell c, normaliser n, stabiliser m.

    A zero state is empty: a sample of a batch is started afresh by setting its rows to zero.
    """

    h: Tensor
    c: Tensor
    n: Tensor
    m: Tensor


def slstm_step(gates: Tensor, recurrent: Tensor, bias: Tensor | None, state: SLSTMState) -> SLSTMState:
    """One step, written as the equations above: gates [B, N, 4, D], recurrent [N, 4, D out, D in], bias [N, 4, D]."""
    h, c, n, m = state
    raw = gates + torch.einsum("bni,ngoi->bngo", h, recurrent)
    if bias is not None:
        raw = raw + bias
    i, f, z, o = raw.unbind(2)
    past = F.logsigmoid(f) + m
    m_new = torch.where(n == 0, i, torch.maximum(i, past))
    i_weight = torch.exp(i - m_new)
    f_weight = torch.exp((past - m_new).clamp(max=_first_step_limit(raw.dtype)))
    c_new = f_weight * c + i_weight * torch.tanh(z)
    n_new = f_weight * n + i_weight
    return SLSTMState(torch.sigmoid(o) * c_new / n_new, c_new, n_new, m_new)


def slstm_steps(
    gates: Tensor, recurrent: Tensor, bias: Tensor | None = None, initial_state: SLSTMState | None = None
) -> tuple[Tensor, SLSTMState]:
    """`slstm_reference` step by step under autograd: slow and readable, the ground truth of its tests."""
    state = slstm_empty_state(gates) if initial_state is None else initial_state
    outputs = []
    for step in gates.unbind(1):
        state = slstm_step(step, recurrent, bias, state)
        outputs.append(state.h)
    return torch.stack(outputs, 1), state


def slstm_empty_state(gates: Tensor) -> SLSTMState:
    """The state before the first step, for gates of shape [B, T, N, 4, D]."""
    zeros = gates.new_zeros(gates.shape[0], gates.shape[2], gates.shape[4])
    return SLSTMState(zeros, zeros, zeros, zeros)


def _first_step_limit(dtype: torch.dtype) -> float:
    """Bound on log f' where n = 0: there f' multiplies zeros, and an overflow would make them NaN."""
    return 0.5 * math.log(torch.finfo(dtype).max)


# The loops are bound by the cost of starting an op, not by arithmetic. Hence: the batch is the innermost axis, so that
# a gate's plane [D, B] is contiguous for each head; planes that get the same treatment are neighbours and get it in
# one call; everything is written into memory allocated once for all steps; and what no step needs from the step
# before is computed for all steps at once, outside the loop.


def forward(
    gates: Tensor,
    recurrent: Tensor,
    bias: Tensor,
    h0: Tensor,
    c0: Tensor,
    n0: Tensor,
    m0: Tensor,
    keep: Tensor | None,
    train: bool,
) -> tuple[Tensor, ...]:
    """The loop over steps, batch last: gates [T, N, 4, D, B], recurrent [N, 4, D, D], bias [N, 4, D], states [N, D, B].

    keep [T, N, B] is 0 where h does not reach the gates of a step, else 1; None = it always does.
    Returns h [T, N, D, B] and the last c, n, m, then for `backward`:
    planes [T, N, 4, D, B]: i', f', i' tanh(z), sigmoid(o); z: tanh(z), log_f: logsigmoid(f), y: c / n, each
    [T, N, D, B]; cn [T + 1, N, 2, D, B]: n and c, from the initial state on.
    Without `train` only the last step of what is not an output is held, and nothing of it returned.
    """
    steps, heads, _, width, batch = gates.shape
    planes = gates + bias.unsqueeze(-1)
    flat = planes.view(steps, heads, 4 * width, batch)
    weight = recurrent.reshape(heads, 4 * width, width)

    h = gates.new_empty(steps, heads, width, batch)
    held = steps if train else 1
    z, log_f, y = (gates.new_empty(held, heads, width, batch) for _ in range(3))
    cn = gates.new_empty(steps + 1 if train else 1, heads, 2, width, batch)
    cn[0, :, 0] = n0
    cn[0, :, 1] = c0
    m = m0.clone(memory_format=torch.contiguous_format)
    m_column = m.unsqueeze(1)

    h_at = h.unbind(0)
    cn_at = cn.unbind(0) if train else cn.unbind(0) * (steps + 1)
    n_at, c_at = (plane.unbind(0) * (1 if train else steps + 1) for plane in cn.unbind(2))
    z_at, log_f_at, y_at = (tensor.unbind(0) * (1 if train else steps) for tensor in (z, log_f, y))
    i_at, f_at, iz_at, o_at = (plane.unbind(0) for plane in planes.unbind(2))
    if_at = planes[:, :, :2].unbind(0)
    weights_at = planes[:, :, ::2].unbind(0)  # i' and i' tanh(z): what is added to n and c
    f_column_at = planes[:, :, 1:2].unbind(0)
    flat_at = flat.unbind(0)
    # The rule for n = 0 is decided before the loop, since only the first step can need it.
    fresh = n0 == 0

    for t in range(steps):
        before = h_at[t - 1] if t else h0
        flat_at[t].baddbmm_(weight, before if keep is None else before * keep[t].unsqueeze(1))
        torch.ops.aten.log_sigmoid.out(f_at[t], out=log_f_at[t])
        torch.add(log_f_at[t], m, out=f_at[t])
        torch.maximum(i_at[t], f_at[t], out=m)
        if t == 0:
            torch.where(fresh, i_at[t], m, out=m)
        if_at[t].sub_(m_column)
        if t == 0:
            f_at[t].clamp_(max=_first_step_limit(gates.dtype))
        if_at[t].exp_()
        torch.tanh(iz_at[t], out=z_at[t])
        torch.mul(i_at[t], z_at[t], out=iz_at[t])
        o_at[t].sigmoid_()
        torch.addcmul(weights_at[t], f_column_at[t], cn_at[t], out=cn_at[t + 1])
        torch.div(c_at[t + 1], n_at[t + 1], out=y_at[t])
        torch.mul(o_at[t], y_at[t], out=h_at[t])
    n, c = (plane.clone() for plane in cn[-1].unbind(1))
    saved = (planes, z, log_f, cn, y)
    return h, c, n, m, *(saved if train else (tensor[:0].clone() for tensor in saved))


def backward(
    recurrent: Tensor,
    h0: Tensor,
    keep: Tensor | None,
    h: Tensor,
    planes: Tensor,
    z: Tensor,
    log_f: Tensor,
    cn: Tensor,
    y: Tensor,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    grad_n: Tensor | None,
    grad_m: Tensor | None,
) -> tuple[Tensor, ...]:
    """Gradients of (gates, recurrent, bias, h0, c0, n0, m0), exact for any combination of output gradients.

    The stabiliser's path: let g be the gradient of m' through all that follows. Later outputs h depend on c, n and m
    only through c exp(m) and n exp(m), which m' does not change, so they add nothing to g; what remains comes from the
    final state: g = grad_m - c grad_c - n grad_n at the last step, passed back through m' = max(i, l) to i or to l.
    """
    steps, heads, _, width, batch = planes.shape
    i_weight, f_weight, i_z, o = planes.unbind(2)
    n, c = cn.unbind(2)
    f_slope = torch.expm1(log_f).neg_()  # d logsigmoid(f) / df = sigmoid(-f), without cancellation near 0
    through_f = f_weight * f_slope

    # Gate gradients are linear in (dc, dn, dh) of their step: the factors for all steps at once.
    by_c = planes.new_empty(steps, heads, 3, width, batch)
    by_c[:, :, 0] = i_z
    torch.mul(through_f, c[:-1], out=by_c[:, :, 1])
    torch.addcmul(i_weight, i_z, z, value=-1, out=by_c[:, :, 2])  # i' (1 - tanh²)
    by_n = planes.new_empty(steps, heads, 2, width, batch)
    by_n[:, :, 0] = i_weight
    torch.mul(through_f, n[:-1], out=by_n[:, :, 1])
    o_y = o * y
    by_h = torch.addcmul(o_y, o_y, o, value=-1)  # y o (1 - o)
    to_nc = planes.new_empty(steps, heads, 2, width, batch)
    torch.div(o, n[1:], out=to_nc[:, :, 1])
    torch.mul(to_nc[:, :, 1], y, out=to_nc[:, :, 0]).neg_()

    carry = planes.new_zeros(heads, 2, width, batch)  # gradients of n and c that come from later steps
    if grad_n is not None:
        carry[:, 0] = grad_n
    if grad_c is not None:
        carry[:, 1] = grad_c
    stabiliser = None
    if not (grad_c is None and grad_n is None and grad_m is None):
        stabiliser = -(cn[-1] * carry).sum(1)
        if grad_m is not None:
            stabiliser += grad_m
        # i' = 1 where i was the maximum, or n was 0 at the first step; else f' = 1.
        past_wins = f_weight > i_weight
        past_wins[0] &= n[0] != 0

    grad_hs = torch.zeros_like(h) if grad_h is None else grad_h.clone(memory_format=torch.contiguous_format)
    d_planes = torch.empty_like(planes)
    weight = recurrent.reshape(heads, 4 * width, width).transpose(1, 2).contiguous()
    nc = torch.empty_like(carry)
    dn, dc_column = nc[:, :1], nc[:, 1:]

    dh_at = grad_hs.unbind(0)
    dh_column_at = grad_hs.unsqueeze(2).unbind(0)
    flat_at = d_planes.view(steps, heads, 4 * width, batch).unbind(0)
    d_ifz_at, d_if_at = d_planes[:, :, :3].unbind(0), d_planes[:, :, :2].unbind(0)
    d_i_at, d_f_at, _, d_o_at = (plane.unbind(0) for plane in d_planes.unbind(2))
    by_c_at, by_n_at, by_h_at, to_nc_at = (tensor.unbind(0) for tensor in (by_c, by_n, by_h, to_nc))
    f_column_at = planes[:, :, 1:2].unbind(0)

    def through_recurrence(t: int) -> Tensor:
        """Gradient of the h before step t, as far as it comes from that step's gates."""
        found = torch.bmm(weight, flat_at[t])
        return found if keep is None else found * keep[t].unsqueeze(1)

    for t in range(steps - 1, -1, -1):
        if t < steps - 1:
            dh_at[t].add_(through_recurrence(t + 1))
        torch.addcmul(carry, to_nc_at[t], dh_column_at[t], out=nc)
        torch.mul(by_c_at[t], dc_column, out=d_ifz_at[t])
        d_if_at[t].addcmul_(by_n_at[t], dn)
        torch.mul(by_h_at[t], dh_at[t], out=d_o_at[t])
        torch.mul(nc, f_column_at[t], out=carry)
        if stabiliser is not None:
            to_past = stabiliser * past_wins[t]
            d_i_at[t].add_(stabiliser - to_past)
            d_f_at[t].addcmul_(to_past, f_slope[t])
            stabiliser = to_past

    grad_h0 = through_recurrence(0)
    grad_m0 = (cn[0] * carry).sum(1)
    if stabiliser is not None:
        grad_m0 += stabiliser
    by_head = d_planes.permute(1, 2, 3, 0, 4).reshape(heads, 4 * width, steps * batch)
    before = torch.cat([h0.unsqueeze(0), h[:-1]])
    if keep is not None:
        before *= keep.unsqueeze(2)
    before = before.permute(1, 2, 0, 3).reshape(heads, width, steps * batch)
    grad_recurrent = torch.bmm(by_head, before.transpose(1, 2)).view_as(recurrent)
    grad_bias = by_head.sum(2).view(heads, 4, width)
    return d_planes, grad_recurrent, grad_bias, grad_h0, carry[:, 1].clone(), carry[:, 0].clone(), grad_m0


def forward_shapes(
    gates: Tensor,
    recurrent: Tensor,
    bias: Tensor,
    h0: Tensor,
    c0: Tensor,
    n0: Tensor,
    m0: Tensor,
    keep: Tensor | None,
    train: bool,
) -> tuple[Tensor, ...]:
    """Tensors like those that `forward` returns."""
    steps, heads, _, width, batch = gates.shape
    held = steps if train else 0
    states = [gates.new_empty(heads, width, batch) for _ in range(3)]
    z, log_f, y = (gates.new_empty(held, heads, width, batch) for _ in range(3))
    planes = gates.new_empty(held, heads, 4, width, batch)
    cn = gates.new_empty(steps + 1 if train else 0, heads, 2, width, batch)
    return gates.new_empty(steps, heads, width, batch), *states, planes, z, log_f, cn, y


def backward_shapes(
    recurrent: Tensor,
    h0: Tensor,
    keep: Tensor | None,
    h: Tensor,
    planes: Tensor,
    z: Tensor,
    log_f: Tensor,
    cn: Tensor,
    y: Tensor,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    grad_n: Tensor | None,
    grad_m: Tensor | None,
) -> tuple[Tensor, ...]:
    """Tensors like those that `backward` returns."""
    states = [torch.empty_like(h0) for _ in range(4)]
    return torch.empty_like(planes), torch.empty_like(recurrent), recurrent.new_empty(recurrent.shape[:3]), *states


_in_layout = register(
    Kernel(
        name="slstm_reference",
        inputs={"gates": 1, "recurrent": 0, "bias": 0, "h0": 0, "c0": 0, "n0": 0, "m0": 0},
        constants={"keep": 1},
        outputs={"h": 1, "c": 0, "n": 0, "m": 0},
        saved={"planes": 1, "z": 1, "log_f": 1, "cn": 1, "y": 1},
        needs=("recurrent", "h0", "keep", "h"),
        forward=forward,
        backward=backward,
        forward_shapes=forward_shapes,
        backward_shapes=backward_shapes,
    )
)


def slstm_reference(
    gates: Tensor,
    recurrent: Tensor,
    bias: Tensor | None = None,
    initial_state: SLSTMState | None = None,
    keep: Tensor | None = None,
) -> tuple[Tensor, SLSTMState]:
    """The cell over a whole sequence.

    gates: [B, T, N, 4, D], the inputs' share of the gates. recurrent: [N, 4, D out, D in]. bias: [N, 4, D].
    keep: [B, T], 0 where h does not reach the gates of a step, else 1; None = it always does.
    Returns h over time [B, T, N, D] and the final state. Every input is differentiable, the initial state included.
    """
    state = slstm_empty_state(gates) if initial_state is None else initial_state
    if bias is None:
        bias = gates.new_zeros(recurrent.shape[:3])
    heads = gates.shape[2]
    if keep is not None:
        keep = keep.t().unsqueeze(1).expand(-1, heads, -1).contiguous()
    h, *cell = _in_layout(
        batch_last(gates), recurrent.contiguous(), bias.contiguous(), *(batch_last(one) for one in state), keep
    )
    h = batch_first(h)
    return h, SLSTMState(h[:, -1], *(batch_first(one) for one in cell))


def batch_last(tensor: Tensor) -> Tensor:
    """[B, ...] to [..., B], contiguous; free where that is how it lies in memory."""
    if tensor.stride(0) == 1 and tensor.movedim(0, -1).is_contiguous():
        return tensor.movedim(0, -1)
    # torch is twice as fast at transposing a matrix as at permuting many axes.
    return tensor.flatten(1).t().contiguous().view(*tensor.shape[1:], -1)


def batch_first(tensor: Tensor) -> Tensor:
    """[..., B] to [B, ...], contiguous."""
    return tensor.flatten(0, -2).t().contiguous().view(-1, *tensor.shape[:-1])
