"""Standardised arrays and the batches cut from them."""

from __future__ import annotations

import datetime as dt
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.table import load_table
from xlstm_tune.data.windows import Prepared, Windows
from xlstm_tune.errors import DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real data sets are not there ({SHARED})")


def make(columns: dict[str, Any], max_lookback: int | None = None, **keys: Any) -> Prepared:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/x.parquet"
        pa_parquet.write_table(pa.table(columns), path)
        config = DataConfig.parse({"source": path, "target": "y", **keys}, "data")
        return prepare(load_table(config), config, max_lookback)


def forecast(max_lookback: int | None = None, **keys: Any) -> Prepared:
    """Two series of 40 hours: inputs x (random) and c (constant), target y (random)."""
    rng = np.random.default_rng(0)
    start = dt.datetime(2020, 1, 1)
    columns = {
        "id": ["a"] * 40 + ["b"] * 40,
        "ds": [start + dt.timedelta(hours=hour) for _ in range(2) for hour in range(40)],
        "x": rng.normal(5, 3, 80),
        "c": [7.5] * 80,
        "y": rng.normal(-2, 9, 80),
    }
    keys = {"series": "id", "time": {"column": "ds"}, "lookback": 6, "horizon": 3} | keys
    return make(columns, max_lookback, **{"split": {"validation": 8, "test": 8}} | keys)


def regression(lengths: list[int], **keys: Any) -> Prepared:
    """Sequences of these lengths, one input x, target y = number of the sequence."""
    rng = np.random.default_rng(1)
    columns = {
        "s": [number for number, length in enumerate(lengths) for _ in range(length)],
        "x": rng.normal(100, 5, sum(lengths)),
        "y": [float(number) for number, length in enumerate(lengths) for _ in range(length)],
    }
    return make(columns, **{"task": "regression", "sequence": "s", "split": {"by": "s"}} | keys)


def naive(prepared: Prepared, part: str, position: int, lookback: int) -> tuple[np.ndarray, np.ndarray]:
    """One sample by slicing."""
    sample = prepared.parts[part][position]
    start, end = int(prepared.starts[sample]), int(prepared.ends[sample])
    x = np.zeros((lookback, prepared.features.shape[1]), dtype=np.float32)
    rows = prepared.features[max(start, end - lookback) : end]
    x[: len(rows)] = rows
    if prepared.task == "regression":
        return x, prepared.targets[sample][None]
    return x, prepared.targets[end : end + prepared.horizon]


def test_prepare_standardises_by_the_training_part_alone() -> None:
    data = forecast()
    train = np.r_[0:24, 40:64]
    later = np.r_[24:40, 64:80]
    column = data.feature_names.index("x")
    seen = data.features[train, column].astype(np.float64)
    assert seen.mean() == pytest.approx(0, abs=1e-6) and seen.std() == pytest.approx(1, abs=1e-6)
    assert abs(data.features[later, column].mean()) > 1e-3
    np.testing.assert_array_equal(data.features[:, data.feature_names.index("c")], 0)
    assert "1 input is constant in the training part: c" in data.notes
    assert data.features.dtype == data.targets.dtype == np.float32
    assert data.target_mean.dtype == data.target_std.dtype == np.float64


def test_prepare_targets_return_to_their_units() -> None:
    data = forecast()
    rng = np.random.default_rng(0)
    rng.normal(5, 3, 80)
    y = rng.normal(-2, 9, 80)
    np.testing.assert_allclose(data.targets[:, 0] * data.target_std + data.target_mean, y, rtol=1e-5, atol=1e-5)
    train = np.r_[0:24, 40:64]
    assert data.target_mean[0] == pytest.approx(y[train].mean()) and data.target_std[0] == pytest.approx(y[train].std())


def test_prepare_target_and_its_input_column_are_the_same_numbers() -> None:
    data = forecast(target=["y", "x"])
    assert data.target_columns == (data.feature_names.index("y"), data.feature_names.index("x"))
    np.testing.assert_array_equal(data.features[:, list(data.target_columns)], data.targets)


def test_prepare_values_after_the_training_part_do_not_change_it() -> None:
    columns = {"y": [float(row % 5) for row in range(30)], "x": [float(row % 7) for row in range(30)]}
    keys = {"lookback": 3, "split": {"validation": 5, "test": 5}}
    one = make(columns, **keys)
    columns = {name: values[:20] + [1000.0 * row for row in range(10)] for name, values in columns.items()}
    other = make(columns, **keys)
    np.testing.assert_array_equal(one.features[:20], other.features[:20])
    assert one.target_mean == other.target_mean and one.target_std == other.target_std
    assert one.fingerprint != other.fingerprint


