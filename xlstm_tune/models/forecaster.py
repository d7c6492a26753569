"""Embedding, body, pooling, head: a window of a table to its forecast. `build_model` is the search's only constructor.

Legend: B batch, L lookback, T steps given, F input columns, H horizon, K targets, Q quantiles, S static inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from xlstm_tune.kernels.dispatch import Choice, resolve
from xlstm_tune.kernels.masks import check_masks
from xlstm_tune.kernels.shapes import expect_dtype, expect_shape
from xlstm_tune.models.config import ModelConfig
from xlstm_tune.models.decomposition import TrendSkip
from xlstm_tune.models.embedded import Embedded, as_torch_made_it
from xlstm_tune.models.lstm import LSTM, LSTMScratch, LSTMTorch, open_forget_gates
from xlstm_tune.models.patching import cut_patches
from xlstm_tune.models.pooling import Pooling
from xlstm_tune.models.stack import XLSTMStack
from xlstm_tune.models.static import StaticJoin
from xlstm_tune.models.steps import hide_padding
from xlstm_tune.models.window_norm import window_statistics


@dataclass(frozen=True)
class Shape:
    """The sizes of a problem."""

    features: int
    lookback: int
    horizon: int
    targets: int
    target_columns: tuple[int, ...] = ()
    """The column of each target among the inputs; empty for a regression, whose target is not an input."""
    statics: int = 0
    """S, inputs that a sample has once rather than at every step."""
    quantiles: tuple[float, ...] = ()
    """Levels to forecast, rising; empty = one number for each target and step."""
    varying: bool = False
    """Some samples are shorter than the lookback: they come padded, with their lengths."""
    floor: tuple[float, ...] = ()
    """The least forecast of each target, standardised; empty = none."""

    def __post_init__(self) -> None:
        for name in ("features", "lookback", "horizon", "targets"):
            if getattr(self, name) < 1:
                raise ValueError(f"Shape.{name} must be at least 1, got {getattr(self, name)}")
        if self.target_columns and len(self.target_columns) != self.targets:
            raise ValueError(
                f"Shape.target_columns must name one input column for each of {self.targets} targets, "
                f"got {self.target_columns}"
            )
        if any(not 0 < level < 1 for level in self.quantiles) or any(b <= a for a, b in pairwise(self.quantiles)):
            raise ValueError(
                f"Shape.quantiles must lie between 0 and 1 and rise from one to the next, got {self.quantiles}"
            )
        if self.floor and len(self.floor) != self.targets:
            raise ValueError(f"Shape.floor must have a number for each of {self.targets} targets, got {self.floor}")
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
    return _counted(config.model_copy(update={"dropout": 0.0}), shape)  # which changes no shape, and is often searched


@lru_cache(maxsize=4096)
def _counted(config: ModelConfig, shape: Shape) -> int:
    return sum(parameter.numel() for parameter in outline(config, shape).parameters())


def outline(config: ModelConfig, shape: Shape) -> Forecaster:
    """The model without memory for its weights, to look at their sizes."""
    with torch.device("meta"), _Unfilled():
        return build_model(config, shape)


class _Unfilled(TorchFunctionMode):
    """Leaves out what only fills tensors: without memory it does nothing, by long ways."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__setitem__" or (name.endswith("_") and not name.endswith("__") and name != "requires_grad_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


class Forecaster(nn.Module):
    """x [B, L, F] to [B, H, K], standardised in and out.

    The head's weights start small, so that the first forecast is near the mean of the training part (or, with
    `instance_norm`, near the window's last value or mean).
    """

    def __init__(self, config: ModelConfig, shape: Shape, backend: str = "auto"):
        super().__init__()
        config.check_problem(bool(shape.target_columns), shape.lookback, shape.varying)
        self.config, self.shape, self.backend = config, shape, backend
        apart = config.channels == "independent"
        others = tuple(column for column in range(shape.features) if column not in shape.target_columns)
        self._others = others if apart else ()
        features = 1 + len(others) if apart else shape.features
        self._columns = (0,) if apart else shape.target_columns
        """Of the targets among the inputs that the body sees."""
        self.point = min(range(len(shape.quantiles)), key=lambda at: abs(shape.quantiles[at] - 0.5), default=0)
        """Which of the quantiles is the forecast."""
        width = config.hidden_size
        self.embedding = nn.Linear(features * max(config.patch_length, 1), width)
        self.body = _body(config, backend)
        halves = not config.blocks and config.direction == "both"
        self.pooling = Pooling(
            config.pooling, self.body.output_size, config.tokens(shape.lookback), config.direction, halves
        )
        self.static = StaticJoin(self.pooling.width, shape.statics, width) if shape.statics else None
        self.outputs = (shape.horizon, 1 if apart else shape.targets, max(len(shape.quantiles), 1))
        self.head = nn.Linear(self.pooling.width, math.prod(self.outputs))
        trend = config.decomposition == "trend"
        self.trend = TrendSkip(shape.lookback, shape.horizon, config.trend_kernel) if trend else None
        self.floor: Tensor | None
        self.register_buffer("floor", torch.tensor(shape.floor).unsqueeze(1) if shape.floor else None, persistent=False)
        nn.init.normal_(self.head.weight, std=0.1 / math.sqrt(self.pooling.width))
        nn.init.zeros_(self.head.bias)

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, static: Tensor | None = None, every_quantile: bool = False
    ) -> Tensor:
        """x [B, T, F] to [B, H, K]; with `every_quantile` to [B, H, K, Q], in rising order (Q = 1 without quantiles).

        T is L where the weights depend on it (`flatten`, `trend`), else any number of steps.
        lengths: integers [B] in 1..T where samples are padded on the right; what stands in the padding does not matter.
        static: [B, S] where the shape has statics.
        With quantiles the forecast is the one nearest to the median. In training forecasts may lie below the floor, for
        there they would learn nothing; in eval mode they end there.
        Raises ValueError for a wrong shape, for lengths outside 1..T (on a GPU a CUDA error follows at a later call)
        and, without autocast, for another dtype than that of the weights.
        """
        self._check(x, lengths, static)
        batch = x.shape[0]
        if lengths is not None:
            lengths = lengths.long()
            x = hide_padding(x, lengths)
        if self.config.channels == "independent":
            x, lengths, static = self._split_channels(x, lengths, static)
        centre, scale = window_statistics(self.config.instance_norm, x, lengths)
        if centre is not None:
            x = x - centre
        if scale is not None:
            x = x / scale
        tokens, token_lengths = x, lengths
        if self.config.patched:
            tokens, token_lengths = cut_patches(x, self.config.patch_length, self.config.stride, lengths)
        pooled = self._pool(tokens, token_lengths)
        if self.static is not None:
            pooled = self.static(pooled, static)
        y: Tensor = self.head(pooled).unflatten(-1, self.outputs)  # [B, H, K, Q]
        if self.trend is not None:
            y = y + self.trend(_take(x, self._columns)).unsqueeze(-1)
        if scale is not None:
            y = y * _take(scale, self._columns).unsqueeze(-1)
        if centre is not None:
            y = y + _take(centre, self._columns).unsqueeze(-1)
        if self.config.channels == "independent":
            y = y.reshape(batch, self.shape.targets, self.shape.horizon, self.outputs[-1]).transpose(1, 2)
        if self.floor is not None and not self.training:
            y = torch.where(y.isneginf(), y, y.maximum(self.floor))  # what has diverged stays to be seen
        if self.outputs[-1] > 1:
            # Crossing quantiles are put in order, which never makes their loss larger (Chernozhukov et al. 2010).
            y = y.sort(-1).values
        return y if every_quantile else y[..., self.point]

    @property
    def _ends(self) -> bool:
        """Whether the head sees one step of the last block alone."""
        return self.config.pooling == "last" and self.config.direction != "both"

    def _pool(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        """Embedding, body and pooling, [B, T, F] to [B, W]."""
        if isinstance(self.body, XLSTMStack):
            layer = self.embedding
            embedded = Embedded(tokens, layer.weight, layer.bias) if as_torch_made_it(layer) else layer(tokens)
            if self._ends:
                return self.body.last(embedded, lengths)
            states, _ = self.body(embedded, lengths=lengths)
        else:
            states, _ = self.body(self.embedding(tokens), lengths=lengths)
        pooled: Tensor = self.pooling(states, lengths)
        return pooled

    def _check(self, x: Tensor, lengths: Tensor | None, static: Tensor | None) -> None:
        fixed = self.trend is not None or self.config.pooling == "flatten"
        expect_shape(x, "forecaster: x", B=None, T=self.shape.lookback if fixed else None, F=self.shape.features)
        if lengths is not None:
            if fixed:
                raise ValueError("forecaster: lengths must be None with pooling 'flatten' or decomposition 'trend'")
            check_masks("forecaster", None, lengths, x.shape[0], x.shape[1])
        if (static is None) != (self.static is None):
            wanted = "None" if self.static is None else f"[B, S={self.shape.statics}]"
            raise ValueError(f"forecaster: static must be {wanted}, got {None if static is None else [*static.shape]}")
        if static is not None:
            expect_shape(static, "forecaster: static", B=x.shape[0], S=self.shape.statics)
        weight = self.head.weight  # a method where torch has quantised the layer, which takes what comes
        for name, given in (("x", x), ("static", static)) if isinstance(weight, Tensor) else ():
            if given is not None:
                expect_dtype(given, f"forecaster: {name}", weight.dtype)

    def _split_channels(
        self, x: Tensor, lengths: Tensor | None, static: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x [B, T, F] to [B · K, T, 1 + others]: each target's own history, then the inputs that are no target."""
        own = _take(x, self.shape.target_columns).transpose(1, 2).unsqueeze(-1)  # [B, K, T, 1]
        if self._others:
            others = _take(x, self._others).unsqueeze(1).expand(-1, self.shape.targets, -1, -1)
            own = torch.cat([own, others], -1)
        lengths = None if lengths is None else lengths.repeat_interleave(self.shape.targets, 0)
        static = None if static is None else static.repeat_interleave(self.shape.targets, 0)
        return own.flatten(0, 1), lengths, static

    def describe_backend(self) -> str:
        """What runs the recurrences, and why, in words."""
        if self.config.family == "lstm_torch":
            return f"lstm_torch: torch.nn.LSTM, in {str(self.head.weight.dtype).removeprefix('torch.')}"
        if self.config.family == "lstm_scratch":
            return "lstm_scratch: elementary operations in torch"
        said = [str(choice) for choice in self._choices()]
        return "; ".join([*said, "last mlstm: its last output alone"] if self._one_row else said)

    @property
    def compiled(self) -> bool:
        """Whether kernels compiled for a CPU run the body."""
        ours = self.config.family not in ("lstm_torch", "lstm_scratch") and self.backend != "reference"
        here = self.head.weight.device.type == "cpu" and self.head.weight.dtype == torch.float32
        return ours and here and all(choice.backend == "numba" for choice in self._choices())

    @property
    def _one_row(self) -> bool:
        """Whether the last block, an mLSTM, is no recurrence, since only its last output is wanted."""
        return self._ends and self.config.blocks.endswith("m")

    def _choices(self) -> list[Choice]:
        """What runs each kind of recurrence of the body."""
        blocks, heads, weight = self.config.blocks, self.config.heads, self.head.weight
        ops = [f"{kind}lstm" for kind in sorted(set(blocks[:-1] if self._one_row else blocks))]
        ops += [] if blocks else ["lstm"]
        projected = self.config.projection > 0 and not blocks
        width = {"lstm": self.config.hidden_size, "slstm": self.config.hidden_size // heads}
        width["mlstm"] = self.config.inner_size // heads
        return [resolve(op, self.backend, weight.device.type, projected=projected, width=width[op]) for op in ops]


def _take(x: Tensor, columns: tuple[int, ...]) -> Tensor:
    """x[..., columns] without an index tensor, which would have to be copied to a GPU in every pass."""
    first = columns[0]
    if columns == tuple(range(first, first + len(columns))):
        return x[..., first : first + len(columns)]
    return torch.stack([x[..., column] for column in columns], -1)


def _body(config: ModelConfig, backend: str) -> XLSTMStack | LSTM | LSTMScratch | LSTMTorch:
    if config.blocks:
        return XLSTMStack(config, backend)
    width = config.hidden_size
    options = (width, width, config.layers, config.bias, config.dropout, config.projection, config.direction)
    lstm: LSTM | LSTMScratch | LSTMTorch
    match config.family:
        case "lstm":
            lstm = LSTM(*options, backend)
        case "lstm_torch":
            lstm = LSTMTorch(*options)
        case _:
            lstm = LSTMScratch(*options)
    open_forget_gates(lstm, config.forget_bias)
    return lstm
