"""The mLSTM cell of each side of gpu.py as a task, its outputs and gradients held against float64 (gpu_mlstm.py).

All get the same q, k, v and gates in the case's dtype, and the same gradient of h, each in the layout that it takes
without a copy; the state is empty at the start and not asked for at the end.

* xlstm_tune: the op, or its kernel with one of its designs: [B, T, N, D], gates [B, T, N].
* mlstm_kernels: `get_mlstm_kernel(name)(q, k, v, i, f, chunk_size=...)`, [B, N, T, D], gates [B, N, T]. A length that a
  kernel does not take is padded by the package's own `wrap_chunkwise__pad_zeros`, as its mode train_with_padding does.
  Chunks are the package's defaults, or shorter where a length is then a multiple: 64 steps, 128 for xl_chunk. It starts
  from m = 0, a difference of the order of ε.
* xlstm's `parallel_stabilized_simple`, the official parallel form: the same layout, gates [B, N, T, 1]; 16 bits under
  autocast, as the package runs it, since it sums up its gates in the dtype that they have.
* FlashAttention by torch's scaled_dot_product_attention, causal: another function, for orientation. Where keys and
  values differ, all are as wide as the wider.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from gpu_cases import ANOTHER_FUNCTION, OURS, Case, Refused
from gpu_mlstm import Truth, call, checked, designs, draw, share
from torch import Tensor

SAME = {"float32": 0.01, "bfloat16": 0.3, "float16": 0.1}
"""Beyond it, as a share of the largest, h is that of another function. What rounding does to h and the gradients is
judged by gpu_cases.TOLERANCES."""
CHUNKS = {"chunkwise--triton_xl_chunk": 128}
"""Steps of a chunk of mlstm_kernels, where it is not CHUNK."""
CHUNK = 64
SHORTEST = 16
UNBOUND = ("parallel--native_autograd", "parallel--native_custbw")
"""Kernels of mlstm_kernels that take any length."""


class Cell:
    """A case with a side's cell."""

    def __init__(self, case: Case, device: torch.device, cell: Callable[..., Tensor], heads_first: bool):
        """cell: (q, k, v, i, f) → h. heads_first: whether it takes and gives [B, N, T, ...]."""
        self.case, self.cell, self.heads_first = case, cell, heads_first
        self.inputs = [self._turned(tensor).contiguous().requires_grad_() for tensor in draw(case, device)]
        rows = (case.batch * case.members, case.steps, case.heads, case.values)
        drawn = torch.randn(rows, device=device, dtype=self.inputs[0].dtype)
        self.upstream = self._turned(drawn).contiguous()

    def _turned(self, tensor: Tensor) -> Tensor:
        """From our layout to the side's, or back."""
        return tensor.transpose(1, 2) if self.heads_first else tensor

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.cell(*self.inputs)

    def both(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.cell(*self.inputs), self.inputs, self.upstream)

    def agreement(self) -> dict[str, Any]:
        """{"differs": of h, "gradients": {kind: {input: error}}}. Refused where h is that of another function."""
        truth = Truth([self._turned(tensor) for tensor in self.inputs], self._turned(self.upstream))
        h = self.cell(*self.inputs)
        differs = share(checked(self._turned(h)), truth.h)
        if not differs <= SAME[self.case.dtype]:
            raise Refused(f"its h differs from the reference by {differs:.1e} of the largest: not the same function")
        errors = {}
        for kind, of_h in truth.upstream.items():
            upstream = self.upstream.clone()
            checked(self._turned(upstream)).copy_(of_h)
            found = torch.autograd.grad(h, self.inputs, upstream, retain_graph=True)
            errors[kind] = truth.errors(kind, [self._turned(one) for one in found])
        return {"differs": differs, "gradients": errors}


class Attention(Cell):
    """FlashAttention on q, k and v."""

    def __init__(self, case: Case, device: torch.device):
        rows = (case.batch * case.members, case.heads, case.steps, max(case.width, case.values))
        options: dict[str, Any] = {"device": device, "dtype": getattr(torch, case.dtype)}
        self.cell = _attention
        self.inputs = [torch.randn(rows, **options).requires_grad_() for _ in range(3)]
        self.upstream = torch.randn(rows, **options)

    def agreement(self) -> dict[str, Any]:
        return {}


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def _ours(design: str, *inputs: Tensor, backend: str = "triton") -> Tensor:
    return call(inputs, design=design, backend=backend)[0]


def _official(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    from xlstm.blocks.mlstm.backends import parallel_stabilized_simple

    with torch.autocast(q.device.type, q.dtype, enabled=q.element_size() == 2):
        h: Tensor = parallel_stabilized_simple(q, k, v, i[..., None], f[..., None])
    return h.to(q.dtype)


def _packaged(name: str, case: Case) -> Callable[..., Tensor]:
    """The kernel `name` of mlstm_kernels for a case's length."""
    from mlstm_kernels.torch import get_mlstm_kernel
    from mlstm_kernels.torch.kernel_wrappers import wrap_chunkwise__pad_zeros

    kernel = partial(get_mlstm_kernel(name), autocast_kernel_dtype=getattr(torch, case.dtype))
    chunk = fitting_chunk(name, case.steps)
    if name in UNBOUND:
        cell = kernel
    elif case.steps % chunk:
        cell = partial(wrap_chunkwise__pad_zeros, kernel, chunk_size=chunk)
    else:
        cell = partial(kernel, chunk_size=chunk)
    return lambda q, k, v, i, f: cell(q=q, k=k, v=v, i=i, f=f)


def fitting_chunk(name: str, steps: int) -> int:
    """Steps of a chunk of a kernel of mlstm_kernels: a part of `steps`, or its default, to which they are padded."""
    default = CHUNKS.get(name, CHUNK)
    if name in CHUNKS:  # it picks its own below, and takes none
        return default
    chunk = default
    while chunk >= SHORTEST and steps % chunk:
        chunk //= 2
    return chunk if chunk >= SHORTEST else default


def build_mlstm(side: str, case: Case, device: torch.device) -> Cell:
    """The task of a side. Raises Refused with the reason where it is known that it cannot run."""
    if side == ANOTHER_FUNCTION:
        return Attention(case, device)
    package, _, name = side.partition(" ")
    if package == "mlstm_kernels":
        return Cell(case, device, _packaged(name, case), heads_first=True)
    if package == "xlstm":
        return Cell(case, device, _official, heads_first=True)
    design = side.removeprefix(OURS).removeprefix(", ")
    if design and design not in designs():
        raise Refused(f"this version's kernel has no design '{design}'")
    return Cell(case, device, partial(_ours, design), heads_first=False)
