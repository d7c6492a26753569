"""The inputs' share of sLSTM's gates: for each head, i and f from one source, z and o from another.

Legend: B batch, T steps, N heads, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xlstm_tune.kernels.library import Kernel, register
from xlstm_tune.kernels.matmul_numba import fits, matmul, matmul_backward
from xlstm_tune.kernels.shapes import expect_shape
from xlstm_tune.kernels.simd import LANES


def forward(for_if: Tensor, for_zo: Tensor, weight: Tensor, train: bool) -> tuple[Tensor, ...]:
    """Sources [B, T, N, D], weight [N, 4, D out, D in] → gates [N, B, T, 4, D]."""
    batch, steps, heads, width = for_if.shape
    gates = for_if.new_empty(heads, batch, steps, 4, width)
    for source, part, by in zip((for_if, for_zo), _halves(gates, 3), _halves(weight, 1), strict=True):
        if _compiled(source) and fits(part.shape[1], width, part.shape[2]):
            matmul(_rows(source), by.mT, part)
        else:
            torch.bmm(_rows(source), by.mT, out=part)
    return (gates,)


def backward(for_if: Tensor, for_zo: Tensor, weight: Tensor, grad: Tensor | None) -> tuple[Tensor, ...]:
    """Gradients of both sources and the weight."""
    found = backward_shapes(for_if, for_zo, weight, grad)
    if grad is None:
        return tuple(tensor.zero_() for tensor in found)
    *d_sources, d_weight = found
    width = weight.shape[3]
    parts = zip(_halves(grad.contiguous(), 3), _halves(weight, 1), _halves(d_weight, 1), strict=True)
    for source, d_source, (part, by, d_by) in zip((for_if, for_zo), d_sources, parts, strict=True):
        if (
            _compiled(part)
            and part.shape[2] % LANES == source.shape[3] % LANES == 0
            and fits(part.shape[1], part.shape[2], width)
        ):
            d_by.copy_(matmul_backward(part, _rows(source), by, _rows(d_source)))
        else:
            torch.bmm(part, by, out=_rows(d_source))
            torch.bmm(part.mT, _rows(source), out=d_by)
    return found


def forward_shapes(for_if: Tensor, *_: object) -> tuple[Tensor, ...]:
    """A tensor like the one that `forward` returns."""
    batch, steps, heads, width = for_if.shape
    return (for_if.new_empty(heads, batch, steps, 4, width),)


def backward_shapes(for_if: Tensor, for_zo: Tensor, weight: Tensor, grad: Tensor | None) -> tuple[Tensor, ...]:
    """Tensors like those that `backward` returns."""
    return tuple(tensor.new_empty(tensor.shape) for tensor in (for_if, for_zo, weight))


def _compiled(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu"


def _rows(source: Tensor) -> Tensor:
    """[B, T, N, D] as [N, B · T, D], in the same memory."""
    return source.flatten(0, 1).transpose(0, 1)


def _halves(tensor: Tensor, axis: int) -> tuple[Tensor, ...]:
    """[N, ..., 4, D, ...] with 4 at `axis`, as its gates i, f and its gates z, o: [N, ., 2 D] or [N, 2 D, D]."""
    flat = tensor.flatten(axis, axis + 1)
    return tuple(part if axis == 1 else part.flatten(1, -2) for part in flat.chunk(2, axis))


_in_layout = register(
    Kernel(
        name="slstm_gates",
        inputs={"for_if": 2, "for_zo": 2, "weight": 0},
        constants={},
        outputs={"gates": 0},
        saved={},
        needs=("for_if", "for_zo", "weight"),
        forward=forward,
        backward=backward,
        forward_shapes=forward_shapes,
        backward_shapes=backward_shapes,
    )
)


def slstm_gates(for_if: Tensor, for_zo: Tensor, weight: Tensor) -> Tensor:
    """Gates [B, T, N, 4, D], laid out in memory head first, which is how the cell takes them in.

    for_if, for_zo: [B, T, E], what the gates i and f, and z and o, see. weight: [N, 4, D out, D in], with N D = E.
    """
    heads, _, width, _ = weight.shape
    expect_shape(for_if, "slstm_gates: for_if", B=None, T=None, E=heads * width)
    expect_shape(for_zo, "slstm_gates: for_zo", B=for_if.shape[0], T=for_if.shape[1], E=heads * width)
    device = for_if.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    sources = (source.to(dtype).reshape(*source.shape[:2], heads, width).contiguous() for source in (for_if, for_zo))
    (gates,) = _in_layout(*sources, weight.to(dtype).contiguous())
    return gates.permute(1, 2, 0, 3, 4)