def test_prepare_arrays_are_read_only() -> None:
    data = forecast()
    arrays = [data.features, data.targets, data.starts, data.ends, data.target_mean, data.target_std]
    for array in [*arrays, *data.parts.values()]:
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_prepare_season_from_the_step_or_the_search_file() -> None:
    assert forecast().season == 24 and forecast(season=5).season == 5
    assert regression([3] * 8).season == 1


def test_prepare_constant_target_is_refused() -> None:
    columns = {"y": [3.0] * 20 + [4.0] * 10}
    assert make(columns, lookback=2, split={"validation": 4, "test": 4}).target_std > 0
    with pytest.raises(DataError, match=r"^the target 'y' is constant in the training part \(3 in all 20 values\)"):
        make(columns, lookback=2, split={"validation": 5, "test": 5})


def test_prepare_category_values_outside_training_are_no_input() -> None:
    columns = {
        "sky": ["fog"] * 10 + ["sun"] * 10 + ["hail"] * 10,
        "x": [float(row) for row in range(30)],
        "y": [float(row) for row in range(30)],
    }
    data = make(columns, lookback=2, categories="sky", split={"validation": 5, "test": 5})
    assert data.feature_names == ("sky=fog", "sky=sun", "x", "y") and data.target_columns == (3,)
    assert "sky=hail occurs only outside the training part and cannot be learnt from, so left out" in data.notes
    np.testing.assert_array_equal(data.features[:, 3], data.targets[:, 0])


def test_prepare_same_data_same_fingerprint() -> None:
    assert forecast().fingerprint == forecast().fingerprint
    others = [forecast(horizon=2), forecast(max_lookback=7), forecast(split={"validation": 7, "test": 8})]
    assert len({data.fingerprint for data in (forecast(), *others)}) == 4


def test_prepare_regression() -> None:
    data = regression([5, 3, 4, 5, 5, 2, 5, 5], split={"by": "s", "validation": 2, "test": 2})
    assert data.lookback == 5 and data.horizon == 1 and data.target_columns == ()
    assert data.targets.shape == (8, 1) and {part: len(rows) for part, rows in data.parts.items()} == {
        "train": 4, "validation": 2, "test": 2,
    }  # fmt: skip
    units = data.targets[:, 0] * data.target_std[0] + data.target_mean[0]
    np.testing.assert_allclose(units, np.arange(8), atol=1e-5)
    assert data.targets[data.parts["train"]].mean() == pytest.approx(0, abs=1e-6)


def test_prepare_outbreak_carries_the_oracle() -> None:
    config = DataConfig.parse(
        {
            "source": "sample:outbreak",
            "sample": {"counties": 3, "years": 6, "days": 60},
            "task": "regression",
            "sequence": ["county", "year"],
            "time": {"column": "date"},
            "target": "cases",
            "categories": ["weather_main", "weather_description"],
            "split": {"validation": 1, "test": 1},
        },
        "data",
    )
    data = prepare(load_table(config), config)
    assert data.oracle is not None and data.oracle.shape == (18, 1) and data.lookback == 60
    cases = data.targets * data.target_std + data.target_mean
    assert np.corrcoef(cases[:, 0], data.oracle[:, 0])[0, 1] > 0.3


def test_windows_shapes_and_values() -> None:
    data = forecast()
    windows = Windows(data, "validation")
    assert len(windows) == 2 * 6 and windows.lookback == 6 and windows.horizon == 3
    x, y, *_ = windows.batch(torch.tensor([0, 7]))
    assert x.shape == (2, 6, 3) and y.shape == (2, 3, 1) and x.dtype == y.dtype == torch.float32
    np.testing.assert_array_equal(x[0], data.features[24 - 6 : 24])
    np.testing.assert_array_equal(y[0], data.targets[24:27])
    np.testing.assert_array_equal(x[1], data.features[65 - 6 : 65])


def test_windows_share_the_memory_of_the_prepared_arrays_without_a_warning() -> None:
    data = forecast()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        views = [Windows(data, part) for part in ("train", "validation", "test")]
    for view in views:
        assert np.shares_memory(view._features.numpy(), data.features)
        assert np.shares_memory(view._targets.numpy(), data.targets)
    x, *_ = views[0].batch(torch.tensor([0]))
    x.zero_()
    assert data.features[:6].any()


