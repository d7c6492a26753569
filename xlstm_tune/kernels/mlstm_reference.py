"""The mLSTM cell by chunks of steps, in plain torch, with an explicit backward: the truth for faster backends.

Legend: B batch, T steps, N heads, D head width of k, V of v; G chunks of L steps. The equations are in `mlstm_forms`.

Within a chunk let F_t be the running sum of logsigmoid(f), a_s = i_s - F_s, and M_t = max(m_g, max_{s≤t} a_s) with m_g
the stabiliser before the chunk. Then m_t = F_t + M_t, and step s weighs exp(a_s - M_t) in step t. Numerator and
denominator may share any factor; both are computed times exp(M_t - r_t), where r is a reference to be chosen:

    K_s = k_s exp(a_s - r_s) / √D,   mask_ts = exp(r_s - r_t) for s ≤ t,   S = (q Kᵀ) · mask,   p_t = exp(μ_g - r_t)
    [numerator, total] = S [v, 1] + p q [C, n]
    h = numerator / denominator,   denominator = max(|total|, exp(-F_t - r_t)) + ε exp(M_t - r_t)
    [C, n] after the chunk = p_L [C, n] + Σ_s mask_Ls K_s [v_s, 1],   μ after the chunk = F_L + r_L

Here [C, n] is the state divided by exp(μ_g), n being the column of C that belongs to a v of 1. Any r is exact; what
matters is the range of its exponentials. r_t = M_t is always safe. One r for a whole chunk, midway between its first
and last M, turns the mask into zeros and ones: it saves an exponential for every pair of steps and is taken where all
factors stay far from overflow.
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
    """What the gates say, in float64: weights are exponentials of differences between long sums."""

    decay: Tensor
    """F [G, B, N, L]."""
    a: Tensor
    """Log weight of a step's own input, less F [G, B, N, L]."""
    running: Tensor
    """M [G, B, N, L]."""
    reference: Tensor
    """r [G, B, N, L], or [G, B, N, 1] for one of a whole chunk."""
    state: Tensor
    """μ before every chunk [G, B, N]."""


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
    queries, keys, values = _inputs(q, k, v, gates, chunk)
    mask, past = _weights(gates, q.dtype)
    count, first = len(values), 0 if warm else 1

    states = values.new_empty(count, *values.shape[1:3], q.shape[-1], values.shape[-1])
    if warm:
        states[0, ..., :-1], states[0, ..., -1] = c0, n0
    else:
        states[0] = 0.0
    added = _bmm(_scaled(keys, mask[..., -1, :]).mT, values)
    for at in range(count):
        after = states[at + 1] if at + 1 < count else added[at]
        torch.addcmul(added[at], states[at], past[at, ..., -1:, None], out=after)

    sums = _bmm(_bmm(queries, keys.mT).mul_(mask), values)
    if first < count:
        _add_bmm(sums[first:], queries[first:] * past[first:, ..., None], states[first:])
    floor, epsilon = _floor_and_epsilon(gates, q.dtype)
    saved = sums.new_empty(count, 2, *sums.shape[1:4])
    total, denominator = saved.unbind(1)
    total.copy_(sums[..., -1])
    torch.maximum(total.abs(), floor, out=denominator).add_(epsilon)
    h = _over_time(sums[..., :-1], 1 / denominator, q.shape[1])

    lift, m = _at_end(gates, q.dtype)
    final = added[-1] * lift
    outputs = h, *_split(final), m
    return *outputs, *((states, saved) if keep else (states.new_empty(0, *states.shape[1:]), saved[:0].clone()))


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

    Through the gates: with E_ts the gradient of the logarithm of the weight of step s in step t,

        di_s = Σ_t E_ts + (what m passes to i_s) = k_s · dk_s + …
        d logsigmoid(f)_r = Σ_{t≥r} (Σ_s E_ts + dm_t - di_t)      where dm_t is the gradient of m_t alone

    since the weight's logarithm is F_t - F_s + i_s, and m_t is F_t plus the largest i_s - F_s so far. h depends on m
    through ε only: dm_t = -(dh · h) ε exp(M_t - r_t) / denominator. Where |total| is the larger part of the
    denominator, Σ_s E_ts + dm_t = 0; elsewhere it is (dh · h) floor / denominator. The last m divides C and n too.
    """
    gates = _gates(i, f, m0, chunk, q.dtype)
    queries, keys, values = _inputs(q, k, v, gates, chunk)
    mask, past = _weights(gates, q.dtype)
    floor, epsilon = _floor_and_epsilon(gates, q.dtype)
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
    of_total = total.abs() > floor
    grads[..., -1] = torch.where(of_total, -share * total.sign(), 0.0)
    row = torch.where(of_total, 0.0, share * floor)
    grad_stabiliser = -share * epsilon

    past_grads = grads * past[..., None]
    ahead = torch.empty(count + 1, *states.shape[1:], dtype=q.dtype, device=q.device)
    _bmm(queries.mT, past_grads, out=ahead[:-1])
    lift, _ = _at_end(gates, q.dtype)
    last = count
    if grad_c is None and grad_n is None:
        ahead[-1] = 0.0
        last -= 1
    else:
        ahead[-1, ..., :-1] = 0.0 if grad_c is None else grad_c * lift
        ahead[-1, ..., -1] = 0.0 if grad_n is None else grad_n * lift[..., 0]
    for at in range(count - 1, -1, -1):
        ahead[at].addcmul_(ahead[at + 1], past[at, ..., -1:, None])

    grad_scores = _bmm(grads, values.mT).mul_(mask)
    grad_q = _bmm(grad_scores, keys)
    grad_keys = _bmm(grad_scores.mT, queries)
    grad_v = _bmm(_bmm(queries, keys.mT).mul_(mask).mT, grads[..., :width])
    if first < count:
        _add_bmm(grad_q[first:], past_grads[first:], states[first:].mT)
    if last > 0:
        to_end, later = mask[..., -1, :], ahead[1 : last + 1]
        _add_bmm(grad_keys[:last], _scaled(values, to_end)[:last], later.mT)
        _add_bmm(grad_v[:last], _scaled(keys, to_end)[:last], later[..., :width])

    column = (grad_keys * keys).sum(-1)
    if grad_m is not None:
        row[-1, ..., -1] += grad_m
        grad_stabiliser[-1, ..., -1] += grad_m
    if grad_c is not None:
        grad_stabiliser[-1, ..., -1] -= (grad_c * c).sum((-1, -2))
    if grad_n is not None:
        grad_stabiliser[-1, ..., -1] -= (grad_n * n).sum(-1)
    grad_i, grad_f, grad_m0 = _to_gates(gates, row, column, grad_stabiliser, f)
    grad_m0 = grad_m0 + (ahead[0] * states[0]).sum((-1, -2)) if warm else torch.zeros_like(grad_m0)
    if not warm:
        ahead[0] = 0.0
    steps = q.shape[1]
    key_weight = _key_weight(gates, q)
    return (
        _over_time(grad_q, None, steps),
        _over_time(grad_keys, key_weight, steps),
        _over_time(grad_v, None, steps),
        grad_i,
        grad_f,
        *_split(ahead[0]),
        grad_m0,
    )


def _gates(i: Tensor, f: Tensor, m0: Tensor, chunk: int, dtype: torch.dtype) -> _Gates:
    """Sums and maxima of the gates i, f [B, T, N] behind a state with stabiliser m0 [B, N]; `dtype` is that of q."""
    log_f = _by_chunks(F.logsigmoid(f.double()).clamp(min=_shut(dtype)), chunk)
    decay = log_f.cumsum(-1)
    a = _by_chunks(i.double(), chunk, padding=-math.inf) - decay
    running = a.cummax(-1).values
    before = m0.double()
    borders = []
    for largest, end in zip(running, decay[..., -1], strict=True):
        borders.append(before)
        torch.maximum(largest, before[..., None], out=largest)
        before = end + largest[..., -1]
    state = torch.stack(borders)
    if not _spans_are_small(decay, running, dtype):
        return _Gates(decay, a, running, running, state)
    reference = (running[..., :1] + running[..., -1:]) / 2
    state[1:] = decay[:-1, ..., -1] + reference[:-1, ..., 0]
    return _Gates(decay, a, running, reference, state)


def _spans_are_small(decay: Tensor, running: Tensor, dtype: torch.dtype) -> bool:
    """Whether one reference may serve a whole chunk: factors up to its exponential, to either side, are harmless."""
    if running.device.type != "cpu":
        return False  # the answer would have to be waited for
    span = 0.4 * largest_floor(dtype)
    rise = running[..., -1] - running[..., 0]
    return bool(rise.max() < 2 * span) and bool((decay + running).min() > -span)


def _shut(dtype: torch.dtype) -> float:
    """The least log of a forget gate that is told apart from a shut one: beyond it a chunk's sums would be coarse."""
    return -1e6 if dtype == torch.float32 else -1e4


