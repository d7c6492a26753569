"""Baselines against known truths: exact where theory says exact, equal to a direct solution elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.table import load_table
from xlstm_tune.data.windows import Prepared
from xlstm_tune.models import baselines as module
from xlstm_tune.models.baselines import Baseline, baselines, best_possible, mase_scale

ETTH1 = Path(__file__).parents[3] / "shared" / "data" / "ETTh1.csv"


def forecast(
    series: list[np.ndarray], lookback: int, horizon: int, season: int = 1, shares: tuple[float, float] = (0.6, 0.8)
) -> Prepared:
    """Windows over series [R_s, K] in the target's own units, each cut in time at `shares`."""
    values = np.concatenate(series).astype(np.float64)
    mean, std = values.mean(0), np.where(values.std(0) > 0, values.std(0), 1.0)
    starts, ends, part = [], [], []
    first = 0
    for rows in series:
        cuts = [round(share * len(rows)) for share in shares]
        for end in range(lookback, len(rows) - horizon + 1):
            starts.append(first)
            ends.append(first + end)
            until = end + horizon
            if until <= cuts[0]:
                part.append(0)
            elif end >= cuts[1]:
                part.append(2)
            else:
                part.append(1 if end >= cuts[0] and until <= cuts[1] else 3)
        first += len(rows)
    number = np.array(part)
    targets = ((values - mean) / std).astype(np.float32)
    names = tuple(f"y{k}" for k in range(values.shape[1]))
    return Prepared(
        task="forecast",
        features=targets,
        targets=targets,
        starts=np.array(starts),
        ends=np.array(ends),
        parts={name: np.flatnonzero(number == place) for place, name in enumerate(("train", "validation", "test"))},
        target_mean=mean,
        target_std=std,
        target_columns=tuple(range(values.shape[1])),
        feature_names=names,
        target_names=names,
        horizon=horizon,
        lookback=lookback,
        season=season,
        oracle=None,
        notes=(),
        fingerprint="",
    )


def regression(
    features: np.ndarray, y: np.ndarray, lengths: np.ndarray, lookback: int, oracle: np.ndarray | None
) -> Prepared:
    """Sequences of `lengths` rows, 60 % train, 20 % validation, 20 % test, in their order."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    n = len(lengths)
    mean, std = y.mean(0), y.std(0)
    cuts = (round(0.6 * n), round(0.8 * n))
    return Prepared(
        task="regression",
        features=features.astype(np.float32),
        targets=((y - mean) / std).astype(np.float32),
        starts=offsets[:-1],
        ends=offsets[1:],
        parts={"train": np.arange(cuts[0]), "validation": np.arange(*cuts), "test": np.arange(cuts[1], n)},
        target_mean=mean,
        target_std=std,
        target_columns=(),
        feature_names=tuple(f"x{f}" for f in range(features.shape[1])),
        target_names=tuple(f"y{k}" for k in range(y.shape[1])),
        horizon=1,
        lookback=lookback,
        season=1,
        oracle=oracle,
        notes=(),
        fingerprint="",
    )


def named(data: Prepared, **extra: np.ndarray) -> dict[str, Baseline]:
    return {baseline.name: baseline for baseline in baselines(data, **extra)}


def actual(data: Prepared, part: str) -> np.ndarray:
    """[n, H, K] in the target's own units."""
    index = data.parts[part]
    rows = data.targets[index][:, None]
    if data.task == "forecast":
        rows = data.targets[data.ends[index][:, None] + np.arange(data.horizon)]
    return rows * data.target_std + data.target_mean


def rmse(data: Prepared, baseline: Baseline, part: str = "test") -> float:
    return float(np.sqrt(np.mean((baseline.predictions[part] - actual(data, part)) ** 2)))


