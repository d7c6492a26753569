"""The mLSTM cell as its equations read, under autograd: step by step, and all pairs of steps at once. Slow, the truth.

Legend: B batch, T steps, N heads, D head width (of k; that of v may differ); i and f are the gates before their
exponential and sigmoid.

Equations (Beck et al. 2024, "xLSTM: Extended Long Short-Term Memory", section 2.3 and appendix A; ε = 1e-6):

    l  = logsigmoid(f) + m                                  log weight of the past, m being the stabiliser
    m' = max(i, l),  i' = exp(i - m'),  f' = exp(l - m')
    C' = f' C + i' (k/√D) vᵀ,  n' = f' n + i' k/√D
    h' = C'ᵀ q / (max(|n' · q|, exp(-m')) + ε)

The empty state is C = 0, n = 0, m = -inf: a past that weighs nothing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-6


class MLSTMState(NamedTuple):
    """What the cell carries from step to step: C [B, N, D of k, D of v], n [B, N, D of k], stabiliser m [B, N]."""

    c: Tensor
    n: Tensor
    m: Tensor


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
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    initial_state: MLSTMState | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, MLSTMState]:
    """The cell over a sequence step by step: q, k, v [B, T, N, D]; i, f [B, T, N]; resets [B, T], True before a step at
    which the sample starts anew. Returns h over time [B, T, N, D of v] and the final state."""
    empty = mlstm_empty_state(q, v)
    state = empty if initial_state is None else initial_state
    outputs = []
    for step in range(q.shape[1]):
        if resets is not None:
            anew = resets[:, step, None]
            state = MLSTMState(
                torch.where(anew[..., None, None], empty.c, state.c),
                torch.where(anew[..., None], empty.n, state.n),
                torch.where(anew, empty.m, state.m),
            )
        h, state = mlstm_step(q[:, step], k[:, step], v[:, step], i[:, step], f[:, step], state)
        outputs.append(h)
    return torch.stack(outputs, 1), state


def mlstm_parallel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    initial_state: MLSTMState | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, MLSTMState]:
    """As `mlstm_recurrent`, over all pairs of steps s ≤ t at once: no loop, memory quadratic in T.

    With F the running sum of logsigmoid(f), step s weighs exp(F_t - F_s + i_s - m_t) in step t, m_t being the largest
    exponent of row t; the initial state weighs exp(F_t + m_0 - m_t). Neither weighs anything across a reset.
    """
    state = mlstm_empty_state(q, v) if initial_state is None else initial_state
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))  # [B, N, T, D]
    i, f = (tensor.transpose(1, 2) for tensor in (i, f))  # [B, N, T]
    steps = q.shape[2]
    k = k / math.sqrt(k.shape[-1])
    starts = torch.zeros_like(i[:, 0], dtype=torch.int64) if resets is None else resets.cumsum(1)
    decay = F.logsigmoid(f).cumsum(-1)

    counts = torch.ones(steps, steps, dtype=torch.bool, device=q.device).tril() & (
        starts[:, None, :, None] == starts[:, None, None, :]
    )
    log_weight = (decay[..., :, None] - decay[..., None, :] + i[..., None, :]).masked_fill(~counts, -math.inf)
    log_past = (decay + state.m[..., None]).masked_fill(starts[:, None] > 0, -math.inf)
    m = torch.maximum(log_weight.amax(-1), log_past)
    weight = torch.exp(log_weight - m[..., None])  # [B, N, T, T]
    past = torch.exp(log_past - m)[..., None]  # [B, N, T, 1]

    scores = (q @ k.transpose(-1, -2)) * weight
    total = scores.sum(-1) + (past * (q @ state.n[..., None])).squeeze(-1)
    h = (scores @ v + past * (q @ state.c)) / _denominator(total, m)
    weighted = k * weight[..., -1, :, None]
    c = past[..., -1:, :] * state.c + weighted.transpose(-1, -2) @ v
    n = past[..., -1, :] * state.n + weighted.sum(-2)
    return h.transpose(1, 2), MLSTMState(c, n, m[..., -1])


def mlstm_empty_state(q: Tensor, v: Tensor) -> MLSTMState:
    """The state before the first step, for q and v of shape [B, T, N, D]."""
    batch, _, heads, width = q.shape
    return MLSTMState(
        q.new_zeros(batch, heads, width, v.shape[-1]),
        q.new_zeros(batch, heads, width),
        q.new_full((batch, heads), -math.inf),
    )


def largest_floor(dtype: torch.dtype) -> float:
    """Where the exponent of the denominator's floor exp(-m) is cut, safely below the dtype's largest number."""
    return 0.9 * math.log(torch.finfo(dtype).max)


def _denominator(total: Tensor, m: Tensor) -> Tensor:
    """max(|n · q|, exp(-m)) + ε, with a last axis of one."""
    floor = (-m).clamp(max=largest_floor(m.dtype)).exp()
    return (torch.maximum(total.abs(), floor) + EPSILON)[..., None]
