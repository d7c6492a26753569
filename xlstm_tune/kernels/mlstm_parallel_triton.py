"""The mLSTM cell on a GPU for long sequences and heads of up to 512: programs share the chunks of each sequence.

Legend and equations as in `mlstm_reference`. A first kernel walks over the chunks and writes the states between them,
tile by tile; a second one makes h in each chunk. Back, one kernel walks over the chunks for the gradients of the
states, and all else is made in each chunk: of five kernels two walk, and only one of these does the work of products.

Kept for the backward pass beside inputs and outputs: for each sample, head and chunk of 64 steps the state before it,
C in 2 D V bytes (bfloat16) or 4 D V (otherwise), n in 4 D, m in 8; and total, 4 bytes a step. All is linear in T.
Products of q and k, and the weights of pairs, are made again: that reads what is read anyway. The states are not, since
making them again would write and read them once more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from xlstm_tune.kernels import mlstm_states_triton as between
from xlstm_tune.kernels import mlstm_within_triton as within
from xlstm_tune.kernels.library import Kernel, register
from xlstm_tune.kernels.mlstm_parts_triton import PRODUCTS, kept_states
from xlstm_tune.kernels.mlstm_step_triton import step


@dataclass(frozen=True)
class _Cut:
    """How a sequence and a head are cut up."""

    chunk: int
    tile: int
    """Features of keys that a program takes at once."""
    value_tile: int
    warps: int

    def options(self, stages: int = 1) -> dict[str, int]:
        return {
            "CHUNK": self.chunk,
            "TILE": self.tile,
            "VALUE_TILE": self.value_tile,
            "num_warps": self.warps,
            "num_stages": stages,
        }


def _cut(q: Tensor, v: Tensor) -> _Cut:
    """By the number of steps and the widths of a head."""
    tile, value_tile = (min(64, max(16, triton.next_power_of_2(one.shape[-1]))) for one in (q, v))
    chunk = min(64, max(16, triton.next_power_of_2(q.shape[1])))
    return _Cut(chunk, tile, value_tile, 4)


def forward(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, c0: Tensor, n0: Tensor, m0: Tensor, keep: bool, warm: bool
) -> tuple[Tensor, ...]:
    """As `mlstm_triton.forward`, but for what is kept: states, norms, maxima and totals of the kernels."""
    found = forward_shapes(q, k, v, i, f, c0, n0, m0, keep, warm)
    h, c, n, m = found[:4]
    batch, steps, heads, width = q.shape
    if steps == 1 and not keep:
        step(q, k, v, i, f, c0, n0, m0, warm, h, c, n, m)
        return found
    cut = _cut(q, v)
    tiles, value_tiles = _tiles(q, v, cut)
    tasks, chunks = batch * heads, -(-steps // cut.chunk)
    sizes, widths, scale = (steps, heads, chunks), (width, v.shape[3]), 1 / math.sqrt(width)
    states, norms, maxima = found[4:7] if keep else kept_states(q, v, chunks)
    options = {"PRECISION": PRODUCTS[q.dtype][1], **cut.options()}
    between.forward[(tasks, tiles, value_tiles)](
        k, v, i, f, c0, n0, m0, c, n, m, states, norms, maxima, *sizes, *widths, scale, WARM=warm, **options
    )
    within.forward[(tasks * chunks * value_tiles,)](
        q, k, v, i, f, h, states, norms, maxima, found[7], *sizes, value_tiles, *widths, scale, TRAIN=keep, **options
    )
    return found


def _tiles(q: Tensor, v: Tensor, cut: _Cut) -> tuple[int, int]:
    """How many a head has of keys, and of values."""
    return -(-q.shape[-1] // cut.tile), -(-v.shape[-1] // cut.value_tile)


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    c0: Tensor,
    n0: Tensor,
    m0: Tensor,
    h: Tensor,
    c: Tensor,
    n: Tensor,
    states: Tensor,
    norms: Tensor,
    maxima: Tensor,
    totals: Tensor,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    grad_n: Tensor | None,
    grad_m: Tensor | None,
    warm: bool,
) -> tuple[Tensor, ...]:
    """Gradients of (q, k, v, i, f, c0, n0, m0), exact for any combination of output gradients."""
    d_q, d_k, d_v, d_i, d_f, d_c, d_n, d_m = found = backward_shapes(q, k, v, i, f, c0, n0, m0)
    cut = _cut(q, v)
    tiles, value_tiles = _tiles(q, v, cut)
    batch, steps, heads, width = q.shape
    tasks, chunks = batch * heads, states.shape[2]
    sizes, widths, scale = (steps, heads, chunks), (width, v.shape[3]), 1 / math.sqrt(width)
    seen, ended = grad_h is not None, grad_c is None and grad_n is None and grad_m is None
    dh = h if grad_h is None else grad_h.contiguous()
    of_c, of_n, of_m = final_gradients(c, n, m0, grad_c, grad_n, grad_m)
    options = {"SEEN": seen, "PRECISION": PRODUCTS[q.dtype][1], **cut.options()}

    past, shares, by_totals, by_row, by_m = (torch.empty_like(i) for _ in range(5))
    within.shares_back[(tasks * chunks,)](
        i, f, h, dh, maxima, totals, past, shares, by_totals, by_row, by_m, *sizes, v.shape[3],
        SEEN=seen, CHUNK=cut.chunk, VALUE_TILE=cut.value_tile, num_warps=cut.warps,
    )  # fmt: skip
    d_states, d_norms = torch.empty_like(states), torch.empty_like(norms)
    between.backward[(tasks, tiles, value_tiles)](
        q, dh, of_c, of_n, past, shares, by_totals, d_states, d_norms, d_c, d_n, *sizes, *widths,
        ENDED=ended, **options,
    )  # fmt: skip
    within.values_back[(tasks * chunks * value_tiles,)](
        q, k, i, f, dh, maxima, shares, d_states, d_v, *sizes, value_tiles, *widths, scale, **options
    )
    of_weights, behind = i.new_empty(tiles, *i.shape), i.new_empty(tiles, *states.shape[:3])
    within.keys_back[(tasks * chunks * tiles,)](
        q, k, v, i, f, dh, states, norms, maxima, shares, by_totals, d_states, d_norms, d_q, d_k, of_weights, behind,
        *sizes, tiles, i.numel(), *widths, scale, **options,
    )  # fmt: skip
    if not ended:
        # The last m also divides C and n.
        of_m = of_m - (of_c * c).sum((-2, -1)) - (of_n * n).sum(-1)
    within.gates_back[(tasks,)](
        i, f, maxima, of_weights, by_row, by_m, behind, of_m, d_i, d_f, d_m, *sizes, tiles, i.numel(),
        CHUNK=cut.chunk, num_warps=cut.warps,
    )  # fmt: skip
    if warm:
        d_m += (d_n * n0).sum(-1) + (d_c * c0).sum((-2, -1))
    else:
        for one in (d_c, d_n, d_m):
            one.zero_()
    return found


def final_gradients(
    c: Tensor, n: Tensor, m: Tensor, grad_c: Tensor | None, grad_n: Tensor | None, grad_m: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the final state, contiguous, zeros for None. m: any tensor like the final one."""
    given = zip((c, n, m), (grad_c, grad_n, grad_m), strict=True)
    of_c, of_n, of_m = (torch.zeros_like(one) if grad is None else grad.contiguous() for one, grad in given)
    return of_c, of_n, of_m


