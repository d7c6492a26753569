"""The LSTM cell over time in plain torch, with an explicit backward: the truth that faster backends are held to.

Legend: B batch, T steps, N heads, D head width, P width of h (P = D without a projection); the four gates stand in
torch's order i, f, g, o.

Equations (Hochreiter and Schmidhuber 1997, with forget gates after Gers et al. 2000 and the recurrent projection of
Sak et al. 2014, per element; σ is the sigmoid):

    raw = gates + R h + b           recurrence within a head only
    c'  = σ(f) c + σ(i) tanh(g)
    m   = σ(o) tanh(c')
    h'  = W m with a projection W, else m

`keep` (0 or 1) may stand before h in raw: where a sample starts anew, h is kept from the gates, and a shut forget gate
does the same for c.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from xlstm_tune.kernels.library import Kernel, register
from xlstm_tune.kernels.slstm_reference import batch_first, batch_last


class LSTMState(NamedTuple):
    """What the cell carries from step to step: output h [B, N, P] and cell c [B, N, D]. Zero is empty."""

    h: Tensor
    c: Tensor


def lstm_step(
    gates: Tensor,
    recurrent: Tensor,
    bias: Tensor | None,
    projection: Tensor | None,
    state: LSTMState,
    keep: Tensor | None = None,
) -> LSTMState:
    """One step, written as the equations above.

    gates: [B, N, 4, D]. recurrent: [N, 4, D, P]. bias: [N, 4, D]. projection: [N, P, D]. keep: [B].
    """
    h, c = state
    if keep is not None:
        h = h * keep.view(-1, 1, 1)
    raw = gates + torch.einsum("bnp,ngdp->bngd", h, recurrent)
    if bias is not None:
        raw = raw + bias
    i, f, g, o = raw.unbind(2)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    m = torch.sigmoid(o) * torch.tanh(c)
    return LSTMState(m if projection is None else torch.einsum("bnd,npd->bnp", m, projection), c)


def lstm_steps(
    gates: Tensor,
    recurrent: Tensor,
    bias: Tensor | None = None,
    initial_state: LSTMState | None = None,
    *,
    projection: Tensor | None = None,
    keep: Tensor | None = None,
) -> tuple[Tensor, LSTMState]:
    """The cell over a whole sequence step by step under autograd: slow and readable, the ground truth of the tests.

    Arguments and results as in `lstm_reference`.
    """
    state = lstm_empty_state(gates, recurrent) if initial_state is None else initial_state
    outputs = []
    for t, step in enumerate(gates.unbind(1)):
        state = lstm_step(step, recurrent, bias, projection, state, None if keep is None else keep[:, t])
        outputs.append(state.h)
    return torch.stack(outputs, 1), state


def lstm_empty_state(gates: Tensor, recurrent: Tensor) -> LSTMState:
    """The state before the first step, for gates [B, T, N, 4, D] and recurrent weights [N, 4, D, P]."""
    batch, _, heads, _, width = gates.shape
    return LSTMState(gates.new_zeros(batch, heads, recurrent.shape[3]), gates.new_zeros(batch, heads, width))


# The loops follow those of `slstm_reference`: batch innermost, neighbouring planes in one call, memory allocated once
# for all steps, whatever no step needs from the step before outside the loop, weight gradients in one product a head.


def forward(
    gates: Tensor,
    recurrent: Tensor,
    bias: Tensor,
    projection: Tensor,
    h0: Tensor,
    c0: Tensor,
    keep: Tensor | None,
    train: bool,
) -> tuple[Tensor, ...]:
    """The loop over steps: gates [B, T, N, 4, D], recurrent [N, 4, D, P], bias [N, 4, D], all else batch last.

    projection: [N, P, D], or [N, 0, D] for none. h0: [N, P, B]. c0: [N, D, B].
    keep: [T, N, B], 0 where h does not reach the gates of a step, else 1; None = it always does.
    Returns h [T, N, P, B] and the last c, then for `backward`: planes [T, N, 4, D, B]: σ(i), σ(f), tanh(g), σ(o);
    cs [T + 1, N, D, B]: c from the initial state on; y [T, N, D, B]: tanh(c).
    Without `train` only the last step of what is not an output is held, and nothing of it returned.
    """
    batch, steps, heads, _, width = gates.shape
    planes = batch_last(gates) + bias.unsqueeze(-1)
    weight = recurrent.reshape(heads, 4 * width, -1)

    h = gates.new_empty(steps, heads, recurrent.shape[3], batch)
    cs = gates.new_empty(steps + 1 if train else 1, heads, width, batch)
    cs[0] = c0
    y = gates.new_empty(steps if train else 1, heads, width, batch)
    product = gates.new_empty(heads, width, batch)

    h_at = h.unbind(0)
    c_at = cs.unbind(0) if train else cs.unbind(0) * (steps + 1)
    y_at = y.unbind(0) * (1 if train else steps)
    flat_at = planes.view(steps, heads, 4 * width, batch).unbind(0)
    if_at = planes[:, :, :2].unbind(0)
    i_at, f_at, g_at, o_at = (plane.unbind(0) for plane in planes.unbind(2))

    for t in range(steps):
        before = h_at[t - 1] if t else h0
        flat_at[t].baddbmm_(weight, before if keep is None else before * keep[t].unsqueeze(1))
        if_at[t].sigmoid_()
        g_at[t].tanh_()
        o_at[t].sigmoid_()
        torch.mul(i_at[t], g_at[t], out=product)
        torch.addcmul(product, f_at[t], c_at[t], out=c_at[t + 1])
        torch.tanh(c_at[t + 1], out=y_at[t])
        if projection.shape[1]:
            torch.bmm(projection, torch.mul(o_at[t], y_at[t], out=product), out=h_at[t])
        else:
            torch.mul(o_at[t], y_at[t], out=h_at[t])
    saved = (planes, cs, y)
    return h, cs[-1].clone(), *(saved if train else (tensor[:0].clone() for tensor in saved))


def backward(
    recurrent: Tensor,
    projection: Tensor,
    h0: Tensor,
    keep: Tensor | None,
    h: Tensor,
    planes: Tensor,
    cs: Tensor,
    y: Tensor,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
) -> tuple[Tensor, ...]:
    """Gradients of (gates, recurrent, bias, projection, h0, c0), given those of h and of the last c (None: zero)."""
    steps, heads, _, width, batch = planes.shape
    i, f, g, o = planes.unbind(2)

    # Gate gradients are linear in the gradients of c and m of their step: the factors for all steps at once.
    by_c = planes.new_empty(steps, heads, 3, width, batch)
    i_g = i * g
    torch.addcmul(i_g, i_g, i, value=-1, out=by_c[:, :, 0])  # g i (1 - i)
    f_c = f * cs[:-1]
    torch.addcmul(f_c, f_c, f, value=-1, out=by_c[:, :, 1])  # c f (1 - f)
    torch.addcmul(i, i_g, g, value=-1, out=by_c[:, :, 2])  # i (1 - g²)
    m = torch.mul(o, y, out=i_g)
    by_m = torch.addcmul(m, m, o, value=-1, out=f_c)  # y o (1 - o)
    to_c = torch.addcmul(o, m, y, value=-1)  # o (1 - y²)

    grad_hs = torch.zeros_like(h) if grad_h is None else torch.empty_like(h)
    if grad_h is not None:  # as matrices, since torch is twice as fast at transposing one as at permuting many axes
        grad_hs.view(-1, batch).copy_(grad_h.flatten(0, 2))
    carry = torch.zeros_like(cs[0]) if grad_c is None else grad_c.clone()  # gradient of c from later steps
    dc, dm = torch.empty_like(carry), torch.empty_like(carry)
    dc_column = dc.unsqueeze(1)
    d_planes = torch.empty_like(planes)
    weight = recurrent.reshape(heads, 4 * width, -1).transpose(1, 2).contiguous()
    to_m = projection.transpose(1, 2).contiguous()

    dh_at = grad_hs.unbind(0)
    flat_at = d_planes.view(steps, heads, 4 * width, batch).unbind(0)
    d_ifg_at, d_o_at = d_planes[:, :, :3].unbind(0), d_planes[:, :, 3].unbind(0)
    by_c_at, by_m_at, to_c_at, f_at = (tensor.unbind(0) for tensor in (by_c, by_m, to_c, f))

    for t in range(steps - 1, -1, -1):
        if t < steps - 1:
            if keep is None:
                dh_at[t].baddbmm_(weight, flat_at[t + 1])
            else:
                dh_at[t].addcmul_(torch.bmm(weight, flat_at[t + 1]), keep[t + 1].unsqueeze(1))
        dm = torch.bmm(to_m, dh_at[t], out=dm) if projection.shape[1] else dh_at[t]
        torch.addcmul(carry, to_c_at[t], dm, out=dc)
        torch.mul(by_c_at[t], dc_column, out=d_ifg_at[t])
        torch.mul(by_m_at[t], dm, out=d_o_at[t])
        torch.mul(dc, f_at[t], out=carry)

    grad_h0 = torch.bmm(weight, flat_at[0])
    before = torch.cat([h0.unsqueeze(0), h[:-1]])
    if keep is not None:
        grad_h0 *= keep[0].unsqueeze(1)
        before *= keep.unsqueeze(2)
    by_head = _columns(d_planes.flatten(2, 3))
    grad_recurrent = torch.bmm(by_head, _columns(before).transpose(1, 2)).view_as(recurrent)
    grad_bias = by_head.sum(2).view(heads, 4, width)
    if projection.shape[1]:
        grad_projection = torch.bmm(_columns(grad_hs), _columns(m).transpose(1, 2))
    else:
        grad_projection = torch.empty_like(projection)
    return batch_first(d_planes), grad_recurrent, grad_bias, grad_projection, grad_h0, carry


def _columns(tensor: Tensor) -> Tensor:
    """[T, N, X, B] to [N, X, T · B], what a sum over all steps and samples runs along."""
    return tensor.permute(1, 2, 0, 3).flatten(2)


def forward_shapes(
    gates: Tensor,
    recurrent: Tensor,
    bias: Tensor,
    projection: Tensor,
    h0: Tensor,
    c0: Tensor,
    keep: Tensor | None,
    train: bool,
) -> tuple[Tensor, ...]:
    """Tensors like those that `forward` returns."""
    batch, steps, heads, _, width = gates.shape
    held = steps if train else 0
    return (
        gates.new_empty(steps, heads, recurrent.shape[3], batch),
        torch.empty_like(c0),
        gates.new_empty(held, heads, 4, width, batch),
        gates.new_empty(steps + 1 if train else 0, heads, width, batch),
        gates.new_empty(held, heads, width, batch),
    )


def backward_shapes(
    recurrent: Tensor,
    projection: Tensor,
    h0: Tensor,
    keep: Tensor | None,
    h: Tensor,
    planes: Tensor,
    cs: Tensor,
    y: Tensor,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
) -> tuple[Tensor, ...]:
    """Tensors like those that `backward` returns."""
    steps, heads, _, width, batch = planes.shape
    return (
        planes.new_empty(batch, steps, heads, 4, width),
        torch.empty_like(recurrent),
        recurrent.new_empty(recurrent.shape[:3]),
        torch.empty_like(projection),
        torch.empty_like(h0),
        torch.empty_like(cs[0]),
    )


_in_layout = register(
    Kernel(
        name="lstm_reference",
        inputs={"gates": 2, "recurrent": 0, "bias": 0, "projection": 0, "h0": 0, "c0": 0},
        constants={"keep": 1},
        outputs={"h": 1, "c": 0},
        saved={"planes": 1, "cs": 1, "y": 1},
        needs=("recurrent", "projection", "h0", "keep", "h"),
        forward=forward,
        backward=backward,
        forward_shapes=forward_shapes,
        backward_shapes=backward_shapes,
    )
)


def lstm_reference(
    gates: Tensor,
    recurrent: Tensor,
    bias: Tensor | None = None,
    initial_state: LSTMState | None = None,
    *,
    projection: Tensor | None = None,
    keep: Tensor | None = None,
) -> tuple[Tensor, LSTMState]:
    """The cell over a whole sequence.

    gates: [B, T, N, 4, D], the inputs' share of the gates. recurrent: [N, 4, D, P]. bias: [N, 4, D].
    projection: [N, P, D] or None. keep: [B, T], 0 where h does not reach the gates of a step, else 1; None = it always
    does.
    Returns h over time [B, T, N, P] and the final state. Every input is differentiable, the initial state included.
    """
    state = lstm_empty_state(gates, recurrent) if initial_state is None else initial_state
    heads, _, width, _ = recurrent.shape
    if bias is None:
        bias = gates.new_zeros(heads, 4, width)
    if projection is None:
        projection = gates.new_empty(heads, 0, width)
    if keep is not None:
        keep = keep.t().unsqueeze(1).expand(-1, heads, -1).contiguous()
    weights = (one.contiguous() for one in (recurrent, bias, projection))
    h, c = _in_layout(gates.contiguous(), *weights, *(batch_last(one) for one in state), keep)
    h = batch_first(h)
    return h, LSTMState(h[:, -1], batch_first(c))
