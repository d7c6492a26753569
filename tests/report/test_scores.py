"""Every figure of one model's predictions, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from xlstm_tune.report.scores import METRICS, by_group, by_target, metrics
from xlstm_tune.training.metrics import score_units

ACTUAL = np.array([[[1.0], [2.0]], [[3.0], [4.0]]])  # [n=2, H=2, K=1]
PREDICTED = np.array([[[2.0], [2.0]], [[1.0], [6.0]]])  # errors 1, 0, -2, 2


def test_metrics_are_those_worked_out_by_hand() -> None:
    found = metrics(PREDICTED, ACTUAL, [2.0], [0.5])
    assert tuple(found) == METRICS
    assert found == {
        "rmse": pytest.approx(1.5),
        "mae": pytest.approx(1.25),
        "mape": pytest.approx(100 * (1 + 0 + 2 / 3 + 0.5) / 4),
        "smape": pytest.approx(200 * (1 / 3 + 0 + 2 / 4 + 2 / 10) / 4),
        "mase": pytest.approx(2.5),
        "r2": pytest.approx(1 - 2.25 / 1.25),
        "bias": pytest.approx(0.25),
        "mse_standardised": pytest.approx(2.25 / 4),
        "mae_standardised": pytest.approx(1.25 / 2),
    }


def test_metrics_agree_with_those_of_the_search() -> None:
    generator = np.random.default_rng(0)
    actual, predicted, std = (
        generator.normal(size=(9, 4, 3)),
        generator.normal(size=(9, 4, 3)),
        np.array([1.0, 5.0, 0.1]),
    )
    found = metrics(predicted, actual, std.tolist())
    for name, value in score_units(predicted, actual, std).items():
        assert found[name] == pytest.approx(value)


@pytest.mark.parametrize("near_zero", [0.0, 0.02])
def test_mape_is_left_out_where_a_value_is_zero_or_all_but(near_zero: float) -> None:
    actual = ACTUAL.copy()
    actual[0, 0, 0] = near_zero
    assert metrics(PREDICTED, actual)["mape"] is None


def test_smape_of_two_zeros_is_zero() -> None:
    zeros = np.zeros((3, 1, 1))
    assert metrics(zeros, zeros)["smape"] == 0.0


@pytest.mark.parametrize("rest", [0.0, 30.0])
def test_smape_of_two_zeros_is_zero_though_one_was_rounded_to_float32(rest: float) -> None:
    actual = np.array([0.0, 0.0, rest, rest]).reshape(-1, 1, 1)
    mean, std = 12.3, 7.7
    rounded = np.float32((actual - mean) / std).astype(np.float64) * std + mean
    assert rounded[0] != 0
    assert metrics(rounded, actual, [std])["smape"] == pytest.approx(0, abs=1e-4)
    off = actual + np.array([1e-4, 0, 0, 0]).reshape(-1, 1, 1)
    assert metrics(off, actual, [std])["smape"] == pytest.approx(50), "no rounding is so large"


def test_metrics_without_scales_leave_out_what_needs_them() -> None:
    found = metrics(PREDICTED, ACTUAL)
    assert found["mase"] is None and found["mse_standardised"] is None and found["mae_standardised"] is None
    assert metrics(PREDICTED, ACTUAL, [2.0], [None])["mase"] is None


def test_r2_of_constant_truth_is_left_out() -> None:
    assert metrics(PREDICTED, np.full_like(ACTUAL, 0.1))["r2"] is None


def test_mase_and_r2_are_means_over_targets() -> None:
    actual, predicted = np.concatenate([ACTUAL, ACTUAL * 10], axis=2), np.concatenate([PREDICTED, ACTUAL * 10], axis=2)
    found = metrics(predicted, actual, [1.0, 1.0], [0.5, 5.0])
    assert found["mase"] == pytest.approx((2.5 + 0) / 2)
    assert found["r2"] == pytest.approx((1 - 2.25 / 1.25 + 1) / 2)


def test_by_group_and_target() -> None:
    assert by_group(PREDICTED, ACTUAL, ["a", "b"]) == {}  # each sample a group of its own
    twice = [np.concatenate([array, array]) for array in (PREDICTED, ACTUAL)]
    found = by_group(*twice, ["b", "a", "b", "a"])
    assert list(found) == ["b", "a"] and list(found.values()) == pytest.approx([np.sqrt(0.5), 2.0])
    assert by_group(*twice, ["b"] * 4) == {}
    assert by_target(PREDICTED, ACTUAL, ["cases"]) == {}
    both = [np.concatenate([array, array * 2], axis=2) for array in (PREDICTED, ACTUAL)]
    found = by_target(*both, ["cases", "deaths"])
    assert found == {
        "cases": pytest.approx({"rmse": 1.5, "mae": 1.25}),
        "deaths": pytest.approx({"rmse": 3.0, "mae": 2.5}),
    }


def test_metrics_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"must be \[n, H, K\], got \(2, 2, 1\) and \(1, 2, 1\)"):
        metrics(PREDICTED, ACTUAL[:1])
    with pytest.raises(ValueError, match="nothing to score"):
        metrics(PREDICTED[:0], ACTUAL[:0])
