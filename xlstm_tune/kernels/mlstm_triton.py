"""The mLSTM cell on a GPU, in two designs: this one walks, one program for each head of a sample, over its chunks.

Legend and equations as in `mlstm_reference`. The state stays on chip from chunk to chunk, and within a chunk all pairs
of steps are products of tiles: many short sequences with heads of up to 128 fill the device with programs. What else
there is runs as in `mlstm_parallel_triton`; `dispatch.mlstm_design` chooses. A single step without gradients has a
kernel of its own. Nothing here has been timed on a GPU.

Kept for the backward pass beside inputs and the final state: for each sample, head and chunk the state before it, C in
2 D V bytes (bfloat16) or 4 D V (otherwise), n in 4 D, m in 8. A chunk has 32 steps for bfloat16 heads of up to 64, and
16 otherwise. The rest is computed again.
"""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from xlstm_tune.kernels import mlstm_walk_triton as kernels
from xlstm_tune.kernels.dispatch import mlstm_design
from xlstm_tune.kernels.library import Kernel, members, register
from xlstm_tune.kernels.mlstm_forms import MLSTMState
from xlstm_tune.kernels.mlstm_parallel_triton import backward_shapes, by_parts, final_gradients
from xlstm_tune.kernels.mlstm_parts_triton import PRODUCTS, kept_states
from xlstm_tune.kernels.mlstm_step_triton import step


def launch(dtype: torch.dtype, width: int, value_width: int, steps: int) -> dict[str, int]:
    """Launch options: the largest chunks of which a kernel compiled for an H100 leaves few numbers out of registers; of
    narrow heads few warps, since each computes what the gates say: four take twice the instructions of two, and each
    hardly fewer. They have not been timed on a GPU."""
    wide, value_wide = (max(16, int(triton.next_power_of_2(one))) for one in (width, value_width))
    widest = max(wide, value_wide)
    return {
        "CHUNK": 32 if steps > 16 and dtype == torch.bfloat16 and widest <= 64 else 16,
        "WIDE": wide,
        "VALUE_WIDE": value_wide,
        "num_warps": 2 if widest <= 32 else 8,
        "num_stages": 1,
    }


def _launch(q: Tensor, v: Tensor) -> tuple[tuple[int | float, ...], dict[str, int | str]]:
    """((steps, heads, chunks, width, value_width, scale), options)."""
    _, steps, heads, width = q.shape
    options = launch(q.dtype, width, v.shape[-1], steps)
    sizes = (steps, heads, -(-steps // options["CHUNK"]), width, v.shape[-1], 1 / math.sqrt(width))
    return sizes, {"PRECISION": PRODUCTS[q.dtype][1], **options}


def forward(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, c0: Tensor, n0: Tensor, m0: Tensor, keep: bool, warm: bool
) -> tuple[Tensor, ...]:
    """q, k [B, T, N, D], v [B, T, N, V] of one dtype; i, f [B, T, N] and the state c0 [B, N, D, V], n0 [B, N, D],
    m0 [B, N] in float32; contiguous. warm = False: the initial state is the empty one and is not read.

    Returns h [B, T, N, V] in v's dtype and c, n, m after the last step; for `backward` what the kernel calls states,
    norms and maxima.
    """
    found = forward_shapes(q, k, v, i, f, c0, n0, m0, keep, warm)
    if q.shape[1] == 1 and not keep:
        step(q, k, v, i, f, c0, n0, m0, warm, *found[:4])
        return found
    sizes, options = _launch(q, v)
    kernels.forward[(q.shape[0] * q.shape[2],)](
        q, k, v, i, f, c0, n0, m0, *found, *sizes, WARM=warm, TRAIN=keep, **options
    )
    return found


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    c0: Tensor,
    n0: Tensor,
    m0: Tensor,
    c: Tensor,
    n: Tensor,
    states: Tensor,
    norms: Tensor,
    maxima: Tensor,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    grad_n: Tensor | None,
    grad_m: Tensor | None,
    warm: bool,
) -> tuple[Tensor, ...]:
    """Gradients of (q, k, v, i, f, c0, n0, m0), exact for any combination of output gradients."""
    found = backward_shapes(q, k, v, i, f, c0, n0, m0)
    ended = grad_c is None and grad_n is None and grad_m is None
    # Where a gradient is None, any tensor can stand for it.
    of_final = (c0, n0, m0) if ended else final_gradients(c, n, m0, grad_c, grad_n, grad_m)
    sizes, options = _launch(q, v)
    kernels.backward[(q.shape[0] * q.shape[2],)](
        q, k, v, i, f, c0, n0, c, n, states, norms, maxima, v if grad_h is None else grad_h.contiguous(), *of_final,
        *found, *sizes, WARM=warm, SEEN=grad_h is not None, ENDED=ended, **options,
    )  # fmt: skip
    return found


def forward_shapes(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, c0: Tensor, n0: Tensor, m0: Tensor, keep: bool, warm: bool
) -> tuple[Tensor, ...]:
    """Tensors like those that `forward` returns, not filled."""
    chunks = _launch(q, v)[0][2] if keep else 0
    states = kept_states(q, v, int(chunks))
    return torch.empty_like(v), *(torch.empty_like(one) for one in (c0, n0, m0)), *states


_by_walk = register(
    Kernel(
        name="mlstm_triton",
        inputs=dict.fromkeys(("q", "k", "v", "i", "f", "c0", "n0", "m0"), 0),
        constants={},
        outputs=dict.fromkeys(("h", "c", "n", "m"), 0),
        saved=dict.fromkeys(("states", "norms", "maxima"), 0),
        needs=("q", "k", "v", "i", "f", "c0", "n0", "m0", "c", "n"),
        forward=forward,
        backward=backward,
        forward_shapes=forward_shapes,
        backward_shapes=backward_shapes,
        options={"warm": "bool"},
    )
)


def mlstm_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    initial_state: MLSTMState | None = None,
    design: str = "auto",
) -> tuple[Tensor, MLSTMState]:
    """`mlstm_chunkwise` for float32, bfloat16 and float16 on a GPU: the same arguments and results, h in v's dtype,
    states in float32.

    design: "walk" or "parallel"; "auto" takes what `dispatch.mlstm_design` says. Raises ValueError for another name,
    and for heads that are too wide for it.
    """
    programs = q.shape[0] * q.shape[2] * members(q)
    chosen = mlstm_design(programs, q.shape[1], max(q.shape[-1], v.shape[-1]), design)
    warm = initial_state is not None
    state = _unread_state(q, v) if initial_state is None else initial_state
    gates_and_state = (tensor.float().contiguous() for tensor in (i, f, *state))
    run = _by_walk if chosen == "walk" else by_parts
    h, *final = run(*(tensor.contiguous() for tensor in (q, k, v)), *gates_and_state, warm=warm)
    return h, MLSTMState(*final)


def _unread_state(q: Tensor, v: Tensor) -> MLSTMState:
    """In place of the empty state: of that, kernels read m alone."""
    batch, _, heads, width = q.shape
    return MLSTMState(
        q.new_empty(batch, heads, width, v.shape[-1], dtype=torch.float32),
        q.new_empty(batch, heads, width, dtype=torch.float32),
        q.new_full((batch, heads), -math.inf, dtype=torch.float32),
    )