def test_forecast_baselines_have_one_shape() -> None:
    rng = np.random.default_rng(0)
    data = forecast([rng.normal(50, 3, (90, 2)), rng.normal(40, 3, (70, 2))], lookback=12, horizon=5, season=7)
    found = named(data)
    assert list(found) == ["mean", "last_value", "seasonal_naive", "nlinear", "dlinear"]
    for baseline in found.values():
        for part in ("validation", "test"):
            assert baseline.predictions[part].shape == (len(data.parts[part]), 5, 2)
            assert np.isfinite(baseline.predictions[part]).all()
    last = data.targets[data.ends[data.parts["test"]] - 1] * data.target_std + data.target_mean
    np.testing.assert_allclose(found["last_value"].predictions["test"], np.repeat(last[:, None], 5, 1))


@pytest.mark.parametrize("horizon", [3, 7, 17])
def test_seasonal_naive_is_exact_on_a_periodic_series(horizon: int) -> None:
    # The season is longer than the lookback: the baseline may look further back than the models.
    pattern = np.random.default_rng(1).normal(100, 20, (7, 3))
    data = forecast([np.tile(pattern, (20, 1))], lookback=5, horizon=horizon, season=7)
    np.testing.assert_allclose(named(data)["seasonal_naive"].predictions["test"], actual(data, "test"), rtol=1e-6)


def test_seasonal_naive_falls_back_to_the_last_value_at_a_series_start() -> None:
    # A second series so short that no window of it has a whole season behind it; its rows must not come from the first.
    first, second = np.arange(60.0)[:, None], 1000 + np.arange(10.0)[:, None]
    data = forecast([first, second], lookback=2, horizon=2, season=8, shares=(0.4, 0.6))
    predicted = named(data)["seasonal_naive"].predictions["test"]
    index = data.parts["test"]
    own = data.starts[index] == 60
    assert own.sum() == 3
    # Inputs end after 6, 7 and 8 rows: the value 8 steps earlier exists for step 2 of the second and for the third.
    np.testing.assert_allclose(predicted[own, :, 0], [[1005, 1005], [1006, 1000], [1000, 1001]], rtol=1e-6)


def test_seasonal_naive_is_left_out_without_a_season() -> None:
    data = forecast([np.random.default_rng(0).normal(size=(60, 1))], lookback=4, horizon=2, season=1)
    assert "seasonal_naive" not in named(data)


def test_nlinear_is_exact_on_linear_trends() -> None:
    step = np.arange(80.0)[:, None]
    series = [slope * step + level for slope, level in ((0.5, 3), (-2.0, 200), (1.25, -40), (0.0, 7))]
    data = forecast(series, lookback=10, horizon=6)
    found = named(data)
    assert rmse(data, found["nlinear"]) < 1e-3 * float(data.target_std[0])
    assert rmse(data, found["last_value"]) > 0.03 * float(data.target_std[0])


def test_nlinear_is_exact_on_one_linear_trend() -> None:
    # Every window less its last value is the same: inputs without variance must do no harm.
    data = forecast([3.0 * np.arange(80.0)[:, None]], lookback=10, horizon=6)
    assert rmse(data, named(data)["nlinear"]) < 1e-3


def test_linear_forecasts_reach_the_noise_of_an_autoregression() -> None:
    rng = np.random.default_rng(2)
    x = np.zeros((3000, 2))
    for t in range(2, len(x)):
        x[t] = 1.2 * x[t - 1] - 0.5 * x[t - 2] + rng.normal(size=2)
    data = forecast([10 * x + 300], lookback=24, horizon=1)
    found = named(data)
    for name in ("nlinear", "dlinear"):
        # The noise has deviation 10; 1200 errors give it to 2 %.
        assert 9.2 < rmse(data, found[name]) < 10.8
    assert rmse(data, found["last_value"]) > 11.5


