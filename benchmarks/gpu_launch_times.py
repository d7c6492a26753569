"""A case of ours with other launch parameters than the kernels' own table has: its times, and whether it is right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from typing import Any
from unittest.mock import patch

import torch
from gpu_cases import GATED, OURS, SIZES, Case
from gpu_limits import median_ms
from gpu_mlstm import share
from gpu_peers import build

from xlstm_tune.kernels import lstm_triton, mlstm_triton, slstm_triton
from xlstm_tune.kernels.parts_triton import INTERPRETED, launch

MODULES: dict[str, Any] = {"lstm": lstm_triton, "slstm": slstm_triton, "mlstm": mlstm_triton}


def by_table(case: Case, device: torch.device) -> dict[str, int]:
    """What the kernels launch a case with by themselves. Raises ValueError where no single kernel runs all steps."""
    module = MODULES[case.op]
    if case.op == "mlstm":
        found: dict[str, int] = module.launch(getattr(torch, case.dtype), case.width, case.values, case.steps)
        return {name: found[name] for name in ("CHUNK", "num_warps", "num_stages")}
    numbers = torch.empty(case.width, device=device, dtype=getattr(torch, case.dtype))
    cut = module.launch_for(numbers, case.heads * case.members, case.batch)
    if cut is None:
        raise ValueError(f"no kernel runs all steps of {case.title}")
    return {name: asdict(cut)[name] for name in ("samples", "warps", "stages")}


@contextmanager
def launched(case: Case, cut: dict[str, int]) -> Iterator[None]:
    """Calls inside are launched with these parameters, mLSTM by its walk."""
    module = MODULES[case.op]
    with ExitStack() as stack:
        if case.op in GATED:
            own = launch(case.width, SIZES[case.dtype], INTERPRETED)
            assert own is not None
            chosen = replace(own, **cut)
            stack.enter_context(patch.object(module, "launch_for", lambda *_: chosen))
        else:
            by_shape = module.launch
            stack.enter_context(patch.object(module, "launch", lambda *shape: by_shape(*shape) | cut))
            stack.enter_context(patch.object(module, "mlstm_design", lambda *_: "walk"))
        yield


def measure(case: Case, cut: dict[str, int], seconds: float, device: torch.device) -> dict[str, Any]:
    """Milliseconds of a training call with these parameters, forward and in all, for about so many seconds each; 0:
    only whether it runs. own: whether the table says the same. worst: the largest difference of h and of gradients from
    those with the table's, as a share of the largest value."""
    task: Any = build(OURS, case, device)
    found: dict[str, Any] = {"own": by_table(case, device) == cut}
    with launched(case, by_table(case, device)):
        right = [task.forward(), *task.both()]
    with launched(case, cut):
        mine = [task.forward(), *task.both()]
        found["worst"] = max(share(one, other.double()) for one, other in zip(mine, right, strict=True))
        del mine, right
        if seconds:
            # With gradients, so that the kernels write what their way back needs.
            forward = (lambda: task.cell(*task.inputs)) if case.op == "mlstm" else task.h
            found["forward_ms"] = median_ms(forward, seconds)
            found["both_ms"] = median_ms(task.both, seconds)
    return found
