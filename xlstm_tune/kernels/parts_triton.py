"""What the Triton kernels of LSTM and sLSTM share: functions of gates, and how many programs share the work.

No kernel is tuned at run time: a search visits hundreds of shapes, and trying variants for each would cost seconds.
`launch` is a small table by head width instead. Its numbers were chosen by the size of what a program holds and have
not been measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

STEP_UNITS = 1024
"""Units that a program of a step kernel takes."""


@dataclass(frozen=True)
class Launch:
    """How a recurrence is cut up: each program has a head and `samples` samples."""

    samples: int
    width: int
    """The head's width, made a power of two and at least 16, as products on a GPU need it."""
    warps: int


def launch(width: int) -> Launch:
    """For heads of this width, at most ON_CHIP."""
    padded = max(16, triton.next_power_of_2(width))
    return Launch(samples=16, width=padded, warps={16: 1, 32: 2, 64: 4, 128: 8}[padded])


def programs(batch: int, launched: Launch) -> int:
    """Of a head, for all samples."""
    return int(triton.cdiv(batch, launched.samples))


def exact(tensor: Tensor) -> str:
    """Triton's name for the precision of products: float32 is not rounded to TensorFloat-32."""
    return "ieee" if tensor.element_size() == 4 else "tf32"


@triton.jit
def sigmoid(x):
    """Without overflow on either side."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x > 0, 1.0, small) / (1.0 + small)


@triton.jit
def log_sigmoid(x):
    """min(x, 0) - log(1 + exp(-|x|))."""
    return tl.minimum(x, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def tanh(x):
    """By the exponential that cannot overflow."""
    small = tl.exp(-2.0 * tl.abs(x))
    return tl.where(x > 0, 1.0, -1.0) * (1.0 - small) / (1.0 + small)


def parameter_gradients(d_gates: Tensor, h0: Tensor, h: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients of recurrent [N, 4, D, D] and bias [N, 4, D], from those of the gates in one product a head.

    d_gates [N, B, T, 4, D], h0 [N, B, D], h [B, T, N, D], keep [N, B, T] or None.
    """
    heads, batch, steps, _, width = d_gates.shape
    rows = d_gates.view(heads, batch * steps, 4 * width)
    by_head = h.permute(2, 0, 1, 3)
    before = torch.cat([h0.to(h.dtype).unsqueeze(2), by_head[:, :, :-1]], 2)  # [N, B, T, D]
    if keep is not None:
        before = before * keep.unsqueeze(3).to(h.dtype)
    of_recurrent = torch.bmm(rows.mT, before.view(heads, batch * steps, width))
    # A sum of many numbers in 16 bits is one of float32, rounded once.
    return of_recurrent.view(heads, 4, width, width), rows.sum(1).view(heads, 4, width)


def state_by_head(state: tuple[Tensor, ...] | None, count: int, gates: Tensor) -> list[Tensor]:
    """Each of the `count` parts of a state [B, N, D] as [N, B, D] in float32; zeros for None. gates [B, T, N, 4, D]."""
    if state is None:
        batch, _, heads, _, width = gates.shape
        return [gates.new_zeros(heads, batch, width, dtype=torch.float32)] * count
    return [one.float().transpose(0, 1).contiguous() for one in state]
