"""How a training process shares its threads between torch's operators and compiled kernels, on a CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from xlstm_tune.kernels.matmul_numba import LARGEST_WEIGHT
from xlstm_tune.kernels.tiles import kernel_threads, set_kernel_threads
from xlstm_tune.models.forecaster import Forecaster


def threads_asked_for() -> int:
    """By OMP_NUM_THREADS, which Ray sets to a trial's processors where nobody else does; 1 where it says no number.

    OpenMP takes a list, such as `4,2`, for loops within loops; the first is that of the outermost.
    """
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return max(1, int(first)) if first.isdecimal() else 1


@contextmanager
def threads_for(model: Forecaster) -> Iterator[None]:
    """Inside, the kernels of a model that has little else to compute run in torch's threads, and torch in one.

    What such a model leaves to torch are many short operators. Waking a second thread for each takes longer than it
    saves, and one that waits awake takes a processor from the kernels. Other models are left as they are.
    """
    threads = torch.get_num_threads()
    if threads == 1 or not _kernels_alone(model):
        yield
        return
    before = kernel_threads()
    set_kernel_threads(threads)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        set_kernel_threads(before)


def _kernels_alone(model: Forecaster) -> bool:
    """Whether kernels run the body, and no layer is too large for them."""
    layers = (module for module in model.modules() if isinstance(module, nn.Linear))
    return model.compiled and all(layer.weight.numel() <= LARGEST_WEIGHT for layer in layers)
