"""Training calls that store what their backward pass needs, or recompute it: their times, and the memory between."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from gpu_cases import Case
from gpu_limits import median_ms
from gpu_peers import Ours
from torch import Tensor

VARIABLE = "XLSTM_TUNE_BACKWARD"
MIB = 2**20


@contextmanager
def forced(way: str) -> Iterator[None]:
    """Calls inside go this way: store, recompute, or auto, by their size."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = way
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        if before is not None:
            os.environ[VARIABLE] = before


class Made(Ours):
    """Gates are made by a function that does not keep them, as a layer's projection: they stay only where the op keeps
    them."""

    def h(self) -> Tensor:
        gates, recurrent, bias = self.inputs
        found: Tensor = self.op(gates.clone().permute(1, 2, 0, 3, 4), recurrent, bias, backend=self.backend)[0]
        return found


def measure(case: Case, way: str, seconds: float, device: torch.device) -> dict[str, Any]:
    """Milliseconds of a training call, forward and in all, and its memory.

    kept_mib: between the passes, h included; kept_bytes_a_unit: of each unit and step, h not included; peak_mib: the
    most in both passes. chosen: whether the call would go this way by itself. Recomputing, same: whether gradients are
    the stored ones to the last bit.
    """
    from xlstm_tune.kernels import gated_triton, lstm_triton, slstm_triton

    cell = {"lstm": lstm_triton.CELL, "slstm": slstm_triton.CELL}[case.op]
    task = Ours(case, device)
    with forced("auto"):
        by_itself = gated_triton.recomputes(cell, task.inputs[0].permute(1, 2, 0, 3, 4), task.inputs[1])
    found: dict[str, Any] = {"chosen": by_itself == (way == "recompute")}
    with forced(way):
        found["forward_ms"] = median_ms(task.h, seconds)
        found["both_ms"] = median_ms(task.both, seconds)
        found |= _memory(Made(case, device))
        if way == "recompute":
            mine = task.both()
            with forced("store"):
                found["same"] = all(map(torch.equal, mine, task.both()))
    return found


def _memory(task: Ours) -> dict[str, float]:
    """See `measure`. It runs once before, so that libraries have what they keep for themselves."""
    task.both()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    h = task.h()
    kept = torch.cuda.memory_allocated() - before
    gradients = torch.autograd.grad(h, task.inputs, task.upstream)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del gradients
    a_unit = (kept - h.nbytes) / h.numel()
    return {"kept_mib": kept / MIB, "kept_bytes_a_unit": a_unit, "peak_mib": peak / MIB}
