"""What training minimises, on standardised targets. Legend: B batch, H horizon, K targets, Q quantiles."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from xlstm_tune.training.config import TrainingConfig

Loss = Callable[[Tensor, Tensor], Tensor]
"""Predicted [B, H, K, Q] and actual [B, H, K] to the mean loss."""

_POINT: dict[str, Loss] = {
    "mse": nn.functional.mse_loss,
    "mae": nn.functional.l1_loss,
    "huber": nn.functional.huber_loss,
}


def loss_of(config: TrainingConfig) -> Loss:
    """The loss that `training.loss` names. All but `quantile` look at a single forecast (Q = 1)."""
    if config.loss == "quantile":
        levels = tuple(config.quantiles)
        return lambda predicted, actual: pinball(predicted, actual, levels)
    point = _POINT[config.loss]
    return lambda predicted, actual: point(predicted.squeeze(-1), actual)


def pinball(predicted: Tensor, actual: Tensor, levels: tuple[float, ...]) -> Tensor:
    """The mean over all of max(q e, (q - 1) e), e = actual - predicted (Koenker and Bassett 1978).

    predicted [..., Q] for the Q levels, actual [...].
    """
    losses = []
    for level, one in zip(levels, predicted.unbind(-1), strict=True):
        error = actual - one
        losses.append(torch.maximum(level * error, (level - 1.0) * error).mean())
    return torch.stack(losses).mean()
