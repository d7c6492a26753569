"""The Triton kernels of the mLSTM cell: a program walks over the chunks of one head of one sample, forward and back.

Legend and equations as in `mlstm_reference`; how the kernels are called stands in `mlstm_triton`. Rows are the steps t
of a chunk, columns of pairs the steps s whose inputs weigh in them. Sums over gates are in float64, since weights are
exponentials of differences between them. A forget gate whose log sigmoid lies below SHUT starts a new segment: nothing
before it weighs anything.
"""

from __future__ import annotations

import triton
import triton.language as tl

from xlstm_tune.kernels.mlstm_chunk import LARGEST_FLOOR, SHUT
from xlstm_tune.kernels.mlstm_forms import EPSILON
from xlstm_tune.kernels.parts_triton import log_sigmoid

_SHUT = tl.constexpr(SHUT)
_EPSILON = tl.constexpr(EPSILON)
_LARGEST_FLOOR = tl.constexpr(LARGEST_FLOOR)


@triton.jit
def _gates(i, f, at, stride, count, m, CHUNK: tl.constexpr):
    """What the gates of a chunk say, behind a state with stabiliser m; gates lie `stride` apart from `at` on.

    Returns (W [L, L] not over √D, p [L], weight of each step in the state behind the chunk [L], F [L], M [L], which
    pairs count [L, L], i - F [L]).
    """
    steps = tl.arange(0, CHUNK)
    real = steps < count
    log_f = log_sigmoid(tl.load(f + at + steps * stride, mask=real, other=1e4))
    shut = log_f < _SHUT
    decay = tl.cumsum(tl.where(shut, 0.0, log_f).to(tl.float64), 0)
    segment = tl.cumsum(shut.to(tl.int32), 0)
    a = tl.load(i + at + steps * stride, mask=real, other=0.0).to(tl.float64) - decay
    pairs = (steps[None, :] <= steps[:, None]) & (segment[None, :] == segment[:, None]) & real[None, :]
    # In two parts of float32, since tiles of float64 would not fit into registers. M need not be the very maximum.
    high = a.to(tl.float32)
    low = (a - high).to(tl.float32)
    lowest = -float("inf")
    running = tl.max(tl.where(pairs, high[None, :], lowest), 1)
    running = tl.maximum(running, tl.where(segment == 0, (m + decay * 0.0).to(tl.float32), lowest))
    weights = tl.where(pairs, tl.exp((high[None, :] - running[:, None]) + low[None, :]), 0.0)
    past = tl.where(segment == 0, tl.exp((m - running).to(tl.float32)), 0.0)
    to_end = tl.sum(tl.where(steps[:, None] == CHUNK - 1, weights, 0.0), 0)
    return weights, past, to_end, decay, running, pairs, high


@triton.jit
def _last(x, CHUNK: tl.constexpr):
    """The last number of x [L]."""
    return tl.sum(tl.where(tl.arange(0, CHUNK) == CHUNK - 1, x, 0), 0)


