"""Which backend runs an op: decided here, with the reason. An explicit request is met or refused, never replaced."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from xlstm_tune.errors import BackendUnavailable

BACKENDS = ("auto", "reference", "numba", "triton")
KERNELS: dict[str, tuple[str, ...]] = {"lstm": ("numba",), "slstm": ("numba",), "mlstm": ("numba",)}
"""The backends that each op has besides the reference, fastest first."""


@dataclass(frozen=True)
class Choice:
    """The backend that runs an op, and why."""

    op: str
    backend: str
    reason: str

    def __str__(self) -> str:
        return f"{self.op}: {self.backend} ({self.reason})"


def refusal(
    op: str, backend: str, device: str = "cpu", dtype: torch.dtype = torch.float32, projected: bool = False
) -> str | None:
    """Why `backend` cannot run `op` on tensors of a device type and dtype; None when it can."""
    if backend not in KERNELS[op]:
        return f"this version has no {backend.capitalize()} kernel for {op}"
    if backend == "numba" and device != "cpu":
        return f"it runs on a CPU, and the tensors are on '{device}'"
    if backend == "numba" and dtype == torch.float64:
        return "it computes in float32, and the tensors are float64"
    if backend == "numba" and projected:
        return "it has no projection of h"
    return None


def resolve(
    op: str, requested: str = "auto", device: str = "cpu", dtype: torch.dtype = torch.float32, projected: bool = False
) -> Choice:
    """Choose the backend of `op` for tensors of a device type and dtype; projected: with a projection of h (LSTM only).

    `auto` takes the fastest that can run them. Raises BackendUnavailable when a backend that was asked for by name
    cannot, ValueError for a name that is none of `BACKENDS` or `KERNELS`.
    """
    if op not in KERNELS:
        raise ValueError(f"op must be one of {', '.join(KERNELS)}, got {op!r}")
    if requested not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {requested!r}")
    if requested == "reference":
        return Choice(op, "reference", "asked for by name")
    if requested != "auto":
        reason = refusal(op, requested, device, dtype, projected)
        if reason:
            raise BackendUnavailable(f"backend '{requested}' was asked for, but {reason}; use 'auto' or 'reference'")
        return Choice(op, requested, "asked for by name")
    what = f"{dtype} on '{device}'".replace("torch.", "") + (" with a projection" if projected else "")
    for backend in KERNELS[op]:
        if refusal(op, backend, device, dtype, projected) is None:
            return Choice(op, backend, f"the fastest for {what}")
    return Choice(op, "reference", f"there is no faster kernel for {what}")
