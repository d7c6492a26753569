"""What the Triton kernels of the mLSTM cell share: gates of a chunk, products of tiles, gradients of gates.

Legend and equations as in `mlstm_reference`. Rows are the steps t of a chunk, columns of pairs the steps s whose inputs
weigh in them. Sums over gates are in float64, since weights are exponentials of differences between them. A forget gate
whose log sigmoid lies below SHUT starts a new segment: nothing before it weighs anything.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from xlstm_tune.kernels.mlstm_chunk import LARGEST_FLOOR, SHUT
from xlstm_tune.kernels.mlstm_forms import EPSILON
from xlstm_tune.kernels.parts_triton import log_sigmoid, sigmoid

PRODUCTS = {
    torch.float32: (torch.float32, "tf32x3"),
    torch.float16: (torch.float32, "tf32"),
    torch.bfloat16: (torch.bfloat16, "tf32"),
}
"""By the dtype of q, k and v: that of the factors of all other products, in which states are kept too, and how float32
is multiplied. Sums are always in float32.

Three products of TensorFloat-32 are near to exact; exact ones would not fit into registers. float16 holds neither the
states nor gradients over a small denominator. TensorFloat-32 has all digits of what was float16; of float32 factors the
hardware drops the last 13 bits, not rounding, which is an error of 1e-3 at most. bfloat16 keeps its own dtype.
"""


def kept_states(q: Tensor, v: Tensor, chunks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the states before each chunk: C [B, N, G, D, V], n [B, N, G, D], m [B, N, G]. q, v [B, T, N, width]."""
    batch, _, heads, width = q.shape
    of_chunk = (batch, heads, chunks)
    return (
        q.new_empty(*of_chunk, width, v.shape[-1], dtype=PRODUCTS[q.dtype][0]),
        q.new_empty(*of_chunk, width, dtype=torch.float32),
        q.new_empty(of_chunk, dtype=torch.float64),
    )


_SHUT = tl.constexpr(SHUT)
_EPSILON = tl.constexpr(EPSILON)
_LARGEST_FLOOR = tl.constexpr(LARGEST_FLOOR)


@triton.jit
def gates_of(i, f, at, stride, count, m, CHUNK: tl.constexpr):
    """What the gates of a chunk say, behind a state with stabiliser m; gates lie `stride` apart from `at` on.

    Returns (W [L, L] not over √D, p [L], weight of each step in the state behind the chunk [L], F [L], M [L], the
    number of each step's segment [L], i - F [L]).
    """
    steps = tl.arange(0, CHUNK)
    real = steps < count
    log_f = log_sigmoid(tl.load(f + at + steps * stride, mask=real, other=1e4))
    shut = log_f < _SHUT
    decay = tl.cumsum(tl.where(shut, 0.0, log_f).to(tl.float64), 0)
    segment = tl.cumsum(shut.to(tl.int32), 0)
    a = tl.load(i + at + steps * stride, mask=real, other=0.0).to(tl.float64) - decay
    pairs = pairs_of(segment, count, CHUNK)
    high, low = _parts(a)
    lowest = -float("inf")
    running = tl.max(tl.where(pairs, high[None, :], lowest), 1)
    running = tl.maximum(running, tl.where(segment == 0, (m + decay * 0.0).to(tl.float32), lowest))
    weights = tl.exp(tl.where(pairs, (high[None, :] - running[:, None]) + low[None, :], lowest))
    past = tl.exp(tl.where(segment == 0, tl.minimum(m - running, 1.0).to(tl.float32), lowest))
    to_end = tl.sum(tl.where(steps[:, None] == CHUNK - 1, weights, 0.0), 0)
    return weights, past, to_end, decay, running, segment, high


@triton.jit
def _parts(a):
    """a in two parts of float32, since tiles of float64 would not fit into registers.

    M is a maximum of the first one, which need not be the very maximum. The second one stays below 1 unless a is so
    large that its digits end there: then what it says is cut off, for an exponential of it would overflow.
    """
    high = a.to(tl.float32)
    return high, tl.minimum(tl.maximum((a - high).to(tl.float32), -1.0), 1.0)


@triton.jit
def pairs_of(segment, count, CHUNK: tl.constexpr):
    """Which steps s weigh in which steps t [L, L]: not later ones, nor those before a shut gate, nor padding."""
    steps = tl.arange(0, CHUNK)
    before = steps[None, :] <= tl.minimum(steps, count - 1)[:, None]
    return before & (segment[None, :] == segment[:, None])


