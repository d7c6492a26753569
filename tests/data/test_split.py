"""Forecasts split by time: which windows fall into which part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from split_tables import daily, days, ends_of, make, refusal, sizes

from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.cut import count_of
from xlstm_tune.data.split import check_no_leak, split
from xlstm_tune.data.table import Table, load_table

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real data sets are not there ({SHARED})")


def test_split_horizons_lie_inside_their_part_and_inputs_reach_back() -> None:
    table, config = daily(20, split={"validation": 4, "test": 5})
    result = split(table, config, 5)
    assert ends_of(result, "train") == list(range(5, 10))  # train is rows 0 to 10, targets end at row 10
    assert ends_of(result, "validation") == [11, 12, 13]
    assert ends_of(result, "test") == [15, 16, 17, 18]
    assert result.train_rows.tolist() == [True] * 11 + [False] * 9
    assert (result.starts == 0).all() and result.notes == ()
    check_no_leak(table, result, config)


def test_split_stride_thins_training_windows_only() -> None:
    table, config = daily(20, split={"validation": 4, "test": 5}, stride=2)
    result = split(table, config, 5)
    assert ends_of(result, "train") == [5, 7, 9] and sizes(result)[1:] == [3, 4]


def test_split_larger_lookback_leaves_validation_and_test_alone() -> None:
    table, config = daily(20, split={"validation": 4, "test": 5})
    small, large = split(table, config, 5), split(table, config, 8)
    assert ends_of(large, "train") == [8, 9]
    assert ends_of(small, "validation") == ends_of(large, "validation")
    assert ends_of(small, "test") == ends_of(large, "test")


@pytest.mark.parametrize(
    ("sizes_", "bounds"),
    [
        ({"validation": 0.15, "test": 0.15}, (0, 14, 17, 20)),
        ({"validation": 0.29, "test": 1}, (0, 14, 19, 20)),
        ({"train": 8, "validation": 4, "test": 3}, (0, 8, 12, 15)),
        ({"train": 0.5, "validation": 0.25, "test": 0.25}, (0, 10, 15, 20)),
        ({"validation": "2012-01-11", "test": "2012-01-16"}, (0, 10, 15, 20)),
        ({"validation": 3, "test": "2012-01-16"}, (0, 12, 15, 20)),
        ({"validation": "2012-01-11", "test": 4}, (0, 10, 16, 20)),
        ({"train": "2012-01-03", "validation": 4, "test": 4}, (2, 12, 16, 20)),
        ({"train": 6, "validation": "2012-01-11", "test": "2012-01-16"}, (4, 10, 15, 20)),
    ],
)
def test_split_sizes_as_shares_numbers_and_moments(sizes_: dict[str, Any], bounds: tuple[int, ...]) -> None:
    table, config = daily(20, split=sizes_, lookback=1, horizon=1)
    result = split(table, config, 1)
    train, validation, test, end = bounds
    assert ends_of(result, "train") == list(range(max(train, 1), validation))
    assert ends_of(result, "validation") == list(range(validation, test))
    assert ends_of(result, "test") == list(range(test, end))
    assert np.flatnonzero(result.train_rows).tolist() == list(range(train, validation))
    assert bool(result.notes) == (end - train < 20)


def test_count_of_share_is_not_fooled_by_rounding() -> None:
    assert [count_of(0.29, 100), count_of(0.15, 20), count_of(0.01, 10), count_of(7, 3)] == [29, 3, 1, 7]


def test_split_mmwr_week_as_a_beginning() -> None:
    weeks = [f"2008_{week}" for week in range(40, 54)] + [f"2009_{week}" for week in range(1, 11)]
    keys = {"time": {"column": "w", "format": "mmwr-week"}, "lookback": 3}
    table, config = make({"w": weeks, "y": list(range(24))}, split={"validation": "2008_53", "test": "2009_5"}, **keys)
    result = split(table, config, 3)
    assert ends_of(result, "validation") == list(range(13, 18)) and ends_of(result, "test") == list(range(18, 24))


def test_split_iso_week_as_a_beginning() -> None:
    weeks = [f"2015-W{week}" for week in range(40, 54)] + [f"2016-W{week:02d}" for week in range(1, 11)]
    keys = {"time": {"column": "w", "format": "iso-week"}, "lookback": 3, "calendar": "year"}
    sizes = {"validation": "2015-W53", "test": "2016-W05"}
    table, config = make({"w": weeks, "y": list(range(24))}, split=sizes, **keys)
    result = split(table, config, 3)
    assert ends_of(result, "validation") == list(range(13, 18)) and ends_of(result, "test") == list(range(18, 24))
    assert table.step == 1 and table.features == ("y", "year_sin", "year_cos")


def test_split_cuts_series_of_different_times_at_one_moment() -> None:
    columns = {
        "id": ["a"] * 20 + ["b"] * 15,
        "date": days(20) + days(15, begin=10),
        "y": [float(row) for row in range(35)],
    }
    table, config = make(
        columns, series="id", time={"column": "date"}, lookback=3, horizon=2, split={"validation": 5, "test": 5}
    )
    result = split(table, config, 3)  # 25 distinct days: train 0 to 14, validation 15 to 19, test 20 to 24
    assert ends_of(result, "train") == [*range(3, 14), 20 + 3]
    assert ends_of(result, "validation") == [*range(15, 19), *range(20 + 5, 20 + 9)]
    assert ends_of(result, "test") == [*range(20 + 10, 20 + 14)]
    assert result.starts[result.parts["test"]].tolist() == [20] * 4
    check_no_leak(table, result, config)


def test_split_row_order_cuts_each_series_for_itself() -> None:
    columns = {"id": ["a"] * 20 + ["b"] * 10, "y": [float(row) for row in range(30)]}
    table, config = make(columns, series="id", lookback=2, horizon=1, split={"validation": 0.2, "test": 0.2})
    result = split(table, config, 2)
    assert ends_of(result, "train") == [*range(2, 12), *range(22, 26)]
    assert ends_of(result, "validation") == [*range(12, 16), 26, 27]
    assert ends_of(result, "test") == [*range(16, 20), 28, 29]
    check_no_leak(table, result, config)


def test_split_short_series_give_no_window_and_are_counted() -> None:
    columns = {"id": ["a"] * 20 + ["b"] * 3, "date": days(20, 3), "y": [float(row) for row in range(23)]}
    table, config = make(columns, series="id", time={"column": "date"}, lookback=4, split={"validation": 4, "test": 4})
    result = split(table, config, 4)
    assert result.notes == ("1 of 2 series are shorter than lookback + horizon (5 steps) and give no window",)


@needs_shared
def test_split_etth1_has_the_windows_of_the_literature() -> None:
    config = DataConfig.parse(
        {
            "source": str(SHARED / "ETTh1.csv"),
            "time": {"column": "date"},
            "target": "all",
            "lookback": 96,
            "horizon": 24,
            "split": {"train": 8640, "validation": 2880, "test": 2880},
        },
        "data",
    )
    table = load_table(config)
    result = split(table, config, 96)
    assert sizes(result) == [8640 - 96 - 24 + 1, 2880 - 24 + 1, 2880 - 24 + 1]
    assert result.train_rows.sum() == 8640 and result.train_rows[:8640].all()
    assert ends_of(result, "validation")[0] == 8640 and ends_of(result, "test")[-1] == 14400 - 24
    assert result.notes == ("3020 of 17420 time steps lie outside all three parts and are left out",)
    check_no_leak(table, result, config)


def holes(policy: str, blanks: tuple[int, ...]) -> tuple[Table, DataConfig]:
    values = [None if row in blanks else float(row) for row in range(30)]
    keys = {"time": {"column": "date"}, "lookback": 3, "horizon": 2, "split": {"validation": 8, "test": 8}}
    return make({"date": days(30), "y": values}, missing=policy, **keys)


def test_split_windows_with_a_filled_target_in_the_horizon_are_left_out() -> None:
    table, config = holes("forward_fill", (7, 18, 25))
    result = split(table, config, 3)
    assert not {6, 7} & set(ends_of(result, "train"))
    assert not {17, 18} & set(ends_of(result, "validation"))
    assert not {24, 25} & set(ends_of(result, "test"))
    assert sizes(result) == [10 - 2, 7 - 2, 7 - 2]
    assert result.notes == (
        "6 windows were left out because of a filled target in the horizon (2 training, 2 validation, 2 test)",
    )


def test_split_no_window_begins_right_after_an_interpolated_cell() -> None:
    # Row 18 lies on the line to row 19: a window that ends with row 18 would have seen its own answer.
    table, config = holes("interpolate", (18,))
    result = split(table, config, 3)
    assert not {17, 18, 19} & set(ends_of(result, "validation")) and 20 in ends_of(result, "validation")
    assert "1 window was left out because interpolation filled the last step from a later one" in result.notes[1]
    table, config = holes("forward_fill", (18,))
    assert 19 in ends_of(split(table, config, 3), "validation")


def test_split_part_whose_targets_were_all_filled_is_refused() -> None:
    table, config = holes("forward_fill", tuple(range(14, 22, 2)))
    assert "no validation window is left, because too many cells there were blank" in refusal(table, config)
