"""The statistics behind the evidence, on simulated losses whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import lfilter

from xlstm_tune.report.differences import compare_pairs
from xlstm_tune.report.predictions import Facts, Judged, Model
from xlstm_tune.report.resampling import block_length, holm, influence, interval, lengths, spread

Array = NDArray[np.float64]


def autoregressive(generator: np.random.Generator, rows: int, n: int, keep: float) -> Array:
    """[rows, n] stationary AR(1) of mean 0."""
    return lfilter([1.0], [1.0, -keep], generator.normal(size=(rows, n + 200)), axis=1)[:, 200:]


def covered(difference: Array, length: int | None = None) -> bool:
    """Whether the interval of two models that are equally good holds 0. difference: [n] of their losses."""
    losses = np.stack([20 + difference / 2, 20 - difference / 2], axis=1)
    what = influence(losses, np.ones(len(losses)), [(0, 1)])
    low, high, _ = interval(what, spread(what, length or int(lengths(what, 1)[0]), resamples=300))
    return bool(low[0] <= 0 <= high[0])


@pytest.mark.parametrize("keep", [0.0, 0.6])
def test_interval_covers_the_truth_as_often_as_it_says(keep: float) -> None:
    series = autoregressive(np.random.default_rng(2), 200, 300, keep)
    share = np.mean([covered(one) for one in series])
    assert 0.90 <= share <= 0.98


def test_single_samples_would_understate_the_uncertainty() -> None:
    series = autoregressive(np.random.default_rng(3), 60, 300, 0.7)
    assert np.mean([covered(one, length=1) for one in series]) < 0.8
    assert np.mean([covered(one) for one in series]) > 0.88


def told_apart(difference: Array, overlap: int = 1) -> bool:
    """Whether two models of a part are told apart. difference: [n] of their losses, of as many steps as overlap."""
    series, time = ("",) * len(difference), tuple(f"{n:06d}" for n in range(len(difference)))
    a, b = (np.sqrt(20 + sign * difference / 2)[:, None, None].repeat(overlap, 1) for sign in (1, -1))
    models = Model("a", "a", 0), Model("b", "b", 1)
    judged = Judged("test", series, time, ("y",), np.zeros_like(a), dict(zip(models, (a, b), strict=True)))
    return compare_pairs(judged, [models], Facts(task="forecast")).differences[0].told_apart


@pytest.mark.parametrize(("n", "keep", "overlap"), [(100, 0.95, 1), (144, 0.8, 24), (300, 0.95, 1)])
def test_equal_models_are_rarely_told_apart_by_few_blocks(n: int, keep: float, overlap: int) -> None:
    series = autoregressive(np.random.default_rng(12), 150, n + overlap, keep)
    sums = np.cumsum(series, axis=1)
    series = (sums[:, overlap:] - sums[:, :-overlap]) / overlap
    assert np.mean([told_apart(one, overlap) for one in series]) <= 0.06
    assert np.mean([told_apart(one + 15, overlap) for one in series[:40]]) > 0.5


def test_p_and_interval_say_the_same() -> None:
    generator = np.random.default_rng(4)
    for shift in np.linspace(0, 0.5, 30):
        losses = np.stack([generator.exponential(2, 200), generator.exponential(2, 200) + shift], axis=1)
        what = influence(losses, np.ones(200), [(0, 1)])
        low, high, p = interval(what, spread(what, 3, resamples=400))
        assert bool(low[0] > 0 or high[0] < 0) == bool(p[0] < 0.05)


def test_standard_error_is_the_known_one_for_independent_losses() -> None:
    generator = np.random.default_rng(5)
    losses = generator.exponential(1.0, (2000, 2))  # mean 1, so RMSE 1 and ψ = (l_b - l_a) / 2
    what = influence(losses, np.ones(2000), [(0, 1)])
    assert spread(what, 1, resamples=10).error[0] == pytest.approx(np.sqrt(2) / 2 / np.sqrt(2000), rel=0.1)


def test_a_tie_is_a_tie_and_a_constant_gap_is_a_gap() -> None:
    losses = np.random.default_rng(6).exponential(1.0, (100, 1))
    tied = influence(np.concatenate([losses, losses], axis=1), np.ones(100), [(0, 1)])
    low, high, p = interval(tied, spread(tied, 2))
    assert (low[0], high[0], p[0]) == (0.0, 0.0, 1.0)
    gap = influence(np.tile([1.0, 4.0], (100, 1)), np.ones(100), [(0, 1)])
    low, high, p = interval(gap, spread(gap, 2))
    assert (low[0], high[0]) == (1.0, 1.0) and p[0] == pytest.approx(1 / 2001)


def test_model_without_errors_is_compared_too() -> None:
    losses = np.stack([np.zeros(100), np.random.default_rng(7).exponential(1.0, 100)], axis=1)
    what = influence(losses, np.ones(100), [(0, 1)])
    low, high, p = interval(what, spread(what, 1))
    assert 0 < low[0] < what.gains[0] < high[0] and p[0] < 0.01


def test_few_blocks_take_students_t_and_one_position_says_nothing() -> None:
    psi = np.array([1.0, 4.0, 2.0])
    what = influence(np.stack([np.ones(3), psi], axis=1), np.ones(3), [(0, 1)])
    found = spread(what, 1)
    assert found.statistics is None and found.blocks == 3
    # The usual t interval of the mean of ψ = l_b / 2 RMSE_b, with two degrees of freedom.
    rmse = np.sqrt(psi.mean())
    half = 4.302653 * psi.std(ddof=1) / (2 * rmse) / np.sqrt(3)
    low, high, _ = interval(what, found)
    np.testing.assert_allclose([low[0], high[0]], [rmse - 1 - half, rmse - 1 + half], rtol=1e-6)
    alone = influence(np.array([[1.0, 4.0]]), np.ones(1), [(0, 1)])
    low, high, p = interval(alone, spread(alone, 1))
    assert np.isnan(low[0]) and np.isnan(high[0]) and p[0] == 1.0


def test_block_length_grows_with_dependence() -> None:
    generator = np.random.default_rng(8)
    lengths = [
        np.median([block_length(one) for one in autoregressive(generator, 20, 500, keep)]) for keep in (0, 0.5, 0.9)
    ]
    assert lengths[0] < 3 < lengths[1] < lengths[2]
    # b = (2 G² / (4/3 g²))^⅓ n^⅓ of an AR(1): G = 2 Σ k R(k), g = Σ R(k).
    lags = np.arange(1, 200)
    curvature, level = 2 * (lags * 0.5**lags).sum(), 1 + 2 * (0.5**lags).sum()
    assert lengths[1] == pytest.approx((1.5 * curvature**2 / level**2 * 500) ** (1 / 3), rel=0.4)
    assert block_length(np.ones(50)) == 1.0 and block_length(np.array([1.0, 2.0])) == 1.0


def test_resamples_are_the_same_every_time() -> None:
    losses = np.random.default_rng(9).exponential(1.0, (120, 2))
    what = influence(losses, np.ones(120), [(0, 1)])
    first, second = (interval(what, spread(what, 5)) for _ in range(2))
    assert all((one == other).all() for one, other in zip(first, second, strict=True))


def test_holm_matches_an_example_worked_out_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([]) == []
