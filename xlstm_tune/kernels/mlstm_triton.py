"""The mLSTM cell on a GPU for heads of up to 128: one program for each head of a sample, which walks over the chunks.

Legend and equations as in `mlstm_reference`. The state stays on chip from chunk to chunk, and within a chunk all pairs
of steps are products of tiles: many short sequences fill the device with programs. Saved for the backward pass are h
and the states before each chunk, D V float32 numbers for each chunk of 16 or 32 steps; the rest is computed again.
Products of 16-bit inputs are TensorFloat-32, which holds all their digits and float32's range; those of float32 are
three of these, near to exact: exact ones would not fit into registers. Nothing here has been timed on a GPU.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from xlstm_tune.kernels import mlstm_chunks_triton as kernels
from xlstm_tune.kernels.library import Kernel, register
from xlstm_tune.kernels.mlstm_chunk import SHUT
from xlstm_tune.kernels.mlstm_forms import MLSTMState, mlstm_empty_state


def _chunk(steps: int) -> int:
    """Steps of a chunk."""
    return 16 if steps <= 16 else 32


def _options(q: Tensor, v: Tensor) -> dict[str, int | str]:
    width, value_width = (max(16, triton.next_power_of_2(one.shape[-1])) for one in (q, v))
    return {
        "PRECISION": "tf32x3" if q.element_size() == 4 else "tf32",
        "CHUNK": _chunk(q.shape[1]),
        "WIDE": width,
        "VALUE_WIDE": value_width,
        "num_warps": 4 if max(width, value_width) <= 64 else 8,
        "num_stages": 1,
    }


def _sizes(q: Tensor, v: Tensor) -> tuple[int | float, ...]:
    """(steps, heads, chunks, width, value_width, scale)."""
    _, steps, heads, width = q.shape
    return steps, heads, -(-steps // _chunk(steps)), width, v.shape[-1], 1 / math.sqrt(width)


def forward(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, c0: Tensor, n0: Tensor, m0: Tensor, keep: bool, warm: bool
) -> tuple[Tensor, ...]:
    """q, k [B, T, N, D], v [B, T, N, V] of one dtype; i, f [B, T, N] and the state c0 [B, N, D, V], n0 [B, N, D],
    m0 [B, N] in float32; contiguous. warm = False: the initial state is the empty one and is not read.

    Returns h [B, T, N, V] in v's dtype and c, n, m after the last step; for `backward` what the kernel calls states,
    norms, maxima and newest.
    """
    found = forward_shapes(q, k, v, i, f, c0, n0, m0, keep, warm)
    kernels.forward[(q.shape[0] * q.shape[2],)](
        q, k, v, i, f, c0, n0, m0, *found, *_sizes(q, v), WARM=warm, TRAIN=keep, **_options(q, v)
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
    h: Tensor,
    c: Tensor,
    n: Tensor,
    states: Tensor,
    norms: Tensor,
    maxima: Tensor,
    newest: Tensor,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    grad_n: Tensor | None,
    grad_m: Tensor | None,
    warm: bool,
) -> tuple[Tensor, ...]:
    """Gradients of (q, k, v, i, f, c0, n0, m0), exact for any combination of output gradients."""
    d_q, d_k, d_v, d_c, d_n = (torch.empty_like(one) for one in (q, k, v, c0, n0))
    of_weights, of_row, of_m = (torch.empty_like(i) for _ in range(3))
    ended = grad_c is None and grad_n is None
    of_c = c0 if ended else torch.zeros_like(c) if grad_c is None else grad_c.contiguous()
    of_n = n0 if ended else torch.zeros_like(n) if grad_n is None else grad_n.contiguous()
    kernels.backward[(q.shape[0] * q.shape[2],)](
        q, k, v, i, f, h, states, norms, maxima, h if grad_h is None else grad_h.contiguous(), of_c, of_n,
        d_q, d_k, d_v, d_c, d_n, of_weights, of_row, of_m, *_sizes(q, v),
        SEEN=grad_h is not None, ENDED=ended, **_options(q, v),
    )  # fmt: skip
    to_m = torch.zeros_like(m0)
    if grad_m is not None:
        of_row[:, -1] += grad_m
        to_m = to_m + grad_m
    if not ended:
        to_m = to_m - (of_n * n).sum(-1) - (of_c * c).sum((-2, -1))
    of_m[:, -1] += to_m
    d_i, d_f, to_initial = _of_gates(f, newest, of_weights, of_row, of_m)
    if warm:
        d_m = to_initial + (d_n * n0).sum(-1) + (d_c * c0).sum((-2, -1))
    else:
        d_c, d_n, d_m = torch.zeros_like(d_c), torch.zeros_like(d_n), torch.zeros_like(m0)
    return d_q, d_k, d_v, d_i, d_f, d_c, d_n, d_m


def _of_gates(
    f: Tensor, newest: Tensor, of_weights: Tensor, of_row: Tensor, of_m: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of i and f [B, T, N], and what the initial stabiliser receives from later ones [B, N].

    What M_t receives goes to the step whose input is the largest so far. F_t is the sum of the gates since the last one
    that is shut, so a gate receives from the steps of its segment from its own on.
    """
    batch, steps, heads = f.shape
    passed = of_m.new_zeros(batch, steps + 1, heads).scatter_add(1, newest.long(), of_m)
    d_i = of_weights + passed[:, 1:]
    later = F.pad((of_row.double() - d_i.double()).flip(1).cumsum(1).flip(1), (0, 0, 0, 1))
    shut = F.logsigmoid(f) < SHUT
    index = torch.arange(steps, device=f.device).view(1, -1, 1)
    # The first shut gate behind each step, T where there is none.
    ends = F.pad(torch.where(shut, index, steps), (0, 0, 0, 1), value=steps).flip(1).cummin(1).values.flip(1)[:, 1:]
    own = (later[:, :-1] - later.gather(1, ends)).to(f.dtype)
    return d_i, torch.where(shut, 0.0, own * torch.sigmoid(-f)), passed[:, 0]


