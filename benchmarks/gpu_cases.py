"""What gpu.py times, checks and asks for, as data, and the work that each shape needs. Standard library alone.

Work of one call, from the shapes and not from what a kernel happens to do; B samples, T steps, N heads (those of all
members) of width D, E = B T N D units:

* flops: 8 E D for R h of the four gates (a multiplication and an addition are two); backward 8 E D for the gradient of
  h and 8 E D for that of R. Functions and sums of single units are not counted.
* bytes: what enters and leaves, once in each pass, in the inputs' dtype. Forward: 4 E of gates, E of h, R and bias.
  Backward: 4 E of gates or what was kept of them, E of h, E of its gradient, 4 E of the gates' gradients, R, bias and
  the gradients of both. Not counted: c and n, and that a kernel keeps in float32 what it has read in 16 bits.

The share of the limit is the larger of bytes over the measured bandwidth and flops over the measured rate of products
in that dtype, over the measured time. It is a bound for shapes that fill the chip. The share of the floor, steps times
what a step of one program with 16 units takes, is one for those that do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of an element."""
TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""Of outputs, final states and gradients against float64 on the same (rounded) inputs, as a share of the largest value:
those of a dtype's rounding after sums over hundreds of steps and units."""


@dataclass(frozen=True)
class Case:
    """A shape to time. Members of a population are more heads: a head has weights of its own."""

    op: str
    batch: int
    steps: int
    heads: int
    """Of one member."""
    width: int
    dtype: str
    members: int = 1

    @property
    def title(self) -> str:
        members = f", {self.members} members" if self.members > 1 else ""
        shape = f"{self.batch} × {self.steps} steps, {self.heads} × {self.width}"
        return f"{self.op}, {shape}, {self.dtype}{members}"


@dataclass(frozen=True)
class Work:
    """Of one call."""

    flops: float
    bytes: float

    def limit(self, flops: float, bandwidth: float) -> float:
        """Seconds at these rates, each a second: whichever of the two takes longer."""
        return max(self.flops / flops, self.bytes / bandwidth)


def gated(case: Case) -> tuple[Work, Work]:
    """LSTM and sLSTM: the work of forward, and of forward and backward."""
    heads = case.heads * case.members
    units = case.batch * case.steps * heads * case.width
    weights = 4 * heads * case.width * (case.width + 1)
    size = SIZES[case.dtype]
    forward = Work(8.0 * units * case.width, size * (5.0 * units + weights))
    backward = Work(16.0 * units * case.width, size * (10.0 * units + 2 * weights))
    return forward, Work(forward.flops + backward.flops, forward.bytes + backward.bytes)


WORK: dict[str, Callable[[Case], tuple[Work, Work]]] = {"lstm": gated, "slstm": gated}
"""op → its work forward, and forward and backward."""
OPS = tuple(WORK)

HEADS = ((48, 16), (24, 32), (12, 64), (6, 128), (3, 256), (1, 768))
"""(heads, width): 768 units, cut as FlashRNN's authors cut them."""
LONG = tuple(Case(op, 16, 1024, heads, width, "bfloat16") for op in ("slstm", "lstm") for heads, width in HEADS)
SEARCH = tuple(
    Case(op, batch, 365, 4, width, dtype, members)
    for op in ("slstm", "lstm")
    for dtype in ("bfloat16", "float32")
    for batch in (32, 256)
    for width in (16, 32, 64, 128)
    for members in (1, 4, 16)
)
SECTIONS = {"long": LONG, "search": SEARCH}
"""What is timed: the authors' shapes, and those of a search, whose populations show when the chip is full."""

QUICK = {
    "long": tuple(case for case in LONG if case.width in (64, 256)),
    "search": tuple(case for case in SEARCH if (case.batch, case.width, case.dtype) == (32, 64, "bfloat16")),
}

FIRST = tuple((op, dtype, width) for op in OPS for dtype in ("bfloat16", "float32") for width in (16, 64, 128, 256))
"""(op, dtype, head width) whose first call is timed with nothing compiled before."""
FIRST_SECONDS = 5.0
"""That a first call may take."""
LONG_MS = {("slstm", 12, 64): 5.0}
"""(op, heads, width) → milliseconds that forward and backward of the authors' shape may take."""

CHECK_WIDTHS = (1, 5, 16, 24, 64, 100, 128, 130, 256, 768, 1024)
CHECK_SIZE = (19, 37, 2)
"""(batch, steps, heads): two tiles of samples, the second in part empty."""
VARIANTS = ("plain", "state", "masks")
"""Of a check: from the empty state; from a given one; from a given one with resets and lengths."""
FEATURES = ("graph", "compile", "vmap")


class Refused(Exception):
    """A side that cannot run a case; the message says why."""


@dataclass(frozen=True)
class Peer:
    """Another implementation; how it is called stands in gpu_peers.py."""

    name: str
    ops: tuple[str, ...]
    packages: tuple[str, ...]
    """Modules that have to be there."""
    compiled: bool = False
    """By nvcc, for each shape anew, which takes minutes: the authors' shapes alone."""
    slow: bool = False
    """A loop of torch's functions: asked last."""


FLASHRNN = ("flashrnn", "einops", "packaging", "setuptools")
PEERS = (
    Peer("FlashRNN triton_fused", OPS, FLASHRNN),
    Peer("cuDNN nn.LSTM", ("lstm",), ()),
    Peer("FlashRNN cuda_fused", OPS, FLASHRNN, compiled=True),
    Peer("FlashRNN cuda", OPS, FLASHRNN, compiled=True),
    Peer("xlstm vanilla", ("slstm",), ("xlstm", "packaging", "setuptools"), slow=True),
    Peer("FlashRNN vanilla_fwbw", OPS, FLASHRNN, slow=True),
    Peer("FlashRNN vanilla", OPS, FLASHRNN, slow=True),
)
OURS = "xlstm_tune"
VMAPPED = "xlstm_tune, vmap"
"""Members by torch.func.vmap over the op instead of more heads of one call."""
