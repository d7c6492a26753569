"""The Triton kernels of the sLSTM cell: many steps at once, forward and back, and single steps for wide heads.

Legend as in `slstm_reference`, whose equations these are; how the kernels are called and what they share out stands in
`slstm_triton`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from xlstm_tune.kernels.parts_triton import SIZES, gates_at, log_sigmoid, matrices, sigmoid, tanh


@triton.jit
def _cell(i, f, z, o, c, n, m, first):
    """A step from the gates' sums: (i', f', tanh z, σ(o), σ(-f), c', n', m'); `first`: n may be the empty state's 0."""
    past = log_sigmoid(f) + m
    m_new = tl.maximum(i, past)
    m_new = tl.where(first & (n == 0.0), i, m_new)
    f_log = past - m_new
    # With n = 0 its exponential multiplies zeros, and an overflow would make them NaN.
    f_weight = tl.exp(tl.where(first, tl.minimum(f_log, 44.0), f_log))
    i_weight = tl.exp(i - m_new)
    z = tanh(z)
    return i_weight, f_weight, z, sigmoid(o), sigmoid(-f), f_weight * c + i_weight * z, f_weight * n + i_weight, m_new


@triton.jit
def _cell_back(dh, dc, dn, dm, i_weight, f_weight, z, o, slope, c, n, c_new, n_new, first, STABILISED: tl.constexpr):
    """Gradients of the gates' sums and of c, n and m before the step; c_new and n_new stand behind it."""
    y = c_new / n_new
    by_cell = dh * o / n_new
    dc += by_cell
    dn -= by_cell * y
    d_i = i_weight * (dc * z + dn)
    d_f = f_weight * slope * (dc * c + dn * n)
    d_z = dc * i_weight * (1.0 - z * z)
    d_o = dh * y * o * (1.0 - o)
    if STABILISED:
        to_past = tl.where((f_weight > i_weight) & ~(first & (n == 0.0)), dm, 0.0)
        d_i += dm - to_past
        d_f += to_past * slope
        dm = to_past
    return d_i, d_f, d_z, d_o, dc * f_weight, dn * f_weight, dm