@triton.jit
def gates_at_end(i, f, at, stride, count, m, CHUNK: tl.constexpr):
    """Of what `gates_of` says, what the state behind the chunk needs, without pairs: (weight of each step in it [L],
    that of the state before the chunk, the new m)."""
    steps = tl.arange(0, CHUNK)
    real = steps < count
    log_f = log_sigmoid(tl.load(f + at + steps * stride, mask=real, other=1e4))
    shut = log_f < _SHUT
    decay = tl.cumsum(tl.where(shut, 0.0, log_f).to(tl.float64), 0)
    segment = tl.cumsum(shut.to(tl.int32), 0)
    segments = tl.sum(shut.to(tl.int32), 0)
    a = tl.load(i + at + steps * stride, mask=real, other=0.0).to(tl.float64) - decay
    high, low = _parts(a)
    counts = real & (segment == segments)
    lowest = -float("inf")
    largest = tl.max(tl.where(counts, high, lowest), 0)
    largest = tl.where(segments == 0, tl.maximum(largest, m.to(tl.float32)), largest)
    to_end = tl.exp(tl.where(counts, (high - largest) + low, lowest))
    kept = tl.exp(tl.where(segments == 0, tl.minimum(m - largest, 1.0).to(tl.float32), lowest))
    return to_end, kept, last(decay, CHUNK) + largest


@triton.jit
def last(x, CHUNK: tl.constexpr):
    """The last number of x [L]."""
    return tl.sum(tl.where(tl.arange(0, CHUNK) == CHUNK - 1, x, 0), 0)


@triton.jit
def tile(base, rows, columns, stride, mask):
    """Rows of a tensor, `stride` apart, zeros where masked."""
    return tl.load(base + rows[:, None] * stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def product(a, b, KIND: tl.constexpr, PRECISION: tl.constexpr):
    """a b, of factors in KIND, in float32."""
    return tl.dot(a.to(KIND), b.to(KIND), input_precision=PRECISION)


@triton.jit
def denominators(total, decay, running):
    """(exp(-m_t) held below overflow [L], 1 / denominator [L])."""
    floor = tl.exp(tl.minimum(-(decay + running), _LARGEST_FLOOR).to(tl.float32))
    return floor, 1.0 / (tl.maximum(tl.abs(total), floor) + _EPSILON)


@triton.jit
def of_denominators(total, floor, of_h):
    """From of_h [L] = dh · h / denominator, the gradients of total and, through ε alone, of M_t, each [L]."""
    by_total = tl.where(tl.abs(total) > floor, tl.where(total > 0, -of_h, of_h), 0.0)
    return by_total, -of_h * _EPSILON


@triton.jit
def largest_inputs(pairs, high, running, CHUNK: tl.constexpr):
    """For each step [L] the step of the chunk whose input is the largest so far, -1 where it lies before the chunk."""
    return tl.max(tl.where(pairs & (high[None, :] == running[:, None]), tl.arange(0, CHUNK)[None, :], -1), 1)


@triton.jit
def write_gate_gradients(
    f, d_i, d_f, at, stride, count, segment, high, running, of_weights, of_rows, of_m, behind, passed_on,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Gradients of i and f of a chunk. With E_ts the gradient of the logarithm of the weight of step s in step t, or of
    the state before or behind the chunk: of_weights [L] = Σ_t E_ts, of_rows [L] = Σ_s E_ts, of_m [L] of M_t.

    behind: Σ E of all that is carried past the chunk, ⟨C, dC⟩ + ⟨n, dn⟩ there. passed_on: what later M receive for
    inputs of this chunk or before. What M_t receives goes to the step whose input is the largest so far.
    A gate receives E_ts of all s before it and t from it on, in its segment: rows less columns of the steps from it on.
    Both are sums of the same E, else errors of products that never passed the gate would remain; and `behind` spares
    sums over later chunks, whose errors would grow with T.
    Returns what M receive for inputs before the chunk.
    """
    steps = tl.arange(0, CHUNK)
    real = steps < count
    pairs = pairs_of(segment, count, CHUNK)
    newest = largest_inputs(pairs, high, running, CHUNK)
    of_m = tl.where(real, of_m, 0.0) + tl.where(steps == CHUNK - 1, passed_on, 0.0)
    of_i = of_weights + tl.sum(tl.where(newest[:, None] == steps[None, :], of_m[:, None], 0.0), 0)
    later = tl.where(real, of_rows - of_i, 0.0) + of_m + tl.where(steps == CHUNK - 1, behind, 0.0)
    own = tl.sum(tl.where(pairs, later[:, None], 0.0), 0)
    gate = tl.load(f + at + steps * stride, mask=real, other=0.0)
    tl.store(d_i + at + steps * stride, of_i, mask=real)
    of_f = tl.where(log_sigmoid(gate) < _SHUT, 0.0, own * sigmoid(-gate))
    tl.store(d_f + at + steps * stride, of_f, mask=real)
    return tl.sum(tl.where(newest < 0, of_m, 0.0), 0)
