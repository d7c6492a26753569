"""The mLSTM cell by chunks of steps, in plain torch, with an explicit backward: the truth for faster backends.

Legend: B batch, T steps, N heads, D head width of q and k, V of v; G chunks of L steps. Equations in `mlstm_forms`.

Within a chunk let F_t be the running sum of logsigmoid(f), a_s = i_s - F_s, and M_t = max(m_g, max_{s≤t} a_s) with m_g
the stabiliser before the chunk. Then m_t = F_t + M_t, and

    W_ts = exp(a_s - M_t) / √D for s ≤ t, else 0,   S = (q kᵀ) · W,   p_t = exp(m_g - M_t)
    [numerator, total] = S [v, 1] + p q [C, n],     h = numerator / (max(|total|, exp(-m_t)) + ε)
    [C, n] after the chunk = p_L [C, n] + Σ_s W_Ls k_s [v_s, 1]

n is treated as the column of C that belongs to a v of 1. Sums over gates are in float64, since weights are exponentials
of differences between them. Saved for the backward pass: the states before each chunk, and total and denominator;
recomputed: W and S, which cost one product of nine.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from xlstm_tune.kernels.library import Kernel, register
from xlstm_tune.kernels.mlstm_forms import EPSILON, MLSTMState, largest_floor, mlstm_empty_state


class _Gates(NamedTuple):
    """What the gates say of a chunk, each [G, B, N, L] in float64."""

    decay: Tensor
    """F."""
    a: Tensor
    """Logarithm of the weight of a step's own input, less F; -inf behind the last step."""
    running: Tensor
    """M."""
    past: Tensor
    """Logarithm of p: of the weight of the state before the chunk."""


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    c0: Tensor,
    n0: Tensor,
    m0: Tensor,
    keep: bool,
    chunk: int,
    warm: bool,
) -> tuple[Tensor, ...]:
    """The cell over a whole sequence, and what `backward` needs beside inputs and outputs.

    q, k [B, T, N, D], v [B, T, N, V], i, f [B, T, N], state c0 [B, N, D, V], n0 [B, N, D], m0 [B, N].
    warm = False: the initial state is the empty one and is not read. keep = False: the saved tensors stay empty.
    Returns h [B, T, N, V]; c, n, m after the last step; the states [G, B, N, D, V + 1] before each chunk; total and
    denominator of h [G, 2, B, N, L].
    """
    gates = _gates(i, f, m0, chunk, q.dtype)
    queries, keys, values = _inputs(q, k, v, chunk)
    weights, past = _weights(gates, q), gates.past.exp().to(q.dtype)
    count, first = len(values), 0 if warm else 1

    states = values.new_empty(count, *values.shape[1:3], q.shape[-1], values.shape[-1])
    if warm:
        states[0, ..., :-1], states[0, ..., -1] = c0, n0
    else:
        states[0] = 0.0
    added = _bmm((keys * weights[..., -1, :, None]).mT, values)
    for at in range(count):
        after = states[at + 1] if at + 1 < count else added[at]
        torch.addcmul(added[at], states[at], past[at, ..., -1:, None], out=after)

    sums = _bmm(_bmm(queries, keys.mT).mul_(weights), values)
    if first < count:
        _add_bmm(sums[first:], queries[first:] * past[first:, ..., None], states[first:])
    saved = sums.new_empty(count, 2, *sums.shape[1:4])
    total, denominator = saved.unbind(1)
    total.copy_(sums[..., -1])
    torch.maximum(total.abs(), _floor(gates, q.dtype), out=denominator).add_(EPSILON)
    h = _over_time(sums[..., :-1], 1 / denominator, q.shape[1])
    m = (gates.decay[-1, ..., -1] + gates.running[-1, ..., -1]).to(q.dtype)
    if not keep:
        states, saved = (tensor.new_empty(0, *tensor.shape[1:]) for tensor in (states, saved))
    return h, *_split(added[-1]), m, states, saved


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    m0: Tensor,
    h: Tensor,
    c: Tensor,
    n: Tensor,
    states: Tensor,
    saved: Tensor,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    grad_n: Tensor | None,
    grad_m: Tensor | None,
    chunk: int,
    warm: bool,
) -> tuple[Tensor, ...]:
    """Gradients of (q, k, v, i, f, c0, n0, m0), exact for any combination of output gradients.

    Through the gates: with E_ts the gradient of the logarithm of the weight of step s in step t, and dm_t what m_t
    alone receives,

        di_s = Σ_t E_ts + (dm of all steps t at which i_s - F_s is the largest so far)
        d logsigmoid(f)_r = Σ_{t≥r} (Σ_s E_ts + dm_t - di_t)

    since that logarithm is F_t - F_s + i_s, and m_t = F_t + the largest i_s - F_s so far. Σ_t E_ts is k_s · dk_s. h
    depends on m through ε alone: dm_t = -(dh · h) ε / denominator. Where |total| is the larger part of the
    denominator Σ_s E_ts + dm_t is 0, and elsewhere (dh · h) exp(-m_t) / denominator. The last m also divides C and n.
    """
    gates = _gates(i, f, m0, chunk, q.dtype)
    queries, keys, values = _inputs(q, k, v, chunk)
    weights, past = _weights(gates, q), gates.past.exp().to(q.dtype)
    total, denominator = saved.unbind(1)
    count, first, width = len(values), 0 if warm else 1, v.shape[-1]

    # Gradients of the numerator and, as last column, of total.
    grads = torch.empty_like(values)
    if grad_h is None:
        grads.zero_()
        share = torch.zeros_like(total)
    else:
        share = _by_chunks((grad_h * h).sum(-1), chunk) / denominator
        torch.mul(_by_chunks(grad_h, chunk), (1 / denominator)[..., None], out=grads[..., :-1])
    floor = _floor(gates, q.dtype)
    of_total = total.abs() > floor
    grads[..., -1] = torch.where(of_total, -share * total.sign(), 0.0)
    row = torch.where(of_total, 0.0, share * floor)
    of_m = -EPSILON * share

    # Gradients of the states before each chunk, and at the end of the last one.
    past_grads = grads * past[..., None]
    ahead = states.new_empty(count + 1, *states.shape[1:])
    _bmm(queries.mT, past_grads, out=ahead[:-1])
    ahead[-1, ..., :-1] = 0.0 if grad_c is None else grad_c
    ahead[-1, ..., -1] = 0.0 if grad_n is None else grad_n
    for at in range(count - 1, -1, -1):
        ahead[at].addcmul_(ahead[at + 1], past[at, ..., -1:, None])

    grad_scores = _bmm(grads, values.mT).mul_(weights)
    grad_q, grad_k = _bmm(grad_scores, keys), _bmm(grad_scores.mT, queries)
    grad_v = _bmm(_bmm(queries, keys.mT).mul_(weights).mT, grads[..., :width])
    if first < count:
        _add_bmm(grad_q[first:], past_grads[first:], states[first:].mT)
    last = count - 1 if grad_c is None and grad_n is None else count
    if last:
        later, to_end = ahead[1 : last + 1], weights[:last, ..., -1, :, None]
        _add_bmm(grad_k[:last], values[:last] * to_end, later.mT)
        _add_bmm(grad_v[:last], keys[:last] * to_end, later[..., :width])

    column = (grad_k * keys).sum(-1)
    if grad_m is not None:
        row[-1, ..., -1] += grad_m
        of_m[-1, ..., -1] += grad_m
    if grad_c is not None:
        of_m[-1, ..., -1] -= (grad_c * c).sum((-1, -2))
    if grad_n is not None:
        of_m[-1, ..., -1] -= (grad_n * n).sum(-1)
    grad_i, grad_f, grad_m0 = _to_gates(gates, row, column, of_m, f)
    if warm:
        grad_m0 += (ahead[0] * states[0]).sum((-1, -2))
    else:
        ahead[0] = 0.0
        grad_m0.zero_()
    of_inputs = (_over_time(grad, None, q.shape[1]) for grad in (grad_q, grad_k, grad_v))
    return *of_inputs, grad_i, grad_f, *_split(ahead[0]), grad_m0


