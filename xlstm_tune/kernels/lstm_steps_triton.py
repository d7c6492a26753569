"""The Triton kernels of the LSTM cell, built as sLSTM's: many steps at once, and single steps for wide heads.

Legend as in `lstm_reference`, whose equations these are; how the kernels are called and what they share out stands in
`lstm_triton`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from xlstm_tune.kernels.parts_triton import SIZES, gates_at, matrices, sigmoid, tanh


@triton.jit
def _cell_back(dh, dc, i, f, g, o, c, c_new):
    """Gradients of the gates' sums and of c before the step; c_new stands behind it."""
    y = tanh(c_new)
    dc += dh * o * (1.0 - y * y)
    d_o = dh * y * o * (1.0 - o)
    return dc * g * i * (1.0 - i), dc * c * f * (1.0 - f), dc * i * (1.0 - g * g), d_o, dc * f


@triton.jit(do_not_specialize=SIZES)
def forward(
    gates, recurrent, bias, h0, c0, keep, h_out, c_out, saved, cells, batch, steps, count, heads, width,
    KEEP: tl.constexpr, WRITE: tl.constexpr, TRAIN: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
    WIDE: tl.constexpr, STAGES: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Program (tile of BLOCK samples and head), over S = `count` of T = `steps` steps.

    gates [N, B, T, 4, D], recurrent [N, 4, D out, D in], bias [N, 4, D], states [N, B, D], keep [N, B, T], h_out
    [B, T, N, D], written only if WRITE; gates, keep and h_out point to the first of these steps. saved [N, B, S, 4, D]
    and cells [N, B, S + 1, D], written only if TRAIN.
    """
    width = width // EVEN * EVEN  # tells the compiler what divides it
    far = tl.cast(width, tl.int64)  # a step's numbers may begin beyond 32 bits
    program = tl.program_id(0).to(tl.int64)
    head, rows = program % heads, program // heads * BLOCK + tl.arange(0, BLOCK)
    units = tl.arange(0, WIDE)
    real = units < width
    here = (rows < batch)[:, None] & real[None, :]
    r_i, r_f, r_g, r_o = matrices(recurrent, head, width, True, WIDE)  # [in, out]
    b_i, b_f, b_g, b_o = gates_at(bias, (head * 4 * width + units)[None, :], width, real[None, :])
    place = ((head * batch + rows) * width)[:, None] + units[None, :]
    h = tl.load(h0 + place, mask=here, other=0.0)
    c = tl.load(c0 + place, mask=here, other=0.0)
    row_cells = ((head * batch + rows) * (count + 1) * width)[:, None] + units[None, :]
    if TRAIN:
        tl.store(cells + row_cells, c, mask=here)
    row_gates = ((head * batch + rows) * steps * 4 * width)[:, None] + units[None, :]
    row_saved = ((head * batch + rows) * count * 4 * width)[:, None] + units[None, :]
    row_h = ((rows * steps * heads + head) * width)[:, None] + units[None, :]
    # Asked for here, the gates are read ahead; left to itself Triton does so for operands of products alone.
    for t in tl.range(count, num_stages=STAGES):
        at = row_gates + t * 4 * far
        i, f, g, o = gates_at(gates, at, width, here)
        i, f, g, o = i + b_i, f + b_f, g + b_g, o + b_o
        if KEEP:
            h *= tl.load(keep + (head * batch + rows) * steps + t, mask=rows < batch, other=0.0)[:, None]
        seen = h.to(r_i.dtype)
        i = sigmoid(i + tl.dot(seen, r_i, input_precision=PRECISION))
        f = sigmoid(f + tl.dot(seen, r_f, input_precision=PRECISION))
        g = tanh(g + tl.dot(seen, r_g, input_precision=PRECISION))
        o = sigmoid(o + tl.dot(seen, r_o, input_precision=PRECISION))
        c = f * c + i * g
        h = o * tanh(c)
        if WRITE:
            tl.store(h_out + row_h + t * far * heads, h.to(h_out.dtype.element_ty), mask=here)
        if TRAIN:
            at = row_saved + t * 4 * far
            tl.store(saved + at, i, mask=here)
            tl.store(saved + at + width, f, mask=here)
            tl.store(saved + at + 2 * width, g, mask=here)
            tl.store(saved + at + 3 * width, o, mask=here)
            tl.store(cells + row_cells + (t + 1) * far, c, mask=here)
    tl.store(c_out + place, c, mask=here)


@triton.jit(do_not_specialize=SIZES)
def backward(
    recurrent, keep, saved, cells, grad_h, through, grad_c, d_gates, d_h, d_c, batch, steps, count, heads, width,
    KEEP: tl.constexpr, SEEN: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """As `forward`; grad_h [B, T, N, D] and d_gates [N, B, T, 4, D] point to the first of these steps too.

    through [N, B, D] is what the last h receives from the steps after these, grad_c what its c does. SEEN: h has
    gradients, grad_h.
    """
    width = width // EVEN * EVEN  # tells the compiler what divides it
    far = tl.cast(width, tl.int64)  # a step's numbers may begin beyond 32 bits
    program = tl.program_id(0).to(tl.int64)
    head, rows = program % heads, program // heads * BLOCK + tl.arange(0, BLOCK)
    units = tl.arange(0, WIDE)
    real = units < width
    here = (rows < batch)[:, None] & real[None, :]
    r_i, r_f, r_g, r_o = matrices(recurrent, head, width, False, WIDE)  # [out, in]
    place = ((head * batch + rows) * width)[:, None] + units[None, :]
    row_cells = ((head * batch + rows) * (count + 1) * width)[:, None] + units[None, :]
    row_gates = ((head * batch + rows) * steps * 4 * width)[:, None] + units[None, :]
    row_saved = ((head * batch + rows) * count * 4 * width)[:, None] + units[None, :]
    row_h = ((rows * steps * heads + head) * width)[:, None] + units[None, :]
    dh = tl.load(through + place, mask=here, other=0.0)
    dc = tl.load(grad_c + place, mask=here, other=0.0)
    c_new = tl.load(cells + row_cells + count * far, mask=here, other=0.0)
    for back in range(count):
        t = count - 1 - back
        if SEEN:
            dh += tl.load(grad_h + row_h + t * far * heads, mask=here, other=0.0).to(tl.float32)
        at = row_saved + t * 4 * far
        i = tl.load(saved + at, mask=here, other=0.0)
        f = tl.load(saved + at + width, mask=here, other=0.0)
        g = tl.load(saved + at + 2 * width, mask=here, other=0.0)
        o = tl.load(saved + at + 3 * width, mask=here, other=0.0)
        c = tl.load(cells + row_cells + t * far, mask=here, other=0.0)
        d_i, d_f, d_g, d_o, dc = _cell_back(dh, dc, i, f, g, o, c, c_new)
        c_new = c
        d_i, d_f, d_g, d_o = d_i.to(r_i.dtype), d_f.to(r_i.dtype), d_g.to(r_i.dtype), d_o.to(r_i.dtype)
        at = row_gates + t * 4 * far
        tl.store(d_gates + at, d_i, mask=here)
        tl.store(d_gates + at + width, d_f, mask=here)
        tl.store(d_gates + at + 2 * width, d_g, mask=here)
        tl.store(d_gates + at + 3 * width, d_o, mask=here)
        dh = tl.dot(d_i, r_i, input_precision=PRECISION)
        dh += tl.dot(d_f, r_f, input_precision=PRECISION)
        dh += tl.dot(d_g, r_g, input_precision=PRECISION)
        dh += tl.dot(d_o, r_o, input_precision=PRECISION)
        if KEEP:
            dh *= tl.load(keep + (head * batch + rows) * steps + t, mask=rows < batch, other=0.0)[:, None]
    tl.store(d_h + place, dh, mask=here)
    tl.store(d_c + place, dc, mask=here)


@triton.jit(do_not_specialize=[*SIZES, "t"])
def step(
    gates, product, bias, c0, h, c1, saved, cells, batch, steps, count, heads, width, t,
    WRITE: tl.constexpr, TRAIN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One step, for wide heads; program (head and sample, tile of BLOCK units). gates [N, B, T, 4, D] less the product
    [N, B, 4, D] of R and h, and the bias; c [N, B, D] before and behind it; t, h [B, T, N, D], saved and cells as in
    `forward`."""
    row = tl.program_id(0).to(tl.int64)  # head and sample
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here, unit = d < width, row * width + d
    head, sample = row // batch, row % batch
    i, f, g, o = gates_at(gates, (row * steps + t) * 4 * width + d, width, here)
    p_i, p_f, p_g, p_o = gates_at(product, row * 4 * width + d, width, here)
    b_i, b_f, b_g, b_o = gates_at(bias, head * 4 * width + d, width, here)
    i, f, g, o = i + p_i + b_i, f + p_f + b_f, g + p_g + b_g, o + p_o + b_o
    i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
    c = f * tl.load(c0 + unit, mask=here, other=0.0) + i * g
    tl.store(c1 + unit, c, mask=here)
    if WRITE:
        tl.store(h + ((sample * steps + t) * heads + head) * width + d, (o * tanh(c)).to(h.dtype.element_ty), mask=here)
    if TRAIN:
        at = (row * count + t) * 4 * width + d
        tl.store(saved + at, i, mask=here)
        tl.store(saved + at + width, f, mask=here)
        tl.store(saved + at + 2 * width, g, mask=here)
        tl.store(saved + at + 3 * width, o, mask=here)
        tl.store(cells + (row * (count + 1) + t + 1) * width + d, c, mask=here)


@triton.jit(do_not_specialize=[*SIZES, "t"])
def step_back(
    through, saved, cells, grad_h, d_c, d_gates, batch, steps, count, heads, width, t,
    SEEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The way back of `step`, arguments as in `backward`: through [N, B, D] is what h receives from the step after it,
    in any dtype; d_c [N, B, D] is that behind the step and becomes that before it."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here, unit = d < width, row * width + d
    head, sample = row // batch, row % batch
    dh = tl.load(through + unit, mask=here, other=0.0).to(tl.float32)
    if SEEN:
        dh += tl.load(grad_h + ((sample * steps + t) * heads + head) * width + d, mask=here, other=0.0).to(tl.float32)
    at = (row * count + t) * 4 * width + d
    i = tl.load(saved + at, mask=here, other=0.0)
    f = tl.load(saved + at + width, mask=here, other=0.0)
    g = tl.load(saved + at + 2 * width, mask=here, other=0.0)
    o = tl.load(saved + at + 3 * width, mask=here, other=0.0)
    at_cells = (row * (count + 1) + t) * width + d
    c = tl.load(cells + at_cells, mask=here, other=0.0)
    c_new = tl.load(cells + at_cells + width, mask=here, other=0.0)
    d_i, d_f, d_g, d_o, dc = _cell_back(dh, tl.load(d_c + unit, mask=here, other=0.0), i, f, g, o, c, c_new)
    tl.store(d_c + unit, dc, mask=here)
    at = (row * steps + t) * 4 * width + d
    tl.store(d_gates + at, d_i.to(d_gates.dtype.element_ty), mask=here)
    tl.store(d_gates + at + width, d_f.to(d_gates.dtype.element_ty), mask=here)
    tl.store(d_gates + at + 2 * width, d_g.to(d_gates.dtype.element_ty), mask=here)
    tl.store(d_gates + at + 3 * width, d_o.to(d_gates.dtype.element_ty), mask=here)
