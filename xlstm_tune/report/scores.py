"""Every figure for one model's predictions of one part.

n samples, H horizon steps, K targets. Figures pool all samples, steps and targets unless they say otherwise. The
predictions table keeps some samples of a part where all would be more than 200,000 rows, so figures made of it
can differ a little from those of the tables `scores` and `baselines`, which are made of all samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Array = NDArray[np.float64]

METRICS = (
    "rmse",
    "mae",
    "mape",
    "smape",
    "mase",
    "r2",
    "bias",
    "mse_standardised",
    "mae_standardised",
)
"""What `metrics` returns, in this order."""
NEAR_ZERO = 0.01
"""MAPE is not given where any actual value is smaller than this share of their mean magnitude."""
ROUNDING = float(np.finfo(np.float32).eps)
"""Share of the targets' size by which a forecast of exactly 0 can be off, since models forecast in float32 what is
standardised; so can those of earlier programs' baselines."""


def metrics(
    predicted: Array,
    actual: Array,
    target_std: Sequence[float] | None = None,
    mase_scale: Sequence[float | None] | None = None,
) -> dict[str, float | None]:
    """predicted, actual: [n, H, K] in the target's own units. target_std: [K], of the training part.

    rmse, mae, bias (mean of predicted − actual): the target's own units.
    mape: per cent; None where any actual value is nearer to zero than a hundredth of their mean magnitude (per target),
    since one such value would decide the figure.
    smape: per cent, 200 |p − a| / (|p| + |a|), 0 where both are 0, p but for its rounding (Makridakis 1993).
    mase: the mean over targets of MAE / mase_scale [K] (Hyndman & Koehler 2006); None where a scale is missing.
    r2: share of the part's variance that is explained, the mean over targets; None where one is constant.
    mse_standardised, mae_standardised: in deviations of the training part; None without target_std.
    Raises ValueError for shapes that do not fit, or nothing to score.
    """
    if predicted.shape != actual.shape or predicted.ndim != 3:
        raise ValueError(f"predicted and actual must be [n, H, K], got {predicted.shape} and {actual.shape}")
    if not predicted.size:
        raise ValueError(f"there is nothing to score: the arrays have shape {predicted.shape}")
    targets = predicted.shape[-1]
    truth, guess = actual.reshape(-1, targets), predicted.reshape(-1, targets)
    error = guess - truth
    squares, absolutes = np.square(error).mean(0), np.abs(error).mean(0)  # [K]
    figures: dict[str, float | None] = {
        "rmse": float(np.sqrt(squares.mean())),
        "mae": float(absolutes.mean()),
        "mape": _mape(error, truth),
        "smape": _smape(error, truth, guess, target_std),
        "mase": None,
        "r2": _r2(squares, truth),
        "bias": float(error.mean()),
        "mse_standardised": None,
        "mae_standardised": None,
    }
    if mase_scale is not None:
        scale = [value for value in mase_scale if value]
        if len(scale) == targets:
            figures["mase"] = float((absolutes / scale).mean())
    if target_std is not None:
        std = np.asarray(target_std, dtype=np.float64)
        figures["mse_standardised"] = float((squares / std**2).mean())
        figures["mae_standardised"] = float((absolutes / std).mean())
    return figures


def _mape(error: Array, truth: Array) -> float | None:
    size = np.abs(truth)
    if (size.min(0) <= NEAR_ZERO * size.mean(0)).any():
        return None
    return float(100 * (np.abs(error) / size).mean())


def _smape(error: Array, truth: Array, guess: Array, target_std: Sequence[float] | None) -> float:
    size = np.abs(truth) + np.abs(guess)
    # Only beside a truth of 0 does rounding count, and there it would count as much as an error can. How large numbers
    # are that were rounded, the part itself need not say: it may be 0 throughout.
    scale = np.maximum(np.abs(truth).mean(0), 0.0 if target_std is None else target_std)
    counts = (size > 0) & ~((truth == 0) & (np.abs(guess) <= ROUNDING * scale))
    return float(200 * np.divide(np.abs(error), size, out=np.zeros_like(size), where=counts).mean())


def _r2(squares: Array, truth: Array) -> float | None:
    variance = truth.var(0)
    if (truth.min(0) == truth.max(0)).any():
        return None
    return float((1 - squares / variance).mean())


def by_group(predicted: Array, actual: Array, groups: Sequence[str]) -> dict[str, float]:
    """RMSE of each group of samples, by name in order of first appearance; {} where there is one group, or as many
    groups as samples. groups: n names, such as the series."""
    losses = np.square(predicted - actual).mean((1, 2))
    if len(set(groups)) in (1, len(groups)):
        return {}
    encoded = pa.array(groups, pa.string()).dictionary_encode()
    names, index = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    mean = np.bincount(index, losses) / np.bincount(index)
    return {name: float(np.sqrt(value)) for name, value in zip(names, mean, strict=True)}


def by_target(predicted: Array, actual: Array, targets: Sequence[str]) -> dict[str, dict[str, float]]:
    """`rmse` and `mae` of each target in its own units; {} where there is one. targets: K names."""
    if len(targets) < 2:
        return {}
    error = predicted - actual
    rmse, mae = np.sqrt(np.square(error).mean((0, 1))).tolist(), np.abs(error).mean((0, 1)).tolist()
    return {name: {"rmse": one, "mae": other} for name, one, other in zip(targets, rmse, mae, strict=True)}