def _key_weight(gates: _Gates, q: Tensor) -> Tensor:
    """exp(a_s - r_s) / √D [G, B, N, L]."""
    return torch.exp(gates.a - gates.reference).mul_(1 / math.sqrt(q.shape[-1])).to(q.dtype)


def _weights(gates: _Gates, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """mask [G, B, N, L, L], or [L, L] if it is the same for all chunks, and p [G, B, N, L], or [G, B, N, 1]."""
    past = torch.exp(gates.state[..., None] - gates.reference).to(dtype)
    steps = gates.a.shape[-1]
    if gates.reference.shape[-1] != steps or steps == 1:
        return torch.ones(steps, steps, dtype=dtype, device=past.device).tril(), past
    difference = (gates.reference[..., None, :] - gates.reference[..., :, None]).to(dtype)
    return difference.clamp_(max=0.0).exp_().tril_(), past


def _floor_and_epsilon(gates: _Gates, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """exp(-F_t - r_t) and ε exp(M_t - r_t), the parts of the denominator beside total: [G, B, N, L]."""
    rise = gates.running - gates.reference
    floor = torch.exp((-gates.decay - gates.running).clamp(max=largest_floor(dtype)) + rise)
    return floor.to(dtype), rise.exp_().mul_(EPSILON).to(dtype)


def _at_end(gates: _Gates, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Factor from the last chunk's reference to the last stabiliser [B, N, 1, 1], and that stabiliser [B, N]."""
    last = gates.running[-1, ..., -1]
    lift = torch.exp(gates.reference[-1, ..., -1] - last).to(dtype)
    return lift[..., None, None], (gates.decay[-1, ..., -1] + last).to(dtype)


def _to_gates(gates: _Gates, row: Tensor, column: Tensor, stabiliser: Tensor, f: Tensor) -> tuple[Tensor, ...]:
    """Gradients of i, f [B, T, N] and m0 [B, N] from those of the weights' logarithms and of m, all [G, B, N, L].

    The gradient of m_t goes to the step whose i - F is the largest up to t.
    """
    row, column, stabiliser, newest = (
        tensor.permute(1, 2, 0, 3).flatten(2) for tensor in (row, column, stabiliser, gates.a == gates.running)
    )
    steps = torch.arange(1, row.shape[-1] + 1, device=row.device)
    newest = torch.where(newest, steps, 0).cummax(-1).values
    passed = row.new_zeros(*row.shape[:2], row.shape[-1] + 1).scatter_add_(-1, newest, stabiliser)
    grad_i = column + passed[..., 1:]
    grad_log_f = (row - grad_i).double().flip(-1).cumsum(-1).flip(-1)
    count = f.shape[1]
    slope = torch.sigmoid(-f) * (f > _shut(f.dtype))
    grad_f = grad_log_f[..., :count].transpose(1, 2).to(f.dtype) * slope
    return grad_i[..., :count].transpose(1, 2).contiguous(), grad_f, passed[..., 0]


def _inputs(q: Tensor, k: Tensor, v: Tensor, gates: _Gates, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, K and [v, 1], contiguous by chunks [G, B, N, L, ·]."""
    queries = _by_chunks(q, chunk).contiguous()
    keys = torch.empty_like(queries)
    torch.mul(_by_chunks(k, chunk), _key_weight(gates, q)[..., None], out=keys)
    values = v.new_empty(*queries.shape[:-1], v.shape[-1] + 1)
    values[..., :-1] = _by_chunks(v, chunk)
    values[..., -1] = 1.0
    return queries, keys, values


def _by_chunks(over_time: Tensor, chunk: int, padding: float = 0.0) -> Tensor:
    """[B, T, N, ...] to [G, B, N, L, ...]; a view where T is a multiple of the chunk, else padded behind the end."""
    batch, steps = over_time.shape[:2]
    missing = -steps % chunk
    if missing:
        filled = over_time.new_full((batch, missing, *over_time.shape[2:]), padding)
        over_time = torch.cat([over_time, filled], 1)
    return over_time.unflatten(1, (-1, chunk)).movedim(1, 0).transpose(2, 3)


def _over_time(chunks: Tensor, weight: Tensor | None, steps: int) -> Tensor:
    """[G, B, N, L, D], times a weight [G, B, N, L] if given, to [B, T, N, D]."""
    count, batch, heads, chunk, width = chunks.shape
    out = chunks.new_empty(batch, count * chunk, heads, width)
    view = _by_chunks(out, chunk)
    if weight is None:
        view.copy_(chunks)
    else:
        torch.mul(chunks, weight[..., None], out=view)
    return out if steps == count * chunk else out[:, :steps].contiguous()


def _split(state: Tensor) -> tuple[Tensor, Tensor]:
    """[C, n] to C and n, in memory of their own."""
    return tuple(part.clone(memory_format=torch.contiguous_format) for part in (state[..., :-1], state[..., -1]))  # type: ignore[return-value]


def _scaled(rows: Tensor, to_end: Tensor) -> Tensor:
    """Rows [G, B, N, L, D] times mask_Ls; the rows themselves where the mask is one for all chunks, with a row of 1."""
    return rows if to_end.dim() == 1 else rows * to_end[..., None]


def _bmm(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """left @ right over all leading axes as one batch."""
    shape = (*left.shape[:-1], right.shape[-1])
    out = left.new_empty(shape) if out is None else out
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
        v.new_empty(v.shape),
        *(tensor.new_empty(tensor.shape) for tensor in (c0, n0, m0)),
        q.new_empty(count, batch, heads, width, v.shape[-1] + 1),
        q.new_empty(count, 2, batch, heads, chunk),
    )


def backward_shapes(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, m0: Tensor, h: Tensor, c: Tensor, n: Tensor, *_: object
) -> tuple[Tensor, ...]:
    """Tensors like those that `backward` returns."""
    return tuple(tensor.new_empty(tensor.shape) for tensor in (q, k, v, i, f, c, n, m0))


_in_layout = register(
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
    """The cell over a whole sequence by chunks of `chunk` steps; None takes `chunk_length`'s.

    q, k [B, T, N, D], v [B, T, N, V], i, f [B, T, N]. Returns h over time [B, T, N, V] and the final state. Every input
    is differentiable, the initial state included. With chunk >= T all pairs of steps are computed at once.
    """
    warm = initial_state is not None
    state = initial_state if initial_state is not None else mlstm_empty_state(q, v)
    steps = q.shape[1]
    length = chunk_length(steps, q.shape[-1], v.shape[-1]) if chunk is None else min(chunk, steps)
    h, *final = _in_layout(q, k, v, i, f, *state, chunk=length, warm=warm)
    return h, MLSTMState(*final)


def chunk_length(steps: int, width: int, value_width: int) -> int:
    """Steps in a chunk, by measurement."""
    return min(steps, 32)