def _gates(i: Tensor, f: Tensor, m0: Tensor, chunk: int, dtype: torch.dtype) -> _Gates:
    """Sums and maxima of the gates i, f [B, T, N] behind a state with stabiliser m0 [B, N]; `dtype` is that of q."""
    decay = _by_chunks(F.logsigmoid(f.double()).clamp(min=_shut(dtype)), chunk).cumsum(-1)
    a = _by_chunks(i.double(), chunk, padding=-math.inf) - decay
    running = a.cummax(-1).values
    before, borders = m0.double(), []
    for largest, end in zip(running, decay[..., -1], strict=True):
        borders.append(before)
        torch.maximum(largest, before[..., None], out=largest)
        before = end + largest[..., -1]
    return _Gates(decay, a, running, torch.stack(borders)[..., None] - running)


def _shut(dtype: torch.dtype) -> float:
    """The least log of a forget gate that is told apart from a shut one: past it, sums in a chunk would be coarse."""
    return -1e6 if dtype == torch.float32 else -1e4


def _weights(gates: _Gates, q: Tensor) -> Tensor:
    """W [G, B, N, L, L]."""
    own = gates.a - 0.5 * math.log(q.shape[-1])
    return (own[..., None, :] - gates.running[..., :, None]).to(q.dtype).exp_().tril_()