def design(data: Prepared, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Windows [n K, L] and horizons [n K, H], standardised, by plain loops."""
    x, y = [], []
    for n in data.parts[part]:
        for k in range(data.targets.shape[1]):
            x.append(data.targets[data.ends[n] - data.lookback : data.ends[n], k])
            y.append(data.targets[data.ends[n] : data.ends[n] + data.horizon, k])
    return np.array(x, dtype=np.float64), np.array(y, dtype=np.float64)


@pytest.mark.parametrize("name", ["nlinear", "dlinear"])
def test_linear_forecasts_equal_the_direct_ridge_solution(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One strength, the textbook's formula over explicit inputs: DLinear's are both halves, 2 L of them."""
    rng = np.random.default_rng(3)
    series = [np.cumsum(rng.normal(size=(150, 2)), axis=0) + 20, np.cumsum(rng.normal(size=(90, 2)), axis=0)]
    data = forecast(series, lookback=30, horizon=4)
    monkeypatch.setattr(module, "RIDGE", (0.03,))

    def inputs(windows: np.ndarray) -> np.ndarray:
        if name == "nlinear":
            return windows - windows[:, -1:]
        padded = np.pad(windows, ((0, 0), (12, 12)), mode="edge")
        trend = np.stack([padded[:, t : t + 25].mean(1) for t in range(30)], axis=1)
        return np.concatenate([trend, windows - trend], axis=1)

    x, y = design(data, "train")
    base = x[:, -1:] if name == "nlinear" else 0.0
    z, out = inputs(x), y - base
    zc, oc = z - z.mean(0), out - out.mean(0)
    # The strength counts from the mean eigenvalue of the L inputs that the ridge is solved in, as many as steps.
    strength = 0.03 * np.trace(zc.T @ zc) / len(zc) / 30
    weight = np.linalg.solve(zc.T @ zc / len(zc) + strength * np.eye(z.shape[1]), zc.T @ oc / len(zc))

    windows, _ = design(data, "test")
    back = windows[:, -1:] if name == "nlinear" else 0.0
    expected = (inputs(windows) - z.mean(0)) @ weight + out.mean(0) + back
    expected = expected.reshape(-1, 2, 4).transpose(0, 2, 1) * data.target_std + data.target_mean
    np.testing.assert_allclose(named(data)[name].predictions["test"], expected, rtol=1e-7, atol=1e-7)


def test_ridge_strength_is_chosen_on_validation() -> None:
    rng = np.random.default_rng(4)
    noise = forecast([rng.normal(size=(160, 1))], lookback=40, horizon=2)
    step = np.arange(300.0)[:, None]
    wave = forecast([np.sin(step / 5) + 0.3 * np.sin(step)], lookback=40, horizon=2)
    # With fewer windows than can tell noise from signal a strong ridge is right, on a clean wave the weakest.
    assert named(noise)["dlinear"].settings["ridge"] >= 10
    clean = named(wave)["dlinear"]
    assert clean.settings["ridge"] <= 1e-5
    assert rmse(wave, clean) < 1e-3


def test_pairs_beyond_the_limit_are_spread_and_repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each value names its row and column, so that a pair can be told from its numbers.
    rows = np.arange(240.0)[:, None] + np.array([0.0, 1000.0])
    data = forecast([rows], lookback=6, horizon=2)

    def taken() -> np.ndarray:
        blocks = np.concatenate(list(module._pairs(data, "train", limit=50)))
        return np.round(blocks[:, -1] * 1e6)

    total = len(data.parts["train"]) * 2
    values = taken()
    assert len(values) == 50 < total and len(np.unique(values)) > 25
    assert np.array_equal(values, taken())
    monkeypatch.setattr(module, "BLOCK", 64)
    assert np.array_equal(values, taken()), "the block size must not change what is taken"
    everything = np.concatenate(list(module._pairs(data, "train", limit=total)))
    assert len(everything) == total


def test_linear_forecasts_of_part_of_the_windows_are_nearly_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    x = np.zeros((4000, 1))
    for t in range(1, len(x)):
        x[t] = 0.9 * x[t - 1] + rng.normal(size=1)
    data = forecast([x], lookback=12, horizon=3)
    full = rmse(data, named(data)["nlinear"])
    monkeypatch.setattr(module, "FIT_ROWS", 600)
    part = rmse(data, named(data)["nlinear"])
    assert part != full and part < 1.05 * full


def test_regression_baselines_on_groups() -> None:
    rng = np.random.default_rng(6)
    groups = np.arange(100) % 4
    y = 100.0 * groups[:, None] + rng.normal(size=(100, 1))
    truth = 100.0 * groups[:, None]
    data = regression(rng.normal(size=(100 * 20, 3)), y, np.full(100, 20), lookback=20, oracle=truth)
    found = named(data, groups=groups)
    assert list(found) == ["mean", "group_mean", "linear"]
    for baseline in found.values():
        assert baseline.predictions["test"].shape == (20, 1, 1)
    assert np.all(found["mean"].predictions["test"] == data.target_mean)
    for part in ("validation", "test"):
        index = data.parts[part]
        means = np.array([y[:60][groups[:60] == g].mean() for g in groups[index]])
        np.testing.assert_allclose(found["group_mean"].predictions[part][:, 0, 0], means, atol=1e-4)
    best = best_possible(data)
    assert best is not None and set(best) == {"train", "validation", "test"}
    assert best["test"] == pytest.approx(np.sqrt(np.mean((y - truth)[80:] ** 2)), rel=1e-3)
    assert rmse(data, found["group_mean"]) > best["test"]


def test_group_mean_is_left_out_when_it_cannot_be_had() -> None:
    rng = np.random.default_rng(7)
    data = regression(rng.normal(size=(50 * 15, 2)), rng.normal(size=(50, 1)), np.full(50, 15), 15, None)
    unseen = np.zeros(50, dtype=np.int64)
    unseen[-1] = 1
    assert "group_mean" not in named(data)
    assert "group_mean" not in named(data, groups=unseen)
    assert best_possible(data) is None


def test_linear_regression_is_exact_on_a_linear_truth() -> None:
    """The target is a weighted sum of segment means, of the last 24 steps only, of sequences of uneven length."""
    rng = np.random.default_rng(8)
    lengths = rng.integers(24, 60, 400)
    features = rng.normal(size=(lengths.sum(), 2))
    ends = np.cumsum(lengths)
    means = np.stack([features[end - 24 : end].reshape(12, 2, 2).mean(1).ravel() for end in ends])  # [N, 24]
    y = 5 + means @ rng.normal(size=(24, 2))
    data = regression(features, y, lengths, lookback=24, oracle=None)
    found = named(data)
    assert found["linear"].settings["ridge"] == min(module.RIDGE)
    np.testing.assert_allclose(found["linear"].predictions["test"], actual(data, "test"), atol=1e-4)


def test_linear_regression_with_more_columns_than_sequences_is_as_good_as_ridge_can_be() -> None:
    """All 288 columns, as a year's weather, mostly say one thing, and that is what matters: the best strength lies
    beyond 10."""
    rng = np.random.default_rng(14)
    common = rng.normal(size=(100, 1))
    features = np.repeat(common, 12, axis=0) + rng.normal(size=(1200, 24))
    y = 2 * common + 6 * rng.normal(size=(100, 1))
    data = regression(features, y, np.full(100, 12), lookback=12, oracle=None)
    linear = named(data)["linear"]
    x = [module._summary(data, data.parts[part]) for part in ("train", "validation")]
    centre, spread = x[0].mean(0), x[0].std(0)
    train, judged = ((one - centre) / spread for one in x)
    known = data.targets[:60].astype(np.float64)

    def error(strength: float) -> float:  # by the textbook's other formula, of as many unknowns as sequences
        dual = np.linalg.solve(train @ train.T + 60 * strength * np.eye(60), known - known.mean(0))
        fitted = (judged @ train.T @ dual + known.mean(0)) * data.target_std + data.target_mean
        return float(np.sqrt(np.mean((fitted - actual(data, "validation")[:, 0]) ** 2)))

    errors = {float(strength): error(strength) for strength in 10 ** np.arange(-7, 7.25, 0.25)}
    best = min(errors, key=lambda one: errors[one])
    assert best > 10 and errors[best] < 0.995 * errors[10.0]
    assert rmse(data, linear, "validation") < 1.001 * errors[best]
    assert linear.settings["ridge"] == pytest.approx(best, rel=2)


def test_strengths_end_where_nothing_is_left_of_a_map() -> None:
    for columns in (3, 40, 300):
        strengths = [one for one, _ in module._ridge(np.ones((columns, columns)), np.ones((columns, 1)))]
        assert 100 * columns <= strengths[-1] < 400 * columns and strengths == sorted(strengths)


def test_segment_means_of_sequences_shorter_than_the_segments() -> None:
    features = np.array([[1.0], [2.0], [4.0], [9.0], [9.0]])
    data = regression(features, np.array([[1.0], [2.0]]), np.array([3, 2]), lookback=3, oracle=None)
    means = module._segment_means(data, np.array([0, 1]))
    np.testing.assert_allclose(means[0], [1] * 4 + [2] * 4 + [4] * 4)
    np.testing.assert_allclose(means[1], [9] * 12)


def test_outbreak_leaves_room_between_linear_and_the_best_possible() -> None:
    config = DataConfig.parse(
        {
            "source": "sample:outbreak",
            "sample": {"counties": 24, "years": 20, "days": 73},
            "task": "regression",
            "sequence": ["county", "year"],
            "target": "cases",
            "exclude": ["day", "date", "weather_main", "weather_description"],
            "split": {"by": ["county", "year"], "validation": 0.2, "test": 0.2},
        }
    )
    data = prepare(load_table(config), config)
    found, best = named(data), best_possible(data)
    assert best is not None
    assert best["test"] < 0.8 * rmse(data, found["linear"])
    assert rmse(data, found["linear"]) < 0.9 * rmse(data, found["mean"])


@pytest.mark.slow
@pytest.mark.skipif(not ETTH1.exists(), reason=f"{ETTH1.name} is not beside the repository")
def test_etth1_baselines_match_the_literature() -> None:
    """336 → 96 on the usual split; published: repeat-last 1.295/.713, seasonal-24 .512/.433, DLinear .375/.399."""
    config = DataConfig.parse(
        {
            "source": str(ETTH1),
            "time": {"column": "date"},
            "target": "all",
            "lookback": 336,
            "horizon": 96,
            "split": {"train": 8640, "validation": 2880, "test": 2880},
        }
    )
    data = prepare(load_table(config), config)
    assert len(data.parts["test"]) == 2880 - 96 + 1
    truth = actual(data, "test")

    def errors(baseline: Baseline) -> tuple[float, float]:
        error = (baseline.predictions["test"] - truth) / data.target_std
        return float((error**2).mean()), float(np.abs(error).mean())

    found = named(data)
    assert errors(found["last_value"]) == pytest.approx((1.295, 0.713), abs=0.002)
    assert errors(found["seasonal_naive"]) == pytest.approx((0.512, 0.433), abs=0.002)
    for name in ("nlinear", "dlinear"):
        mse, mae = errors(found[name])
        assert 0.36 < mse < 0.38 and 0.385 < mae < 0.405


def test_mase_scale_is_the_mean_seasonal_change_of_the_rows_that_training_forecasts() -> None:
    values = np.random.default_rng(0).normal(5, 2, (80, 2))
    data = forecast([values[:50], values[50:]], lookback=4, horizon=3, season=7)
    offsets = np.array([0, 50, 80])
    aimed = {int(row) for end in data.ends[data.parts["train"]] for row in range(end, end + 3)}
    pairs = [row for row in aimed if row - 7 >= (0 if row < 50 else 50)]
    assert len(pairs) < len(aimed)
    expected = np.mean([np.abs(values[row] - values[row - 7]) for row in pairs], axis=0)
    np.testing.assert_allclose(np.array(mase_scale(data, offsets), dtype=float), expected, rtol=1e-5)


def test_mase_scale_is_missing_where_nothing_changes_or_no_season_fits() -> None:
    periodic = np.tile(np.arange(7.0), 10)[:, None]
    assert mase_scale(forecast([periodic], lookback=4, horizon=3, season=7), np.array([0, 70])) == [None]
    short = np.random.default_rng(0).normal(size=(40, 1))
    assert mase_scale(forecast([short], lookback=4, horizon=3, season=50), np.array([0, 40])) == [None]
    data = regression(np.zeros((40, 1)), np.arange(10.0)[:, None], np.full(10, 4), 4, None)
    assert mase_scale(data, np.arange(0, 41, 4)) is None
