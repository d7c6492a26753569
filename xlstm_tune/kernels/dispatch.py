"""Which backend runs an op: decided here, with the reason. An explicit request is met or refused, never replaced."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch

from xlstm_tune.errors import BackendUnavailable
from xlstm_tune.kernels.library import constant_when_compiled

log = logging.getLogger(__name__)

BACKENDS = ("auto", "reference", "numba", "triton")
OPS = ("lstm", "slstm", "mlstm")
KERNELS = ("numba", "triton")
"""The backends that each op has besides the reference, the one to be preferred first."""
WIDEST_MLSTM = 512
"""The widest head, of keys or values, that mLSTM's Triton kernels take."""
WIDEST_WALK = 128
"""The widest head whose state one program can carry from chunk to chunk."""
WALKED = 64
"""The widest head for which it does so well: wider ones leave much outside of registers."""
SHORT = 256
"""Steps up to which one program for each head of a sample is no bottleneck, however few there are."""
MANY = 2048
"""Heads of all samples from which on such programs fill a device, however long their sequences are."""
ON_CHIP = {2: 128, 4: 64}
"""By bytes of a number, the widest head whose four recurrent matrices a GPU's multiprocessor holds beside states."""


@dataclass(frozen=True)
class Choice:
    """The backend that runs an op, and why."""

    op: str
    backend: str
    reason: str

    def __str__(self) -> str:
        return f"{self.op}: {self.backend} ({self.reason})"


def refusal(
    op: str,
    backend: str,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    projected: bool = False,
    width: int = 0,
) -> str | None:
    """Why `backend` cannot run `op` on tensors of a device type and dtype; None when it can. As for `resolve`."""
    if backend == "triton" and (reason := triton_refusal(device, dtype)):
        return reason
    if backend == "triton" and op == "mlstm" and width > WIDEST_MLSTM:
        return f"its mLSTM takes heads of up to {WIDEST_MLSTM}, and these are {width} wide"
    if backend == "numba" and device != "cpu":
        return f"it runs on a CPU, and the tensors are on '{device}'"
    if backend == "numba" and dtype == torch.float64:
        return "it computes in float32, and the tensors are float64"
    if projected:
        return "it has no projection of h"
    return None


@constant_when_compiled
def _has_triton() -> bool:
    """torch.compile of torch 2.11 and 2.12 does not follow find_spec."""
    return find_spec("triton") is not None


def triton_refusal(device: str, dtype: torch.dtype) -> str | None:
    """Why no kernel of Triton's can run on tensors of a device type and dtype; None when they can."""
    if not _has_triton():
        return "the package triton is not installed"
    if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "it runs on a GPU, and the tensors are on 'cpu' (TRITON_INTERPRET=1 runs it there, slowly)"
    if dtype == torch.float64:
        return "it computes in float32 and 16 bits, and the tensors are float64"
    if device != "cuda" or not torch.cuda.is_available():
        return None
    from xlstm_tune.kernels.launcher_triton import launcher_refusal

    refused: str | None = launcher_refusal()
    return refused


def resolve(
    op: str,
    requested: str = "auto",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    projected: bool = False,
    width: int = 0,
) -> Choice:
    """Choose the backend of `op` for tensors of a device type and dtype; projected: with a projection of h (LSTM only).

    width: of a head, the larger one of keys and values; 0 = not said.

    `auto` takes the fastest that can run them. Raises BackendUnavailable when a backend that was asked for by name
    cannot, ValueError for a name that is none of `BACKENDS` or `OPS`.
    """
    if op not in OPS:
        raise ValueError(f"op must be one of {', '.join(OPS)}, got {op!r}")
    if requested not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {requested!r}")
    if requested == "reference":
        return Choice(op, "reference", "asked for by name")
    if requested != "auto":
        reason = refusal(op, requested, device, dtype, projected, width)
        if reason:
            raise BackendUnavailable(f"backend '{requested}' was asked for, but {reason}; use 'auto' or 'reference'")
        return Choice(op, requested, "asked for by name" + _design(op, requested, width))
    what = f"{dtype} on '{device}'".replace("torch.", "") + (" with a projection" if projected else "")
    for backend in KERNELS:
        if refusal(op, backend, device, dtype, projected, width) is None:
            return Choice(op, backend, f"the fastest for {what}" + _design(op, backend, width))
    if device == "cuda" and dtype != torch.float64 and (reason := triton_refusal(device, dtype)):
        _warn(reason)
        return Choice(op, "reference", reason)
    return Choice(op, "reference", f"there is no faster kernel for {what}")


@constant_when_compiled
def _warn(reason: str) -> None:
    """A GPU that works without our kernels is many times slower. torch.compile says it while it looks at the call."""
    _warn_once(reason)


@cache
def _warn_once(reason: str) -> None:
    log.warning("The GPU runs without the fast kernels: %s.", reason)


def mlstm_design(programs: int, steps: int, width: int, requested: str = "auto") -> str:
    """How Triton runs an mLSTM: "walk", one program for each head of a sample, or "parallel", programs for each chunk.

    programs: heads of all samples. width: of a head, the larger one of keys and values. requested: "auto" or one of
    both. Raises ValueError for another name, and for a head that is too wide.
    """
    if requested not in ("auto", "walk", "parallel"):
        raise ValueError(f"design must be one of auto, walk, parallel, got {requested!r}")
    widest = WIDEST_WALK if requested == "walk" else WIDEST_MLSTM
    if width > widest:
        raise ValueError(f"design {requested!r} takes heads of up to {widest}, and these are {width} wide")
    if requested != "auto":
        return requested
    return "walk" if width <= WALKED and (steps <= SHORT or programs >= MANY) else "parallel"


def _design(op: str, backend: str, width: int) -> str:
    """Which of a backend's ways the width of a head leads to, in words."""
    if backend != "triton" or not width:
        return ""
    if op == "mlstm" and width <= WALKED:
        return f"; by chunk where fewer than {MANY} heads of samples are longer than {SHORT} steps, else by head"
    if op == "mlstm":
        return f"; by chunk, since heads are wider than {WALKED}"
    if width <= ON_CHIP[4]:
        return "; one kernel for all steps"
    if width <= ON_CHIP[2]:
        return f"; in 16 bits one kernel for all steps, in float32 two a step, since heads are wider than {ON_CHIP[4]}"
    return f"; a product and a kernel a step, since heads are wider than {ON_CHIP[2]}"