@triton.jit
def _rows(base, rows, columns, stride, mask):
    """Rows of a tensor in float32, zeros where masked."""
    return tl.load(base + rows[:, None] * stride + columns[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _sums(q, k, weights, past, n, decay, running, scale, PRECISION: tl.constexpr):
    """(S [L, L], total [L], exp(-m_t) held below overflow [L], 1 / denominator [L])."""
    pairs = tl.dot(q, tl.trans(k), input_precision=PRECISION) * weights * scale
    total = tl.sum(pairs, 1) + past * tl.sum(q * n[None, :], 1)
    floor = tl.exp(tl.minimum(-(decay + running), _LARGEST_FLOOR).to(tl.float32))
    return pairs, total, floor, 1.0 / (tl.maximum(tl.abs(total), floor) + _EPSILON)


@triton.jit(do_not_specialize=["steps", "heads", "chunks"])
def forward(
    q, k, v, i, f, c0, n0, m0, h, c_out, n_out, m_out, states, norms, maxima, newest,
    steps, heads, chunks, width, value_width, scale,
    WARM: tl.constexpr, TRAIN: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr, WIDE: tl.constexpr,
    VALUE_WIDE: tl.constexpr,
):  # fmt: skip
    """q, k [B, T, N, D], v, h [B, T, N, V], i, f [B, T, N], states c0 [B, N, D, V], n0 [B, N, D], m0 [B, N].

    If TRAIN: the states before each chunk in states [B, N, G, D, V], norms [B, N, G, D], maxima [B, N, G] (float64),
    and newest [B, T, N]: the step, counted from 1, whose input is the largest so far, 0 for the initial state.
    """
    task = tl.program_id(0).to(tl.int64)  # sample and head
    head = task % heads
    keys, values, rows = tl.arange(0, WIDE), tl.arange(0, VALUE_WIDE), tl.arange(0, CHUNK).to(tl.int64)
    square = (keys < width)[:, None] & (values < value_width)[None, :]
    of_state = keys[:, None] * value_width + values[None, :]
    c = tl.zeros([WIDE, VALUE_WIDE], tl.float32)
    n = tl.zeros([WIDE], tl.float32)
    m = tl.load(m0 + task).to(tl.float64)
    if WARM:
        c = tl.load(c0 + task * width * value_width + of_state, mask=square, other=0.0)
        n = tl.load(n0 + task * width + keys, mask=keys < width, other=0.0)
    last_newest = tl.zeros([CHUNK], tl.int32)
    for chunk in range(chunks):
        start = chunk * CHUNK
        count = steps - start
        at = ((task // heads) * steps + start) * heads + head
        here = (rows < count)[:, None] & (keys < width)[None, :]
        here_v = (rows < count)[:, None] & (values < value_width)[None, :]
        qs = _rows(q + at * width, rows, keys, heads * width, here)
        ks = _rows(k + at * width, rows, keys, heads * width, here)
        vs = _rows(v + at * value_width, rows, values, heads * value_width, here_v)
        weights, past, to_end, decay, running, pairs, high = _gates(i, f, at, heads, count, m, CHUNK)
        if TRAIN:
            place = task * chunks + chunk
            tl.store(states + place * width * value_width + of_state, c, mask=square)
            tl.store(norms + place * width + keys, n, mask=keys < width)
            tl.store(maxima + place, m)
            largest = pairs & (high[None, :] == running[:, None])
            found = tl.max(tl.where(largest, (start + rows + 1).to(tl.int32)[None, :], 0), 1)
            found = tl.where(found > 0, found, last_newest)
            tl.store(newest + at + rows * heads, found, mask=rows < count)
            last_newest = tl.zeros([CHUNK], tl.int32) + _last(found, CHUNK)
        scored, _total, _floor, share = _sums(qs, ks, weights, past, n, decay, running, scale, PRECISION)
        out = tl.dot(scored, vs, input_precision=PRECISION)
        out += past[:, None] * tl.dot(qs, c, input_precision=PRECISION)
        to_h = h + at * value_width + rows[:, None] * heads * value_width + values[None, :]
        tl.store(to_h, (out * share[:, None]).to(h.dtype.element_ty), mask=here_v)
        kept = _last(past, CHUNK)
        weighed = ks * (to_end * scale)[:, None]
        c = kept * c + tl.dot(tl.trans(weighed), vs, input_precision=PRECISION)
        n = kept * n + tl.sum(weighed, 0)
        m = _last(decay, CHUNK) + _last(running, CHUNK)
    tl.store(c_out + task * width * value_width + of_state, c, mask=square)
    tl.store(n_out + task * width + keys, n, mask=keys < width)
    tl.store(m_out + task, m.to(tl.float32))


@triton.jit(do_not_specialize=["steps", "heads", "chunks"])
def backward(
    q, k, v, i, f, h, states, norms, maxima, grad_h, grad_c, grad_n, d_q, d_k, d_v, d_c, d_n, of_weights, of_row, of_m,
    steps, heads, chunks, width, value_width, scale,
    SEEN: tl.constexpr, ENDED: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr, WIDE: tl.constexpr,
    VALUE_WIDE: tl.constexpr,
):  # fmt: skip
    """As `forward`. SEEN: h has gradients; ENDED: the final C and n have none.

    of_weights, of_row, of_m [B, T, N]: gradients of the logarithm of each step's weight, of F_t and of M_t.
    """
    task = tl.program_id(0).to(tl.int64)
    head = task % heads
    keys, values, rows = tl.arange(0, WIDE), tl.arange(0, VALUE_WIDE), tl.arange(0, CHUNK).to(tl.int64)
    square = (keys < width)[:, None] & (values < value_width)[None, :]
    of_state = keys[:, None] * value_width + values[None, :]
    dc = tl.zeros([WIDE, VALUE_WIDE], tl.float32)
    dn = tl.zeros([WIDE], tl.float32)
    if not ENDED:
        dc = tl.load(grad_c + task * width * value_width + of_state, mask=square, other=0.0)
        dn = tl.load(grad_n + task * width + keys, mask=keys < width, other=0.0)
    for back in range(chunks):
        chunk = chunks - 1 - back
        start = chunk * CHUNK
        count = steps - start
        at = ((task // heads) * steps + start) * heads + head
        here = (rows < count)[:, None] & (keys < width)[None, :]
        here_v = (rows < count)[:, None] & (values < value_width)[None, :]
        place = task * chunks + chunk
        c = tl.load(states + place * width * value_width + of_state, mask=square, other=0.0)
        n = tl.load(norms + place * width + keys, mask=keys < width, other=0.0)
        m = tl.load(maxima + place)
        qs = _rows(q + at * width, rows, keys, heads * width, here)
        ks = _rows(k + at * width, rows, keys, heads * width, here)
        vs = _rows(v + at * value_width, rows, values, heads * value_width, here_v)
        weights, past, to_end, decay, running, _pairs, _high = _gates(i, f, at, heads, count, m, CHUNK)
        scored, total, floor, share = _sums(qs, ks, weights, past, n, decay, running, scale, PRECISION)
        by_num = tl.zeros([CHUNK, VALUE_WIDE], tl.float32)
        of_h = tl.zeros([CHUNK], tl.float32)
        if SEEN:
            dh = _rows(grad_h + at * value_width, rows, values, heads * value_width, here_v)
            by_num = dh * share[:, None]
            of_h = tl.sum(by_num * _rows(h + at * value_width, rows, values, heads * value_width, here_v), 1)
        free = tl.abs(total) > floor
        by_total = tl.where(free, tl.where(total > 0, -of_h, of_h), 0.0)
        tl.store(of_row + at + rows * heads, tl.where(free, 0.0, of_h * floor), mask=rows < count)
        tl.store(of_m + at + rows * heads, -of_h * _EPSILON, mask=rows < count)

        by_pair = tl.dot(by_num, tl.trans(vs), input_precision=PRECISION) + by_total[:, None]
        by_pair = by_pair * weights * scale
        through_state = tl.dot(by_num, tl.trans(c), input_precision=PRECISION) + by_total[:, None] * n[None, :]
        dq = tl.dot(by_pair, ks, input_precision=PRECISION) + past[:, None] * through_state
        to_end = to_end * scale
        to_state = tl.dot(vs, tl.trans(dc), input_precision=PRECISION) + dn[None, :]
        dk = tl.dot(tl.trans(by_pair), qs, input_precision=PRECISION) + to_end[:, None] * to_state
        dv = tl.dot(tl.trans(scored), by_num, input_precision=PRECISION)
        dv += to_end[:, None] * tl.dot(ks, dc, input_precision=PRECISION)
        tl.store(of_weights + at + rows * heads, tl.sum(ks * dk, 1), mask=rows < count)
        to_key = at * width + rows[:, None] * heads * width + keys[None, :]
        tl.store(d_q + to_key, dq.to(d_q.dtype.element_ty), mask=here)
        tl.store(d_k + to_key, dk.to(d_k.dtype.element_ty), mask=here)
        to_value = at * value_width + rows[:, None] * heads * value_width + values[None, :]
        tl.store(d_v + to_value, dv.to(d_v.dtype.element_ty), mask=here_v)

        kept = _last(past, CHUNK)
        seen = qs * past[:, None]
        dc = kept * dc + tl.dot(tl.trans(seen), by_num, input_precision=PRECISION)
        dn = kept * dn + tl.sum(seen * by_total[:, None], 0)
    tl.store(d_c + task * width * value_width + of_state, dc, mask=square)
    tl.store(d_n + task * width + keys, dn, mask=keys < width)
