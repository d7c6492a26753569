"""mLSTM as gpu.py calls it, by the op or by one of its kernel's designs, and the truth about a case in float64.

The truth is computed for a few samples and heads, over all steps: without weights no other sample or head has a part in
their results.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from gpu_cases import ANY, DESIGNS, NORM, Case
from torch import Tensor

from xlstm_tune.kernels import MLSTMState, dispatch, mlstm

SEED = 0
FORGET_BIAS = 3.0
"""Added to random forget gates: where a model starts."""
CHECKED = 2
"""Samples, and heads of each, whose results are held against float64."""


def designs() -> list[str]:
    """The designs that mLSTM's kernel can be asked for by name; none in a version that has but one."""
    if find_spec("triton") is None:
        return []
    from xlstm_tune.kernels.mlstm_triton import mlstm_triton

    return list(DESIGNS) if "design" in inspect.signature(mlstm_triton).parameters else []


def widest() -> dict[str, int]:
    """mLSTM, and each of its kernel's designs as checks name them → the widest head that it takes."""
    most = {"walk": getattr(dispatch, "WIDEST_WALK", dispatch.WIDEST_MLSTM)}
    named = {f"mlstm, {design}": most.get(design, dispatch.WIDEST_MLSTM) for design in designs()}
    return {"mlstm": dispatch.WIDEST_MLSTM} | named


def call(
    inputs: Sequence[Tensor],
    initial_state: MLSTMState | None = None,
    *,
    backend: str = "triton",
    design: str = "",
    **options: Any,
) -> tuple[Tensor, MLSTMState]:
    """`mlstm` of q, k, v, i, f; with a design its kernel by itself, which knows no masks."""
    q, k, v, i, f = inputs
    if not design or backend != "triton":
        return mlstm(q, k, v, i, f, initial_state, backend=backend, **options)
    from xlstm_tune.kernels.mlstm_triton import mlstm_triton

    found: tuple[Tensor, MLSTMState] = mlstm_triton(q, k, v, i.float(), f.float(), initial_state, design=design)
    return found


def draw(case: Case, device: torch.device) -> list[Tensor]:
    """q, k [B, T, N, D], v [B, T, N, V], i, f [B, T, N], the same for every side; members are more samples."""
    rows = (case.batch * case.members, case.steps, case.heads)
    generator = torch.Generator(device).manual_seed(SEED)
    options: dict[str, Any] = {"generator": generator, "device": device, "dtype": getattr(torch, case.dtype)}
    q, k, v = (torch.randn(*rows, size, **options) for size in (case.width, case.width, case.values))
    i, f = (torch.randn(*rows, **options) for _ in range(2))
    return [q, k, v, i, f + FORGET_BIAS]


class Truth:
    """h of a case's first samples and heads, and the gradients of its inputs, in float64."""

    def __init__(self, inputs: list[Tensor], upstream: Tensor):
        """inputs: as drawn. upstream [B, T, N, V]: the gradient of h."""
        self.dtype = upstream.dtype
        leaves = [checked(tensor).double().requires_grad_() for tensor in inputs]
        h, _ = call(leaves, backend="reference")
        self.h = h.detach()
        drawn = checked(upstream).double()
        along = (drawn * self.h).sum(-1, keepdim=True) / self.h.square().sum(-1, keepdim=True)
        self.upstream = {ANY: drawn, NORM: (drawn - along * self.h).to(self.dtype).double()}
        self.gradients = {
            kind: torch.autograd.grad(h, leaves, one, retain_graph=True) for kind, one in self.upstream.items()
        }

    def errors(self, kind: str, gradients: list[Tensor]) -> dict[str, float]:
        """How far gradients of (q, k, v, i, f), in our layout, are from the true ones, each as a share of the largest;
        infinite where one is not finite."""
        pairs = zip("qkvif", gradients, self.gradients[kind], strict=True)
        return {name: share(checked(mine), true) for name, mine, true in pairs}


def checked(tensor: Tensor) -> Tensor:
    """The samples and heads of [B, T, N, ...] that are held against the truth."""
    return tensor[:CHECKED, :, :CHECKED].detach()


def share(mine: Tensor, true: Tensor) -> float:
    """The largest difference as a share of the largest value; infinite where something is not finite."""
    found = (mine.double() - true).abs().max() / true.abs().max()
    return found.item() if found.isfinite() else float("inf")
