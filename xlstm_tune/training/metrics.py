"""How far predictions are from what happened.

Shapes: n samples, H horizon steps, K targets. Two units, and the names say which: `rmse` and `mae` are in the
target's own units, `mse_standardised` and `mae_standardised` in standard deviations of the training part, as the
forecasting literature gives them. All four pool every sample, step and target, and are summed in float64.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]
Array = Tensor | npt.NDArray[np.floating]


def score(predicted: Array, actual: Array, target_std: npt.NDArray[np.floating]) -> dict[str, float]:
    """Those of `ranking.METRICS`, of standardised arrays.

    predicted, actual: [n, H, K] (or any [..., K]), numpy or torch, standardised by the training part.
    target_std: [K], deviation of the training part in the target's own units.
    Raises ValueError for shapes that do not fit or nothing to score.
    """
    predicted, actual, std = _checked(predicted, actual, target_std)
    return _metrics(*_sums(predicted - actual), std)


def score_units(predicted: Array, actual: Array, target_std: npt.NDArray[np.floating]) -> dict[str, float]:
    """The metrics of arrays that are in the target's own units; otherwise as `score`."""
    predicted, actual, std = _checked(predicted, actual, target_std)
    return _metrics(*_sums((predicted - actual) / std), std)


END_NUMBERS = 2048
"""Forecasts of the last samples that `ErrorSums` keeps, counted in numbers; at most 256 samples, at least one."""


class ErrorSums:
    """`score` batch by batch, keeping no predictions but the last: sums stay on the device until `result`."""

    def __init__(self, target_std: npt.NDArray[np.floating], device: torch.device | str = "cpu") -> None:
        self._std = np.asarray(target_std, dtype=np.float64)
        self._sums = torch.zeros(2, len(self._std), dtype=torch.float64, device=device)  # squares, absolutes
        self._count = 0
        self._last: list[Tensor] = []  # [2, b, H] each

    def add(self, predicted: Tensor, actual: Tensor) -> None:
        """Count one batch: [b, H, K] each, standardised."""
        error = (predicted.double() - actual.double()).flatten(end_dim=-2)  # [b*H, K]
        self._sums[0] += error.square().sum(dim=0)
        self._sums[1] += error.abs().sum(dim=0)
        self._count += len(error)
        self._last.append(torch.stack([predicted[..., 0], actual[..., 0]]).detach())
        while sum(one.shape[1] for one in self._last[1:]) >= _end_samples(predicted.shape[1]):
            del self._last[0]

    def end(self) -> Tensor:
        """The last samples' forecasts and what happened, of the first target: [2, m, H] float32, standardised."""
        last = torch.cat(self._last, dim=1)
        return last[:, -_end_samples(last.shape[2]) :].to("cpu", torch.float32, copy=True)

    def result(self) -> dict[str, float]:
        """The metrics of all that was added. Raises ValueError when nothing was."""
        if not self._count:
            raise ValueError("there is nothing to score: no batch was added")
        squares, absolutes = self._sums.cpu().numpy()
        return _metrics(squares, absolutes, self._count, self._std)


def _end_samples(horizon: int) -> int:
    return max(1, min(256, END_NUMBERS // horizon))


def _checked(predicted: Array, actual: Array, target_std: npt.NDArray[np.floating]) -> tuple[Floats, Floats, Floats]:
    predicted, actual, std = _float64(predicted), _float64(actual), _float64(target_std)
    if predicted.shape != actual.shape:
        raise ValueError(f"predicted and actual must have one shape, got {predicted.shape} and {actual.shape}")
    if std.ndim != 1 or predicted.shape[-1:] != std.shape:
        raise ValueError(f"target_std must be [K] for arrays [..., K], got {std.shape} for {predicted.shape}")
    if not predicted.size:
        raise ValueError(f"there is nothing to score: the arrays have shape {predicted.shape}")
    return predicted, actual, std


def _float64(array: Array) -> Floats:
    return np.asarray(array.detach().cpu() if isinstance(array, Tensor) else array, dtype=np.float64)


def _sums(error: Floats) -> tuple[Floats, Floats, int]:
    """Per target: squares [K], absolutes [K]; and how many errors each sum holds."""
    error = error.reshape(-1, error.shape[-1])
    return np.square(error).sum(axis=0), np.abs(error).sum(axis=0), len(error)


def _metrics(squares: Floats, absolutes: Floats, count: int, std: Floats) -> dict[str, float]:
    return {
        "rmse": float(np.sqrt((squares * std**2).mean() / count)),
        "mae": float((absolutes * std).mean() / count),
        "mse_standardised": float(squares.mean() / count),
        "mae_standardised": float(absolutes.mean() / count),
    }
