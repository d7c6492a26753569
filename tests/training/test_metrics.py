from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xlstm_tune.ranking import METRICS
from xlstm_tune.training.metrics import ErrorSums, score, score_units

STD = np.array([2.0, 10.0])


def test_score_by_hand_pools_targets_in_their_own_units() -> None:
    predicted = np.array([[[1.0, 0.0]], [[0.0, 0.5]]])  # [n=2, H=1, K=2]
    actual = np.zeros_like(predicted)
    # Errors in units: 1 · 2 = 2 and 0.5 · 10 = 5, the other two 0.
    assert score(predicted, actual, STD) == pytest.approx(
        {"rmse": np.sqrt((4 + 25) / 4), "mae": 7 / 4, "mse_standardised": 1.25 / 4, "mae_standardised": 1.5 / 4}
    )


def test_score_units_agrees_with_score() -> None:
    rng = np.random.default_rng(0)
    predicted, actual = rng.normal(size=(2, 7, 3, 2))
    mean = np.array([100.0, -5.0])
    assert score_units(predicted * STD + mean, actual * STD + mean, STD) == pytest.approx(score(predicted, actual, STD))


def test_score_of_a_perfect_prediction_is_zero() -> None:
    actual = torch.randn(5, 2, 2)
    assert score(actual, actual.clone(), STD) == dict.fromkeys(METRICS, 0.0)


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 9))
def test_error_sums_in_any_batches_equal_score(samples: int, horizon: int, batch: int) -> None:
    generator = torch.Generator().manual_seed(samples)
    predicted, actual = torch.randn(2, samples, horizon, 2, generator=generator)
    sums = ErrorSums(STD)
    for p, a in zip(predicted.split(batch), actual.split(batch), strict=True):
        sums.add(p, a)
    assert sums.result() == pytest.approx(score(predicted, actual, STD), rel=1e-12)


def test_score_accumulates_in_float64() -> None:
    # In float32 a sum of 20 million equal squares stops growing at 2**24.
    predicted = torch.ones(1, 1, 1).expand(20_000_000, 1, 1)
    sums = ErrorSums(np.ones(1))
    for part in predicted.split(1_000_000):
        sums.add(part, torch.zeros_like(part))
    assert sums.result()["mse_standardised"] == 1.0
    large = torch.full((3, 1, 1), 1e25)  # whose square overflows float32
    assert score(large, torch.zeros_like(large), np.ones(1))["rmse"] == pytest.approx(1e25)


def test_score_keeps_nan() -> None:
    assert np.isnan(score(np.array([[np.nan, 0.0]]), np.zeros((1, 2)), STD)["rmse"])


@pytest.mark.parametrize(
    ("predicted", "actual", "std", "message"),
    [
        (np.zeros((2, 1, 2)), np.zeros((3, 1, 2)), STD, "one shape"),
        (np.zeros((2, 1, 3)), np.zeros((2, 1, 3)), STD, "target_std"),
        (np.zeros((0, 1, 2)), np.zeros((0, 1, 2)), STD, "nothing to score"),
    ],
)
def test_score_with_wrong_shapes_is_refused(
    predicted: np.ndarray, actual: np.ndarray, std: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        score(predicted, actual, std)


def test_error_sums_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to score"):
        ErrorSums(STD).result()


def test_validation_metrics_are_those_of_the_search_file() -> None:
    from typing import get_args

    from xlstm_tune.spec import Objective

    assert {f"val_{name}" for name in METRICS} == set(get_args(Objective))
