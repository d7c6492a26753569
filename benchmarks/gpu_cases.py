"""What gpu.py times, checks and asks for, as data, and the work that each shape needs. Standard library alone.

Work of one call, from the shapes and not from what a kernel happens to do; B samples, T steps, N heads (those of all
members) of width D, E = B T N D units. LSTM and sLSTM:

* flops: 8 E D for R h of the four gates (a multiplication and an addition are two); backward 8 E D for the gradient of
  h and 8 E D for that of R. Functions and sums of single units are not counted.
* bytes: what enters and leaves, once in each pass, in the inputs' dtype. Forward: 4 E of gates, E of h, R and bias.
  Backward: 4 E of gates or what was kept of them, E of h, E of its gradient, 4 E of the gates' gradients, R, bias and
  the gradients of both. Not counted: c and n, and that a kernel keeps in float32 what it has read in 16 bits.

mLSTM, keys of width D and values of width V, B samples of all members, since it has no weights:

* flops: of the products, by chunks of C steps: for each step (C + 1) / 2 pairs of D + V multiplications and as many
  additions, and 2 D V of each to update and read the state, none where C is the sequence; C from 16 on, which products
  need, as takes the fewest. Backward twice that: each product has two gradients. Not counted: what is computed again
  because it was not kept, and gates and exponentials.
* bytes: forward q, k, v and two gates in, h out. Backward q, k, v, gates, h and its gradient in, the gradients of q, k,
  v and gates out. Not counted: states between chunks, and what a kernel keeps for its backward pass.

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
    value_width: int = 0
    """Of mLSTM's values; 0 = as its keys."""

    @property
    def values(self) -> int:
        """Width of h."""
        return self.value_width or self.width

    @property
    def title(self) -> str:
        members = f", {self.members} members" if self.members > 1 else ""
        values = f" and {self.value_width}" if self.value_width else ""
        shape = f"{self.batch} × {self.steps} steps, {self.heads} × {self.width}{values}"
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


def chunked(case: Case) -> tuple[Work, Work]:
    """mLSTM: the work of forward, and of forward and backward."""
    rows = case.batch * case.members * case.steps * case.heads
    width, values = case.width, case.values

    def products(chunk: int) -> float:
        between = 2 * width * values if chunk < case.steps else 0
        return (chunk + 1) / 2 * (width + values) + between

    fewest = min(products(chunk) for chunk in (*(size for size in CHUNKS if size < case.steps), case.steps))
    forward = Work(2.0 * rows * fewest, float(SIZES[case.dtype] * rows * (2 * width + 2 * values + 2)))
    back = SIZES[case.dtype] * rows * (4 * width + 4 * values + 4)
    return forward, Work(3 * forward.flops, forward.bytes + back)


CHUNKS = (16, 32, 64, 128, 256, 512)
GATED = ("lstm", "slstm")
WORK: dict[str, Callable[[Case], tuple[Work, Work]]] = {**dict.fromkeys(GATED, gated), "mlstm": chunked}
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
WANTED = {
    Case("mlstm", 256, 96, 4, 32, "bfloat16"): 1.2,
    Case("mlstm", 64, 512, 4, 64, "bfloat16"): 1.2,
    Case("mlstm", 32, 2048, 8, 128, "bfloat16"): 1.2,
    Case("mlstm", 8, 8192, 16, 128, "bfloat16", value_width=256): 0.9,
    **{Case("ms", 256, 365, 4, 32, dtype): 10.0 for dtype in ("bfloat16", "float32")},
}
"""Case → how many times as fast as the fastest other side ours has to be, forward and backward. `ms` is a stack of an
mLSTM and an sLSTM block, as wide as its sLSTM heads together, and a whole training step; see gpu_stack.py."""
MLSTM = tuple(case for case in WANTED if case.op == "mlstm")
STACK = tuple(case for case in WANTED if case.op == "ms")
MLSTM_SEARCH = (
    *(Case("mlstm", 64, 365, 4, width, "bfloat16", members) for width in (16, 32, 64, 128) for members in (1, 4, 16)),
    *(Case("mlstm", 64, 365, 4, width, "float32") for width in (16, 32, 64, 128)),
)
SECTIONS = {"mlstm": MLSTM, "stack": STACK, "long": LONG, "mlstm-search": MLSTM_SEARCH, "search": SEARCH}
"""What is timed, in this order: shapes of mLSTM and a stack for which a figure is wanted, the shapes of FlashRNN's
authors, and those of a search, whose populations show when the chip is full."""

