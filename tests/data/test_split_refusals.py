"""Splits that cannot be, and data too short for them, are refused with what would fit."""

from __future__ import annotations

from typing import Any

import pytest
from split_tables import counties, daily, days, make, refusal


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"by": "country"}, "names 'country', which is neither 'time' nor one of data.series; did you mean 'county'?"),
        ({"by": ["time", "time"]}, "'data.split.by' names 'time' twice"),
        ({"by": []}, "'data.split.by' is empty"),
        ({"by": "county", "test": "2012-01-05"}, "data.split.test: '2012-01-05' is a moment, but groups have no order"),
        ({"by": "county", "validation": 5, "test": 5}, "but 'county' has 10 different values; make the parts smaller"),
        ({"by": "county", "train": 8, "validation": 2, "test": 2}, "needs 8 training, 2 validation and 2 test groups"),
        ({"validation": "soon"}, "data.split.validation: 'soon' is not an ISO date"),
        ({"test": "2013-01-01"}, "data.split.test: '2013-01-01' is after the last time stamp, 2012-01-12"),
        ({"test": "2011-01-01"}, "leaves nothing for the training part of the 12 time steps"),
        ({"validation": "2012-01-10", "test": "2012-01-05"}, "leaves nothing for the validation part"),
        ({"validation": 0.5, "test": 0.5}, "(validation 0.5, test 0.5) leaves nothing for the training part of the 12"),
        ({"validation": 2011, "test": 2012}, "(2011 counts time steps; a part that begins with that year is written"),
        ({"validation": 6, "test": 8}, "leaves nothing for the training part"),
        ({"train": 10, "validation": 2, "test": 2}, "asks for more than the 12 time steps there are"),
        ({"train": 10, "validation": "2012-01-05", "test": 2}, "asks for more than the 12 time steps there are"),
    ],
)  # fmt: skip
def test_split_that_cannot_be_is_one_sentence(keys: dict[str, Any], expected: str) -> None:
    table, config = counties(split=keys)
    assert expected in refusal(table, config)


def test_split_moment_without_a_time_column_is_refused() -> None:
    table, config = make({"y": [float(row) for row in range(20)]}, lookback=2, split={"test": "2012-01-01"})
    assert "'2012-01-01' is a time, but data.time is not set" in refusal(table, config)


@pytest.mark.parametrize(
    ("keys", "lookback", "expected"),
    [
        ({"lookback": 30}, 30, ("lookback 30 and horizon 2 need 32 steps, the series has 20", "can be at most 18")),
        ({"horizon": 25}, 5, ("lookback 5 and horizon 25 need 30 steps", "data.horizon must be below 20")),
        ({}, 40, ("no series is long enough: lookback 40 (the largest that the search may try) and",)),
        (
            {"horizon": 4},
            5,
            (
                "no validation window is left: the validation part has 3 steps of any one series, horizon 4 needs 4",
                "set data.split.validation to at least 4 or data.horizon to at most 3",
            ),
        ),
        (
            {"horizon": 4, "split": {"validation": 4, "test": 3}},
            5,
            ("no test window is left", "set data.split.test to at least 4 or data.horizon to at most 3"),
        ),
        (
            {"lookback": 13},
            13,
            (
                "the training part has 14 steps of any one series, lookback 13 and horizon 2 need 15",
                "set data.lookback to at most 12 or make validation and test smaller",
            ),
        ),
    ],
)  # fmt: skip
def test_split_too_little_data_says_the_numbers_and_what_fits(
    keys: dict[str, Any], lookback: int, expected: tuple[str, ...]
) -> None:
    table, config = daily(20, **keys)
    message = refusal(table, config, lookback)
    assert all(part in message for part in expected)


def test_split_series_without_history_in_a_part_is_refused() -> None:
    columns = {
        "id": ["a"] * 10 + ["b"] * 4,
        "date": days(10) + days(4, begin=10),
        "y": [float(row) for row in range(14)],
    }
    table, config = make(columns, series="id", time={"column": "date"}, lookback=5, split={"validation": 2, "test": 4})
    assert "no series reaches 1 step into the test part with 5 steps before them" in refusal(table, config)