def forward_shapes(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, c0: Tensor, n0: Tensor, m0: Tensor, keep: bool, warm: bool
) -> tuple[Tensor, ...]:
    """Tensors like those that `forward` returns, not filled."""
    batch, steps, heads, width = q.shape
    chunks = -(-steps // _cut(q, v).chunk) if keep else 0
    return (
        torch.empty_like(v),
        *(torch.empty_like(one) for one in (c0, n0, m0)),
        *kept_states(q, v, chunks),
        i.new_empty(batch, steps if keep else 0, heads),
    )


def backward_shapes(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, c0: Tensor, n0: Tensor, m0: Tensor, *_: object
) -> tuple[Tensor, ...]:
    """Tensors like those that `backward` returns, not filled."""
    return tuple(torch.empty_like(tensor) for tensor in (q, k, v, i, f, c0, n0, m0))


by_parts = register(
    Kernel(
        name="mlstm_triton_parallel",
        inputs=dict.fromkeys(("q", "k", "v", "i", "f", "c0", "n0", "m0"), 0),
        constants={},
        outputs=dict.fromkeys(("h", "c", "n", "m"), 0),
        saved=dict.fromkeys(("states", "norms", "maxima", "totals"), 0),
        needs=("q", "k", "v", "i", "f", "c0", "n0", "m0", "h", "c", "n"),
        forward=forward,
        backward=backward,
        forward_shapes=forward_shapes,
        backward_shapes=backward_shapes,
        options={"warm": "bool"},
    )
)