@triton.jit(do_not_specialize=SIZES)
def forward(
    gates, recurrent, bias, h0, c0, n0, m0, keep, h_out, c_out, n_out, m_out, saved, cells,
    batch, steps, count, heads, width,
    KEEP: tl.constexpr, WRITE: tl.constexpr, TRAIN: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
    WIDE: tl.constexpr, STAGES: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Program (tile of BLOCK samples and head), over S = `count` of T = `steps` steps.

    gates [N, B, T, 4, D], recurrent [N, 4, D out, D in], bias [N, 4, D], states [N, B, D], keep [N, B, T], h_out
    [B, T, N, D], written only if WRITE; gates, keep and h_out point to the first of these steps. saved [N, B, S, 5, D]
    and cells [N, B, S + 1, 2, D], written only if TRAIN.
    """
    width = width // EVEN * EVEN  # tells the compiler what divides it
    far = tl.cast(width, tl.int64)  # a step's numbers may begin beyond 32 bits
    program = tl.program_id(0).to(tl.int64)
    head, rows = program % heads, program // heads * BLOCK + tl.arange(0, BLOCK)
    units = tl.arange(0, WIDE)
    real = units < width
    here = (rows < batch)[:, None] & real[None, :]
    r_i, r_f, r_z, r_o = matrices(recurrent, head, width, True, WIDE)  # [in, out]
    b_i, b_f, b_z, b_o = gates_at(bias, (head * 4 * width + units)[None, :], width, real[None, :])
    place = ((head * batch + rows) * width)[:, None] + units[None, :]
    h = tl.load(h0 + place, mask=here, other=0.0)
    c = tl.load(c0 + place, mask=here, other=0.0)
    n = tl.load(n0 + place, mask=here, other=0.0)
    m = tl.load(m0 + place, mask=here, other=0.0)
    row_cells = ((head * batch + rows) * (count + 1) * 2 * width)[:, None] + units[None, :]
    if TRAIN:
        tl.store(cells + row_cells, n, mask=here)
        tl.store(cells + row_cells + width, c, mask=here)
    row_gates = ((head * batch + rows) * steps * 4 * width)[:, None] + units[None, :]
    row_saved = ((head * batch + rows) * count * 5 * width)[:, None] + units[None, :]
    row_h = ((rows * steps * heads + head) * width)[:, None] + units[None, :]
    # Asked for here, the gates are read ahead; left to itself Triton does so for operands of products alone.
    for t in tl.range(count, num_stages=STAGES):
        at = row_gates + t * 4 * far
        i, f, z, o = gates_at(gates, at, width, here)
        i, f, z, o = i + b_i, f + b_f, z + b_z, o + b_o
        if KEEP:
            h *= tl.load(keep + (head * batch + rows) * steps + t, mask=rows < batch, other=0.0)[:, None]
        seen = h.to(r_i.dtype)
        i += tl.dot(seen, r_i, input_precision=PRECISION)
        f += tl.dot(seen, r_f, input_precision=PRECISION)
        z += tl.dot(seen, r_z, input_precision=PRECISION)
        o += tl.dot(seen, r_o, input_precision=PRECISION)
        # Where a piece begins behind the start, n is no 0, so that asking does not matter.
        i_weight, f_weight, z, o, slope, c, n, m = _cell(i, f, z, o, c, n, m, t == 0)
        h = o * c / n
        if WRITE:
            tl.store(h_out + row_h + t * far * heads, h.to(h_out.dtype.element_ty), mask=here)
        if TRAIN:
            at = row_saved + t * 5 * far
            tl.store(saved + at, i_weight, mask=here)
            tl.store(saved + at + width, f_weight, mask=here)
            tl.store(saved + at + 2 * width, z, mask=here)
            tl.store(saved + at + 3 * width, o, mask=here)
            tl.store(saved + at + 4 * width, slope, mask=here)
            at = row_cells + (t + 1) * 2 * far
            tl.store(cells + at, n, mask=here)
            tl.store(cells + at + width, c, mask=here)
    tl.store(c_out + place, c, mask=here)
    tl.store(n_out + place, n, mask=here)
    tl.store(m_out + place, m, mask=here)


@triton.jit(do_not_specialize=SIZES)
def backward(
    recurrent, keep, saved, cells, grad_h, through, grad_c, grad_n, grad_m, d_gates, d_h, d_c, d_n, d_m,
    batch, steps, count, heads, width, begins, ends,
    KEEP: tl.constexpr, SEEN: tl.constexpr, STABILISED: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
    WIDE: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """As `forward`; grad_h [B, T, N, D] and d_gates [N, B, T, 4, D] point to the first of these steps too.

    through [N, B, D] is what the last h receives from the steps after these, grad_c, grad_n and grad_m what its state
    does. SEEN: h has gradients, grad_h. STABILISED: the final state has, so the stabiliser's path counts (see
    `slstm_reference.backward`); between steps dm is what it holds there. begins, ends: whether the sequence does so
    with these steps, 0 or 1; there, dm is m's own gradient.
    """
    width = width // EVEN * EVEN  # tells the compiler what divides it
    far = tl.cast(width, tl.int64)  # a step's numbers may begin beyond 32 bits
    program = tl.program_id(0).to(tl.int64)
    head, rows = program % heads, program // heads * BLOCK + tl.arange(0, BLOCK)
    units = tl.arange(0, WIDE)
    real = units < width
    here = (rows < batch)[:, None] & real[None, :]
    r_i, r_f, r_z, r_o = matrices(recurrent, head, width, False, WIDE)  # [out, in]
    place = ((head * batch + rows) * width)[:, None] + units[None, :]
    row_cells = ((head * batch + rows) * (count + 1) * 2 * width)[:, None] + units[None, :]
    row_gates = ((head * batch + rows) * steps * 4 * width)[:, None] + units[None, :]
    row_saved = ((head * batch + rows) * count * 5 * width)[:, None] + units[None, :]
    row_h = ((rows * steps * heads + head) * width)[:, None] + units[None, :]
    dh = tl.load(through + place, mask=here, other=0.0)
    dc = tl.load(grad_c + place, mask=here, other=0.0)
    dn = tl.load(grad_n + place, mask=here, other=0.0)
    dm = tl.load(grad_m + place, mask=here, other=0.0)
    at = row_cells + count * 2 * far
    n_new = tl.load(cells + at, mask=here, other=1.0)
    c_new = tl.load(cells + at + width, mask=here, other=0.0)
    if STABILISED:
        dm -= tl.where(ends != 0, n_new * dn + c_new * dc, 0.0)
    for back in range(count):
        t = count - 1 - back
        if SEEN:
            dh += tl.load(grad_h + row_h + t * far * heads, mask=here, other=0.0).to(tl.float32)
        at = row_saved + t * 5 * far
        i_weight = tl.load(saved + at, mask=here, other=0.0)
        f_weight = tl.load(saved + at + width, mask=here, other=0.0)
        z = tl.load(saved + at + 2 * width, mask=here, other=0.0)
        o = tl.load(saved + at + 3 * width, mask=here, other=0.0)
        slope = tl.load(saved + at + 4 * width, mask=here, other=0.0)
        at = row_cells + t * 2 * far
        n = tl.load(cells + at, mask=here, other=1.0)
        c = tl.load(cells + at + width, mask=here, other=0.0)
        d_i, d_f, d_z, d_o, dc, dn, dm = _cell_back(
            dh, dc, dn, dm, i_weight, f_weight, z, o, slope, c, n, c_new, n_new, t == 0, STABILISED
        )
        n_new, c_new = n, c
        d_i, d_f, d_z, d_o = d_i.to(r_i.dtype), d_f.to(r_i.dtype), d_z.to(r_i.dtype), d_o.to(r_i.dtype)
        at = row_gates + t * 4 * far
        tl.store(d_gates + at, d_i, mask=here)
        tl.store(d_gates + at + width, d_f, mask=here)
        tl.store(d_gates + at + 2 * width, d_z, mask=here)
        tl.store(d_gates + at + 3 * width, d_o, mask=here)
        dh = tl.dot(d_i, r_i, input_precision=PRECISION)
        dh += tl.dot(d_f, r_f, input_precision=PRECISION)
        dh += tl.dot(d_z, r_z, input_precision=PRECISION)
        dh += tl.dot(d_o, r_o, input_precision=PRECISION)
        if KEEP:
            dh *= tl.load(keep + (head * batch + rows) * steps + t, mask=rows < batch, other=0.0)[:, None]
    tl.store(d_h + place, dh, mask=here)
    tl.store(d_c + place, dc, mask=here)
    tl.store(d_n + place, dn, mask=here)
    # n_new and c_new are now those before these steps.
    tl.store(d_m + place, dm + tl.where(begins != 0, n_new * dn + c_new * dc, 0.0), mask=here)


@triton.jit(do_not_specialize=[*SIZES, "t"])
def step(
    gates, product, bias, c0, n0, m0, h, c1, n1, m1, saved, cells, batch, steps, count, heads, width, t,
    WRITE: tl.constexpr, TRAIN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One step, for wide heads; program (head and sample, tile of BLOCK units). gates [N, B, T, 4, D] less the product
    [N, B, 4, D] of R and h, and the bias; states [N, B, D] before and behind it; t, h [B, T, N, D], saved and cells as
    in `forward`."""
    row = tl.program_id(0).to(tl.int64)  # head and sample
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here, unit = d < width, row * width + d
    head, sample = row // batch, row % batch
    i, f, z, o = gates_at(gates, (row * steps + t) * 4 * width + d, width, here)
    p_i, p_f, p_z, p_o = gates_at(product, row * 4 * width + d, width, here)
    b_i, b_f, b_z, b_o = gates_at(bias, head * 4 * width + d, width, here)
    i, f, z, o = i + p_i + b_i, f + p_f + b_f, z + p_z + b_z, o + p_o + b_o
    c = tl.load(c0 + unit, mask=here, other=0.0)
    n = tl.load(n0 + unit, mask=here, other=0.0)
    m = tl.load(m0 + unit, mask=here, other=0.0)
    i_weight, f_weight, z, o, slope, c, n, m = _cell(i, f, z, o, c, n, m, t == 0)
    tl.store(c1 + unit, c, mask=here)
    tl.store(n1 + unit, n, mask=here)
    tl.store(m1 + unit, m, mask=here)
    if WRITE:
        tl.store(h + ((sample * steps + t) * heads + head) * width + d, (o * c / n).to(h.dtype.element_ty), mask=here)
    if TRAIN:
        at = (row * count + t) * 5 * width + d
        tl.store(saved + at, i_weight, mask=here)
        tl.store(saved + at + width, f_weight, mask=here)
        tl.store(saved + at + 2 * width, z, mask=here)
        tl.store(saved + at + 3 * width, o, mask=here)
        tl.store(saved + at + 4 * width, slope, mask=here)
        at = (row * (count + 1) + t + 1) * 2 * width + d
        tl.store(cells + at, n, mask=here)
        tl.store(cells + at + width, c, mask=here)