def test_windows_smaller_lookback_sees_the_end_of_the_larger_one() -> None:
    data = forecast(max_lookback=10)
    index = torch.arange(5)
    large, same, *_ = Windows(data, "train", 10).batch(index)
    small, targets, *_ = Windows(data, "train", 4).batch(index)
    assert torch.equal(large[:, -4:], small) and torch.equal(same, targets)
    assert len(Windows(data, "train", 4)) == len(Windows(data, "train", 10))


def test_windows_refuse_what_they_cannot_give() -> None:
    data = forecast()
    with pytest.raises(ValueError, match="part must be one of train, validation, test, got 'valid'"):
        Windows(data, "valid")
    with pytest.raises(ValueError, match=r"lookback must be between 1 and 6.*got 7; give prepare\(\) the largest"):
        Windows(data, "train", 7)
    with pytest.raises(ValueError, match="lookback must be between 1"):
        Windows(data, "train", 0)


def test_windows_short_sequences_are_padded_on_the_right_and_give_their_lengths() -> None:
    data = regression([5, 3, 4, 5, 5, 2, 5, 5])
    assert data.shortest == 2
    for part in data.parts:
        windows = Windows(data, part)
        x, y, lengths, static = windows.batch(torch.arange(len(windows)))
        assert x.shape == (len(windows), 5, 1) and y.shape == (len(windows), 1, 1) and static is None
        expected = data.ends[data.parts[part]] - data.starts[data.parts[part]]
        if (expected == 5).all():
            assert lengths is None
            continue
        assert lengths is not None and lengths.dtype == torch.int64
        np.testing.assert_array_equal(lengths.numpy(), expected)
        for position, length in enumerate(expected):
            assert (x[position, length:] == 0).all() and (x[position, :length] != 0).all()


def test_windows_without_shorter_samples_have_no_lengths() -> None:
    data = regression([5, 3, 4, 5, 5, 2, 5, 5], lookback=2)
    assert all(Windows(data, part).batch(torch.tensor([0])).lengths is None for part in data.parts)
    assert Windows(forecast(), "train").batch(torch.tensor([0])).lengths is None


@needs_shared
def test_prepare_etth1_counts_and_scale_of_the_literature() -> None:
    config = DataConfig.parse(
        {
            "source": str(SHARED / "ETTh1.csv"),
            "time": {"column": "date"},
            "target": "all",
            "lookback": 96,
            "horizon": 96,
            "split": {"train": 8640, "validation": 2880, "test": 2880},
        },
        "data",
    )
    data = prepare(load_table(config), config)
    assert data.season == 24 and data.target_columns == tuple(range(7))
    windows = Windows(data, "test")
    assert len(windows) == 2880 - 96 + 1
    x, y, *_ = windows.batch(torch.arange(len(windows)))
    # Repeating the last value has a published error of 1.295 / 0.713 on these windows.
    error = x[:, -1:, :] - y
    assert error.square().mean().item() == pytest.approx(1.295, abs=1e-3)
    assert error.abs().mean().item() == pytest.approx(0.713, abs=1e-3)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 8), st.integers(1, 4), st.integers(0, 4))
def test_batch_of_a_forecast_is_naive_slicing(draw: st.DataObject, lookback: int, horizon: int, more: int) -> None:
    data = forecast(max_lookback=lookback + more, lookback=lookback, horizon=horizon)
    part = draw.draw(st.sampled_from(["train", "validation", "test"]))
    asked = draw.draw(st.integers(1, lookback + more))
    windows = Windows(data, part, asked)
    positions = draw.draw(st.lists(st.integers(0, len(windows) - 1), min_size=1, max_size=9))
    x, y, *_ = windows.batch(torch.tensor(positions))
    for row, position in enumerate(positions):
        expected = naive(data, part, position, asked)
        np.testing.assert_array_equal(x[row], expected[0])
        np.testing.assert_array_equal(y[row], expected[1])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=7, max_size=12), st.integers(1, 12), st.data())
def test_batch_of_a_regression_is_naive_slicing(lengths: list[int], lookback: int, draw: st.DataObject) -> None:
    data = regression(lengths, lookback=lookback)
    part = draw.draw(st.sampled_from(["train", "validation", "test"]))
    windows = Windows(data, part)
    positions = draw.draw(st.permutations(range(len(windows))))
    x, y, *_ = windows.batch(torch.tensor(positions))
    assert x.shape == (len(windows), lookback, 1)
    for row, position in enumerate(positions):
        expected = naive(data, part, position, lookback)
        np.testing.assert_array_equal(x[row], expected[0])
        np.testing.assert_array_equal(y[row], expected[1])
