"""The mLSTM cell in plain torch in three forms that agree: step by step, all pairs of steps at once, and by chunks.

Legend: B batch, T steps, N heads, D head width; i and f are the gates before their exponential and sigmoid.

Equations (Beck et al. 2024, "xLSTM: Extended Long Short-Term Memory", section 2.3 and appendix A; ε = 1e-6):

    l  = logsigmoid(f) + m                                  log weight of the past, m being the stabiliser
    m' = max(i, l),  i' = exp(i - m'),  f' = exp(l - m')
    C' = f' C + i' (k/√D) vᵀ,  n' = f' n + i' k/√D
    h' = C'ᵀ q / (max(|n' · q|, exp(-m')) + ε)

Over all pairs of steps s ≤ t, with F the running sum of logsigmoid(f), the weight of step s in step t is
exp(F_t - F_s + i_s - m_t). With a_s = i_s - F_s and M_t = max(m_0, max_{s≤t} a_s), m_t = F_t + M_t and the weight is
exp(a_s - M_t): the maximum over a row of pairs is a running maximum over steps.

The empty state is C = 0, n = 0, m = -inf: a past that weighs nothing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-6
LONGEST_PARALLEL = 256
"""Steps up to which all pairs at once are faster than chunks, and their memory (T² a head) is no matter."""
CHUNK = 64


class MLSTMState(NamedTuple):
    """What the cell carries from step to step: C [B, N, D of k, D of v], n [B, N, D of k], stabiliser m [B, N]."""

    c: Tensor
    n: Tensor
    m: Tensor


def mlstm_reference(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, initial_state: MLSTMState | None = None
) -> tuple[Tensor, MLSTMState]:
    """The cell over a whole sequence, in the form that suits its length.

    q, k, v: [B, T, N, D]. i, f: [B, T, N]. Returns h over time [B, T, N, D] and the final state. Every input is
    differentiable, the initial state included; the gradient passes through the normaliser.
    """
    if q.shape[1] <= LONGEST_PARALLEL:
        return mlstm_parallel(q, k, v, i, f, initial_state)
    return mlstm_chunkwise(q, k, v, i, f, initial_state)


def mlstm_step(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: MLSTMState) -> tuple[Tensor, MLSTMState]:
    """One step, written as the equations above: q, k, v [B, N, D]; i, f [B, N]."""
    past = F.logsigmoid(f) + state.m
    m = torch.maximum(i, past)
    i_weight = torch.exp(i - m)[..., None]
    f_weight = torch.exp(past - m)[..., None]
    k = k / math.sqrt(k.shape[-1])
    c = f_weight[..., None] * state.c + i_weight[..., None] * k[..., :, None] * v[..., None, :]
    n = f_weight * state.n + i_weight * k
    numerator = (c * q[..., :, None]).sum(-2)
    return numerator / _denominator((n * q).sum(-1), m), MLSTMState(c, n, m)


def mlstm_recurrent(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, initial_state: MLSTMState | None = None
) -> tuple[Tensor, MLSTMState]:
    """`mlstm_reference` step by step: slow and readable, the ground truth of the other forms."""
    state = mlstm_empty_state(q, v) if initial_state is None else initial_state
    outputs = []
    for q_t, k_t, v_t, i_t, f_t in zip(*(tensor.unbind(1) for tensor in (q, k, v, i, f)), strict=True):
        h, state = mlstm_step(q_t, k_t, v_t, i_t, f_t, state)
        outputs.append(h)
    return torch.stack(outputs, 1), state


def mlstm_parallel(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, initial_state: MLSTMState | None = None
) -> tuple[Tensor, MLSTMState]:
    """`mlstm_reference` over all pairs of steps at once: no loop, memory quadratic in T."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))  # [B, N, T, D]
    i, f = (tensor.transpose(1, 2) for tensor in (i, f))  # [B, N, T]
    steps = q.shape[2]
    k = k / math.sqrt(k.shape[-1])
    decay = F.logsigmoid(f).cumsum(-1)
    a = i - decay
    running = a.cummax(-1).values
    if initial_state is not None:
        running = torch.maximum(running, initial_state.m[..., None])

    future = torch.ones(steps, steps, dtype=torch.bool, device=q.device).triu(1)
    log_weight = (a[..., None, :] - running[..., :, None]).masked_fill(future, -math.inf)
    scores = (q @ k.transpose(-1, -2)) * log_weight.exp()  # [B, N, T, T]
    numerator = scores @ v
    total = scores.sum(-1)
    last_weight = torch.exp(a - running[..., -1:])[..., None]
    c = (k * last_weight).transpose(-1, -2) @ v
    n = (k * last_weight).sum(-2)
    if initial_state is not None:
        past_weight = torch.exp(initial_state.m[..., None] - running)[..., None]  # [B, N, T, 1]
        numerator = numerator + past_weight * (q @ initial_state.c)
        total = total + (past_weight * (q @ initial_state.n[..., None])).squeeze(-1)
        c = c + past_weight[..., -1:, :] * initial_state.c
        n = n + past_weight[..., -1, :] * initial_state.n
    m = decay + running
    h = numerator / _denominator(total, m)
    return h.transpose(1, 2), MLSTMState(c, n, m[..., -1])


def mlstm_chunkwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    initial_state: MLSTMState | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, MLSTMState]:
    """`mlstm_reference` by chunks of `chunk` steps, the last one shorter if need be: memory linear in T."""
    state = initial_state
    outputs = []
    for start in range(0, q.shape[1], chunk):
        piece = slice(start, start + chunk)
        h, state = mlstm_parallel(q[:, piece], k[:, piece], v[:, piece], i[:, piece], f[:, piece], state)
        outputs.append(h)
    assert state is not None
    return torch.cat(outputs, 1), state


def mlstm_empty_state(q: Tensor, v: Tensor) -> MLSTMState:
    """The state before the first step, for q and v of shape [B, T, N, D]."""
    batch, _, heads, width = q.shape
    return MLSTMState(
        q.new_zeros(batch, heads, width, v.shape[-1]),
        q.new_zeros(batch, heads, width),
        q.new_full((batch, heads), -math.inf),
    )


def _denominator(total: Tensor, m: Tensor) -> Tensor:
    """max(|n · q|, exp(-m)) + ε, with a last axis of one, exp(-m) held below the dtype's largest number."""
    limit = 0.9 * math.log(torch.finfo(m.dtype).max)
    return (torch.maximum(total.abs(), (-m).clamp(max=limit).exp()) + EPSILON)[..., None]