def _floor(gates: _Gates, dtype: torch.dtype) -> Tensor:
    """exp(-m_t), held below overflow [G, B, N, L]."""
    return (-gates.decay - gates.running).clamp_(max=largest_floor(dtype)).exp_().to(dtype)


def _to_gates(gates: _Gates, row: Tensor, column: Tensor, of_m: Tensor, f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of i, f [B, T, N] and m0 [B, N] from Σ_s E_ts + dm_t, Σ_t E_ts and dm_t, each [G, B, N, L]."""
    row, column, of_m, newest = (
        tensor.permute(1, 2, 0, 3).flatten(2) for tensor in (row, column, of_m, gates.a == gates.running)
    )
    # The step whose i - F is the largest so far, counted from 1; 0 is the initial state.
    newest = torch.where(newest, torch.arange(1, row.shape[-1] + 1, device=row.device), 0).cummax(-1).values
    passed = row.new_zeros(*row.shape[:2], row.shape[-1] + 1).scatter_add_(-1, newest, of_m)
    grad_i = column + passed[..., 1:]
    grad_log_f = (row - grad_i).double().flip(-1).cumsum(-1).flip(-1).to(row.dtype)
    steps = f.shape[1]
    slope = torch.sigmoid(-f) * (f > _shut(f.dtype))
    grad_i, grad_log_f = (grad[..., :steps].transpose(1, 2).contiguous() for grad in (grad_i, grad_log_f))
    return grad_i, grad_log_f.mul_(slope), passed[..., 0].clone()


def _inputs(q: Tensor, k: Tensor, v: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and [v, 1], contiguous by chunks [G, B, N, L, ·]."""
    queries, keys = (_by_chunks(tensor, chunk).contiguous() for tensor in (q, k))
    values = v.new_empty(*queries.shape[:-1], v.shape[-1] + 1)
    values[..., :-1] = _by_chunks(v, chunk)
    values[..., -1] = 1.0
    return queries, keys, values


def _by_chunks(over_time: Tensor, chunk: int, padding: float = 0.0) -> Tensor:
    """[B, T, N, ...] to [G, B, N, L, ...]: a view where chunks divide T, else padded behind the last step."""
    batch, steps = over_time.shape[:2]
    missing = -steps % chunk
    if missing:
        filled = over_time.new_full((batch, missing, *over_time.shape[2:]), padding)
        over_time = torch.cat([over_time, filled], 1)
    return over_time.view(batch, -1, chunk, *over_time.shape[2:]).movedim(1, 0).transpose(2, 3)


def _over_time(chunks: Tensor, weight: Tensor | None, steps: int) -> Tensor:
    """[G, B, N, L, D], times a weight [G, B, N, L] if given, to [B, T, N, D]."""
    count, batch, heads, chunk, width = chunks.shape
    out = chunks.new_empty(batch, count * chunk, heads, width)
    if weight is None:
        _by_chunks(out, chunk).copy_(chunks)
    else:
        torch.mul(chunks, weight[..., None], out=_by_chunks(out, chunk))
    return out if steps == count * chunk else out[:, :steps].contiguous()


def _split(state: Tensor) -> tuple[Tensor, Tensor]:
    """[C, n] to C and n, in memory of their own."""
    c, n = state[..., :-1], state[..., -1]
    return c.clone(memory_format=torch.contiguous_format), n.clone(memory_format=torch.contiguous_format)


def _bmm(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """left @ right over all leading axes as one batch."""
    out = left.new_empty(*left.shape[:-1], right.shape[-1]) if out is None else out
    torch.bmm(left.flatten(0, -3), right.flatten(0, -3), out=out.flatten(0, -3))
    return out


def _add_bmm(onto: Tensor, left: Tensor, right: Tensor) -> None:
    """onto += left @ right over all leading axes as one batch."""
    onto.flatten(0, -3).baddbmm_(left.flatten(0, -3), right.flatten(0, -3))


def forward_shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    c0: Tensor,
    n0: Tensor,
    m0: Tensor,
    keep: bool,
    chunk: int,
    warm: bool,
) -> tuple[Tensor, ...]:
    """Tensors like those that `forward` returns."""
    batch, steps, heads, width = q.shape
    count = -(-steps // chunk) if keep else 0
    return (
        *(tensor.new_empty(tensor.shape) for tensor in (v, c0, n0, m0)),
        q.new_empty(count, batch, heads, width, v.shape[-1] + 1),
        q.new_empty(count, 2, batch, heads, chunk),
    )


def backward_shapes(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, m0: Tensor, h: Tensor, c: Tensor, n: Tensor, *_: object
) -> tuple[Tensor, ...]:
    """Tensors like those that `backward` returns."""
    return tuple(tensor.new_empty(tensor.shape) for tensor in (q, k, v, i, f, c, n, m0))


_by_chunk = register(
    Kernel(
        name="mlstm_reference",
        inputs=dict.fromkeys(("q", "k", "v", "i", "f", "c0", "n0", "m0"), 0),
        constants={},
        outputs=dict.fromkeys(("h", "c", "n", "m"), 0),
        saved={"states": 1, "sums": 2},
        needs=("q", "k", "v", "i", "f", "m0", "h", "c", "n"),
        forward=forward,
        backward=backward,
        forward_shapes=forward_shapes,
        backward_shapes=backward_shapes,
        options={"chunk": "int", "warm": "bool"},
    )
)


def mlstm_chunkwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    initial_state: MLSTMState | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, MLSTMState]:
    """The cell over a whole sequence, by chunks of `chunk` steps; None takes `chunk_length`.

    q, k [B, T, N, D], v [B, T, N, V], i, f [B, T, N]. Returns h over time [B, T, N, V] and the final state. Every input
    is differentiable, the initial state included. With chunk >= T all pairs of steps are computed at once.
    """
    warm, steps = initial_state is not None, q.shape[1]
    state = mlstm_empty_state(q, v) if initial_state is None else initial_state
    length = chunk_length(steps, q.shape[-1]) if chunk is None else min(chunk, steps)
    h, *final = _by_chunk(q, k, v, i, f, *state, chunk=length, warm=warm)
    return h, MLSTMState(*final)


def chunk_length(steps: int, width: int) -> int:
    """Steps in a chunk for head width D: equal chunks of at most 32, or D / 2 where that is more.

    Pairs within a chunk cost L D a step, states between chunks D²; longer chunks are fewer, larger products. Measured
    forward and backward, one thread, 96 to 1024 steps, widths 4 to 128, this and the Numba backend: 24 to 48 are within
    a tenth of the best for widths up to 64, 32 to 96 for 128; 16 costs up to 40 % more, 128 up to three times as much.
    With L ≥ D / 2 the states before the chunks, D V each, take at most twice the memory of v.
    """
    longest = max(32, width // 2)
    return -(-steps // -(-steps // longest))
