"""Small prepared data, made by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from xlstm_tune.data.windows import Prepared
from xlstm_tune.models.config import ModelConfig
from xlstm_tune.training.config import TrainingConfig, TrialConfig


def forecast_data(rows: int = 160, lookback: int = 12, horizon: int = 2, scale: float = 1.0) -> Prepared:
    """A noisy sine and its cosine; the sine is forecast from windows of both."""
    rng = np.random.default_rng(0)
    phase = np.arange(rows) * (2 * np.pi / 12)
    features = np.stack([np.sin(phase), np.cos(phase)], axis=1) + rng.normal(0, 0.05, (rows, 2))
    features = (features * scale).astype(np.float32)
    ends = np.arange(lookback, rows - horizon + 1)
    cuts = [int(len(ends) * share) for share in (0.7, 0.85)]
    numbers = np.arange(len(ends))
    return Prepared(
        task="forecast",
        features=features,
        targets=features[:, :1].copy(),
        starts=np.zeros_like(ends),
        ends=ends,
        parts=dict(zip(("train", "validation", "test"), np.split(numbers, cuts), strict=True)),
        target_mean=np.array([5.0]),
        target_std=np.array([3.0]),
        target_columns=(0,),
        feature_names=("sine", "cosine"),
        target_names=("sine",),
        horizon=horizon,
        lookback=lookback,
        season=12,
        oracle=None,
        notes=(),
        fingerprint=f"sine-{rows}-{lookback}-{horizon}-{scale}",
    )


def regression_data(
    sequences: int = 60, steps: int = 10, lengths: tuple[int, ...] = (), static: bool = False
) -> Prepared:
    """Two targets per sequence: the mean of its first input and the last value of its second.

    lengths: cut the sequences to these numbers of steps, in turn. static: the first target is also given as such.
    """
    rng = np.random.default_rng(1)
    features = rng.normal(size=(sequences, steps, 3)).astype(np.float32)
    features[..., 0] += rng.normal(size=(sequences, 1))
    targets = np.stack([features[..., 0].mean(axis=1), features[:, -1, 1]], axis=1)
    starts = np.arange(sequences) * steps
    ends = starts + steps
    if lengths:
        starts = ends - np.resize(lengths, sequences)
    numbers = np.arange(sequences)
    return Prepared(
        task="regression",
        features=features.reshape(-1, 3),
        targets=targets,
        starts=starts,
        ends=ends,
        parts=dict(zip(("train", "validation", "test"), np.split(numbers, [40, 50]), strict=True)),
        target_mean=np.array([0.0, 100.0]),
        target_std=np.array([1.0, 10.0]),
        target_columns=(),
        feature_names=("a", "b", "c"),
        target_names=("mean", "last"),
        horizon=1,
        lookback=steps,
        season=1,
        oracle=None,
        notes=(),
        fingerprint=f"regression-{sequences}-{steps}-{lengths}-{static}",
        static=targets[:, :1].astype(np.float32) if static else None,
        static_names=("size",) if static else (),
        series=numbers if static else None,
    )


def trial_config(lookback: int | None = None, model: dict[str, Any] | None = None, **training: Any) -> TrialConfig:
    """A tiny trial; `training` keys as in the search file."""
    small = {"family": "lstm", "layers": 1, "hidden_size": 8, "heads": 2, "proj_factor": 1.0, "ff_factor": 1.0}
    quick = {"epochs": 3, "batch_size": 16, "learning_rate": 1e-2}
    return TrialConfig(ModelConfig(**small | (model or {})), TrainingConfig(**quick | training), lookback)


@pytest.fixture
def make_forecast() -> Callable[..., Prepared]:
    return forecast_data


@pytest.fixture
def make_regression() -> Callable[..., Prepared]:
    return regression_data


@pytest.fixture
def make_config() -> Callable[..., TrialConfig]:
    return trial_config