QUICK = {
    "mlstm": MLSTM[:2],
    "stack": STACK[:1],
    "mlstm-search": tuple(case for case in MLSTM_SEARCH if (case.width, case.dtype) == (64, "bfloat16")),
    "long": tuple(case for case in LONG if case.width in (64, 256)),
    "search": tuple(case for case in SEARCH if (case.batch, case.width, case.dtype) == (32, 64, "bfloat16")),
}

FIRST = tuple((op, dtype, width) for width in (64, 128, 16, 256) for dtype in ("bfloat16", "float32") for op in OPS)
"""(op, dtype, head width) whose first call is timed with nothing compiled before."""
FIRST_SECONDS = 5.0
"""That a first call may take."""
LONG_MS = {("slstm", 12, 64): 5.0}
"""(op, heads, width) → milliseconds that forward and backward of the authors' shape may take."""

CHECK_WIDTHS = (1, 5, 16, 24, 64, 100, 128, 130, 256, 512, 768, 1024)
CHECK_SIZE = (19, 37, 2)
"""(batch, steps, heads): two tiles of samples, the second in part empty."""
VARIANTS = ("plain", "state", "masks")
"""Of a check: from the empty state; from a given one; from a given one with resets and lengths."""
DESIGN_VARIANTS = ("plain", "state")
"""Of a check of one of mLSTM's designs, which knows no masks."""
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
    triton: bool = False
    """By Triton, for each shape anew, which takes seconds."""


FLASHRNN = ("flashrnn", "einops", "packaging", "setuptools")
XLSTM = ("xlstm", "packaging", "setuptools")
KERNELS = ("mlstm_kernels", "einops")
PEERS = (
    Peer("mlstm_kernels chunkwise--triton_limit_chunk", ("mlstm",), KERNELS, triton=True),
    Peer("mlstm_kernels chunkwise--triton_xl_chunk", ("mlstm",), KERNELS, triton=True),
    Peer("mlstm_kernels parallel--triton_limit_headdim", ("mlstm",), KERNELS, triton=True),
    Peer("xlstm parallel_stabilized_simple", ("mlstm",), XLSTM),
    Peer("FlashAttention", ("mlstm",), ()),
    Peer("mlstm_kernels parallel--native_autograd", ("mlstm",), KERNELS),
    Peer("mlstm_kernels chunkwise--native_autograd", ("mlstm",), KERNELS, slow=True),
    Peer("xlstm stack, sLSTM vanilla", ("ms",), XLSTM),
    Peer("xlstm stack, sLSTM cuda", ("ms",), XLSTM, compiled=True),
    Peer("FlashRNN triton_fused", GATED, FLASHRNN),
    Peer("cuDNN nn.LSTM", ("lstm",), ()),
    Peer("FlashRNN cuda_fused", GATED, FLASHRNN, compiled=True),
    Peer("FlashRNN cuda", GATED, FLASHRNN, compiled=True),
    Peer("xlstm vanilla", ("slstm",), XLSTM, slow=True),
    Peer("FlashRNN vanilla_fwbw", GATED, FLASHRNN, slow=True),
    Peer("FlashRNN vanilla", GATED, FLASHRNN, slow=True),
)
ANOTHER_FUNCTION = "FlashAttention"
"""The peer beside mLSTM that computes something else, for orientation: nothing is judged by it."""
ANY, NORM = "any", "behind a norm"
"""The gradients of h under which mLSTM's are checked: a random one, and one at right angles to h in every head and
step, as it comes through a norm of the head, which every mLSTM block has. Then nothing passes through the cell's own
denominator, whose gradient some kernels leave out."""
DESIGNS = ("walk", "parallel")
"""Ways of mLSTM's kernel that can be asked for by name."""
OURS = "xlstm_tune"
VMAPPED = "xlstm_tune, vmap"
"""Members by torch.func.vmap over the op instead of more heads of one call."""
