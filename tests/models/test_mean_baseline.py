"""The mean as a baseline: of each series where training saw it, of the training part elsewhere."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.table import load_table
from xlstm_tune.data.windows import Prepared
from xlstm_tune.models.baselines import Array, baselines

LENGTHS = (40, 60, 50)


def make(folder: Path, columns: dict[str, Any], **keys: Any) -> Prepared:
    """Write the columns to a file and read it back by the search file's keys."""
    path = folder / "x.parquet"
    pa_parquet.write_table(pa.table(columns), path)
    config = DataConfig.parse({"source": str(path), **keys}, "data")
    return prepare(load_table(config), config)


def several(folder: Path, lengths: tuple[int, ...] = LENGTHS, **keys: Any) -> Prepared:
    """Daily series that end on one day, each of two targets at a level of its own."""
    rng = np.random.default_rng(0)
    size = sum(lengths)
    level = np.repeat(10.0 ** np.arange(len(lengths)), lengths)
    columns = {
        "id": np.repeat(np.arange(len(lengths)), lengths),
        "ds": [
            dt.date(2020, 1, 1) + dt.timedelta(day) for n in lengths for day in range(max(lengths) - n, max(lengths))
        ],
        "y": level * (5 + rng.random(size)),
        "z": level * rng.normal(size=size),
    }
    roles = {"series": "id", "time": {"column": "ds"}, "target": ["y", "z"], "lookback": 6, "horizon": 3}
    return make(folder, columns, **roles | {"split": {"validation": 8, "test": 8}} | keys)


def means(data: Prepared, part: str) -> Array:
    (found,) = (one for one in baselines(data) if one.name == "mean")
    return found.predictions[part]


def own_mean(data: Prepared, start: int) -> Array:
    """Of the rows of one series that training windows forecast, counted one by one."""
    train = data.parts["train"]
    ends = data.ends[train][data.starts[train] == start]
    rows = sorted({int(end) + step for end in ends for step in range(data.horizon)})
    return np.asarray((data.targets[rows].astype(np.float64) * data.target_std + data.target_mean).mean(0))


@pytest.mark.parametrize("stride", [1, 5])
def test_each_series_has_the_mean_of_what_training_forecasts_of_it(stride: int, tmp_path: Path) -> None:
    data = several(tmp_path, stride=stride)
    for part in ("validation", "test"):
        found, starts = means(data, part), data.starts[data.parts[part]]
        assert found.shape == (len(starts), 3, 2) and set(starts) == {0, 40, 100}
        for start in (0, 40, 100):
            expected = np.broadcast_to(own_mean(data, start), (int((starts == start).sum()), 3, 2))
            np.testing.assert_allclose(found[starts == start], expected, rtol=1e-12)
    np.testing.assert_allclose(own_mean(data, 100)[0], 550, rtol=0.02)


def test_a_series_that_training_did_not_see_has_the_mean_of_the_training_part(tmp_path: Path) -> None:
    data = several(tmp_path, (12, 60, 19))  # with 12 and 19 rows there is no room for a window before validation begins
    starts = data.starts[data.parts["test"]]
    found = means(data, "test")
    assert set(data.starts[data.parts["train"]]) == {12} and set(starts) == {0, 12, 72}
    assert (found[starts != 12] == data.target_mean).all()
    np.testing.assert_allclose(found[starts == 12][0, 0], own_mean(data, 12), rtol=1e-12)


def test_whole_groups_held_back_have_the_mean_of_the_training_part(tmp_path: Path) -> None:
    data = several(tmp_path, (40, 40, 40, 40), split={"by": "id", "validation": 1, "test": 1})
    for part in ("validation", "test"):
        assert (means(data, part) == data.target_mean).all()


def test_one_series_has_the_mean_of_the_training_part(tmp_path: Path) -> None:
    data = several(tmp_path, (60,))
    assert (means(data, "test") == data.target_mean).all()


def test_the_mean_of_a_series_of_zeros_is_the_minimum(tmp_path: Path) -> None:
    data = make(
        tmp_path, {"id": [0] * 40 + [1] * 40, "y": [0.0] * 40 + [float(n % 7) for n in range(40)]},
        series="id", target="y", lookback=4, horizon=2, target_minimum=0,
    )  # fmt: skip
    found = means(data, "test")
    own = data.starts[data.parts["test"]] == 0
    assert (found[own] == 0).all() and (found[~own] > 2).all()
