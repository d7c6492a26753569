from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from xlstm_tune.data.windows import Windows
from xlstm_tune.errors import SpecError
from xlstm_tune.training.config import TrainingConfig
from xlstm_tune.training.loop import begin, train
from xlstm_tune.training.losses import loss_of, pinball

Maker = Callable[..., Any]


def test_pinball_by_hand() -> None:
    predicted = torch.tensor([[[[1.0, 2.0, 4.0]]]])  # [B=1, H=1, K=1, Q=3]
    actual = torch.tensor([[[3.0]]])
    # Two too low by 2 and 1, one too high by 1: 0.1 · 2, 0.5 · 1, (1 - 0.9) · 1.
    assert pinball(predicted, actual, (0.1, 0.5, 0.9)).item() == pytest.approx((0.2 + 0.5 + 0.1) / 3)


def test_pinball_is_the_formula_and_its_gradient_the_share_above() -> None:
    rng = np.random.default_rng(0)
    predicted, actual = rng.normal(size=(6, 4, 2, 3)), rng.normal(size=(6, 4, 2))
    levels = (0.2, 0.5, 0.95)
    expected = 0.0
    for place in np.ndindex(actual.shape):
        for at, level in enumerate(levels):
            error = actual[place] - predicted[(*place, at)]
            expected += level * error if error > 0 else (level - 1) * error
    leaf = torch.tensor(predicted, requires_grad=True)
    loss = pinball(leaf, torch.tensor(actual), levels)
    assert loss.item() == pytest.approx(expected / predicted.size)
    loss.backward()
    below = predicted < actual[..., None]
    np.testing.assert_allclose(leaf.grad * predicted.size, np.where(below, -np.array(levels), 1 - np.array(levels)))


def test_pinball_of_the_median_is_half_the_mean_absolute_error() -> None:
    predicted, actual = torch.randn(5, 3, 2, 1), torch.randn(5, 3, 2)
    half = loss_of(TrainingConfig(loss="quantile", quantiles=[0.5]))(predicted, actual)
    torch.testing.assert_close(half, loss_of(TrainingConfig(loss="mae"))(predicted, actual) / 2)


@pytest.mark.parametrize(
    ("loss", "formula"),
    [
        ("mse", lambda e: e**2),
        ("mae", lambda e: e.abs()),
        ("huber", lambda e: torch.where(e.abs() < 1, e**2 / 2, e.abs() - 0.5)),
    ],
)
def test_point_losses_are_their_formulas(loss: str, formula: Callable[[torch.Tensor], torch.Tensor]) -> None:
    predicted, actual = 2 * torch.randn(7, 3, 2, 1), torch.randn(7, 3, 2)
    expected = formula(predicted[..., 0] - actual).mean()
    torch.testing.assert_close(loss_of(TrainingConfig(loss=loss))(predicted, actual), expected)


@pytest.mark.parametrize("quantiles", [[0.5, 0.1], [0.1, 0.1], [0.0, 0.5], [1.0], []])
def test_quantiles_that_are_none_are_refused(quantiles: list[float]) -> None:
    with pytest.raises(SpecError, match=r"training\.quantiles"):
        TrainingConfig.parse({"loss": "quantile", "quantiles": quantiles}, "training")


def test_quantiles_are_relevant_to_their_loss_alone(make_config: Maker) -> None:
    assert make_config(quantiles=[0.3]).key() == make_config().key()
    assert make_config(loss="quantile", quantiles=[0.3]).key() != make_config(loss="quantile").key()


def test_train_for_quantiles_covers_what_they_promise(make_regression: Maker, make_config: Maker) -> None:
    """On targets that the inputs say nothing about, quantiles of the forecast become quantiles of the targets."""
    data = make_regression(sequences=400)
    rng = np.random.default_rng(3)
    data.targets[:] = rng.normal(size=data.targets.shape)
    data.features[:] = 0.0
    data.parts["train"] = np.arange(360)
    config = make_config(loss="quantile", quantiles=[0.1, 0.5, 0.8], epochs=40, batch_size=60, learning_rate=0.03)
    last = list(train(config, data, device="cpu"))[-1]
    model = last.state.model
    x, y, lengths, static = Windows(data, "train").batch(torch.arange(360))
    with torch.no_grad():
        every = model(x, lengths, static, every_quantile=True)
    covered = (y.unsqueeze(-1) <= every).float().mean((0, 1, 2))
    np.testing.assert_allclose(covered, [0.1, 0.5, 0.8], atol=0.04)
    torch.testing.assert_close(model(x), every[..., 1])


def test_train_for_quantiles_scores_the_median(make_forecast: Maker, make_config: Maker) -> None:
    data = make_forecast()
    config = make_config(loss="quantile", quantiles=[0.1, 0.5, 0.9], epochs=8)
    results = list(train(config, data, device="cpu"))
    assert begin(config, data).model.shape.quantiles == (0.1, 0.5, 0.9)
    assert results[-1].train_loss < 0.6 * results[0].train_loss
    assert results[-1].validation["rmse"] < results[0].validation["rmse"]