@triton.jit(do_not_specialize=[*SIZES, "t"])
def step_back(
    through, saved, cells, grad_h, d_c, d_n, d_m, d_gates, batch, steps, count, heads, width, t,
    SEEN: tl.constexpr, STABILISED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The way back of `step`, arguments as in `backward`: through [N, B, D] is what h receives from the step after it,
    in any dtype; d_c, d_n and d_m [N, B, D] are those behind the step and become those before it."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here, unit = d < width, row * width + d
    head, sample = row // batch, row % batch
    dh = tl.load(through + unit, mask=here, other=0.0).to(tl.float32)
    if SEEN:
        dh += tl.load(grad_h + ((sample * steps + t) * heads + head) * width + d, mask=here, other=0.0).to(tl.float32)
    at = (row * count + t) * 5 * width + d
    i_weight = tl.load(saved + at, mask=here, other=0.0)
    f_weight = tl.load(saved + at + width, mask=here, other=0.0)
    z = tl.load(saved + at + 2 * width, mask=here, other=0.0)
    o = tl.load(saved + at + 3 * width, mask=here, other=0.0)
    slope = tl.load(saved + at + 4 * width, mask=here, other=0.0)
    at = (row * (count + 1) + t) * 2 * width + d
    n = tl.load(cells + at, mask=here, other=1.0)
    c = tl.load(cells + at + width, mask=here, other=0.0)
    n_new = tl.load(cells + at + 2 * width, mask=here, other=1.0)
    c_new = tl.load(cells + at + 3 * width, mask=here, other=0.0)
    dc = tl.load(d_c + unit, mask=here, other=0.0)
    dn = tl.load(d_n + unit, mask=here, other=0.0)
    dm = tl.load(d_m + unit, mask=here, other=0.0)
    d_i, d_f, d_z, d_o, dc, dn, dm = _cell_back(
        dh, dc, dn, dm, i_weight, f_weight, z, o, slope, c, n, c_new, n_new, t == 0, STABILISED
    )
    tl.store(d_c + unit, dc, mask=here)
    tl.store(d_n + unit, dn, mask=here)
    tl.store(d_m + unit, dm, mask=here)
    at = (row * steps + t) * 4 * width + d
    tl.store(d_gates + at, d_i.to(d_gates.dtype.element_ty), mask=here)
    tl.store(d_gates + at + width, d_f.to(d_gates.dtype.element_ty), mask=here)
    tl.store(d_gates + at + 2 * width, d_z.to(d_gates.dtype.element_ty), mask=here)
    tl.store(d_gates + at + 3 * width, d_o.to(d_gates.dtype.element_ty), mask=here)
