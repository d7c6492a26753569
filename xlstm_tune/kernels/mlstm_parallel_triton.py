"""The mLSTM cell on a GPU for long sequences and heads of up to 512: programs share the chunks of each sequence.

Legend and equations as in `mlstm_reference`. A first kernel walks over the chunks and writes the states between them,
tile by tile; a second one makes h in each chunk. Back, one kernel walks over the chunks for the gradients of the
states, and four others make all else in each chunk.

Kept for the backward pass beside inputs and outputs: for each sample, head and chunk (of 64 steps) the state before it,
C in 2 D V bytes (bfloat16) or 4 D V (otherwise), n in 4 D, m in 8; and total, 4 bytes a step. All is linear in T.
Products of q and k, and the weights of pairs, are made again: that reads what is read anyway. The states are not, since
making them again would write and read them once more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from xlstm_tune.kernels import mlstm_states_triton as between
from xlstm_tune.kernels import mlstm_within_triton as within
from xlstm_tune.kernels.library import Kernel, register
from xlstm_tune.kernels.mlstm_parts_triton import PRODUCTS, kept_states
from xlstm_tune.kernels.mlstm_step_triton import step


@dataclass(frozen=True)
class Cut:
    """How a head is cut into tiles of features."""

    own: int
    """Largest tile of what a program of the parallel part writes."""
    other: int
    """Largest tile of the axis of the state that it goes over."""
    stages: int
    """How far it reads ahead."""


STATE_TILE = 64
"""Features of keys that a program of the recurrent part has; of values it has `Cut.other`."""
CUTS = {
    torch.bfloat16: Cut(128, 64, 2),
    torch.float16: Cut(64, 64, 1),
    torch.float32: Cut(64, 32, 1),
}
"""By the dtype of q: the largest tiles of which a kernel compiled for an H100 keeps nearly all in registers, and takes
no more shared memory than `SHARED`. They have not been timed on a GPU."""
SHARED = 98_304
"""Bytes of shared memory that the hungriest kernel takes at most; an A100 has 166,912, an H100 232,448."""

CHUNKS_AT_ONCE = 128
"""Of how many later chunks a program gathers what their stabilisers pass on to earlier inputs."""


def chunk_of(steps: int) -> int:
    """Steps of a chunk."""
    return min(64, max(16, int(triton.next_power_of_2(steps))))


def launches(dtype: torch.dtype, width: int, value_width: int, steps: int) -> dict[str, dict[str, int]]:
    """Launch options of the kernels of the recurrent part ("states"), and of those of the parallel part that write
    tiles of values ("values") or of keys ("keys")."""
    cut = CUTS[dtype]

    def options(tile: int, value_tile: int, warps: int = 4) -> dict[str, int]:
        tiles = {"TILE": tile, "VALUE_TILE": value_tile, "CHUNK": chunk_of(steps)}
        return tiles | {"num_warps": warps, "num_stages": cut.stages}

    own, own_values = _tile(width, cut.own), _tile(value_width, cut.own)
    other, other_values = _tile(width, cut.other), _tile(value_width, cut.other)
    return {
        "states": options(_tile(width, STATE_TILE), other_values),
        "values": options(other, own_values, 4 if own_values <= 64 else 8),
        "keys": options(own, other_values, 8),
    }


def _tile(width: int, largest: int) -> int:
    """A power of two from 16 on, as products need it."""
    return min(largest, max(16, int(triton.next_power_of_2(width))))


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
    launch = launches(q.dtype, width, v.shape[3], steps)
    tasks, chunks = batch * heads, -(-steps // chunk_of(steps))
    sizes, widths, scale = (steps, heads, chunks), (width, v.shape[3]), 1 / math.sqrt(width)
    states, norms, maxima = found[4:7] if keep else kept_states(q, v, chunks)
    precision = PRODUCTS[q.dtype][1]
    between.forward[(tasks, *_tiles(q, v, launch["states"]))](
        k, v, i, f, c0, n0, m0, c, n, m, states, norms, maxima, *sizes, *widths, scale,
        WARM=warm, PRECISION=precision, **launch["states"],
    )  # fmt: skip
    _, tiles = _tiles(q, v, launch["values"])
    within.forward[(tasks * chunks * tiles,)](
        q, k, v, i, f, h, states, norms, maxima, found[7], *sizes, tiles, *widths, scale,
        TRAIN=keep, PRECISION=precision, **launch["values"],
    )  # fmt: skip
    return found


def _tiles(q: Tensor, v: Tensor, options: dict[str, int]) -> tuple[int, int]:
    """How many a head has of keys, and of values."""
    return -(-q.shape[-1] // options["TILE"]), -(-v.shape[-1] // options["VALUE_TILE"])


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
    batch, steps, heads, width = q.shape
    launch = launches(q.dtype, width, v.shape[3], steps)
    tasks, chunks = batch * heads, states.shape[2]
    sizes, widths, scale = (steps, heads, chunks), (width, v.shape[3]), 1 / math.sqrt(width)
    seen, ended = grad_h is not None, grad_c is None and grad_n is None and grad_m is None
    dh = h if grad_h is None else grad_h.contiguous()
    # Where the final state has no gradients, its kernels read none: any tensor can stand for them.
    of_c, of_n, of_m = (c0, n0, torch.zeros_like(m0)) if ended else final_gradients(c, n, m0, grad_c, grad_n, grad_m)
    options: dict[str, Any] = {"SEEN": seen, "PRECISION": PRODUCTS[q.dtype][1]}

    past, shares, by_totals, by_m = (torch.empty_like(i) for _ in range(4))
    unplaced, ends = torch.empty_like(maxima, dtype=i.dtype), torch.empty_like(maxima, dtype=torch.int32)
    within.shares_back[(tasks * chunks,)](
        i, f, h, dh, maxima, totals, past, shares, by_totals, by_m, unplaced, ends, *sizes, v.shape[3],
        SEEN=seen, CHUNK=chunk_of(steps), VALUE_TILE=_tile(v.shape[3], 64), num_warps=4,
    )  # fmt: skip
    d_states, d_norms = torch.empty_like(states), torch.empty_like(norms)
    between.backward[(tasks, *_tiles(q, v, launch["states"]))](
        q, dh, of_c, of_n, past, shares, by_totals, d_states, d_norms, d_c, d_n, *sizes, *widths,
        ENDED=ended, **options, **launch["states"],
    )  # fmt: skip
    _, tiles = _tiles(q, v, launch["values"])
    within.values_back[(tasks * chunks * tiles,)](
        q, k, i, f, dh, maxima, shares, d_states, d_v, *sizes, tiles, *widths, scale, **options, **launch["values"]
    )
    tiles, _ = _tiles(q, v, launch["keys"])
    of_weights, of_rows = (i.new_empty(tiles, *i.shape) for _ in range(2))
    behind = i.new_empty(tiles, *states.shape[:3])
    within.keys_back[(tasks * chunks * tiles,)](
        q, k, v, i, f, dh, states, norms, maxima, totals, shares, by_totals, d_states, d_norms,
        d_q, d_k, of_weights, of_rows, behind, *sizes, tiles, i.numel(), *widths, scale,
        EXACT=tiles == 1 and h.dtype != torch.float32, **options, **launch["keys"],
    )  # fmt: skip
    if not ended:
        # The last m also divides C and n.
        of_m = of_m - (of_c * c).sum((-2, -1)) - (of_n * n).sum(-1)
    within.gates_back[(tasks * chunks,)](
        i, f, maxima, of_weights, of_rows, by_m, behind, unplaced, ends, of_m, d_i, d_f, d_m, *sizes, tiles, i.numel(),
        CHUNK=chunk_of(steps), BLOCK=CHUNKS_AT_ONCE, num_warps=4,
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
    batch, steps, heads, _ = q.shape
    chunks = -(-steps // chunk_of(steps)) if keep else 0
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
