"""The mLSTM kernels of the parallel part: what happens within each chunk, given the states around it.

Legend and equations as in `mlstm_reference`; how the kernels are called stands in `mlstm_parallel_triton`. A program
has one chunk of one head of one sample, and a tile of features of what it writes; it goes over the other axis of the
state in tiles. So no tile grows with the head.
"""

from __future__ import annotations

import triton
import triton.language as tl

from xlstm_tune.kernels.mlstm_parts_triton import (
    denominators,
    gates_of,
    largest_inputs,
    last,
    of_denominators,
    pairs_of,
    product,
    tile,
    write_gate_gradients,
)


@triton.jit
def _place(tiles, steps, heads, chunks, CHUNK: tl.constexpr):
    """Of this program: (where its chunk's state lies, where its first gate lies, steps from there to the end, its
    tile). Tiles of a chunk run side by side, since they read the same."""
    program = tl.program_id(0).to(tl.int64)
    place = program // tiles
    task, start = place // chunks, (place % chunks) * CHUNK
    at = ((task // heads) * steps + start) * heads + task % heads
    return place, at, steps - start, (program % tiles).to(tl.int32)


@triton.jit(do_not_specialize=["steps", "heads", "chunks", "tiles"])
def forward(
    q, k, v, i, f, h, states, norms, maxima, totals,
    steps, heads, chunks, tiles, width, value_width, scale,
    TRAIN: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr, VALUE_TILE: tl.constexpr,
):  # fmt: skip
    """h [B, T, N, V], by tiles of values, from the states before each chunk. If TRAIN: totals [B, T, N]."""
    kind: tl.constexpr = states.dtype.element_ty
    place, at, count, at_tile = _place(tiles, steps, heads, chunks, CHUNK)
    rows = tl.arange(0, CHUNK).to(tl.int64)
    values = at_tile * VALUE_TILE + tl.arange(0, VALUE_TILE)
    scores = tl.zeros([CHUNK, CHUNK], tl.float32)
    out = tl.zeros([CHUNK, VALUE_TILE], tl.float32)
    total = tl.zeros([CHUNK], tl.float32)
    for offset in range(0, width, TILE):
        keys = offset + tl.arange(0, TILE)
        here = (rows < count)[:, None] & (keys < width)[None, :]
        qs = tile(q + at * width, rows, keys, heads * width, here)
        ks = tile(k + at * width, rows, keys, heads * width, here)
        square = (keys < width)[:, None] & (values < value_width)[None, :]
        c = tile(states + place * width * value_width, keys, values, value_width, square)
        n = tl.load(norms + place * width + keys, mask=keys < width, other=0.0)
        scores += tl.dot(qs, tl.trans(ks), input_precision=PRECISION)
        out += product(qs, c, kind, PRECISION)
        total += tl.sum(qs.to(tl.float32) * n[None, :], 1)
    m = tl.load(maxima + place)
    weights, past, _to_end, decay, running, _segment, _high = gates_of(i, f, at, heads, count, m, CHUNK)
    scores = scores * weights * scale
    total = tl.sum(scores, 1) + past * total
    _floor, share = denominators(total, decay, running)
    if TRAIN:
        tl.store(totals + at + rows * heads, total, mask=rows < tl.where(at_tile == 0, count, 0))
    here_v = (rows < count)[:, None] & (values < value_width)[None, :]
    vs = tile(v + at * value_width, rows, values, heads * value_width, here_v)
    out = past[:, None] * out + product(scores, vs, kind, PRECISION)
    to_h = h + at * value_width + rows[:, None] * heads * value_width + values[None, :]
    tl.store(to_h, (out * share[:, None]).to(h.dtype.element_ty), mask=here_v)


@triton.jit(do_not_specialize=["steps", "heads", "chunks"])
def shares_back(
    i, f, h, grad_h, maxima, totals, past_out, shares, by_totals, of_m, unplaced, ends,
    steps, heads, chunks, value_width,
    SEEN: tl.constexpr, CHUNK: tl.constexpr, VALUE_TILE: tl.constexpr,
):  # fmt: skip
    """What the other kernels of the backward pass want of each step, all [B, T, N]: p, 1 / denominator, and the
    gradients of total and M_t.

    And of each chunk [B, N, G]: unplaced, the sum of what M_t receive for inputs before the chunk; ends, negative where
    what later M_t receive goes there too.
    """
    place, at, count, _tile = _place(1, steps, heads, chunks, CHUNK)
    rows = tl.arange(0, CHUNK).to(tl.int64)
    real = rows < count
    m = tl.load(maxima + place)
    _weights, past, _to_end, decay, running, segment, high = gates_of(i, f, at, heads, count, m, CHUNK)
    total = tl.load(totals + at + rows * heads, mask=real, other=0.0)
    floor, share = denominators(total, decay, running)
    of_h = tl.zeros([CHUNK], tl.float32)
    if SEEN:
        for offset in range(0, value_width, VALUE_TILE):
            values = offset + tl.arange(0, VALUE_TILE)
            here_v = real[:, None] & (values < value_width)[None, :]
            dh = tile(grad_h + at * value_width, rows, values, heads * value_width, here_v).to(tl.float32)
            of_h += tl.sum(dh * tile(h + at * value_width, rows, values, heads * value_width, here_v), 1)
    by_total, by_m = of_denominators(total, floor, of_h * share)
    tl.store(past_out + at + rows * heads, past, mask=real)
    tl.store(shares + at + rows * heads, share, mask=real)
    tl.store(by_totals + at + rows * heads, by_total, mask=real)
    tl.store(of_m + at + rows * heads, by_m, mask=real)
    newest = largest_inputs(pairs_of(segment, count, CHUNK), high, running, CHUNK)
    tl.store(unplaced + place, tl.sum(tl.where(real & (newest < 0), by_m, 0.0), 0))
    tl.store(ends + place, last(newest, CHUNK))


@triton.jit(do_not_specialize=["steps", "heads", "chunks", "tiles"])
def values_back(
    q, k, i, f, grad_h, maxima, shares, d_states, d_v,
    steps, heads, chunks, tiles, width, value_width, scale,
    SEEN: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr, VALUE_TILE: tl.constexpr,
):  # fmt: skip
    """d_v [B, T, N, V], by tiles of values, from the gradients of the states behind each chunk."""
    kind: tl.constexpr = d_states.dtype.element_ty
    place, at, count, at_tile = _place(tiles, steps, heads, chunks, CHUNK)
    rows = tl.arange(0, CHUNK).to(tl.int64)
    values = at_tile * VALUE_TILE + tl.arange(0, VALUE_TILE)
    scores = tl.zeros([CHUNK, CHUNK], tl.float32)
    dv = tl.zeros([CHUNK, VALUE_TILE], tl.float32)
    for offset in range(0, width, TILE):
        keys = offset + tl.arange(0, TILE)
        here = (rows < count)[:, None] & (keys < width)[None, :]
        ks = tile(k + at * width, rows, keys, heads * width, here)
        square = (keys < width)[:, None] & (values < value_width)[None, :]
        dc = tile(d_states + place * width * value_width, keys, values, value_width, square)
        dv += product(ks, dc, kind, PRECISION)
        if SEEN:
            qs = tile(q + at * width, rows, keys, heads * width, here)
            scores += tl.dot(qs, tl.trans(ks), input_precision=PRECISION)
    m = tl.load(maxima + place)
    weights, _past, to_end, _decay, _running, _segment, _high = gates_of(i, f, at, heads, count, m, CHUNK)
    dv = dv * (to_end * scale)[:, None]
    here_v = (rows < count)[:, None] & (values < value_width)[None, :]
    if SEEN:
        share = tl.load(shares + at + rows * heads, mask=rows < count, other=0.0)
        dh = tile(grad_h + at * value_width, rows, values, heads * value_width, here_v)
        dv += product(tl.trans(scores * weights * scale), dh * share[:, None], kind, PRECISION)
    to_value = d_v + at * value_width + rows[:, None] * heads * value_width + values[None, :]
    tl.store(to_value, dv.to(d_v.dtype.element_ty), mask=here_v)


@triton.jit(do_not_specialize=["steps", "heads", "chunks", "tiles", "total_steps"])
def keys_back(
    q, k, v, i, f, grad_h, states, norms, maxima, totals, shares, by_totals, d_states, d_norms,
    d_q, d_k, of_weights, of_rows, behind,
    steps, heads, chunks, tiles, total_steps, width, value_width, scale,
    SEEN: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr,
    VALUE_TILE: tl.constexpr,
):  # fmt: skip
    """d_q and d_k [B, T, N, D], by tiles of keys; and of each tile its part in of_weights and of_rows [tiles, B, T, N]
    and behind [tiles, B, N, G], as `write_gate_gradients` takes them. EXACT: one tile holds the head, and dh · h is
    made of what h was made of, since h was rounded, and what follows nearly cancels."""
    kind: tl.constexpr = states.dtype.element_ty
    place, at, count, at_tile = _place(tiles, steps, heads, chunks, CHUNK)
    rows = tl.arange(0, CHUNK).to(tl.int64)
    keys = at_tile * TILE + tl.arange(0, TILE)
    by_pair = tl.zeros([CHUNK, CHUNK], tl.float32)
    dq = tl.zeros([CHUNK, TILE], tl.float32)
    dk = tl.zeros([CHUNK, TILE], tl.float32)
    overlap = tl.zeros([TILE], tl.float32)
    share = tl.load(shares + at + rows * heads, mask=rows < count, other=0.0)
    for offset in range(0, value_width, VALUE_TILE):
        values = offset + tl.arange(0, VALUE_TILE)
        here_v = (rows < count)[:, None] & (values < value_width)[None, :]
        square = (keys < width)[:, None] & (values < value_width)[None, :]
        vs = tile(v + at * value_width, rows, values, heads * value_width, here_v)
        dc = tile(d_states + place * width * value_width, keys, values, value_width, square)
        c = tile(states + place * width * value_width, keys, values, value_width, square)
        dk += product(vs, tl.trans(dc), kind, PRECISION)
        overlap += tl.sum(c.to(tl.float32) * dc, 1)
        if SEEN:
            dh = tile(grad_h + at * value_width, rows, values, heads * value_width, here_v)
            by_num = (dh * share[:, None]).to(kind)
            by_pair += product(by_num, tl.trans(vs), kind, PRECISION)
            dq += product(by_num, tl.trans(c), kind, PRECISION)
    m = tl.load(maxima + place)
    weights, past, to_end, _decay, _running, _segment, _high = gates_of(i, f, at, heads, count, m, CHUNK)
    by_total = tl.load(by_totals + at + rows * heads, mask=rows < count, other=0.0)
    n = tl.load(norms + place * width + keys, mask=keys < width, other=0.0)
    dn = tl.load(d_norms + place * width + keys, mask=keys < width, other=0.0)
    here = (rows < count)[:, None] & (keys < width)[None, :]
    ks = tile(k + at * width, rows, keys, heads * width, here)
    qs = tile(q + at * width, rows, keys, heads * width, here)
    dk = (dk + dn[None, :]) * (to_end * scale)[:, None]
    by_weights = tl.sum(ks.to(tl.float32) * dk, 1)
    carried = last(past, CHUNK) * tl.sum(overlap + n * dn, 0) + tl.sum(by_weights, 0)
    by_rows = past * tl.sum(qs.to(tl.float32) * dq, 1)
    of_norm = past * tl.sum(qs.to(tl.float32) * n[None, :], 1)
    weights = weights * scale
    by_pair = by_pair * weights
    if EXACT:
        own = tl.sum(by_pair * tl.dot(qs, tl.trans(ks), input_precision=PRECISION), 1)
        of_h = share * (own + by_rows)
        total = tl.load(totals + at + rows * heads, mask=rows < count, other=0.0)
        by_total = tl.where(by_total == 0.0, 0.0, tl.where(total > 0, -of_h, of_h))
    by_rows += by_total * of_norm
    dq = (dq + by_total[:, None] * n[None, :]) * past[:, None]
    if SEEN:
        by_pair += by_total[:, None] * weights
        of_pairs = by_pair * tl.dot(qs, tl.trans(ks), input_precision=PRECISION)
        by_weights += tl.sum(of_pairs, 0)
        by_rows += tl.sum(of_pairs, 1)
        dq += product(by_pair, ks, kind, PRECISION)
        dk += product(tl.trans(by_pair), qs, kind, PRECISION)
    to_key = at * width + rows[:, None] * heads * width + keys[None, :]
    tl.store(d_q + to_key, dq.to(d_q.dtype.element_ty), mask=here)
    tl.store(d_k + to_key, dk.to(d_k.dtype.element_ty), mask=here)
    own_part = at_tile.to(tl.int64) * total_steps + at + rows * heads
    tl.store(of_weights + own_part, by_weights, mask=rows < count)
    tl.store(of_rows + own_part, by_rows, mask=rows < count)
    tl.store(behind + (tl.num_programs(0) // tiles) * at_tile.to(tl.int64) + place, carried)


@triton.jit(do_not_specialize=["steps", "heads", "chunks", "tiles", "total_steps"])
def gates_back(
    i, f, maxima, of_weights, of_rows, of_m, behind, unplaced, ends, to_m, d_i, d_f, to_initial,
    steps, heads, chunks, tiles, total_steps,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """d_i and d_f [B, T, N]. to_m, to_initial [B, N]: what the final m receives, and what the initial one does from the
    m of steps. What later M_t receive for inputs of this chunk or before is gathered from BLOCK chunks at a time."""
    place, at, count, _tile = _place(1, steps, heads, chunks, CHUNK)
    rows = tl.arange(0, CHUNK).to(tl.int64)
    real = rows < count
    task, chunk = place // chunks, (place % chunks).to(tl.int32)
    passed_on = 0.0
    stop = chunks
    for block in range(chunk + 1, chunks, BLOCK):
        later = block + tl.arange(0, BLOCK)
        end = tl.load(ends + task * chunks + later, mask=later < chunks, other=-1)
        stop = tl.minimum(stop, tl.min(tl.where(end >= 0, later, chunks), 0))
        counts = (later < chunks) & (later <= stop)
        passed_on += tl.sum(tl.load(unplaced + task * chunks + later, mask=counts, other=0.0), 0)
    if stop == chunks:
        passed_on += tl.load(to_m + task)
    by_weights, by_rows = tl.zeros([CHUNK], tl.float32), tl.zeros([CHUNK], tl.float32)
    carried = 0.0
    part, part_behind = at + rows * heads, behind + place
    for _ in range(tiles):
        by_weights += tl.load(of_weights + part, mask=real, other=0.0)
        by_rows += tl.load(of_rows + part, mask=real, other=0.0)
        carried += tl.load(part_behind)
        part += total_steps
        part_behind += tl.num_programs(0)
    by_m = tl.load(of_m + at + rows * heads, mask=real, other=0.0)
    m = tl.load(maxima + place)
    _weights, _past, _to_end, _decay, running, segment, high = gates_of(i, f, at, heads, count, m, CHUNK)
    passed_on = write_gate_gradients(
        f, d_i, d_f, at, heads, count, segment, high, running, by_weights, by_rows, by_m, carried, passed_on, CHUNK
    )
    if chunk == 0:
        tl.store(to_initial + task, passed_on)
