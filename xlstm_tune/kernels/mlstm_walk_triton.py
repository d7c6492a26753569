"""The mLSTM kernels that walk: a program goes over the chunks of one head of one sample, forward and back.

Legend and equations as in `mlstm_reference`; how the kernels are called stands in `mlstm_triton`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from xlstm_tune.kernels.mlstm_parts_triton import (
    denominators,
    gates_of,
    last,
    of_denominators,
    product,
    tile,
    write_gate_gradients,
)


@triton.jit(do_not_specialize=["steps", "heads", "chunks"])
def forward(
    q, k, v, i, f, c0, n0, m0, h, c_out, n_out, m_out, states, norms, maxima,
    steps, heads, chunks, width, value_width, scale,
    WARM: tl.constexpr, TRAIN: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr, WIDE: tl.constexpr,
    VALUE_WIDE: tl.constexpr,
):  # fmt: skip
    """q, k [B, T, N, D], v, h [B, T, N, V], i, f [B, T, N], states c0 [B, N, D, V], n0 [B, N, D], m0 [B, N].

    If TRAIN: the states before each chunk in states [B, N, G, D, V], norms [B, N, G, D], maxima [B, N, G] (float64).
    """
    kind: tl.constexpr = states.dtype.element_ty
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
    for chunk in range(chunks):
        start = chunk * CHUNK
        count = steps - start
        at = ((task // heads) * steps + start) * heads + head
        here = (rows < count)[:, None] & (keys < width)[None, :]
        here_v = (rows < count)[:, None] & (values < value_width)[None, :]
        qs = tile(q + at * width, rows, keys, heads * width, here)
        ks = tile(k + at * width, rows, keys, heads * width, here)
        vs = tile(v + at * value_width, rows, values, heads * value_width, here_v)
        weights, past, to_end, decay, running, _segment, _high = gates_of(i, f, at, heads, count, m, CHUNK)
        if TRAIN:
            place = task * chunks + chunk
            tl.store(states + place * width * value_width + of_state, c.to(kind), mask=square)
            tl.store(norms + place * width + keys, n, mask=keys < width)
            tl.store(maxima + place, m)
        scored = tl.dot(qs, tl.trans(ks), input_precision=PRECISION) * weights * scale
        total = tl.sum(scored, 1) + past * tl.sum(qs.to(tl.float32) * n[None, :], 1)
        _floor, share = denominators(total, decay, running)
        out = past[:, None] * product(qs, c, kind, PRECISION)
        out += product(scored, vs, kind, PRECISION)
        to_h = h + at * value_width + rows[:, None] * heads * value_width + values[None, :]
        tl.store(to_h, (out * share[:, None]).to(h.dtype.element_ty), mask=here_v)
        kept = last(past, CHUNK)
        weighed = ks.to(tl.float32) * (to_end * scale)[:, None]
        c = kept * c + product(tl.trans(weighed), vs, kind, PRECISION)
        n = kept * n + tl.sum(weighed, 0)
        m = last(decay, CHUNK) + last(running, CHUNK)
    tl.store(c_out + task * width * value_width + of_state, c, mask=square)
    tl.store(n_out + task * width + keys, n, mask=keys < width)
    tl.store(m_out + task, m.to(tl.float32))


@triton.jit(do_not_specialize=["steps", "heads", "chunks"])
def backward(
    q, k, v, i, f, c0, n0, c_out, n_out, states, norms, maxima, grad_h, grad_c, grad_n, grad_m,
    d_q, d_k, d_v, d_i, d_f, d_c, d_n, d_m,
    steps, heads, chunks, width, value_width, scale,
    WARM: tl.constexpr, SEEN: tl.constexpr, ENDED: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr,
    WIDE: tl.constexpr, VALUE_WIDE: tl.constexpr,
):  # fmt: skip
    """As `forward`. SEEN: h has gradients; ENDED: the final state has none."""
    kind: tl.constexpr = states.dtype.element_ty
    task = tl.program_id(0).to(tl.int64)
    head = task % heads
    keys, values, rows = tl.arange(0, WIDE), tl.arange(0, VALUE_WIDE), tl.arange(0, CHUNK).to(tl.int64)
    square = (keys < width)[:, None] & (values < value_width)[None, :]
    of_state = keys[:, None] * value_width + values[None, :]
    at_state, at_norm = task * width * value_width + of_state, task * width + keys
    dc = tl.zeros([WIDE, VALUE_WIDE], tl.float32)
    dn = tl.zeros([WIDE], tl.float32)
    passed_on = 0.0
    if not ENDED:
        dc = tl.load(grad_c + at_state, mask=square, other=0.0)
        dn = tl.load(grad_n + at_norm, mask=keys < width, other=0.0)
        # The last m also divides C and n.
        passed_on = tl.load(grad_m + task)
        passed_on -= tl.sum(tl.sum(dc * tl.load(c_out + at_state, mask=square, other=0.0), 1), 0)
        passed_on -= tl.sum(dn * tl.load(n_out + at_norm, mask=keys < width, other=0.0), 0)
    for back in range(chunks):
        chunk = chunks - 1 - back
        start = chunk * CHUNK
        count = steps - start
        at = ((task // heads) * steps + start) * heads + head
        here = (rows < count)[:, None] & (keys < width)[None, :]
        here_v = (rows < count)[:, None] & (values < value_width)[None, :]
        place = task * chunks + chunk
        n = tl.load(norms + place * width + keys, mask=keys < width, other=0.0)
        m = tl.load(maxima + place)
        qs = tile(q + at * width, rows, keys, heads * width, here)
        ks = tile(k + at * width, rows, keys, heads * width, here)
        weights, past, to_end, decay, running, segment, high = gates_of(i, f, at, heads, count, m, CHUNK)
        scored = tl.dot(qs, tl.trans(ks), input_precision=PRECISION) * weights * scale
        total = tl.sum(scored, 1) + past * tl.sum(qs.to(tl.float32) * n[None, :], 1)
        floor, share = denominators(total, decay, running)
        by_num = tl.zeros([CHUNK, VALUE_WIDE], tl.float32)
        if SEEN:
            by_num = tile(grad_h + at * value_width, rows, values, heads * value_width, here_v) * share[:, None]
        vs = tile(v + at * value_width, rows, values, heads * value_width, here_v)
        c = tl.load(states + place * width * value_width + of_state, mask=square, other=0.0)
        by_pair = product(by_num, tl.trans(vs), kind, PRECISION)
        from_state = product(by_num, tl.trans(c), kind, PRECISION)
        # dh · h / denominator, by what h was made of: h itself was rounded, and what follows nearly cancels.
        of_h = share * (tl.sum(by_pair * scored, 1) + past * tl.sum(qs.to(tl.float32) * from_state, 1))
        by_total, of_m = of_denominators(total, floor, of_h)
        to_end = to_end * scale
        dv = product(tl.trans(scored), by_num, kind, PRECISION)
        dv += to_end[:, None] * product(ks, dc, kind, PRECISION)
        to_value = at * value_width + rows[:, None] * heads * value_width + values[None, :]
        tl.store(d_v + to_value, dv.to(d_v.dtype.element_ty), mask=here_v)

        by_pair = by_pair + by_total[:, None]
        of_pairs = by_pair * scored
        by_pair = by_pair * weights * scale
        to_key = at * width + rows[:, None] * heads * width + keys[None, :]
        from_state = past[:, None] * (from_state + by_total[:, None] * n[None, :])
        of_rows = tl.sum(of_pairs, 1) + tl.sum(qs.to(tl.float32) * from_state, 1)
        dq = product(by_pair, ks, kind, PRECISION) + from_state
        tl.store(d_q + to_key, dq.to(d_q.dtype.element_ty), mask=here)
        kept = last(past, CHUNK)
        behind = kept * (tl.sum(tl.sum(c.to(tl.float32) * dc, 1), 0) + tl.sum(n * dn, 0))

        to_state = to_end[:, None] * (product(vs, tl.trans(dc), kind, PRECISION) + dn[None, :])
        dk = product(tl.trans(by_pair), qs, kind, PRECISION) + to_state
        tl.store(d_k + to_key, dk.to(d_k.dtype.element_ty), mask=here)
        of_kept = tl.sum(ks.to(tl.float32) * to_state, 1)
        behind += tl.sum(of_kept, 0)
        passed_on = write_gate_gradients(
            f, d_i, d_f, at, heads, count, segment, high, running, tl.sum(of_pairs, 0) + of_kept, of_rows, of_m,
            behind, passed_on, CHUNK,
        )  # fmt: skip
        seen = qs.to(tl.float32) * past[:, None]
        dc = kept * dc + product(tl.trans(seen), by_num, kind, PRECISION)
        dn = kept * dn + tl.sum(seen * by_total[:, None], 0)
    if WARM:
        passed_on += tl.sum(tl.sum(dc * tl.load(c0 + at_state, mask=square, other=0.0), 1), 0)
        passed_on += tl.sum(dn * tl.load(n0 + at_norm, mask=keys < width, other=0.0), 0)
    else:
        dc, dn, passed_on = tl.zeros([WIDE, VALUE_WIDE], tl.float32), tl.zeros([WIDE], tl.float32), 0.0
    tl.store(d_c + at_state, dc, mask=square)
    tl.store(d_n + at_norm, dn, mask=keys < width)
    tl.store(d_m + task, passed_on)
