"""A model on a part of the data: its predictions, and how far they are off.

Shapes: n samples of a part, b of a batch, H horizon, K targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from xlstm_tune.data.windows import Batch, Prepared
from xlstm_tune.models.forecaster import Forecaster
from xlstm_tune.training.config import TrialConfig
from xlstm_tune.training.metrics import ErrorSums
from xlstm_tune.training.micro import fitting


class Samples(Protocol):
    """Samples by their position, such as a part's `Windows`."""

    def __len__(self) -> int: ...

    def batch(self, index: Tensor) -> Batch:
        """The samples at positions `index`, int64 [b]."""
        ...


def judge(
    model: Forecaster,
    windows: Samples,
    target_std: np.ndarray,
    batch_size: int,
    dtype: torch.dtype | None = None,
) -> ErrorSums:
    """The errors over every sample of a part, without dropout. dtype: of autocast, None = float32."""
    sums = ErrorSums(target_std, next(model.parameters()).device)
    for predicted, actual in forecasts(model, windows, dtype, batch_size):
        sums.add(predicted, actual)
    return sums


def predict(
    model: Forecaster,
    windows: Samples,
    batch_size: int = 256,
    dtype: torch.dtype | None = None,
    every_quantile: bool = False,
) -> Tensor:
    """Standardised predictions of every sample of a part, in its order: [n, H, K] float32 on the CPU.

    dtype: of autocast, None = float32; `autocast_dtype` gives what a trial was validated with. With `every_quantile`
    [n, H, K, Q], as the model's own.
    """
    return torch.cat([predicted.cpu() for predicted, _ in forecasts(model, windows, dtype, batch_size, every_quantile)])


@torch.no_grad()
def forecasts(
    model: Forecaster,
    windows: Samples,
    dtype: torch.dtype | None = None,
    batch_size: int = 256,
    every_quantile: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(predicted, actual) of all samples in order, [b, H, K] float32; the model's mode is put back at the end.

    With `every_quantile` predicted is [b, H, K, Q].

    Where a batch runs out of memory, it and those after it are halved.
    """
    device = next(model.parameters()).device

    def batch_at(start: int, size: int) -> tuple[Tensor, Tensor]:
        x, y, lengths, static = windows.batch(torch.arange(start, min(start + size, len(windows)), device=device))
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            predicted = model(x, lengths, static, every_quantile)
        return predicted.float(), y

    was_training = model.training
    model.eval()
    start, size = 0, batch_size
    try:
        while start < len(windows):
            tried = min(size, len(windows) - start)
            done, fitted = fitting(partial(batch_at, start), tried)
            if fitted < tried:
                size = fitted
            start += fitted
            yield done
    finally:
        model.train(was_training)


def eval_batch(config: TrialConfig, data: Prepared, device: torch.device) -> int:
    """Samples per validation batch: as many as keep one hidden layer below 2²² numbers (16 MiB).

    At most 256 on a CPU, where larger ones leave the cache and get slower, 2048 on a GPU. Never fewer than a training
    batch, which needs more memory than a forward pass of the same size.
    """
    lookback = config.lookback or data.lookback
    channels = len(data.target_names) if config.model.channels == "independent" else 1
    layer = channels * config.model.tokens(lookback) * config.model.hidden_size
    numbers = max(layer, lookback * len(data.feature_names))
    most = 256 if device.type == "cpu" else 2048
    return max(config.training.batch_size, min(most, 2**22 // numbers))
