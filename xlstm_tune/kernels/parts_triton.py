"""What the Triton kernels of LSTM and sLSTM share: functions of gates, and how many programs share the work.

No kernel is tuned at run time: a search visits hundreds of shapes, and trying variants for each would cost seconds.
`launch` looks into a small table by head width and dtype instead. Its numbers were chosen by what kernels compiled for
an H100 take of registers, shared memory and instructions a step; they have not been timed on a GPU, which
`benchmarks/gpu_launches.py` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

SIZES = ["batch", "steps", "count", "heads", "begins", "ends"]
"""Arguments for whose values (1, or a multiple of 16) Triton would otherwise compile a kernel anew."""
STEP_UNITS = 256
"""Units of a row that a program of a step kernel takes: two a thread."""


@dataclass(frozen=True)
class Launch:
    """How a recurrence is cut up: each program has a head and `samples` samples."""

    width: int
    """The head's width, made a power of two and at least 16, as products on a GPU need it."""
    samples: int
    warps: int
    stages: int
    """How far both passes read ahead."""
    memory: int
    """Bytes of shared memory that the hungriest kernel takes, as Triton 3.6 compiles it for an H100."""

    def options(self, width: int) -> dict[str, int]:
        """Arguments of a kernel over heads of this width."""
        sizes = {"BLOCK": self.samples, "WIDE": self.width, "EVEN": gcd(width, 16)}
        return sizes | {"num_warps": self.warps, "num_stages": self.stages}


_LAUNCHES = {
    (16, 2): [Launch(16, 8, 1, 3, 9_728)],
    (16, 4): [Launch(16, 16, 1, 3, 25_600)],
    (32, 2): [Launch(32, 16, 4, 3, 44_032)],
    (32, 4): [Launch(32, 16, 4, 3, 57_344)],
    (64, 2): [Launch(64, 16, 8, 3, 104_448), Launch(64, 16, 8, 1, 43_008)],
    # With four warps the compiler gives up on sLSTM's forward pass: 32 registers, and 6 KB a thread outside of them.
    (64, 4): [Launch(64, 16, 8, 3, 151_552), Launch(64, 16, 8, 1, 86_016)],
    (128, 2): [Launch(128, 16, 16, 2, 212_992), Launch(128, 16, 16, 1, 151_552)],
}
"""By padded width and bytes of a number, the one to be preferred first. Of those that take about as many instructions
for a sample, the one that takes fewest for a warp: a step's instructions follow each other."""
_FEW = {
    (16, 4): [Launch(16, 4, 2, 3, 9_216)],
    (32, 2): [Launch(32, 8, 4, 3, 26_112)],
    (32, 4): [Launch(32, 4, 4, 3, 26_624)],
    (64, 2): [Launch(64, 8, 8, 3, 68_608)],
    (64, 4): [Launch(64, 4, 8, 3, 86_016)],
    (128, 2): [Launch(128, 8, 16, 2, 172_032)],
}
"""For programs that would leave half of the device idle, smaller ones: they take up to half as many instructions more
for a sample, and a half to a fifth of them for a warp."""
_TILE = 16
"""Samples by which programs are counted when that is decided."""
INTERPRETED = 232_448
"""The shared memory that the interpreter acts as if it had: an H100's."""
INTERPRETED_PROCESSORS = 132
"""Likewise."""


def launch(width: int, bytes_each: int, memory: int, few: bool = False) -> Launch | None:
    """For heads of this width in a dtype, on a device with so many bytes of shared memory; None where no kernel for the
    whole sequence fits. few: there are few programs."""
    key = (max(16, triton.next_power_of_2(width)), bytes_each)
    preferred = [*(_FEW.get(key, []) if few else []), *_LAUNCHES.get(key, [])]
    return next((one for one in preferred if one.memory <= memory), None)


def launch_for(tensor: Tensor, heads: int, batch: int) -> Launch | None:
    """`launch` of a tensor [.., D] where it lies, for so many heads (of all members) and samples."""
    memory, processors = INTERPRETED, INTERPRETED_PROCESSORS
    if tensor.is_cuda:
        # What Triton itself holds a kernel against before it starts it.
        properties = triton.runtime.driver.active.utils.get_device_properties(tensor.get_device())
        memory, processors = properties["max_shared_mem"], properties["multiprocessor_count"]
    few = 2 * heads * int(triton.cdiv(batch, _TILE)) <= processors
    return launch(tensor.shape[-1], tensor.element_size(), memory, few)


def programs(batch: int, launched: Launch) -> int:
    """Of a head, for all samples."""
    return int(triton.cdiv(batch, launched.samples))


def step_programs(rows: int, width: int) -> tuple[int, int]:
    """Of a step kernel, for rows [width]."""
    return rows, int(triton.cdiv(width, STEP_UNITS))


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


@triton.jit
def matrices(recurrent, head, width, TURNED: tl.constexpr, WIDE: tl.constexpr):
    """A head's four recurrent matrices from [N, 4, D out, D in], zeros around them: each [WIDE out, WIDE in], or with
    the axes TURNED."""
    units = tl.arange(0, WIDE)
    inner, outer = units[None, :], units[:, None]
    if TURNED:
        inner, outer = units[:, None], units[None, :]
    at = recurrent + head * 4 * width * width + outer * width + inner
    inside, size = (inner < width) & (outer < width), width * width
    return (
        tl.load(at, mask=inside, other=0.0),
        tl.load(at + size, mask=inside, other=0.0),
        tl.load(at + 2 * size, mask=inside, other=0.0),
        tl.load(at + 3 * size, mask=inside, other=0.0),
    )


@triton.jit
def gates_at(gates, at, width, mask):
    """Four gates, `width` apart from gates + at on, in float32."""
    return (
        tl.load(gates + at, mask=mask, other=0.0).to(tl.float32),
        tl.load(gates + at + width, mask=mask, other=0.0).to(tl.float32),
        tl.load(gates + at + 2 * width, mask=mask, other=0.0).to(tl.float32),
        tl.load(gates + at + 3 * width, mask=mask, other=0.0).to(tl.float32),
    )


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
