"""The mLSTM kernels of the recurrent part: states before each chunk, and back, their gradients behind each chunk.

Legend and equations as in `mlstm_reference`; how the kernels are called stands in `mlstm_parallel_triton`. A program
has a tile of the state of one head of one sample, TILE features of keys by VALUE_TILE of values.
"""

from __future__ import annotations

import triton
import triton.language as tl

from xlstm_tune.kernels.mlstm_parts_triton import gates_at_end, product, tile


@triton.jit(do_not_specialize=["steps", "heads", "chunks"])
def forward(
    k, v, i, f, c0, n0, m0, c_out, n_out, m_out, states, norms, maxima,
    steps, heads, chunks, width, value_width, scale,
    WARM: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr, VALUE_TILE: tl.constexpr,
):  # fmt: skip
    """k [B, T, N, D], v [B, T, N, V], i, f [B, T, N], states c0 [B, N, D, V], n0 [B, N, D], m0 [B, N].

    Writes the states before each chunk to states [B, N, G, D, V], norms [B, N, G, D], maxima [B, N, G] (float64).
    """
    kind: tl.constexpr = states.dtype.element_ty
    task = tl.program_id(0).to(tl.int64)  # sample and head
    head = task % heads
    first = (tl.program_id(1) == 0) & (tl.program_id(2) == 0)
    rows = tl.arange(0, CHUNK).to(tl.int64)
    keys = tl.program_id(1) * TILE + tl.arange(0, TILE)
    values = tl.program_id(2) * VALUE_TILE + tl.arange(0, VALUE_TILE)
    square = (keys < width)[:, None] & (values < value_width)[None, :]
    once = keys < tl.where(tl.program_id(2) == 0, width, 0)
    of_state = keys[:, None] * value_width + values[None, :]
    c = tl.zeros([TILE, VALUE_TILE], tl.float32)
    n = tl.zeros([TILE], tl.float32)
    m = tl.load(m0 + task).to(tl.float64)
    if WARM:
        c = tl.load(c0 + task * width * value_width + of_state, mask=square, other=0.0)
        n = tl.load(n0 + task * width + keys, mask=keys < width, other=0.0)
    for chunk in range(chunks):
        start = chunk * CHUNK
        count = steps - start
        at = ((task // heads) * steps + start) * heads + head
        place = task * chunks + chunk
        tl.store(states + place * width * value_width + of_state, c.to(kind), mask=square)
        tl.store(norms + place * width + keys, n, mask=once)
        if first:
            tl.store(maxima + place, m)
        ks = tile(k + at * width, rows, keys, heads * width, (rows < count)[:, None] & (keys < width)[None, :])
        here_v = (rows < count)[:, None] & (values < value_width)[None, :]
        vs = tile(v + at * value_width, rows, values, heads * value_width, here_v)
        to_end, kept, m = gates_at_end(i, f, at, heads, count, m, CHUNK)
        weighed = ks.to(tl.float32) * (to_end * scale)[:, None]
        c = kept * c + product(tl.trans(weighed), vs, kind, PRECISION)
        n = kept * n + tl.sum(weighed, 0)
    tl.store(c_out + task * width * value_width + of_state, c, mask=square)
    tl.store(n_out + task * width + keys, n, mask=once)
    if first:
        tl.store(m_out + task, m.to(tl.float32))


@triton.jit(do_not_specialize=["steps", "heads", "chunks"])
def backward(
    q, grad_h, grad_c, grad_n, past, shares, by_totals, d_states, d_norms, d_c, d_n,
    steps, heads, chunks, width, value_width,
    SEEN: tl.constexpr, ENDED: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr,
    VALUE_TILE: tl.constexpr,
):  # fmt: skip
    """past [B, T, N]: p. shares, by_totals [B, T, N]: 1 / denominator, and the gradient of total.

    Writes the gradients of the states behind each chunk to d_states and d_norms, as `states` and `norms` are, and those
    of the initial state to d_c and d_n. SEEN: h has gradients; ENDED: the final state has none.
    """
    kind: tl.constexpr = d_states.dtype.element_ty
    task = tl.program_id(0).to(tl.int64)
    head = task % heads
    rows = tl.arange(0, CHUNK).to(tl.int64)
    keys = tl.program_id(1) * TILE + tl.arange(0, TILE)
    values = tl.program_id(2) * VALUE_TILE + tl.arange(0, VALUE_TILE)
    square = (keys < width)[:, None] & (values < value_width)[None, :]
    once = keys < tl.where(tl.program_id(2) == 0, width, 0)
    of_state = keys[:, None] * value_width + values[None, :]
    dc = tl.zeros([TILE, VALUE_TILE], tl.float32)
    dn = tl.zeros([TILE], tl.float32)
    if not ENDED:
        dc = tl.load(grad_c + task * width * value_width + of_state, mask=square, other=0.0)
        dn = tl.load(grad_n + task * width + keys, mask=keys < width, other=0.0)
    for back in range(chunks):
        chunk = chunks - 1 - back
        start = chunk * CHUNK
        count = steps - start
        at = ((task // heads) * steps + start) * heads + head
        place = task * chunks + chunk
        tl.store(d_states + place * width * value_width + of_state, dc.to(kind), mask=square)
        tl.store(d_norms + place * width + keys, dn, mask=once)
        weight = tl.load(past + at + rows * heads, mask=rows < count, other=0.0)
        kept = tl.load(past + at + (tl.minimum(count, CHUNK) - 1).to(tl.int64) * heads)
        dc, dn = kept * dc, kept * dn
        if SEEN:
            qs = tile(q + at * width, rows, keys, heads * width, (rows < count)[:, None] & (keys < width)[None, :])
            here_v = (rows < count)[:, None] & (values < value_width)[None, :]
            dh = tile(grad_h + at * value_width, rows, values, heads * value_width, here_v)
            share = tl.load(shares + at + rows * heads, mask=rows < count, other=0.0)
            by_total = tl.load(by_totals + at + rows * heads, mask=rows < count, other=0.0)
            seen = qs.to(tl.float32) * weight[:, None]
            dc += product(tl.trans(seen), dh * share[:, None], kind, PRECISION)
            dn += tl.sum(seen * by_total[:, None], 0)
    tl.store(d_c + task * width * value_width + of_state, dc, mask=square)
    tl.store(d_n + task * width + keys, dn, mask=once)