def forward_shapes(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, c0: Tensor, n0: Tensor, m0: Tensor, keep: bool, warm: bool
) -> tuple[Tensor, ...]:
    """Tensors like those that `forward` returns, not filled."""
    batch, steps, heads, width = q.shape
    chunks = -(-steps // _chunk(steps)) if keep else 0
    of_chunk = (batch, heads, chunks)
    return (
        torch.empty_like(v),
        *(torch.empty_like(one) for one in (c0, n0, m0)),
        c0.new_empty(*of_chunk, width, v.shape[-1]),
        c0.new_empty(*of_chunk, width),
        c0.new_empty(of_chunk, dtype=torch.float64),
        c0.new_empty(batch, steps if keep else 0, heads, dtype=torch.int32),
    )


def backward_shapes(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, c0: Tensor, n0: Tensor, m0: Tensor, *_: object
) -> tuple[Tensor, ...]:
    """Tensors like those that `backward` returns, not filled."""
    return tuple(torch.empty_like(tensor) for tensor in (q, k, v, i, f, c0, n0, m0))


_by_chunk = register(
    Kernel(
        name="mlstm_triton",
        inputs=dict.fromkeys(("q", "k", "v", "i", "f", "c0", "n0", "m0"), 0),
        constants={},
        outputs=dict.fromkeys(("h", "c", "n", "m"), 0),
        saved=dict.fromkeys(("states", "norms", "maxima", "newest"), 0),
        needs=("q", "k", "v", "i", "f", "c0", "n0", "m0", "h", "c", "n"),
        forward=forward,
        backward=backward,
        forward_shapes=forward_shapes,
        backward_shapes=backward_shapes,
        options={"warm": "bool"},
    )
)


def mlstm_triton(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, initial_state: MLSTMState | None = None
) -> tuple[Tensor, MLSTMState]:
    """`mlstm_chunkwise` for float32, bfloat16 and float16 on a GPU: the same arguments and results, h in v's dtype,
    states in float32; D and V at most 128."""
    warm = initial_state is not None
    state = mlstm_empty_state(q, v) if initial_state is None else initial_state
    gates_and_state = (tensor.float().contiguous() for tensor in (i, f, *state))
    h, *final = _by_chunk(*(tensor.contiguous() for tensor in (q, k, v)), *gates_and_state, warm=warm)
    return h, MLSTMState(*final)
