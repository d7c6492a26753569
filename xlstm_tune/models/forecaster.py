"""Embedding, body, pooling, head: a window of a table to its forecast. `build_model` is the search's only constructor.

Legend: B batch, L lookback, F input columns, H horizon, K targets, D hidden size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xlstm_tune.errors import SpecError
from xlstm_tune.kernels.dispatch import resolve
from xlstm_tune.kernels.shapes import expect_shape
from xlstm_tune.models.block import NORM_EPSILON
from xlstm_tune.models.config import ModelConfig
from xlstm_tune.models.lstm import LSTM, LSTMScratch, open_forget_gates
from xlstm_tune.models.stack import XLSTMStack


@dataclass(frozen=True)
class Shape:
    """The sizes of a problem."""

    features: int
    lookback: int
    horizon: int
    targets: int
    target_columns: tuple[int, ...] = ()
    """The column of each target among the inputs; empty for a regression, whose target is not an input."""

    def __post_init__(self) -> None:
        for name in ("features", "lookback", "horizon", "targets"):
            if getattr(self, name) < 1:
                raise ValueError(f"Shape.{name} must be at least 1, got {getattr(self, name)}")
        if self.target_columns and len(self.target_columns) != self.targets:
            raise ValueError(
                f"Shape.target_columns must name one input column for each of {self.targets} targets, "
                f"got {self.target_columns}"
            )
        for column in self.target_columns:
            if not 0 <= column < self.features:
                raise ValueError(
                    f"Shape.target_columns must lie in 0..{self.features - 1} (the input columns), got {column}"
                )


def build_model(config: ModelConfig, shape: Shape, backend: str = "auto") -> Forecaster:
    """The model that `config` describes, for a problem of this shape, with fresh weights from torch's global generator.

    Raises SpecError when the config cannot serve the shape.
    """
    return Forecaster(config, shape, backend)


def count_parameters(config: ModelConfig, shape: Shape) -> int:
    """Trainable numbers of the model, counted without allocating or drawing any."""
    with torch.device("meta"):
        model = build_model(config, shape)
    return sum(parameter.numel() for parameter in model.parameters())


class Forecaster(nn.Module):
    """x [B, L, F] to [B, H, K], standardised in and out.

    The head's weights start small, so that the first forecast is near the mean of the training part (or, with
    `instance_norm`, near the window's last value or mean).
    """

    def __init__(self, config: ModelConfig, shape: Shape, backend: str = "auto"):
        super().__init__()
        if config.instance_norm != "none" and not shape.target_columns:
            raise SpecError(
                f"model.instance_norm is '{config.instance_norm}', but a regression has no target among its inputs "
                f"to undo it for; set it to 'none'"
            )
        self.config, self.shape, self.backend = config, shape, backend
        width = config.hidden_size
        self.embedding = nn.Linear(shape.features, width)
        self.body = _body(config, backend)
        self.head = nn.Linear(width, shape.horizon * shape.targets)
        nn.init.normal_(self.head.weight, std=0.1 / math.sqrt(width))
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, F], any number of steps, to [B, H, K]. Raises ValueError for a wrong shape."""
        expect_shape(x, "forecaster: x", B=None, T=None, F=self.shape.features)
        centre, scale = self._window_statistics(x)
        if centre is not None:
            x = x - centre
        if scale is not None:
            x = x / scale
        states, _ = self.body(self.embedding(x))
        pooled = states[:, -1] if self.config.pooling == "last" else states.mean(1)
        y: Tensor = self.head(pooled).unflatten(-1, (self.shape.horizon, self.shape.targets))
        columns = list(self.shape.target_columns)
        if scale is not None:
            y = y * scale[..., columns]
        if centre is not None:
            y = y + centre[..., columns]
        return y

    def describe_backend(self) -> str:
        """What runs the recurrences, and why, in words."""
        blocks = self.config.blocks
        if not blocks:
            return {"lstm": "lstm: torch.nn.LSTM", "lstm_scratch": "lstm_scratch: elementary operations in torch"}[
                self.config.family
            ]
        weight = self.head.weight
        return "; ".join(str(resolve(f"{kind}lstm", self.backend, weight.device.type)) for kind in sorted(set(blocks)))

    def _window_statistics(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What each window is centred on and divided by, [B, 1, F], as `instance_norm` says."""
        match self.config.instance_norm:
            case "none":
                return None, None
            case "last":
                return x[:, -1:], None
            case "reversible":
                variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
                return mean, (variance + NORM_EPSILON).sqrt()


def _body(config: ModelConfig, backend: str) -> nn.Module:
    if config.blocks:
        return XLSTMStack(config, backend)
    kind = LSTM if config.family == "lstm" else LSTMScratch
    lstm = kind(config.hidden_size, config.hidden_size, config.layers, config.bias, config.dropout)
    open_forget_gates(lstm, config.forget_bias)
    return lstm
